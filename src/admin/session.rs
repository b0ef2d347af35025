//! Sessions: list, show, kill; their recordings are `replay`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use anyhow::bail;
use serde::Serialize;

use super::output::{Row, length, list, show};
use super::replay::{self, Keys};
use super::{Out, Verbs};
use crate::cli::SessionCommand;
use crate::domain::{Id, IdPrefix, UnixTime};
use crate::store::{EventFilter, ForwardRow, RecordingRow, SessionFilter, SessionRow, Store};

/// How long a session's node may take to end it: to look, to say goodbye, to write it down.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(4);
/// The most files of a session that are shown.
const MAX_FILES: i64 = 1000;

/// Runs `session ...`.
///
/// # Errors
/// When an id means no session or more than one, or the store fails.
pub async fn sessions(
    verbs: &Verbs<'_>,
    command: SessionCommand,
    keys: Keys,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    match command {
        SessionCommand::List { live, user, limit } => {
            let filter = SessionFilter { live, user: user.map(String::from), account: None };
            list_sessions(verbs, &filter, limit, out).await?;
        }
        SessionCommand::Show { id } => {
            let shown = Shown::load(verbs, one(verbs.store, &id).await?).await?;
            show(out, verbs.format, &shown)?;
        }
        SessionCommand::Play(asked) => replay::play(verbs, asked, keys, out).await?,
        SessionCommand::Watch { id } => replay::watch(verbs, &id, keys, out).await?,
        SessionCommand::Search(asked) => replay::search_all(verbs, asked, out).await?,
        SessionCommand::Export(asked) => replay::export(verbs, asked, out).await?,
        SessionCommand::Kill { ids } => {
            for id in ids {
                let row = one(verbs.store, &id).await?;
                let session: Id = row.id.parse()?;
                if !verbs.store.request_kill(&session, verbs.context, verbs.now).await? {
                    bail!("session {} has ended already", row.id);
                }
                if has_ended(verbs.store, &id).await? {
                    writeln!(out, "session {} of {} ends", row.id, row.user)?;
                } else {
                    writeln!(
                        out,
                        "session {} of {} is to end, but its node {} does not answer: it is closed \
                         when that serves again, or by another node after a minute",
                        row.id, row.user, row.node
                    )?;
                }
                out.send().await?;
            }
        }
    }
    Ok(())
}

/// Whether a session that was asked to end does so: its node looks twice a second.
async fn has_ended(store: &Store, id: &IdPrefix) -> anyhow::Result<bool> {
    let deadline = tokio::time::Instant::now() + ANSWER;
    loop {
        let row = one(store, id).await?;
        if row.ended_at.is_some() {
            return Ok(true);
        }
        if tokio::time::Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(ANSWER / 40).await;
    }
}

/// Lists sessions, newest first.
///
/// # Errors
/// When the store fails.
pub async fn list_sessions(
    verbs: &Verbs<'_>,
    filter: &SessionFilter,
    limit: u32,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let _turn = super::turn().await;
    let rows = verbs.store.sessions(filter, i64::from(limit)).await?;
    let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    let mut targets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in verbs.store.recordings_of_all(&ids).await? {
        let name = format!("{}@{}", row.account, row.target);
        targets.entry(row.session_id).or_default().insert(name);
    }
    for row in verbs.store.forwards_of_all(&ids).await? {
        let seen = targets.entry(row.session_id).or_default();
        // A recorded target's name with its account says more.
        if !seen.iter().any(|name| name.ends_with(&format!("@{}", row.target))) {
            seen.insert(row.target);
        }
    }
    let listed = rows.into_iter().map(|row| {
        let targets = targets.remove(&row.id).unwrap_or_default().into_iter().collect();
        Listed { row, targets, now: verbs.now }
    });
    Ok(list(out, verbs.format, &listed.collect::<Vec<_>>())?)
}

async fn one(store: &Store, id: &IdPrefix) -> anyhow::Result<SessionRow> {
    match <[SessionRow; 1]>::try_from(store.sessions_by_prefix(id).await?) {
        Ok([row]) => Ok(row),
        Err(none) if none.is_empty() => bail!("there is no session {id}: see 'session list'"),
        Err(_) => bail!("more than one session begins with {id}: type more of it"),
    }
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    row: SessionRow,
    targets: Vec<String>,
    #[serde(skip)]
    now: UnixTime,
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] =
        &["SESSION", "USER", "FROM", "TO", "STARTED", "LASTED", "UP", "DOWN", "ENDED"];
    fn cells(&self) -> Vec<String> {
        let row = &self.row;
        let until = row.ended_at.unwrap_or(self.now.0);
        vec![
            row.id.clone(),
            row.user.clone(),
            row.source.clone(),
            self.targets.join(" "),
            UnixTime(row.started_at).to_string(),
            length(UnixTime(until).since(UnixTime(row.started_at))),
            bytes(row.bytes_up),
            bytes(row.bytes_down),
            row.end_reason.clone().unwrap_or_else(|| "live".to_owned()),
        ]
    }
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    row: SessionRow,
    content: &'static str,
    recordings: Vec<RecordingRow>,
    files: Vec<serde_json::Value>,
    forwards: Vec<ForwardRow>,
}

impl Shown {
    async fn load(verbs: &Verbs<'_>, row: SessionRow) -> anyhow::Result<Self> {
        let forwards = verbs.store.forwards_of(&row.id).await?;
        let recordings = verbs.store.recordings_of(&row.id).await?;
        let filter = EventFilter {
            kind: Some("file-accessed".to_owned()),
            session: Some(row.id.parse()?),
            ..EventFilter::default()
        };
        let events = verbs.store.events(&filter, MAX_FILES).await?;
        let files = events.iter().rev().map(|event| serde_json::from_str(&event.body));
        let files = files.collect::<Result<_, _>>()?;
        let recorded = |forward: &ForwardRow| {
            recordings.iter().any(|recording| recording.target == forward.target)
        };
        let content = match (recordings.is_empty(), forwards.iter().all(recorded)) {
            (false, true) => "recorded",
            (false, false) => "recorded, but what passed in tunnel mode was not seen",
            (true, _) if forwards.is_empty() => "nothing was opened",
            (true, _) => "not seen: nothing was recorded",
        };
        Ok(Self { row, content, recordings, files, forwards })
    }
}

impl Row for Shown {
    const HEADINGS: &'static [&'static str] = &[
        "SESSION",
        "USER",
        "FROM",
        "CLIENT",
        "NODE",
        "STARTED",
        "ENDED",
        "BYTES",
        "CONTENT",
        "RECORDINGS",
        "FILES",
        "FORWARDS",
    ];
    fn cells(&self) -> Vec<String> {
        let row = &self.row;
        let forwards: Vec<String> = self.forwards.iter().map(forward).collect();
        let recordings: Vec<String> = self.recordings.iter().map(recording).collect();
        let files: Vec<String> = self.files.iter().map(file).collect();
        let ended = match (row.ended_at, &row.end_reason) {
            (Some(at), Some(reason)) => format!("{} ({reason})", UnixTime(at)),
            _ => "live".to_owned(),
        };
        vec![
            row.id.clone(),
            row.user.clone(),
            row.source.clone(),
            row.client.clone(),
            row.node.clone(),
            UnixTime(row.started_at).to_string(),
            ended,
            format!("{} up, {} down", bytes(row.bytes_up), bytes(row.bytes_down)),
            self.content.to_owned(),
            recordings.join("\n"),
            files.join("\n"),
            forwards.join("\n"),
        ]
    }
}

fn recording(row: &RecordingRow) -> String {
    let what = row.command.as_ref().map_or_else(|| row.kind.clone(), |command| command.clone());
    let state = match (&row.outcome, row.removed_at) {
        (_, Some(at)) => format!("removed on {}", UnixTime(at)),
        (Some(outcome), None) => outcome.clone(),
        (None, None) => "live".to_owned(),
    };
    format!("{} {}@{}: {what} ({state})", row.id, row.account, row.target)
}

/// A `file-accessed` event in a line.
fn file(event: &serde_json::Value) -> String {
    let text = |key: &str| event.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let count = |key: &str| event.get(key).and_then(serde_json::Value::as_i64).unwrap_or_default();
    let moved = match count("read") + count("written") {
        0 => String::new(),
        moved => format!(", {}", bytes(moved)),
    };
    let to = text("to");
    let to = if to.is_empty() { to } else { format!(" {to}") };
    format!("{} {}{to} ({}{moved})", text("operation"), text("path"), text("outcome"))
}

fn forward(row: &ForwardRow) -> String {
    let state = row.end_reason.as_deref().unwrap_or("open");
    let state = format!("{} up, {} down, {state}", bytes(row.bytes_up), bytes(row.bytes_down));
    let at = row.address.as_ref().map_or_else(String::new, |address| format!(" at {address}"));
    format!("{} for {}{at}: {state}", row.target, row.destination)
}

/// "4.2 MiB"
fn bytes(count: i64) -> String {
    #[allow(clippy::cast_precision_loss)] // One decimal is shown.
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
