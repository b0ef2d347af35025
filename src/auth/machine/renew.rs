//! A new password in place of a one-time one.

use secrecy::{ExposeSecret as _, SecretString};

use super::super::account::Standing;
use super::super::password;
use super::{Claim, Effect, Machine, Stage, ask, prompt};
use crate::audit::{Event, Refusal, Step};
use crate::domain::UnixTime;

/// The most new passwords that may break a rule.
const MAX_NEW_PASSWORDS: u32 = 6;

impl Machine {
    pub(super) fn ask_new_password(&mut self, broken: Option<&str>, tries: u32) -> Effect {
        if tries >= MAX_NEW_PASSWORDS {
            return self.fail(Refusal::PasswordRejected, None);
        }
        self.stage = Stage::AwaitNewPassword { tries };
        match broken {
            None => ask(prompt::NEW_PASSWORD, false),
            Some(why) => ask(&prompt::new_password_again(why), false),
        }
    }

    pub(super) fn new_password(&mut self, new: SecretString, tries: u32) -> Effect {
        let (Some(old), Some(account)) = (&self.old_password, self.account()) else {
            return self.fail(Refusal::PasswordRejected, None);
        };
        match password::check_new(&new, Some(old), &account.name, &self.rules.password) {
            Ok(()) => {
                self.stage = Stage::AwaitRepeat { new, tries };
                ask(prompt::REPEAT, false)
            }
            Err(broken) => {
                let reason = Refusal::PasswordRejected;
                self.note(Event::StepFailed { step: Step::NewPassword, reason });
                self.ask_new_password(Some(&broken.to_string()), tries + 1)
            }
        }
    }

    pub(super) fn repeated(
        &mut self,
        new: SecretString,
        again: &SecretString,
        tries: u32,
    ) -> Effect {
        if new.expose_secret() != again.expose_secret() {
            return self.ask_new_password(Some(prompt::NO_MATCH), tries + 1);
        }
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let (account, epoch) = (account.id.clone(), account.epoch);
        Effect::SetPassword { account, epoch, password: new, notes: self.take_notes() }
    }

    pub(super) fn password_set(&mut self, epoch: i64, now: UnixTime) -> Effect {
        self.old_password = None;
        self.steps.push(Step::NewPassword);
        if let Some((Some(account), _)) = &mut self.found {
            account.epoch = epoch;
            account.one_time = false;
            account.password_binds = account.otp.is_none();
        }
        if self.needs_no_code(now) {
            return self.let_in();
        }
        match self.standing(now) {
            Standing::MayBind => Effect::MakeSecret,
            Standing::Bound | Standing::Radius => self.sign_in(Claim::Nothing),
            Standing::Closed(reason) => self.fail(reason, None),
        }
    }
}
