//! What signing in needs to know of an account: a snapshot, read in one transaction.

use std::time::Duration;

use super::machine::{Certified, Claim};
use super::totp::Secret;
use super::{recovery, totp};
use crate::audit::Refusal;
use crate::domain::{Id, Role, SecondFactor, SignInPolicy, TimeStep, UnixTime, UserName, Verifier};

/// An account as it was when its owner began to sign in.
#[derive(Debug, Clone)]
pub struct Account {
    /// The row's id.
    pub id: Id,
    /// The name.
    pub name: UserName,
    /// What it may do with the bastion itself.
    pub role: Role,
    /// What answers for its second step.
    pub factor: SecondFactor,
    /// Which factors are enough to sign in.
    pub sign_in: SignInPolicy,
    /// Grows whenever older logins must end; a login commits only against the epoch it began with.
    pub epoch: i64,
    /// Whether an administrator disabled it.
    pub disabled: bool,
    /// The password's hash, a PHC string.
    pub password: String,
    /// Whether the password has to be changed at this login.
    pub one_time: bool,
    /// Whether its password may bind an authenticator though it is no one-time one: it was set for that.
    pub password_binds: bool,
    /// Until when an authenticator may be bound.
    pub binding_until: Option<UnixTime>,
    /// The bound authenticator.
    pub otp: Option<Otp>,
    /// SHA-256 fingerprints of the account's public keys.
    pub keys: Vec<String>,
    /// The login CA's certificates that hold for it: serial numbers, and the keys' fingerprints.
    pub certificates: Vec<(i64, String)>,
    /// Logins that are remembered.
    pub remembered: Vec<Remembered>,
    /// How many recovery codes are unused.
    pub recovery_left: u32,
    /// By how many seconds the authenticator's clock was off when a code last failed for it.
    pub drift: Option<i64>,
}

/// A login with a key and a code that is remembered: no code is asked for meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its id.
    pub id: Id,
    /// The fingerprint of the key.
    pub key: String,
    /// The address that it came from.
    pub source: std::net::IpAddr,
}

/// A bound authenticator.
#[derive(Debug, Clone)]
pub struct Otp {
    /// The secret it shares with us.
    pub secret: Secret,
    /// The newest step whose code was used.
    pub last_step: TimeStep,
}

/// Why a code that was typed claims nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongCode {
    /// What is wrong with it.
    pub reason: Refusal,
    /// By how many seconds the authenticator's clock seems to be off.
    pub drift: Option<i64>,
}

impl Otp {
    /// What is to be used up for what somebody typed at `now`: the step of a code, or a recovery code, of
    /// which only the store knows whether there is such.
    ///
    /// # Errors
    /// What is wrong with a code.
    pub fn claim(&self, account: &Id, typed: &str, now: UnixTime) -> Result<Claim, WrongCode> {
        if let Some(code) = recovery::normalize(typed) {
            return Ok(Claim::RecoveryCode(recovery::hash(account, &code)));
        }
        let wrong = |reason, drift| Err(WrongCode { reason, drift });
        match totp::check(&self.secret, typed, now, self.last_step) {
            totp::Check::Matches(step) => Ok(Claim::Code(step)),
            totp::Check::Replayed(_) => wrong(Refusal::ReplayedCode, None),
            totp::Check::Drifted { seconds } => wrong(Refusal::WrongCode, Some(seconds)),
            totp::Check::Wrong => wrong(Refusal::WrongCode, None),
        }
    }
}

/// Failures in a row, of one account from one source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttle {
    /// How many.
    pub failures: i64,
    /// Until when everything is refused.
    pub locked_until: Option<UnixTime>,
}

/// How long wrong codes of an account are counted together, from the first: as long holds what they lead
/// to.
pub const CODE_FAILURES_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a source is known from which somebody signed in with a code.
pub const KNOWN_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// When failures slow down and lock out, for one account and source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrottleRules {
    /// Failures in a row that lock.
    pub lock_after: i64,
    /// Failures in a row of one IPv6 site, over all its networks, that lock the account for it.
    pub site_lock_after: i64,
    /// Failures from everywhere within `lock_for` that administrators are told of.
    pub attack_after: i64,
    /// Wrong codes after a right first factor from everywhere, within [`CODE_FAILURES_FOR`], past which
    /// only a known source's codes are taken.
    pub code_failures_max: i64,
    /// How long a lock lasts; also, how long failures are remembered.
    pub lock_for: Duration,
    /// The wait after the first failure; it doubles with each.
    pub backoff_first: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl ThrottleRules {
    /// How long the answer to the latest of `failures` failures in a row is held back.
    pub fn backoff(&self, failures: i64) -> Duration {
        let doublings = u32::try_from(failures.clamp(1, 32) - 1).unwrap_or(0);
        self.backoff_first
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(self.backoff_max)
    }
}

/// What an account may do at the moment of signing in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Standing {
    /// It has an authenticator: a code decides.
    Bound,
    /// It has none yet and may bind one with its password.
    MayBind,
    /// A RADIUS server decides.
    Radius,
    /// Nothing it answers will be right.
    Closed(Refusal),
}

impl Account {
    /// Whether a certificate of the login CA is one that holds for the account.
    pub fn holds(&self, certified: &Certified) -> bool {
        let Certified { serial, key, .. } = certified;
        self.certificates.iter().any(|(s, k)| u64::try_from(*s) == Ok(*serial) && k == key)
    }

    /// What the account may do at `now`.
    pub fn standing(&self, throttle: &Throttle, now: UnixTime) -> Standing {
        if self.disabled {
            Standing::Closed(Refusal::Disabled)
        } else if throttle.locked_until.is_some_and(|until| now < until) {
            Standing::Closed(Refusal::Locked)
        } else if self.factor.factor == Verifier::Radius {
            Standing::Radius
        } else if self.otp.is_some() {
            Standing::Bound
        } else if self.may_bind(now) {
            Standing::MayBind
        } else {
            Standing::Closed(Refusal::BindingClosed)
        }
    }

    /// Whether the window is open and the password is one to bind with: one that somebody else may have
    /// learned while it was in use is not (a phisher could bind before its owner).
    fn may_bind(&self, now: UnixTime) -> bool {
        (self.one_time || self.password_binds)
            && self.binding_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let rules = ThrottleRules {
            site_lock_after: 100,
            attack_after: 100,
            code_failures_max: 50,
            lock_after: 10,
            lock_for: Duration::from_secs(1800),
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
        };
        let waits: Vec<u64> = [0, 1, 2, 3, 5, 6, 99].map(|n| rules.backoff(n).as_secs()).into();
        assert_eq!(waits, [1, 1, 2, 4, 16, 30, 30]);
    }
}
