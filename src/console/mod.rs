//! What a signed-in user gets over a session channel: who they are, where they may go, and, for
//! auditors and administrators, sessions and the audit log.
//!
//! Always holds: what a caller may do is decided here, by the role they signed in with, before a
//! verb runs; auditors read and change nothing; every refusal is audited.

mod authenticator;
mod certificate;
mod contents;
pub mod dialog;
mod epoch;
pub mod menu;
mod own;
mod own_keys;
mod own_radius;
mod passwd;
mod proof;
mod ssh_config;
mod step_up;
mod ways;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::io::AsyncWrite;

pub use self::contents::{contents, page};
pub use self::dialog::{Dialog, Typed};
pub use self::epoch::OwnEpoch;
pub use self::own::{OwnVerb, run as change_own, run_from_menu as change_own_from_menu};
pub use self::step_up::{CodeQuestion, StepUp};
use crate::admin::replay::Keys;
use crate::admin::{self, Out, Verbs, output::Format};
use crate::audit::{Actor, Context, Event, Refusal};
use crate::auth::account::ThrottleRules;
use crate::auth::machine::{Authenticated, Rules};
use crate::auth::password;
use crate::cli::{
    self, CertificateCommand, ConsoleAudit, ConsoleCommand, OwnCertificate, SessionCommand,
};
use crate::clock::Clock;
use crate::domain::{Mode, RadiusMode, Role, Source, Target, UnixTime, printable};
use crate::hashing::Hashing;
use crate::keys::LoginCa;
use crate::policy::{self, Subject};
use crate::radius;
use crate::recording::player::Key;
use crate::store::Store;

/// Who typed a command.
#[derive(Debug)]
pub struct Caller<'a> {
    /// The signed-in user.
    pub who: &'a Authenticated,
    /// Where they connected from.
    pub source: Source,
    /// Where their events belong.
    pub context: Context,
    /// The bastion's name, as people type it.
    pub public_host: String,
    /// Every name that the bastion has for them, as its host certificate says.
    pub names: Vec<String>,
    /// The bastion's port.
    pub port: u16,
    /// How RADIUS servers are asked by default; `None` if there are none.
    pub radius: Option<RadiusMode>,
    /// The folder of recordings.
    pub recordings: std::path::PathBuf,
    /// The host CA's public key, as in `authorized_keys`.
    pub host_ca: String,
    /// How certificates are given to users; `None` if they are not.
    pub certificates: Option<Certificates>,
    /// What changing their own account takes.
    pub service: Service<'a>,
}

/// How the login CA gives certificates to users.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// Who signs them.
    pub authority: Arc<LoginCa>,
    /// How long they hold.
    pub life: Duration,
    /// Whether they hold only from the address that they were asked for from.
    pub bound_to_source: bool,
}

/// What users who change their own account need of the bastion.
#[derive(Clone)]
#[allow(missing_docs)] // The types say it.
pub struct Service<'a> {
    pub clock: &'a Clock,
    pub hashing: &'a Hashing,
    pub rules: &'a Rules,
    pub throttle: ThrottleRules,
    /// How long an authenticator may be bound after the last was unbound.
    pub binding_window: Duration,
    /// Asks RADIUS servers; `None` if there are none.
    pub radius: Option<Arc<radius::Client>>,
    /// The epoch of the session that it is done in.
    pub epoch: &'a OwnEpoch,
    /// When the code was given that this connection began with, if what is done is the first thing on it.
    pub code_at: Option<UnixTime>,
    /// Whether what is done is the first thing on the connection.
    pub is_first: bool,
    /// Whether the source may try one more answer right now; counts it.
    pub may_try: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Service<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// A session channel with a command on it.
pub struct Channel<'a> {
    /// What is typed, or piped in.
    pub typed: Typed,
    /// Whether there is a terminal.
    pub terminal: bool,
    /// Standard output.
    pub stdout: &'a mut (dyn AsyncWrite + Unpin + Send),
    /// Standard error.
    pub stderr: &'a mut (dyn AsyncWrite + Unpin + Send),
}

impl std::fmt::Debug for Channel<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

/// The keys that are typed while a command runs.
fn keys(typed: Typed) -> Keys {
    use futures_util::StreamExt as _;
    Box::pin(typed.flat_map(|data| futures_util::stream::iter(Key::parse(&data))))
}

/// Runs what was typed after `ssh USER@bastion`, or, if nothing was, greets; gives the exit status.
///
/// # Errors
/// What a verb failed with.
pub async fn run(
    caller: &Caller<'_>,
    words: Option<&str>,
    store: &Store,
    now: UnixTime,
    channel: Channel<'_>,
) -> anyhow::Result<u32> {
    let Channel { typed, terminal, stdout, stderr } = channel;
    let mut out = Out::new(stdout).on_terminal(terminal);
    let Some(words) = words else {
        greet(caller, store, now, &mut out).await?;
        out.send().await?;
        return Ok(0);
    };
    let command = printable(&words.chars().take(1000).collect::<String>());
    let console = match cli::parse_console(words) {
        Ok(console) => console,
        Err((text, is_error)) => {
            if is_error {
                let reason = Refusal::NotOffered;
                let refused = Event::CommandRefused { command, reason };
                store.record(now, &caller.context, refused).await?;
            }
            let mut err = Out::new(if is_error { stderr } else { out.into_sink() });
            err.write_all(text.as_bytes())?;
            err.send().await?;
            return Ok(if is_error { 64 } else { 0 });
        }
    };
    if caller.who.role() < needed(&console.command) {
        let reason = Refusal::RoleTooLow;
        store.record(now, &caller.context, Event::CommandRefused { command, reason }).await?;
        bail!("your role, {}, does not allow that command", caller.who.role());
    }
    if listed(&console.command).is_some_and(|rows| rows > MOST_LISTED) {
        let reason = Refusal::NotOffered;
        store.record(now, &caller.context, Event::CommandRefused { command, reason }).await?;
        bail!("--limit can be {MOST_LISTED} at most here: run it on the bastion's host for more");
    }
    store.record(now, &caller.context, Event::CommandRun { command }).await?;
    if let Some(verb) = OwnVerb::of(&console.command) {
        let dialog = Dialog::new(typed, terminal, out.into_sink(), stderr);
        return change_own(caller, store, verb, dialog).await.map(|()| 0);
    }
    let format = if console.json { Format::Json } else { Format::Table { width: None } };
    let (rules, context) = (password::Rules::default(), caller.actor());
    let verbs = caller.verbs((store, now), format, (&rules, &context));
    dispatch(caller, &verbs, console.command, keys(typed), &mut out).await?;
    out.send().await?;
    Ok(0)
}

/// The most rows of one list: it is put together in memory.
const MOST_LISTED: u32 = 2000;

/// How many rows a command lists at most, if that is for its caller to say.
fn listed(command: &ConsoleCommand) -> Option<u32> {
    match command {
        ConsoleCommand::Audit(ConsoleAudit::List(asked)) => Some(asked.limit),
        ConsoleCommand::Session(SessionCommand::List { limit, .. }) => Some(*limit),
        ConsoleCommand::Session(SessionCommand::Search(asked)) => Some(asked.limit),
        _ => None,
    }
}

/// The least role that a command takes.
fn needed(command: &ConsoleCommand) -> Role {
    match command {
        ConsoleCommand::Help
        | ConsoleCommand::Targets
        | ConsoleCommand::KnownHosts
        | ConsoleCommand::Sessions
        | ConsoleCommand::SshConfig
        | ConsoleCommand::Otp { .. }
        | ConsoleCommand::Certificate { .. }
        | ConsoleCommand::Passwd
        | ConsoleCommand::Keys { .. } => Role::User,
        ConsoleCommand::Session(SessionCommand::Kill { .. }) => Role::Admin,
        ConsoleCommand::Session(
            SessionCommand::List { .. }
            | SessionCommand::Show { .. }
            | SessionCommand::Play(_)
            | SessionCommand::Watch { .. }
            | SessionCommand::Search(_)
            | SessionCommand::Export(_),
        )
        | ConsoleCommand::Audit(_) => Role::Auditor,
    }
}

async fn dispatch(
    caller: &Caller<'_>,
    verbs: &Verbs<'_>,
    command: ConsoleCommand,
    keys: Keys,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    match command {
        ConsoleCommand::Help => Ok(out.write_all(cli::console_help().as_bytes())?),
        ConsoleCommand::Targets => targets(caller, verbs, out).await,
        ConsoleCommand::Otp { what: None } => {
            let name = caller.who.user().clone();
            admin::otp(verbs, cli::OtpCommand::Show { name }, out).await
        }
        ConsoleCommand::Keys { what: None } => {
            let name = caller.who.user().clone();
            let list = cli::UserCommand::Key(cli::UserKeyCommand::List { name });
            admin::users(verbs, list, admin::NewPassword::OneTime, Vec::new(), out).await
        }
        ConsoleCommand::Otp { what: Some(cli::OwnOtp::Remembered) } => {
            let name = Some(caller.who.user().clone());
            admin::otp(verbs, cli::OtpCommand::Remembered { name }, out).await
        }
        ConsoleCommand::Otp { what: Some(cli::OwnOtp::Forget { login }) } => {
            let name = caller.who.user().clone();
            admin::otp(verbs, cli::OtpCommand::Forget { name, login }, out).await
        }
        ConsoleCommand::Certificate { what: Some(OwnCertificate::List) } => {
            let user = Some(caller.who.user().clone());
            admin::certificates(verbs, CertificateCommand::List { user }, out).await
        }
        ConsoleCommand::Certificate { what: Some(OwnCertificate::Revoke { serial }) } => {
            admin::revoke_certificate(verbs, Some(caller.who.user()), serial, out).await
        }
        ConsoleCommand::SshConfig => ssh_config::show(caller, verbs, out).await,
        // Verbs with a dialog of their own: see `OwnVerb`.
        ConsoleCommand::Otp { what: Some(_) }
        | ConsoleCommand::Keys { what: Some(_) }
        | ConsoleCommand::Certificate { what: None }
        | ConsoleCommand::Passwd => bail!("this command is run elsewhere"),
        ConsoleCommand::KnownHosts => known_hosts(caller, verbs, out).await,
        ConsoleCommand::Sessions => {
            let filter = contents::own_sessions(caller);
            admin::list_sessions(verbs, &filter, 50, out).await
        }
        ConsoleCommand::Session(command) => admin::sessions(verbs, command, keys, out).await,
        ConsoleCommand::Audit(ConsoleAudit::List(asked)) => {
            admin::list_events(verbs, *asked, out).await
        }
        ConsoleCommand::Audit(ConsoleAudit::Verify { anchors }) => {
            admin::verify_store(verbs, anchors, out).await
        }
        ConsoleCommand::Audit(ConsoleAudit::Export) => admin::export(verbs, out).await,
    }
}

/// What `ssh USER@bastion` shows: where to go from here, and how.
async fn greet(
    caller: &Caller<'_>,
    store: &Store,
    now: UnixTime,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let detail = store.user(caller.who.user()).await?;
    writeln!(out, "Hello {}. This is {}.\n", caller.who.user(), caller.public_host)?;
    let granted = granted(caller, store, now).await?;
    if granted.is_empty() {
        writeln!(out, "No target is granted to you yet: {}.", when_empty(caller))?;
    } else {
        writeln!(out, "Targets granted to you, and how to get there:")?;
        for (target, state) in &granted {
            writeln!(out, "  {:<20} {}{}", target.name.as_str(), caller.line(target), state)?;
        }
    }
    match detail.recovery_codes_left {
        _ if !detail.signs_in_by_totp() => {}
        1 => writeln!(out, "\n1 recovery code is left.")?,
        left => writeln!(out, "\n{left} recovery codes are left.")?,
    }
    let me = format!("ssh {}{}@{}", caller.port_option(), caller.who.user(), caller.public_host);
    writeln!(out, "'{me} help' shows what else can be typed here.")?;
    Ok(())
}

/// What to do when no target is granted.
fn when_empty(caller: &Caller<'_>) -> &'static str {
    match caller.who.role() {
        Role::Admin => "on this host, 'sallyport target add' and 'grant add' change that",
        Role::Auditor | Role::User => "ask your administrator",
    }
}

async fn targets(caller: &Caller<'_>, verbs: &Verbs<'_>, out: &mut Out<'_>) -> anyhow::Result<()> {
    let granted = granted(caller, verbs.store, verbs.now).await?;
    let rows: Vec<Granted> = granted
        .into_iter()
        .map(|(target, state)| Granted {
            ssh: caller.line(&target),
            jump: caller.jump(&target),
            selector: caller.selector(&target),
            forward: caller.forward(&target),
            holds_now: state.is_empty(),
            mode: target.mode,
            address: target.address.to_string(),
            name: target.name.to_string(),
        })
        .collect();
    Ok(admin::output::list(out, verbs.format, &rows)?)
}

/// One line by which ssh trusts host certificates of the bastion, for itself and for the targets
/// that it stands in for, and for no other host.
async fn known_hosts(
    caller: &Caller<'_>,
    verbs: &Verbs<'_>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let mut names = caller.names.clone();
    for (target, _) in granted(caller, verbs.store, verbs.now).await? {
        if target.mode == Mode::Record {
            names.extend([target.name.to_string(), target.address.host.to_string()]);
        }
    }
    names.sort();
    names.dedup();
    // ssh looks a host on another port than 22 up as "[name]:port".
    let patterns: Vec<String> =
        names.iter().flat_map(|name| [name.clone(), format!("[{name}]:*")]).collect();
    Ok(writeln!(out, "@cert-authority {} {}", patterns.join(","), caller.host_ca)?)
}

/// A row of `targets`.
#[derive(serde::Serialize)]
struct Granted {
    name: String,
    address: String,
    mode: Mode,
    /// Whether a grant holds at this minute, and from here.
    holds_now: bool,
    /// The line to type: what is best of those below.
    ssh: String,
    jump: String,
    selector: Option<String>,
    forward: Option<String>,
}

impl admin::output::Row for Granted {
    const HEADINGS: &'static [&'static str] = &["TARGET", "ADDRESS", "NOW", "COMMAND"];
    fn cells(&self) -> Vec<String> {
        let now = if self.holds_now { "yes" } else { "no" };
        vec![self.name.clone(), self.address.clone(), now.into(), self.ssh.clone()]
    }
}

/// The targets granted to the caller; with a remark on those whose grants do not hold right now.
async fn granted(
    caller: &Caller<'_>,
    store: &Store,
    now: UnixTime,
) -> anyhow::Result<Vec<(Target, &'static str)>> {
    let access = store.access_of(caller.who.account()).await?;
    let subject = Subject::of(caller.who, &access.groups, caller.source.ip());
    let granted = policy::granted_targets(&subject, &access.targets, &access.grants);
    let with_state = |(target, grants): (&Target, Vec<&crate::domain::Grant>)| {
        let holds = grants.iter().any(|grant| policy::holds_now(grant, &subject, target, now));
        (target.clone(), if holds { "" } else { "   (not at this time, or not from your address)" })
    };
    Ok(granted.into_iter().map(with_state).collect())
}

impl Caller<'_> {
    /// Where events belong that the caller causes by a command.
    fn actor(&self) -> Context {
        let actor = Some(Actor::User(self.who.user().clone()));
        Context { actor, ..self.context.clone() }
    }

    /// What verbs need that act for the caller.
    fn verbs<'a>(
        &'a self,
        (store, now): (&'a Store, UnixTime),
        format: Format,
        (rules, context): (&'a password::Rules, &'a Context),
    ) -> Verbs<'a> {
        Verbs {
            store,
            context,
            now,
            format,
            cost: password::Cost::default(),
            rules,
            binding_window: self.service.binding_window,
            recordings: &self.recordings,
            radius: self.radius,
        }
    }
}
