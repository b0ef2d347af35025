//! Targets (registered by an administrator), their labels, what a grant may allow there, and
//! destinations (asked for by a client).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::{NameError, is_name, name};
use super::{as_text, printable, words};

name! {
    /// The name under which a target is registered, as people type it after `ssh -J bastion`.
    TargetName, "target name", |s| is_name(s, 63), "1 to 63 of a-z 0-9 . _ - and no . or - in front"
}

words! {
    /// Whether the bastion sees inside an SSH connection to a target.
    Mode, "mode" {
        /// The bastion ends the inner SSH and records it.
        Record = "record",
        /// Bytes pass through, encrypted end to end; the content is not seen.
        Tunnel = "tunnel",
    }
}

words! {
    /// One thing that a grant may allow at a target.
    Capability, "capability" {
        /// An interactive shell.
        Shell = "shell",
        /// A single command.
        Exec = "exec",
        /// Reading files and listing folders over SFTP or SCP.
        SftpRead = "sftp-read",
        /// Writing, removing and changing files over SFTP or SCP.
        SftpWrite = "sftp-write",
        /// A TCP connection to the target itself, or from it on (`-L`, `-D` in record mode).
        Forward = "forward",
        /// Use of the agent that the user forwards.
        Agent = "agent",
        /// X11 windows of the target on the user's screen. Only where it is named.
        X11 = "x11",
        /// Ports of the target that lead to the user (`-R`). Only where it is named.
        RemoteForward = "remote-forward",
    }
}

impl Capability {
    /// Whether a grant that names no capabilities allows this one.
    pub fn by_default(self) -> bool {
        !matches!(self, Self::X11 | Self::RemoteForward)
    }

    /// Whether it is asked for on a session channel, beside what the channel is for.
    pub fn is_for_sessions(self) -> bool {
        matches!(self, Self::Agent | Self::X11)
    }
}

words! {
    /// How the bastion signs in on a target as one of its accounts, in record mode.
    AccountAuth, "way to sign in" {
        /// A certificate of the user CA, made for each connection.
        Ca = "ca",
        /// A private key, sealed in the store.
        Key = "key",
        /// A password, sealed in the store.
        Password = "password",
        /// The agent that the user forwards.
        Agent = "agent",
        /// The target's own questions, passed on to the user.
        Ask = "ask",
    }
}

/// A host name or an IP address, in lower case, without brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

impl Host {
    /// The host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, if this is a literal one; an IPv4-mapped IPv6 address counts as the IPv4 one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    }
}

impl FromStr for Host {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self(ip.to_canonical().to_string()));
        }
        let name = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
        // A name of digits and dots only is one of the old short forms of an IPv4 address
        // ("127.1", "2130706433"), which resolvers turn into addresses nobody wrote.
        let last = name.rsplit('.').next().unwrap_or("");
        let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
        if is_name(&name, 253) && !numeric && !name.contains("..") {
            Ok(Self(name))
        } else {
            Err(NameError::new("host", s, "a DNS name or an IP address"))
        }
    }
}

as_text!(Host, NameError);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a target is reached: `HOST[:PORT]`, port 22 if not said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetAddress {
    /// The host to resolve and dial.
    pub host: Host,
    /// The TCP port, never 0.
    pub port: u16,
}

impl FromStr for TargetAddress {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let rule = "HOST, HOST:PORT, IPV4:PORT or [IPV6]:PORT with a port from 1 to 65535";
        let bad = || NameError::new("target address", s, rule);
        let (host, port) = match s.rsplit_once(':') {
            _ if s.parse::<IpAddr>().is_ok() => (s, 22),
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().ok().filter(|p| *p != 0).ok_or_else(bad)?)
            }
            Some(_) if s.ends_with(']') => (s, 22),
            Some(_) => return Err(bad()),
            None => (s, 22),
        };
        Ok(Self { host: host.parse().map_err(|_| bad())?, port })
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_host_port(f, self.host.as_str(), self.port)
    }
}

/// What a client asked for in a `direct-tcpip` channel open (RFC 4254 section 7.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The host as the client wrote it, in lower case.
    pub host: Host,
    /// The port that the client asked for.
    pub port: u16,
}

/// A destination that can be no host and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// The host is no DNS name and no IP address.
    #[error("{0:?} is not a host name")]
    Host(String),
    /// The port is 0 or above 65535.
    #[error("{0} is not a port")]
    Port(u32),
}

impl Destination {
    /// Parses what came over the wire.
    ///
    /// # Errors
    /// When the host is no DNS name or address, or the port no port.
    pub fn parse(host: &str, port: u32) -> Result<Self, DestinationError> {
        let port =
            u16::try_from(port).ok().filter(|p| *p != 0).ok_or(DestinationError::Port(port))?;
        let host = host.parse().map_err(|_| DestinationError::Host(printable(host)))?;
        Ok(Self { host, port })
    }
}

/// Reads back what its `Display` writes.
impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let no_host = || DestinationError::Host(printable(text));
        let (host, port) = text.rsplit_once(':').ok_or_else(no_host)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Self::parse(host, port.parse().map_err(|_| no_host())?)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_host_port(f, self.host.as_str(), self.port)
    }
}

fn fmt_host_port(f: &mut fmt::Formatter<'_>, host: &str, port: u16) -> fmt::Result {
    if host.contains(':') {
        f.pad(&format!("[{host}]:{port}"))
    } else {
        f.pad(&format!("{host}:{port}"))
    }
}

/// A `key=value` mark on a target, by which a grant can mean many targets at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// Left of the `=`.
    pub key: String,
    /// Right of the `=`.
    pub value: String,
}

impl FromStr for Label {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let part = |p: &str| is_name(&p.to_ascii_lowercase(), 63);
        match s.split_once('=') {
            Some((k, v)) if part(k) && part(v) => {
                Ok(Self { key: k.to_owned(), value: v.to_owned() })
            }
            _ => Err(NameError::new("label", s, "KEY=VALUE, each 1 to 63 of A-Z a-z 0-9 . _ -")),
        }
    }
}

as_text!(Label, NameError);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}={}", self.key, self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_addresses() {
        for (given, read) in [
            ("db1", "db1:22"),
            ("DB1.example.org.", "db1.example.org:22"),
            ("db1:5432", "db1:5432"),
            ("192.0.2.1:2222", "192.0.2.1:2222"),
            ("2001:db8::1", "[2001:db8::1]:22"),
            ("[2001:db8::1]", "[2001:db8::1]:22"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("::ffff:127.0.0.1", "127.0.0.1:22"),
        ] {
            assert_eq!(given.parse::<TargetAddress>().unwrap().to_string(), read, "{given}");
        }
        for bad in [
            "",
            "db1:",
            "db1:0",
            "db1:65536",
            "db1:x",
            "a b",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0",
            "a..b",
        ] {
            assert!(bad.parse::<TargetAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations_from_the_wire() {
        assert_eq!(Destination::parse("DB1", 22).unwrap().to_string(), "db1:22");
        assert_eq!(Destination::parse("::1", 22).unwrap().to_string(), "[::1]:22");
        assert_eq!(Destination::parse("db1", 0), Err(DestinationError::Port(0)));
        assert_eq!(Destination::parse("db1", 70_000), Err(DestinationError::Port(70_000)));
        for bad in ["", "127.1", "0", "a\x1b[2J", "/run/x.sock"] {
            assert!(Destination::parse(bad, 22).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels() {
        assert_eq!("env=Prod".parse::<Label>().unwrap().to_string(), "env=Prod");
        for bad in ["env", "=x", "env=", "e v=x", "a=b=c"] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }
}
