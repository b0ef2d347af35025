//! The audit log: list, verify, export.

use std::io::{BufRead, Write as _};

use anyhow::{Context as _, anyhow};

use super::output::{Format, Row, list};
use super::{Out, Verbs, turn};
use crate::audit::Record;
use crate::audit::chain::{Anchor, Checkpoint, GENESIS, Link, Verifier, verify_export};
use crate::cli::ListEvents;
use crate::domain::When;
use crate::keys::AuditPublicKey;
use crate::store::EventFilter;

/// How many events are read at a time.
const PAGE: i64 = 500;
/// After how many events that were checked others get to work.
const BREATH: usize = 32;

/// Runs `audit list`.
///
/// # Errors
/// When the store fails, or holds an event that cannot be read.
pub async fn list_events(
    verbs: &Verbs<'_>,
    asked: ListEvents,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let zone = jiff::tz::TimeZone::system();
    let time = |when: Option<When>| when.map(|when| when.resolve(verbs.now, &zone)).transpose();
    let ListEvents { kind, user, session, since, until, limit } = asked;
    let filter = EventFilter { kind, user, session, since: time(since)?, until: time(until)? };
    let _turn = turn().await;
    let rows = verbs.store.events(&filter, i64::from(limit)).await?;
    let records = rows.iter().map(|row| {
        serde_json::from_str::<Record>(&row.body)
            .with_context(|| format!("event {} cannot be read", row.seq))
    });
    Ok(list(out, verbs.format, &records.collect::<anyhow::Result<Vec<_>>>()?)?)
}

/// Runs `audit verify` on the store.
///
/// # Errors
/// The first place where the log is broken, or that the store fails.
pub async fn verify_store(
    verbs: &Verbs<'_>,
    anchors: Vec<Anchor>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let key = verbs.store.audit_key().public();
    // The head first: what is written meanwhile lies behind it.
    let (head, newest) = verbs.store.audit_end().await?;
    let mut verifier = Verifier::new(&key, anchors);
    let mut last = 0;
    while last < head.seq {
        let _turn = turn().await;
        let page = verbs.store.events_after(last, PAGE.min(head.seq - last)).await?;
        let Some(end) = page.last() else { break };
        last = end.seq;
        for (number, row) in page.into_iter().enumerate() {
            if number % BREATH == 0 {
                tokio::task::yield_now().await; // Each is a signature to check.
            }
            let found = row.is_found_by_what_it_says();
            verifier.push(&Link::from(row).by_its_own_number()).map_err(|b| broken(&b))?;
            if let Some(damage) = verifier.reject().filter(|_| !found) {
                return Err(broken(&damage));
            }
        }
    }
    let end = verifier.finish(Some(&head)).map_err(|b| broken(&b))?;
    if newest > head.seq {
        return Err(broken(&crate::audit::chain::Break::Uncounted(head.seq + 1)));
    }
    whole(verbs, end, out)
}

/// Runs `audit verify FILE`: needs no store.
///
/// # Errors
/// The first place where the export is broken.
pub fn verify_file(
    text: impl BufRead,
    key: Option<&AuditPublicKey>,
    anchors: Vec<Anchor>,
) -> anyhow::Result<(AuditPublicKey, Option<Anchor>)> {
    let lines =
        text.lines().collect::<Result<Vec<String>, _>>().context("failed to read the export")?;
    let key = match key {
        Some(key) => key.clone(),
        None => {
            let last = lines.last().and_then(|line| serde_json::from_str::<Checkpoint>(line).ok());
            let last = last.ok_or_else(|| {
                anyhow!("the export was cut off: its last line, the checkpoint, is missing")
            })?;
            AuditPublicKey::parse(&last.key).map_err(|e| anyhow!(e))?
        }
    };
    let end = verify_export(lines.into_iter(), &key, anchors).map_err(|b| broken(&b))?;
    Ok((key, end))
}

fn broken(broken: &crate::audit::chain::Break) -> anyhow::Error {
    anyhow!("the audit log is not as it was written: {broken}")
}

fn whole(verbs: &Verbs<'_>, end: Option<Anchor>, out: &mut Out<'_>) -> anyhow::Result<()> {
    let end = end.unwrap_or(Anchor { seq: 0, hash: GENESIS.to_owned() });
    match verbs.format {
        Format::Json => super::output::json_line(out, &end)?,
        Format::Table { .. } => {
            writeln!(out, "the audit log is whole: {} events; anchor {end}", end.seq)?
        }
    }
    Ok(())
}

/// Runs `audit export`: every event up to now, a line each, and a signed checkpoint.
///
/// # Errors
/// When the store fails, or nobody takes the output.
pub async fn export(verbs: &Verbs<'_>, out: &mut Out<'_>) -> anyhow::Result<()> {
    let head = verbs.store.audit_head().await?;
    let mut last = 0;
    while last < head.seq {
        let turn = turn().await;
        let page = verbs.store.events_after(last, PAGE.min(head.seq - last)).await?;
        let Some(end) = page.last() else { break };
        last = end.seq;
        drop(turn);
        for row in page {
            writeln!(out, "{}", Link::from(row).to_line())?;
        }
        out.send().await?;
    }
    let checkpoint = verbs.store.checkpoint(head, verbs.now)?;
    writeln!(out, "{}", serde_json::to_string(&checkpoint)?)?;
    Ok(())
}

impl Row for Record {
    const HEADINGS: &'static [&'static str] =
        &["SEQ", "AT", "KIND", "USER", "FROM", "SESSION", "DETAILS"];
    fn cells(&self) -> Vec<String> {
        let context = &self.context;
        let (kind, details) = details(&self.event);
        let actor = context.actor.as_ref().map(|actor| match actor {
            crate::audit::Actor::Server => "by the server".to_owned(),
            crate::audit::Actor::Host(name) => format!("by {name} on the host"),
            crate::audit::Actor::User(name) => format!("by {name}"),
        });
        vec![
            self.seq.to_string(),
            self.at.to_string(),
            kind,
            context.user.clone().unwrap_or_default(),
            context.source.map(|source| source.to_string()).unwrap_or_default(),
            context.session.as_ref().map(ToString::to_string).unwrap_or_default(),
            [details, actor.unwrap_or_default()].join(" ").trim().to_owned(),
        ]
    }
}

/// An event's kind, and its other fields as `name=value`.
fn details(event: &crate::audit::Event) -> (String, String) {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(event) else {
        return Default::default();
    };
    let kind = fields.remove("kind").and_then(|kind| kind.as_str().map(str::to_owned));
    let plain = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(map) => match (map.get("host"), map.get("port")) {
            (Some(serde_json::Value::String(host)), Some(port)) => format!("{host}:{port}"),
            _ => value.to_string(),
        },
        other => other.to_string(),
    };
    let details: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    (kind.unwrap_or_default(), details.join(" "))
}
