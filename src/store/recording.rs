//! Recordings: what was seen of each session channel, and where its file is.
//!
//! Always holds: a recording is in the store, with its event, before anything of its channel reaches
//! the target; its end carries the file's digest into the audit chain.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::pool::on;
use super::schema::{recordings, sessions};
use super::session::signed;
use super::{Error, Store};
use crate::audit::{Context, Event};
use crate::domain::{AccountName, Id, IdPrefix, TargetName, UnixTime, UserName};

/// A recording as it is listed.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = recordings)]
#[allow(missing_docs)]
pub struct RecordingRow {
    pub id: String,
    pub session_id: String,
    pub node: String,
    pub target: String,
    pub account: String,
    pub kind: String,
    pub command: Option<String>,
    pub path: String,
    pub started_at: i64,
    pub ended_at: Option<i64>,
    pub outcome: Option<String>,
    pub bytes_up: i64,
    pub bytes_down: i64,
    pub size: Option<i64>,
    pub sha256: Option<String>,
    pub removed_at: Option<i64>,
}

/// A recording that begins.
#[derive(Debug)]
pub struct NewRecording<'a> {
    /// Its id.
    pub id: &'a Id,
    /// The target.
    pub target: &'a TargetName,
    /// The account on it.
    pub account: &'a AccountName,
    /// `shell`, `exec` or a subsystem's name.
    pub kind: &'a str,
    /// The command, printable.
    pub command: Option<&'a str>,
    /// The file, from the recordings' folder.
    pub path: &'a str,
    /// The grants that permit it.
    pub grants: &'a [Id],
}

/// How a recording ended.
#[derive(Debug)]
pub struct RecordingEnd<'a> {
    /// The exit status, or what else ended it.
    pub outcome: &'a str,
    /// Bytes to the target and from it.
    pub bytes: (u64, u64),
    /// The file's path, size and SHA-256, if it could be finished.
    pub file: Option<(&'a str, u64, &'a str)>,
}

impl Store {
    /// Writes a recording down before its channel is opened.
    ///
    /// # Errors
    /// When the store fails: the channel must not be opened then.
    pub async fn start_recording(
        &self,
        new: &NewRecording<'_>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let session = context.session.as_ref().map(|id| id.as_str()).unwrap_or_default();
        let row = (
            recordings::id.eq(new.id.as_str()),
            recordings::session_id.eq(session),
            recordings::node.eq(self.node()),
            recordings::target.eq(new.target.as_str()),
            recordings::account.eq(new.account.as_str()),
            recordings::kind.eq(new.kind),
            recordings::command.eq(new.command),
            recordings::path.eq(new.path),
            recordings::started_at.eq(now.0),
            recordings::bytes_up.eq(0),
            recordings::bytes_down.eq(0),
        );
        let event = Event::RecordingStarted {
            recording: new.id.clone(),
            target: new.target.clone(),
            account: new.account.clone(),
            what: new.kind.to_owned(),
            command: new.command.map(str::to_owned),
            grants: new.grants.to_vec(),
        };
        let mut tx = self.begin_short().await?;
        on!(tx.engine(), conn => {
            diesel::insert_into(recordings::table).values(row).execute(conn).await
        })?;
        tx.append(now, context, event).await?;
        tx.commit().await
    }

    /// Closes a recording.
    ///
    /// # Errors
    /// When the store fails; the recording is then closed as interrupted at the next start.
    pub async fn end_recording(
        &self,
        recording: &Id,
        end: &RecordingEnd<'_>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        use recordings::dsl;
        let (up, down) = end.bytes;
        let mut tx = self.begin_short().await?;
        let ended = on!(tx.engine(), conn => {
            diesel::update(dsl::recordings.find(recording.as_str()))
                .filter(dsl::ended_at.is_null())
                .set((
                    dsl::ended_at.eq(now.0),
                    dsl::outcome.eq(end.outcome),
                    dsl::bytes_up.eq(signed(up)),
                    dsl::bytes_down.eq(signed(down)),
                    dsl::size.eq(end.file.map(|(_, size, _)| signed(size))),
                    dsl::sha256.eq(end.file.map(|(_, _, sha256)| sha256)),
                ))
                .execute(conn)
                .await
        })?;
        if let Some((path, ..)) = end.file {
            on!(tx.engine(), conn => {
                diesel::update(dsl::recordings.find(recording.as_str()))
                    .set(dsl::path.eq(path))
                    .execute(conn)
                    .await
            })?;
        }
        if ended == 1 {
            let event = Event::RecordingEnded {
                recording: recording.clone(),
                up,
                down,
                outcome: end.outcome.to_owned(),
                size: end.file.map(|(_, size, _)| size),
                sha256: end.file.map(|(_, _, sha256)| sha256.to_owned()),
            };
            tx.append(now, context, event).await?;
        }
        tx.commit().await
    }

    /// The recordings that this node left open when it died.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open_recordings(&self) -> Result<Vec<RecordingRow>, Error> {
        let mut tx = self.read().await?;
        let node = self.node().to_owned();
        let rows = on!(tx.engine(), conn => {
            recordings::table
                .filter(recordings::node.eq(node).and(recordings::ended_at.is_null()))
                .select(RecordingRow::as_select())
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The recordings of a session, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recordings_of(&self, session: &str) -> Result<Vec<RecordingRow>, Error> {
        self.recordings_of_all(&[session.to_owned()]).await
    }

    /// The recordings whose id begins with `prefix`: at most two, which is enough to know whether it
    /// means one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recordings_by_prefix(
        &self,
        prefix: &IdPrefix,
    ) -> Result<Vec<RecordingRow>, Error> {
        let (first, last) = prefix.range();
        let mut tx = self.read().await?;
        let rows = on!(tx.engine(), conn => {
            recordings::table
                .filter(recordings::id.between(first, &last))
                .select(RecordingRow::as_select())
                .limit(2)
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The recordings of all these sessions.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recordings_of_all(&self, sessions: &[String]) -> Result<Vec<RecordingRow>, Error> {
        let mut tx = self.read().await?;
        let rows = on!(tx.engine(), conn => {
            recordings::table
                .filter(recordings::session_id.eq_any(sessions))
                .order((recordings::started_at, recordings::id))
                .select(RecordingRow::as_select())
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The targets that `account`, whose name is `user`, was on lately, and as which account: the last
    /// first, as often as there were recordings.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn last_accounts(
        &self,
        user: &UserName,
        account: &Id,
    ) -> Result<Vec<(String, String)>, Error> {
        let mut tx = self.read().await?;
        let name = user.as_str();
        let rows = on!(tx.engine(), conn => {
            recordings::table
                .inner_join(sessions::table)
                .filter(sessions::user_name.eq(name)) // Which there is an index for.
                .filter(sessions::user_id.eq(account.as_str()))
                .order((sessions::started_at.desc(), recordings::started_at.desc()))
                .select((recordings::target, recordings::account))
                .limit(200)
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// The recordings of this node whose files are there, newest first; all that a search, or
    /// retention, has to look at.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recordings(&self) -> Result<Vec<RecordingRow>, Error> {
        let mut tx = self.read().await?;
        let node = self.node().to_owned();
        let rows = on!(tx.engine(), conn => {
            recordings::table
                .filter(recordings::node.eq(node).and(recordings::removed_at.is_null()))
                .order((recordings::started_at.desc(), recordings::id))
                .select(RecordingRow::as_select())
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(rows)
    }

    /// Writes down that a recording's file goes; do this before removing it.
    ///
    /// # Errors
    /// When the store fails: the file must stay then.
    pub async fn remove_recording(
        &self,
        recording: &Id,
        reason: &str,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        on!(tx.engine(), conn => {
            diesel::update(recordings::table.find(recording.as_str()))
                .set(recordings::removed_at.eq(now.0))
                .execute(conn)
                .await
        })?;
        let (recording, reason) = (recording.clone(), reason.to_owned());
        tx.append(now, context, Event::RecordingRemoved { recording, reason }).await?;
        tx.commit().await
    }
}
