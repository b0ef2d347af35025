//! A session channel (RFC 4254 section 6) of the user's, carried to the target and recorded.
//!
//! Always holds: requests are gathered until one starts something; then use is checked, the
//! recording begun, the target reached, and the requests made there in the same order. The user's
//! side is drained all the time. Whatever ends the channel, its recording's end is written.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::server::{ChannelOpenHandle, Handle};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Pty,
    client, server,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Relay;
use super::bridge::{self, Piece, Uplink};
use super::recorder::{Recording, Subject, USUAL, cells};
use super::stream::Counts;
use super::target::{Stage, TargetConnection};
use crate::audit::{Event, Refusal};
use crate::domain::{Capability, noted, printable};
use crate::server::handler::prohibited;
use crate::sftp::{self, scp};

/// How long a target may take to open a channel, or to answer a request.
const STEP: Duration = Duration::from_secs(15);
/// Environment variables that are passed on.
const MAX_ENV: usize = 64;
/// The longest of them, name and value.
const MAX_VARIABLE: usize = 8192;
/// Characters of a command that are written down.
const MAX_COMMAND: usize = 4096;
/// Window changes and signals that may wait.
const MAX_CONTROLS: usize = 64;
/// The exit status of what could not even begin; as ssh's own.
const NOT_BEGUN: u32 = 255;

/// Accepts a session channel and serves it on the connection's task set.
pub(in crate::server) async fn serve(
    relay: &Arc<Relay>,
    channel: Channel<server::Msg>,
    user: Handle,
    reply: ChannelOpenHandle,
) {
    let Some(slot) = relay.conn.channel_slot() else {
        let reason = Refusal::TooManyChannels;
        relay.conn.record_refusal(Event::RequestRefused { request: "session".into(), reason });
        return reply.reject(prohibited("too many channels on this connection")).await;
    };
    reply.accept().await;
    let relay = Arc::clone(relay);
    let tasks = relay.conn.tasks.clone();
    tasks.spawn(async move {
        let _slot = slot;
        let id = channel.id();
        let (from_user, to_user) = channel.split();
        let user = User { id, handle: user, out: to_user };
        run(&relay, from_user, &user, Uplink::new(relay.flow.open(id))).await;
    });
}

/// The user's side of a channel.
struct User {
    id: ChannelId,
    handle: Handle,
    out: ChannelWriteHalf<server::Msg>,
}

/// What the requests before the start asked for.
#[derive(Default)]
struct Setup {
    terminal: Option<Terminal>,
    env: Vec<(String, String)>,
    agent: bool,
    x11: Option<(bool, String, String, u32)>,
}

struct Terminal {
    kind: String,
    size: (u32, u32, u32, u32),
    modes: Vec<(Pty, u32)>,
}

/// What the channel is for.
enum Start {
    Shell,
    Exec(Vec<u8>),
    Subsystem(String),
}

/// How a channel ended.
enum End {
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
enum Control {
    Resize(u32, u32, u32, u32),
    Signal(russh::Sig),
}

#[derive(Default)]
struct Controls {
    waiting: Mutex<VecDeque<Control>>,
    ready: Notify,
}

impl Controls {
    fn push(&self, control: Control) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Control::Resize(..), Some(Control::Resize(..))) = (&control, waiting.back()) {
            waiting.pop_back();
        }
        if waiting.len() < MAX_CONTROLS {
            waiting.push_back(control);
        }
        drop(waiting);
        self.ready.notify_one();
    }

    async fn next(&self) -> Control {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(control) => return control,
                None => self.ready.notified().await,
            }
        }
    }
}

async fn run(relay: &Arc<Relay>, mut from_user: ChannelReadHalf, user: &User, uplink: Uplink) {
    let mut setup = Setup::default();
    let start = tokio::select! {
        start = gather(&mut from_user, &mut setup, &uplink) => start,
        () = relay.cancel.cancelled() => None,
    };
    let Some(start) = start else { return };
    if setup.agent && relay.permit.allows(Capability::Agent) {
        relay.agent.store(true, Relaxed);
    }
    let (controls, counts, recording) = (Controls::default(), Counts::default(), OnceLock::new());
    let channel = Carried { relay, setup: &setup, start: &start, user, uplink: &uplink };
    let end = tokio::select! {
        end = channel.carry(&controls, &counts, &recording) => end,
        end = intake(&mut from_user, &uplink, &controls) => end,
        () = relay.cancel.cancelled() => End::Cut,
    };
    let outcome = match &end {
        End::Target(None) => "the target closed it".to_owned(),
        End::Target(Some(outcome)) => outcome.clone(),
        End::User => relay.ended().unwrap_or_else(|| "the user closed it".to_owned()),
        End::Failed(why) => why.clone(),
        End::Cut => relay.ended().unwrap_or_else(|| "the user left".to_owned()),
    };
    relay.count(counts.both());
    if let Some(recording) = recording.into_inner() {
        recording.end(outcome, counts.both());
    }
    let told = async {
        if let End::Failed(why) = &end {
            user.say(why).await?;
            user.out.exit_status(NOT_BEGUN).await?;
            user.out.eof().await?;
        }
        user.out.close().await
    };
    // A user who does not read is not waited for.
    if !matches!(timeout(Duration::from_secs(2), told).await, Ok(Ok(()))) {
        tracing::debug!("the user left before the end of a channel");
    }
}

impl User {
    /// A line of the bastion's own, on standard error.
    async fn say(&self, text: &str) -> Result<(), russh::Error> {
        let line = format!("sallyport: {}\r\n", printable(text));
        self.out.extended_data_bytes(1, line).await
    }
}

/// Takes requests in until one starts something; `None` if the user leaves before.
async fn gather(
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
            ChannelMsg::Data { data } if uplink.push(Piece::Data(data.clone())) => {}
            ChannelMsg::Eof if uplink.push(Piece::Eof) => {}
            ChannelMsg::Data { .. } | ChannelMsg::Eof | ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// Takes in what the user sends while the channel is carried.
async fn intake(from_user: &mut ChannelReadHalf, uplink: &Uplink, controls: &Controls) -> End {
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
struct Carried<'a> {
    relay: &'a Arc<Relay>,
    setup: &'a Setup,
    start: &'a Start,
    user: &'a User,
    uplink: &'a Uplink,
}

impl Start {
    fn what(&self) -> &str {
        match self {
            Self::Shell => "shell",
            Self::Exec(_) => "exec",
            Self::Subsystem(name) => name,
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
    async fn carry(
        &self,
        controls: &Controls,
        counts: &Counts,
        recording: &OnceLock<Recording>,
    ) -> End {
        let begun = async {
            let filter = self.check()?;
            let new = Recording::start(self.relay, &self.subject()).await?;
            let recording = recording.get_or_init(|| new);
            self.tell().await?;
            let connection = self.connect().await?;
            let target = self.open(&connection).await?;
            Ok((recording, filter, connection, target))
        };
        let (recording, filter, _connection, target) = match begun.await {
            Ok(begun) => begun,
            Err(why) => return End::Failed(why),
        };
        let (from_target, to_target) = target.split();
        let files = filter.map(tokio::sync::Mutex::new);
        let scp = self.scp().map(Mutex::new);
        let both =
            Both { channel: self, recording, files: files.as_ref(), scp: scp.as_ref(), counts };
        tokio::select! {
            end = both.down(from_target, &to_target) => end,
            end = both.up(&to_target) => end,
            end = both.control(controls, &to_target) => end,
            why = recording.failed() => End::Failed(why),
        }
    }

    /// Who looks at the old scp protocol, if the command may speak it.
    fn scp(&self) -> Option<scp::Observer> {
        let Start::Exec(command) = self.start else { return None };
        scp::Transfer::of_command(command).map(scp::Observer::new)
    }

    fn subject(&self) -> Subject<'_> {
        let terminal = self.setup.terminal.as_ref().map(|terminal| {
            let (columns, rows, ..) = terminal.size;
            (cells(columns, USUAL.0), cells(rows, USUAL.1), terminal.kind.as_str())
        });
        Subject { what: self.start.what(), command: self.start.command(), terminal }
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

    /// Says that the session is recorded, where the inner SSH has no banner that said it.
    async fn tell(&self) -> Result<(), String> {
        let notice = &self.relay.conn.settings.record.notice;
        let on_outer = Arc::ptr_eq(&self.relay.flow, &self.relay.conn.flow);
        if notice.is_empty() || !on_outer || self.setup.terminal.is_none() {
            return Ok(());
        }
        let line = format!("{notice}\r\n");
        self.user.out.data_bytes(line).await.map_err(|_| "you left".to_owned())
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
        let requested = timeout(STEP, self.request(&target)).await;
        match requested {
            Ok(Ok(())) => Ok(target),
            _ => Err(format!("{name} closed the connection")),
        }
    }

    async fn request(&self, target: &Channel<client::Msg>) -> Result<(), russh::Error> {
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
            target.agent_forward(false).await?;
        }
        if let Some((single, protocol, cookie, screen)) = &setup.x11
            && permit.allows(Capability::X11)
        {
            target.request_x11(false, *single, protocol.as_str(), cookie.as_str(), *screen).await?;
        }
        match self.start {
            Start::Shell => target.request_shell(true).await,
            Start::Exec(command) => target.exec(true, command.as_slice()).await,
            Start::Subsystem(name) => target.request_subsystem(true, name.as_str()).await,
        }
    }

    /// Asks the user in the terminal of this channel.
    async fn ask(
        &self,
        questions: &super::target::Questions,
    ) -> Result<Vec<zeroize::Zeroizing<String>>, String> {
        let gone = |_| "you left".to_owned();
        let out = &self.user.out;
        if self.setup.terminal.is_none() {
            let name = self.relay.name();
            return Err(format!("{name} asks for something: connect with a terminal (ssh -t)"));
        }
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
    async fn read_line(&self, echo: bool) -> Result<zeroize::Zeroizing<String>, String> {
        let mut line = zeroize::Zeroizing::new(Vec::new());
        loop {
            let Piece::Data(data) = self.uplink.next().await else { return Err("you left".into()) };
            self.uplink.done(data.len());
            for byte in data.iter() {
                match byte {
                    b'\r' | b'\n' => {
                        let text = String::from_utf8_lossy(&line).into_owned();
                        return Ok(zeroize::Zeroizing::new(text));
                    }
                    3 | 4 => return Err("you left".into()),
                    8 | 127 => drop(line.pop()),
                    _ if line.len() < 1024 => line.push(*byte),
                    _ => {}
                }
                if echo && (32..127).contains(byte) {
                    let shown = Bytes::copy_from_slice(&[*byte]);
                    self.user.out.data_bytes(shown).await.map_err(|_| "you left".to_owned())?;
                }
            }
        }
    }
}

/// Both directions of a channel whose target is reached.
struct Both<'a> {
    channel: &'a Carried<'a>,
    recording: &'a Recording,
    /// For the sftp subsystem. Held while what it lets through is sent, which keeps its order.
    files: Option<&'a tokio::sync::Mutex<sftp::Filter>>,
    /// For a command that may be the old scp: it only looks.
    scp: Option<&'a Mutex<scp::Observer>>,
    counts: &'a Counts,
}

impl Both<'_> {
    /// From the user to the target.
    async fn up(&self, to_target: &ChannelWriteHalf<client::Msg>) -> End {
        let uplink = self.channel.uplink;
        loop {
            let data = match uplink.next().await {
                Piece::Data(data) => data,
                Piece::Eof => match to_target.eof().await {
                    Ok(()) => continue,
                    Err(_) => return std::future::pending().await, // `down` knows why.
                },
                Piece::Close => return End::User,
            };
            let len = data.len();
            if let Err(why) = self.recording.input(&data).await {
                return End::Failed(why);
            }
            if let Err(why) = self.look(|scp, seen| scp.from_client(&data, seen)).await {
                return End::Failed(why);
            }
            let sent = match self.files {
                None => to_target.data_bytes(data).await.map_err(|_| None),
                Some(files) => {
                    self.filter(files, to_target, |f, out| f.from_client(data, out)).await
                }
            };
            uplink.done(len);
            self.counts.up.fetch_add(len as u64, Relaxed);
            match sent {
                Ok(()) => {}
                Err(Some(why)) => return End::Failed(why),
                Err(None) => return std::future::pending().await, // `down` knows why.
            }
        }
    }

    /// Window changes and signals, which do not wait behind data.
    async fn control(&self, controls: &Controls, to_target: &ChannelWriteHalf<client::Msg>) -> End {
        loop {
            let sent = match controls.next().await {
                Control::Resize(columns, rows, width, height) => {
                    if let Err(why) = self.recording.resize(columns, rows).await {
                        return End::Failed(why);
                    }
                    to_target.window_change(columns, rows, width, height).await
                }
                Control::Signal(signal) => to_target.signal(signal).await,
            };
            if sent.is_err() {
                return std::future::pending().await; // `down` knows why.
            }
        }
    }

    /// From the target to the user.
    async fn down(
        &self,
        mut from_target: ChannelReadHalf,
        to_target: &ChannelWriteHalf<client::Msg>,
    ) -> End {
        let user = self.channel.user;
        let mut replies = Replies::new(self.channel.setup.terminal.is_some());
        let (mut outcome, mut finished) = (None, false);
        while let Some(message) = from_target.wait().await {
            let sent = match message {
                ChannelMsg::Data { data } => match self.data(data, to_target).await {
                    Ok(()) => Ok(()),
                    Err(Some(why)) => return End::Failed(why),
                    Err(None) => return End::User,
                },
                ChannelMsg::ExtendedData { data, ext } => {
                    self.counts.down.fetch_add(data.len() as u64, Relaxed);
                    if let Err(why) = self.recording.output(data.clone()).await {
                        return End::Failed(why);
                    }
                    user.out.extended_data_bytes(ext, data).await
                }
                ChannelMsg::ExitStatus { exit_status } => {
                    outcome = Some(format!("exit status {exit_status}"));
                    let told = user.out.exit_status(exit_status).await;
                    if finished && told.is_ok() { user.out.eof().await } else { told }
                }
                ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, lang_tag } => {
                    outcome = Some(format!("signal {signal_name:?}"));
                    let (id, handle, error_message) =
                        (user.id, &user.handle, noted(&error_message));
                    handle
                        .exit_signal_request(id, signal_name, core_dumped, error_message, lang_tag)
                        .await
                        .map_err(|()| russh::Error::SendError)
                }
                ChannelMsg::XonXoff { client_can_do } => user
                    .handle
                    .xon_xoff_request(user.id, client_can_do)
                    .await
                    .map_err(|()| russh::Error::SendError),
                // Told after the status: a client whose own input has ended closes the channel at
                // once, and then could be told nothing more.
                ChannelMsg::Eof if outcome.is_none() => {
                    finished = true;
                    Ok(())
                }
                ChannelMsg::Eof => user.out.eof().await,
                ChannelMsg::Success => {
                    replies.next();
                    Ok(())
                }
                ChannelMsg::Failure => match replies.next() {
                    Reply::Terminal => user.say("the target gave no terminal").await,
                    Reply::Start => {
                        let what = self.channel.start.what();
                        return End::Failed(format!("the target refused the {what} request"));
                    }
                    Reply::Other => Ok(()),
                },
                ChannelMsg::Close => return self.finish(outcome).await,
                _ => Ok(()),
            };
            if sent.is_err() {
                return End::User;
            }
        }
        let name = &self.channel.relay.target().name;
        match outcome {
            Some(_) => self.finish(outcome).await,
            None => End::Failed(format!("{name} closed the connection")),
        }
    }

    /// The channel's end as the target sees it; files that were still open are told.
    async fn finish(&self, outcome: Option<String>) -> End {
        if let Some(files) = self.files {
            let mut actions = Vec::new();
            files.lock().await.finish(&mut actions);
            for action in actions {
                if let sftp::Action::Event(event) = action
                    && let Err(why) = self.recording.file(&event).await
                {
                    return End::Failed(why);
                }
            }
        }
        if let Err(why) = self.look(|scp, seen| scp.finish(seen)).await {
            return End::Failed(why);
        }
        End::Target(outcome)
    }

    /// Lets the observer of scp look, and writes down what it saw.
    async fn look(
        &self,
        look: impl FnOnce(&mut scp::Observer, &mut Vec<scp::Seen>),
    ) -> Result<(), String> {
        let Some(scp) = self.scp else { return Ok(()) };
        let mut seen = Vec::new();
        look(&mut scp.lock().unwrap_or_else(PoisonError::into_inner), &mut seen);
        for seen in seen {
            match seen {
                scp::Seen::Event(event) => self.recording.file(&event).await?,
                scp::Seen::NotScp => {}
            }
        }
        Ok(())
    }

    async fn data(
        &self,
        data: Bytes,
        to_target: &ChannelWriteHalf<client::Msg>,
    ) -> Result<(), Option<String>> {
        self.counts.down.fetch_add(data.len() as u64, Relaxed);
        match self.files {
            None => {
                self.look(|scp, seen| scp.from_server(&data, seen)).await.map_err(Some)?;
                self.recording.output(data.clone()).await.map_err(Some)?;
                self.channel.user.out.data_bytes(data).await.map_err(|_| None)
            }
            Some(files) => self.filter(files, to_target, |f, out| f.from_server(data, out)).await,
        }
    }

    /// Passes data through the filter of file requests and sends what comes out, in its order.
    async fn filter(
        &self,
        files: &tokio::sync::Mutex<sftp::Filter>,
        to_target: &ChannelWriteHalf<client::Msg>,
        pass: impl FnOnce(&mut sftp::Filter, &mut Vec<sftp::Action>) -> Result<(), sftp::Error>,
    ) -> Result<(), Option<String>> {
        let mut actions = Vec::new();
        let mut filter = files.lock().await;
        let passed = pass(&mut filter, &mut actions);
        for action in actions {
            match action {
                sftp::Action::ToServer(data) => {
                    to_target.data_bytes(data).await.map_err(|_| None)?;
                }
                sftp::Action::ToClient(data) => {
                    self.channel.user.out.data_bytes(data).await.map_err(|_| None)?;
                }
                sftp::Action::Event(event) => self.recording.file(&event).await.map_err(Some)?,
            }
        }
        passed.map_err(|error| {
            Some(format!("the file transfer is not SFTP as it should be: {error}"))
        })
    }
}

/// Which request the target's next answer is to: they come in the order of the requests.
struct Replies {
    terminal: bool,
    start: bool,
}

enum Reply {
    Terminal,
    Start,
    Other,
}

impl Replies {
    fn new(terminal: bool) -> Self {
        Self { terminal, start: true }
    }

    fn next(&mut self) -> Reply {
        if std::mem::take(&mut self.terminal) {
            Reply::Terminal
        } else if std::mem::take(&mut self.start) {
            Reply::Start
        } else {
            Reply::Other
        }
    }
}

/// Where a connection from the target on leads.
pub(in crate::server) enum Onward {
    /// `-L`, `-D` (RFC 4254 section 7.2).
    Tcp { host: String, port: u32, originator: String, originator_port: u32 },
    /// A socket file (OpenSSH's PROTOCOL section 2.4).
    Socket(String),
}

impl std::fmt::Display for Onward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "direct-tcpip {}:{port}", noted(host)),
            Self::Socket(path) => write!(f, "direct-streamlocal {}", noted(path)),
        }
    }
}

impl Onward {
    /// Where it may lead.
    async fn check(self, relay: &Relay) -> Result<Self, String> {
        match self {
            Self::Tcp { host, port, originator, originator_port } => {
                let (host, port) = relay.check_onward(&host, port).await?;
                Ok(Self::Tcp { host, port, originator, originator_port })
            }
            Self::Socket(_) => relay.check(Capability::Forward, &self.to_string()).map(|()| self),
        }
    }

    async fn open(
        self,
        connection: &TargetConnection,
    ) -> Result<Channel<client::Msg>, russh::Error> {
        let handle = &connection.handle;
        match self {
            Self::Tcp { host, port, originator, originator_port } => {
                handle.channel_open_direct_tcpip(host, port, originator, originator_port).await
            }
            Self::Socket(path) => handle.channel_open_direct_streamlocal(path).await,
        }
    }
}

/// Serves a connection from the target on. Runs on the connection's task set.
pub(in crate::server) async fn serve_onward(
    relay: Arc<Relay>,
    channel: Channel<server::Msg>,
    onward: Onward,
    reply: ChannelOpenHandle,
) {
    let Some(_slot) = relay.conn.channel_slot() else {
        let (request, reason) = (onward.to_string(), Refusal::TooManyChannels);
        relay.conn.record_refusal(Event::RequestRefused { request, reason });
        return reply.reject(prohibited("too many channels on this connection")).await;
    };
    let onward = match onward.check(&relay).await {
        Ok(onward) => onward,
        Err(message) => return reply.reject(prohibited(&message)).await,
    };
    let failed = |reason: String| ChannelOpenFailure::Other { code: 2, reason };
    let connection = match relay.connection().await {
        Ok(Stage::In(connection)) => connection,
        Ok(Stage::Asking(_)) => {
            let reason = format!("{} asks again for each connection", relay.name());
            return reply.reject(failed(reason)).await;
        }
        Err(message) => return reply.reject(failed(message)).await,
    };
    let to = onward.to_string();
    if !relay.opened_onward(&to).await {
        return reply.reject(failed("the bastion cannot write its audit log".to_owned())).await;
    }
    let opened = tokio::select! {
        opened = timeout(STEP, onward.open(&connection)) => opened,
        () = relay.cancel.cancelled() => return,
    };
    match opened {
        Ok(Ok(target)) => {
            reply.accept().await;
            let flow = relay.flow.open(channel.id());
            let (up, down) = bridge::carry(channel, target, flow, &relay.cancel).await;
            relay.count((up, down));
            relay.closed_onward(to, (up, down));
        }
        Ok(Err(russh::Error::ChannelOpenFailure(why))) => reply.reject(shown(why)).await,
        Ok(Err(error)) => reply.reject(failed(printable(&error.to_string()))).await,
        Err(_) => reply.reject(failed(format!("no answer within {} s", STEP.as_secs()))).await,
    }
}

/// A target's refusal, with nothing in it that a terminal would act on.
fn shown(why: ChannelOpenFailure) -> ChannelOpenFailure {
    match why {
        ChannelOpenFailure::Other { code, reason } => {
            ChannelOpenFailure::Other { code, reason: noted(&reason) }
        }
        other => other,
    }
}

/// Asks the target to listen for the user (`-R`); gives the port it is bound to.
pub(in crate::server) async fn listen(relay: &Arc<Relay>, address: &str, port: u32) -> Option<u32> {
    let home = match relay.home().await {
        Some(home) => home,
        None => match relay.connection().await {
            Ok(Stage::In(connection)) => {
                relay.keep(Arc::clone(&connection), false).await;
                connection
            }
            Ok(Stage::Asking(_)) | Err(_) => return None,
        },
    };
    if !relay.opened_onward(&noted(&format!("tcpip-forward {address}:{port}"))).await {
        return None;
    }
    let bound = timeout(STEP, home.handle.tcpip_forward(address, port)).await;
    bound.ok()?.ok()
}

/// Takes that back.
pub(in crate::server) async fn unlisten(relay: &Arc<Relay>, address: &str, port: u32) -> bool {
    let Some(home) = relay.home().await else { return false };
    let done = timeout(STEP, home.handle.cancel_tcpip_forward(address, port)).await;
    matches!(done, Ok(Ok(())))
}
