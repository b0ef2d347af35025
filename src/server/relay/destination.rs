//! Where a connection from a target on may lead (`-L`, `-D`; RFC 4254 section 7.2).
//!
//! Always holds: to the target itself it takes the right to forward; elsewhere it is decided as any
//! destination is, and asked again as long as it is open; never does one lead to an SSH server that
//! is recorded, since its sessions would pass unseen: the addresses are compared, whatever the
//! names, and again at each change of the store.

use std::net::{IpAddr, SocketAddr};

use super::Relay;
use crate::audit::Refusal;
use crate::domain::{Capability, Destination, Host, Mode, Target, UnixTime};
use crate::policy::Permit;
use crate::server::direct::{self, NotOpened, refused, until_refused};
use crate::server::unseen;

/// Where a connection from the target on may lead.
pub(super) struct Cleared {
    pub(super) host: String,
    pub(super) port: u32,
    /// What permits it, if it leads elsewhere than to the target itself.
    permit: Option<(Destination, Permit)>,
    /// The addresses that it leads to.
    seen: Vec<IpAddr>,
    seen_port: u16,
}

impl Cleared {
    /// Waits until it may no longer lead there; gives why. To the target itself it may as long as
    /// there is the relay, and nothing is recorded at that port.
    pub(super) async fn watch(&self, relay: &Relay) -> String {
        let ask = || async {
            let until = self.permitted_until(relay).await?;
            unseen::check_again(&relay.conn, &self.seen, self.seen_port, same_host).await?;
            Ok(until)
        };
        let until = self.permit.as_ref().and_then(|(_, permit)| permit.until());
        until_refused(&relay.conn, until, &relay.cancel, ask).await
    }

    /// Until when the policy of now permits it.
    async fn permitted_until(&self, relay: &Relay) -> Result<Option<UnixTime>, NotOpened> {
        let Some((destination, permit)) = &self.permit else { return Ok(None) };
        let now = relay.elsewhere(destination).await?;
        if now.target().address != permit.target().address {
            let message = format!("{} was moved", permit.target().name);
            return Err(refused(Refusal::NotGranted, &message));
        }
        Ok(now.until())
    }
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
                self.refuse_use(&what, refused.reason);
                refused.message
            }
            NotOpened::Failed(message) => message,
        })
    }

    async fn clear(&self, destination: Destination) -> Result<Cleared, NotOpened> {
        let target = self.target();
        if is_itself(target, &destination.host) || self.is_its_address(&destination.host) {
            if destination.port == target.address.port {
                return Err(unseen::refuse(&target.name));
            }
            let (seen, seen_port) = (self.own(), destination.port);
            unseen::check(&self.conn, &seen, seen_port, same_host).await?;
            let (host, port) = (destination.host.to_string(), destination.port.into());
            return Ok(Cleared { host, port, permit: None, seen, seen_port });
        }
        let permit = self.elsewhere(&destination).await?;
        let address = permit.target().address.clone();
        let (timeout, resolver) = (self.conn.settings.dial_timeout, &self.conn.bastion.resolver);
        let found = resolver.resolve(&address.host, address.port, timeout).await;
        let found = found
            .map_err(|error| NotOpened::Failed(error.for_target(permit.target().name.as_str())))?;
        permit.check_addresses(&found, &self.conn.bastion.own_addresses(&found))?;
        let (seen, seen_port) = (self.seen_from_there(found), address.port);
        unseen::check(&self.conn, &seen, seen_port, same_host).await?;
        let (host, port) = (address.host.to_string(), address.port.into());
        Ok(Cleared { host, port, permit: Some((destination, permit)), seen, seen_port })
    }

    /// Asks the policy about a destination that is not the target itself.
    async fn elsewhere(&self, destination: &Destination) -> Result<Permit, NotOpened> {
        let who = self.conn.who().ok_or_else(|| refused(Refusal::NotOffered, "sign in first"))?;
        let permit = direct::decide(&self.conn, who, destination).await?;
        match permit.target().mode {
            Mode::Record => Err(unseen::refuse(&permit.target().name)),
            Mode::Tunnel => Ok(permit),
        }
    }

    /// The addresses that the target is reached at.
    fn own(&self) -> Vec<IpAddr> {
        self.addresses.addresses().iter().map(SocketAddr::ip).collect()
    }

    /// Where these addresses lead from the target: its own loopback is the target itself, as any
    /// address of its own is.
    fn seen_from_there(&self, found: Vec<IpAddr>) -> Vec<IpAddr> {
        let own = self.own();
        let itself = |ip: &IpAddr| ip.is_loopback() || own.contains(ip);
        let (itself, mut seen): (Vec<_>, Vec<_>) = found.into_iter().partition(itself);
        if !itself.is_empty() {
            seen.extend(own);
        }
        seen
    }

    /// Whether `host` is an address that the target is reached at.
    fn is_its_address(&self, host: &Host) -> bool {
        host.ip().is_some_and(|ip| self.addresses.addresses().iter().any(|own| own.ip() == ip))
    }
}

/// Whether two addresses are of one host, both as the bastion sees them.
fn same_host(a: IpAddr, b: IpAddr) -> bool {
    unseen::is_same(a, b) || (a.to_canonical().is_loopback() && b.to_canonical().is_loopback())
}

/// Whether `host`, said to `target`, means the target itself.
fn is_itself(target: &Target, host: &Host) -> bool {
    let local = host.as_str() == "localhost" || host.ip().is_some_and(|ip| ip.is_loopback());
    local || host.as_str() == target.name.as_str() || *host == target.address.host
}
