//! A session channel (RFC 4254 section 6) of the user's, carried to the target and recorded.
//!
//! Always holds: requests are gathered until one starts something (`requests`); then use is checked, the
//! recording begun, the target reached, and the requests made there in the same order. The user's
//! side is drained all the time. Whatever ends the channel, its recording's end is written.

use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Handle};
use russh::{Channel, ChannelMsg, ChannelReadHalf, client, server};
use tokio::time::timeout;

use super::Relay;
use super::asked::Asked;
use super::bridge::Uplink;
use super::carry::Both;
use super::files::Files;
use super::recorder::{Recording, Subject, USUAL, cells};
use super::requests::{Controls, Setup, Start, User, gather, intake};
use super::target::{STEP, TargetConnection};
use super::target_auth::Stage;
use crate::domain::{Capability, printable};
use crate::server::connection::{ChannelSlot, Connection};
use crate::server::traffic::Counts;
use crate::sftp::{self, scp};
use crate::store::Carrier;

/// How long a client may take for a channel's end; shorter than the connection's own goodbye.
const LAST_WORD: Duration = Duration::from_millis(1500);
/// The exit status of what could not even begin, or was cut off; as ssh's own.
pub(super) const NOT_BEGUN: u32 = 255;

/// Accepts a session channel and serves it on the connection's task set.
pub(in crate::server) async fn serve(
    relay: &Arc<Relay>,
    channel: Channel<server::Msg>,
    user: Handle,
    slot: ChannelSlot,
    reply: ChannelOpenHandle,
) {
    let id = channel.id();
    // Before the user can ask for anything: what was asked for is kept there.
    let uplink = Uplink::new(relay.flow.open(id));
    reply.accept().await;
    let relay = Arc::clone(relay);
    let tasks = relay.conn.tasks.clone();
    tasks.spawn(async move {
        let is_first = slot.is_first;
        let _slot = slot;
        let (from_user, to_user) = channel.split();
        let user = User { id, handle: user, out: to_user };
        run(&relay, from_user, (&user, is_first), uplink).await;
    });
}

/// How a channel ended.
pub(in crate::server) enum End {
    /// With what the target said, if it said anything.
    Target(Option<String>),
    /// The user closed it.
    User,
    /// It could not begin, or not go on; the user is told.
    Failed(String),
    /// The connection, or the permission, ended.
    Cut,
}

async fn run(
    relay: &Arc<Relay>,
    mut from_user: ChannelReadHalf,
    (user, is_first): (&User, bool),
    uplink: Uplink,
) {
    // Whoever ends the connection waits until it was said here.
    let _screen = relay.conn.screens.token();
    let mut setup = Setup::default();
    let start = tokio::select! {
        start = gather(&mut from_user, &mut setup, &uplink) => start,
        () = relay.cancel.cancelled() => None,
    };
    let Some(start) = start else { return };
    let controls = Controls::default();
    let (setup, start, uplink) = (&setup, &start, &uplink);
    let channel = Carried { relay, setup, start, user, uplink, is_first, goes_on: false };
    let end = tokio::select! {
        end = channel.run(&controls, intake(&mut from_user, uplink, &controls)) => end,
        () = tell_of_stopping(&relay.conn, user, setup) => End::Cut,
    };
    let why = match end {
        End::Failed(why) => Some(why),
        // The inner SSH has told its client, and with it this channel's.
        End::Cut if relay.is_on_outer() => relay.conn.ended_by_us(),
        End::Cut | End::Target(_) | End::User => None,
    };
    let told = async {
        if let Some(why) = &why {
            user.say(why).await?;
            user.out.exit_status(NOT_BEGUN).await?;
            user.out.eof().await?;
        }
        user.out.close().await?;
        // A client that is sent away drops what it has not shown yet: wait until it has.
        while why.is_some() && !matches!(from_user.wait().await, Some(ChannelMsg::Close) | None) {}
        Ok::<(), russh::Error>(())
    };
    // A user who does not read is not waited for.
    if !matches!(timeout(LAST_WORD, told).await, Ok(Ok(()))) {
        tracing::debug!("the user left before the end of a channel");
    }
}

/// Says in a terminal that the bastion is stopping once it is, and does nothing more: it never ends.
pub(in crate::server) async fn tell_of_stopping(conn: &Connection, user: &User, setup: &Setup) {
    let text = conn.stopping().await;
    // On a line of its own, wherever the cursor stands.
    let line = format!("\r\nsallyport: {text}\r\n");
    if setup.terminal.is_some() && user.out.extended_data_bytes(1, line).await.is_err() {
        tracing::debug!("the user left before being told that the bastion is stopping");
    }
    std::future::pending().await
}

/// A channel between gathering and its end.
pub(super) struct Carried<'a> {
    pub(super) relay: &'a Arc<Relay>,
    pub(super) setup: &'a Setup,
    pub(super) start: &'a Start,
    pub(super) user: &'a User,
    pub(super) uplink: &'a Uplink,
    /// Whether it is the first channel of the connection that the user signed in on.
    pub(super) is_first: bool,
    /// Whether the user's channel goes on afterwards, as the menu's does: its end is not told then.
    pub(super) goes_on: bool,
}

impl Carried<'_> {
    /// Carries the channel until it ends, or `left` does, and writes its end down.
    pub(super) async fn run(&self, controls: &Controls, left: impl Future<Output = End>) -> End {
        let relay = self.relay;
        if self.setup.agent && relay.permit.allows(Capability::Agent) {
            relay.agent.store(true, Relaxed);
        }
        let gone = async {
            tokio::select! {
                end = left => end,
                () = relay.cancel.cancelled() => End::Cut,
            }
        };
        tokio::pin!(gone);
        let filter = match self.check() {
            Ok(filter) => filter,
            Err(why) => return End::Failed(why),
        };
        // Before the recording begins: what is typed here is not for the target.
        let proven = tokio::select! {
            proven = self.prove() => proven,
            end = &mut gone => return end,
        };
        if let Err(why) = proven {
            return End::Failed(why);
        }
        let (begun, early) = {
            let begin = self.begin();
            tokio::pin!(begin);
            // Nobody's leaving stops it half way: a file would have no row, or a row no end.
            tokio::select! {
                begun = &mut begin => (begun, None),
                end = &mut gone => (begin.await, Some(end)),
            }
        };
        let recording = match begun {
            Ok(begun) => begun,
            Err(why) => return early.unwrap_or(End::Failed(why)),
        };
        let meter = relay.meter(Some(Carrier::Recording(recording.id().clone())));
        let end = match early {
            Some(end) => end,
            None => self.carry(controls, meter.counts(), &recording, filter, gone).await,
        };
        let outcome = match &end {
            End::Target(None) => "the target closed it".to_owned(),
            End::Target(Some(outcome)) => outcome.clone(),
            End::User => relay.ended().unwrap_or_else(|| "the user closed it".to_owned()),
            End::Failed(why) => why.clone(),
            End::Cut => relay.ended().unwrap_or_else(|| "the user left".to_owned()),
        };
        match recording.end(outcome, meter.counts().both()).await {
            Ok(()) => end,
            Err(why) => End::Failed(why),
        }
    }

    /// Begins its recording.
    async fn begin(&self) -> Result<Recording, String> {
        let what = self.start.what();
        Recording::start(self.relay, &self.subject(&what)).await
    }

    /// Carries the channel until an end, or `gone`, and tells what was still going on with files.
    async fn carry(
        &self,
        controls: &Controls,
        counts: &Counts,
        recording: &Recording,
        filter: Option<sftp::Filter>,
        mut gone: Pin<&mut impl Future<Output = End>>,
    ) -> End {
        let reached = async {
            self.tell().await?;
            let connection = self.connect().await?;
            let target = self.open(&connection).await?;
            Ok((connection, target))
        };
        let reached = tokio::select! {
            reached = reached => reached,
            end = &mut gone => return end,
        };
        let (connection, target) = match reached {
            Ok(reached) => reached,
            Err(why) => return End::Failed(why),
        };
        let (from_target, to_target) = target.split();
        let files = filter.map(|filter| {
            Files::new(filter, Arc::clone(self.uplink.flow()), Arc::clone(&self.relay.conn))
        });
        let scp = self.scp().map(Mutex::new);
        let (files, scp) = (files.as_ref(), scp.as_ref());
        let both = Both { channel: self, recording, files, scp, counts };
        let end = tokio::select! {
            end = both.down(from_target) => end,
            end = both.up(&to_target) => end,
            end = both.tell() => end,
            end = both.control(controls, &to_target) => end,
            end = gone => end,
            why = recording.failed() => End::Failed(why),
        };
        let end = match end {
            End::Failed(_) if connection.asked.is_cut() => {
                let name = &self.relay.target().name;
                End::Failed(format!("{name} was cut off: it opened channels that nobody asked for"))
            }
            end => end,
        };
        match both.finish().await {
            Err(why) if !matches!(end, End::Failed(_)) => End::Failed(why),
            _ => end,
        }
    }

    /// Who looks at the old scp protocol, if the command may speak it.
    fn scp(&self) -> Option<scp::Observer> {
        let Start::Exec(command) = self.start else { return None };
        scp::Transfer::of_command(command).map(scp::Observer::new)
    }

    fn subject<'a>(&'a self, what: &'a str) -> Subject<'a> {
        let terminal = self.setup.terminal.as_ref().map(|terminal| {
            let (columns, rows, ..) = terminal.size;
            (cells(columns, USUAL.0), cells(rows, USUAL.1), terminal.kind.as_str())
        });
        Subject { what, command: self.start.command(), terminal }
    }

    /// Checks what the channel is for; gives the filter that file requests pass.
    fn check(&self) -> Result<Option<sftp::Filter>, String> {
        let relay = self.relay;
        match self.start {
            Start::Shell => relay.check(Capability::Shell, "shell").map(|()| None),
            Start::Exec(_) => {
                let what = format!("exec {}", self.start.command().unwrap_or_default());
                relay.check(Capability::Exec, &what).map(|()| None)
            }
            Start::Subsystem(name) if name == "sftp" => {
                let read = relay.permit.allows(Capability::SftpRead);
                let write = relay.permit.allows(Capability::SftpWrite);
                if !read && !write {
                    relay.check(Capability::SftpRead, "subsystem sftp")?;
                }
                Ok(Some(sftp::Filter::new(sftp::Rights { read, write })))
            }
            // Whatever it is, it does what a command does.
            Start::Subsystem(name) => {
                relay.check(Capability::Exec, &format!("subsystem {name}")).map(|()| None)
            }
        }
    }

    /// Says what could not be said before; and that the session is recorded, where the inner SSH has no
    /// banner that said it: in each terminal; without one on standard error, as a client shows a banner,
    /// and once.
    async fn tell(&self) -> Result<(), String> {
        for text in self.relay.untold() {
            self.user.say(&text).await.map_err(|_| "you left".to_owned())?;
        }
        let notice = &self.relay.conn.settings.record.notice;
        if notice.is_empty() || !self.relay.is_on_outer() {
            return Ok(());
        }
        let (line, out) = (format!("{notice}\r\n"), &self.user.out);
        let told = if self.setup.terminal.is_some() {
            out.data_bytes(line).await
        } else if !self.relay.told.swap(true, Relaxed) {
            out.extended_data_bytes(1, line).await
        } else {
            Ok(())
        };
        told.map_err(|_| "you left".to_owned())
    }

    /// The target connection for this channel, with the user's answers where it asks.
    async fn connect(&self) -> Result<Arc<TargetConnection>, String> {
        let mut stage = self.relay.connection().await?;
        let mut asked = false;
        loop {
            let asking = match stage {
                Stage::In(connection) => {
                    if asked {
                        self.relay.keep(Arc::clone(&connection), true).await;
                    }
                    return Ok(connection);
                }
                Stage::Asking(asking) => asking,
            };
            asked = true;
            let answers = self.ask(asking.questions()).await?;
            stage = asking.answer(self.relay, answers).await?;
        }
    }

    /// Opens the channel on the target and makes the user's requests there.
    async fn open(&self, connection: &TargetConnection) -> Result<Channel<client::Msg>, String> {
        let name = &self.relay.target().name;
        let opened = timeout(STEP, connection.handle.channel_open_session()).await;
        let target = match opened {
            Ok(Ok(target)) => target,
            Ok(Err(error)) => {
                return Err(format!("{name} opened no session: {}", printable(&error.to_string())));
            }
            Err(_) => return Err(format!("{name} opened no session within {} s", STEP.as_secs())),
        };
        let requested = timeout(STEP, self.request(&target, &connection.asked)).await;
        match requested {
            Ok(Ok(())) => Ok(target),
            _ => Err(format!("{name} closed the connection")),
        }
    }

    async fn request(
        &self,
        target: &Channel<client::Msg>,
        asked: &Asked,
    ) -> Result<(), russh::Error> {
        let (setup, permit) = (self.setup, &self.relay.permit);
        if let Some(terminal) = &setup.terminal {
            let (columns, rows, width, height) = terminal.size;
            let kind = terminal.kind.as_str();
            target.request_pty(true, kind, columns, rows, width, height, &terminal.modes).await?;
        }
        for (name, value) in &setup.env {
            target.set_env(false, name.as_str(), value.as_str()).await?;
        }
        if setup.agent && permit.allows(Capability::Agent) {
            asked.agent();
            target.agent_forward(false).await?;
        }
        if let Some((single, protocol, cookie, screen)) = &setup.x11
            && permit.allows(Capability::X11)
        {
            asked.x11(*single);
            target.request_x11(false, *single, protocol.as_str(), cookie.as_str(), *screen).await?;
        }
        match self.start {
            Start::Shell => target.request_shell(true).await,
            Start::Exec(command) => target.exec(true, command.as_slice()).await,
            Start::Subsystem(name) => target.request_subsystem(true, name.as_str()).await,
        }
    }
}
