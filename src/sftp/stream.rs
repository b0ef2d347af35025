//! One direction of the channel, cut into packets: heads are gathered, bodies pass as they come.
//!
//! Always holds: forwarded bytes are slices of the chunks that came in, in order, and neighbours
//! within one chunk stay one slice. Only a head that spans chunks is copied.

use bytes::{Bytes, BytesMut};

use super::filter::Action;
use super::packet::{Error, Step};

/// Where one direction stands.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The beginning of a head whose rest has not come yet.
    held: BytesMut,
    /// How many bytes the head has at least.
    need: usize,
    /// How many bytes of the current packet's body are still to come.
    left: usize,
}

/// A complete head.
pub(super) struct Head {
    pub(super) bytes: Bytes,
    /// Whether it lies in the chunk at hand; otherwise it was gathered from several.
    fresh: bool,
}

impl Stream {
    /// Whether every packet that was begun on the other side has been passed on to its end.
    pub(super) fn between_packets(&self) -> bool {
        self.left == 0
    }

    /// How many bytes wait for the rest of a head.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Gathers the head of the next packet; none if the chunk ends before it does.
    pub(super) fn head(
        &mut self,
        run: &mut Run<'_>,
        measure: impl Fn(&[u8]) -> Result<Step<()>, Error>,
    ) -> Result<Option<Head>, Error> {
        loop {
            if self.held.len() < self.need {
                let missing = (self.need - self.held.len()).min(run.rest().len());
                self.held.extend_from_slice(run.rest().get(..missing).unwrap_or_default());
                run.skip(missing);
                if self.held.len() < self.need {
                    return Ok(None);
                }
            }
            let fresh = self.held.is_empty();
            match measure(if fresh { run.rest() } else { &self.held })? {
                Step::More(bytes) => self.need = bytes,
                Step::Head { len, body, .. } => {
                    self.need = 0;
                    self.left = body;
                    let bytes = if fresh { run.peek(len) } else { self.held.split().freeze() };
                    return Ok(Some(Head { bytes, fresh }));
                }
            }
        }
    }

    /// Takes what the chunk holds of the body, and passes it on or not: how many bytes.
    pub(super) fn body(&mut self, run: &mut Run<'_>, pass: bool) -> usize {
        let len = self.left.min(run.rest().len());
        if pass {
            run.pass(len);
        } else {
            run.skip(len);
        }
        self.left -= len;
        len
    }
}

/// A walk through one chunk that leaves behind what is to be done with it.
pub(super) struct Run<'a> {
    chunk: Bytes,
    /// Where the bytes begin that are to be passed on and were not yet.
    start: usize,
    at: usize,
    out: &'a mut Vec<Action>,
    forward: fn(Bytes) -> Action,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        chunk: Bytes,
        out: &'a mut Vec<Action>,
        forward: fn(Bytes) -> Action,
    ) -> Self {
        Self { chunk, start: 0, at: 0, out, forward }
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.chunk.get(self.at..).unwrap_or_default()
    }

    /// The same, to come back to later.
    pub(super) fn left(&self) -> Bytes {
        self.chunk.slice(self.at..)
    }

    /// Passes on a head.
    pub(super) fn pass_head(&mut self, head: &Head) {
        if head.fresh {
            self.pass(head.bytes.len());
        } else {
            self.emit((self.forward)(head.bytes.clone()));
        }
    }

    /// Passes over a head.
    pub(super) fn skip_head(&mut self, head: &Head) {
        if head.fresh {
            self.skip(head.bytes.len());
        }
    }

    /// Does something else, after what was passed on so far.
    pub(super) fn emit(&mut self, action: Action) {
        self.flush();
        self.out.push(action);
    }

    /// Hands over what was passed on.
    pub(super) fn flush(&mut self) {
        if self.start < self.at {
            self.out.push((self.forward)(self.chunk.slice(self.start..self.at)));
            self.start = self.at;
        }
    }

    fn peek(&self, len: usize) -> Bytes {
        self.chunk.slice(self.at..self.at + len)
    }

    fn pass(&mut self, len: usize) {
        self.at += len;
    }

    fn skip(&mut self, len: usize) {
        self.flush();
        self.at += len;
        self.start = self.at;
    }
}
