//! What the user's client asked for on one target connection that lets the target open channels
//! back to the user: the agent, X11 (RFC 4254 section 6.3.2), ports and socket files (section 7.2).
//!
//! Always holds: nothing is asked of a target that is not noted here before; a channel that nothing
//! here asked for is refused, and a target that goes on opening such is cut off.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Channels that a target may open unasked before its connection is cut.
const UNASKED: usize = 3;

/// What a target was asked to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum Listen {
    /// An address and a port. A target tells the address as it sees it, so only the port counts;
    /// the client compares both with what it asked for.
    Port(String, u32),
    /// A socket file.
    Socket(String),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(address, port) => write!(f, "tcpip-forward {address}:{port}"),
            Self::Socket(path) => write!(f, "streamlocal-forward {path}"),
        }
    }
}

impl Listen {
    /// Whether a channel from `from` comes of this. While the target is asked for any port, it may
    /// be any: its first channel may overtake what it answers.
    fn leads_to(&self, from: &Self) -> bool {
        match (self, from) {
            (Self::Port(_, port), Self::Port(_, from)) => *port == 0 || port == from,
            (Self::Socket(path), Self::Socket(from)) => path == from,
            _ => false,
        }
    }
}

/// A channel that a target opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening<'a> {
    Agent,
    X11,
    Listen(&'a Listen),
}

/// What was asked for on one target connection.
#[derive(Default)]
pub(super) struct Asked {
    notes: Mutex<Notes>,
    /// Cancelled when the connection is over.
    pub(super) over: CancellationToken,
}

#[derive(Default)]
struct Notes {
    agent: bool,
    /// Any number of X11 channels.
    x11: bool,
    /// X11 channels that may still come of requests for a single one.
    x11_single: usize,
    /// Each with what is cancelled when it is taken back.
    listens: Vec<(Listen, CancellationToken)>,
    unasked: usize,
    kinds: HashSet<&'static str>,
}

/// What follows from a channel that nobody asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unasked {
    /// It is the first of its kind on this connection: it is written down.
    pub(super) first: bool,
    /// It is the last: the connection is cut.
    pub(super) last: bool,
}

impl Asked {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn agent(&self) {
        self.notes().agent = true;
    }

    /// For one X11 channel if `single`, or for any number.
    pub(super) fn x11(&self, single: bool) {
        let mut notes = self.notes();
        match single {
            true => notes.x11_single += 1,
            false => notes.x11 = true,
        }
    }

    /// Gives what is cancelled when it is taken back.
    pub(super) fn listen(&self, listen: Listen) -> CancellationToken {
        let taken_back = CancellationToken::new();
        self.notes().listens.push((listen, taken_back.clone()));
        taken_back
    }

    /// Takes note of the port that the target is bound to; gives what it listens at.
    pub(super) fn bound(&self, listen: Listen, bound: u32) -> Listen {
        let Listen::Port(address, 0) = &listen else { return listen };
        let chosen = Listen::Port(address.clone(), bound);
        let mut notes = self.notes();
        if let Some((asked, _)) = notes.listens.iter_mut().find(|(asked, _)| *asked == listen) {
            *asked = chosen.clone();
        }
        chosen
    }

    /// Takes that back, once; false if it was not asked for.
    pub(super) fn unlisten(&self, listen: &Listen) -> bool {
        let listens = &mut self.notes().listens;
        let Some(at) = listens.iter().position(|(asked, _)| asked == listen) else { return false };
        listens.swap_remove(at).1.cancel();
        true
    }

    /// Whether a channel was asked for. A single X11 channel is used up by it.
    pub(super) fn takes(&self, from: Opening<'_>) -> bool {
        let mut notes = self.notes();
        match from {
            Opening::Agent => notes.agent,
            Opening::X11 if notes.x11 => true,
            Opening::X11 => {
                let left = notes.x11_single.checked_sub(1);
                notes.x11_single = left.unwrap_or(0);
                left.is_some()
            }
            Opening::Listen(from) => notes.listens.iter().any(|(asked, _)| asked.leads_to(from)),
        }
    }

    /// Counts a channel of a `kind` that nobody asked for.
    pub(super) fn count(&self, kind: &'static str) -> Unasked {
        let mut notes = self.notes();
        notes.unasked += 1;
        Unasked { first: notes.kinds.insert(kind), last: notes.unasked == UNASKED }
    }

    /// Whether the target opened so many unasked that it was cut off.
    pub(super) fn is_cut(&self) -> bool {
        self.notes().unasked >= UNASKED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_taken() {
        let asked = Asked::default();
        let port = |port| Listen::Port("localhost".to_owned(), port);
        let socket = Listen::Socket("/run/a.sock".to_owned());
        let at = |listen: &Listen| asked.takes(Opening::Listen(listen));
        assert!(!asked.takes(Opening::Agent) && !asked.takes(Opening::X11) && !at(&port(80)));
        asked.agent();
        assert!(
            asked.takes(Opening::Agent)
                && asked.takes(Opening::Agent)
                && !asked.takes(Opening::X11)
        );
        asked.x11(true);
        assert!(asked.takes(Opening::X11) && !asked.takes(Opening::X11), "only one");
        asked.x11(false);
        assert!(asked.takes(Opening::X11) && asked.takes(Opening::X11));
        let taken_back = asked.listen(port(80));
        asked.listen(socket.clone());
        let elsewhere = Listen::Port("10.0.0.1".to_owned(), 80);
        assert!(at(&port(80)) && at(&elsewhere) && !at(&port(81)) && at(&socket));
        assert!(!at(&Listen::Socket("/run/b.sock".to_owned())));
        assert!(!taken_back.is_cancelled());
        assert!(asked.unlisten(&port(80)) && !asked.unlisten(&port(80)) && !at(&port(80)));
        assert!(taken_back.is_cancelled());
        asked.listen(port(0));
        assert!(at(&port(81)), "any port, as long as it is not known");
        assert_eq!(asked.bound(port(0), 82), port(82));
        assert!(!at(&port(81)) && at(&port(82)) && asked.unlisten(&port(82)));
    }

    #[test]
    fn each_kind_is_told_once_and_the_third_channel_is_the_last() {
        let asked = Asked::default();
        assert_eq!(asked.count("x11"), Unasked { first: true, last: false });
        assert_eq!(asked.count("x11"), Unasked { first: false, last: false });
        assert!(!asked.is_cut());
        assert_eq!(asked.count("agent"), Unasked { first: true, last: true });
        assert!(asked.is_cut());
        assert_eq!(asked.count("agent"), Unasked { first: false, last: false });
    }
}
