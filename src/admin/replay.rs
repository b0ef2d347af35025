//! Recordings: play, watch, search, export.
//!
//! Always holds: who reads a recording is written down first; nothing of it reaches a terminal
//! unless the sanitizer let it through or `--raw` was given; reading happens off the asynchronous
//! threads.

use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::Stream;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::output::{Row, list};
use super::{Out, Verbs};
use crate::audit::Event;
use crate::cli::{ExportSession, PlaySession, SearchSessions};
use crate::domain::{Id, IdPrefix, UnixTime};
use crate::recording::player::{self, Key, PlayOptions};
use crate::recording::search::{Case, search};
use crate::recording::tail::Tail;
use crate::recording::terminal::Sanitizer;
use crate::recording::{asciicast, text};
use crate::store::RecordingRow;

/// How often a live recording is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How much is read of a live recording at once.
const WATCHED: usize = 64 * 1024;
/// Pieces that wait between the thread that reads and the one that sends.
const PIECES: usize = 8;

/// Moves below whatever a recording left on the screen.
const BELOW: &[u8] = b"\x1b[999;1H\r\n";

/// What a viewer types.
pub type Keys = Pin<Box<dyn Stream<Item = Key> + Send>>;

/// A viewer who types nothing.
pub fn no_keys() -> Keys {
    Box::pin(futures_util::stream::pending())
}

/// Plays a recording.
///
/// # Errors
/// When the id means no recording or more than one, or it cannot be read.
pub async fn play(
    verbs: &Verbs<'_>,
    asked: PlaySession,
    keys: Keys,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let row = one(verbs, &asked.id).await?;
    let path = file(verbs, &row)?;
    note(verbs, &row, "play").await?;
    let options = PlayOptions {
        speed: asked.speed,
        idle_cap: asked.idle.map(Duration::from_secs_f64),
        from: Duration::from_secs_f64(asked.from),
        raw: asked.raw,
        terminal: out.is_terminal(),
    };
    let reader = asciicast::Reader::open(&path).with_context(|| broken(&row))?;
    let ended = player::play(reader, options, keys, out.sink()).await?;
    if out.is_terminal() {
        out.write_all(BELOW)?;
    }
    if let player::Ended::Finished { truncated: true } = ended {
        writeln!(out, "\r\nthe recording is cut off here\r")?;
    }
    Ok(out.send().await?)
}

/// Shows a recording while it is made.
///
/// # Errors
/// When the id means no live recording or more than one.
pub async fn watch(
    verbs: &Verbs<'_>,
    id: &IdPrefix,
    mut keys: Keys,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    use futures_util::StreamExt as _;
    let row = one(verbs, id).await?;
    if row.ended_at.is_some() {
        bail!("recording {} has ended: see 'session play {}'", row.id, row.id);
    }
    let path = file(verbs, &row)?;
    note(verbs, &row, "watch").await?;
    let mut sanitizer = Sanitizer::new();
    let opening = tokio::task::spawn_blocking(move || {
        let mut tail = Tail::open(&path)?;
        let screen = tail.present()?;
        anyhow::Ok((tail, screen))
    });
    let (mut tail, screen) = opening.await?.with_context(|| broken(&row))?;
    let watching = async {
        let mut text = format!("\x1b[H\x1b[2J{screen}");
        loop {
            let mut shown = Vec::new();
            sanitizer.push(text.as_bytes(), &mut shown);
            out.sink().write_all(&shown).await?;
            out.sink().flush().await?;
            // Asked before the file, so that nothing written before the end is missed.
            let over = has_ended(verbs, &row).await?;
            let reading = tokio::task::spawn_blocking(move || {
                let output = tail.output(WATCHED)?;
                anyhow::Ok((tail, output))
            });
            (tail, text) = reading.await??;
            if text.is_empty() && over {
                return anyhow::Ok(());
            }
            if text.is_empty() {
                tokio::time::sleep(POLL).await;
            }
        }
    };
    let quit = async {
        while let Some(key) = keys.next().await {
            if key == Key::Quit {
                return;
            }
        }
        std::future::pending().await
    };
    let end = tokio::select! {
        ended = watching => ended.map(|()| "it has ended"),
        () = quit => Ok("you left"),
    };
    if out.is_terminal() {
        out.sink().write_all(&sanitizer.restore()).await?;
        out.write_all(BELOW)?;
    }
    writeln!(out, "\r\nrecording {}: {}\r", row.id, end?)?;
    Ok(out.send().await?)
}

async fn has_ended(verbs: &Verbs<'_>, row: &RecordingRow) -> anyhow::Result<bool> {
    let rows = verbs.store.recordings_by_prefix(&row.id.parse()?).await?;
    Ok(rows.first().is_none_or(|row| row.ended_at.is_some()))
}

/// Finds a text in what was on the screens of recorded sessions.
///
/// # Errors
/// When the store fails. Recordings that cannot be read are named and passed over.
pub async fn search_all(
    verbs: &Verbs<'_>,
    asked: SearchSessions,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let mut rows = verbs.store.recordings().await?;
    let case = if asked.ignore_case { Case::Insensitive } else { Case::Sensitive };
    if let Some(target) = &asked.target {
        rows.retain(|row| row.target == target.as_str());
    }
    let mut found: Vec<Found> = Vec::new();
    for row in rows {
        if found.len() >= asked.limit as usize {
            break;
        }
        let path = verbs.recordings.join(&row.path);
        let _turn = super::turn().await;
        let most = asked.limit as usize - found.len();
        let needle = asked.text.clone();
        let hits = tokio::task::spawn_blocking(move || {
            let reader = asciicast::Reader::open(&path)?;
            search(reader, &needle, case)?.take(most).collect::<Result<Vec<_>, _>>()
        });
        match hits.await? {
            Ok(hits) => {
                if !hits.is_empty() {
                    note(verbs, &row, "search").await?;
                }
                found.extend(hits.into_iter().map(|hit| Found::new(&row, hit.time, hit.line)));
            }
            Err(error) => {
                tracing::warn!(recording = row.id, %error, "failed to search a recording")
            }
        }
    }
    list(out, verbs.format, &found)?;
    Ok(out.send().await?)
}

/// Writes a recording as asciicast, or as text.
///
/// # Errors
/// When the id means no recording or more than one, or it cannot be read.
pub async fn export(
    verbs: &Verbs<'_>,
    asked: ExportSession,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let row = one(verbs, &asked.id).await?;
    let path = file(verbs, &row)?;
    note(verbs, &row, "export").await?;
    let (pieces, mut ready) = mpsc::channel(PIECES);
    let as_text = asked.text;
    let reading = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let sink = std::io::BufWriter::with_capacity(64 * 1024, Pieces(pieces));
        if as_text {
            text::to_text(asciicast::Reader::open(&path)?, sink)?;
            return Ok(());
        }
        let (mut source, mut sink) = (asciicast::plain(&path)?, sink);
        std::io::copy(&mut source, &mut sink)?;
        Ok(sink.flush()?)
    });
    while let Some(piece) = ready.recv().await {
        out.write_all(&piece)?;
        out.send().await?;
    }
    reading.await?.with_context(|| broken(&row))
}

/// Sends what is written on in pieces; waits for who takes them.
struct Pieces(mpsc::Sender<Vec<u8>>);

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(bytes.to_vec());
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn broken(row: &RecordingRow) -> String {
    format!("failed to read recording {}", row.id)
}

/// The one recording that `id` means: its own id, or that of a session with a single one.
async fn one(verbs: &Verbs<'_>, id: &IdPrefix) -> anyhow::Result<RecordingRow> {
    let mut rows = verbs.store.recordings_by_prefix(id).await?;
    if rows.is_empty() {
        for session in verbs.store.sessions_by_prefix(id).await? {
            rows.extend(verbs.store.recordings_of(&session.id).await?);
        }
    }
    match <[RecordingRow; 1]>::try_from(rows) {
        Ok([row]) => Ok(row),
        Err(none) if none.is_empty() => {
            bail!("nothing was recorded under {id}: see 'session list' and 'session show'")
        }
        Err(rows) => {
            let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            bail!("{id} means several recordings, name one: {}", ids.join(", "))
        }
    }
}

/// A recording's file, if it is here.
fn file(verbs: &Verbs<'_>, row: &RecordingRow) -> anyhow::Result<PathBuf> {
    if row.node != verbs.store.node() {
        bail!("recording {} is on the node {}: ask there", row.id, row.node);
    }
    if let Some(at) = row.removed_at {
        bail!("recording {} was removed on {}", row.id, UnixTime(at));
    }
    let path = verbs.recordings.join(&row.path);
    // The row is written a moment after the file is compressed, which gives it another name.
    let packed = path.with_extension("cast.zst");
    Ok(if !path.exists() && packed.exists() { packed } else { path })
}

async fn note(verbs: &Verbs<'_>, row: &RecordingRow, how: &str) -> anyhow::Result<()> {
    let recording: Id = row.id.parse()?;
    let event = Event::RecordingRead { recording, how: how.to_owned() };
    Ok(verbs.store.record(verbs.now, verbs.context, event).await?)
}

/// A hit of a search.
#[derive(Serialize)]
struct Found {
    recording: String,
    session: String,
    target: String,
    account: String,
    started_at: i64,
    /// Seconds from the recording's beginning.
    at: f64,
    line: String,
}

impl Found {
    fn new(row: &RecordingRow, at: Duration, line: String) -> Self {
        Self {
            recording: row.id.clone(),
            session: row.session_id.clone(),
            target: row.target.clone(),
            account: row.account.clone(),
            started_at: row.started_at,
            at: at.as_secs_f64(),
            line,
        }
    }
}

impl Row for Found {
    const HEADINGS: &'static [&'static str] = &["RECORDING", "ON", "STARTED", "AT", "LINE"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.recording.clone(),
            format!("{}@{}", self.account, self.target),
            UnixTime(self.started_at).to_string(),
            format!("{:.1} s", self.at),
            self.line.trim().to_owned(),
        ]
    }
}
