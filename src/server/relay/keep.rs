//! What happens to recordings apart from their sessions: those that a crash left are closed, and
//! old ones go.
//!
//! Always holds: a recording's removal is in the audit log before its file goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::{Actor, Context};
use crate::domain::{Id, UnixTime};
use crate::recording::retention::{self, Kept, Policy};
use crate::recording::writer::close_interrupted;
use crate::server::Bastion;
use crate::store::{RecordingEnd, RecordingRow};

/// Closes the recordings that this node left open when it died.
pub(in crate::server) async fn close_left_open(bastion: &Bastion) {
    let rows = match bastion.store.open_recordings().await {
        Ok(rows) => rows,
        Err(error) => return tracing::error!(%error, "failed to look for open recordings"),
    };
    for row in rows {
        if let Err(error) = close(bastion, &row).await {
            tracing::error!(%error, recording = row.id, "failed to close an interrupted recording");
        }
    }
    if let Err(error) = sweep(bastion).await {
        tracing::error!(%error, "failed to look for recordings that never began");
    }
}

/// How old a file without a row has to be: a bastion that shares the folder may be about to write
/// the row.
const FORSAKEN: Duration = Duration::from_secs(3600);
/// The longest header that is looked at.
const MAX_HEADER: u64 = 64 * 1024;

/// Removes files that a crash left before their row was written: they hold a header and nothing
/// else, since nothing is recorded before.
async fn sweep(bastion: &Bastion) -> anyhow::Result<()> {
    let folder = bastion.settings().record.folder.clone();
    let found = tokio::task::spawn_blocking(move || headers_alone(&folder)).await??;
    for (id, path) in found {
        if bastion.store.recordings_by_prefix(&id.as_str().parse()?).await?.is_empty() {
            tokio::task::spawn_blocking({
                let path = path.clone();
                move || std::fs::remove_file(path)
            })
            .await??;
            tracing::info!(path = %path.display(), "removed a recording that never began");
        }
    }
    Ok(())
}

/// The files of recordings that hold a header alone and are not new. Blocks.
fn headers_alone(folder: &Path) -> std::io::Result<Vec<(Id, PathBuf)>> {
    let mut found = Vec::new();
    let days = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        days => days?,
    };
    for day in days {
        let day = day?.path();
        if !day.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(day)? {
            let file = file?;
            let (path, facts) = (file.path(), file.metadata()?);
            let id = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".cast"));
            let Some(id) = id.and_then(|id| id.parse().ok()) else { continue };
            let old = facts.modified()?.elapsed().is_ok_and(|age| age > FORSAKEN);
            if old && facts.is_file() && facts.len() <= MAX_HEADER {
                let bytes = std::fs::read(&path)?;
                if bytes.iter().position(|&b| b == b'\n').is_none_or(|end| end + 1 == bytes.len()) {
                    found.push((id, path));
                }
            }
        }
    }
    Ok(found)
}

async fn close(bastion: &Bastion, row: &RecordingRow) -> anyhow::Result<()> {
    let folder = bastion.settings().record.folder.clone();
    let closed = close_interrupted(&bastion.relay.writer, &folder.join(&row.path)).await;
    let file = match &closed {
        Ok(file) => {
            let path = file.path.strip_prefix(&folder).unwrap_or(&file.path);
            Some((path.display().to_string(), file.bytes, file.sha256.as_str()))
        }
        Err(failure) => {
            tracing::error!(%failure, recording = row.id, "an interrupted recording is lost");
            None
        }
    };
    let end = RecordingEnd {
        outcome: "interrupted: the bastion died",
        bytes: (carried(row.bytes_up), carried(row.bytes_down)), // As far as it was written down.
        file: file.as_ref().map(|(path, bytes, sha256)| (path.as_str(), *bytes, *sha256)),
    };
    let context = Context { session: Some(row.session_id.parse()?), ..by_server() };
    let id: Id = row.id.parse()?;
    Ok(bastion.store.end_recording(&id, &end, &context, bastion.clock.now()).await?)
}

fn carried(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

fn by_server() -> Context {
    Context { actor: Some(Actor::Server), ..Context::default() }
}

/// Removes recordings that are older than, or more than, what is kept.
pub(in crate::server) async fn apply_retention(bastion: &Bastion) -> anyhow::Result<()> {
    let record = bastion.settings().record.clone();
    let policy = Policy { max_age: record.keep_for, max_bytes: record.keep_bytes };
    if policy.max_age.is_none() && policy.max_bytes.is_none() {
        return Ok(());
    }
    let rows = bastion.store.recordings().await?;
    let kept = rows.iter().map(|row| kept(row, &record.folder)).collect::<Result<Vec<_>, _>>()?;
    let now = bastion.clock.now();
    let going = retention::plan(kept, policy, now);
    for recording in &going {
        let old = policy
            .max_age
            .is_some_and(|most| recording.ended.is_some_and(|ended| now.since(ended) > most));
        let reason = if old { "older than what is kept" } else { "more than what is kept" };
        bastion.store.remove_recording(&recording.id, reason, &by_server(), now).await?;
    }
    let left = tokio::task::spawn_blocking(move || retention::remove(going)).await??;
    for (recording, error) in left {
        tracing::error!(%error, recording = %recording.id, "failed to remove a recording's file");
    }
    Ok(())
}

fn kept(row: &RecordingRow, folder: &Path) -> Result<Kept, crate::domain::NameError> {
    Ok(Kept {
        id: row.id.parse()?,
        bytes: row.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
        ended: row.ended_at.map(UnixTime),
        path: folder.join(&row.path),
    })
}
