//! What is set for a server and for the client, with the defaults.
//!
//! Always holds: what [`Server::check`] passed can be used; secrets are not in any `Debug`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::packet::{EmptySecret, MAX_VALUE};

/// The secret that all servers share over TLS, where it protects nothing (RFC 6614 section 2.3).
pub const RADSEC_SECRET: &str = "radsec";

/// One RADIUS server.
#[derive(Debug, Clone)]
pub struct Server {
    /// What people call it; unlike every other server's.
    pub name: String,
    /// Host name or address, and port: `radius.example:1812`, `[2001:db8::1]:2083`. A name is
    /// looked up anew at each exchange, or when a connection is made.
    pub address: String,
    /// The secret it shares with us; over TLS normally [`RADSEC_SECRET`].
    pub secret: SecretString,
    /// How it is reached.
    pub transport: Transport,
    /// How long it has to answer one request, in all.
    pub timeout: Duration,
    /// How often a request is sent within that time: 1 to 10. Over TLS always once.
    pub tries: u32,
    /// Whether a reply over UDP must have a Message-Authenticator. Without, anybody on the way can
    /// turn a reject into an accept (CVE-2024-3596), so this is for networks that nobody else is on.
    ///
    /// Over TLS nothing is required, since the connection itself protects what it carries
    /// (draft-ietf-radext-deprecating-radius-10 section 4).
    pub require_message_authenticator: bool,
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub enum Transport {
    /// Plain RADIUS, RFC 2865; port 1812 by custom.
    Udp,
    /// RadSec, RFC 6614; port 2083 by custom.
    Tls(Tls),
}

/// Whom a TLS connection trusts and who it is. The files are read again for each connection, so
/// that renewed ones are used without a restart.
#[derive(Debug, Clone)]
pub struct Tls {
    /// PEM file with the authorities that may vouch for the server. No others are trusted.
    pub ca_file: PathBuf,
    /// PEM file with our certificate and those between it and its authority.
    pub certificate_file: PathBuf,
    /// PEM file with our certificate's private key.
    pub key_file: PathBuf,
    /// The name or address in the server's certificate, if it is not the one in `address`.
    pub server_name: Option<String>,
}

impl Server {
    /// A server over UDP, with the defaults: 3 seconds, 3 tries, Message-Authenticator required.
    pub fn udp(name: &str, address: &str, secret: SecretString) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            secret,
            transport: Transport::Udp,
            timeout: Duration::from_secs(3),
            tries: 3,
            require_message_authenticator: true,
        }
    }

    /// A server over TLS, with the defaults: 5 seconds, since a connection may have to be made.
    pub fn tls(name: &str, address: &str, tls: Tls) -> Self {
        Self {
            transport: Transport::Tls(tls),
            timeout: Duration::from_secs(5),
            tries: 1,
            ..Self::udp(name, address, RADSEC_SECRET.into())
        }
    }

    /// Whether a reply without Message-Authenticator is refused.
    pub(super) fn requires_signature(&self) -> bool {
        self.require_message_authenticator && matches!(self.transport, Transport::Udp)
    }

    /// What cannot be used.
    pub(super) fn check(&self) -> Result<(), SetupError> {
        let fail = |what| Err(SetupError::Server { server: self.name.clone(), what });
        let port = self.address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if host(&self.address).is_empty() || !matches!(port, Some(Ok(1..))) {
            return fail("its address is not `host:port`, such as radius.example:1812");
        }
        if self.timeout.is_zero() || self.timeout > LONGEST {
            return fail("its timeout is not between 1 millisecond and 5 minutes");
        }
        if !(1..=10).contains(&self.tries) {
            return fail("its number of tries is not between 1 and 10");
        }
        Ok(())
    }
}

/// No request waits longer for an answer.
const LONGEST: Duration = Duration::from_secs(300);

/// The host in `host:port`, without the brackets around an IPv6 address.
pub(super) fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host,
        // Without brackets, nobody could tell where the address ends.
        None if host.contains(':') => "",
        None => host,
    }
}

/// What is set for all servers together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the servers know us by (NAS-Identifier), 1 to 253 bytes.
    pub nas_identifier: String,
    /// For how long a server that did not answer is asked last.
    pub dead_time: Duration,
    /// How many requests may be under way at once, 1 to 256; more wait.
    pub concurrent: usize,
}

impl Settings {
    /// The defaults: a dead time of 60 seconds, and 64 requests at once.
    pub fn new(nas_identifier: &str) -> Self {
        Self {
            nas_identifier: nas_identifier.into(),
            dead_time: Duration::from_secs(60),
            concurrent: 64,
        }
    }

    /// What cannot be used.
    pub(super) fn check(&self) -> Result<(), SetupError> {
        if !(1..=MAX_VALUE).contains(&self.nas_identifier.len()) {
            return Err(SetupError::NasIdentifier);
        }
        // A connection has one identifier for each request under way, and there are no more.
        if !(1..=256).contains(&self.concurrent) {
            return Err(SetupError::Concurrent);
        }
        Ok(())
    }
}

/// Why there can be no client with these settings.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is nobody to ask.
    #[error("no RADIUS server is configured")]
    NoServers,
    /// Errors, audit and the answers to challenges name a server.
    #[error("two RADIUS servers are called {0:?}: give each a name of its own")]
    SameName(String),
    /// A setting of one server cannot be used.
    #[error("RADIUS server {server:?}: {what}")]
    Server {
        /// Its name.
        server: String,
        /// What is wrong and what is right.
        what: &'static str,
    },
    /// A server has no secret.
    #[error("RADIUS server {server:?}: {source}")]
    Secret {
        /// Its name.
        server: String,
        /// What is wrong.
        source: EmptySecret,
    },
    /// What TLS needs cannot be used.
    #[error("RADIUS server {server:?}: {source}")]
    Tls {
        /// Its name.
        server: String,
        /// What is wrong.
        source: TlsError,
    },
    /// A NAS-Identifier has to have a length that an attribute can carry.
    #[error("the NAS identifier is not 1 to 253 bytes long")]
    NasIdentifier,
    /// The bound on requests under way is no such bound.
    #[error("the number of concurrent RADIUS requests is not between 1 and 256")]
    Concurrent,
}

/// Why TLS cannot be set up with some files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or does not hold what it should.
    #[error("failed to read {what} from {}: {why}", .path.display())]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("the certificate and key cannot be used: {0}")]
    Identity(rustls::Error),
    /// No certificate could be for such a name.
    #[error("{0:?} is not a name that a certificate can be for: set the server's name for TLS")]
    Name(String),
}

impl TlsError {
    /// Something about a file.
    pub(super) fn file(what: &'static str, path: &Path, why: impl ToString) -> Self {
        Self::File { what, path: path.into(), why: why.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (address, expected) in [
            ("radius.example:1812", "radius.example"),
            ("10.0.0.1:1812", "10.0.0.1"),
            ("[2001:db8::1]:1812", "2001:db8::1"),
        ] {
            assert_eq!(host(address), expected);
            Server::udp("a", address, "s".into()).check().unwrap();
        }
        for wrong in
            ["", "radius.example", ":1812", "a:", "a:0", "a:65536", "a:b", "2001:db8::1:1812"]
        {
            assert!(Server::udp("a", wrong, "s".into()).check().is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_checked_at_both_ends() {
        let with = |change: fn(&mut Server)| {
            let mut server = Server::udp("a", "a:1", "s".into());
            change(&mut server);
            server.check().is_ok()
        };
        assert!(with(|s| s.tries = 1) && with(|s| s.tries = 10));
        assert!(!with(|s| s.tries = 0) && !with(|s| s.tries = 11));
        assert!(with(|s| s.timeout = LONGEST) && !with(|s| s.timeout = Duration::ZERO));
        assert!(!with(|s| s.timeout = LONGEST + Duration::from_millis(1)));
        let with =
            |name: &str, concurrent| Settings { concurrent, ..Settings::new(name) }.check().is_ok();
        assert!(with("a", 1) && with(&"a".repeat(253), 256));
        assert!(!with("", 1) && !with(&"a".repeat(254), 1) && !with("a", 0) && !with("a", 257));
    }

    #[test]
    fn no_secret_is_shown() {
        let shown = format!("{:?}", Server::udp("a", "a:1", "hunter2".into()));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
