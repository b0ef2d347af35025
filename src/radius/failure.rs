//! What can go wrong, in words that tell people which server, why, and what to look at.
//!
//! Always holds: nothing here holds a secret, a password or a text that a server sent.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::packet::{Discard, Invalid};
use super::server::TlsError;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All servers were asked in turn, and none answered.
    #[error("no RADIUS server answered: {0}")]
    AllDead(Failures),
    /// Only the server that asked for more knows what it was about, and it does not answer.
    #[error("the RADIUS server that asked for more no longer answers, so begin again: {0}")]
    ChallengeLost(Failure),
    /// A challenge's state is for another user, so it must not be answered for this one.
    #[error("this challenge was for another user")]
    OtherUser,
    /// There is no server of this name (any more).
    #[error("no RADIUS server is called {0:?}")]
    UnknownServer(String),
    /// What was given cannot be asked in RADIUS.
    #[error("this cannot be asked of a RADIUS server: {0}")]
    Invalid(#[from] Invalid),
    /// Too many requests are under way, and none ended in time.
    #[error("too many RADIUS requests are under way; try again later")]
    Busy,
}

/// The failures of several servers, in the order in which they were asked.
#[derive(Debug)]
pub struct Failures(pub Vec<Failure>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, failure) in self.0.iter().enumerate() {
            write!(f, "{}{failure}", if place == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why one server gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{server} ({address}): {reason}")]
pub struct Failure {
    /// Its name.
    pub server: String,
    /// Its address, as configured.
    pub address: String,
    /// Why.
    #[source]
    pub reason: Reason,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Its name leads to no address.
    #[error("its name cannot be resolved: {0}")]
    Resolve(std::io::Error),
    /// The system says that nothing can be sent there, or that nothing listens there.
    #[error("it cannot be reached: {0}")]
    Unreachable(std::io::Error),
    /// Nothing that could be believed came in time.
    #[error("no answer in {:.1} s{discards}", .waited.as_secs_f64())]
    Silent {
        /// For how long it was waited.
        waited: Duration,
        /// What came instead.
        discards: Discards,
    },
    /// No TLS connection could be made.
    #[error("no TLS connection: {0}")]
    Tls(std::io::Error),
    /// The files for TLS have become unusable.
    #[error("{0}")]
    TlsFiles(#[from] TlsError),
    /// A new TLS connection ended before an answer came. In TLS 1.3 a client learns only then that
    /// its certificate was refused.
    #[error("it closed the connection ({0}); perhaps it does not accept our certificate")]
    Closed(String),
    /// All 256 identifiers of the connection are in use.
    #[error("too many requests wait for an answer on one connection")]
    Full,
    /// The system has no randomness.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// What was given cannot be asked in RADIUS.
    #[error("{0}")]
    Invalid(#[from] Invalid),
}

/// What came in and was not the answer: how many packets, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discards(pub BTreeMap<Discard, u32>);

impl Discards {
    /// Counts one more.
    pub fn add(&mut self, why: Discard) {
        let count = self.0.entry(why).or_default();
        *count = count.saturating_add(1);
    }
}

/// Nothing, or `, but 2 packets of a wrong length, 1 packet ...`.
impl fmt::Display for Discards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (why, count)) in self.0.iter().enumerate() {
            let before = if place == 0 { ", but" } else { "," };
            let noun = if *count == 1 { "packet" } else { "packets" };
            write!(f, "{before} {count} {noun} {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_each_server_and_why() {
        let mut discards = Discards::default();
        for why in [Discard::NoMessageAuthenticator, Discard::Identifier, Discard::Identifier] {
            discards.add(why);
        }
        let failure = |server: &str, reason| Failure {
            server: server.into(),
            address: format!("{server}.example:1812"),
            reason,
        };
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = Error::AllDead(Failures(vec![
            failure("north", Reason::Silent { waited: Duration::from_millis(3000), discards }),
            failure("south", Reason::Unreachable(refused)),
        ]));
        assert_eq!(
            error.to_string(),
            "no RADIUS server answered: north (north.example:1812): no answer in 3.0 s, but 2 packets \
             for another request (wrong identifier), 1 packet without Message-Authenticator: forged, \
             or the server needs an update or to be told to send it; south (south.example:1812): it \
             cannot be reached: connection refused"
        );
    }
}
