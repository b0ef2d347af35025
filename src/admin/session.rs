//! Sessions: list, show, kill.

use std::io::Write as _;

use anyhow::bail;
use serde::Serialize;

use super::output::{Row, list, show};
use super::user::ago;
use super::{Out, Verbs};
use crate::cli::SessionCommand;
use crate::domain::{Id, IdPrefix, UnixTime};
use crate::store::{ForwardRow, SessionFilter, SessionRow, Store};

/// Runs `session ...`.
///
/// # Errors
/// When an id means no session or more than one, or the store fails.
pub async fn sessions(
    verbs: &Verbs<'_>,
    command: SessionCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    match command {
        SessionCommand::List { live, user, limit } => {
            let filter = SessionFilter { live, user: user.map(String::from) };
            let rows = verbs.store.sessions(&filter, i64::from(limit)).await?;
            let rows: Vec<_> = rows.into_iter().map(|row| Listed { row, now: verbs.now }).collect();
            list(out, verbs.format, &rows)?;
        }
        SessionCommand::Show { id } => {
            let row = one(verbs.store, &id).await?;
            let forwards = verbs.store.forwards_of(&row.id).await?;
            show(out, verbs.format, &Shown { row, forwards, content: "not seen: tunnel mode" })?;
        }
        SessionCommand::Kill { ids } => {
            for id in ids {
                let row = one(verbs.store, &id).await?;
                let session: Id = row.id.parse()?;
                if !verbs.store.request_kill(&session, verbs.context, verbs.now).await? {
                    bail!("session {} has ended already", row.id);
                }
                writeln!(out, "session {} of {} ends", row.id, row.user)?;
                out.send().await?;
            }
        }
    }
    Ok(())
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
    #[serde(skip)]
    now: UnixTime,
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] =
        &["SESSION", "USER", "FROM", "STARTED", "LASTED", "UP", "DOWN", "ENDED"];
    fn cells(&self) -> Vec<String> {
        let row = &self.row;
        let until = row.ended_at.unwrap_or(self.now.0);
        vec![
            row.id.clone(),
            row.user.clone(),
            row.source.clone(),
            UnixTime(row.started_at).to_string(),
            ago(UnixTime(until), row.started_at).replace(" ago", ""),
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
    forwards: Vec<ForwardRow>,
    content: &'static str,
}

impl Row for Shown {
    const HEADINGS: &'static [&'static str] = &[
        "SESSION", "USER", "FROM", "CLIENT", "NODE", "STARTED", "ENDED", "BYTES", "CONTENT",
        "FORWARDS",
    ];
    fn cells(&self) -> Vec<String> {
        let row = &self.row;
        let forwards: Vec<String> = self.forwards.iter().map(forward).collect();
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
            forwards.join("; "),
        ]
    }
}

fn forward(row: &ForwardRow) -> String {
    let address = row.address.as_deref().unwrap_or("not reached");
    let state = match &row.end_reason {
        Some(reason) => {
            format!("{} up, {} down, {reason}", bytes(row.bytes_up), bytes(row.bytes_down))
        }
        None => "open".to_owned(),
    };
    format!("{} for {} at {address}: {state}", row.target, row.destination)
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
