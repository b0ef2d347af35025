//! Bytes taken in from the client and not yet written to the target.
//!
//! Always holds: what is in a [`Queue`] is counted in the channel's flow, byte for byte; small pieces
//! are put together, so that a million of one byte do not become a million allocations.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};

use super::flow::ChannelFlow;

/// A piece below this is copied behind the one before it.
const SMALL: usize = 4096;
/// How large put-together pieces become.
const PIECE: usize = 32 * 1024;
/// The most pieces of one write.
const VECTORS: usize = 64;

/// Bytes in order, in pieces of a size that is worth the room which each takes.
#[derive(Debug, Default)]
pub(in crate::server) struct Pieces {
    whole: VecDeque<Bytes>,
    /// Small pieces on their way to becoming one.
    tail: BytesMut,
}

impl Pieces {
    /// Puts `bytes` at the end.
    pub(in crate::server) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= PIECE {
                self.settle();
            }
        } else {
            self.settle();
            self.whole.push_back(bytes);
        }
    }

    /// Puts `bytes` to the front.
    pub(in crate::server) fn push_front(&mut self, bytes: Bytes) {
        self.whole.push_front(bytes);
    }

    /// Takes the first piece.
    pub(in crate::server) fn pop(&mut self) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.settle();
        }
        let first = self.whole.pop_front();
        self.shrink();
        first
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// Gives the memory of a burst back.
    fn shrink(&mut self) {
        if self.whole.is_empty() && self.whole.capacity() > VECTORS {
            self.whole = VecDeque::new();
        }
    }
}

/// A queue of bytes.
pub(super) struct Queue {
    pieces: Pieces,
    flow: Arc<ChannelFlow>,
}

impl Queue {
    pub(super) fn new(flow: Arc<ChannelFlow>) -> Self {
        Self { pieces: Pieces::default(), flow }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.whole.is_empty() && self.pieces.tail.is_empty()
    }

    /// Puts `bytes` at the end.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.flow.take(bytes.len());
        self.pieces.push(bytes);
    }

    /// Writes what `write` takes, once; gives how much that was.
    pub(super) fn write_with(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        self.pieces.settle();
        let mut slices = [IoSlice::new(&[]); VECTORS];
        let mut used = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces.whole) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        let written = write(slices.get(..used).unwrap_or_default())?;
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        self.flow.give(written);
        while let Some(first) = self.pieces.whole.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.pieces.whole.pop_front();
        }
        self.pieces.shrink();
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::flow::{ConnectionFlow, FlowLimits};
    use super::*;
    use proptest::prelude::*;

    fn flow() -> (Arc<Budget>, Arc<ChannelFlow>) {
        let limits =
            FlowLimits { window: 1 << 20, channel: 1 << 20, connection: 1 << 25, total: 1 << 28 };
        let budget = Arc::new(Budget::new(limits));
        let connection = ConnectionFlow::new(Arc::clone(&budget), limits);
        let id =
            <russh::ChannelId as russh::keys::ssh_encoding::Decode>::decode(&mut &[0, 0, 0, 1][..]);
        (budget, connection.open(id.unwrap()))
    }

    #[test]
    fn small_pieces_are_put_together() {
        let (_, flow) = flow();
        let mut queue = Queue::new(Arc::clone(&flow));
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert!(queue.pieces.whole.len() <= 4);
        assert_eq!(flow.held(), 100_000);
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            pieces in proptest::collection::vec(0_usize..9000, 0..30), steps in proptest::collection::vec(1_usize..20_000, 1..40),
        ) {
            let (budget, flow) = flow();
            let mut queue = Queue::new(Arc::clone(&flow));
            let (mut sent, mut got, mut next) = (Vec::new(), Vec::new(), 0_u8);
            let mut steps = steps.into_iter().cycle();
            for len in pieces {
                let piece: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(7); next }).collect();
                sent.extend_from_slice(&piece);
                queue.push(piece.into());
                prop_assert_eq!(flow.held(), sent.len() - got.len());
                let most = steps.next().unwrap();
                queue.write_with(|slices| {
                    let bytes: Vec<u8> = slices.iter().flat_map(|s| s.to_vec()).take(most).collect();
                    got.extend_from_slice(&bytes);
                    Ok(bytes.len())
                }).unwrap();
            }
            while !queue.is_empty() {
                queue.write_with(|slices| {
                    got.extend_from_slice(&slices[0]);
                    Ok(slices[0].len())
                }).unwrap();
            }
            prop_assert_eq!(got, sent);
            prop_assert_eq!((flow.held(), budget.held()), (0, 0));
        }
    }
}
