//! What goes into the state machine and what comes out of it.

use secrecy::SecretString;

use super::super::account::{Account, Remembered, Throttle};
use super::super::totp;
use super::radius::{RadiusAnswer, RadiusFault};
use super::{Authenticated, Codes, Methods};
use crate::audit::{Event, Note, Refusal, Step};
use crate::domain::{Factors, Id, TimeStep, UserName, Verifier};

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
    /// [`Effect::AskRadius`] is done.
    Radius(Result<RadiusAnswer, RadiusFault>),
    /// [`Effect::SetPassword`] is done; the account's new epoch.
    PasswordSet(Result<i64, Refusal>),
    /// [`Effect::Bind`] is done; the account's new epoch and its recovery codes.
    Bound(Result<(i64, Vec<SecretString>), Refusal>),
    /// [`Effect::Claim`] is done.
    Claimed(Result<Claimed, Refusal>),
    /// [`Effect::SignIn`] is done: the session is written down.
    SignedIn(Result<Opened, Refusal>),
    /// [`Effect::Fail`] is done, and its wait is over.
    FailureRecorded,
}

/// A user certificate that an authority signed for the user who shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The fingerprint of its key.
    pub key: String,
    /// Its key id, printable.
    pub id: String,
    /// Its serial number.
    pub serial: u64,
    /// The fingerprint of its authority's key.
    pub authority: String,
    /// Whether that is the login CA, which gives certificates for a code only.
    pub by_login_ca: bool,
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
    /// `publickey` with a certificate and a valid signature; or what is wrong with it.
    Certificate(Result<Certified, Box<Event>>),
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
    /// Ask a RADIUS server.
    AskRadius {
        /// About whom.
        user: UserName,
        /// A password, a code, or the answer to its last challenge.
        password: SecretString,
        /// How many challenges it made so far; 0 begins a new dialog.
        round: u32,
    },
    /// Hash and store a new password in place of the one-time one.
    SetPassword {
        /// Whose.
        account: Id,
        /// The epoch that must still hold.
        epoch: i64,
        /// The password.
        password: SecretString,
        /// What happened on the way, to be written with it.
        notes: Vec<Note>,
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
        notes: Vec<Note>,
    },
    /// Use a code up, without signing in yet.
    Claim(Attempt),
    /// Use a code up if there is one to use, and open the session.
    SignIn(Attempt),
    /// Write down what happened so far, then answer.
    Note {
        /// By how many seconds the authenticator's clock seems to be off.
        drift: Option<i64>,
        /// The account.
        account: Id,
        /// What happened.
        notes: Vec<Note>,
        /// The answer.
        then: Box<Reply>,
    },
    /// Write a failure down, then hold the answer back.
    Fail {
        /// Why.
        reason: Refusal,
        /// Whether it counts towards the lock.
        counts: bool,
        /// Whether it was a wrong code after a right first factor.
        code: bool,
        /// Whether the account was locked for this source already: nothing is counted then.
        locked: bool,
        /// By how many seconds the authenticator's clock seems to be off.
        drift: Option<i64>,
        /// The account, if there is one.
        account: Option<Id>,
        /// What happened on the way, to be written with it.
        notes: Vec<Note>,
    },
}

/// What the store has to check and write for a login to go on.
#[derive(Debug)]
pub struct Attempt {
    /// Whose.
    pub account: Id,
    /// The epoch that must still hold.
    pub epoch: i64,
    /// What answered for the second step when it began.
    pub factor: Verifier,
    /// What to use up.
    pub claim: Claim,
    /// The key that was proven, if one was: what a login is remembered by.
    pub key: Option<String>,
    /// The factors that were given, with what is to be used up.
    pub given: Factors,
    /// The steps that were passed.
    pub steps: Vec<Step>,
    /// What happened on the way, to be written with it.
    pub notes: Vec<Note>,
}

/// Something that works once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nothing more: it was claimed in an earlier transaction of this login.
    Nothing,
    /// No code: the rule that holds for the account asks for none.
    NoCode,
    /// The login CA's certificate with this serial number, as often as it is shown.
    Certificate(i64),
    /// No code: a login with one is remembered.
    Remembered(Remembered),
    /// The code of a step, if no code of it or of a later one was used.
    Code(TimeStep),
    /// The recovery code with this hash.
    RecoveryCode(String),
    /// What a RADIUS server accepted, if none of it was used within its life.
    Radius {
        /// What was given to the server.
        codes: Codes,
        /// For how long a code is remembered.
        life: std::time::Duration,
    },
}

impl Claim {
    /// The step that it is passed by; `None` if it is passed by none, or was before.
    pub fn step(&self) -> Option<Step> {
        match self {
            Self::Nothing | Self::NoCode => None,
            Self::Certificate(_) => Some(Step::Certificate),
            Self::Remembered(_) => Some(Step::Remembered),
            Self::Code(_) => Some(Step::Code),
            Self::RecoveryCode(_) => Some(Step::RecoveryCode),
            Self::Radius { .. } => Some(Step::Radius),
        }
    }

    /// Whether it is a code of now, the authenticator's or one that a RADIUS server accepted. A recovery code
    /// is none: it says nothing of who has the authenticator.
    pub fn is_code_of_now(&self) -> bool {
        matches!(self, Self::Code(_) | Self::Radius { .. })
    }
}

/// What the store says of a login that went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Unused recovery codes.
    pub recovery_left: u32,
}

/// Proof that the store wrote a session down, with what was used up for it. It makes one after it committed
/// that, and nothing else makes any: `tests/suite/architecture.rs` checks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    claimed: Claimed,
}

impl Opened {
    /// For the store, right after the transaction that opened the session.
    pub(crate) fn committed(claimed: Claimed) -> Self {
        Self { claimed }
    }

    /// What was used up.
    pub fn claimed(&self) -> &Claimed {
        &self.claimed
    }
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
