//! Passwords: hashing (Argon2id, RFC 9106), comparing, making one-time ones, judging new ones.
//!
//! Always holds: a hash that cannot be read never matches, and comparing takes the same work for
//! a right, a wrong and an oversized password.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::{ExposeSecret as _, SecretString};

use crate::domain::{Id, UserName};

/// The longest password that is looked at, in bytes: hashing must not be made slow by long input.
const MAX_BYTES: usize = 128;

/// What a hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// OWASP's recommendation for Argon2id: 19 MiB, two passes, one lane.
impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1 }
    }
}

/// A password could not be hashed or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cost is out of range, or a stored hash is no PHC string of Argon2.
    #[error("failed to hash or compare a password: {0}")]
    Hash(String),
    /// The system has no randomness to give.
    #[error("failed to get randomness from the system: {0}")]
    Random(#[from] getrandom::Error),
}

/// Whether a password is the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verified {
    /// It is.
    Match {
        /// Its hash has another cost than is wanted now.
        rehash: bool,
    },
    /// It is not.
    Mismatch,
}

fn argon2(cost: Cost) -> Result<Argon2<'static>, Error> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, None)
        .map_err(|e| Error::Hash(e.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes `password` with a new salt; the result is a PHC string.
///
/// # Errors
/// When the cost is out of range, or the system has no randomness.
pub fn hash(password: &SecretString, cost: Cost) -> Result<String, Error> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)?;
    let hash = argon2(cost)?
        .hash_password_with_salt(password.expose_secret().as_bytes(), &salt)
        .map_err(|e| Error::Hash(e.to_string()))?;
    Ok(hash.to_string())
}

/// Compares `password` with the PHC string `phc`, at the cost that `phc` names.
///
/// # Errors
/// When `phc` is no hash of Argon2.
pub fn verify(password: &SecretString, phc: &str, wanted: Cost) -> Result<Verified, Error> {
    let parsed = PasswordHash::new(phc).map_err(|e| Error::Hash(e.to_string()))?;
    let params = Params::try_from(&parsed).map_err(|e| Error::Hash(e.to_string()))?;
    let bytes = password.expose_secret().as_bytes();
    // An oversized one is cut, compared for the time that takes, and never right.
    let head = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    match Argon2::default().verify_password(head, &parsed) {
        Ok(()) if bytes.len() <= MAX_BYTES => {
            let cost = Cost {
                memory_kib: params.m_cost(),
                passes: params.t_cost(),
                lanes: params.p_cost(),
            };
            Ok(Verified::Match { rehash: cost != wanted })
        }
        Ok(()) | Err(argon2::password_hash::Error::PasswordInvalid) => Ok(Verified::Mismatch),
        Err(error) => Err(Error::Hash(error.to_string())),
    }
}

/// A hash of `cost` that nobody's password matches: what it was made from is forgotten.
///
/// # Errors
/// As [`hash`].
pub fn decoy(cost: Cost) -> Result<String, Error> {
    hash(&one_time()?, cost)
}

/// A password of 12 characters (60 bits), to be changed at its first use.
///
/// # Errors
/// When the system has no randomness.
pub fn one_time() -> Result<SecretString, Error> {
    Ok(SecretString::from(Id::random()?.into_string()))
}

/// What a new password must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The least number of characters.
    pub min_length: usize,
    /// The least score of zxcvbn, 0 to 4.
    pub min_score: u8,
}

impl Default for Rules {
    fn default() -> Self {
        Self { min_length: 12, min_score: 3 }
    }
}

/// Why a new password is not taken. The text is for the person who chose it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Broken {
    #[error("That password is too short: use at least {0} characters.")]
    TooShort(usize),
    #[error("That password is too long: use at most {MAX_BYTES} bytes.")]
    TooLong,
    #[error("That is the password you have now: choose another.")]
    Same,
    #[error("That password has a character that is not printable: leave it out.")]
    Unprintable,
    #[error("That password is too easy to guess. {0}")]
    Guessable(String),
}

/// Judges the password `new`, to be used in the place of `old`.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_new(
    new: &SecretString,
    old: Option<&SecretString>,
    user: &UserName,
    rules: &Rules,
) -> Result<(), Broken> {
    let text = new.expose_secret();
    let old = old.map(|old| old.expose_secret());
    // Never shorter than the one-time one: replacing it must not make the account weaker.
    let least = old.map_or(rules.min_length, |old| rules.min_length.max(old.chars().count()));
    if text.chars().count() < least {
        return Err(Broken::TooShort(least));
    }
    if text.len() > MAX_BYTES {
        return Err(Broken::TooLong);
    }
    if old == Some(text) {
        return Err(Broken::Same);
    }
    if text.chars().any(char::is_control) {
        return Err(Broken::Unprintable);
    }
    let guess = zxcvbn::zxcvbn(text, &[user.as_str(), "sallyport", "bastion"]);
    if u8::from(guess.score()) < rules.min_score {
        let advice = guess.feedback().map(|feedback| {
            let suggestions = feedback.suggestions().iter().map(ToString::to_string);
            feedback
                .warning()
                .map(|w| w.to_string())
                .into_iter()
                .chain(suggestions)
                .collect::<Vec<_>>()
        });
        let advice = advice.filter(|a| !a.is_empty()).map(|a| a.join(" "));
        let advice = advice.unwrap_or_else(|| "Use a few uncommon words.".to_owned());
        return Err(Broken::Guessable(advice));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[test]
    fn only_the_right_password_matches() {
        let phc = hash(&secret("right"), CHEAP).unwrap();
        assert_eq!(
            verify(&secret("right"), &phc, CHEAP).unwrap(),
            Verified::Match { rehash: false }
        );
        assert_eq!(
            verify(&secret("right"), &phc, Cost::default()).unwrap(),
            Verified::Match { rehash: true }
        );
        for wrong in ["", "Right", "right "] {
            assert_eq!(verify(&secret(wrong), &phc, CHEAP).unwrap(), Verified::Mismatch);
        }
        assert!(verify(&secret("right"), "", CHEAP).is_err());
        assert!(verify(&secret("right"), "$argon2id$v=19$m=8,t=1,p=1$AAAA", CHEAP).is_err());
    }

    #[test]
    fn an_oversized_password_is_never_right() {
        let long = "x".repeat(MAX_BYTES);
        let phc = hash(&secret(&long), CHEAP).unwrap();
        assert_eq!(verify(&secret(&long), &phc, CHEAP).unwrap(), Verified::Match { rehash: false });
        assert_eq!(verify(&secret(&format!("{long}y")), &phc, CHEAP).unwrap(), Verified::Mismatch);
    }

    #[test]
    fn nothing_matches_the_decoy() {
        let decoy = decoy(CHEAP).unwrap();
        assert!(decoy.contains("m=8,t=1,p=1"));
        assert_eq!(verify(&secret(""), &decoy, CHEAP).unwrap(), Verified::Mismatch);
    }

    #[test]
    fn one_time_passwords_are_long_and_differ() {
        let (a, b) = (one_time().unwrap(), one_time().unwrap());
        assert_eq!(a.expose_secret().len(), 12);
        assert_ne!(a.expose_secret(), b.expose_secret());
    }

    #[test]
    fn new_passwords_are_judged() {
        let user = "alice".parse().unwrap();
        let check = |new: &str, old: Option<&str>| {
            check_new(&secret(new), old.map(secret).as_ref(), &user, &Rules::default())
        };
        assert_eq!(check("correct horse battery", None), Ok(()));
        assert_eq!(check("shorty", None), Err(Broken::TooShort(12)));
        assert_eq!(
            check("purple tin shed", Some("an old one that is longer")),
            Err(Broken::TooShort(25))
        );
        assert_eq!(check("gleaming cactus 9", Some("gleaming cactus 9")), Err(Broken::Same));
        assert_eq!(check("tab\tinside the word", None), Err(Broken::Unprintable));
        assert_eq!(check(&"ab é 7 ".repeat(30), None), Err(Broken::TooLong));
        for weak in ["aaaaaaaaaaaaaa", "password1234", "alicealicealice"] {
            assert!(matches!(check(weak, None), Err(Broken::Guessable(_))), "{weak}");
        }
    }
}
