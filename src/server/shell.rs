//! A session channel on the bastion itself (RFC 4254 section 6): takes in what is asked for, then
//! shows the menu, or runs one command of the console and reports its exit status.
//!
//! Always holds: the channel's messages are taken in all the time, also while a command runs, so
//! that the connection's task never waits for one; the command's output waits for the client. An
//! agent and X11 are for targets behind the menu: who has no grant with that right is told no.

use std::sync::Arc;

use russh::Channel;
use russh::server::{ChannelOpenHandle, Handle, Msg};
use tokio::io::AsyncWriteExt as _;

use super::connection::{ChannelSlot, Connection};
use super::relay::{self, Controls, Piece, Setup, Start, Uplink, User};
use crate::auth::machine::Authenticated;
use crate::console;
use crate::domain::{Capability, printable};
use crate::policy::{self, Subject};

/// Accepts a session channel and serves it on the connection's task set.
pub(super) async fn open(
    conn: &Arc<Connection>,
    channel: Channel<Msg>,
    handle: Handle,
    reply: ChannelOpenHandle,
) {
    let slot = match conn.slot_for("session") {
        Ok(slot) => slot,
        Err(refusal) => return reply.reject(refusal).await,
    };
    let owner = Arc::clone(conn);
    conn.tasks.spawn(async move {
        // Before it is accepted: requests come right after that, and are answered at once.
        let rights = session_rights(&owner).await;
        owner.prepare_menu(&rights);
        reply.accept().await;
        serve(&owner, channel, handle, &rights, slot).await;
    });
}

/// What a session may ask for on behalf of targets that the menu leads to; nothing if the store cannot
/// tell.
async fn session_rights(conn: &Connection) -> Vec<Capability> {
    let Some(who) = conn.who() else { return Vec::new() };
    let access = match conn.bastion.store.access_of(who.account()).await {
        Ok(access) => access,
        Err(error) => {
            tracing::error!(%error, "failed to read grants");
            return Vec::new();
        }
    };
    let subject = Subject::of(who, &access.groups, conn.source.ip());
    policy::session_rights(&subject, &access.targets, &access.grants)
}

async fn serve(
    conn: &Arc<Connection>,
    channel: Channel<Msg>,
    handle: Handle,
    rights: &[Capability],
    // Whole, or a closure takes no more of it than it reads, and the place is given back at once.
    slot: ChannelSlot,
) {
    let id = channel.id();
    let (mut from_user, out) = channel.split();
    let user = User { id, handle, out };
    let uplink = Arc::new(Uplink::new(conn.flow.open(id)));
    let mut setup = Setup::default();
    let words = loop {
        let start = tokio::select! {
            start = relay::gather(&mut from_user, &mut setup, &uplink) => start,
            () = conn.cancel.cancelled() => None,
        };
        // What was refused is not served either.
        setup.agent &= rights.contains(&Capability::Agent);
        setup.x11 = setup.x11.take().filter(|_| rights.contains(&Capability::X11));
        match start {
            None => return,
            Some(Start::Shell) if setup.suits_menu() => {
                return relay::menu::serve(conn, from_user, &user, setup, &uplink).await;
            }
            Some(Start::Shell) => break None,
            Some(Start::Exec(words)) => break Some(words),
            Some(Start::Subsystem(_)) => {} // Refused by the handler, and something else may follow.
        }
    };
    let controls = Controls::default();
    tokio::select! {
        () = run(conn, (words, slot.is_first), &setup, &uplink, &user) => {}
        _ = relay::intake(&mut from_user, &uplink, &controls) => {}
        () = relay::tell_of_stopping(conn, &user, &setup) => {}
        () = conn.cancel.cancelled() => {}
    }
}

/// Who acts on a connection, for the console.
pub(super) fn caller<'a>(conn: &'a Connection, who: &'a Authenticated) -> console::Caller<'a> {
    let (guard, source) = (Arc::clone(&conn.bastion.guard), conn.source);
    let service = console::Service {
        clock: &conn.bastion.clock,
        hashing: &conn.bastion.hashing,
        rules: &conn.settings.rules,
        throttle: conn.settings.throttle,
        binding_window: conn.settings.binding_window,
        radius: conn.settings.radius.client.clone(),
        epoch: &conn.epoch,
        code_at: None,
        is_first: false,
        may_try: Arc::new(move || guard.attempt(&source)),
    };
    console::Caller {
        who,
        source: conn.source,
        context: conn.context(),
        public_host: conn.settings.name_for(conn.source.ip()).to_owned(),
        port: conn.settings.public_port,
        radius: conn.settings.radius_mode(),
        recordings: conn.settings.record.folder.clone(),
        names: conn.bastion.front().names_at(conn.local),
        host_ca: conn.bastion.relay.host_ca_line(),
        certificates: conn.settings.certificates.clone(),
        service,
    }
}

/// What is typed while a command runs.
pub(super) fn typed(uplink: Arc<Uplink>) -> console::Typed {
    let typed = futures_util::stream::unfold(uplink, async |uplink| match uplink.next().await {
        Piece::Data(data) => {
            uplink.done(data.len());
            Some((data, uplink))
        }
        Piece::Eof | Piece::Close => None,
    });
    Box::pin(futures_util::StreamExt::fuse(typed))
}

async fn run(
    conn: &Arc<Connection>,
    (words, is_first): (Option<Vec<u8>>, bool),
    setup: &Setup,
    uplink: &Arc<Uplink>,
    user: &User,
) {
    let Some(who) = conn.who() else { return };
    let words = words.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let has_terminal = setup.terminal.is_some();
    let mut caller = caller(conn, who);
    caller.service.code_at = who.code_at().filter(|_| is_first);
    caller.service.is_first = is_first;
    let (store, now) = (&conn.bastion.store, conn.bastion.clock.now());
    let out = &user.out;
    let mut stdout = TerminalLines::new(out.make_writer(), has_terminal);
    let mut stderr = TerminalLines::new(out.make_writer_ext(Some(1)), has_terminal);
    let typed = typed(Arc::clone(uplink));
    let terminal = has_terminal;
    let channel = console::Channel { typed, terminal, stdout: &mut stdout, stderr: &mut stderr };
    let status = console::run(&caller, words.as_deref(), store, now, channel).await;
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
pub(super) fn is_fault(error: &anyhow::Error) -> bool {
    use crate::store::Error;
    let store = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    store.is_some_and(|error| !matches!(error, Error::Conflict(_)))
}

/// A writer that ends lines as a terminal in raw mode needs it: `\n` becomes `\r\n`.
pub(super) struct TerminalLines<W> {
    inner: W,
    raw: bool,
    /// Bytes made but not yet taken by `inner`.
    pending: Vec<u8>,
}

impl<W: tokio::io::AsyncWrite + Unpin> TerminalLines<W> {
    pub(super) fn new(inner: W, raw: bool) -> Self {
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
