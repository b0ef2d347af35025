//! Time-based one-time codes: RFC 6238 with SHA-1, six digits and 30-second steps, which is what
//! every authenticator app speaks.
//!
//! Always holds: a code counts only for the present step and its two neighbours, and never for a
//! step up to the last one used; all steps are compared, whichever matches.

use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use totp_rs::{Builder, Totp};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::domain::{TimeStep, UnixTime, UserName};

/// How many steps before and after the present one are accepted.
const WINDOW: i64 = 1;
/// How many steps away a code is still recognised, to tell how far a clock is off.
const RECOGNISED: i64 = 10;

/// The secret that an authenticator shares with us: 160 bits (RFC 4226 section 4). On the heap, so
/// that a move leaves no copy behind.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(Box<[u8; LEN]>);

const LEN: usize = 20;

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// How many bytes it has.
    pub const LEN: usize = LEN;

    /// The secret made of these bytes.
    pub fn from_bytes(bytes: &[u8; LEN]) -> Self {
        let mut secret = Self(Box::new([0; LEN]));
        secret.0.copy_from_slice(bytes);
        secret
    }

    /// A new secret from the system's random number generator.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut secret = Self(Box::new([0; LEN]));
        getrandom::fill(&mut secret.0[..])?;
        Ok(secret)
    }

    /// The secret's bytes, for sealing.
    pub fn expose(&self) -> &[u8] {
        &self.0[..]
    }

    fn copy(&self) -> totp_rs::Secret {
        totp_rs::Secret::new(self.0.clone())
    }

    fn totp(&self) -> Builder {
        Builder::new().with_secret(self.copy())
    }

    fn base32(&self) -> Zeroizing<String> {
        Zeroizing::new(self.copy().to_base32())
    }
}

/// What a typed code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Check {
    /// Right, for this step.
    Matches(TimeStep),
    /// Right for the window, but its step, or a later one, was used.
    Replayed(TimeStep),
    /// Right for another moment: the app's clock is off by so many seconds (positive: ahead).
    Drifted {
        /// See above.
        seconds: i64,
    },
    /// Nothing of that.
    Wrong,
}

/// Compares what somebody typed with the codes around `now`; `last` is the newest step used.
pub fn check(secret: &Secret, typed: &str, now: UnixTime, last: TimeStep) -> Check {
    let (Some(typed), Ok(totp)) = (digits(typed), secret.totp().build()) else {
        return Check::Wrong;
    };
    let present = now.step().0;
    let (mut fresh, mut used, mut drift) = (i64::MIN, i64::MIN, i64::MIN);
    // The nearest last, so that it is the one that stays; no step is left out.
    let mut offsets: Vec<i64> = (-RECOGNISED..=RECOGNISED).collect();
    offsets.sort_by_key(|offset| std::cmp::Reverse(offset.abs()));
    for offset in offsets {
        let step = present + offset;
        let is = code(&totp, step).ct_eq(&typed);
        let inside = Choice::from(u8::from(offset.abs() <= WINDOW));
        let new = Choice::from(u8::from(step > last.0));
        fresh.conditional_assign(&step, is & inside & new);
        used.conditional_assign(&step, is & inside & !new);
        drift.conditional_assign(&offset, is & !inside);
    }
    match (fresh, used, drift) {
        (i64::MIN, i64::MIN, i64::MIN) => Check::Wrong,
        (i64::MIN, i64::MIN, offset) => {
            Check::Drifted { seconds: offset * i64::try_from(TimeStep::SECONDS).unwrap_or(30) }
        }
        (i64::MIN, step, _) => Check::Replayed(TimeStep(step)),
        (step, ..) => Check::Matches(TimeStep(step)),
    }
}

/// The code of a step as its six digits; of no step before the epoch.
fn code(totp: &Totp, step: i64) -> [u8; 6] {
    let Ok(step) = u64::try_from(step) else { return [0; 6] };
    let mut code = [0; 6];
    let text = totp.generate(step.saturating_mul(TimeStep::SECONDS)).to_string();
    for (digit, byte) in code.iter_mut().zip(text.bytes()) {
        *digit = byte;
    }
    code
}

/// Six digits, as people type them: spaces around and inside do not matter.
fn digits(typed: &str) -> Option<[u8; 6]> {
    let bare: Vec<u8> = typed.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let six = <[u8; 6]>::try_from(bare).ok()?;
    six.iter().all(u8::is_ascii_digit).then_some(six)
}

/// The `otpauth://` URI that a QR code carries, as short as apps understand it.
pub fn uri(issuer: &str, user: &UserName, secret: &Secret) -> Zeroizing<String> {
    // A colon would end the issuer within the label.
    let issuer = issuer.replace(':', " ");
    // The crate makes copies on its way that it does not wipe: it is given a blank.
    let blank = Secret(Box::new([0; LEN]));
    let builder = blank.totp().with_issuer(Some(issuer)).with_account_name(user.as_str());
    let uri = builder.build().and_then(|totp| totp.to_url()).unwrap_or_default();
    let stand_in = format!("?secret={}", &*blank.base32());
    let (label, rest) = uri.split_once(&stand_in).unwrap_or_default();
    Zeroizing::new([label, "?secret=", &secret.base32(), rest].concat())
}

/// The secret in base32 (RFC 4648), in groups of four, as people type it into an app.
pub fn grouped(secret: &Secret) -> Zeroizing<String> {
    let base32 = secret.base32();
    let mut out = Zeroizing::new(String::with_capacity(base32.len() * 5 / 4));
    for (i, c) in base32.chars().enumerate() {
        if i > 0 && i % 4 == 0 {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEVER: TimeStep = TimeStep(i64::MIN);

    fn rfc() -> Secret {
        Secret::from_bytes(b"12345678901234567890")
    }

    fn at(step: i64) -> UnixTime {
        UnixTime(step * 30_000 + 7_000)
    }

    fn code_of(secret: &Secret, step: i64) -> String {
        String::from_utf8(code(&secret.totp().build().unwrap(), step).to_vec()).unwrap()
    }

    #[test]
    fn rfc_6238_appendix_b() {
        for (seconds, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            let now = UnixTime(seconds * 1000);
            assert_eq!(check(&rfc(), code, now, NEVER), Check::Matches(now.step()), "{seconds}");
        }
    }

    #[test]
    fn spaces_do_not_matter_and_anything_else_does() {
        let now = UnixTime(59_000);
        assert_eq!(check(&rfc(), " 287 082\r", now, NEVER), Check::Matches(TimeStep(1)));
        for wrong in ["", "28708", "2870820", "+87082", "２８７０８２", "abcdef"] {
            assert_eq!(check(&rfc(), wrong, now, NEVER), Check::Wrong, "{wrong}");
        }
    }

    #[test]
    fn the_window_is_one_step_and_ten_tell_the_drift() {
        let present = 50_000_000;
        for offset in -12_i64..=12 {
            let code = code_of(&rfc(), present + offset);
            let expected = match offset.abs() {
                0..=1 => Check::Matches(TimeStep(present + offset)),
                2..=10 => Check::Drifted { seconds: offset * 30 },
                _ => Check::Wrong,
            };
            assert_eq!(check(&rfc(), &code, at(present), NEVER), expected, "{offset}");
        }
    }

    #[test]
    fn what_people_are_shown() {
        let user = "alice".parse().unwrap();
        assert_eq!(
            *uri("Sallyport", &user, &rfc()),
            *"otpauth://totp/Sallyport:alice?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Sallyport"
        );
        assert_eq!(*grouped(&rfc()), *"GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ");
        assert!(uri("Acme: Ops", &user, &rfc()).starts_with("otpauth://totp/Acme"));
        assert_eq!(format!("{:?}", rfc()), "Secret(..)");
    }

    proptest! {
        #[test]
        fn a_used_step_never_matches_again(bytes: [u8; 20], present in 100_i64..1_000_000_000, offset in -1_i64..=1, last in -3_i64..=3) {
            let secret = Secret::from_bytes(&bytes);
            let (step, last) = (present + offset, TimeStep(present + last));
            match check(&secret, &code_of(&secret, step), at(present), last) {
                // Another step of the window may have the same code by chance.
                Check::Matches(found) => prop_assert!(found > last && (found.0 - present).abs() <= 1),
                Check::Replayed(found) => prop_assert!(found <= last && step <= last.0),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn arbitrary_text_is_never_taken_outside_the_window(bytes: [u8; 20], text in "\\PC{0,12}|[0-9]{6}", present in 100_i64..1_000_000_000) {
            let secret = Secret::from_bytes(&bytes);
            if let Check::Matches(step) = check(&secret, &text, at(present), NEVER) {
                prop_assert!((step.0 - present).abs() <= 1);
                prop_assert_eq!(code_of(&secret, step.0), text);
            }
        }
    }
}
