//! One session channel's recording: its row and events in the store, its file, its end.
//!
//! Always holds: a [`Recording`] exists only with its file open and its start event written; its
//! end is written once, after what was done to files, with the file's digest if the file could be
//! finished.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::Relay;
use super::journal::Journal;
use crate::audit::{Context, Event, Refusal};
use crate::domain::{Id, noted};
use crate::recording::{Failure, Header, Recorder};
use crate::server::Bastion;
use crate::sftp::FileEvent;
use crate::store::{NewRecording, RecordingEnd};

/// What is recorded: the user's wish, as the channel's requests said it.
pub(super) struct Subject<'a> {
    /// `shell`, `exec` or a subsystem's name.
    pub(super) what: &'a str,
    pub(super) command: Option<String>,
    /// The terminal's columns and rows, and its kind.
    pub(super) terminal: Option<(u16, u16, &'a str)>,
}

/// A recording that goes on.
pub(super) struct Recording {
    id: Id,
    recorder: Recorder,
    journal: Journal,
    bastion: Arc<Bastion>,
    context: Context,
    strict: bool,
    input: bool,
    /// Where events are written that nobody waits for.
    tasks: TaskTracker,
    /// Whether it was written down that it is full.
    full: AtomicBool,
}

/// Why a channel cannot go on: a sentence for the user.
fn unrecordable(failure: &Failure) -> String {
    match failure {
        Failure::Full { max } => {
            format!("this session ends, since its recording takes {max} bytes, as much as one may")
        }
        Failure::AccountFull { max } => format!(
            "this session ends, since the recordings of your sessions take {max} bytes, as much as \
             they may while they go on"
        ),
        _ => {
            tracing::error!(%failure, "a recording failed");
            "this session ends, since it can no longer be recorded: tell your administrator"
                .to_owned()
        }
    }
}

/// What is written down of a recording that took as much as it may: it may be what somebody wanted.
fn fullness(failure: &Failure, recording: &Id) -> Option<Event> {
    let recording = recording.clone();
    match *failure {
        Failure::Full { max } => Some(Event::RecordingFull { recording, max }),
        Failure::AccountFull { max } => Some(Event::AccountRecordingsFull { recording, max }),
        _ => None,
    }
}

/// Refuses to begin one for an account whose recordings take as much as they may.
fn refuse_full(relay: &Relay, subject: &Subject<'_>, max: u64) -> String {
    relay.conn.record_refusal(Event::UseRefused {
        target: relay.target().name.clone(),
        account: relay.account().clone(),
        what: noted(subject.what),
        reason: Refusal::RecordingsFull,
    });
    format!(
        "this session does not begin, since the recordings of your sessions take {max} bytes, as much \
         as they may while they go on: end one of them first"
    )
}

impl Recording {
    /// Begins one; nothing may reach the target before.
    pub(super) async fn start(relay: &Relay, subject: &Subject<'_>) -> Result<Self, String> {
        let (conn, settings) = (&relay.conn, &relay.conn.settings.record);
        let refuse = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "failed to begin a recording");
            "the bastion cannot record this session, so it does not begin: tell your administrator"
                .to_owned()
        };
        let id = Id::random().map_err(|error| refuse(&error))?;
        let now = conn.bastion.clock.now();
        let header = header(relay, subject, i64::try_from(now.seconds()).ok());
        let writer = &conn.bastion.relay.writer;
        let folder = &settings.folder;
        let account = conn.who().ok_or_else(|| "sign in first".to_owned())?.account();
        let created = Recorder::create(writer, folder, (&id, account), &header, settings.limits);
        let recorder = created.await.map_err(|failure| match failure {
            Failure::AccountFull { max } => refuse_full(relay, subject, max),
            failure => refuse(&failure),
        })?;
        let path = relative(recorder.path(), folder);
        let new = NewRecording {
            id: &id,
            target: &relay.target().name,
            account: relay.account(),
            kind: subject.what,
            command: subject.command.as_deref(),
            path: &path,
            grants: relay.permit.grants(),
        };
        let context = conn.context();
        let started = conn.bastion.store.start_recording(&new, &context, now).await;
        if let Err(error) = started {
            // Nothing was recorded into it.
            if let Err(error) = std::fs::remove_file(recorder.path()) {
                tracing::error!(%error, "failed to remove an unused recording");
            }
            return Err(refuse(&error));
        }
        let (bastion, journal) = (Arc::clone(&conn.bastion), Journal::start(conn, id.clone()));
        let (strict, input, tasks) = (settings.strict, settings.input, conn.tasks.clone());
        let full = AtomicBool::new(false);
        Ok(Self { id, recorder, journal, bastion, context, strict, input, tasks, full })
    }

    /// Its id.
    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    /// Records what goes to the user's screen.
    pub(super) async fn output(&self, bytes: Bytes) -> Result<(), String> {
        self.judge(self.recorder.output(bytes).await)
    }

    /// Records what the user types, if the administrator turned that on.
    pub(super) async fn input(&self, bytes: &Bytes) -> Result<(), String> {
        if !self.input {
            return Ok(());
        }
        self.judge(self.recorder.input(bytes.clone()).await)
    }

    /// Records a new size of the terminal.
    pub(super) async fn resize(&self, columns: u32, rows: u32) -> Result<(), String> {
        self.judge(self.recorder.resize(cells(columns, USUAL.0), cells(rows, USUAL.1)).await)
    }

    /// What was done to files: events in the audit log, and marks in the recording.
    pub(super) async fn files(&self, events: &[FileEvent]) -> Result<(), String> {
        self.note_files(events)?;
        self.mark_files(events).await
    }

    /// Notes events for the audit log, without waiting: all of them before anything waits, so that
    /// nobody's leaving makes one go unwritten. What follows is [`Recording::mark_files`].
    pub(super) fn note_files(&self, events: &[FileEvent]) -> Result<(), String> {
        events.iter().try_for_each(|event| self.journal.note(event.clone()))
    }

    /// Marks events in the recording.
    pub(super) async fn mark_files(&self, events: &[FileEvent]) -> Result<(), String> {
        if events.is_empty() {
            return Ok(());
        }
        for event in events {
            self.judge(self.recorder.marker(mark(event)).await)?;
        }
        self.journal.room().await
    }

    /// Waits until the session must end because it cannot be recorded; for ever if it need not.
    pub(super) async fn failed(&self) -> String {
        let unrecorded = async {
            let failure = self.recorder.failed().await;
            self.note(&failure);
            if self.strict { unrecordable(&failure) } else { std::future::pending().await }
        };
        tokio::select! {
            why = unrecorded => why,
            why = self.journal.failed() => why,
        }
    }

    fn judge(&self, result: Result<(), Failure>) -> Result<(), String> {
        let Err(failure) = result else { return Ok(()) };
        self.note(&failure);
        if self.strict { Err(unrecordable(&failure)) } else { Ok(()) }
    }

    /// Writes down, once, that the recording is full, if that is why it failed.
    fn note(&self, failure: &Failure) {
        let Some(event) = fullness(failure, &self.id) else { return };
        if self.full.swap(true, Relaxed) {
            return;
        }
        let (bastion, context) = (Arc::clone(&self.bastion), self.context.clone());
        self.tasks.spawn(async move { write_full(&bastion, &context, event).await });
    }

    /// Ends it, once what was done to files is in the store: the file is finished and the end written
    /// down in the background, which the bastion waits for when it stops.
    pub(super) async fn end(self, outcome: String, bytes: (u64, u64)) -> Result<(), String> {
        let Self { id, recorder, journal, bastion, context, full, .. } = self;
        let written = journal.close().await;
        let outcome = written.clone().err().unwrap_or(outcome);
        bastion.relay.finishing.clone().spawn(async move {
            let finished = recorder.finish().await;
            let folder = &bastion.settings().record.folder;
            let file = match &finished {
                Ok(file) => Some((relative(&file.path, folder), file.bytes, file.sha256.clone())),
                Err(failure) => {
                    tracing::error!(%failure, recording = %id, "failed to finish a recording");
                    None
                }
            };
            let failure = finished.as_ref().ok().and_then(|file| file.failure.as_ref());
            if let Some(event) = failure.and_then(|failure| fullness(failure, &id))
                && !full.swap(true, Relaxed)
            {
                write_full(&bastion, &context, event).await;
            }
            let outcome = match failure {
                Some(failure) => format!("{outcome}; not whole: {failure}"),
                None => outcome,
            };
            let end = RecordingEnd {
                outcome: &outcome,
                bytes,
                file: file.as_ref().map(|(path, size, sha)| (path.as_str(), *size, sha.as_str())),
            };
            let (store, now) = (&bastion.store, bastion.clock.now());
            if let Err(error) = store.end_recording(&id, &end, &context, now).await {
                tracing::error!(%error, recording = %id, "failed to write a recording's end");
            }
        });
        written
    }
}

/// Writes down that a recording is full.
async fn write_full(bastion: &Bastion, context: &Context, event: Event) {
    if let Err(error) = bastion.store.record(bastion.clock.now(), context, event).await {
        tracing::error!(%error, "failed to write an audit event of a recording");
    }
}

/// What is said of a file in a recording.
fn mark(event: &FileEvent) -> String {
    let FileEvent { operation, path, second, outcome, .. } = event;
    match second {
        Some(second) => format!("{operation} {path} {second}: {outcome}"),
        None => format!("{operation} {path}: {outcome}"),
    }
}

/// The columns and rows of a terminal that did not say.
pub(super) const USUAL: (u16, u16) = (80, 24);

/// A terminal's side, as far as it makes sense; 0 says nothing (RFC 4254 section 6.2).
pub(super) fn cells(count: u32, usual: u16) -> u16 {
    if count == 0 { usual } else { u16::try_from(count).unwrap_or(u16::MAX).min(2000) }
}

fn header(relay: &Relay, subject: &Subject<'_>, timestamp: Option<i64>) -> Header {
    let (width, height, term) = subject.terminal.unwrap_or((USUAL.0, USUAL.1, ""));
    let mut env = BTreeMap::new();
    if !term.is_empty() {
        env.insert("TERM".to_owned(), noted(term));
    }
    let user = relay.conn.who().map(|who| who.user().to_string()).unwrap_or_default();
    let title = Some(format!("{user} as {}", relay.name()));
    Header { width, height, timestamp, title, command: subject.command.clone(), env }
}

fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}
