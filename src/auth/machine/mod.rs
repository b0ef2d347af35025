//! Signing in as a state machine: `(Machine, Input, now) -> (Machine, Effect)`.
//!
//! Always holds:
//! - [`Authenticated`] is made in one place, after the store said that it wrote the session down,
//!   which it does only if what was given is enough by the rule that holds for the account: a code, a
//!   recovery code or a binding that was claimed *and* a factor before it, unless the rule names
//!   networks from which less will do.
//! - The user name is fixed by the first request (RFC 4252 section 5 lets it change; we do not).
//! - What a client sees before it is through does not tell an unknown, locked, disabled or unbound
//!   account, or a wrong password, from a wrong code: the same prompts, then the same refusal; but a
//!   certificate that was shown is refused at once.
//! - A dialog is short: answers and rounds are counted, whatever mix of methods they come by.
//!
//! Nothing here waits, reads a clock or touches a socket: an [`Effect`] says what to do next, and
//! its [`Input`] brings back what came of it. `Input::SignedIn(Ok)` takes an [`Opened`], which the store
//! makes alone, once it wrote the session. Where a new second factor goes is told in
//! `docs/architecture.md`.

mod bind;
mod first;
mod messages;
mod radius;
mod renew;
mod second;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use secrecy::SecretString;

pub use messages::{
    Attempt, Certified, Claim, Claimed, Effect, Input, Opened, Question, Reply, Request,
};
pub use radius::{Codes, MAX_CHALLENGES, RadiusAnswer, RadiusFault, RadiusRules, both_in_one};

use super::account::{Account, Standing, Throttle};
use super::{password, prompt, qr, totp};
use crate::audit::{Event, Note, Refusal, Step};
use crate::domain::{Factors, Id, Role, UnixTime, UserName, Verifier};

/// What a client may do before it is let in.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The name that authenticator apps show beside the code.
    pub issuer: String,
    /// Which methods are offered.
    pub methods: Methods,
    /// The most secrets (passwords, codes) that one connection may try.
    pub max_answers: u32,
    /// What a new password must keep to.
    pub password: password::Rules,
    /// How RADIUS servers are asked.
    pub radius: RadiusRules,
    /// Whether users may come with certificates. What a client offers does not show whether a key is to
    /// come with one: every key may be tried then, and is refused once it has signed.
    pub certificates: bool,
}

/// The methods of RFC 4252 and 4256 that are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Methods {
    pub password: bool,
    pub publickey: bool,
    pub keyboard_interactive: bool,
}

impl Methods {
    /// Only keyboard-interactive, as after a first factor.
    pub const INTERACTIVE: Self =
        Self { password: false, publickey: false, keyboard_interactive: true };
}

/// The most requests of any kind on one connection before it is signed in.
const MAX_ROUNDS: u32 = 64;

/// Proof that somebody signed in with the factors that are asked of them, and that the store knows of
/// their session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    user: UserName,
    account: Id,
    role: Role,
    epoch: i64,
    given: Factors,
    code_given: bool,
    code_at: Option<UnixTime>,
}

impl Authenticated {
    /// Who.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// The account's id.
    pub fn account(&self) -> &Id {
        &self.account
    }

    /// The account's role when it signed in.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The account's epoch; a newer one ends the session.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The factors that were given.
    pub fn given(&self) -> Factors {
        self.given
    }

    /// Whether a code was among them that was used up for this very session, and not one that a
    /// certificate stands for.
    pub fn code_given(&self) -> bool {
        self.code_given
    }

    /// When a code was given, if one was: the authenticator's, or one that a RADIUS server accepted, and no
    /// recovery code.
    pub fn code_at(&self) -> Option<UnixTime> {
        self.code_at
    }
}

/// A sign-in that its client left in the middle.
#[derive(Debug, Clone)]
pub struct GivenUp {
    /// The account, if it is one of ours.
    pub account: Option<Id>,
    /// Whether it counts towards the lock: a password does, which may have been a guess.
    pub counts: bool,
    /// Whether the account was locked for this source already.
    pub locked: bool,
    /// What happened until then.
    pub notes: Vec<Note>,
}

/// How far the first factor got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Missing,
    Password {
        right: bool,
    },
    /// A password that a RADIUS server is to judge together with the code.
    Held,
    /// A key, or a certificate for one.
    Key,
}

impl First {
    /// Whether a password was given, right or wrong.
    fn is_password(self) -> bool {
        matches!(self, Self::Password { .. } | Self::Held)
    }
}

/// Which answer is waited for.
#[derive(Debug)]
enum Stage {
    /// None: a method has to be chosen.
    Idle,
    /// An effect's outcome; then the request goes on.
    Pending(Request),
    /// A password typed or sent; by keyboard-interactive if so.
    CheckingPassword {
        interactive: bool,
    },
    AwaitPassword,
    AwaitCode,
    AwaitNewPassword {
        tries: u32,
    },
    AwaitRepeat {
        new: SecretString,
        tries: u32,
    },
    AwaitBinding {
        secret: totp::Secret,
        style: qr::Style,
        tries: u32,
    },
    AwaitRecoveryRead,
    AwaitNoticeRead(Authenticated),
    /// A RADIUS server's answer, after so many challenges.
    AskingRadius {
        round: u32,
    },
    /// The answer to its challenge.
    AwaitChallenge {
        round: u32,
    },
    /// Why somebody is refused, which was written down before.
    AwaitPartingRead,
    /// Signed in or cut off: nothing more is taken.
    Over,
}

/// Where one connection stands in signing in.
#[derive(Debug)]
pub struct Machine {
    rules: std::sync::Arc<Rules>,
    /// Where the client connected from.
    source: IpAddr,
    /// As the client gave it, first.
    user: Option<String>,
    /// `None` until looked up; then the account, if there is one, and its failures.
    found: Option<(Option<Box<Account>>, Throttle)>,
    /// The one-time or old password, for the rules of the new one.
    old_password: Option<SecretString>,
    first: First,
    /// What was proven so far.
    given: Factors,
    /// The fingerprint of the key among it.
    key: Option<String>,
    /// When a code was given that is no recovery code.
    code_at: Option<UnixTime>,
    radius: radius::Dialog,
    /// What to tell before the next refusal.
    parting: Option<&'static str>,
    stage: Stage,
    steps: Vec<Step>,
    notes: Vec<Note>,
    /// When the input came that is worked on.
    at: UnixTime,
    answers: u32,
    rounds: u32,
    offers: u32,
}

impl Machine {
    /// A connection from `source` on which nothing was said yet.
    pub fn new(rules: std::sync::Arc<Rules>, source: IpAddr) -> Self {
        Self {
            rules,
            source,
            user: None,
            found: None,
            old_password: None,
            first: First::Missing,
            given: Factors::NONE,
            key: None,
            code_at: None,
            radius: radius::Dialog::default(),
            parting: None,
            stage: Stage::Idle,
            steps: Vec::new(),
            notes: Vec::new(),
            at: UnixTime(0),
            answers: 0,
            rounds: 0,
            offers: 0,
        }
    }

    /// The user name of the first request, as the client gave it.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// What happened and was not yet handed out with an effect.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    fn note(&mut self, event: Event) {
        self.notes.push(Note { at: self.at, event });
    }

    /// The failure that is left if the client goes now: of a first factor that was given, right or
    /// wrong, and no second one after it. Otherwise guessing a password would cost nothing up to the
    /// code, and nobody would hear of a key in the wrong hands.
    pub fn given_up(&self) -> Option<GivenUp> {
        let waits = !matches!(self.stage, Stage::AwaitRecoveryRead | Stage::AwaitNoticeRead(_));
        let password = self.first.is_password();
        let tried = password || self.first == First::Key || !self.notes.is_empty();
        (waits && tried).then(|| GivenUp {
            account: self.account().map(|account| account.id.clone()),
            counts: password,
            locked: self.is_locked(),
            notes: self.notes.clone(),
        })
    }

    /// Takes one input in, at `now`.
    pub fn step(mut self, input: Input, now: UnixTime) -> (Self, Effect) {
        self.at = now;
        let effect = match input {
            Input::Client(user, request) => self.client(user, request, now),
            Input::Found(account, throttle) => {
                self.found = Some((account, throttle));
                match std::mem::replace(&mut self.stage, Stage::Idle) {
                    Stage::Pending(request) => self.request(request, now),
                    other => self.unexpected(other),
                }
            }
            Input::PasswordChecked(right) => self.password_checked(right, now),
            Input::Radius(answer) => self.radius_answered(answer),
            Input::Secret(secret) => self.ask_binding(secret, qr::Style::HalfBlocks, 0, None),
            Input::PasswordSet(Ok(epoch)) => self.password_set(epoch, now),
            Input::Bound(Ok((epoch, codes))) => self.bound(epoch, &codes),
            Input::Claimed(Ok(claimed)) => self.claimed(&claimed),
            Input::SignedIn(Ok(opened)) => self.signed_in(&opened),
            Input::PasswordSet(Err(reason)) | Input::Bound(Err(reason)) => self.fail(reason, None),
            Input::Claimed(Err(reason)) | Input::SignedIn(Err(reason)) => self.not_claimed(reason),
            Input::FailureRecorded => self.refused(),
        };
        (self, effect)
    }

    fn client(&mut self, user: String, request: Request, now: UnixTime) -> Effect {
        self.rounds += 1;
        if matches!(self.stage, Stage::Over) || self.rounds > MAX_ROUNDS {
            return self.disconnect(Refusal::TooManyAttempts);
        }
        if self.user.get_or_insert_with(|| user.clone()) != &user {
            return self.disconnect(Refusal::UserChanged);
        }
        let needs_account = !matches!(request, Request::None | Request::Answers(_));
        if needs_account && self.found.is_none() {
            self.stage = Stage::Pending(request);
            return Effect::LookUp(user.parse().ok());
        }
        self.request(request, now)
    }

    fn request(&mut self, request: Request, now: UnixTime) -> Effect {
        if let Request::Answers(answers) = request {
            return self.answer(answers, now);
        }
        self.stage = Stage::Idle; // Another request abandons a dialog (RFC 4256 section 3.1).
        match request {
            Request::Password(password) if self.rules.methods.password => {
                self.check_password(password, false)
            }
            Request::KeyOffer(key) if self.rules.methods.publickey => self.offer(&key),
            Request::Key(key) if self.rules.methods.publickey => self.key(&key, now),
            Request::Certificate(shown) if self.rules.methods.publickey => {
                self.certificate(shown, now)
            }
            Request::Interactive => match self.first {
                First::Missing => self.ask_password(),
                First::Key if self.needs_password(now) => self.ask_password(),
                First::Password { .. } | First::Held | First::Key => self.ask_second(now),
            },
            _ => Effect::Reply(Reply::Refuse(self.rules.methods)),
        }
    }

    fn answer(&mut self, answers: Vec<SecretString>, now: UnixTime) -> Effect {
        let one =
            <[SecretString; 1]>::try_from(answers).map_or_else(|_| String::new().into(), |[a]| a);
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::AwaitPassword => self.check_password(one, true),
            Stage::AwaitCode => self.check_code(&one, now),
            Stage::AwaitNewPassword { tries } => self.new_password(one, tries),
            Stage::AwaitRepeat { new, tries } => self.repeated(new, &one, tries),
            Stage::AwaitBinding { secret, style, tries } => {
                self.binding(secret, style, tries, &one, now)
            }
            Stage::AwaitRecoveryRead => self.sign_in(Claim::Nothing),
            Stage::AwaitNoticeRead(authenticated) => self.accept(authenticated),
            Stage::AwaitChallenge { round } => self.answer_challenge(one, round),
            Stage::AwaitPartingRead => self.refused(),
            // Answers that nobody asked for. Listed, so that a new stage has to be put somewhere.
            stage @ (Stage::Idle
            | Stage::Pending(_)
            | Stage::CheckingPassword { .. }
            | Stage::AskingRadius { .. }
            | Stage::Over) => self.unexpected(stage),
        }
    }

    fn sign_in(&mut self, claim: Claim) -> Effect {
        match self.attempt(claim) {
            Some(attempt) => Effect::SignIn(attempt),
            None => self.fail(Refusal::UnknownUser, None),
        }
    }

    fn attempt(&mut self, claim: Claim) -> Option<Attempt> {
        let account = self.account()?;
        let (id, epoch, factor) = (account.id.clone(), account.epoch, account.factor.factor);
        Some(Attempt {
            account: id,
            epoch,
            factor,
            claim,
            key: self.key.clone(),
            given: self.given,
            steps: self.steps.clone(),
            notes: self.take_notes(),
        })
    }

    fn signed_in(&mut self, opened: &Opened) -> Effect {
        self.set_recovery_left(opened.claimed().recovery_left);
        let used_recovery = self.steps.contains(&Step::RecoveryCode);
        let Some(account) = self.account() else { return self.unexpected(Stage::Idle) };
        let authenticated = Authenticated {
            user: account.name.clone(),
            account: account.id.clone(),
            role: account.role,
            epoch: account.epoch,
            given: self.given,
            code_given: self.steps.iter().any(|step| step.is_code()),
            code_at: self.code_at,
        };
        let mut notices = Vec::new();
        if used_recovery {
            notices.push(prompt::recovery_left(account.recovery_left));
        }
        if let Some(seconds) = account.drift {
            notices.push(prompt::clock_drift(seconds));
        }
        // Without a code the last request may be one that no question can be the answer to.
        if notices.is_empty() || !authenticated.code_given {
            return self.accept(authenticated);
        }
        self.stage = Stage::AwaitNoticeRead(authenticated);
        tell(notices.join("\n"))
    }

    fn accept(&mut self, authenticated: Authenticated) -> Effect {
        self.stage = Stage::Over;
        self.first = First::Missing;
        self.old_password = None;
        self.radius = radius::Dialog::default();
        Effect::Reply(Reply::Accept(authenticated))
    }

    fn fail(&mut self, reason: Refusal, drift: Option<i64>) -> Effect {
        self.stage = Stage::Idle;
        // What refuses a certificate is no guess; a password that was given before it may be one.
        let counts =
            reason.counts() || (reason == Refusal::CertificateRefused && self.first.is_password());
        let account = self.account().map(|account| account.id.clone());
        let code = reason.is_of_code() && self.may_guess_code();
        let locked = self.is_locked();
        Effect::Fail { reason, counts, code, locked, drift, account, notes: self.take_notes() }
    }

    /// Whether the source was locked when the account, or that there is none, was looked up.
    fn is_locked(&self) -> bool {
        self.throttle().locked_until.is_some_and(|until| self.at < until)
    }

    /// Whether what stands between the client and the account is a code: the first factor was right.
    fn may_guess_code(&self) -> bool {
        let right = matches!(self.first, First::Password { right: true } | First::Key);
        // While one is being bound there is nothing to guess.
        let has_codes = |a: &Account| a.otp.is_some() || a.factor.factor == Verifier::Radius;
        right && self.account().is_some_and(has_codes)
    }

    fn refused(&mut self) -> Effect {
        self.first = First::Missing;
        self.given = Factors::NONE;
        self.key = None;
        self.code_at = None;
        self.old_password = None;
        self.radius = radius::Dialog::default();
        self.steps.clear();
        self.found = None; // The next try reads the account, and its failures, anew.
        if let Some(text) = self.parting.take() {
            self.stage = Stage::AwaitPartingRead;
            return tell(text.to_owned());
        }
        if self.answers >= self.rules.max_answers {
            return self.disconnect(Refusal::TooManyAttempts);
        }
        Effect::Reply(Reply::Refuse(self.rules.methods))
    }

    fn disconnect(&mut self, reason: Refusal) -> Effect {
        self.stage = Stage::Over;
        Effect::Reply(Reply::Disconnect(reason))
    }

    /// An answer nobody asked for, or an outcome of an effect nobody wanted.
    fn unexpected(&mut self, _stage: Stage) -> Effect {
        self.stage = Stage::Idle;
        Effect::Reply(Reply::Refuse(self.rules.methods))
    }

    fn count_answer(&mut self) -> Option<Effect> {
        self.answers += 1;
        (self.answers > self.rules.max_answers).then(|| self.disconnect(Refusal::TooManyAttempts))
    }

    fn set_recovery_left(&mut self, left: u32) {
        if let Some((Some(account), _)) = &mut self.found {
            account.recovery_left = left;
        }
    }

    fn account(&self) -> Option<&Account> {
        self.found.as_ref()?.0.as_deref()
    }

    fn throttle(&self) -> Throttle {
        self.found.as_ref().map_or_else(Throttle::default, |(_, throttle)| *throttle)
    }

    /// Whether these factors are enough for the account.
    fn allows(&self, given: Factors) -> bool {
        self.account().is_some_and(|account| account.sign_in.allows(given, self.source))
    }

    fn standing(&self, now: UnixTime) -> Standing {
        let unknown = Standing::Closed(Refusal::UnknownUser);
        self.account().map_or(unknown, |account| account.standing(&self.throttle(), now))
    }
}

fn ask(prompt: &str, echo: bool) -> Effect {
    Effect::Reply(Reply::Ask(Question {
        instruction: String::new(),
        prompt: Some((prompt.to_owned(), echo)),
        slow: false,
    }))
}

fn tell(instruction: String) -> Effect {
    Effect::Reply(Reply::Ask(Question { instruction, prompt: None, slow: false }))
}
