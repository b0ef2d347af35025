//! Reads keys out of the bytes that a terminal sends.
//!
//! Always holds: any bytes are taken, in pieces of any size, and what is remembered of them is
//! bounded; no more keys come out than bytes went in; a character that a terminal could act on is
//! no key. A lone Esc looks like the beginning of a sequence, so it comes out of
//! [`Keys::flush`], which whoever reads calls after [`Keys::PAUSE`] in which nothing came.
//!
//! The sequences are those of ECMA-48 (CSI, section 5.4) and of the VT220 (SS3), as xterm, PuTTY in
//! each of its keyboard modes, rxvt and the Linux console send them.

use std::time::Duration;

use crate::domain::is_unsafe;

/// The longest parameters of a sequence that is a key.
const MAX_PARAMETERS: usize = 16;
/// The longest answer of a terminal, to a question nobody asked, that is passed over.
const MAX_STRING: usize = 4096;

/// What was pressed. Shift, Alt and Ctrl with a key that moves make no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A character that can be shown.
    Char(char),
    /// Ctrl with a letter, which is here in lower case.
    Ctrl(char),
    /// Enter, also that of the keypad.
    Enter,
    /// Tab.
    Tab,
    /// Tab with Shift.
    BackTab,
    /// Esc alone.
    Esc,
    /// Whatever deletes to the left.
    Backspace,
    /// Whatever deletes to the right.
    Delete,
    /// The arrow up.
    Up,
    /// The arrow down.
    Down,
    /// The arrow to the left.
    Left,
    /// The arrow to the right.
    Right,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the beginning.
    Home,
    /// To the end.
    End,
    /// The first function key.
    F1,
}

/// The keys of one terminal.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    state: State,
    /// The beginning of a character of several bytes (RFC 3629).
    character: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it is no second Enter.
    returned: bool,
}

/// In the middle of what a terminal may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    /// After one Esc, or `twice`.
    Escape { twice: bool },
    /// After `ESC [`; parameters beyond the bound are noted as one byte too many.
    Csi(Vec<u8>),
    /// After `ESC [ [`, with which function keys begin on the Linux console.
    Linux,
    /// After `ESC O`.
    Ss3,
    /// In a string that ends with BEL or `ESC \`, after this many bytes.
    Text(usize),
}

impl Keys {
    /// How long to wait for the rest of a sequence. A person is slower; a network hardly ever is.
    pub const PAUSE: Duration = Duration::from_millis(80);

    /// The keys that are whole with these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        for byte in bytes {
            self.byte(*byte, &mut keys);
        }
        keys
    }

    /// Whether a sequence has begun, so that [`Self::flush`] is to be called after a pause.
    pub fn pending(&self) -> bool {
        self.state != State::Ground
    }

    /// Nothing came for a while: an Esc was just that, and any other beginning nothing.
    pub fn flush(&mut self) -> Vec<Key> {
        match std::mem::take(&mut self.state) {
            State::Escape { twice } => vec![Key::Esc; if twice { 2 } else { 1 }],
            _ => Vec::new(),
        }
    }

    fn byte(&mut self, byte: u8, keys: &mut Vec<Key>) {
        let returned = std::mem::take(&mut self.returned);
        match &mut self.state {
            State::Ground => return self.ground(byte, returned, keys),
            State::Escape { twice } => match byte {
                b'[' => return self.state = State::Csi(Vec::new()),
                b'O' => return self.state = State::Ss3,
                b']' | b'P' | b'X' | b'^' | b'_' => return self.state = State::Text(0),
                0x1B => {
                    // Two may begin an arrow with Alt, as PuTTY sends it.
                    keys.extend(twice.then_some(Key::Esc));
                    return *twice = true;
                }
                // A character with Alt is no command here.
                0x20..0x7F => {
                    keys.extend(twice.then_some(Key::Esc));
                    return self.state = State::Ground;
                }
                _ => {}
            },
            State::Csi(parameters) => match byte {
                b'[' if parameters.is_empty() => return self.state = State::Linux,
                // rxvt ends a key with Shift by a dollar, which else never ends a sequence.
                b'$' if parameters.first().is_some_and(u8::is_ascii_digit) => {
                    keys.extend(csi(parameters, b'~'));
                    return self.state = State::Ground;
                }
                0x20..0x40 => {
                    if parameters.len() <= MAX_PARAMETERS {
                        parameters.push(byte);
                    }
                    return;
                }
                0x40..0x7F => {
                    keys.extend(csi(parameters, byte));
                    return self.state = State::Ground;
                }
                _ => {}
            },
            State::Linux => {
                if (0x20..0x7F).contains(&byte) {
                    keys.extend((byte == b'A').then_some(Key::F1));
                    return self.state = State::Ground;
                }
            }
            State::Ss3 => match byte {
                b'0'..=b'9' | b';' => return, // What else was held down.
                0x20..0x7F => {
                    keys.extend(ss3(byte));
                    return self.state = State::Ground;
                }
                _ => {}
            },
            State::Text(length) => match byte {
                0x07 => return self.state = State::Ground,
                0x20.. if *length < MAX_STRING => return *length += 1,
                _ => {}
            },
        }
        // What stands in no sequence ends it, and counts.
        self.state = State::Ground;
        self.ground(byte, returned, keys);
    }

    fn ground(&mut self, byte: u8, returned: bool, keys: &mut Vec<Key>) {
        if matches!(byte, 0x80..0xC0) {
            if !self.character.is_empty() {
                self.character.push(byte);
                self.end_character(keys);
            }
            return;
        }
        self.character.clear(); // What was begun is never whole.
        let key = match byte {
            0x1B => return self.state = State::Escape { twice: false },
            b'\r' => {
                self.returned = true;
                Key::Enter
            }
            b'\n' if returned => return,
            b'\n' => Key::Enter,
            b'\t' => Key::Tab,
            0x08 | 0x7F => Key::Backspace,
            0x01..=0x1A => Key::Ctrl(char::from(b'a' + byte - 1)),
            0x20..0x7F => Key::Char(char::from(byte)),
            0xC2..=0xF4 => return self.character.push(byte),
            _ => return,
        };
        keys.push(key);
    }

    fn end_character(&mut self, keys: &mut Vec<Key>) {
        let whole = match self.character.first() {
            Some(0xC2..=0xDF) => 2,
            Some(0xE0..=0xEF) => 3,
            _ => 4,
        };
        if self.character.len() == whole {
            let text = std::str::from_utf8(&self.character).unwrap_or_default();
            keys.extend(text.chars().filter(|c| !is_unsafe(*c)).map(Key::Char));
            self.character.clear();
        }
    }
}

/// The key that `CSI parameters end` stands for.
fn csi(parameters: &[u8], end: u8) -> Option<Key> {
    let plain = parameters.iter().all(|b| b.is_ascii_digit() || matches!(b, b';' | b':'));
    if !plain || parameters.len() > MAX_PARAMETERS {
        return None;
    }
    let first = parameters.split(|b| *b == b';').next();
    Some(match (end, first) {
        (b'A' | b'a', _) => Key::Up, // In lower case: rxvt with Shift.
        (b'B' | b'b', _) => Key::Down,
        (b'C' | b'c', _) => Key::Right,
        (b'D' | b'd', _) => Key::Left,
        (b'H', _) => Key::Home,
        (b'F', _) => Key::End,
        (b'I', _) => Key::PageUp, // PuTTY's SCO mode; as is the next.
        (b'G', _) => Key::PageDown,
        (b'P', _) => Key::F1,
        (b'Z', _) => Key::BackTab,
        // With ^ and @: rxvt with Ctrl.
        (b'~' | b'^' | b'@', Some(number)) => match number {
            b"1" | b"7" => Key::Home,
            b"4" | b"8" => Key::End,
            b"3" => Key::Delete,
            b"5" => Key::PageUp,
            b"6" => Key::PageDown,
            b"11" => Key::F1,
            _ => return None,
        },
        _ => return None,
    })
}

/// The key that `SS3 end` stands for.
fn ss3(end: u8) -> Option<Key> {
    Some(match end {
        b'A' | b'a' | b'x' => Key::Up, // From n on: the keypad without Num Lock, in rxvt.
        b'B' | b'b' | b'r' => Key::Down,
        b'C' | b'c' | b'v' => Key::Right,
        b'D' | b'd' | b't' => Key::Left,
        b'H' => Key::Home,
        b'F' | b'q' | b'w' => Key::End, // w is what PuTTY's rxvt mode sends for End.
        b'M' => Key::Enter,
        b'P' => Key::F1,
        b'n' => Key::Delete,
        b's' => Key::PageDown,
        b'y' => Key::PageUp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The keys in `bytes`, when nothing comes after them.
    fn all(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        let mut found = keys.push(bytes);
        found.extend(keys.flush());
        assert!(!keys.pending());
        found
    }

    #[test]
    fn what_terminals_send() {
        use Key::*;
        for (sent, key) in [
            // xterm and most others; application mode; modifiers.
            (&b"\x1b[A"[..], Up),
            (b"\x1bOB", Down),
            (b"\x1b[1;5C", Right),
            (b"\x1b[1;2D", Left),
            (b"\x1bO5A", Up),
            (b"\x1b[H", Home),
            (b"\x1bOH", Home),
            (b"\x1b[F", End),
            (b"\x1bOF", End),
            (b"\x1b[5~", PageUp),
            (b"\x1b[6~", PageDown),
            (b"\x1b[6;5~", PageDown),
            (b"\x1b[3~", Delete),
            (b"\x1b[Z", BackTab),
            (b"\x1bOP", F1),
            (b"\x1b[1;2P", F1),
            // PuTTY: standard, rxvt, SCO, function keys ESC[n~, Linux; arrows with Alt.
            (b"\x1b[1~", Home),
            (b"\x1b[4~", End),
            (b"\x1bOw", End),
            (b"\x1b[I", PageUp),
            (b"\x1b[G", PageDown),
            (b"\x1b[11~", F1),
            (b"\x1b[[A", F1),
            (b"\x1b\x1b[A", Up),
            (b"\x1b\x1bOB", Down),
            // rxvt, and the keypad.
            (b"\x1b[7~", Home),
            (b"\x1b[8~", End),
            (b"\x1b[a", Up),
            (b"\x1bOb", Down),
            (b"\x1b[5^", PageUp),
            (b"\x1b[6$", PageDown),
            (b"\x1bOM", Enter),
            (b"\x1bOx", Up),
            (b"\x1bOy", PageUp),
            // Bytes of their own.
            (b"\r", Enter),
            (b"\n", Enter),
            (b"\r\n", Enter),
            (b"\t", Tab),
            (b"\x7f", Backspace),
            (b"\x08", Backspace),
            (b"\x1b", Esc),
            (b"\x03", Ctrl('c')),
            (b"\x0f", Ctrl('o')),
            (b"\x13", Ctrl('s')),
            (b" ", Char(' ')),
            (b"?", Char('?')),
            ("\u{e9}".as_bytes(), Char('\u{e9}')),
            ("\u{65e5}".as_bytes(), Char('\u{65e5}')),
            ("\u{1f600}".as_bytes(), Char('\u{1f600}')),
        ] {
            assert_eq!(all(sent), [key], "{sent:?}");
            // The same one byte at a time, without a pause in between.
            let mut keys = Keys::default();
            let mut found: Vec<Key> = sent.iter().flat_map(|b| keys.push(&[*b])).collect();
            found.extend(keys.flush());
            assert_eq!(found, [key], "{sent:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_passed_over_and_hides_nothing_after_it() {
        use Key::{Char, Ctrl, Enter, Esc};
        for (sent, keys) in [
            (&b"\x1b[200~x\x1b[201~"[..], &[Char('x')][..]), // A paste in brackets.
            (b"\x1b[<0;1;2Mx", &[Char('x')]),                // A click.
            (b"\x1b[?1;2cx", &[Char('x')]),                  // Answers nobody asked for.
            (b"\x1b]11;rgb:0/0/0\x07x", &[Char('x')]),
            (b"\x1b]11;rgb:0/0/0\x1b\\x", &[Char('x')]),
            (b"\x1bP1+r\x1b\\x", &[Char('x')]),
            (b"\x1bax", &[Char('x')]), // Alt with a letter.
            (b"\x1b[1;2\x03x", &[Ctrl('c'), Char('x')]),
            (b"\x1b]0\x03x", &[Ctrl('c'), Char('x')]),
            (b"\x1bO\rx", &[Enter, Char('x')]),
            (b"\x1b[111111111111111111111~x", &[Char('x')]),
            (b"\xff\xc0\x80x", &[Char('x')]),
            (b"\xe6\x97x", &[Char('x')]),
            (b"\xed\xa0\x80x", &[Char('x')]), // Half a surrogate pair.
            ("\u{9b}\u{202e}x".as_bytes(), &[Char('x')]),
            (b"\0\x1cx", &[Char('x')]),
            (b"\r\r\n\n", &[Enter, Enter, Enter]),
            (b"\x1b\x1b", &[Esc, Esc]),
            (b"\x1b\x1b\x1b", &[Esc, Esc, Esc]),
            (b"\x1b\x1bx", &[Esc]),
            (b"\x1b[", &[]),
        ] {
            assert_eq!(all(sent), keys, "{sent:?}");
        }
    }

    #[test]
    fn a_pause_ends_a_sequence_but_no_character() {
        let mut keys = Keys::default();
        assert_eq!((keys.push(b"\x1b"), keys.pending()), (vec![], true));
        assert_eq!(keys.flush(), [Key::Esc]);
        assert_eq!(keys.push(b"[A"), [Key::Char('['), Key::Char('A')]);
        assert_eq!((keys.push(b"\xe6\x97"), keys.pending()), (vec![], false));
        assert_eq!(keys.flush(), []);
        assert_eq!(keys.push(b"\xa5"), [Key::Char('\u{65e5}')]);
    }

    /// Bytes among which sequences are likely.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<u8>().prop_map(|b| vec![b]),
            Just(b"\x1b[".to_vec()),
            Just(b"\x1b]".to_vec()),
            Just("\u{65e5}".as_bytes().to_vec()),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_all_is_bounded(bytes in bytes(), at in any::<usize>()) {
            let mut whole = Keys::default();
            let keys = whole.push(&bytes);
            prop_assert!(keys.len() <= bytes.len());
            let (one, two) = bytes.split_at(at.checked_rem(bytes.len()).unwrap_or(0));
            let mut pieces = Keys::default();
            let mut found = pieces.push(one);
            found.extend(pieces.push(two));
            prop_assert_eq!(&found, &keys);
            prop_assert!(whole.character.len() < 4);
            if let State::Csi(parameters) = &whole.state {
                prop_assert!(parameters.len() <= MAX_PARAMETERS + 1);
            }
            for key in keys {
                prop_assert!(!matches!(key, Key::Char(c) if is_unsafe(c)));
            }
        }
    }

    #[test]
    fn no_string_swallows_all_that_follows() {
        let mut sent = b"\x1b]".to_vec();
        sent.resize(MAX_STRING + 10, b'x');
        assert!(!all(&sent).is_empty());
    }
}
