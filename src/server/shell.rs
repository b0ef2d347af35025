//! A session channel on the bastion itself (RFC 4254 section 6): reads its requests, runs one
//! command of the console, reports its exit status.
//!
//! Always holds: the channel's messages are taken in all the time, also while a command runs, so
//! that the connection's task never waits for one; the command's output waits for the client.

use std::sync::Arc;

use bytes::Bytes;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::handler::prohibited;
use crate::audit::{Event, Refusal};
use crate::console;
use crate::domain::printable;
use crate::recording::player::Key;

/// Pieces that were typed and may wait for a command that reads them.
const TYPED: usize = 16;

/// Accepts a session channel and serves it on the connection's task set.
pub(super) async fn open(conn: &Arc<Connection>, channel: Channel<Msg>, reply: ChannelOpenHandle) {
    let Some(slot) = conn.channel_slot() else {
        let reason = Refusal::TooManyChannels;
        conn.record_refusal(Event::RequestRefused { request: "session".into(), reason });
        return reply.reject(prohibited("too many channels on this connection")).await;
    };
    reply.accept().await;
    let owner = Arc::clone(conn);
    conn.tasks.spawn(async move {
        let _slot = slot;
        tokio::select! {
            () = serve(&owner, channel) => {}
            () = owner.cancel.cancelled() => {}
        }
    });
}

async fn serve(conn: &Arc<Connection>, channel: Channel<Msg>) {
    let (mut requests, out) = channel.split();
    let mut has_terminal = false;
    while let Some(message) = requests.wait().await {
        let words = match message {
            ChannelMsg::RequestPty { .. } => {
                has_terminal = true;
                continue;
            }
            ChannelMsg::RequestShell { .. } => None,
            ChannelMsg::Exec { command, .. } => Some(command),
            ChannelMsg::Close => return,
            _ => continue,
        };
        let (typed, keys) = mpsc::channel(TYPED);
        let command = run(conn, words, has_terminal, keys, &out);
        tokio::select! {
            () = command => {}
            () = drain(&mut requests, &typed) => {}
        }
        return;
    }
}

/// Takes in what the client sends until it closes the channel: keys for a command that reads them,
/// as far as it keeps up.
async fn drain(requests: &mut ChannelReadHalf, typed: &mpsc::Sender<Bytes>) {
    while let Some(message) = requests.wait().await {
        match message {
            ChannelMsg::Close => return,
            // Nobody reads, or too slowly: they are keys, not data.
            ChannelMsg::Data { data } => drop(typed.try_send(data)),
            _ => {}
        }
    }
}

async fn run(
    conn: &Arc<Connection>,
    words: Option<Vec<u8>>,
    has_terminal: bool,
    keys: mpsc::Receiver<Bytes>,
    out: &ChannelWriteHalf<Msg>,
) {
    let Some(who) = conn.who() else { return };
    let words = words.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let caller = console::Caller {
        who,
        source: conn.source,
        context: conn.context(),
        public_host: conn.settings.name_for(conn.source.ip()).to_owned(),
        port: conn.settings.public_port,
        recordings: conn.settings.record.folder.clone(),
        host_ca: conn.bastion.relay.host_ca_line(),
    };
    let (store, now) = (&conn.bastion.store, conn.bastion.clock.now());
    let mut stdout = TerminalLines::new(out.make_writer(), has_terminal);
    let mut stderr = TerminalLines::new(out.make_writer_ext(Some(1)), has_terminal);
    let keys = Box::pin(futures_util::stream::unfold(keys, async |mut keys| {
        keys.recv().await.map(|typed| (futures_util::stream::iter(Key::parse(&typed)), keys))
    }));
    let keys: console::Keys = Box::pin(futures_util::StreamExt::flatten(keys));
    let words = words.as_deref();
    let status = console::run(&caller, words, store, now, keys, &mut stdout, &mut stderr).await;
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let text = printable(&crate::logging::whole(&error));
            if is_fault(&error) {
                tracing::warn!(error = text, "a console command failed");
            }
            let line = format!("sallyport: {text}\n");
            if let Err(error) = stderr.write_all(line.as_bytes()).await {
                tracing::debug!(%error, "the client left before it was told so");
            }
            1
        }
    };
    let end = async {
        out.exit_status(status).await?;
        out.eof().await?;
        out.close().await
    };
    if end.await.is_err() {
        tracing::debug!("the client left before a command's end");
    }
}

/// Whether the store failed a command; what was not allowed or not there is for its caller only.
fn is_fault(error: &anyhow::Error) -> bool {
    use crate::store::Error;
    let store = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    store.is_some_and(|error| !matches!(error, Error::Conflict(_)))
}

/// A writer that ends lines as a terminal in raw mode needs it: `\n` becomes `\r\n`.
struct TerminalLines<W> {
    inner: W,
    raw: bool,
    /// Bytes made but not yet taken by `inner`.
    pending: Vec<u8>,
}

impl<W: tokio::io::AsyncWrite + Unpin> TerminalLines<W> {
    fn new(inner: W, raw: bool) -> Self {
        Self { inner, raw, pending: Vec::new() }
    }

    fn poll_pending(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        while !self.pending.is_empty() {
            let written = std::pin::Pin::new(&mut self.inner).poll_write(cx, &self.pending);
            match std::task::ready!(written)? {
                0 => return std::task::Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                n => drop(self.pending.drain(..n)),
            }
        }
        std::task::Poll::Ready(Ok(()))
    }
}

impl<W: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for TerminalLines<W> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::task::ready!(self.poll_pending(cx))?;
        for byte in bytes {
            if self.raw && *byte == b'\n' {
                self.pending.push(b'\r');
            }
            self.pending.push(*byte);
        }
        // Taken over whole: what `inner` does not take now goes first next time, or at the flush.
        match self.poll_pending(cx) {
            std::task::Poll::Ready(Err(error)) => std::task::Poll::Ready(Err(error)),
            _ => std::task::Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::ready!(self.poll_pending(cx))?;
        std::pin::Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::ready!(self.poll_pending(cx))?;
        std::pin::Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
