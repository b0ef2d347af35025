//! Recovery codes: ten, each worth one login, for the day the phone is gone.
//!
//! Always holds: a code has 120 bits from the system's generator, is shown once and stored as a
//! hash; how it is typed (case, dashes, spaces, o for 0, i or l for 1) does not matter.

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::audit::chain::hex_sha256;
use crate::domain::Id;

/// How many codes an account has.
pub const COUNT: usize = 10;
/// Characters of a code, of five bits each.
const LEN: usize = 2 * Id::LEN;

/// A code as it is compared: upper and lower case, dashes and look-alikes settled.
#[derive(Clone, PartialEq, Eq)]
pub struct Code(Zeroizing<String>);

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code(..)")
    }
}

/// Makes a new set of codes: six groups of four characters each.
///
/// # Errors
/// When the system has no randomness.
pub fn generate() -> Result<Vec<SecretString>, getrandom::Error> {
    (0..COUNT).map(|_| one()).collect()
}

fn one() -> Result<SecretString, getrandom::Error> {
    let half = || Id::random().map(|id| Zeroizing::new(id.into_string()));
    let (head, tail) = (half()?, half()?);
    // Exactly as long as it gets: a larger one would be copied to be made smaller.
    let mut code = String::with_capacity(LEN + LEN / 4 - 1);
    for (i, c) in head.chars().chain(tail.chars()).enumerate() {
        if i > 0 && i % 4 == 0 {
            code.push('-');
        }
        code.push(c);
    }
    Ok(SecretString::from(code))
}

/// Reads what somebody typed; `None` if it can be no recovery code.
pub fn normalize(typed: &str) -> Option<Code> {
    let settled = typed.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| {
        match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            other => other,
        }
    });
    let mut text = Zeroizing::new(String::with_capacity(LEN + 1));
    text.extend(settled.take(LEN + 1));
    let (head, tail) = text.split_at_checked(Id::LEN)?;
    (Id::is(head) && Id::is(tail)).then_some(Code(text))
}

/// What is stored of a code. It has 120 bits, so nobody can try them out: a fast hash will do.
/// The user's id is in it, so that equal codes of two users would not look equal.
pub fn hash(user: &Id, code: &Code) -> String {
    let text = Zeroizing::new(format!("sallyport-recovery-1 {user} {}", &*code.0));
    hex_sha256(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn codes_read_back_however_they_are_typed() {
        let codes = generate().unwrap();
        assert_eq!(codes.len(), COUNT);
        let user = Id::random().unwrap();
        for code in &codes {
            let shown = code.expose_secret();
            assert_eq!(shown.len(), 29);
            let plain = normalize(shown).unwrap();
            let sloppy = shown.to_uppercase().replace('-', " ").replace('0', "O").replace('1', "l");
            assert_eq!(normalize(&sloppy).unwrap(), plain);
            assert_ne!(hash(&user, &plain), hash(&Id::random().unwrap(), &plain));
        }
        for other in ["", "123456", "i", "zzzz-zzzz", &"0".repeat(25), &"é".repeat(12)] {
            assert_eq!(normalize(other), None, "{other}");
        }
    }
}
