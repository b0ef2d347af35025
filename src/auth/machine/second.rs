//! What follows the first factor: a code or a recovery code, or the way to binding or RADIUS.

use secrecy::{ExposeSecret as _, SecretString};

use super::super::account::{Standing, WrongCode};
use super::{Claim, Claimed, Effect, First, Machine, Stage, ask, prompt};
use crate::audit::{Event, Refusal, Step};
use crate::domain::{Factors, UnixTime};

impl Machine {
    /// Asks for what comes after the first factor. A wrong one leads to the same question as a right one.
    pub(super) fn ask_second(&mut self, now: UnixTime) -> Effect {
        if self.needs_no_code(now) {
            return self.let_in();
        }
        if let Some(remembered) = self.remembered(now) {
            return self.let_in_again(remembered);
        }
        // With what no code makes enough, nothing is bound and no server is asked.
        let enough = self.would_be_enough();
        let right = enough && self.first == First::Password { right: true };
        match self.standing(now) {
            Standing::MayBind if right && self.account().is_some_and(|a| a.one_time) => {
                self.ask_new_password(None, 0)
            }
            Standing::MayBind if right => Effect::MakeSecret,
            Standing::Radius if enough && self.is_challenged_first() => self.begin_challenge(),
            Standing::MayBind | Standing::Bound | Standing::Radius | Standing::Closed(_) => {
                self.stage = Stage::AwaitCode;
                ask(prompt::CODE, false)
            }
        }
    }

    pub(super) fn check_code(&mut self, answer: &SecretString, now: UnixTime) -> Effect {
        if let Some(end) = self.count_answer() {
            return end;
        }
        if let Err(reason) = self.may_use_code(now) {
            return self.fail(reason, None);
        }
        if self.radius_mode().is_some() {
            return self.check_radius(answer);
        }
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let Some(otp) = &account.otp else { return self.fail(Refusal::BindingClosed, None) };
        match otp.claim(&account.id, answer.expose_secret(), now) {
            Ok(claim) => self.claim(claim),
            Err(WrongCode { reason, drift }) => self.code_failed(reason, drift),
        }
    }

    /// Whether a right code would be of any use.
    fn may_use_code(&self, now: UnixTime) -> Result<(), Refusal> {
        let Some(account) = self.account() else { return Err(Refusal::UnknownUser) };
        match (account.standing(&self.throttle(), now), self.first) {
            (Standing::Closed(reason), _) => Err(reason),
            (_, First::Missing | First::Password { right: false }) => Err(Refusal::WrongPassword),
            _ if !self.would_be_enough() => Err(Refusal::SignInRule),
            (Standing::MayBind, _) => Err(Refusal::BindingClosed),
            (Standing::Radius, _) => Ok(()),
            (Standing::Bound, First::Password { right: true } | First::Key) => Ok(()),
            (Standing::Bound, First::Held) => Err(Refusal::WrongPassword),
        }
    }

    /// Whether a right code would make enough of what was given.
    fn would_be_enough(&self) -> bool {
        let held = if self.first == First::Held { Factors::PASSWORD } else { Factors::NONE };
        self.allows(self.given.with(held).with(Factors::OTP))
    }

    pub(super) fn code_failed(&mut self, reason: Refusal, drift: Option<i64>) -> Effect {
        self.note(Event::StepFailed { step: Step::Code, reason });
        self.fail(reason, drift)
    }

    /// Uses the code up. A one-time password still has to be changed before the session opens.
    pub(super) fn claim(&mut self, claim: Claim) -> Effect {
        self.steps.extend(claim.step());
        self.given = self.given.with(Factors::OTP);
        self.code_at = claim.is_code_of_now().then_some(self.at);
        if self.must_change_password() {
            match self.attempt(claim) {
                Some(attempt) => Effect::Claim(attempt),
                None => self.fail(Refusal::UnknownUser, None),
            }
        } else {
            self.sign_in(claim)
        }
    }

    pub(super) fn claimed(&mut self, claimed: &Claimed) -> Effect {
        self.set_recovery_left(claimed.recovery_left);
        self.forget_accepted();
        self.ask_new_password(None, 0)
    }
}
