//! What users change of their own account, after they proved that it is theirs (see `proof`): whoever finds
//! an open session must not be able to take the account over.
//!
//! Always holds: nothing is done for a session whose account is locked, disabled or was changed by somebody
//! else meanwhile; every refusal is audited.

use std::time::Duration;

use anyhow::bail;

use super::dialog::{Dialog, NoAnswer};
use super::proof::Purpose;
use super::{Caller, Channel, authenticator, certificate, own_keys, passwd};
use crate::audit::{Context, Event, Note, Refusal};
use crate::auth::account::{Account, Otp};
use crate::auth::machine::{Attempt, Claim};
use crate::cli::{ConsoleCommand, OwnKeys, OwnOtp};
use crate::domain::{Id, RadiusMode, UnixTime, Verifier, printable};
use crate::store::{Store, Throttled};

/// How long the code of a sign-in counts as just typed: less than the 90 s that a code may be typed in, so
/// that it proves no less than a code which comes with what it is for.
const FRESH: Duration = Duration::from_secs(60);

/// Something users do about their own account that takes a dialog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnVerb {
    /// Bind another authenticator in the place of the present one.
    Rebind,
    /// Make new recovery codes.
    Codes,
    /// Unbind the authenticator.
    Unbind,
    /// Choose another password.
    Passwd,
    /// Add public keys.
    AddKeys,
    /// Remove the public key with this fingerprint.
    RemoveKey(String),
    /// Get a certificate for a public key.
    Certificate,
}

impl OwnVerb {
    /// The verb that a command is, if it is one of these.
    pub(super) fn of(command: &ConsoleCommand) -> Option<Self> {
        Some(match command {
            ConsoleCommand::Otp { what: Some(OwnOtp::Unbind) } => Self::Unbind,
            ConsoleCommand::Otp { what: Some(OwnOtp::Rebind) } => Self::Rebind,
            ConsoleCommand::Otp { what: Some(OwnOtp::Codes) } => Self::Codes,
            ConsoleCommand::Passwd => Self::Passwd,
            ConsoleCommand::Keys { what: Some(OwnKeys::Add) } => Self::AddKeys,
            ConsoleCommand::Keys { what: Some(OwnKeys::Remove { fingerprint }) } => {
                Self::RemoveKey(fingerprint.clone())
            }
            ConsoleCommand::Certificate { what: None } => Self::Certificate,
            _ => return None,
        })
    }

    /// Whether it is about the authenticator itself.
    fn is_of_authenticator(&self) -> bool {
        matches!(self, Self::Rebind | Self::Codes | Self::Unbind)
    }

    /// What is typed for it.
    pub fn command(&self) -> String {
        match self {
            Self::Rebind => "otp rebind".to_owned(),
            Self::Codes => "otp codes".to_owned(),
            Self::Unbind => "otp unbind".to_owned(),
            Self::Passwd => "passwd".to_owned(),
            Self::AddKeys => "keys add".to_owned(),
            Self::Certificate => "certificate".to_owned(),
            Self::RemoveKey(fingerprint) => format!("keys remove {}", printable(fingerprint)),
        }
    }
}

/// Leads the dialog that a verb takes, and does what came of it.
///
/// # Errors
/// What was refused, that nobody answered, or what the store says.
pub async fn run(
    caller: &Caller<'_>,
    store: &Store,
    verb: OwnVerb,
    mut dialog: Dialog<'_>,
) -> anyhow::Result<()> {
    let own = Own::new(caller, store, caller.actor(), Purpose::Command(verb.command()));
    own.lead(verb, &mut dialog).await
}

/// As [`run`], for somebody who was in the menu: what they do is audited as if they had typed it, and
/// they are shown what came of it before they go back.
///
/// # Errors
/// As [`run`].
pub async fn run_from_menu(
    caller: &Caller<'_>,
    store: &Store,
    verb: OwnVerb,
    channel: Channel<'_>,
) -> anyhow::Result<()> {
    let Channel { typed, terminal, stdout, stderr } = channel;
    let ran = Event::CommandRun { command: verb.command() };
    store.record(caller.service.clock.now(), &caller.context, ran).await?;
    let own = Own::new(caller, store, caller.actor(), Purpose::Command(verb.command()));
    let mut dialog = Dialog::new(typed, terminal, stdout, stderr);
    own.lead(verb, &mut dialog).await?;
    match dialog.ask("Press Enter to go back to the menu: ", false).await {
        Err(error) if !error.is::<NoAnswer>() => Err(error),
        _ => Ok(()),
    }
}

/// Somebody who has to prove again who they are, most often to change their own account.
pub(super) struct Own<'a> {
    pub(super) caller: &'a Caller<'a>,
    pub(super) store: &'a Store,
    /// Where what they cause belongs.
    pub(super) context: Context,
    pub(super) purpose: Purpose,
}

impl<'a> Own<'a> {
    pub(super) fn new(
        caller: &'a Caller<'a>,
        store: &'a Store,
        context: Context,
        purpose: Purpose,
    ) -> Self {
        Self { caller, store, context, purpose }
    }

    async fn lead(&self, verb: OwnVerb, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
        if verb.is_of_authenticator() {
            self.bound().await?;
        }
        match verb {
            OwnVerb::Rebind => authenticator::rebind(self, dialog).await,
            OwnVerb::Codes => authenticator::codes(self, dialog).await,
            OwnVerb::Unbind => authenticator::unbind(self, dialog).await,
            OwnVerb::Passwd => passwd::change(self, dialog).await,
            OwnVerb::Certificate => certificate::issue(self, dialog).await,
            OwnVerb::AddKeys => own_keys::add(self, dialog).await,
            OwnVerb::RemoveKey(fingerprint) => own_keys::remove(self, dialog, &fingerprint).await,
        }
    }

    pub(super) fn now(&self) -> UnixTime {
        self.caller.service.clock.now()
    }

    /// The account's id, and the epoch that this session has.
    pub(super) fn account_and_epoch(&self) -> (&Id, i64) {
        let who = self.caller.who;
        (who.account(), self.caller.service.epoch.since(who.epoch()))
    }

    /// The account as it is now, if answers may be tried at all.
    pub(super) async fn account(&self) -> anyhow::Result<Account> {
        let service = &self.caller.service;
        let (whose, rules, now) = (self.whose(), &service.throttle, self.now());
        let name = self.caller.who.user();
        let (account, throttle) = self.store.account(Some(name), &whose, rules, now).await?;
        let epoch = self.account_and_epoch().1;
        let account = account.filter(|account| !account.disabled && account.epoch == epoch);
        let Some(account) = account else {
            return self.refuse(Refusal::AccountChanged, CHANGED).await;
        };
        if let Some(until) = throttle.locked_until {
            let text = format!("too many wrong answers: try again after {until}");
            return self.refuse(Refusal::Locked, &text).await;
        }
        Ok(*account)
    }

    /// The account as it is now, with its authenticator.
    pub(super) async fn bound(&self) -> anyhow::Result<(Account, Otp)> {
        let account = self.account().await?;
        if account.factor.factor != Verifier::Totp {
            return self.refuse(Refusal::NotOffered, self.purpose.elsewhere()).await;
        }
        match account.otp.clone() {
            Some(otp) => Ok((account, otp)),
            None => {
                let text = "no authenticator is bound: sign in again to bind one";
                self.refuse(Refusal::BindingClosed, text).await
            }
        }
    }

    /// How RADIUS servers check the account's codes, if they do.
    pub(super) async fn radius_mode(&self) -> anyhow::Result<Option<RadiusMode>> {
        let factor = self.account().await?.factor;
        let mode = factor.mode.unwrap_or(self.caller.service.rules.radius.mode);
        Ok((factor.factor == Verifier::Radius).then_some(mode))
    }

    /// Writes down that the command was refused, and ends it.
    pub(super) async fn refuse<T>(&self, reason: Refusal, text: &str) -> anyhow::Result<T> {
        let refused = self.purpose.refused(reason);
        self.store.record(self.now(), &self.context, refused).await?;
        bail!("{text}")
    }

    /// Whether the code of the sign-in stands for one that would be typed now: what is done is the first
    /// thing on the connection that it opened, and no more than [`FRESH`] passed. A connection that is
    /// shared (`ControlMaster`) is one that somebody may find open, so its later channels do not count.
    pub(super) fn is_fresh(&self) -> bool {
        self.caller.service.code_at.is_some_and(|at| self.now() < at.plus(FRESH))
    }

    /// Refuses who tries faster than people do.
    pub(super) async fn may_try(&self) -> anyhow::Result<()> {
        if (self.caller.service.may_try)() {
            return Ok(());
        }
        self.refuse(Refusal::RateLimited, "too many attempts from your address: wait a minute")
            .await
    }

    /// Uses a claim up, so that it works once; or why it does not.
    pub(super) async fn claim(
        &self,
        claim: Claim,
        mut notes: Vec<Note>,
    ) -> anyhow::Result<Result<(), Refusal>> {
        let (id, epoch) = self.account_and_epoch();
        let (account, given) = (id.clone(), self.caller.who.given());
        let (steps, kept) = (Vec::new(), notes.clone());
        notes.extend(self.purpose.passed().map(|event| self.note(event)));
        let factor = match claim {
            Claim::Radius { .. } => Verifier::Radius,
            Claim::Code(_) | Claim::RecoveryCode(_) => Verifier::Totp,
            // These prove nothing here: nothing is used up, and it counts as a wrong code.
            Claim::Nothing | Claim::NoCode | Claim::Certificate(_) | Claim::Remembered(_) => {
                return Ok(Err(Refusal::WrongCode));
            }
        };
        let attempt = Attempt { account, epoch, factor, claim, key: None, given, steps, notes };
        let (whose, rules, now) = (self.whose(), &self.caller.service.throttle, self.now());
        match self.store.claim(attempt, &whose, rules, &self.context, now).await? {
            Ok(_) => Ok(Ok(())),
            Err(Refusal::AccountChanged) => {
                self.store.record_all(&self.context, kept).await?;
                self.refuse(Refusal::AccountChanged, CHANGED).await
            }
            Err(reason) => Ok(Err(reason)),
        }
    }

    /// Changes the account by `work`, which is given its epoch; this session goes on.
    pub(super) async fn change<T>(
        &self,
        work: impl AsyncFnOnce(i64) -> Result<Result<(i64, T), Refusal>, crate::store::Error>,
    ) -> anyhow::Result<T> {
        let changed = self.caller.service.epoch.change(self.caller.who.epoch(), work).await?;
        self.made(changed).await
    }

    /// What came of a change, unless somebody else changed the account meanwhile.
    pub(super) async fn made<T>(&self, made: Result<T, Refusal>) -> anyhow::Result<T> {
        match made {
            Ok(made) => Ok(made),
            Err(reason) => self.refuse(reason, CHANGED).await,
        }
    }

    /// What happened now, to be written down later.
    pub(super) fn note(&self, event: Event) -> Note {
        Note { at: self.now(), event }
    }

    pub(super) fn whose(&self) -> Throttled {
        Throttled::new(self.caller.who.user().as_str(), &self.caller.source)
    }
}

/// What is told whose account is not as it was.
pub(super) const CHANGED: &str = "your account was changed meanwhile: sign in again";
