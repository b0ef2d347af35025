//! The one list of everything that is audited.
//!
//! A variant's name is the event's `kind` in kebab-case; its fields stand beside
//! it in one flat JSON object. Kinds and fields are a contract with whoever reads
//! an export: they may be added to, and keep their meaning.

use std::net::SocketAddr;

use serde::de::value::MapDeserializer;
use serde::{Deserialize, Serialize, de};

use crate::domain::{
    AccountAuth, AccountName, Destination, GroupName, Id, RadiusMode, Role, SignInRule, Source,
    TargetName, UnixTime, UserName, Verifier, words,
};

words! {
    /// A step of signing in whose outcome is audited.
    Step, "step" {
        /// The account's password.
        Password = "password",
        /// A public key of the account, with a valid signature.
        Key = "key",
        /// A user certificate that names the account, with a valid signature.
        Certificate = "certificate",
        /// A one-time code from the bound authenticator.
        Code = "code",
        /// A login with a code that is remembered, in place of a code.
        Remembered = "remembered",
        /// A recovery code.
        RecoveryCode = "recovery-code",
        /// A new password in place of a one-time one.
        NewPassword = "new-password",
        /// The code that confirms a new authenticator.
        Binding = "binding",
        /// What a RADIUS server was asked to judge.
        Radius = "radius",
    }
}

impl Step {
    /// Whether it takes a code that works once.
    pub fn is_code(self) -> bool {
        match self {
            Self::Code | Self::RecoveryCode | Self::Binding | Self::Radius => true,
            Self::Password
            | Self::Key
            | Self::Certificate
            | Self::Remembered
            | Self::NewPassword => false,
        }
    }
}

words! {
    /// What a RADIUS server answered.
    RadiusVerdict, "RADIUS verdict" {
        /// Access-Accept.
        Accept = "accept",
        /// Access-Reject.
        Reject = "reject",
        /// Access-Challenge: it asks for something more.
        Challenge = "challenge",
    }
}

words! {
    /// What is wrong with a user certificate.
    CertificateFault, "certificate fault" {
        /// Its authority is not one of those that are listed.
        UnknownAuthority = "unknown-authority",
        /// It, its key or its authority is of a kind or size that cannot be trusted.
        Weak = "weak",
        /// Its authority did not sign it.
        BadSignature = "bad-signature",
        /// It is a host's.
        NotAUsers = "not-a-users",
        /// It does not name the account.
        OtherPrincipal = "other-principal",
        /// It holds from a later time on.
        NotYetValid = "not-yet-valid",
        /// Its time is over.
        Expired = "expired",
        /// It was given by the login CA, and is revoked, or the account was changed since.
        Revoked = "revoked",
        /// It does not hold from this source.
        WrongSource = "wrong-source",
        /// It restricts itself in a way that the bastion does not know how to keep to.
        CriticalOption = "critical-option",
    }
}

words! {
    /// Why somebody was not let in, or on. Only the audit log and administrators see the
    /// difference; a client that is not signed in sees the same refusal for all.
    Refusal, "refusal" {
        /// No account of that name.
        UnknownUser = "unknown-user",
        /// The account is disabled.
        Disabled = "disabled",
        /// The account was changed (disabled, unbound, given a new password) during the login.
        AccountChanged = "account-changed",
        /// The account has no authenticator and its binding window is closed.
        BindingClosed = "binding-closed",
        /// Too many failures for this account from this source.
        Locked = "locked",
        /// The source is sending too many attempts.
        RateLimited = "rate-limited",
        /// The password is wrong.
        WrongPassword = "wrong-password",
        /// The key is not one of the account's.
        UnknownKey = "unknown-key",
        /// A user certificate that does not stand for the account; the event before says why.
        CertificateRefused = "certificate-refused",
        /// The code matches no step of the window.
        WrongCode = "wrong-code",
        /// The code was used before.
        ReplayedCode = "replayed-code",
        /// The recovery code is wrong or used.
        WrongRecoveryCode = "wrong-recovery-code",
        /// Too many wrong codes for the account from everywhere, and nobody signed in from here before.
        CodeLimit = "code-limit",
        /// A RADIUS server rejected the password or the code.
        RadiusRejected = "radius-rejected",
        /// No RADIUS server answered.
        RadiusUnavailable = "radius-unavailable",
        /// A RADIUS server let somebody in without having asked for a code.
        RadiusOneFactor = "radius-one-factor",
        /// What was given is not what the rule for signing in, or the target's, asks for.
        SignInRule = "sign-in-rule",
        /// The new password breaks a rule, or its repetition differs.
        PasswordRejected = "password-rejected",
        /// The client left, or tried another password, before the second factor.
        GivenUp = "given-up",
        /// The account was changed, or its binding window closed, before the authenticator was bound:
        /// most likely another login bound one first.
        AlreadyBound = "already-bound",
        /// A second user name on one connection (RFC 4252 section 5).
        UserChanged = "user-changed",
        /// More answers or rounds than one connection may use.
        TooManyAttempts = "too-many-attempts",
        /// A method, request or channel that the bastion does not offer.
        NotOffered = "not-offered",
        /// Password hashing is at its limit.
        Busy = "busy",
        /// Nobody signed in within the login grace time.
        GraceExpired = "grace-expired",
        /// No grant covers the destination.
        NotGranted = "not-granted",
        /// A grant covers it, but not at this time of the week.
        OutsideHours = "outside-hours",
        /// A grant covers it, but not from this source.
        WrongSource = "wrong-source",
        /// The grant has run out.
        Expired = "expired",
        /// A fresh code is asked for, and was not given, or cannot be asked for on this way.
        StepUp = "step-up",
        /// The target asks its user something before it lets them in, and they cannot be asked on this way.
        TargetAsks = "target-asks",
        /// The name leads to an address that is never forwarded to.
        ForbiddenAddress = "forbidden-address",
        /// More channels than one connection may have open, or opened faster than it may.
        TooManyChannels = "too-many-channels",
        /// More ports and socket files than one connection may have targets listen at, or asked for
        /// faster than it may.
        TooManyListeners = "too-many-listeners",
        /// The account's recordings that are being written take as much as they may.
        RecordingsFull = "recordings-full",
        /// It may lead to a target whose sessions are recorded, whose address cannot be found out now.
        RecordedElsewhere = "recorded-elsewhere",
        /// More sessions than one account may have.
        TooManySessions = "too-many-sessions",
        /// More login certificates than one account may have.
        TooManyCertificates = "too-many-certificates",
        /// The bastion is stopping.
        Draining = "draining",
        /// The caller's role does not allow the command.
        RoleTooLow = "role-too-low",
        /// Too many unauthenticated connections, or a penalty on the source.
        Guarded = "guarded",
        /// A load balancer sent no PROXY header, or none that can be read.
        ProxyHeader = "proxy-header",
        /// A load balancer did not say who connects through it.
        ProxyUnknown = "proxy-unknown",
        /// The audit log or the store could not be written.
        StoreFailed = "store-failed",
    }
}

impl Refusal {
    /// Whether a sign-in that it refused counts towards the lock. What is no guess does not: whoever
    /// replays a code knows the password and saw a right one, and a person who runs several `ssh`
    /// at once with one code must not be locked out by them; a certificate is not guessed; nor must
    /// anybody be locked out by a fault of ours.
    pub fn counts(self) -> bool {
        match self {
            Self::ReplayedCode
            | Self::AlreadyBound
            | Self::AccountChanged
            | Self::RadiusUnavailable
            | Self::RadiusOneFactor
            | Self::CertificateRefused
            | Self::StoreFailed
            | Self::TooManySessions
            | Self::TooManyCertificates
            | Self::Busy => false,
            Self::UnknownUser
            | Self::Disabled
            | Self::BindingClosed
            | Self::Locked
            | Self::RateLimited
            | Self::WrongPassword
            | Self::UnknownKey
            | Self::WrongCode
            | Self::WrongRecoveryCode
            | Self::CodeLimit
            | Self::RadiusRejected
            | Self::SignInRule
            | Self::PasswordRejected
            | Self::GivenUp
            | Self::UserChanged
            | Self::TooManyAttempts
            | Self::NotOffered
            | Self::GraceExpired
            | Self::NotGranted
            | Self::OutsideHours
            | Self::WrongSource
            | Self::Expired
            | Self::StepUp
            | Self::TargetAsks
            | Self::ForbiddenAddress
            | Self::TooManyChannels
            | Self::TooManyListeners
            | Self::RecordingsFull
            | Self::RecordedElsewhere
            | Self::Draining
            | Self::RoleTooLow
            | Self::Guarded
            | Self::ProxyHeader
            | Self::ProxyUnknown => true,
        }
    }

    /// Whether a code was tried, and was not taken as if it were wrong: a guess at a code, unless it was
    /// one at the password before it.
    pub fn is_of_code(self) -> bool {
        matches!(self, Self::WrongCode | Self::CodeLimit | Self::RadiusRejected)
    }
}

words! {
    /// Why a session ended.
    EndReason, "end reason" {
        /// The client closed it.
        ClientClosed = "client-closed",
        /// The connection broke or timed out.
        ConnectionLost = "connection-lost",
        /// An administrator ended it.
        Killed = "killed",
        /// The account or what is asked of it changed, its certificate was revoked, or its permit ended.
        Revoked = "revoked",
        /// The bastion stopped.
        ServerStopped = "server-stopped",
        /// The bastion died; closed at the next start, or by another node.
        Interrupted = "interrupted",
        /// Nobody signed in within the login grace time.
        GraceExpired = "grace-expired",
        /// The client broke the protocol or its limits.
        ProtocolError = "protocol-error",
        /// The account had as many as it may have already.
        TooManySessions = "too-many-sessions",
    }
}

/// Who caused an event that changes something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// The bastion itself.
    Server,
    /// Somebody at a shell of the bastion's host, by operating-system user name or number.
    Host(String),
    /// A signed-in user.
    User(UserName),
}

/// Where an event belongs: filled in as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Who acted, for changes and commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The account that it is about, as the client gave it (made printable) when it is none of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the client connected from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The client's identification string (RFC 4253 section 4.2), made printable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The session it happened in; before sign-in the id that the session would get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Id>,
}

/// What happened at `at`, to be written down with what it leads to.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Note {
    pub at: UnixTime,
    pub event: Event,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(missing_docs)] // The fields are the words of the sentence above each variant.
pub enum Event {
    /// The bastion began to serve.
    ServerStarted { version: String },
    /// The bastion stopped serving in good order.
    ServerStopped,
    /// A source was refused connections for `seconds`, after `after`.
    SourcePenalized { seconds: u64, after: Refusal },
    /// So many refusals were not written down by themselves, since there were too many: before sign-in,
    /// or in the session that is named.
    RefusalsSuppressed { count: u64 },

    /// A step of signing in was passed, with `key`: a public key's fingerprint, or what a certificate
    /// says it is.
    StepPassed {
        step: Step,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// A user certificate was refused: its key id, serial number and authority's fingerprint.
    CertificateRefused { id: String, serial: u64, authority: String, reason: CertificateFault },
    /// A step of signing in failed.
    StepFailed { step: Step, reason: Refusal },
    /// A code would have matched `seconds` away from now: the app's clock is off by that.
    /// Positive: the app is ahead of the bastion.
    ClockDrift { seconds: i64 },
    /// A RADIUS server answered; `message` is its text, printable.
    RadiusAnswered {
        server: String,
        verdict: RadiusVerdict,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        message: String,
    },
    /// No RADIUS server answered: `error` names each, and why.
    RadiusUnanswered { error: String },
    /// Failures locked the account for one source, or for all of the `network` that it is in.
    SourceLocked {
        failures: i64,
        until: UnixTime,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// Since `since` so many sign-ins as the account failed, from whatever sources: said once for each
    /// such time.
    AccountUnderAttack { failures: i64, since: UnixTime },
    /// Since `since` so many codes were wrong that followed a right first factor of the account, from
    /// whatever sources: until then a code is taken only from where somebody signed in before.
    CodeLimitReached { failures: i64, since: UnixTime, until: UnixTime },
    /// Signing in was refused.
    SignInRefused { reason: Refusal },
    /// Somebody signed in, by `steps`; from here the session is open.
    SignedIn { steps: Vec<Step> },
    /// A session ended.
    SessionEnded { reason: EndReason, up: u64, down: u64 },

    /// An authenticator was bound.
    AuthenticatorBound { recovery_codes: u32 },
    /// An authenticator was unbound.
    AuthenticatorUnbound,
    /// New recovery codes were made; those before are void.
    RecoveryCodesRenewed { recovery_codes: u32 },
    /// A recovery code was used up.
    RecoveryCodeUsed { left: u32 },
    /// The login CA gave the user a certificate for `key`, which holds until then.
    CertificateIssued {
        serial: i64,
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        until: UnixTime,
    },
    /// A login with `key` and a code is remembered until then, from its source.
    LoginRemembered { login: Id, key: String, until: UnixTime },
    /// Remembered logins of a user were forgotten before their time was over.
    LoginsForgotten { name: UserName, logins: u64 },
    /// A certificate of the login CA was revoked before its time was over.
    CertificateRevoked { name: UserName, serial: i64 },
    /// The binding window was opened.
    BindingWindowOpened { until: UnixTime },

    /// A forward was let through, before anything was dialled.
    ForwardOpened { forward: Id, destination: Destination, target: TargetName, grant: Id },
    /// A forward was refused.
    ForwardRefused {
        /// What the client asked for, printable: it may be no valid destination.
        destination: String,
        /// The target that it means, if it means one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<TargetName>,
        reason: Refusal,
    },
    /// A forward was let through, and the target could not be reached.
    ForwardFailed { forward: Id, destination: Destination, target: TargetName, error: String },
    /// A forward closed, with the address that was dialled for it and the bytes sent to the target
    /// (`up`) and from it (`down`).
    ForwardClosed {
        forward: Id,
        /// As it was opened; missing in older logs, as is the target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<Destination>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<TargetName>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<SocketAddr>,
        up: u64,
        down: u64,
        reason: String,
    },
    /// A target showed a host key that is not trusted; nothing was sent to it.
    HostKeyRefused { target: TargetName, offered: String, trusted: Vec<String> },
    /// The bastion signed in on a target as `account`, by `auth`.
    TargetSignedIn { target: TargetName, account: AccountName, auth: AccountAuth },
    /// The bastion could not sign in on a target, or lost it.
    TargetFailed { target: TargetName, account: AccountName, error: String },
    /// A target opened a channel, of the kind `what`, that nobody had asked it for; it was refused.
    UnaskedChannel { target: TargetName, account: AccountName, what: String },
    /// The fresh code was given that an account of a target asks for.
    StepUpPassed { target: TargetName, account: AccountName },
    /// An account of a target was refused.
    AccountRefused { target: TargetName, account: String, reason: Refusal },
    /// A recording began: of a shell, a command or a subsystem.
    RecordingStarted {
        recording: Id,
        target: TargetName,
        account: AccountName,
        what: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command: Option<String>,
        grants: Vec<Id>,
    },
    /// A recording ended. `outcome` is the exit status or what else ended it; `size` and `sha256`
    /// are the file's.
    RecordingEnded {
        recording: Id,
        up: u64,
        down: u64,
        outcome: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// A recording reached the `max` bytes that one may take, and holds nothing of what came after.
    RecordingFull { recording: Id, max: u64 },
    /// The recordings of an account that are being written on a node reached the `max` bytes that they
    /// may take together, and this one holds nothing of what came after.
    AccountRecordingsFull { recording: Id, max: u64 },
    /// A connection from the target on was opened: `to` says where it leads.
    OnwardOpened { target: TargetName, account: AccountName, to: String },
    /// Such a connection closed, with its bytes; `reason` where neither side closed it.
    OnwardClosed {
        target: TargetName,
        account: AccountName,
        to: String,
        up: u64,
        down: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody read a recording: played, watched, searched with a hit, or exported it.
    RecordingRead { recording: Id, how: String },
    /// Retention removed a recording's file.
    RecordingRemoved { recording: Id, reason: String },
    /// Something was asked for within a recorded connection that is not granted.
    UseRefused { target: TargetName, account: AccountName, what: String, reason: Refusal },
    /// A file was read, written or changed on a target.
    FileAccessed {
        recording: Id,
        operation: String,
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        read: u64,
        written: u64,
        outcome: String,
    },
    /// A request or channel that is not offered was refused.
    RequestRefused { request: String, reason: Refusal },
    /// A command was run in a session on the bastion itself.
    CommandRun { command: String },
    /// A command in a session on the bastion itself was refused.
    CommandRefused { command: String, reason: Refusal },

    /// A user was added.
    UserAdded { name: UserName, role: Role, factor: Verifier, one_time_password: bool },
    /// A user was removed.
    UserRemoved { name: UserName },
    /// A user was disabled.
    UserDisabled { name: UserName },
    /// A user was enabled.
    UserEnabled { name: UserName },
    /// A user's locks were lifted.
    UserUnlocked { name: UserName, sources: u64 },
    /// A user's password was set; `one_time` if it must be changed at the next login.
    PasswordSet { name: UserName, one_time: bool },
    /// An administrator let the password that a user has bind an authenticator.
    PasswordMayBind { name: UserName },
    /// A public key was added to a user.
    KeyAdded { name: UserName, key: String },
    /// A public key was removed from a user.
    KeyRemoved { name: UserName, key: String },
    /// It was set what answers for a user's second step; without `factor`, what their groups say.
    UserFactorSet {
        name: UserName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        factor: Option<Verifier>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<RadiusMode>,
    },
    /// The same, for the members of a group of whom nothing is set.
    GroupFactorSet {
        group: GroupName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        factor: Option<Verifier>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<RadiusMode>,
    },
    /// It was set which factors a user has to sign in with; without `rule`, what their groups say.
    UserSignInSet {
        name: UserName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<SignInRule>,
    },
    /// The same, for the members of a group without a rule of their own.
    GroupSignInSet {
        group: GroupName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<SignInRule>,
    },
    /// It was set for how long logins of a group's members are remembered; 0: not at all; without
    /// `seconds`, what their other groups say.
    GroupRememberSet {
        group: GroupName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u64>,
    },
    /// It was set which factors whoever wants to reach a target has to have signed in with; without
    /// `rule`, what let them in is enough.
    TargetSignInSet {
        target: TargetName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<SignInRule>,
    },
    /// A group was added.
    GroupAdded { group: GroupName },
    /// A group was removed.
    GroupRemoved { group: GroupName },
    /// A user joined a group.
    GroupJoined { group: GroupName, name: UserName },
    /// A user left a group.
    GroupLeft { group: GroupName, name: UserName },
    /// A target was added.
    TargetAdded { target: TargetName, address: String, mode: String, labels: Vec<String> },
    /// A target was removed.
    TargetRemoved { target: TargetName },
    /// An account of a target was added, signed in on by `auth`.
    AccountAdded { target: TargetName, account: AccountName, auth: AccountAuth },
    /// An account of a target was removed.
    AccountRemoved { target: TargetName, account: AccountName },
    /// A host key of a target, or the key of an authority that signs them, is trusted from now on.
    HostKeyPinned { target: TargetName, key: String, authority: bool },
    /// A host key or authority is no longer trusted.
    HostKeyUnpinned { target: TargetName, key: String },
    /// A grant was added; `rule` is its text as `grant list` shows it.
    GrantAdded { grant: Id, rule: String },
    /// A grant was removed.
    GrantRemoved { grant: Id, rule: String },
    /// Somebody asked for a session to be ended.
    KillRequested { target_session: Id },
    /// Stored secrets were sealed anew under the key `key`.
    KeyRotated { key: String, secrets: u64 },
}

/// Every kind of event, as its JSON names it.
pub fn kinds() -> &'static [&'static str] {
    /// serde's answer to a kind that is none.
    #[derive(Debug, thiserror::Error)]
    #[error("no such kind")]
    struct Known(&'static [&'static str]);

    impl de::Error for Known {
        fn custom<T: std::fmt::Display>(_: T) -> Self {
            Self(&[])
        }

        fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
            Self(known)
        }
    }

    let none = MapDeserializer::<_, Known>::new(std::iter::once(("kind", "")));
    Event::deserialize(none).map_or_else(|known| known.0, |_| &[])
}

/// An event with its place in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, counted from 1 without a gap.
    pub seq: i64,
    /// When it was written.
    pub at: UnixTime,
    /// The node that wrote it.
    pub node: String,
    /// The hash of the record before it, in hex; 64 zeros in front of the first.
    pub prev: String,
    /// Where it belongs.
    #[serde(flatten)]
    pub context: Context,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_logs_hold_reads_and_is_written_as_it_was() {
        for text in [
            r#"{"kind":"forward-closed","forward":"0123456789abcdef0123456789abcdef","up":1,"down":2,"reason":"x"}"#,
            r#"{"kind":"forward-refused","destination":"db1:22","reason":"not-granted"}"#,
        ] {
            let event: Event = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&event).unwrap(), text);
        }
    }

    #[test]
    fn every_kind_is_known() {
        let kinds = kinds();
        assert!(kinds.len() > 40 && kinds.contains(&"signed-in") && kinds.contains(&"key-rotated"));
    }
}
