//! How somebody who is signed in proves again who they are, question by question: by a code of their
//! authenticator, or as RADIUS servers ask (see `own_radius`).
//!
//! Always holds: a code works once, by the same compare-and-set as in a login; wrong answers count
//! towards the same lock; a few of them end it; what is asked does not depend on where it is asked: in a
//! terminal, on standard input, or by the inner SSH.

use anyhow::bail;
use secrecy::{ExposeSecret as _, SecretString};

use super::dialog::Dialog;
use super::own::{CHANGED, Own};
use super::own_radius::{Next, Rounds};
use crate::audit::{Event, Note, Refusal, Step};
use crate::auth::account::WrongCode;
use crate::auth::machine::Claim;
use crate::auth::prompt;
use crate::domain::{AccountName, RadiusMode, TargetName};
use crate::store::FailureNote;

/// Wrong answers after which it ends.
pub(super) const TRIES: u32 = 3;

/// What somebody proves for that the account is theirs.
pub(super) enum Purpose {
    /// A command on their own account.
    Command(String),
    /// To be an account of a target.
    Target(TargetName, AccountName),
}

impl Purpose {
    /// The event that it was refused.
    pub(super) fn refused(&self, reason: Refusal) -> Event {
        match self {
            Self::Command(command) => Event::CommandRefused { command: command.clone(), reason },
            Self::Target(target, account) => {
                let (target, account) = (target.clone(), account.to_string());
                Event::AccountRefused { target, account, reason }
            }
        }
    }

    /// The event that a wrong answer refused it; the step's own says what was wrong.
    fn failed(&self, reason: Refusal) -> Event {
        match self {
            Self::Command(_) => self.refused(reason),
            Self::Target(..) => self.refused(Refusal::StepUp),
        }
    }

    /// The event that a right answer let it go on, where what comes of it does not say so itself.
    pub(super) fn passed(&self) -> Option<Event> {
        match self {
            Self::Command(_) => None,
            Self::Target(target, account) => {
                let (target, account) = (target.clone(), account.clone());
                Some(Event::StepUpPassed { target, account })
            }
        }
    }

    /// Asks for a code.
    pub(super) fn code_question(&self) -> String {
        match self {
            Self::Command(_) => prompt::CODE.to_owned(),
            Self::Target(..) => prompt::step_up(&self.to_string()),
        }
    }

    /// Asks for the password that a RADIUS server knows. It is not the target's, whose name ssh puts before
    /// the question under `-J`.
    pub(super) fn password_question(&self) -> &'static str {
        match self {
            Self::Command(_) => prompt::PASSWORD,
            Self::Target(..) => prompt::RADIUS_PASSWORD,
        }
    }

    /// Asks what a RADIUS server asks.
    pub(super) fn challenge(&self, message: &str) -> String {
        let asked = prompt::challenge(message);
        match self {
            Self::Command(_) => asked,
            Self::Target(..) => format!("For {self}, your RADIUS server asks:\n{asked}"),
        }
    }

    /// What is told whose codes RADIUS servers check, where the authenticator's is needed.
    pub(super) fn elsewhere(&self) -> &'static str {
        match self {
            Self::Command(_) => {
                "your codes are checked by a RADIUS server, so your authenticator is looked after where \
                 that is: ask your administrator"
            }
            Self::Target(..) => CHANGED,
        }
    }

    /// What is told where no RADIUS server answers.
    pub(super) fn unanswered(&self) -> String {
        let left = match self {
            Self::Command(_) => "nothing was changed".to_owned(),
            Self::Target(..) => format!("{self} was not reached"),
        };
        format!(
            "the RADIUS servers, which check your codes, do not answer, so {left}: try again later, or \
             tell your administrator"
        )
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command(command) => f.write_str(command),
            Self::Target(target, account) => write!(f, "{account}@{target}"),
        }
    }
}

/// Which codes prove who somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The authenticator's.
    Code,
    /// The authenticator's, or a recovery code: for who has lost it.
    CodeOrRecovery,
}

/// Where a try to prove it has come to.
pub(super) enum Tried {
    /// It is proven.
    Right,
    /// It is not; what to say of it. This was counted and written down.
    Wrong(String),
    /// A question has to be answered first.
    Asks(Question),
}

/// A question that waits for its answer.
pub(super) struct Question {
    pub(super) text: String,
    asker: Asker,
}

/// Who judges the answer.
enum Asker {
    Authenticator(Proof),
    Radius(Box<Rounds>),
}

/// An answer that is not right.
pub(super) struct Wrong {
    pub(super) step: Step,
    pub(super) reason: Refusal,
    pub(super) drift: Option<i64>,
    /// What happened before it was found to be.
    pub(super) notes: Vec<Note>,
}

impl Wrong {
    /// What to say of it.
    fn said(&self) -> String {
        let text = match self.reason {
            Refusal::ReplayedCode => "That code was used already: wait for the next one.",
            Refusal::WrongRecoveryCode => "That recovery code is wrong, or was used.",
            Refusal::WrongPassword => "That password is wrong.",
            Refusal::TooManyAttempts => "The RADIUS server asked too many questions.",
            Refusal::RadiusRejected => "The RADIUS server rejected that.",
            Refusal::RadiusOneFactor => {
                "The RADIUS server asked for no code, so its answer does not count: tell your \
                 administrator."
            }
            _ => "That code is wrong.",
        };
        match self.drift {
            Some(seconds) => format!("{text} Your phone's clock is {}.", prompt::off(seconds)),
            None => text.to_owned(),
        }
    }
}

impl Own<'_> {
    /// Asks until an answer is right, or a few were wrong.
    pub(super) async fn prove(&self, dialog: &mut Dialog<'_>, proof: Proof) -> anyhow::Result<()> {
        if self.radius_mode().await? == Some(RadiusMode::Both) && !dialog.has_terminal() {
            let text = format!(
                "your RADIUS server wants a password with the code, so connect with a terminal: '{}'",
                self.caller.own_line("-t ", &self.purpose.to_string())
            );
            return self.refuse(Refusal::NotOffered, &text).await;
        }
        for _ in 0..TRIES {
            let mut tried = self.begin(proof).await?;
            let said = loop {
                tried = match tried {
                    Tried::Right => return Ok(()),
                    Tried::Wrong(said) => break said,
                    Tried::Asks(question) => {
                        let typed = dialog.ask(&question.text, false).await?;
                        self.answer(question, &typed).await?
                    }
                };
            };
            dialog.say(&said).await?;
        }
        bail!("too many wrong answers: nothing was changed");
    }

    /// Begins a try, unless the account is locked or was changed.
    pub(super) async fn begin(&self, proof: Proof) -> anyhow::Result<Tried> {
        if let Some(mode) = self.radius_mode().await? {
            let mut rounds = Box::new(Rounds::new(mode));
            let next = rounds.begin(self).await?;
            return self.follow(rounds, next).await;
        }
        self.bound().await?;
        let text = match proof {
            Proof::Code => self.purpose.code_question(),
            Proof::CodeOrRecovery => "6-digit code, or a recovery code: ".to_owned(),
        };
        Ok(Tried::Asks(Question { text, asker: Asker::Authenticator(proof) }))
    }

    /// Takes the answer to a question in.
    pub(super) async fn answer(
        &self,
        question: Question,
        typed: &SecretString,
    ) -> anyhow::Result<Tried> {
        match question.asker {
            Asker::Authenticator(proof) => {
                self.may_try().await?;
                match self.try_code(typed, proof).await? {
                    Ok(()) => Ok(Tried::Right),
                    Err(wrong) => self.failed(wrong).await.map(Tried::Wrong),
                }
            }
            Asker::Radius(mut rounds) => {
                let next = rounds.answer(self, typed).await?;
                self.follow(rounds, next).await
            }
        }
    }

    /// What comes of what RADIUS servers said.
    async fn follow(&self, rounds: Box<Rounds>, next: Next) -> anyhow::Result<Tried> {
        match next {
            Next::Ask(text) => Ok(Tried::Asks(Question { text, asker: Asker::Radius(rounds) })),
            Next::Over(Ok(())) => Ok(Tried::Right),
            Next::Over(Err(reason)) => {
                let notes = rounds.into_notes();
                let wrong = Wrong { step: Step::Radius, reason, drift: None, notes };
                self.failed(wrong).await.map(Tried::Wrong)
            }
        }
    }

    /// Uses a code up, if it is right.
    async fn try_code(
        &self,
        answer: &SecretString,
        proof: Proof,
    ) -> anyhow::Result<Result<(), Wrong>> {
        let (account, otp) = self.bound().await?;
        let wrong = |step, reason, drift| Wrong { step, reason, drift, notes: Vec::new() };
        let claim = match otp.claim(&account.id, answer.expose_secret(), self.now()) {
            Ok(Claim::RecoveryCode(_)) if proof == Proof::Code => {
                let text = "a recovery code does not do here: 'otp rebind' takes one";
                return self.refuse(Refusal::NotOffered, text).await;
            }
            Ok(claim) => claim,
            Err(WrongCode { reason, drift }) => return Ok(Err(wrong(Step::Code, reason, drift))),
        };
        let step = claim.step().unwrap_or(Step::Code);
        let claimed = self.claim(claim, Vec::new()).await?;
        Ok(claimed.map_err(|reason| wrong(step, reason, None)))
    }

    /// Counts a wrong answer, and waits as a login would; gives what to say of it.
    pub(super) async fn failed(&self, wrong: Wrong) -> anyhow::Result<String> {
        let said = wrong.said();
        let Wrong { step, reason, drift, mut notes } = wrong;
        let rules = &self.caller.service.throttle;
        let account = Some(self.caller.who.account().clone());
        let counts = reason.counts();
        // They are signed in: what came before was right.
        let code = reason.is_of_code();
        let failure = FailureNote { account, reason, counts, code, drift };
        let refused = self.purpose.failed(reason);
        notes.push(self.note(Event::StepFailed { step, reason }));
        let (whose, context, now) = (self.whose(), &self.context, self.now());
        let failed = self.store.fail_with(refused, failure, notes, &whose, rules, context, now);
        let failures = failed.await?;
        if counts {
            tokio::time::sleep(rules.backoff(failures)).await;
        }
        Ok(said)
    }
}
