//! Signing in as a state machine: `(Machine, Input, now) -> (Machine, Effect)`.
//!
//! Always holds:
//! - [`Authenticated`] is made in one place, after the store said that it wrote the session down,
//!   which it does only for a right first factor *and* a claimed code, recovery code or binding.
//! - The user name is fixed by the first request (RFC 4252 section 5 lets it change; we do not).
//! - What a client sees before it is through does not tell an unknown, locked, disabled or unbound
//!   account, or a wrong password, from a wrong code: the same prompts, then the same refusal.
//! - A dialog is short: answers and rounds are counted, whatever mix of methods they come by.
//!
//! Nothing here waits, reads a clock or touches a socket: an [`Effect`] says what to do next, and
//! its [`Input`] brings back what came of it. A new second factor is a new [`Stage`] beside
//! `AwaitCode`, chosen in [`Machine::ask_second`], and a new [`Claim`].

use secrecy::{ExposeSecret as _, SecretString};

use super::account::{Account, Standing, Throttle};
use super::prompt::{self, BindInput};
use super::{password, qr, recovery, totp};
use crate::audit::{Event, Refusal, Step};
use crate::domain::{Id, Role, TimeStep, UnixTime, UserName};

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
/// The most key offers: enough for a full agent.
const MAX_OFFERS: u32 = 32;
/// The most wrong codes while binding; the secret is on the screen, so this bounds only the dialog.
const MAX_BIND_TRIES: u32 = 10;
/// The most new passwords that may break a rule.
const MAX_NEW_PASSWORDS: u32 = 6;

/// What comes in: from the client, or back from an effect.
#[derive(Debug)]
pub enum Input {
    /// The client sent an authentication request or an answer, for this user name.
    Client(String, Request),
    /// [`Effect::LookUp`] found the account, or that there is none, and its failures so far.
    Found(Option<Box<Account>>, Throttle),
    /// [`Effect::CheckPassword`] is done.
    PasswordChecked(bool),
    /// [`Effect::MakeSecret`] is done.
    Secret(totp::Secret),
    /// [`Effect::SetPassword`] is done; the account's new epoch.
    PasswordSet(Result<i64, Refusal>),
    /// [`Effect::Bind`] is done; the account's new epoch and its recovery codes.
    Bound(Result<(i64, Vec<SecretString>), Refusal>),
    /// [`Effect::Claim`] is done.
    Claimed(Result<Claimed, Refusal>),
    /// [`Effect::SignIn`] is done: the session is written down.
    SignedIn(Result<Claimed, Refusal>),
    /// [`Effect::Fail`] is done, and its wait is over.
    FailureRecorded,
}

/// What a client asks for (RFC 4252, RFC 4256).
#[derive(Debug)]
pub enum Request {
    /// `none`.
    None,
    /// `password`.
    Password(SecretString),
    /// `publickey` without a signature; the key's fingerprint.
    KeyOffer(String),
    /// `publickey` with a valid signature; the key's fingerprint.
    Key(String),
    /// `keyboard-interactive`.
    Interactive,
    /// The answers to the last [`Reply::Ask`].
    Answers(Vec<SecretString>),
}

/// What has to be done next.
#[derive(Debug)]
#[must_use]
pub enum Effect {
    /// Answer the client, and wait for it.
    Reply(Reply),
    /// Read the account and its failures from this source.
    LookUp(Option<UserName>),
    /// Compare a password with a hash; without one, with the decoy, at the same cost.
    CheckPassword(SecretString, Option<String>),
    /// Get a new secret from the random number generator.
    MakeSecret,
    /// Hash and store a new password in place of the one-time one.
    SetPassword {
        /// Whose.
        account: Id,
        /// The epoch that must still hold.
        epoch: i64,
        /// The password.
        password: SecretString,
        /// What happened on the way, to be written with it.
        notes: Vec<Event>,
    },
    /// Store a new authenticator, and make its recovery codes.
    Bind {
        /// Whose.
        account: Id,
        /// The epoch that must still hold.
        epoch: i64,
        /// The new secret.
        secret: totp::Secret,
        /// The step whose code confirmed it, thereby used.
        step: TimeStep,
        /// What happened on the way, to be written with it.
        notes: Vec<Event>,
    },
    /// Use a code up, without signing in yet.
    Claim(Attempt),
    /// Use a code up if there is one to use, and open the session.
    SignIn(Attempt),
    /// Write a failure down, then hold the answer back.
    Fail {
        /// Why.
        reason: Refusal,
        /// Whether it counts towards the lock.
        counts: bool,
        /// By how many seconds the authenticator's clock seems to be off.
        drift: Option<i64>,
        /// The account, if there is one.
        account: Option<Id>,
        /// What happened on the way, to be written with it.
        notes: Vec<Event>,
    },
}

/// What the store has to check and write for a login to go on.
#[derive(Debug)]
pub struct Attempt {
    /// Whose.
    pub account: Id,
    /// The epoch that must still hold.
    pub epoch: i64,
    /// What to use up.
    pub claim: Claim,
    /// The steps that were passed.
    pub steps: Vec<Step>,
    /// What happened on the way, to be written with it.
    pub notes: Vec<Event>,
}

/// Something that works once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nothing more: it was claimed in an earlier transaction of this login.
    Nothing,
    /// The code of a step, if no code of it or of a later one was used.
    Code(TimeStep),
    /// The recovery code with this hash.
    RecoveryCode(String),
}

/// What the store says of a login that went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Unused recovery codes.
    pub recovery_left: u32,
}

/// What the client is told.
#[derive(Debug)]
pub enum Reply {
    /// Refused; these methods can be tried.
    Refuse(Methods),
    /// The first factor was taken in (right or wrong); keyboard-interactive comes next.
    Continue,
    /// The offered key may be used.
    KeyOk,
    /// A question (RFC 4256 section 3.2).
    Ask(Question),
    /// Signed in.
    Accept(Authenticated),
    /// The connection ends.
    Disconnect(Refusal),
}

/// A question of a keyboard-interactive dialog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Shown above the prompts. Plain ASCII: OpenSSH before 10.3 escapes the rest.
    pub instruction: String,
    /// The prompt, and whether what is typed may be shown; `None` asks nothing.
    pub prompt: Option<(String, bool)>,
    /// Whether it takes a person minutes to answer.
    pub slow: bool,
}

/// Proof that somebody signed in with both factors, and that the store knows of their session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    user: UserName,
    account: Id,
    role: Role,
    epoch: i64,
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
}

/// How far the first factor got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Missing,
    Password { right: bool },
    Key,
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
    /// Signed in or cut off: nothing more is taken.
    Over,
}

/// Where one connection stands in signing in.
#[derive(Debug)]
pub struct Machine {
    rules: std::sync::Arc<Rules>,
    /// As the client gave it, first.
    user: Option<String>,
    /// `None` until looked up; then the account, if there is one, and its failures.
    found: Option<(Option<Box<Account>>, Throttle)>,
    /// The one-time or old password, for the rules of the new one.
    old_password: Option<SecretString>,
    first: First,
    stage: Stage,
    steps: Vec<Step>,
    notes: Vec<Event>,
    answers: u32,
    rounds: u32,
    offers: u32,
}

impl Machine {
    /// A connection on which nothing was said yet.
    pub fn new(rules: std::sync::Arc<Rules>) -> Self {
        Self {
            rules,
            user: None,
            found: None,
            old_password: None,
            first: First::Missing,
            stage: Stage::Idle,
            steps: Vec::new(),
            notes: Vec::new(),
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
    pub fn take_notes(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.notes)
    }

    /// Takes one input in, at `now`.
    pub fn step(mut self, input: Input, now: UnixTime) -> (Self, Effect) {
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
            Input::Secret(secret) => self.ask_binding(secret, qr::Style::HalfBlocks, 0, None),
            Input::PasswordSet(Ok(epoch)) => self.password_set(epoch, now),
            Input::Bound(Ok((epoch, codes))) => self.bound(epoch, &codes),
            Input::Claimed(Ok(claimed)) => self.claimed(&claimed),
            Input::SignedIn(Ok(claimed)) => self.signed_in(&claimed),
            Input::PasswordSet(Err(reason))
            | Input::Bound(Err(reason))
            | Input::Claimed(Err(reason))
            | Input::SignedIn(Err(reason)) => self.fail(reason, None),
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
            Request::Key(key) if self.rules.methods.publickey => self.key(&key),
            Request::Interactive => match self.first {
                First::Missing => self.ask_password(),
                // A key cannot stand in for the one-time password, which is the token to bind with.
                First::Key if self.standing(now) == Standing::MayBind => self.ask_password(),
                First::Password { .. } | First::Key => self.ask_second(now),
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
            other => self.unexpected(other),
        }
    }

    // The first factor.

    fn offer(&mut self, key: &str) -> Effect {
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

    fn key(&mut self, key: &str) -> Effect {
        if !self.has_key(key) {
            self.notes.push(Event::StepFailed { step: Step::Key, reason: Refusal::UnknownKey });
            return Effect::Reply(Reply::Refuse(self.rules.methods));
        }
        self.first = First::Key;
        self.steps = vec![Step::Key];
        self.notes.push(Event::StepPassed { step: Step::Key, key: Some(key.to_owned()) });
        Effect::Reply(Reply::Continue)
    }

    fn has_key(&self, key: &str) -> bool {
        self.account()
            .is_some_and(|account| !account.disabled && account.keys.iter().any(|k| k == key))
    }

    fn ask_password(&mut self) -> Effect {
        self.stage = Stage::AwaitPassword;
        ask(prompt::PASSWORD, false)
    }

    fn check_password(&mut self, password: SecretString, interactive: bool) -> Effect {
        if let Some(end) = self.count_answer() {
            return end;
        }
        self.stage = Stage::CheckingPassword { interactive };
        self.old_password = Some(password.clone());
        Effect::CheckPassword(password, self.account().map(|account| account.password.clone()))
    }

    fn password_checked(&mut self, right: bool, now: UnixTime) -> Effect {
        let interactive = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::CheckingPassword { interactive } => interactive,
            other => return self.unexpected(other),
        };
        let right = right && self.account().is_some();
        self.first = First::Password { right };
        self.steps.retain(|step| *step == Step::Key);
        if right {
            self.steps.push(Step::Password);
            self.notes.push(Event::StepPassed { step: Step::Password, key: None });
        } else {
            let reason = match self.account() {
                Some(_) => Refusal::WrongPassword,
                None => Refusal::UnknownUser,
            };
            self.notes.push(Event::StepFailed { step: Step::Password, reason });
        }
        if interactive { self.ask_second(now) } else { Effect::Reply(Reply::Continue) }
    }

    // The second factor.

    /// Asks for what comes after the first factor. A wrong one leads to the same question as a right one.
    fn ask_second(&mut self, now: UnixTime) -> Effect {
        let right = self.first == First::Password { right: true };
        match self.standing(now) {
            Standing::MayBind if right && self.account().is_some_and(|a| a.one_time) => {
                self.ask_new_password(None, 0)
            }
            Standing::MayBind if right => Effect::MakeSecret,
            Standing::MayBind | Standing::Bound | Standing::Closed(_) => {
                self.stage = Stage::AwaitCode;
                ask(prompt::CODE, false)
            }
        }
    }

    fn check_code(&mut self, answer: &SecretString, now: UnixTime) -> Effect {
        if let Some(end) = self.count_answer() {
            return end;
        }
        if let Err(reason) = self.may_use_code(now) {
            return self.fail(reason, None);
        }
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let Some(otp) = &account.otp else { return self.fail(Refusal::BindingClosed, None) };
        let text = answer.expose_secret();
        if let Some(code) = recovery::normalize(text) {
            let hash = recovery::hash(&account.id, &code);
            return self.claim(Claim::RecoveryCode(hash));
        }
        match totp::check(&otp.secret, text, now, otp.last_step) {
            totp::Check::Matches(step) => self.claim(Claim::Code(step)),
            totp::Check::Replayed(_) => self.code_failed(Refusal::ReplayedCode, None),
            totp::Check::Drifted { seconds } => self.code_failed(Refusal::WrongCode, Some(seconds)),
            totp::Check::Wrong => self.code_failed(Refusal::WrongCode, None),
        }
    }

    /// Whether a right code would be of any use.
    fn may_use_code(&self, now: UnixTime) -> Result<(), Refusal> {
        let Some(account) = self.account() else { return Err(Refusal::UnknownUser) };
        match (account.standing(&self.throttle(), now), self.first) {
            (Standing::Closed(reason), _) => Err(reason),
            (_, First::Missing | First::Password { right: false }) => Err(Refusal::WrongPassword),
            (Standing::MayBind, _) => Err(Refusal::BindingClosed),
            (Standing::Bound, First::Password { right: true } | First::Key) => Ok(()),
        }
    }

    fn code_failed(&mut self, reason: Refusal, drift: Option<i64>) -> Effect {
        self.notes.push(Event::StepFailed { step: Step::Code, reason });
        self.fail(reason, drift)
    }

    /// Uses the code up. A one-time password still has to be changed before the session opens.
    fn claim(&mut self, claim: Claim) -> Effect {
        let step = match claim {
            Claim::RecoveryCode(_) => Step::RecoveryCode,
            Claim::Code(_) | Claim::Nothing => Step::Code,
        };
        self.steps.push(step);
        let must_change = self.first == First::Password { right: true }
            && self.account().is_some_and(|account| account.one_time);
        if must_change {
            self.attempt(claim).map_or_else(|end| end, Effect::Claim)
        } else {
            self.sign_in(claim)
        }
    }

    fn claimed(&mut self, claimed: &Claimed) -> Effect {
        self.set_recovery_left(claimed.recovery_left);
        self.ask_new_password(None, 0)
    }

    // A new password in place of a one-time one.

    fn ask_new_password(&mut self, broken: Option<&str>, tries: u32) -> Effect {
        if tries >= MAX_NEW_PASSWORDS {
            return self.fail(Refusal::PasswordRejected, None);
        }
        self.stage = Stage::AwaitNewPassword { tries };
        match broken {
            None => ask(prompt::NEW_PASSWORD, false),
            Some(why) => ask(&prompt::new_password_again(why), false),
        }
    }

    fn new_password(&mut self, new: SecretString, tries: u32) -> Effect {
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
                self.notes.push(Event::StepFailed { step: Step::NewPassword, reason });
                self.ask_new_password(Some(&broken.to_string()), tries + 1)
            }
        }
    }

    fn repeated(&mut self, new: SecretString, again: &SecretString, tries: u32) -> Effect {
        if new.expose_secret() != again.expose_secret() {
            return self.ask_new_password(Some(prompt::NO_MATCH), tries + 1);
        }
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let (account, epoch) = (account.id.clone(), account.epoch);
        Effect::SetPassword { account, epoch, password: new, notes: self.take_notes() }
    }

    fn password_set(&mut self, epoch: i64, now: UnixTime) -> Effect {
        self.old_password = None;
        self.steps.push(Step::NewPassword);
        if let Some((Some(account), _)) = &mut self.found {
            account.epoch = epoch;
            account.one_time = false;
        }
        match self.standing(now) {
            Standing::MayBind => Effect::MakeSecret,
            Standing::Bound => self.sign_in(Claim::Nothing),
            Standing::Closed(reason) => self.fail(reason, None),
        }
    }

    // Binding an authenticator.

    fn ask_binding(
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

    fn binding(
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
        let note = match totp::check(&secret, &code, now, never) {
            totp::Check::Matches(step) => return self.bind(secret, step),
            totp::Check::Drifted { seconds } => {
                self.notes.push(Event::ClockDrift { seconds });
                prompt::binding_drift(seconds)
            }
            totp::Check::Replayed(_) | totp::Check::Wrong => prompt::BINDING_WRONG.to_owned(),
        };
        self.notes.push(Event::StepFailed { step: Step::Binding, reason: Refusal::WrongCode });
        if tries + 1 >= MAX_BIND_TRIES {
            return self.fail(Refusal::WrongCode, None);
        }
        self.ask_binding(secret, style, tries + 1, Some(&note))
    }

    fn bind(&mut self, secret: totp::Secret, step: TimeStep) -> Effect {
        let Some(account) = self.account() else { return self.fail(Refusal::UnknownUser, None) };
        let (account, epoch) = (account.id.clone(), account.epoch);
        Effect::Bind { account, epoch, secret, step, notes: self.take_notes() }
    }

    fn bound(&mut self, epoch: i64, codes: &[SecretString]) -> Effect {
        self.steps.push(Step::Binding);
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

    // The end.

    fn sign_in(&mut self, claim: Claim) -> Effect {
        self.attempt(claim).map_or_else(|end| end, Effect::SignIn)
    }

    fn attempt(&mut self, claim: Claim) -> Result<Attempt, Effect> {
        let notes = self.take_notes();
        match self.account() {
            Some(account) => Ok(Attempt {
                account: account.id.clone(),
                epoch: account.epoch,
                claim,
                steps: self.steps.clone(),
                notes,
            }),
            None => Err(self.fail(Refusal::UnknownUser, None)),
        }
    }

    fn signed_in(&mut self, claimed: &Claimed) -> Effect {
        self.set_recovery_left(claimed.recovery_left);
        let used_recovery = self.steps.contains(&Step::RecoveryCode);
        let Some(account) = self.account() else { return self.unexpected(Stage::Idle) };
        let authenticated = Authenticated {
            user: account.name.clone(),
            account: account.id.clone(),
            role: account.role,
            epoch: account.epoch,
        };
        let mut notices = Vec::new();
        if used_recovery {
            notices.push(prompt::recovery_left(account.recovery_left));
        }
        if let Some(seconds) = account.drift {
            notices.push(prompt::clock_drift(seconds));
        }
        if notices.is_empty() {
            return self.accept(authenticated);
        }
        self.stage = Stage::AwaitNoticeRead(authenticated);
        Effect::Reply(Reply::Ask(Question {
            instruction: notices.join("\n"),
            prompt: None,
            slow: false,
        }))
    }

    fn accept(&mut self, authenticated: Authenticated) -> Effect {
        self.stage = Stage::Over;
        self.old_password = None;
        Effect::Reply(Reply::Accept(authenticated))
    }

    fn fail(&mut self, reason: Refusal, drift: Option<i64>) -> Effect {
        self.stage = Stage::Idle;
        // Whoever replays a code knows the password and saw a right code: nothing was guessed, and a
        // person who runs several `ssh` at once with one code must not be locked out by them.
        let counts = !matches!(
            reason,
            Refusal::ReplayedCode
                | Refusal::AlreadyBound
                | Refusal::AccountChanged
                | Refusal::StoreFailed
                | Refusal::Busy
        );
        let account = self.account().map(|account| account.id.clone());
        Effect::Fail { reason, counts, drift, account, notes: self.take_notes() }
    }

    fn refused(&mut self) -> Effect {
        self.first = First::Missing;
        self.old_password = None;
        self.steps.clear();
        self.found = None; // The next try reads the account, and its failures, anew.
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
