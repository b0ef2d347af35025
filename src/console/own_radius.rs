//! A fresh code of somebody whose codes a RADIUS server checks, before they change their own account.
//!
//! Always holds: as in a login, what a server accepted is claimed before it counts, so that it works
//! once; a server that saw a password and nothing more proves nothing; no answer is no proof.

use anyhow::bail;
use secrecy::{ExposeSecret as _, SecretString};

use super::dialog::Dialog;
use super::own::{Own, TRIES, Wrong, said};
use crate::audit::{Event, Note, RadiusVerdict, Refusal, Step};
use crate::auth::machine::{Claim, Codes, MAX_CHALLENGES, both_in_one};
use crate::auth::prompt;
use crate::domain::{RadiusMode, noted, printable};
use crate::radius::{Error, Request, State, Verdict};

/// Characters of an error that are kept: it names each server and says why.
const MAX_ERROR: usize = 2000;
/// What is said where no server answers.
const DEAD: &str = "the RADIUS servers, which check your codes, do not answer, so nothing was changed: \
                    try again later, or tell your administrator";

/// Asks as the servers want it until they accept, or a few answers were wrong.
pub(super) async fn prove(
    own: &Own<'_>,
    dialog: &mut Dialog<'_>,
    mode: RadiusMode,
) -> anyhow::Result<()> {
    if mode == RadiusMode::Both && !dialog.has_terminal() {
        bail!("your RADIUS server wants a password and a code: connect with a terminal (ssh -t)");
    }
    for left in (0..TRIES).rev() {
        let mut asking = Asking { own, mode, codes: Codes::default(), notes: Vec::new(), round: 0 };
        let reason = match asking.attempt(dialog).await? {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        let notes = asking.notes;
        own.failed(Wrong { step: Step::Radius, reason, drift: None, notes }).await?;
        dialog.say(said(reason)).await?;
        if left > 0 {
            own.account().await?; // Unless that was the one that locks.
        }
    }
    bail!("too many wrong answers: nothing was changed");
}

/// One dialog with a server.
struct Asking<'a> {
    own: &'a Own<'a>,
    mode: RadiusMode,
    /// What is to work once.
    codes: Codes,
    /// What a server decided, to be written down with what comes of it.
    notes: Vec<Note>,
    /// Challenges so far.
    round: u32,
}

impl Asking<'_> {
    /// Asks until a server has decided; why it does not count otherwise.
    async fn attempt(&mut self, dialog: &mut Dialog<'_>) -> anyhow::Result<Result<(), Refusal>> {
        let rules = &self.own.caller.service.rules.radius;
        let (mut answer, mut typed) = self.begin(dialog).await?;
        if self.mode == RadiusMode::Code && answer.expose_secret().is_empty() {
            // A server may take nothing at all for right.
            return Ok(Err(Refusal::WrongCode));
        }
        let mut state = None;
        loop {
            let (verdict, message) = self.ask(&answer, state.take()).await?;
            match verdict {
                Verdict::Reject => return Ok(Err(Refusal::RadiusRejected)),
                Verdict::Accept if rules.is_one_factor(self.mode, self.round) => {
                    return Ok(Err(Refusal::RadiusOneFactor));
                }
                Verdict::Accept => {
                    let codes = std::mem::take(&mut self.codes);
                    let claim = Claim::Radius { codes, life: rules.code_life };
                    return self.own.claim(claim, self.notes.clone()).await;
                }
                Verdict::Challenge(left) => state = Some(left),
            }
            self.round += 1;
            if self.round > MAX_CHALLENGES {
                return Ok(Err(Refusal::TooManyAttempts));
            }
            answer = match typed.take() {
                Some(code) => code,
                None => {
                    let answer = dialog.ask(&prompt::challenge(&message), false).await?;
                    self.own.may_try().await?;
                    answer
                }
            };
            self.codes.push_answer(&answer);
        }
    }

    /// What a server is sent to begin with, and what then answers its first challenge.
    async fn begin(
        &mut self,
        dialog: &mut Dialog<'_>,
    ) -> anyhow::Result<(SecretString, Option<SecretString>)> {
        let rules = &self.own.caller.service.rules.radius;
        let trimmed = |typed: &SecretString| SecretString::from(typed.expose_secret().trim());
        let begin = match self.mode {
            RadiusMode::Challenge => (rules.challenge_request.clone().into(), None),
            RadiusMode::Code => {
                let code = trimmed(&dialog.ask(prompt::CODE, false).await?);
                self.codes.push(&code);
                (code, None)
            }
            RadiusMode::Both => {
                let password = dialog.ask(prompt::PASSWORD, false).await?;
                let code = trimmed(&dialog.ask(prompt::CODE, false).await?);
                if rules.both_in_one {
                    let both = both_in_one(&password, &code);
                    self.codes.push(&both);
                    (both, None)
                } else {
                    // Nothing is typed by whom the server sends a code only after the password.
                    (password, Some(code).filter(|code| !code.expose_secret().is_empty()))
                }
            }
        };
        // Where the server asks first, it may send somebody a message.
        self.own.may_try().await?;
        Ok(begin)
    }

    /// One question to the servers.
    async fn ask(
        &mut self,
        password: &SecretString,
        state: Option<State>,
    ) -> anyhow::Result<(Verdict, String)> {
        let caller = self.own.caller;
        let source = caller.source.ip().to_string();
        let user = caller.who.user().as_str();
        let Some(client) = &caller.service.radius else {
            return self.unanswered("no RADIUS server is configured").await;
        };
        let request = Request { user, password, calling_station: &source, state };
        let reply = match client.authenticate(request).await {
            Ok(reply) => reply,
            // No server could have accepted it.
            Err(error @ Error::Invalid(_)) => {
                self.notes.push(self.own.note(unanswered(&error.to_string())));
                return Ok((Verdict::Reject, String::new()));
            }
            Err(error) => return self.unanswered(&error.to_string()).await,
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
                self.own.store.record(self.own.now(), &self.own.context, answered).await?;
            }
            RadiusVerdict::Accept | RadiusVerdict::Reject => {
                self.notes.push(self.own.note(answered));
            }
        }
        Ok((reply.verdict, reply.message))
    }

    /// Writes down that nobody answered, and ends the command.
    async fn unanswered<T>(&self, error: &str) -> anyhow::Result<T> {
        tracing::error!(error = printable(error), "nobody proves who they are by RADIUS");
        self.own.store.record(self.own.now(), &self.own.context, unanswered(error)).await?;
        self.own.refuse(Refusal::RadiusUnavailable, DEAD).await
    }
}

fn unanswered(error: &str) -> Event {
    let text: String = error.chars().take(MAX_ERROR).collect();
    Event::RadiusUnanswered { error: printable(&text) }
}
