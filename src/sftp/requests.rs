//! Requests that wait for an answer, in the order in which they were made.
//!
//! Always holds: a refusal is handed out only when everything asked before it is answered, so a
//! client sees answers in the order in which OpenSSH's own server would give them.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::event::{FileEvent, Operation, Outcome, RemotePath};
use super::packet::kind;
use super::rights::Refusal;

/// How many requests may wait for the server.
pub(super) const MAX_WAITING: usize = 2048;
/// How many refusals may wait for their turn.
const MAX_REFUSED: usize = 2048;

/// What has to be known about a request when its answer comes.
#[derive(Debug)]
pub(super) enum Pending {
    Open { path: RemotePath, operation: Operation },
    Close { file: u64 },
    Read { file: u64 },
    Write { file: u64, len: u32 },
    Change { operation: Operation, path: RemotePath, second: Option<RemotePath> },
    Look,
    Refused(Refusal),
}

impl Pending {
    /// How many bytes of paths it holds.
    fn path_bytes(&self) -> usize {
        match self {
            Self::Open { path, .. } => path.as_bytes().len(),
            Self::Change { path, second, .. } => {
                path.as_bytes().len() + second.as_ref().map_or(0, |path| path.as_bytes().len())
            }
            _ => 0,
        }
    }

    /// What is known about it when the channel ends before its answer. Reads, writes and closes
    /// are told by their file.
    fn interrupted(self) -> Option<FileEvent> {
        match self {
            Self::Open { path, operation } => {
                Some(FileEvent::new(operation, path, Outcome::Interrupted))
            }
            Self::Change { operation, path, second } => {
                Some(FileEvent { second, ..FileEvent::new(operation, path, Outcome::Interrupted) })
            }
            _ => None,
        }
    }
}

/// The requests of one channel that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By when they were made, with how large their answers may well be.
    waiting: BTreeMap<u64, (u32, Pending, usize)>,
    /// When the one with this id was made.
    made: BTreeMap<u32, u64>,
    next: u64,
    refused: usize,
    opening: usize,
    path_bytes: usize,
    expected: usize,
}

impl Requests {
    /// How many wait for the server.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() - self.refused
    }

    /// How many of them open something.
    pub(super) fn opening(&self) -> usize {
        self.opening
    }

    /// How many bytes of paths they hold.
    pub(super) fn path_bytes(&self) -> usize {
        self.path_bytes
    }

    /// How many bytes their answers may well have together.
    pub(super) fn expected(&self) -> usize {
        self.expected
    }

    /// Whether refusals wait in such numbers that no client can be waiting for them.
    pub(super) fn is_flooded(&self) -> bool {
        self.refused >= MAX_REFUSED
    }

    /// Whether a request of this id waits.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.made.contains_key(&id)
    }

    /// Remembers a request, whose id is not waiting, and whose answer is about so large.
    pub(super) fn insert(&mut self, id: u32, pending: Pending, expected: usize) {
        self.refused += usize::from(matches!(pending, Pending::Refused(_)));
        self.opening += usize::from(matches!(pending, Pending::Open { .. }));
        self.path_bytes += pending.path_bytes();
        self.expected += expected;
        self.made.insert(id, self.next);
        self.waiting.insert(self.next, (id, pending, expected));
        self.next += 1;
    }

    /// Forgets the request that the server answered. An answer to nothing, or to what the server
    /// was never asked, has none.
    pub(super) fn answered(&mut self, id: u32) -> Option<Pending> {
        let made = *self.made.get(&id)?;
        if matches!(self.waiting.get(&made), Some((_, Pending::Refused(_), _))) {
            return None;
        }
        self.remove(made).map(|(_, pending)| pending)
    }

    /// The answer to the oldest request, if that is a refusal.
    pub(super) fn next_refusal(&mut self) -> Option<Bytes> {
        let (&made, &(id, Pending::Refused(refusal), _)) = self.waiting.first_key_value()? else {
            return None;
        };
        self.remove(made);
        Some(status_packet(id, refusal))
    }

    /// What is known of everything that still waits, once the channel has ended.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = FileEvent> {
        std::mem::take(self)
            .waiting
            .into_values()
            .filter_map(|(_, pending, _)| pending.interrupted())
    }

    fn remove(&mut self, made: u64) -> Option<(u32, Pending)> {
        let (id, pending, expected) = self.waiting.remove(&made)?;
        self.made.remove(&id);
        self.refused -= usize::from(matches!(pending, Pending::Refused(_)));
        self.opening -= usize::from(matches!(pending, Pending::Open { .. }));
        self.path_bytes -= pending.path_bytes();
        self.expected -= expected;
        Some((id, pending))
    }
}

/// SSH_FXP_STATUS, draft-ietf-secsh-filexfer-02 section 7.
fn status_packet(id: u32, refusal: Refusal) -> Bytes {
    let string = |out: &mut BytesMut, text: &str| {
        // Our own sentences: far below 4 GiB.
        out.put_u32(u32::try_from(text.len()).unwrap_or_default());
        out.put_slice(text.as_bytes());
    };
    let mut body = BytesMut::new();
    body.put_u8(kind::STATUS);
    body.put_u32(id);
    body.put_u32(refusal.code);
    string(&mut body, refusal.message);
    string(&mut body, "en");
    let mut packet = BytesMut::with_capacity(body.len() + 4);
    packet.put_u32(u32::try_from(body.len()).unwrap_or_default());
    packet.put_slice(&body);
    packet.freeze()
}
