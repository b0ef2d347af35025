//! The second factor, or both, from a RADIUS server.
//!
//! Always holds: a server that accepted lets nobody in by itself: what it was given is claimed first,
//! so that it works once; and in no mode is an accept taken that came before anything but a password
//! was asked for, unless the settings say that password and code go together.
//!
//! With [`RadiusMode::Both`] the server hears nothing until the code was typed as well, so that up to
//! then all accounts and passwords look and take alike.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::{Claim, Effect, First, Machine, Stage, ask, prompt};
use crate::audit::{Event, Note, RadiusVerdict, Refusal, Step};
use crate::domain::{Factors, RadiusMode, Verifier, noted};

/// The most challenges in one dialog with a server.
pub const MAX_CHALLENGES: u32 = 8;
/// What is shorter is a choice from a list ("1: SMS, 2: call"), and no code.
const MIN_CODE: usize = 4;

/// How RADIUS servers are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RadiusRules {
    /// How for whom nothing else is set.
    pub mode: RadiusMode,
    /// Whether, in [`RadiusMode::Both`], the code is sent right behind the password.
    pub both_in_one: bool,
    /// What is sent as the password to begin with in [`RadiusMode::Challenge`].
    pub challenge_request: String,
    /// For how long a code that was accepted is not taken again.
    pub code_life: Duration,
}

impl Default for RadiusRules {
    fn default() -> Self {
        Self {
            mode: RadiusMode::Code,
            both_in_one: false,
            challenge_request: String::new(),
            code_life: Duration::from_secs(90),
        }
    }
}

impl RadiusRules {
    /// Whether a server that accepts after `round` challenges saw a password and nothing more.
    pub fn is_one_factor(&self, mode: RadiusMode, round: u32) -> bool {
        let alone = match mode {
            RadiusMode::Code => false,
            RadiusMode::Both => !self.both_in_one,
            RadiusMode::Challenge => true,
        };
        alone && round == 0
    }
}

/// A password with the code right behind it.
pub fn both_in_one(password: &SecretString, code: &SecretString) -> SecretString {
    let (password, code) = (password.expose_secret(), code.expose_secret());
    let mut both = String::with_capacity(password.len() + code.len());
    both.push_str(password);
    both.push_str(code);
    both.into()
}

/// What a server answered.
#[derive(Debug)]
pub struct RadiusAnswer {
    /// Which.
    pub server: String,
    /// What it decided.
    pub verdict: RadiusVerdict,
    /// Its text for the user, as it came.
    pub message: String,
}

/// Why there is no answer; neither text is secret.
#[derive(Debug)]
pub enum RadiusFault {
    /// No server gave one.
    Unanswered(String),
    /// What was typed cannot be asked of any.
    Unaskable(String),
}

/// What was given to a server, and is to work once. Not shown by `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Codes(Vec<Zeroizing<String>>);

impl Codes {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|code| code.as_str())
    }

    /// Adds the answer to a challenge, unless it is too short for a code.
    pub fn push_answer(&mut self, typed: &SecretString) {
        if typed.expose_secret().chars().count() >= MIN_CODE {
            self.push(typed);
        }
    }

    /// Without blanks, which a server may or may not heed: one more makes no other code.
    pub fn push(&mut self, code: &SecretString) {
        let typed = code.expose_secret();
        let mut bare = Zeroizing::new(String::with_capacity(typed.len()));
        bare.extend(typed.chars().filter(|c| !c.is_whitespace()));
        self.0.push(bare);
    }
}

impl std::fmt::Debug for Codes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Codes({})", self.0.len())
    }
}

/// What is kept of a dialog with a server.
#[derive(Debug, Default)]
pub(super) struct Dialog {
    begun: bool,
    /// The code that answers its first challenge.
    typed: Option<SecretString>,
    codes: Codes,
    /// What is still to be written down if what a server accepted is refused all the same.
    accepted: Vec<Note>,
}

impl Machine {
    /// How the account's servers are asked, if it has any.
    pub(super) fn radius_mode(&self) -> Option<RadiusMode> {
        let factor = self.account()?.factor;
        let is_radius = factor.factor == Verifier::Radius;
        is_radius.then(|| factor.mode.unwrap_or(self.rules.radius.mode))
    }

    /// Whether the account's password is a server's and not ours.
    pub(super) fn is_judged_by_radius(&self) -> bool {
        self.radius_mode() == Some(RadiusMode::Both)
    }

    /// Whether a server is to be asked before anything but the first factor is.
    pub(super) fn is_challenged_first(&self) -> bool {
        let passed = matches!(self.first, First::Password { right: true } | First::Key);
        passed && self.radius_mode() == Some(RadiusMode::Challenge)
    }

    /// Lets a server ask its questions.
    pub(super) fn begin_challenge(&mut self) -> Effect {
        // Each beginning may send somebody a message: whoever lets one dialog go is refused.
        if self.radius.begun {
            return self.fail(Refusal::GivenUp, None);
        }
        let request = self.rules.radius.challenge_request.clone();
        self.ask_radius(request.into(), 0)
    }

    /// Takes in what was typed where an authenticator's code is asked for.
    pub(super) fn check_radius(&mut self, typed: &SecretString) -> Effect {
        let is_empty = typed.expose_secret().trim().is_empty();
        match (self.radius_mode(), self.old_password.clone()) {
            // A server may take nothing at all for a wish to be asked, or for right.
            (Some(RadiusMode::Code), _) if is_empty => self.code_failed(Refusal::WrongCode, None),
            (Some(RadiusMode::Code), _) => {
                let code = SecretString::from(typed.expose_secret().trim());
                self.radius.codes.push(&code);
                self.ask_radius(code, 0)
            }
            (Some(RadiusMode::Both), Some(password)) if self.rules.radius.both_in_one => {
                let both = both_in_one(&password, &typed.expose_secret().trim().into());
                self.radius.codes.push(&both);
                self.ask_radius(both, 0)
            }
            (Some(RadiusMode::Both), Some(password)) => {
                // Nothing is typed by whom the server sends a code only after the password.
                let code = SecretString::from(typed.expose_secret().trim());
                self.radius.typed = (!is_empty).then_some(code);
                self.ask_radius(password, 0)
            }
            // Asked for where the password was wrong only, which was refused before.
            (Some(RadiusMode::Both | RadiusMode::Challenge) | None, _) => {
                self.fail(Refusal::WrongPassword, None)
            }
        }
    }

    /// Takes in the answer to a challenge.
    pub(super) fn answer_challenge(&mut self, typed: SecretString, round: u32) -> Effect {
        self.radius.codes.push_answer(&typed);
        self.ask_radius(typed, round)
    }

    fn ask_radius(&mut self, password: SecretString, round: u32) -> Effect {
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let user = account.name.clone();
        self.radius.begun = true;
        self.stage = Stage::AskingRadius { round };
        Effect::AskRadius { user, password, round }
    }

    pub(super) fn radius_answered(
        &mut self,
        answered: Result<RadiusAnswer, RadiusFault>,
    ) -> Effect {
        let round = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::AskingRadius { round } => round,
            other => return self.unexpected(other),
        };
        let answer = match answered {
            Ok(answer) => answer,
            Err(RadiusFault::Unaskable(error)) => {
                self.note(Event::RadiusUnanswered { error });
                return self.radius_failed(Refusal::RadiusRejected);
            }
            Err(RadiusFault::Unanswered(error)) => {
                self.note(Event::RadiusUnanswered { error });
                return self.unanswered();
            }
        };
        let RadiusAnswer { server, verdict, message } = answer;
        self.note(Event::RadiusAnswered {
            server: noted(&server),
            verdict,
            message: noted(message.trim()),
        });
        match verdict {
            RadiusVerdict::Reject => self.radius_failed(Refusal::RadiusRejected),
            RadiusVerdict::Challenge => self.challenged(&message, round + 1),
            RadiusVerdict::Accept if self.is_one_factor(round) => {
                self.radius_failed(Refusal::RadiusOneFactor)
            }
            RadiusVerdict::Accept => self.radius_accepted(),
        }
    }

    /// Whether a server that accepts after `round` challenges saw a password and nothing more.
    fn is_one_factor(&self, round: u32) -> bool {
        // Without a mode, nobody was to be asked: then nothing alone is enough.
        let mode = self.radius_mode().unwrap_or(RadiusMode::Challenge);
        self.rules.radius.is_one_factor(mode, round)
    }

    fn radius_accepted(&mut self) -> Effect {
        if self.first == First::Held {
            self.steps.push(Step::Password);
            self.given = self.given.with(Factors::PASSWORD);
        }
        let codes = std::mem::take(&mut self.radius.codes);
        self.radius.accepted.clone_from(&self.notes);
        self.claim(Claim::Radius { codes, life: self.rules.radius.code_life })
    }

    /// Refuses what the store did not take.
    pub(super) fn not_claimed(&mut self, reason: Refusal) -> Effect {
        self.notes.append(&mut self.radius.accepted);
        self.fail(reason, None)
    }

    /// The store took it, and wrote everything down.
    pub(super) fn forget_accepted(&mut self) {
        self.radius.accepted.clear();
    }

    fn challenged(&mut self, message: &str, round: u32) -> Effect {
        if round > MAX_CHALLENGES {
            return self.radius_failed(Refusal::TooManyAttempts);
        }
        if let Some(code) = self.radius.typed.take() {
            self.radius.codes.push(&code);
            return self.ask_radius(code, round);
        }
        self.stage = Stage::AwaitChallenge { round };
        ask(&prompt::challenge(message), false)
    }

    /// Refuses because nobody answered; says so to whom the first factor is known to be theirs.
    fn unanswered(&mut self) -> Effect {
        let passed = matches!(self.first, First::Password { right: true } | First::Key);
        if passed || self.steps.contains(&Step::Key) {
            self.parting = Some(prompt::RADIUS_DEAD);
        }
        self.radius_failed(Refusal::RadiusUnavailable)
    }

    fn radius_failed(&mut self, reason: Refusal) -> Effect {
        self.note(Event::StepFailed { step: Step::Radius, reason });
        self.fail(reason, None)
    }
}
