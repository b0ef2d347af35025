//! Binding an authenticator.

use secrecy::{ExposeSecret as _, SecretString};

use super::super::prompt::BindInput;
use super::super::{qr, totp};
use super::{Effect, Machine, Question, Reply, Stage, prompt};
use crate::audit::{Event, Refusal, Step};
use crate::domain::{Factors, TimeStep, UnixTime};

/// The most wrong codes while binding; the secret is on the screen, so this bounds only the dialog.
const MAX_BIND_TRIES: u32 = 10;

impl Machine {
    pub(super) fn ask_binding(
        &mut self,
        secret: totp::Secret,
        style: qr::Style,
        tries: u32,
        note: Option<&str>,
    ) -> Effect {
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let uri = totp::uri(&self.rules.issuer, &account.name, &secret);
        let text = prompt::bind(style, &uri, &secret, note);
        self.stage = Stage::AwaitBinding { secret, style, tries };
        Effect::Reply(Reply::Ask(Question {
            instruction: String::new(),
            prompt: Some((text, true)),
            slow: true,
        }))
    }

    pub(super) fn binding(
        &mut self,
        secret: totp::Secret,
        style: qr::Style,
        tries: u32,
        answer: &SecretString,
        now: UnixTime,
    ) -> Effect {
        let never = TimeStep(i64::MIN);
        let code = match prompt::bind_input(answer.expose_secret()) {
            BindInput::Invert => {
                let style = match style {
                    qr::Style::Inverted => qr::Style::HalfBlocks,
                    qr::Style::HalfBlocks | qr::Style::Ascii => qr::Style::Inverted,
                };
                return self.ask_binding(secret, style, tries, None);
            }
            BindInput::Ascii => return self.ask_binding(secret, qr::Style::Ascii, tries, None),
            BindInput::Renew => return Effect::MakeSecret,
            BindInput::Code(code) => code,
        };
        let (note, drift) = match totp::check(&secret, &code, now, never) {
            totp::Check::Matches(step) => return self.bind(secret, step),
            totp::Check::Drifted { seconds } => (prompt::binding_drift(seconds), Some(seconds)),
            totp::Check::Replayed(_) | totp::Check::Wrong => {
                (prompt::BINDING_WRONG.to_owned(), None)
            }
        };
        self.note(Event::StepFailed { step: Step::Binding, reason: Refusal::WrongCode });
        if tries + 1 >= MAX_BIND_TRIES {
            return self.fail(Refusal::WrongCode, drift);
        }
        match (
            self.account().map(|account| account.id.clone()),
            self.ask_binding(secret, style, tries + 1, Some(&note)),
        ) {
            // Told at once: somebody may sit before a screen whose codes never fit.
            (Some(account), Effect::Reply(then)) => {
                Effect::Note { drift, account, notes: self.take_notes(), then: Box::new(then) }
            }
            (_, other) => other,
        }
    }

    fn bind(&mut self, secret: totp::Secret, step: TimeStep) -> Effect {
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let (account, epoch) = (account.id.clone(), account.epoch);
        Effect::Bind { account, epoch, secret, step, notes: self.take_notes() }
    }

    pub(super) fn bound(&mut self, epoch: i64, codes: &[SecretString]) -> Effect {
        self.steps.push(Step::Binding);
        self.given = self.given.with(Factors::OTP);
        self.code_at = Some(self.at);
        if let Some((Some(account), _)) = &mut self.found {
            account.epoch = epoch;
            account.drift = None;
            account.recovery_left = u32::try_from(codes.len()).unwrap_or(u32::MAX);
        }
        self.stage = Stage::AwaitRecoveryRead;
        Effect::Reply(Reply::Ask(Question {
            instruction: String::new(),
            prompt: Some((prompt::recovery_codes(codes), true)),
            slow: true,
        }))
    }
}
