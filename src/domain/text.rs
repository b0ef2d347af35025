//! Makes untrusted text safe to show: on a terminal, in a log line, in a table.

use std::fmt::Write as _;

/// `text` with every character that a terminal could act on written out as an escape.
///
/// Control characters (C0, C1, DEL), bidirectional and invisible format characters
/// (U+200B-200F, U+2028-202E, U+2060-206F, U+FEFF, tags) become `\u{..}`, so neither a cursor
/// movement nor a reordered line can be smuggled through a name, a client
/// version or a command. The result holds no line break.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            // Writing to a String cannot fail.
            if write!(out, "{}", c.escape_unicode()).is_err() {
                break;
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// JSON text with every character that [`printable`] escapes written as `\uXXXX`.
///
/// JSON itself escapes only C0 controls (RFC 8259 section 7). The value a reader gets is
/// unchanged. Line breaks, which JSON has only between tokens, stay.
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if c == '\n' || !is_unsafe(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut units) {
            // Writing to a String cannot fail.
            if write!(out, "\\u{unit:04x}").is_err() {
                break;
            }
        }
    }
    out
}

/// Whether a terminal could act on `c`, or show nothing or another order for it: controls and what
/// Unicode calls format characters (Cf), of whose width no two terminals think alike.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00AD}' | '\u{0600}'..='\u{0605}' | '\u{061C}' | '\u{06DD}' | '\u{070F}'
            | '\u{0890}'..='\u{0891}' | '\u{08E2}' | '\u{110BD}' | '\u{110CD}'
            | '\u{13430}'..='\u{1345F}' | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E0FFF}')
}

/// The beginning of a client's text as it may stand in an audit event: short and printable.
pub fn noted(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_NOTED).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    printable(&short)
}

/// Characters of a client's text that are kept.
const MAX_NOTED: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_cursor_or_reorders_text_gets_through() {
        assert_eq!(printable("db1 größe 日本"), "db1 größe 日本");
        assert_eq!(
            printable("a\x1b[2Jb\r\n\t\x7f\u{9b}"),
            "a\\u{1b}[2Jb\\u{d}\\u{a}\\u{9}\\u{7f}\\u{9b}"
        );
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        // A number sign of which one terminal makes room for a column and another none.
        assert_eq!(printable("a\u{600}b"), "a\\u{600}b");
    }

    #[test]
    fn json_keeps_its_meaning_and_loses_its_control_characters() {
        let value = "é\x1b\x7f\u{9b}\u{202e}\u{e0041}\n";
        let json = printable_json(&serde_json::to_string(value).unwrap());
        assert_eq!(json, r#""é\u001b\u007f\u009b\u202e\udb40\udc41\n""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
    }
}
