//! Where a connection from a target on may lead (`-L`, `-D`; RFC 4254 section 7.2).
//!
//! Always holds: to the target itself it takes the right to forward; elsewhere it is decided as any
//! destination is, and asked again as long as it is open; never does one lead to an SSH server that
//! is recorded, since its sessions would pass unseen.

use super::Relay;
use crate::audit::Refusal;
use crate::domain::{Capability, Destination, Host, Mode, Target, TargetName};
use crate::policy::Permit;
use crate::server::direct::{self, NotOpened, refused, until_refused};

/// Where a connection from the target on may lead.
pub(super) struct Cleared {
    pub(super) host: String,
    pub(super) port: u32,
    /// What permits it, if it leads elsewhere than to the target itself.
    permit: Option<(Destination, Permit)>,
}

impl Cleared {
    /// Waits until it may no longer lead there; gives why. To the target itself it may as long as
    /// there is the relay.
    pub(super) async fn watch(&self, relay: &Relay) -> String {
        let Some((destination, permit)) = &self.permit else {
            return std::future::pending().await;
        };
        let ask = || async {
            let now = relay.elsewhere(destination).await?;
            if now.target().address != permit.target().address {
                let message = format!("{} was moved", permit.target().name);
                return Err(refused(Refusal::NotGranted, &message));
            }
            Ok(now.until())
        };
        until_refused(&relay.conn, permit.until(), &relay.cancel, ask).await
    }
}

fn unseen(name: &TargetName) -> String {
    format!("sessions on {name} are recorded: go there with ssh -J through the bastion")
}

impl Relay {
    /// Decides where a connection from the target on to `host` may lead: to the target itself with
    /// the right to forward, elsewhere as any destination, at the address that is registered for
    /// it.
    pub(super) async fn check_onward(&self, host: &str, port: u32) -> Result<Cleared, String> {
        let what = format!("direct-tcpip {host}:{port}");
        self.check(Capability::Forward, &what)?;
        let cleared = match Destination::parse(host, port) {
            Ok(destination) => self.clear(destination).await,
            Err(error) => Err(refused(Refusal::NotGranted, &error.to_string())),
        };
        cleared.map_err(|error| match error {
            NotOpened::Refused(refused) => {
                self.refuse_use(&what);
                refused.message
            }
            NotOpened::Failed(message) => message,
        })
    }

    async fn clear(&self, destination: Destination) -> Result<Cleared, NotOpened> {
        let target = self.target();
        if is_itself(target, &destination.host) || self.is_its_address(&destination.host) {
            if let Some(name) = self.recorded_here(destination.port).await? {
                return Err(refused(Refusal::NotGranted, &unseen(&name)));
            }
            let (host, port) = (destination.host.to_string(), destination.port.into());
            return Ok(Cleared { host, port, permit: None });
        }
        let permit = self.elsewhere(&destination).await?;
        let address = &permit.target().address;
        let (host, port) = (address.host.to_string(), address.port.into());
        Ok(Cleared { host, port, permit: Some((destination, permit)) })
    }

    /// Asks the policy about a destination that is not the target itself.
    async fn elsewhere(&self, destination: &Destination) -> Result<Permit, NotOpened> {
        let who = self.conn.who().ok_or_else(|| refused(Refusal::NotOffered, "sign in first"))?;
        let permit = direct::decide(&self.conn, who, destination).await?;
        match permit.target().mode {
            Mode::Record => Err(refused(Refusal::NotGranted, &unseen(&permit.target().name))),
            Mode::Tunnel => Ok(permit),
        }
    }

    /// The recorded SSH server at `port` of the target's host, if one is registered.
    async fn recorded_here(&self, port: u16) -> Result<Option<TargetName>, NotOpened> {
        let target = self.target();
        if port == target.address.port {
            return Ok(Some(target.name.clone()));
        }
        let targets = self.conn.bastion.store.targets().await.map_err(|error| {
            tracing::error!(%error, "failed to read targets");
            NotOpened::Failed("the bastion cannot read its targets: try again".to_owned())
        })?;
        let loopback = |host: &Host| host.ip().is_some_and(|ip| ip.is_loopback());
        let here = |host: &Host| {
            *host == target.address.host
                || self.is_its_address(host)
                || loopback(host) && loopback(&target.address.host)
        };
        let found = targets.into_iter().find(|other| {
            other.mode == Mode::Record && other.address.port == port && here(&other.address.host)
        });
        Ok(found.map(|other| other.name))
    }

    /// Whether `host` is an address that the target is reached at.
    fn is_its_address(&self, host: &Host) -> bool {
        host.ip().is_some_and(|ip| self.addresses.addresses().iter().any(|own| own.ip() == ip))
    }
}

/// Whether `host`, said to `target`, means the target itself.
fn is_itself(target: &Target, host: &Host) -> bool {
    let local = host.as_str() == "localhost" || host.ip().is_some_and(|ip| ip.is_loopback());
    local || host.as_str() == target.name.as_str() || *host == target.address.host
}
