//! Reading more than was asked for.
//!
//! russh asks its socket for a packet's length, and then for the packet: two ways into the kernel for
//! at most 32 KiB, and the packet is passed on alone. Here a socket is asked for as much as it has, so
//! that packets that came together are decrypted and passed on together.
//!
//! Always holds: bytes come out in the order they came in, all of them; a connection that has nothing
//! to read holds no buffer.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// How much is asked for at a time.
const SIZE: usize = 128 * 1024;
/// How many buffers are kept for whoever reads next.
const SPARE: usize = 16;

static SPARES: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// What was read from a socket and not yet asked for.
#[derive(Default)]
pub(super) struct ReadAhead {
    /// A buffer with bytes in it, from `start` to `end`.
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl ReadAhead {
    /// Fills `buf` with what is there already, or else with what `inner` has.
    pub(super) fn poll_read<S: AsyncRead>(
        &mut self,
        inner: Pin<&mut S>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_none() {
            if buf.remaining() >= SIZE {
                return inner.poll_read(cx, buf);
            }
            ready!(self.poll_fill(inner, cx))?;
        }
        if let Some(bytes) = &self.bytes {
            let there = bytes.get(self.start..self.end).unwrap_or_default();
            let taken = there.len().min(buf.remaining());
            buf.put_slice(there.get(..taken).unwrap_or_default());
            self.start += taken;
            if self.start == self.end
                && let Some(empty) = self.bytes.take()
            {
                give_back(empty);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in what `inner` has; nothing at its end.
    fn poll_fill<S: AsyncRead>(
        &mut self,
        inner: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = take();
        let mut buf = ReadBuf::new(&mut bytes);
        let read = inner.poll_read(cx, &mut buf);
        let filled = buf.filled().len();
        if filled == 0 {
            give_back(bytes);
            return read;
        }
        (self.bytes, self.start, self.end) = (Some(bytes), 0, filled);
        read
    }
}

fn take() -> Box<[u8]> {
    let spare = SPARES.lock().unwrap_or_else(PoisonError::into_inner).pop();
    spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn give_back(bytes: Box<[u8]>) {
    let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
    if spares.len() < SPARE {
        spares.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    struct Reader<S>(S, ReadAhead);

    impl<S: AsyncRead + Unpin> AsyncRead for Reader<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let this = &mut *self;
            this.1.poll_read(Pin::new(&mut this.0), cx, buf)
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_came_in(
            pieces in proptest::collection::vec(1_usize..70_000, 0..12),
            asked in proptest::collection::vec(1_usize..300_000, 1..12),
        ) {
            let sent: Vec<u8> = (0..pieces.iter().sum()).map(|n: usize| (n % 251) as u8).collect();
            let mut script = in_pieces(&sent, &pieces);
            let mut got = Vec::new();
            let mut reader = Reader(&mut script, ReadAhead::default());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                for size in asked.into_iter().cycle() {
                    let mut buf = vec![0; size];
                    match reader.read(&mut buf).await.unwrap() {
                        0 => break,
                        read => got.extend_from_slice(&buf[..read]),
                    }
                }
            });
            prop_assert!(reader.1.bytes.is_none(), "a buffer is held for nothing");
            prop_assert_eq!(got, sent);
        }
    }

    /// A stream that gives `sent` in such pieces, and waits before each.
    fn in_pieces(sent: &[u8], pieces: &[usize]) -> Pieces {
        let mut rest = sent;
        let pieces = pieces.iter().map(|len| {
            let (piece, after) = rest.split_at(*len);
            rest = after;
            piece.to_vec()
        });
        Pieces { left: pieces.collect(), waited: false }
    }

    struct Pieces {
        left: std::collections::VecDeque<Vec<u8>>,
        waited: bool,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.waited = !self.waited;
            if self.waited {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(mut piece) = self.left.pop_front() {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.left.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }
}
