//! What the bastion shows to clients as itself: its host key, and a certificate over it.
//!
//! Always holds: the certificate is made for each connection, and is good for every name that its
//! client may have typed: the configured one, the host's own, `localhost`, and the address that the
//! client reached. So one line in `known_hosts` is enough, whatever people call the bastion.

use std::net::IpAddr;
use std::time::Duration;

use russh::keys::PrivateKey;

use super::{Settings, SshConfig, ssh};
use crate::auth::machine::Methods;
use crate::domain::UnixTime;
use crate::keys;

/// How long a certificate is good for: longer than any client looks at it, which is once.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The key and names that clients know the bastion by, and what it offers them.
#[derive(Debug, Clone)]
pub struct Front {
    /// The host key.
    pub host_key: PrivateKey,
    /// The names of the bastion wherever it is reached, without doubles.
    pub names: Vec<String>,
    /// The ways to sign in that are offered.
    pub methods: Methods,
    /// A channel's window in bytes.
    pub window: u32,
    /// Whether older clients find algorithms that they know.
    pub older_clients: bool,
}

impl Front {
    /// What clients see who know the bastion by `host_key`.
    pub fn new(host_key: PrivateKey, settings: &Settings) -> Self {
        let host = settings.host_name.as_str();
        // People type a host's short name as well.
        let short = host.split('.').next().unwrap_or(host);
        let names = [settings.public_host.as_str(), host, short, "localhost"];
        let mut names: Vec<String> =
            names.into_iter().filter(|name| !name.is_empty()).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        Self {
            host_key,
            names,
            methods: settings.rules.methods,
            window: settings.flow.window,
            older_clients: settings.older_clients,
        }
    }

    /// The names by which somebody who reached the bastion at `local` may know it. ssh looks for the
    /// one that was typed (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
    pub fn names_at(&self, local: Option<IpAddr>) -> Vec<String> {
        let mut names = self.names.clone();
        names.extend(local.map(|ip| ip.to_canonical().to_string()));
        names.sort();
        names.dedup();
        names
    }

    /// What a connection to `local` is served by, with a certificate by the host CA `ca`.
    ///
    /// # Errors
    /// When the system has no randomness, or a name cannot stand in a certificate.
    pub(super) fn config(
        &self,
        ca: &PrivateKey,
        local: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<SshConfig, keys::Error> {
        let (public, names) = (self.host_key.public_key(), self.names_at(local));
        let certificate = keys::host_certificate(ca, public, &names, now, VALIDITY)?;
        let key = self.host_key.clone();
        Ok(ssh::config(key, certificate, self.methods, self.window, self.older_clients))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_every_name_and_the_address_that_was_reached() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str| keys::load_or_create(&dir.path().join(name), name).unwrap();
        let names = ["localhost", "gate"].map(str::to_owned).to_vec();
        let front = Front {
            host_key: key("host"),
            names,
            methods: Methods::INTERACTIVE,
            window: 1,
            older_clients: false,
        };
        let ca = key("ca");
        for (local, principals) in [
            (Some("192.0.2.1"), vec!["192.0.2.1", "gate", "localhost"]),
            (Some("::ffff:192.0.2.1"), vec!["192.0.2.1", "gate", "localhost"]),
            (Some("2001:db8::1"), vec!["2001:db8::1", "gate", "localhost"]),
            (None, vec!["gate", "localhost"]),
        ] {
            let local = local.map(|ip| ip.parse().unwrap());
            let config = front.config(&ca, local, UnixTime(1_795_508_403_000)).unwrap();
            assert_eq!(config.certificates[0].valid_principals(), principals);
        }
    }
}
