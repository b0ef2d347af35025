//! A client's channel as a stream of bytes, for the inner SSH of a `ssh -J` connection.
//!
//! Always holds: the channel is drained all the time by a task of its own, so that the outer
//! connection never waits for the inner one; what is not read yet is counted in the channel's flow,
//! which closes the client's window.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Buf as _;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::forward::{ChannelFlow, Pieces};
use crate::server::traffic::Counts;

/// What came from the client and was not read yet.
struct Intake {
    state: Mutex<State>,
    flow: Arc<ChannelFlow>,
}

#[derive(Default)]
struct State {
    pieces: Pieces,
    finished: bool,
    reader: Option<Waker>,
}

impl Intake {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The stream; reading is from the client.
pub(super) struct ChannelStream {
    intake: Arc<Intake>,
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    counts: Arc<Counts>,
}

/// Drains a channel; runs until the client closes it.
pub(super) struct Drain {
    channel: ChannelReadHalf,
    intake: Arc<Intake>,
}

impl ChannelStream {
    /// The stream of `channel`, what must run beside it, and what the channel is closed by: nothing of
    /// it does so when it is dropped.
    pub(super) fn new(
        channel: Channel<Msg>,
        flow: Arc<ChannelFlow>,
        counts: Arc<Counts>,
    ) -> (Self, Drain, ChannelWriteHalf<Msg>) {
        let (read, write) = channel.split();
        let intake = Arc::new(Intake { state: Mutex::default(), flow });
        let drain = Drain { channel: read, intake: Arc::clone(&intake) };
        let writer = Box::pin(write.make_writer());
        (Self { intake, writer, counts }, drain, write)
    }
}

impl Drain {
    /// Takes in what comes; false if the client sent more than it was allowed to.
    pub(super) async fn run(mut self) -> bool {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) if data.is_empty() => {}
                Some(ChannelMsg::Data { data }) => {
                    self.intake.flow.take(data.len());
                    self.intake.change(|state| state.pieces.push(data));
                    if self.intake.flow.overrun() {
                        self.intake.change(|state| state.finished = true);
                        return false;
                    }
                }
                Some(ChannelMsg::Eof) => self.intake.change(|state| state.finished = true),
                Some(ChannelMsg::Close) | None => {
                    self.intake.change(|state| state.finished = true);
                    return true;
                }
                Some(_) => {}
            }
        }
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.intake.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = 0;
        while let Some(mut piece) = state.pieces.pop() {
            let n = piece.len().min(buf.remaining());
            buf.put_slice(piece.get(..n).unwrap_or_default());
            piece.advance(n);
            read += n;
            if !piece.is_empty() {
                state.pieces.push_front(piece);
                break;
            }
        }
        if read == 0 && !state.finished && buf.remaining() > 0 {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.intake.flow.give(read);
        self.counts.up.fetch_add(read as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.writer.as_mut().poll_write(cx, bytes))?;
        self.counts.down.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.as_mut().poll_shutdown(cx)
    }
}
