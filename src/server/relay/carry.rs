//! Both directions of a session channel whose target is reached, and what looks on.
//!
//! Always holds: this is the one place that a session's bytes pass; they are recorded before they
//! are sent on, and file requests pass the filter, in an order that no answer is lost in.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::time::timeout;

use super::bridge::Piece;
use super::files::Files;
use super::recorder::Recording;
use super::requests::{Control, Controls};
use super::session::{Carried, End};
use crate::domain::noted;
use crate::server::traffic::Counts;
use crate::sftp::{self, scp};

/// How long a user may take for the answers before what ends a file transfer.
const LAST: Duration = Duration::from_secs(1);

/// Both directions of a channel whose target is reached.
pub(super) struct Both<'a> {
    pub(super) channel: &'a Carried<'a>,
    pub(super) recording: &'a Recording,
    /// For the sftp subsystem.
    pub(super) files: Option<&'a Files>,
    /// For a command that may be the old scp: it only looks.
    pub(super) scp: Option<&'a Mutex<scp::Observer>>,
    pub(super) counts: &'a Counts,
}

impl Both<'_> {
    /// From the user to the target.
    pub(super) async fn up(&self, to_target: &ChannelWriteHalf<client::Msg>) -> End {
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
                Some(files) => self.ask(files, data, to_target).await,
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

    /// The answers to file requests, to the user.
    pub(super) async fn tell(&self) -> End {
        let Some(files) = self.files else { return std::future::pending().await };
        loop {
            let answer = files.next().await;
            let len = answer.len();
            if self.channel.user.out.data_bytes(answer).await.is_err() {
                return End::User;
            }
            files.done(len);
        }
    }

    /// Window changes and signals, which do not wait behind data.
    pub(super) async fn control(
        &self,
        controls: &Controls,
        to_target: &ChannelWriteHalf<client::Msg>,
    ) -> End {
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
    pub(super) async fn down(&self, mut from_target: ChannelReadHalf) -> End {
        let user = self.channel.user;
        let mut replies = Replies::new(self.channel.setup.terminal.is_some());
        let (mut outcome, mut finished) = (None, false);
        while let Some(message) = from_target.wait().await {
            if let (Some(files), true) = (self.files, is_of_the_end(&message)) {
                files.told().await;
            }
            let sent = match message {
                ChannelMsg::Data { data } => match self.data(data).await {
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
                    if self.channel.goes_on {
                        continue;
                    }
                    user.out.exit_status(exit_status).await
                }
                ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, lang_tag } => {
                    outcome = Some(noted(&format!("signal {signal_name:?}")));
                    if self.channel.goes_on {
                        continue;
                    }
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
                ChannelMsg::Eof if self.channel.goes_on => Ok(()),
                ChannelMsg::Eof => {
                    finished = true;
                    Ok(())
                }
                ChannelMsg::Success => {
                    replies.next();
                    Ok(())
                }
                ChannelMsg::Failure => match replies.next() {
                    Reply::Terminal => user.say("the target gave no terminal").await,
                    Reply::Start => {
                        let what = self.channel.start.what();
                        let what = what.trim_start_matches("subsystem:");
                        return End::Failed(format!("the target refused the {what} request"));
                    }
                    Reply::Other => Ok(()),
                },
                ChannelMsg::Close => return End::Target(outcome),
                _ => Ok(()),
            };
            // The end of the output is told after the status: a client whose own input has ended
            // closes the channel at once, and then could be told nothing more.
            let now = outcome.is_some() && std::mem::take(&mut finished);
            if sent.is_err() || (now && user.out.eof().await.is_err()) {
                return End::User;
            }
        }
        let name = &self.channel.relay.target().name;
        match outcome {
            Some(_) => End::Target(outcome),
            None => End::Failed(format!("{name} closed the connection")),
        }
    }

    /// Tells what was still going on with files when the channel ended, whoever ended it.
    pub(super) async fn finish(&self) -> Result<(), String> {
        if let Some(files) = self.files {
            self.recording.files(&files.finish()).await?;
        }
        self.look(|scp, seen| scp.finish(seen)).await
    }

    /// Lets the observer of scp look, and writes down what it saw.
    async fn look(
        &self,
        look: impl FnOnce(&mut scp::Observer, &mut Vec<scp::Seen>),
    ) -> Result<(), String> {
        let Some(scp) = self.scp else { return Ok(()) };
        let mut seen = Vec::new();
        look(&mut scp.lock().unwrap_or_else(PoisonError::into_inner), &mut seen);
        let event = |seen| match seen {
            scp::Seen::Event(event) => Some(event),
            scp::Seen::NotScp => None,
        };
        let events: Vec<_> = seen.into_iter().filter_map(event).collect();
        self.recording.files(&events).await
    }

    async fn data(&self, data: Bytes) -> Result<(), Option<String>> {
        self.counts.down.fetch_add(data.len() as u64, Relaxed);
        match self.files {
            None => {
                self.look(|scp, seen| scp.from_server(&data, seen)).await.map_err(Some)?;
                self.recording.output(data.clone()).await.map_err(Some)?;
                self.channel.user.out.data_bytes(data).await.map_err(|_| None)
            }
            Some(files) => {
                // Nothing of it goes back to the target.
                let look = |filter: &mut sftp::Filter, _, out: &mut _| {
                    filter.from_server(data, out).map(|()| Bytes::new())
                };
                self.pass(files, look, None).await?;
                files.sane().await;
                Ok(())
            }
        }
    }

    /// Asks the target for files, as fast as the user takes the answers.
    async fn ask(
        &self,
        files: &Files,
        mut data: Bytes,
        to_target: &ChannelWriteHalf<client::Msg>,
    ) -> Result<(), Option<String>> {
        loop {
            let look = |filter: &mut sftp::Filter, most, out: &mut _| {
                filter.from_client_within(data, most, out)
            };
            data = self.pass(files, look, Some(to_target)).await?;
            if data.is_empty() {
                return Ok(());
            }
            files.room().await;
        }
    }

    /// Passes data through the filter of file requests, and on to the target what it lets through; gives
    /// what is left.
    async fn pass(
        &self,
        files: &Files,
        look: impl FnOnce(
            &mut sftp::Filter,
            usize,
            &mut Vec<sftp::Action>,
        ) -> Result<Bytes, sftp::Error>,
        to_target: Option<&ChannelWriteHalf<client::Msg>>,
    ) -> Result<Bytes, Option<String>> {
        let passed = files.pass(look, |events| self.recording.note_files(events));
        self.recording.mark_files(&passed.events).await.map_err(Some)?;
        if let Some(to_target) = to_target {
            for request in passed.requests {
                to_target.data_bytes(request).await.map_err(|_| None)?;
            }
        }
        if passed.result.is_err() && timeout(LAST, files.told()).await.is_err() {
            tracing::debug!("a user did not take the last answers to file requests");
        }
        passed.result.map_err(Some)
    }
}

/// Whether a target says with it how, or that, its output ended.
fn is_of_the_end(message: &ChannelMsg) -> bool {
    use ChannelMsg::{Close, Eof, ExitSignal, ExitStatus};
    matches!(message, Eof | Close | ExitStatus { .. } | ExitSignal { .. })
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
