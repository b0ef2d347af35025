//! What the menu shows, out of the store: the granted targets, the user's authenticator and
//! sessions.
//!
//! Always holds: it shows what the commands `targets`, `otp` and `sessions` show, to the same person.

use std::collections::HashMap;
use std::io::Write as _;

use super::menu::{Entry, Facts, Page};
use super::{Caller, when_empty};
use crate::admin::{self, Out, output::Format};
use crate::auth::password;
use crate::cli;
use crate::domain::{Grant, Target, UnixTime};
use crate::policy::{self, Subject};
use crate::store::{SessionFilter, Store};

/// What can be typed on the authenticator's page.
const AUTHENTICATOR_KEYS: &str = "
N  bind a new authenticator in the place of this one
C  make new recovery codes
U  unbind: another is bound at the next login
P  choose another password

Each asks for a code first.";
/// Sessions that are shown.
const SESSIONS: u32 = 50;

/// What there is to know about the caller, and where they may go.
///
/// # Errors
/// When the store fails.
pub async fn contents(
    caller: &Caller<'_>,
    store: &Store,
    now: UnixTime,
) -> anyhow::Result<(Facts, Vec<Entry>)> {
    let user = caller.who.user();
    let detail = store.user(user).await?;
    // What is left of an authenticator from before RADIUS is nothing to be told at each login.
    let totp = detail.signs_in_by_totp();
    let facts = Facts {
        user: user.to_string(),
        host: caller.public_host.clone(),
        authenticator_since: detail
            .user
            .otp_bound_at
            .filter(|_| totp)
            .map(|at| UnixTime(at).date()),
        recovery_codes_left: detail.recovery_codes_left,
        last_drift: detail.user.otp_drift_seconds.filter(|_| totp),
        when_empty: when_empty(caller).to_owned(),
    };
    let mut last: HashMap<String, String> = HashMap::new();
    for (target, account) in store.last_accounts(user, caller.who.account()).await? {
        last.entry(target).or_insert(account);
    }
    let access = store.access_of(caller.who.account()).await?;
    let subject = Subject::of(caller.who, &access.groups, caller.source.ip());
    let granted = policy::granted_targets(&subject, &access.targets, &access.grants);
    let entry = |(target, grants): (&Target, Vec<&Grant>)| Entry {
        name: target.name.to_string(),
        address: target.address.to_string(),
        accounts: policy::granted_accounts(&subject, target, &access.grants)
            .iter()
            .map(ToString::to_string)
            .collect(),
        last_account: last.get(target.name.as_str()).cloned(),
        labels: target.labels.iter().map(ToString::to_string).collect(),
        mode: target.mode,
        holds_now: grants.iter().any(|grant| policy::holds_now(grant, &subject, target, now)),
        remark: remark(&grants),
        command: caller.line(target),
    };
    Ok((facts, granted.into_iter().map(entry).collect()))
}

/// The caller's own sessions: not those of somebody who had the name before.
pub(super) fn own_sessions(caller: &Caller<'_>) -> SessionFilter {
    let (user, account) = (caller.who.user().to_string(), caller.who.account().clone());
    SessionFilter { live: false, user: Some(user), account: Some(account) }
}

/// When and from where one of the grants holds; nothing if one holds always.
fn remark(grants: &[&Grant]) -> String {
    let words = |grant: &&Grant| grant.conditions().trim_start_matches("hours ").to_owned();
    let conditions: Vec<String> = grants.iter().map(words).collect();
    match conditions.iter().any(String::is_empty) {
        true => String::new(),
        false => conditions.join(" or "),
    }
}

/// The title and the lines of a page; `columns` is how wide the terminal is.
///
/// # Errors
/// When the store fails.
pub async fn page(
    caller: &Caller<'_>,
    store: &Store,
    now: UnixTime,
    (page, columns): (Page, u16),
) -> anyhow::Result<(&'static str, Vec<String>)> {
    let (rules, context) = (password::Rules::default(), caller.actor());
    let format = Format::Table { width: Some(columns) };
    let verbs = caller.verbs((store, now), format, (&rules, &context));
    let mut text = Vec::new();
    let mut out = Out::new(&mut text);
    let name = caller.who.user().clone();
    let title = match page {
        Page::Authenticator => {
            admin::otp(&verbs, cli::OtpCommand::Show { name }, &mut out).await?;
            "Your authenticator"
        }
        Page::Sessions => {
            admin::list_sessions(&verbs, &own_sessions(caller), SESSIONS, &mut out).await?;
            "Your sessions"
        }
    };
    if page == Page::Authenticator {
        writeln!(out, "{AUTHENTICATOR_KEYS}")?;
    }
    out.send().await?;
    Ok((title, String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()))
}
