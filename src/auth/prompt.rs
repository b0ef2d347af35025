//! Every text that somebody sees while signing in.
//!
//! Always holds: prompts are plain text with line breaks, printable everywhere but for the half
//! blocks of the QR picture; the first screen of binding fits 80 columns and 24 rows for the
//! issuer "Sallyport" and a short user name, with the "(user@host) " that OpenSSH puts before it.

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::qr::{self, Style};
use super::totp::{self, Secret};
use crate::domain::printable;

/// Asks for the password.
pub const PASSWORD: &str = "Password: ";
/// Asks for the code. A recovery code is taken as well: whoever has one was told so.
pub const CODE: &str = "6-digit code: ";
/// Asks for what a RADIUS server wants to hear where it does not say what that is.
pub const RESPONSE: &str = "Response: ";
/// Tells somebody whose password was right why they are refused all the same.
pub const RADIUS_DEAD: &str = "The RADIUS servers do not answer: tell your administrator. Nobody \
                               whose code they check is let in without them.";
/// Asks for a password in place of the one-time one.
pub const NEW_PASSWORD: &str = "Choose a new password: ";
/// Asks for it again.
pub const REPEAT: &str = "Repeat the new password: ";
/// Says that the two differ.
pub const NO_MATCH: &str = "The two do not match.";
/// Says that the confirming code is wrong.
pub const BINDING_WRONG: &str = "That code is wrong: try the next one.";

/// Asks for a fresh code before a target is reached; `whom` is such as `root@db1`.
pub fn step_up(whom: &str) -> String {
    format!("6-digit code for {whom}: ")
}

/// Asks for the password that a RADIUS server knows, where the question could be taken for a target's.
pub const RADIUS_PASSWORD: &str = "Your password that RADIUS checks: ";

const BIND_ASK: &str = "6-digit code (i inverts the picture, a draws ASCII, r makes a new one): ";

/// Asks for a new password again, after saying why.
pub fn new_password_again(why: &str) -> String {
    format!("{why}\n{NEW_PASSWORD}")
}

/// Shows the picture and the key of a new authenticator, and asks for its first code.
pub fn bind(style: Style, uri: &str, secret: &Secret, note: Option<&str>) -> String {
    let picture = qr::render(uri, style);
    let rows = picture.as_ref().map_or(0, |picture| picture.lines().count() + 3);
    let head = match (note, style) {
        (Some(note), _) => note.to_owned(),
        (None, Style::Ascii) => format!("Scan this code: your window needs {rows} rows."),
        (None, _) => "Bind your authenticator app: scan this code.".to_owned(),
    };
    let picture = match picture {
        Ok(picture) => format!("{picture}\n  or type this key into the app:"),
        Err(_) => "  The name is too long for a picture. Type this key into the app:".to_owned(),
    };
    format!("{head}\n{picture}  {}\n{BIND_ASK}", &*totp::grouped(secret))
}

/// The most lines and characters in a line of a RADIUS server's text.
const CHALLENGE: (usize, usize) = (12, 200);

/// A RADIUS server's text as a prompt: short, and nothing in it that a terminal acts on.
pub fn challenge(message: &str) -> String {
    let (lines, characters) = CHALLENGE;
    let line = |line: &str| printable(&line.chars().take(characters).collect::<String>());
    let text: Vec<String> =
        message.trim().split('\n').take(lines).map(|l| line(l.trim_end())).collect();
    match text.join("\n") {
        empty if empty.is_empty() => RESPONSE.to_owned(),
        text => format!("{text} "),
    }
}

/// What was typed while the picture is on the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindInput {
    /// Swap dark and light.
    Invert,
    /// Draw in ASCII.
    Ascii,
    /// Make a new secret.
    Renew,
    /// A code, or what is meant to be one.
    Code(String),
}

/// Reads what was typed while the picture is on the screen.
pub fn bind_input(typed: &str) -> BindInput {
    match typed.trim() {
        "i" | "I" => BindInput::Invert,
        "a" | "A" => BindInput::Ascii,
        "r" | "R" => BindInput::Renew,
        code => BindInput::Code(code.to_owned()),
    }
}

/// Says that the confirming code is one of another moment.
pub fn binding_drift(seconds: i64) -> String {
    let side = if seconds > 0 { "fast" } else { "slow" };
    let seconds = seconds.unsigned_abs();
    format!("Your phone's clock is {seconds} s {side}: make it automatic.")
}

/// Shows the recovery codes, and waits.
pub fn recovery_codes(codes: &[SecretString]) -> String {
    // Growing would leave copies behind.
    let mut text = String::with_capacity(1024);
    text.push_str("Bound. Recovery codes, each works once:\n\n");
    text.push_str(&recovery_table(codes));
    text.push_str(
        "\nType one in place of a 6-digit code when your phone is gone. Keep them where\n",
    );
    text.push_str("your phone is not: they are not shown again. Press Enter to continue: ");
    text
}

/// Recovery codes, two a line.
pub fn recovery_table(codes: &[SecretString]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1024));
    for pair in codes.chunks(2) {
        for (gap, code) in ["  ", "   "].iter().zip(pair) {
            text.push_str(gap);
            text.push_str(code.expose_secret());
        }
        text.push('\n');
    }
    text
}

/// Says how many recovery codes are left, after one was used.
pub fn recovery_left(left: u32) -> String {
    match left {
        0 => {
            "That was your last recovery code: ask your administrator to reset your authenticator."
                .into()
        }
        1 => "1 recovery code is left.".into(),
        n => format!("{n} recovery codes are left."),
    }
}

/// Says, after a later login, why a code failed before.
pub fn clock_drift(seconds: i64) -> String {
    format!("An earlier code failed: your phone's clock is {}. Set it to automatic.", off(seconds))
}

/// How far a clock is off, in words such as "about 4 minutes fast".
pub fn off(seconds: i64) -> String {
    let side = if seconds > 0 { "fast" } else { "slow" };
    let amount = match seconds.unsigned_abs() {
        s if s < 120 => format!("{s} seconds"),
        s if s % 60 == 0 => format!("{} minutes", s / 60),
        s => format!("{} and a half minutes", s / 60),
    };
    format!("about {amount} {side}")
}

#[cfg(test)]
mod tests {
    use super::super::{qr::tests::decode_from_screen, recovery};
    use super::*;

    /// What OpenSSH puts before the text of a prompt.
    const PREFIX: &str = "(alice@bastion.example.org) ";

    fn fits_in(rows: usize, text: &str) -> bool {
        let text = format!("{PREFIX}{text}");
        let lines: Vec<&str> = text.split('\n').collect();
        // Behind the last prompt six digits are typed.
        let typed = lines.last().is_none_or(|line| line.chars().count() + 6 <= 80);
        lines.len() <= rows && typed && lines.iter().all(|line| line.chars().count() <= 80)
    }

    fn fits(text: &str) -> bool {
        fits_in(24, text)
    }

    #[test]
    fn the_first_screen_of_binding_fits_and_decodes() {
        let secret = Secret::from_bytes(b"12345678901234567890");
        let uri = totp::uri("Sallyport", &"alice".parse().unwrap(), &secret);
        for (style, note) in [
            (Style::HalfBlocks, None),
            (Style::Inverted, Some(BINDING_WRONG.to_owned())),
            (Style::HalfBlocks, Some(binding_drift(-300))),
            (Style::HalfBlocks, Some(binding_drift(150))),
        ] {
            let text = bind(style, &uri, &secret, note.as_deref());
            assert!(fits(&text), "{text}");
            // The cursor stands behind the last prompt: nothing has scrolled off.
            assert_eq!(decode_from_screen(&text, 24, 80).as_deref(), Some(uri.as_str()), "{text}");
            assert!(text.contains("GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ"));
        }
    }

    #[test]
    fn ascii_says_how_many_rows_it_needs_and_needs_no_more_columns() {
        let secret = Secret::from_bytes(b"12345678901234567890");
        let uri = totp::uri("Sallyport", &"alice".parse().unwrap(), &secret);
        let text = bind(Style::Ascii, &uri, &secret, None);
        let rows = text.lines().count();
        assert!(text.starts_with(&format!("Scan this code: your window needs {rows} rows.")));
        assert!(fits_in(rows, &text), "{text}");
    }

    #[test]
    fn recovery_codes_fit_and_are_all_shown() {
        let codes = recovery::generate().unwrap();
        let text = recovery_codes(&codes);
        assert!(fits(&text), "{text}");
        assert!(codes.iter().all(|code| text.contains(code.expose_secret())));
    }

    #[test]
    fn one_letter_is_a_wish_and_the_rest_a_code() {
        assert_eq!(bind_input(" I\r"), BindInput::Invert);
        assert_eq!(bind_input("a"), BindInput::Ascii);
        assert_eq!(bind_input("r"), BindInput::Renew);
        assert_eq!(bind_input(" 123456 "), BindInput::Code("123456".into()));
    }

    #[test]
    fn a_servers_text_is_short_and_harmless() {
        assert_eq!(challenge(" \r\n"), RESPONSE);
        assert_eq!(challenge("Enter your code: "), "Enter your code: ");
        assert_eq!(challenge("1 SMS\r\n2 call\n\x1b[2J?"), "1 SMS\n2 call\n\\u{1b}[2J? ");
        let long = challenge(&"x\u{202e}".repeat(4000).replace("xx", "x\n"));
        assert!(long.lines().count() <= 12 && long.len() <= 12 * 200 * 8);
        assert!(long.chars().all(|c| c == '\n' || !crate::domain::is_unsafe(c)));
    }

    #[test]
    fn clocks_are_described_in_words() {
        assert!(clock_drift(240).contains("about 4 minutes fast"));
        assert!(clock_drift(-90).contains("about 90 seconds slow"));
        assert!(clock_drift(150).contains("about 2 and a half minutes fast"));
    }
}
