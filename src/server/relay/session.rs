//! A session channel (RFC 4254 section 6) of the user's, carried to the target and recorded.
//!
//! Always holds: requests are gathered until one starts something; then use is checked, the
//! recording begun, the target reached, and the requests made there in the same order. The user's
//! side is drained all the time. Whatever ends the channel, its recording's end is written.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Handle};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, client, server,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Relay;
use super::asked::Asked;
use super::bridge::{Piece, Uplink};
use super::carry::Both;
use super::files::Files;
use super::recorder::{Recording, Subject, USUAL, cells};
use super::target::{STEP, TargetConnection};
use super::target_auth::{Questions, Stage};
use crate::console::dialog::{Line, Next};
use crate::console::menu::Menu;
use crate::domain::{Capability, noted, printable};
use crate::server::connection::{ChannelSlot, Connection};
use crate::server::traffic::Counts;
use crate::sftp::{self, scp};
use crate::store::Carrier;

/// Environment variables that are passed on.
const MAX_ENV: usize = 64;
/// The longest of them, name and value.
const MAX_VARIABLE: usize = 8192;
/// Characters of a command that are written down.
const MAX_COMMAND: usize = 4096;
/// The longest answer to a target's question.
const MAX_LINE: usize = 1024;
/// Window changes and signals that may wait.
const MAX_CONTROLS: usize = 64;
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

/// The user's side of a channel.
pub(in crate::server) struct User {
    pub(in crate::server) id: ChannelId,
    pub(in crate::server) handle: Handle,
    pub(in crate::server) out: ChannelWriteHalf<server::Msg>,
}

/// What the requests before the start asked for.
#[derive(Default)]
pub(in crate::server) struct Setup {
    pub(in crate::server) terminal: Option<Terminal>,
    env: Vec<(String, String)>,
    pub(in crate::server) agent: bool,
    pub(in crate::server) x11: Option<(bool, String, String, u32)>,
}

pub(in crate::server) struct Terminal {
    pub(super) kind: String,
    pub(super) size: (u32, u32, u32, u32),
    modes: Vec<(Pty, u32)>,
}

impl Setup {
    /// Whether there is a terminal that the menu can be shown in.
    pub(in crate::server) fn suits_menu(&self) -> bool {
        self.terminal.as_ref().is_some_and(|terminal| Menu::suits(&terminal.kind))
    }

    /// Writes down what was asked for and is not granted, where that could not be told at once: the
    /// target was not chosen then.
    pub(super) fn check(&self, relay: &Relay) {
        for (asked, right, request) in [
            (self.agent, Capability::Agent, "auth-agent-req"),
            (self.x11.is_some(), Capability::X11, "x11-req"),
        ] {
            if asked && !relay.permit.allows(right) {
                relay.refuse_use(request);
            }
        }
    }
}

impl Terminal {
    /// Columns and rows.
    pub(super) fn cells(&self) -> (u16, u16) {
        let (columns, rows, ..) = self.size;
        (u16::try_from(columns).unwrap_or(u16::MAX), u16::try_from(rows).unwrap_or(u16::MAX))
    }
}

/// What the channel is for.
pub(in crate::server) enum Start {
    Shell,
    Exec(Vec<u8>),
    Subsystem(String),
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

/// What may overtake data on its way to the target.
pub(in crate::server) enum Control {
    Resize(u32, u32, u32, u32),
    Signal(russh::Sig),
}

#[derive(Default)]
pub(in crate::server) struct Controls {
    waiting: Mutex<VecDeque<Control>>,
    ready: Notify,
    /// The newest size of the terminal, if it changed.
    size: Mutex<Option<(u32, u32, u32, u32)>>,
}

impl Controls {
    fn push(&self, control: Control) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Control::Resize(columns, rows, width, height) = control {
            let size = Some((columns, rows, width, height));
            *self.size.lock().unwrap_or_else(PoisonError::into_inner) = size;
        }
        if let (Control::Resize(..), Some(Control::Resize(..))) = (&control, waiting.back()) {
            waiting.pop_back();
        }
        if waiting.len() < MAX_CONTROLS {
            waiting.push_back(control);
        }
        drop(waiting);
        self.ready.notify_one();
    }

    /// The newest size of the terminal, if it changed.
    pub(super) fn size(&self) -> Option<(u32, u32, u32, u32)> {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn next(&self) -> Control {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(control) => return control,
                None => self.ready.notified().await,
            }
        }
    }
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

impl User {
    /// A line of the bastion's own, on standard error.
    pub(super) async fn say(&self, text: &str) -> Result<(), russh::Error> {
        let line = format!("sallyport: {}\r\n", printable(text));
        self.out.extended_data_bytes(1, line).await
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

/// Takes requests in until one starts something; `None` if the user leaves before.
pub(in crate::server) async fn gather(
    from_user: &mut ChannelReadHalf,
    setup: &mut Setup,
    uplink: &Uplink,
) -> Option<Start> {
    loop {
        match from_user.wait().await? {
            ChannelMsg::RequestPty {
                term: kind,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes: modes,
                ..
            } => {
                let size = (col_width, row_height, pix_width, pix_height);
                setup.terminal = Some(Terminal { kind, size, modes });
            }
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                if let Some(terminal) = &mut setup.terminal {
                    terminal.size = (col_width, row_height, pix_width, pix_height);
                }
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                let size = variable_name.len() + variable_value.len();
                if setup.env.len() < MAX_ENV && size <= MAX_VARIABLE {
                    setup.env.push((variable_name, variable_value));
                }
            }
            ChannelMsg::AgentForward { .. } => setup.agent = true,
            ChannelMsg::RequestX11 {
                single_connection,
                x11_authentication_protocol: protocol,
                x11_authentication_cookie: cookie,
                x11_screen_number: screen,
                ..
            } => setup.x11 = Some((single_connection, protocol, cookie, screen)),
            ChannelMsg::RequestShell { .. } => return Some(Start::Shell),
            ChannelMsg::Exec { command, .. } => return Some(Start::Exec(command)),
            ChannelMsg::RequestSubsystem { name, .. } => return Some(Start::Subsystem(name)),
            ChannelMsg::Data { data } => uplink.push_early(Piece::Data(data)).then_some(())?,
            ChannelMsg::Eof => uplink.push_early(Piece::Eof).then_some(())?,
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// Takes in what the user sends while the channel is carried.
pub(in crate::server) async fn intake(
    from_user: &mut ChannelReadHalf,
    uplink: &Uplink,
    controls: &Controls,
) -> End {
    while let Some(message) = from_user.wait().await {
        let within = match message {
            ChannelMsg::Data { data } => uplink.push(Piece::Data(data)),
            ChannelMsg::Eof => uplink.push(Piece::Eof),
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                controls.push(Control::Resize(col_width, row_height, pix_width, pix_height));
                true
            }
            ChannelMsg::Signal { signal } => {
                controls.push(Control::Signal(signal));
                true
            }
            ChannelMsg::Close => return End::User,
            _ => true,
        };
        if !within {
            return End::Failed("your client ignored its window".to_owned());
        }
    }
    End::User
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

impl Start {
    /// What it is called in the store: a subsystem that is called `shell` does not look like one.
    pub(super) fn what(&self) -> String {
        match self {
            Self::Shell => "shell".to_owned(),
            Self::Exec(_) => "exec".to_owned(),
            Self::Subsystem(name) if name == "sftp" => "sftp".to_owned(),
            Self::Subsystem(name) => format!("subsystem:{}", noted(name)),
        }
    }

    fn command(&self) -> Option<String> {
        match self {
            Self::Exec(command) => {
                let text = String::from_utf8_lossy(command);
                let mut short: String = text.chars().take(MAX_COMMAND).collect();
                if short.len() < text.len() {
                    short.push_str("...");
                }
                Some(printable(&short))
            }
            Self::Shell | Self::Subsystem(_) => None,
        }
    }
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
        let files = filter.map(|filter| Files::new(filter, Arc::clone(self.uplink.flow())));
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

    /// Asks the user in the terminal of this channel.
    async fn ask(&self, questions: &Questions) -> Result<Vec<zeroize::Zeroizing<String>>, String> {
        let gone = |_| "you left".to_owned();
        let out = &self.user.out;
        if self.setup.terminal.is_none() {
            let name = self.relay.name();
            return Err(format!("{name} asks for something: connect with a terminal (ssh -t)"));
        }
        // Not the bastion: nobody shall give it the password of the bastion.
        let who = format!("{} asks:\r\n", self.relay.name());
        out.data_bytes(who).await.map_err(gone)?;
        if !questions.instruction.is_empty() {
            let text = questions.instruction.replace('\n', "\r\n");
            out.data_bytes(format!("{text}\r\n")).await.map_err(gone)?;
        }
        let mut answers = Vec::new();
        for (prompt, echo) in &questions.prompts {
            out.data_bytes(prompt.replace('\n', "\r\n")).await.map_err(gone)?;
            let typed = timeout(super::target::ANSWER, self.read_line(*echo)).await;
            answers.push(typed.map_err(|_| "nobody answered".to_owned())??);
            out.data_bytes("\r\n").await.map_err(gone)?;
        }
        Ok(answers)
    }

    /// What the user types up to Enter, shown only if `echo`.
    pub(super) async fn read_line(&self, echo: bool) -> Result<zeroize::Zeroizing<String>, String> {
        let left = || "you left".to_owned();
        let mut line = Line::new(MAX_LINE, echo);
        loop {
            let Piece::Data(data) = self.uplink.next().await else { return Err(left()) };
            let (mut shown, mut used, mut next) = (Vec::new(), 0, Next::More);
            for byte in data.iter().copied() {
                used += 1;
                next = line.push(byte, &mut shown);
                if next != Next::More {
                    break;
                }
            }
            self.uplink.done(used);
            self.uplink.give_back(data.slice(used..));
            if !shown.is_empty() {
                self.user.out.data_bytes(shown).await.map_err(|_| left())?;
            }
            match next {
                Next::More => {}
                Next::Whole => return Ok(line.text()),
                Next::GivenUp => return Err(left()),
            }
        }
    }
}
