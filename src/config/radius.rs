//! `[radius]`: the servers that check codes or passwords, and how they are asked.
//!
//! Always holds: a secret is named by its file; what [`Radius::check`] passed has no contradiction
//! that can be seen without opening a file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Config, Span};
use crate::domain::{RadiusMode, printable, words};

words! {
    /// How a RADIUS server is reached.
    Transport, "transport" {
        /// RFC 2865.
        Udp = "udp",
        /// RadSec, RFC 6614.
        Tls = "tls",
    }
}

/// The servers, and how they are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Radius {
    /// How for whom nothing else is set.
    pub mode: RadiusMode,
    /// Whether, in mode both, the code is sent right behind the password.
    pub both_in_one: bool,
    /// What is sent as the password to begin with in mode challenge.
    pub challenge_request: String,
    /// For how long a code that was accepted is not taken again.
    pub code_life: Span,
    /// The least time from a question to its refusal, for everybody, if there are servers.
    pub refusal_wait: Span,
    /// What the servers know the bastion by; empty: the node's name.
    pub nas_identifier: String,
    /// For how long a server that did not answer is asked last.
    pub dead_time: Span,
    /// The servers, in the order in which they are asked.
    pub server: Vec<RadiusServer>,
}

impl Default for Radius {
    fn default() -> Self {
        Self {
            mode: RadiusMode::Code,
            both_in_one: false,
            challenge_request: String::new(),
            code_life: Span::seconds(90),
            refusal_wait: Span::seconds(2),
            nas_identifier: String::new(),
            dead_time: Span::seconds(60),
            server: Vec::new(),
        }
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RadiusServer {
    /// What people call it.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// A file with the secret that it shares; empty: the systemd credential `radius_NAME`, and over
    /// TLS without one, "radsec".
    #[serde(default)]
    pub secret_file: PathBuf,
    /// How it is reached.
    #[serde(default = "udp")]
    pub transport: Transport,
    /// How long it has to answer, in all.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// How often a request is sent within that time.
    #[serde(default = "tries")]
    pub tries: u32,
    /// Whether a reply over UDP must be signed.
    #[serde(default = "yes")]
    pub require_message_authenticator: bool,
    /// For TLS: a PEM file with the authorities of the server's certificate.
    #[serde(default)]
    pub ca_file: PathBuf,
    /// For TLS: a PEM file with our certificate.
    #[serde(default)]
    pub certificate_file: PathBuf,
    /// For TLS: a PEM file with our certificate's key.
    #[serde(default)]
    pub key_file: PathBuf,
    /// For TLS: the name in the server's certificate; empty: that of the address.
    #[serde(default)]
    pub server_name: String,
}

fn udp() -> Transport {
    Transport::Udp
}

fn timeout() -> Span {
    Span::seconds(3)
}

fn tries() -> u32 {
    3
}

fn yes() -> bool {
    true
}

impl Radius {
    /// The first rule that is broken; what it says completes "radius.server ...".
    pub(super) fn fault(&self, login_grace: Span) -> Option<String> {
        for (index, server) in self.server.iter().enumerate() {
            let shown = printable(&server.name);
            if let Some(rule) = server.fault() {
                return Some(format!("{shown:?} {rule}"));
            }
            if self.server.iter().take(index).any(|other| other.name == server.name) {
                return Some(format!("has two servers called {shown:?}: name each differently"));
            }
        }
        let patience: std::time::Duration = self.server.iter().map(|s| s.timeout.0).sum();
        (patience >= login_grace.0 && !self.server.is_empty()).then(|| {
            "waits for its servers as long as server.login_grace or longer: shorten their timeouts"
                .to_owned()
        })
    }
}

impl RadiusServer {
    fn fault(&self) -> Option<&'static str> {
        // It is part of a credential's name, and of error texts.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let port = self.address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        let tls_files = [&self.ca_file, &self.certificate_file, &self.key_file];
        let is_tls = self.transport == Transport::Tls;
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            Some("must have a name of 1 to 64 letters, digits, - and _")
        } else if !matches!(port, Some(Ok(1..))) {
            Some("must have an address as \"HOST:PORT\", such as \"radius.example:1812\"")
        } else if self.timeout.0.is_zero() || self.timeout > Span::seconds(60) {
            Some("must have a timeout of at most 60s, and longer than 0s")
        } else if !(1..=10).contains(&self.tries) {
            Some("must have 1 to 10 tries")
        } else if is_tls && !tls_files.iter().all(|path| is_set(path)) {
            Some("must have ca_file, certificate_file and key_file for the transport tls")
        } else if !is_tls && tls_files.iter().any(|path| is_set(path)) {
            Some("has files for TLS: set transport = \"tls\", or leave them out")
        } else {
            None
        }
    }
}

impl Config {
    /// How RADIUS servers are asked for whom nothing else is set; `None` if there are none.
    pub fn radius_mode(&self) -> Option<RadiusMode> {
        (!self.radius.server.is_empty()).then_some(self.radius.mode)
    }

    /// The file with a RADIUS server's secret: as configured, else the systemd credential
    /// `radius_NAME` if there is one.
    pub fn radius_secret_path(&self, server: &RadiusServer) -> Option<PathBuf> {
        self.secret_path(&server.secret_file, &format!("radius_{}", server.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(change: &str) -> Radius {
        let mut table: toml::Table =
            "name = \"a\"\naddress = \"a:1812\"".parse().expect("it is TOML");
        table.extend(change.parse::<toml::Table>().unwrap());
        let server = table.try_into().unwrap();
        Radius { server: vec![server], ..Radius::default() }
    }

    #[test]
    fn servers_that_cannot_be_used_are_told() {
        let grace = Span::seconds(120);
        let tls = "ca_file = \"a\"\ncertificate_file = \"b\"\nkey_file = \"c\"\n";
        for good in ["", "address = \"[::1]:1\"", &format!("transport = \"tls\"\n{tls}")] {
            assert_eq!(server(good).fault(grace), None, "{good}");
        }
        for (bad, says) in [
            ("name = \"a/b\"", "\"a/b\" must have a name"),
            ("name = \"\"", "must have a name"),
            ("address = \"a\"", "must have an address"),
            ("address = \"a:0\"", "must have an address"),
            ("timeout = \"61s\"", "must have a timeout"),
            ("timeout = \"0s\"", "must have a timeout"),
            ("tries = 0", "1 to 10 tries"),
            ("transport = \"tls\"", "must have ca_file"),
            (tls, "has files for TLS"),
        ] {
            let fault = server(bad).fault(grace).unwrap();
            assert!(fault.contains(says), "{bad}: {fault}");
        }
        let mut twice = server("");
        twice.server.push(twice.server[0].clone());
        assert!(twice.fault(grace).unwrap().contains("two servers called \"a\""));
        assert!(server("").fault(Span::seconds(3)).unwrap().contains("server.login_grace"));
    }
}
