//! The first factor: a password or a key.

use secrecy::SecretString;

use super::{Effect, First, Machine, Reply, Stage, ask, prompt};
use crate::audit::{Event, Refusal, Step};
use crate::domain::UnixTime;

/// The most key offers: enough for a full agent.
pub(super) const MAX_OFFERS: u32 = 32;

impl Machine {
    pub(super) fn offer(&mut self, key: &str) -> Effect {
        self.offers += 1;
        self.rounds -= 1; // Counted by itself: a full agent must not use a dialog's rounds up.
        if self.offers > MAX_OFFERS {
            return self.disconnect(Refusal::TooManyAttempts);
        }
        Effect::Reply(if self.has_key(key) {
            Reply::KeyOk
        } else {
            Reply::Refuse(self.rules.methods)
        })
    }

    pub(super) fn key(&mut self, key: &str) -> Effect {
        if !self.has_key(key) {
            self.note(Event::StepFailed { step: Step::Key, reason: Refusal::UnknownKey });
            return Effect::Reply(Reply::Refuse(self.rules.methods));
        }
        self.first = First::Key;
        self.steps = vec![Step::Key];
        self.note(Event::StepPassed { step: Step::Key, key: Some(key.to_owned()) });
        Effect::Reply(Reply::Continue)
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
        if matches!(self.first, First::Password { .. } | First::Held) {
            return self.fail(Refusal::GivenUp, None);
        }
        self.stage = Stage::CheckingPassword { interactive };
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
        self.steps.retain(|step| *step == Step::Key);
        if self.is_judged_by_radius() {
            self.first = First::Held;
        } else if right {
            self.steps.push(Step::Password);
            self.note(Event::StepPassed { step: Step::Password, key: None });
        } else {
            let reason = match self.account() {
                Some(_) => Refusal::WrongPassword,
                None => Refusal::UnknownUser,
            };
            self.note(Event::StepFailed { step: Step::Password, reason });
        }
        if interactive { self.ask_second(now) } else { Effect::Reply(Reply::Continue) }
    }
}
