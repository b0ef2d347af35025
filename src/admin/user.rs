//! Users, their passwords and keys, their authenticators.

use std::io::{self, Write as _};

use anyhow::{Context as _, Error, bail};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::output::{Format, Row, json_line, list, show};
use super::{Out, Verbs};
use crate::auth::password;
use crate::cli::{self, OtpCommand, UserCommand, UserKeyCommand};
use crate::domain::{
    IdPrefix, RadiusMode, Role, RuleOrDefault, SecondFactor, UnixTime, UserName, Verifier,
    printable,
};
use crate::keys::public_key;
use crate::store::{BindingPassword, KeyRow, LockRow, NewUser, RememberedRow, UserDetail, UserRow};

/// Where a new password comes from.
#[derive(Debug)]
pub enum NewPassword {
    /// Made here, printed, to be changed at the first login.
    OneTime,
    /// Given, to stay.
    Permanent(SecretString),
}

/// Public keys given on the command line, as lines of an authorized_keys file.
///
/// # Errors
/// When a line is no public key, or the key is too weak; the error names the line.
pub fn read_keys(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        keys.push(public_key(line).with_context(|| format!("line {number}"))?);
    }
    if keys.is_empty() {
        bail!("there is no public key in it: give lines such as \"ssh-ed25519 AAAA... comment\"");
    }
    Ok(keys)
}

/// Runs `user ...`. Passwords and keys were read from their files before.
///
/// # Errors
/// What the store says, or which rule a password breaks.
pub async fn users(
    verbs: &Verbs<'_>,
    command: UserCommand,
    password: NewPassword,
    keys: Vec<(String, String)>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        UserCommand::Add { name, role, factor, mode, .. } => {
            let factor = cli::second(factor, mode).map_err(Error::msg)?;
            add(verbs, (&name, role, factor), password, keys, out).await
        }
        UserCommand::Passwd { name, .. } => {
            let (hash, shown) = hash(verbs, &name, password)?;
            store.set_password(&name, &hash, shown.is_some(), context, now).await?;
            Ok(added(verbs, &name, shown, None, out)?)
        }
        UserCommand::List => {
            let locked = store.locked(now).await?;
            let listed = |row: UserRow| Listed { locked: locked.contains(&row.name), row, now };
            let rows: Vec<_> = store.users().await?.into_iter().map(listed).collect();
            Ok(list(out, verbs.format, &rows)?)
        }
        UserCommand::Show { name } => {
            let detail = store.user(&name).await?;
            let factor = shown_factor(verbs, &detail);
            Ok(show(out, verbs.format, &Shown { detail, factor, now })?)
        }
        UserCommand::Disable { name, force } => {
            if !force {
                keep_an_admin(verbs, &name, "disable").await?;
            }
            store.set_disabled(&name, true, context, now).await?;
            Ok(writeln!(out, "{name} is disabled; their sessions end")?)
        }
        UserCommand::Enable { name } => {
            store.set_disabled(&name, false, context, now).await?;
            Ok(writeln!(out, "{name} is enabled")?)
        }
        UserCommand::Unlock { name } => {
            let lifted = store.unlock(&name, context, now).await?;
            let forgotten =
                format!("failures from {lifted} sources, and wrong codes, are forgotten");
            Ok(writeln!(out, "{name} is unlocked; {forgotten}")?)
        }
        UserCommand::Remove { name, force } => {
            if !force {
                keep_an_admin(verbs, &name, "remove").await?;
            }
            store.remove_user(&name, context, now).await?;
            Ok(writeln!(out, "{name} is removed; their sessions end")?)
        }
        UserCommand::Factor { name, second } => {
            set_factor(verbs, &name, second.second().map_err(Error::msg)?, out).await
        }
        UserCommand::SignIn { name, rule: RuleOrDefault(rule) } => {
            store.set_user_sign_in(&name, rule.as_ref(), context, now).await?;
            let policy = store.user(&name).await?.sign_in;
            Ok(writeln!(out, "{name} has to give {policy}; sessions signed in with less end")?)
        }
        UserCommand::Key(command) => user_keys(verbs, command, &keys, out).await,
    }
}

/// Adds a user.
async fn add(
    verbs: &Verbs<'_>,
    (name, role, factor): (&UserName, Role, Option<SecondFactor>),
    password: NewPassword,
    keys: Vec<(String, String)>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (hash, shown) = hash(verbs, name, password)?;
    let binding_until = verbs.now.plus(verbs.binding_window);
    let (password_hash, one_time) = (hash.as_str(), shown.is_some());
    let new = NewUser { name, role, factor, password_hash, one_time, binding_until, keys };
    verbs.store.add_user(&new, verbs.context, verbs.now).await?;
    let binds = factor.is_none_or(|second| second.factor == Verifier::Totp);
    Ok(added(verbs, name, shown, binds.then_some(binding_until), out)?)
}

/// Sets what answers for a user's second step.
async fn set_factor(
    verbs: &Verbs<'_>,
    name: &UserName,
    second: Option<SecondFactor>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    verbs.store.set_user_factor(name, second, verbs.context, verbs.now).await?;
    writeln!(out, "{name}: {}; their sessions end", said(verbs, second))?;
    let user = verbs.store.user(name).await?.user;
    let bound = user.otp_bound_at.is_some();
    let may_bind = user.binding_until.is_some_and(|until| verbs.now < UnixTime(until));
    if user.factor == Verifier::Totp.word() && !bound && !may_bind {
        writeln!(
            out,
            "they have no authenticator: 'sallyport otp reset {name}' lets them bind one"
        )?;
    }
    Ok(())
}

/// Runs `user key ...`.
async fn user_keys(
    verbs: &Verbs<'_>,
    command: UserKeyCommand,
    keys: &[(String, String)],
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        UserKeyCommand::Add { name, .. } => {
            for (fingerprint, key) in keys {
                store.add_key(&name, fingerprint, key, context, now).await?;
                writeln!(out, "{name} may use {fingerprint}")?;
            }
        }
        UserKeyCommand::List { name } => {
            let detail = store.user(&name).await?;
            list(out, verbs.format, &detail.keys)?;
        }
        UserKeyCommand::Remove { name, fingerprint } => {
            store.remove_key(&name, &fingerprint, context, now).await?;
            writeln!(out, "{name} may no longer use {}", printable(&fingerprint))?;
        }
    }
    Ok(())
}

/// Refuses to take the last administrator away who can sign in.
async fn keep_an_admin(verbs: &Verbs<'_>, name: &UserName, what: &str) -> anyhow::Result<()> {
    let users = verbs.store.users().await?;
    let mut admins =
        users.iter().filter(|row| row.role == Role::Admin.word() && row.disabled_at.is_none());
    let (first, more) = (admins.next(), admins.next());
    if more.is_none() && first.is_some_and(|row| row.name == name.as_str()) {
        bail!(
            "{name} is the last administrator: add another first, or say --force to {what} them all \
             the same (this command line works without one)"
        );
    }
    Ok(())
}

/// Runs `otp ...`.
///
/// # Errors
/// What the store says.
pub async fn otp(verbs: &Verbs<'_>, command: OtpCommand, out: &mut Out<'_>) -> anyhow::Result<()> {
    match command {
        OtpCommand::Show { name } => {
            let detail = verbs.store.user(&name).await?;
            show(out, verbs.format, &OtpStatus::new(verbs, &detail))?;
        }
        OtpCommand::Remembered { name } => {
            let rows = verbs.store.remembered(name.as_ref(), verbs.now).await?;
            list(out, verbs.format, &rows)?;
        }
        OtpCommand::Forget { name, login } => {
            let (store, context, now) = (verbs.store, verbs.context, verbs.now);
            let login = login.as_ref().map(IdPrefix::as_str);
            let logins = store.forget_logins(&name, login, context, now).await?;
            writeln!(out, "forgotten: {logins}; a code is asked for at the next login from there")?;
        }
        OtpCommand::Reset { name, keep_password } => {
            reset(verbs, &name, keep_password, out).await?
        }
    }
    Ok(())
}

/// Lets another authenticator be bound: by a one-time password, unless the old one is to do.
async fn reset(
    verbs: &Verbs<'_>,
    name: &UserName,
    keep: bool,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (context, now) = (verbs.context, verbs.now);
    let until = now.plus(verbs.binding_window);
    if keep {
        verbs.store.reset_otp(name, until, BindingPassword::Kept, context, now).await?;
        if verbs.format == Format::Json {
            return Ok(added(verbs, name, None, Some(until), out)?);
        }
        writeln!(
            out,
            "{name} may bind an authenticator at the next login with the password they have, until \
             {until}"
        )?;
        return Ok(());
    }
    let (hash, shown) = hash(verbs, name, NewPassword::OneTime)?;
    let password = BindingPassword::OneTime(&hash);
    verbs.store.reset_otp(name, until, password, context, now).await?;
    Ok(added(verbs, name, shown, Some(until), out)?)
}

/// The hash of a new password, and the password itself if it is to be shown.
fn hash(
    verbs: &Verbs<'_>,
    name: &UserName,
    new: NewPassword,
) -> anyhow::Result<(String, Option<SecretString>)> {
    match new {
        NewPassword::OneTime => {
            let one_time = password::one_time()?;
            Ok((password::hash(&one_time, verbs.cost)?, Some(one_time)))
        }
        NewPassword::Permanent(given) => {
            password::check_new(&given, None, name, verbs.rules)?;
            Ok((password::hash(&given, verbs.cost)?, None))
        }
    }
}

/// Tells the administrator what to hand on. This is the one place that prints a password.
fn added(
    verbs: &Verbs<'_>,
    name: &UserName,
    one_time: Option<SecretString>,
    until: Option<UnixTime>,
    out: &mut Out<'_>,
) -> io::Result<()> {
    let password = one_time.as_ref().map(|password| password.expose_secret());
    if verbs.format == Format::Json {
        #[derive(Serialize)]
        struct Added<'a> {
            name: &'a UserName,
            one_time_password: Option<&'a str>,
            binding_until: Option<UnixTime>,
        }
        let added = Added { name, one_time_password: password, binding_until: until };
        return json_line(out, &added);
    }
    match password {
        Some(password) => writeln!(out, "one-time password for {name}: {password}")?,
        None => writeln!(out, "the password of {name} is set")?,
    }
    if let Some(until) = until {
        writeln!(out, "they bind an authenticator at the next login, until {until}")?;
    }
    Ok(())
}

/// What `otp show` and `ssh USER@bastion otp` tell.
#[derive(Debug, Serialize)]
pub(crate) struct OtpStatus {
    name: String,
    factor: String,
    /// How RADIUS is asked, if that is the factor.
    radius_mode: Option<RadiusMode>,
    bound_at: Option<UnixTime>,
    last_used_at: Option<UnixTime>,
    /// Positive: the authenticator's clock is ahead.
    clock_drift_seconds: Option<i64>,
    recovery_codes_left: u32,
    binding_until: Option<UnixTime>,
}

impl OtpStatus {
    pub(crate) fn new(verbs: &Verbs<'_>, detail: &UserDetail) -> Self {
        let (user, now) = (&detail.user, verbs.now);
        Self {
            name: user.name.clone(),
            factor: user.factor.clone(),
            radius_mode: mode_of(verbs, detail),
            bound_at: user.otp_bound_at.map(UnixTime),
            last_used_at: user.otp_bound_at.and(user.otp_last_used_at).map(UnixTime),
            clock_drift_seconds: user.otp_drift_seconds,
            recovery_codes_left: detail.recovery_codes_left,
            binding_until: user.binding_until.map(UnixTime).filter(|until| now < *until),
        }
    }
}

impl Row for OtpStatus {
    const HEADINGS: &'static [&'static str] =
        &["USER", "FACTOR", "BOUND", "LAST USED", "CLOCK", "RECOVERY CODES", "MAY BIND UNTIL"];
    fn cells(&self) -> Vec<String> {
        let drift = self.clock_drift_seconds.map(|seconds| match seconds {
            s if s > 0 => format!("{s} s ahead when a code last failed"),
            s => format!("{} s behind when a code last failed", -s),
        });
        vec![
            self.name.clone(),
            join(&self.factor, self.radius_mode),
            self.bound_at.map_or_else(|| "no".to_owned(), |at| at.to_string()),
            time(self.last_used_at),
            drift.unwrap_or_default(),
            format!("{} left", self.recovery_codes_left),
            time(self.binding_until),
        ]
    }
}

/// How RADIUS is asked about somebody who signs in by it.
fn mode_of(verbs: &Verbs<'_>, detail: &UserDetail) -> Option<RadiusMode> {
    let is_radius = detail.user.factor == Verifier::Radius.word();
    detail.radius_mode.or(verbs.radius).filter(|_| is_radius)
}

/// What answers for somebody's second step: "totp", "radius code".
pub(super) fn shown_factor(verbs: &Verbs<'_>, detail: &UserDetail) -> String {
    join(&detail.user.factor, mode_of(verbs, detail))
}

/// The same of what is being set.
pub(super) fn said(verbs: &Verbs<'_>, second: Option<SecondFactor>) -> String {
    match second {
        None => "no factor is set here any more".to_owned(),
        Some(SecondFactor { factor: Verifier::Totp, .. }) => "totp".to_owned(),
        Some(SecondFactor { factor, mode }) => {
            let note = if verbs.radius.is_none() { " (no server is configured yet)" } else { "" };
            join(factor.word(), mode.or(verbs.radius)) + note
        }
    }
}

fn join(factor: &str, mode: Option<RadiusMode>) -> String {
    mode.map_or_else(|| factor.to_owned(), |mode| format!("{factor} {mode}"))
}

fn time(at: Option<UnixTime>) -> String {
    at.map(|at| at.to_string()).unwrap_or_default()
}

/// A user as they stand at `now`.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    row: UserRow,
    /// From some source at least, or from all that are not known.
    locked: bool,
    #[serde(skip)]
    now: UnixTime,
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] =
        &["USER", "ROLE", "STATE", "PASSWORD", "AUTHENTICATOR"];
    fn cells(&self) -> Vec<String> {
        user_cells(&self.row, self.locked, self.now)
    }
}

fn user_cells(row: &UserRow, locked: bool, now: UnixTime) -> Vec<String> {
    let state = match (row.disabled_at, locked) {
        (Some(_), _) => "disabled",
        (None, true) => "locked",
        (None, false) => "enabled",
    };
    let password = if row.password_one_time != 0 { "one-time" } else { "own" };
    let by_radius = row.factor == Verifier::Radius.word();
    let authenticator = match (row.otp_bound_at, row.binding_until.map(UnixTime)) {
        _ if by_radius => "by RADIUS".to_owned(),
        (Some(at), _) => format!("bound {}", UnixTime(at)),
        (None, Some(until)) if now < until => format!("may bind until {until}"),
        (None, Some(until)) => format!("none, time to bind was over {until}: 'otp reset'"),
        (None, None) => "none".to_owned(),
    };
    vec![row.name.clone(), row.role.clone(), state.into(), password.into(), authenticator]
}

/// Everything of a user as they stand at `now`.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    detail: UserDetail,
    #[serde(skip)]
    factor: String,
    #[serde(skip)]
    now: UnixTime,
}

impl Row for Shown {
    const HEADINGS: &'static [&'static str] = &[
        "USER",
        "ROLE",
        "STATE",
        "PASSWORD",
        "AUTHENTICATOR",
        "FACTOR",
        "SIGN-IN",
        "ADDED",
        "GROUPS",
        "KEYS",
        "RECOVERY CODES",
        "FAILURES",
    ];
    fn cells(&self) -> Vec<String> {
        let detail = &self.detail;
        let holds = |lock: &LockRow| lock.locked_until.is_some_and(|until| self.now.0 < until);
        let counted = detail.code_failures.and_then(|counted| counted.current(self.now));
        let limited = counted.and_then(|counted| counted.limited(self.now));
        let locked = limited.is_some() || detail.locks.iter().any(holds);
        let mut cells = user_cells(&detail.user, locked, self.now);
        let keys: Vec<&str> = detail.keys.iter().map(|key| key.fingerprint.as_str()).collect();
        let of_codes = counted.map(|counted| match limited {
            Some(until) => format!(
                "{} wrong codes, taken from known sources only until {until}",
                counted.failures
            ),
            None => format!("{} wrong codes since {}", counted.failures, UnixTime(counted.since)),
        });
        let failures: Vec<String> = detail
            .locks
            .iter()
            .map(|lock| match lock.locked_until {
                Some(until) => format!(
                    "{} from {}, locked until {}",
                    lock.failures,
                    lock.source,
                    UnixTime(until)
                ),
                None => format!("{} from {}", lock.failures, lock.source),
            })
            .chain(of_codes)
            .collect();
        let group = detail.factor_group.as_ref();
        let from = group.map(|group| format!(", set for group {group}")).unwrap_or_default();
        cells.extend([
            format!("{}{from}", self.factor),
            detail.sign_in.to_string(),
            UnixTime(detail.user.created_at).to_string(),
            detail.groups.join(" "),
            keys.join(" "),
            format!("{} left", detail.recovery_codes_left),
            failures.join("; "),
        ]);
        cells
    }
}

impl Row for RememberedRow {
    const HEADINGS: &'static [&'static str] =
        &["LOGIN", "USER", "KEY", "FROM", "CODE GIVEN", "UNTIL", "LAST USED"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.user.clone(),
            self.key.clone(),
            self.source.clone(),
            UnixTime(self.code_at).to_string(),
            UnixTime(self.until).to_string(),
            time(self.last_used_at.map(UnixTime)),
        ]
    }
}

impl Row for KeyRow {
    const HEADINGS: &'static [&'static str] = &["FINGERPRINT", "ADDED", "KEY"];
    fn cells(&self) -> Vec<String> {
        vec![self.fingerprint.clone(), UnixTime(self.added_at).to_string(), self.public_key.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_window_that_is_over_is_said_to_be() {
        let row = UserRow {
            id: "0123456789ab".into(),
            name: "alice".into(),
            role: "user".into(),
            factor: "totp".into(),
            created_at: 0,
            disabled_at: None,
            password_one_time: 1,
            password_set_at: 0,
            binding_until: Some(60_000),
            otp_bound_at: None,
            otp_last_used_at: None,
            otp_drift_seconds: None,
        };
        let at = |now| user_cells(&row, false, UnixTime(now)).pop().unwrap();
        assert_eq!(user_cells(&row, false, UnixTime(0))[2], "enabled");
        assert_eq!(user_cells(&row, true, UnixTime(0))[2], "locked");
        assert_eq!(at(0), "may bind until 1970-01-01T00:01:00Z");
        assert_eq!(at(60_000), "none, time to bind was over 1970-01-01T00:01:00Z: 'otp reset'");
        let json = serde_json::to_value(Listed { row, locked: true, now: UnixTime(0) }).unwrap();
        assert_eq!(json["password_one_time"], true);
    }
}
