//! A fresh code of somebody whose codes a RADIUS server checks, when they have to prove again who they
//! are, question by question.
//!
//! Always holds: as in a login, what a server accepted is claimed before it counts, so that it works
//! once; a server that saw a password and nothing more proves nothing; no answer is no proof.

use secrecy::{ExposeSecret as _, SecretString};

use super::own::Own;
use crate::audit::{Event, Note, RadiusVerdict, Refusal};
use crate::auth::machine::{Claim, Codes, MAX_CHALLENGES, both_in_one};
use crate::domain::{RadiusMode, noted, printable};
use crate::radius::{Error, Request, State, Verdict};

/// Characters of an error that are kept: it names each server and says why.
const MAX_ERROR: usize = 2000;

/// One dialog with a server. What was typed is not shown by `Debug`, which it does not have.
pub(super) struct Rounds {
    mode: RadiusMode,
    /// Which answer is waited for.
    wants: Wants,
    /// What the code is sent with, or behind.
    password: Option<SecretString>,
    /// The code that answers the first challenge.
    code: Option<SecretString>,
    /// What the answer to the last challenge belongs to.
    state: Option<State>,
    /// What is to work once.
    codes: Codes,
    /// What a server decided, to be written down with what comes of it.
    notes: Vec<Note>,
    /// Challenges so far.
    round: u32,
}

/// An answer that is waited for.
#[derive(Clone, Copy)]
enum Wants {
    Password,
    Code,
    /// What a server asked for.
    Challenge,
}

/// What follows an answer.
pub(super) enum Next {
    /// A question.
    Ask(String),
    /// Nothing more: a server accepted, or why it does not count otherwise.
    Over(Result<(), Refusal>),
}

impl Rounds {
    /// One with nothing said yet.
    pub(super) fn new(mode: RadiusMode) -> Self {
        let wants = match mode {
            RadiusMode::Code => Wants::Code,
            RadiusMode::Both => Wants::Password,
            RadiusMode::Challenge => Wants::Challenge,
        };
        let (password, code, state, codes, notes) = Default::default();
        Self { mode, wants, password, code, state, codes, notes, round: 0 }
    }

    /// What a server decided and was not written down yet.
    pub(super) fn into_notes(self) -> Vec<Note> {
        self.notes
    }

    /// The first question, which may be a server's.
    pub(super) async fn begin(&mut self, own: &Own<'_>) -> anyhow::Result<Next> {
        match self.wants {
            Wants::Password => Ok(Next::Ask(own.purpose.password_question().to_owned())),
            Wants::Code => Ok(Next::Ask(own.purpose.code_question())),
            Wants::Challenge => {
                // It may send somebody a message.
                own.may_try().await?;
                let request = own.caller.service.rules.radius.challenge_request.clone();
                self.send(own, request.into()).await
            }
        }
    }

    /// Takes an answer in.
    pub(super) async fn answer(
        &mut self,
        own: &Own<'_>,
        typed: &SecretString,
    ) -> anyhow::Result<Next> {
        match self.wants {
            Wants::Password => {
                self.password = Some(typed.clone());
                self.wants = Wants::Code;
                Ok(Next::Ask(own.purpose.code_question()))
            }
            Wants::Code => {
                may_ask(own).await?;
                self.take_code(own, SecretString::from(typed.expose_secret().trim())).await
            }
            Wants::Challenge => {
                may_ask(own).await?;
                self.codes.push_answer(typed);
                self.send(own, typed.clone()).await
            }
        }
    }

    /// Sends the code, alone or as the mode says.
    async fn take_code(&mut self, own: &Own<'_>, code: SecretString) -> anyhow::Result<Next> {
        let is_empty = code.expose_secret().is_empty();
        let Some(password) = self.password.take() else {
            // A server may take nothing at all for right.
            if is_empty {
                return Ok(Next::Over(Err(Refusal::WrongCode)));
            }
            self.codes.push(&code);
            return self.send(own, code).await;
        };
        if own.caller.service.rules.radius.both_in_one {
            let both = both_in_one(&password, &code);
            self.codes.push(&both);
            return self.send(own, both).await;
        }
        // Nothing is typed by whom the server sends a code only after the password.
        self.code = (!is_empty).then_some(code);
        self.send(own, password).await
    }

    /// Sends a password, a code or an answer, and takes in what is said to it.
    async fn send(&mut self, own: &Own<'_>, mut sent: SecretString) -> anyhow::Result<Next> {
        let rules = &own.caller.service.rules.radius;
        loop {
            let (verdict, message) = self.ask(own, &sent).await?;
            match verdict {
                Verdict::Reject => return Ok(Next::Over(Err(Refusal::RadiusRejected))),
                Verdict::Accept if rules.is_one_factor(self.mode, self.round) => {
                    return Ok(Next::Over(Err(Refusal::RadiusOneFactor)));
                }
                Verdict::Accept => {
                    let codes = std::mem::take(&mut self.codes);
                    let claim = Claim::Radius { codes, life: rules.code_life };
                    return Ok(Next::Over(own.claim(claim, self.notes.clone()).await?));
                }
                Verdict::Challenge(state) => self.state = Some(state),
            }
            self.round += 1;
            if self.round > MAX_CHALLENGES {
                return Ok(Next::Over(Err(Refusal::TooManyAttempts)));
            }
            let Some(code) = self.code.take() else {
                self.wants = Wants::Challenge;
                return Ok(Next::Ask(own.purpose.challenge(&message)));
            };
            self.codes.push(&code);
            sent = code;
        }
    }

    /// One question to the servers.
    async fn ask(
        &mut self,
        own: &Own<'_>,
        password: &SecretString,
    ) -> anyhow::Result<(Verdict, String)> {
        let source = own.caller.source.ip().to_string();
        let user = own.caller.who.user().as_str();
        let Some(client) = &own.caller.service.radius else {
            return unanswered(own, "no RADIUS server is configured").await;
        };
        let state = self.state.take();
        let request = Request { user, password, calling_station: &source, state };
        let reply = match client.authenticate(request).await {
            Ok(reply) => reply,
            // No server could have accepted it.
            Err(error @ Error::Invalid(_)) => {
                self.notes.push(own.note(not_answered(&error.to_string())));
                return Ok((Verdict::Reject, String::new()));
            }
            Err(error) => return unanswered(own, &error.to_string()).await,
        };
        let verdict = match reply.verdict {
            Verdict::Accept => RadiusVerdict::Accept,
            Verdict::Reject => RadiusVerdict::Reject,
            Verdict::Challenge(_) => RadiusVerdict::Challenge,
        };
        let message = noted(reply.message.trim());
        let answered = Event::RadiusAnswered { server: noted(&reply.server), verdict, message };
        match verdict {
            // Its user may let it go, and what happened until then is written down all the same.
            RadiusVerdict::Challenge => {
                own.store.record(own.now(), &own.context, answered).await?;
            }
            RadiusVerdict::Accept | RadiusVerdict::Reject => self.notes.push(own.note(answered)),
        }
        Ok((reply.verdict, reply.message))
    }
}

/// Refuses who tries too fast, and whose account was locked or changed since the last question.
async fn may_ask(own: &Own<'_>) -> anyhow::Result<()> {
    own.may_try().await?;
    own.account().await.map(drop)
}

/// Writes down that nobody answered, and refuses.
async fn unanswered<T>(own: &Own<'_>, error: &str) -> anyhow::Result<T> {
    tracing::error!(error = printable(error), "nobody proves who they are by RADIUS");
    own.store.record(own.now(), &own.context, not_answered(error)).await?;
    own.refuse(Refusal::RadiusUnavailable, &own.purpose.unanswered()).await
}

fn not_answered(error: &str) -> Event {
    let text: String = error.chars().take(MAX_ERROR).collect();
    Event::RadiusUnanswered { error: printable(&text) }
}
