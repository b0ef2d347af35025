//! The first factor: a password, a key or a certificate; and whether a code has to follow.

use secrecy::SecretString;

use super::super::account::{Remembered, Standing};
use super::{Certified, Claim, Effect, First, Machine, Reply, Stage, ask, prompt};
use crate::audit::{CertificateFault, Event, Refusal, Step};
use crate::domain::{Factors, UnixTime};

/// The most key offers: enough for a full agent.
pub(super) const MAX_OFFERS: u32 = 32;

impl Machine {
    pub(super) fn offer(&mut self, key: &str) -> Effect {
        self.offers += 1;
        self.rounds -= 1; // Counted by itself: a full agent must not use a dialog's rounds up.
        if self.offers > MAX_OFFERS {
            return self.disconnect(Refusal::TooManyAttempts);
        }
        let may_be_certified = self.rules.certificates && !key.is_empty();
        Effect::Reply(if may_be_certified || self.has_key(key) || self.has_certificate(key) {
            Reply::KeyOk
        } else {
            Reply::Refuse(self.rules.methods)
        })
    }

    pub(super) fn key(&mut self, key: &str, now: UnixTime) -> Effect {
        if !self.has_key(key) {
            self.note(Event::StepFailed { step: Step::Key, reason: Refusal::UnknownKey });
            return Effect::Reply(Reply::Refuse(self.rules.methods));
        }
        self.prove_key();
        self.given = self.given.with(Factors::KEY);
        self.key = Some(key.to_owned());
        self.steps.retain(|step| matches!(step, Step::Password | Step::Certificate));
        self.steps.push(Step::Key);
        self.note(Event::StepPassed { step: Step::Key, key: Some(key.to_owned()) });
        self.go_on(now)
    }

    /// A password that was given before stays what it was, a guess too: it is still to be counted.
    fn prove_key(&mut self) {
        if !self.first.is_password() {
            self.first = First::Key;
        }
    }

    /// Takes a certificate in, or writes down at once why not: its holder may leave next.
    pub(super) fn certificate(
        &mut self,
        shown: Result<Certified, Box<Event>>,
        now: UnixTime,
    ) -> Effect {
        let certified = match shown {
            Ok(certified) => certified,
            Err(why) => {
                self.note(*why);
                return self.fail(Refusal::CertificateRefused, None);
            }
        };
        match self.account() {
            None => return self.fail(Refusal::UnknownUser, None),
            Some(account) if account.disabled => return self.fail(Refusal::Disabled, None),
            Some(account) if certified.by_login_ca && !account.holds(&certified) => {
                let Certified { id, serial, authority, .. } = certified;
                let reason = CertificateFault::Revoked;
                self.note(Event::CertificateRefused { id, serial, authority, reason });
                return self.fail(Refusal::CertificateRefused, None);
            }
            Some(_) => {}
        }
        self.prove_key();
        self.given = self.given.with(Factors::CERTIFICATE);
        self.steps.retain(|step| matches!(step, Step::Password | Step::Key));
        self.steps.push(Step::Certificate);
        let Certified { id, serial, authority, by_login_ca, .. } = certified;
        let key = Some(format!("{id} (serial {serial}) by {authority}"));
        self.note(Event::StepPassed { step: Step::Certificate, key });
        if by_login_ca { self.let_in_by_certificate(serial, now) } else { self.go_on(now) }
    }

    /// Lets somebody in by a certificate that was given for a code, and stands for one.
    fn let_in_by_certificate(&mut self, serial: u64, now: UnixTime) -> Effect {
        // It stands for itself: what came before it may be a password that stays to be changed.
        self.given = Factors::CERTIFICATE.with(Factors::OTP);
        self.steps = vec![Step::Certificate];
        match (self.standing(now), i64::try_from(serial)) {
            (Standing::Closed(reason), _) => self.fail(reason, None),
            _ if !self.allows(self.given) => self.fail(Refusal::SignInRule, None),
            (_, Ok(serial)) => self.sign_in(Claim::Certificate(serial)),
            (_, Err(_)) => self.fail(Refusal::CertificateRefused, None),
        }
    }

    /// Whether the login CA gave the account a certificate for this key.
    fn has_certificate(&self, key: &str) -> bool {
        self.account().is_some_and(|account| {
            !account.disabled && account.certificates.iter().any(|(_, for_key)| for_key == key)
        })
    }

    fn has_key(&self, key: &str) -> bool {
        self.account()
            .is_some_and(|account| !account.disabled && account.keys.iter().any(|k| k == key))
    }

    pub(super) fn ask_password(&mut self) -> Effect {
        self.stage = Stage::AwaitPassword;
        ask(prompt::PASSWORD, false)
    }

    pub(super) fn check_password(&mut self, password: SecretString, interactive: bool) -> Effect {
        if let Some(end) = self.count_answer() {
            return end;
        }
        // A second guess without a code for the first: that one failed, right or wrong.
        if self.first.is_password() {
            return self.fail(Refusal::GivenUp, None);
        }
        self.stage = Stage::CheckingPassword { interactive };
        self.given = self.given.without(Factors::PASSWORD);
        self.old_password = Some(password.clone());
        // One that a RADIUS server judges is compared with the decoy, for the sake of its time.
        let ours = self.account().filter(|_| !self.is_judged_by_radius());
        Effect::CheckPassword(password, ours.map(|account| account.password.clone()))
    }

    pub(super) fn password_checked(&mut self, right: bool, now: UnixTime) -> Effect {
        let interactive = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::CheckingPassword { interactive } => interactive,
            other => return self.unexpected(other),
        };
        let right = right && self.account().is_some();
        self.first = First::Password { right };
        self.steps.retain(|step| matches!(step, Step::Key | Step::Certificate));
        if self.is_judged_by_radius() {
            self.first = First::Held;
        } else if right {
            self.given = self.given.with(Factors::PASSWORD);
            self.steps.push(Step::Password);
            self.note(Event::StepPassed { step: Step::Password, key: None });
        } else {
            let reason = match self.account() {
                Some(_) => Refusal::WrongPassword,
                None => Refusal::UnknownUser,
            };
            self.note(Event::StepFailed { step: Step::Password, reason });
        }
        if interactive { self.ask_second(now) } else { self.go_on(now) }
    }

    /// What follows a first factor that came by a method of its own.
    fn go_on(&mut self, now: UnixTime) -> Effect {
        if self.needs_no_code(now) && !self.must_change_password() {
            self.let_in()
        } else if let Some(remembered) = self.remembered(now) {
            self.let_in_again(remembered)
        } else {
            Effect::Reply(Reply::Continue)
        }
    }

    /// Whether what was given is enough without a code. Never so after a wrong password, nor while the
    /// account is locked: the question for a code must not tell a right one then.
    pub(super) fn needs_no_code(&self, now: UnixTime) -> bool {
        let open = match self.standing(now) {
            // That no authenticator may be bound is nothing to whom no code is asked of.
            Standing::Closed(reason) => reason == Refusal::BindingClosed,
            Standing::Bound | Standing::MayBind | Standing::Radius => true,
        };
        open && matches!(self.first, First::Password { right: true } | First::Key)
            && !self.given.has(Factors::OTP)
            && self.allows(self.given)
    }

    /// The login that stands for a code, if one is remembered of this key from here, and a code is all
    /// that is missing.
    pub(super) fn remembered(&self, now: UnixTime) -> Option<Remembered> {
        let open = matches!(self.standing(now), Standing::Bound | Standing::Radius)
            && matches!(self.first, First::Password { right: true } | First::Key)
            && !self.must_change_password()
            && self.allows(self.given.with(Factors::OTP));
        let (account, key) = (self.account().filter(|_| open)?, self.key.as_ref()?);
        let here = |login: &&Remembered| login.key == *key && login.source == self.source;
        account.remembered.iter().find(here).cloned()
    }

    /// Lets somebody in whose login is remembered.
    pub(super) fn let_in_again(&mut self, remembered: Remembered) -> Effect {
        let claim = Claim::Remembered(remembered);
        self.given = self.given.with(Factors::OTP);
        self.steps.extend(claim.step());
        self.sign_in(claim)
    }

    /// Lets somebody in of whom no code is asked.
    pub(super) fn let_in(&mut self) -> Effect {
        if self.must_change_password() {
            self.ask_new_password(None, 0)
        } else {
            self.sign_in(Claim::NoCode)
        }
    }

    /// Whether a password has to follow a key.
    pub(super) fn needs_password(&self, now: UnixTime) -> bool {
        if self.needs_no_code(now) {
            return false;
        }
        // A key cannot stand in for the one-time password, which is the token to bind with.
        self.standing(now) == Standing::MayBind
            || self.is_judged_by_radius()
            || !self.allows(self.given.with(Factors::OTP))
    }

    /// Whether a password of ours was given, and is good for once only.
    pub(super) fn must_change_password(&self) -> bool {
        self.given.has(Factors::PASSWORD)
            && !self.is_judged_by_radius()
            && self.account().is_some_and(|account| account.one_time)
    }
}
