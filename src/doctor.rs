//! `sallyport doctor`: looks at everything around a bastion that has to be in order, and says what is
//! not, a line for each.
//!
//! Always holds: it changes nothing; one check that cannot be made does not keep the others from being
//! made, and is not taken for a good one.

mod radius;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use crate::admin::output::Row;
use crate::audit::Record;
use crate::config::{Config, KeyFile};
use crate::domain::{Mode, Target, UnixTime, printable};
use crate::server::relay::probe;
use crate::store::{EventFilter, EventRow, Store};
use crate::{keys, logging, setup};

/// How far the clock may stand behind the newest audit event, which another node may have written.
const MAX_BEHIND: Duration = Duration::from_secs(30);
/// How long a program that is asked may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Targets, or RADIUS servers, that are asked at a time.
const AT_A_TIME: usize = 16;
/// The least that should be free where the data are, in bytes.
const MIN_FREE: u64 = 100 << 20;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Grade {
    /// In order.
    Ok,
    /// To be looked after.
    Warn,
    /// Broken, or about to be.
    Fail,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: "clock", "keys" and so on.
    pub check: &'static str,
    /// How it is.
    pub grade: Grade,
    /// What was found and, if it is not in order, what to do.
    pub text: String,
}

impl Row for Finding {
    const HEADINGS: &'static [&'static str] = &["STATE", "CHECK", "FOUND"];
    fn cells(&self) -> Vec<String> {
        let grade = match self.grade {
            Grade::Ok => "OK",
            Grade::Warn => "WARN",
            Grade::Fail => "FAIL",
        };
        vec![grade.to_owned(), self.check.to_owned(), self.text.clone()]
    }
}

/// What the checks look at.
#[derive(Debug)]
pub struct Patient<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The store, or why it cannot be opened.
    pub store: Result<Store, String>,
    /// The time it is.
    pub now: UnixTime,
}

/// A check: what it found, in order.
type Check = for<'a> fn(&'a Patient<'a>) -> BoxFuture<'a, Vec<Finding>>;

/// Every check, in the order they are made. A new one goes here.
const CHECKS: &[Check] = &[
    |patient| Box::pin(async { clock(patient).await }),
    |patient| Box::pin(async { key_files(patient) }),
    |patient| Box::pin(async { store(patient).await }),
    |patient| Box::pin(async { space(patient) }),
    |patient| Box::pin(async { names(patient) }),
    |patient| Box::pin(async { radius::servers(patient).await }),
    |patient| Box::pin(async { targets(patient).await }),
];

/// Makes every check.
pub async fn examine(config: &Config, now: UnixTime) -> Vec<Finding> {
    let store = setup::open(config).await.map_err(|error| logging::whole(&error));
    let patient = Patient { config, store, now };
    let mut findings = Vec::new();
    for check in CHECKS {
        findings.extend(check(&patient).await);
    }
    findings
}

fn found(check: &'static str, grade: Grade, text: impl Into<String>) -> Finding {
    Finding { check, grade, text: text.into() }
}

/// The clock: codes are worth nothing without it.
async fn clock(patient: &Patient<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(store) = &patient.store {
        findings.push(match store.events(&EventFilter::default(), 1).await {
            Ok(events) => match events.first().and_then(written_at) {
                Some(newest) if newest > patient.now.plus(MAX_BEHIND) => {
                    let text = format!(
                        "it is {} here, but the newest audit event is of {newest}: set the clock",
                        patient.now
                    );
                    found("clock", Grade::Fail, text)
                }
                _ => found("clock", Grade::Ok, format!("it is {}", patient.now)),
            },
            Err(error) => found("clock", Grade::Fail, error.to_string()),
        });
    }
    findings.push(match synchronized().await {
        Some(true) => found("clock", Grade::Ok, "it is kept right over the network (NTP)"),
        Some(false) => {
            let text =
                "nothing keeps it right: switch NTP on (timedatectl set-ntp true, or chrony)";
            found("clock", Grade::Warn, text)
        }
        None => {
            let text = "whether NTP keeps it right cannot be found out: there is no timedatectl";
            found("clock", Grade::Warn, text)
        }
    });
    findings
}

/// When an event was written.
fn written_at(event: &EventRow) -> Option<UnixTime> {
    serde_json::from_str::<Record>(&event.body).ok().map(|record| record.at)
}

/// What systemd says of the clock, if it is there to say it.
async fn synchronized() -> Option<bool> {
    let ask = || {
        let mut timedatectl = std::process::Command::new("timedatectl");
        timedatectl.args(["show", "--property=NTPSynchronized", "--value"]).output().ok()
    };
    let asked = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(ask)).await;
    let output = asked.ok()?.ok()??;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Key files: there, their owner's alone, and keys.
fn key_files(patient: &Patient<'_>) -> Vec<Finding> {
    let config = patient.config;
    let owner = std::fs::metadata(&config.data_dir).map(|folder| folder.uid());
    let mut findings = Vec::new();
    let name = config.data_dir.display();
    findings.push(match std::fs::metadata(&config.data_dir) {
        Err(error) => found("keys", Grade::Fail, format!("the data folder {name}: {error}")),
        Ok(folder) if folder.mode() & 0o077 != 0 => {
            let text = format!("others can enter the data folder {name}: run chmod 700 {name}");
            found("keys", Grade::Fail, text)
        }
        Ok(_) => found("keys", Grade::Ok, format!("the data folder {name} is its owner's alone")),
    });
    for key in KeyFile::ALL {
        let path = config.key_path(key);
        let name = format!("the {} {}", key.shown(), path.display());
        // Also refuses a file that others can read.
        let readable = match key {
            KeyFile::SealingKey => keys::read_secret(&path).map(drop),
            _ => keys::load(&path).map(drop),
        };
        let of = std::fs::metadata(&path).map(|file| file.uid());
        let credential = config.keys.credentials.as_ref().is_some_and(|dir| path.starts_with(dir));
        findings.push(match (readable, of, &owner) {
            (Err(error), ..) => found("keys", Grade::Fail, error.to_string()),
            (Ok(()), Ok(of), Ok(owner)) if of != *owner && !credential => {
                let text = format!("{name} belongs to user {of}, the data folder to user {owner}");
                found("keys", Grade::Warn, text)
            }
            (Ok(()), ..) => found("keys", Grade::Ok, format!("{name} is its owner's alone")),
        });
    }
    findings
}

/// The store: reachable, of this program's schema, and with these keys. Opening it checks all that.
async fn store(patient: &Patient<'_>) -> Vec<Finding> {
    let store = match &patient.store {
        Ok(store) => store,
        Err(error) => return vec![found("store", Grade::Fail, error.clone())],
    };
    let url = patient.config.store_url();
    let kind = if url.starts_with("sqlite:") { url.as_str() } else { "PostgreSQL" };
    vec![match store.audit_head().await {
        Ok(head) => {
            let text =
                format!("{kind} answers, with this program's schema and {} events", head.seq);
            found("store", Grade::Ok, text)
        }
        Err(error) => found("store", Grade::Fail, error.to_string()),
    }]
}

/// Free space, for the data and for recordings.
fn space(patient: &Patient<'_>) -> Vec<Finding> {
    let config = patient.config;
    let min = config.record.min_free.bytes();
    let end = if config.record.strict { "recorded sessions end" } else { "nothing is recorded" };
    vec![
        free("the data folder", &config.data_dir, MIN_FREE, "the store cannot be written soon"),
        free("the recordings' folder", &config.recordings(), min, end),
    ]
}

/// Whether enough is free at `path`: twice what has to be, and not less than that.
fn free(what: &str, path: &Path, min: u64, below: &str) -> Finding {
    // What is not there yet will be made there.
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let stat = match rustix::fs::statvfs(there) {
        Ok(stat) => stat,
        Err(error) => return found("space", Grade::Fail, format!("{}: {error}", path.display())),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let text = format!("{} MiB are free for {what} {}", free >> 20, path.display());
    if free < min {
        found("space", Grade::Fail, format!("{text}: below {} MiB, {below}", min >> 20))
    } else if free / 2 < min {
        found("space", Grade::Warn, format!("{text}; below {} MiB, {below}", min >> 20))
    } else {
        found("space", Grade::Ok, text)
    }
}

/// The names in the bastion's own host certificate.
fn names(patient: &Patient<'_>) -> Vec<Finding> {
    let host = setup::host_name();
    vec![match patient.config.server.public_host.as_str() {
        "" => {
            let text = format!(
                "the bastion's host certificate is made for {host} only: set [server] public_host \
                 to the name that people type"
            );
            found("certificate", Grade::Warn, text)
        }
        name => {
            let text = format!("the bastion's host certificate is made for {name} and {host}");
            found("certificate", Grade::Ok, text)
        }
    }]
}

/// Recorded targets: reachable, and with the host key that is pinned.
async fn targets(patient: &Patient<'_>) -> Vec<Finding> {
    let Ok(store) = &patient.store else { return Vec::new() };
    let targets = match store.targets().await {
        Ok(targets) => targets,
        Err(error) => return vec![found("target", Grade::Fail, error.to_string())],
    };
    let recorded = targets.into_iter().filter(|target| target.mode == Mode::Record);
    let asked = recorded.map(|target| target_key(store, target, patient));
    stream::iter(asked).buffered(AT_A_TIME).collect().await
}

async fn target_key(store: &Store, target: Target, patient: &Patient<'_>) -> Finding {
    let (name, now) = (&target.name, patient.now);
    let trusted = match store.trusted_keys(&target.id).await {
        Ok(trusted) => trusted,
        Err(error) => return found("target", Grade::Fail, error.to_string()),
    };
    let (shown, is_trusted) = match probe::look(&target, &trusted, now).await {
        Ok(looked) => looked,
        Err(error) => {
            let text = printable(&format!("{name}: {}", logging::whole(&error)));
            return found("target", Grade::Fail, text);
        }
    };
    if is_trusted {
        found("target", Grade::Ok, format!("{name} answers with {shown}, as pinned"))
    } else if trusted.is_empty() && patient.config.record.trust_first_use {
        let text = format!("{name} answers with {shown}, which is pinned at its first use");
        found("target", Grade::Warn, text)
    } else if trusted.is_empty() {
        let text = format!("{name} answers with {shown}: run 'sallyport target pin {name}'");
        found("target", Grade::Fail, text)
    } else {
        let text = format!(
            "{name} answers with {shown}, which is not what is pinned: find out why before you run \
             'sallyport target pin {name}'"
        );
        found("target", Grade::Fail, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_graded_by_what_has_to_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        let not_yet = dir.path().join("a/b");
        let graded = |min| free("data", &not_yet, min, "it ends").grade;
        assert_eq!(graded(0), Grade::Ok);
        assert_eq!(graded(u64::MAX), Grade::Fail);
        let stat = rustix::fs::statvfs(dir.path()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        assert_eq!(graded(free / 4 * 3), Grade::Warn);
    }
}
