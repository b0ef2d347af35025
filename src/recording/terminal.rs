//! Makes a recording's output safe for the terminal of whoever plays it.
//!
//! Always holds: only what is listed here gets through, written anew from what was parsed. So what
//! comes out can change what is shown and nothing else: it asks the terminal no question, sets no
//! title, touches no clipboard, turns on no mode that changes what keys or the mouse send, and
//! hides or reorders no text. Sanitising twice, or in pieces, gives the same as once and whole.

use std::io::Write as _;

use vte::{Params, Parser, Perform};

use super::asciicast::Utf8;
use crate::domain::is_unsafe;

/// The most that one sequence may repeat or move: more than any screen has.
const MOST: u16 = 9999;

/// What is sent when playing ends, whatever was played: attributes, charsets, margins and modes
/// as they are by default. Leaving the alternate screen is [`Sanitizer::restore`]'s to add.
const RESTORE: &[u8] = b"\x1b[0m\x0f\x1b(B\x1b)B\x1b[4l\x1b[?6l\x1b[?7h\x1b7\x1b[r\x1b8\x1b[?25h";
/// What a full reset (RIS) becomes.
const RESET: &[u8] =
    b"\x1b[?1049l\x1b[0m\x0f\x1b(B\x1b)B\x1b[4l\x1b[?6l\x1b[?7h\x1b[0r\x1b[?25h\x1b[2J\x1b[1;1H";

/// Lets through what is safe of a stream of terminal output.
#[derive(Default)]
pub struct Sanitizer {
    /// The parser gets whole characters only: it loses some of what follows one that was split.
    utf8: Utf8,
    parser: Parser,
    state: State,
}

impl Sanitizer {
    /// A sanitizer at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `out` what is safe of `bytes`. A sequence that is not whole yet waits for the
    /// next call.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut allowed = Allowed { out, state: &mut self.state };
        self.utf8.decode(bytes, &mut |text| self.parser.advance(&mut allowed, text.as_bytes()));
    }

    /// What brings the terminal back to its usual state, after what was let through so far.
    pub fn restore(&self) -> Vec<u8> {
        let mut out = RESTORE.to_vec();
        if let Some(mode) = self.state.alternate {
            // Writing to a Vec cannot fail.
            write!(out, "\x1b[?{mode}l").unwrap_or_default();
        }
        out
    }
}

/// What has to be known about what was let through.
#[derive(Default)]
struct State {
    /// The mode that switched to the alternate screen, while it is shown.
    alternate: Option<u16>,
}

/// Writes what is allowed.
struct Allowed<'a> {
    out: &'a mut Vec<u8>,
    state: &'a mut State,
}

impl Allowed<'_> {
    fn sequence(&mut self, marker: &str, params: impl Iterator<Item = u16>, action: char) {
        // Writing to a Vec cannot fail.
        write!(self.out, "\x1b[{marker}").unwrap_or_default();
        for (n, param) in params.enumerate() {
            let separator = if n == 0 { "" } else { ";" };
            write!(self.out, "{separator}{}", param.min(MOST)).unwrap_or_default();
        }
        write!(self.out, "{action}").unwrap_or_default();
    }

    /// Attributes and colours (SGR), with the sub-parameters of ITU T.416.
    fn attributes(&mut self, params: &Params) {
        let params: Vec<String> = params
            .iter()
            .map(|subs| subs.iter().map(u16::to_string).collect::<Vec<_>>().join(":"))
            .collect();
        // Writing to a Vec cannot fail.
        write!(self.out, "\x1b[{}m", params.join(";")).unwrap_or_default();
    }

    /// Private modes: those among `modes` that may be set (or reset).
    fn modes(&mut self, modes: &[u16], action: char) {
        let set = action == 'h';
        let allowed = |mode: u16| match mode {
            6 | 7 | 25 | 47 | 1047..=1049 => true, // Origin, wrapping, cursor, alternate screen.
            2004 => !set,                          // Bracketed paste may only be turned off.
            _ => false,
        };
        let modes: Vec<u16> = modes.iter().copied().filter(|mode| allowed(*mode)).collect();
        for mode in &modes {
            if matches!(mode, 47 | 1047 | 1049) {
                self.state.alternate = set.then_some(*mode);
            }
        }
        if !modes.is_empty() {
            self.sequence("?", modes.into_iter(), action);
        }
    }
}

impl Perform for Allowed<'_> {
    fn print(&mut self, c: char) {
        // Joiners change nothing but the shape of what they join.
        if !is_unsafe(c) || matches!(c, '\u{200C}' | '\u{200D}') {
            self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\r' | b'\n' | b'\x08' | b'\t' => self.out.push(byte),
            0x0B | 0x0C => self.out.push(b'\n'), // Terminals treat VT and FF as a line feed.
            0x0E | 0x0F => self.out.push(byte),  // SO and SI: the charset G1 or G0.
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
        if ignore {
            return;
        }
        let flat: Vec<u16> = params.iter().flatten().copied().collect();
        let plain = flat.len() == params.len(); // No sub-parameters.
        let first = flat.first().copied().unwrap_or(0);
        match (intermediates, action) {
            ([], 'm') => self.attributes(params),
            _ if !plain => {}
            // Insert and delete, movement, tabs, scrolling up, repetition.
            ([], '@' | 'A'..='G' | 'I' | 'L' | 'M' | 'P' | 'S' | 'X' | 'Z' | '`' | 'a' | 'b')
            | ([], 'd' | 'e')
                if flat.len() <= 1 =>
            {
                self.sequence("", flat.into_iter(), action);
            }
            // Scrolling down. With five parameters it would be mouse tracking.
            ([], 'T') if flat.len() <= 1 => self.sequence("", flat.into_iter(), action),
            // Placing the cursor, margins.
            ([], 'H' | 'f' | 'r') if flat.len() <= 2 => {
                self.sequence("", flat.into_iter(), action);
            }
            // Erasing, but not the lines that scrolled off: those are the viewer's own too.
            ([], 'J' | 'K') if first <= 2 => self.sequence("", [first].into_iter(), action),
            // Clearing tab stops.
            ([], 'g') if matches!(first, 0 | 3) => self.sequence("", [first].into_iter(), action),
            // Saving and restoring the cursor; with parameters these are other functions.
            ([], 's') if flat == [0] => self.out.extend_from_slice(b"\x1b7"),
            ([], 'u') if flat == [0] => self.out.extend_from_slice(b"\x1b8"),
            // Insert mode.
            ([], 'h' | 'l') if flat == [4] => self.sequence("", flat.into_iter(), action),
            ([b'?'], 'h' | 'l') => self.modes(&flat, action),
            _ => {}
        }
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        match (intermediates, byte) {
            _ if ignore => {}
            // Save, restore, index, next line, tab stop, reverse index.
            ([], b'7' | b'8' | b'D' | b'E' | b'H' | b'M') => self.out.extend([0x1B, byte]),
            // The charsets G0 and G1: ASCII or line drawing. The British one is ASCII but for £.
            ([set @ (b'(' | b')')], b'0' | b'B') => self.out.extend([0x1B, *set, byte]),
            ([set @ (b'(' | b')')], b'A') => self.out.extend([0x1B, *set, b'B']),
            ([], b'c') => {
                self.state.alternate = None;
                self.out.extend_from_slice(RESET);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sanitized(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Sanitizer::new().push(bytes, &mut out);
        out
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(sanitized(bytes)).unwrap()
    }

    #[test]
    fn what_only_changes_the_picture_gets_through() {
        for (input, expected) in [
            ("größe 日本 👩\u{200d}💻\r\n\t\x08", "größe 日本 👩\u{200d}💻\r\n\t\x08"),
            ("\x1b[1;38;5;208mx\x1b[m", "\x1b[1;38;5;208mx\x1b[0m"),
            ("\x1b[4:3;38:2::1:2:3m", "\x1b[4:3;38:2:0:1:2:3m"),
            ("\x1b[H\x1b[2J\x1b[K", "\x1b[0H\x1b[2J\x1b[0K"),
            ("\x1b[5;10r\x1b[3L\x1b[65535A", "\x1b[5;10r\x1b[3L\x1b[9999A"),
            ("\x1b[?1049h\x1b[?25l\x1b[?1049l", "\x1b[?1049h\x1b[?25l\x1b[?1049l"),
            ("\x1b(0lqk\x1b(B\x0e\x0f", "\x1b(0lqk\x1b(B\x0e\x0f"),
            ("\x1b[s\x1b[u\x1b7\x1b8", "\x1b7\x1b8\x1b7\x1b8"),
            ("\x1b[4h\x1b[4l", "\x1b[4h\x1b[4l"),
        ] {
            assert_eq!(text(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn what_does_anything_else_does_not() {
        for input in [
            "\x1b]0;title\x07",
            "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
            "\x1b]8;;http://evil.example\x1b\\\x1b]8;;\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1bP$q\"p\x1b\\",
            "\x1b_application\x1b\\",
            "\x1b^privacy\x1b\\",
            "\x1bXstring\x1b\\",
            "\x1b[c",
            "\x1b[>c",
            "\x1b[=c",
            "\x1bZ",
            "\x1b[5n",
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[?2004$p",
            "\x1b[x",
            "\x1b[>q",
            "\x1b[18t",
            "\x1b[21t",
            "\x1b[8;10;10t",
            "\x1b[3J",
            "\x1b[?3J",
            "\x1b[1;1;1;1;1T",
            "\x1b[?1000h\x1b[?1002h\x1b[?1003h\x1b[?1006h\x1b[?1004h\x1b[?9h",
            "\x1b[?2004h",
            "\x1b[?1h\x1b=\x1b>\x1b[20h\x1b[2h",
            "\x1b[>4;2m",
            "\x1b[>1u\x1b[<u\x1b[?u\x1b[97u",
            "\x1b[1;80s",
            "\x1b[!p",
            "\x1b#8",
            "\x1b%G",
            "\x1b(K\x1b*0\x1b+0",
            "\x1b[5i\x1b[?5i",
            "\x1b[1q\x1b[2 q",
            "\x07\x05\x00\x1a\x18\x7f",
            "\u{9b}6n",
            "\u{90}q\u{9c}",
            "\u{202e}\u{2066}\u{200f}\u{061c}\u{feff}\u{e0041}",
        ] {
            let left: String =
                text(input.as_bytes()).chars().filter(char::is_ascii_control).collect();
            assert_eq!(left, "", "{input:?}");
        }
        for input in ["\x1b]0;title\x07", "\x1bPq#0;2;0\x1b\\", "\x1b_x\x1b\\", "\u{202e}"] {
            assert_eq!(text(input.as_bytes()), "", "{input:?}");
        }
        assert_eq!(text(b"\x9b6n"), "\u{fffd}6n"); // A C1 control of eight bits.
    }

    #[test]
    fn of_many_modes_the_allowed_ones_stay() {
        assert_eq!(text(b"\x1b[?1049;2004;25h"), "\x1b[?1049;25h");
        assert_eq!(text(b"\x1b[?2004l"), "\x1b[?2004l");
    }

    #[test]
    fn the_alternate_screen_is_left_only_if_it_was_entered() {
        let restore = |bytes: &[u8]| {
            let mut sanitizer = Sanitizer::new();
            sanitizer.push(bytes, &mut Vec::new());
            String::from_utf8(sanitizer.restore()).unwrap()
        };
        assert!(restore(b"\x1b[?1049h").ends_with("\x1b[?25h\x1b[?1049l"));
        assert!(restore(b"\x1b[?47h").ends_with("\x1b[?47l"));
        assert!(restore(b"\x1b[?1049hvim\x1b[?1049l").ends_with("\x1b[?25h"));
        assert!(restore(b"\x1b[?1049h\x1bc").ends_with("\x1b[?25h"));
    }

    #[test]
    fn what_is_sent_by_itself_is_allowed_too() {
        for own in [RESTORE, RESET] {
            let parsed_again = sanitized(own);
            let canonical = sanitized(&parsed_again);
            assert_eq!(parsed_again, canonical);
            // Nothing of it is dropped: `CSI r` alone gains its parameter.
            assert_eq!(parsed_again.len(), own.len() + usize::from(own == RESTORE));
        }
    }

    /// Fails on whatever is not on the list, which is written here a second time.
    struct Judge(Vec<String>);

    impl Perform for Judge {
        fn print(&mut self, c: char) {
            if c.is_control() || ('\u{202A}'..='\u{202E}').contains(&c) {
                self.0.push(format!("{c:?}"));
            }
        }
        fn execute(&mut self, byte: u8) {
            if !b"\r\n\x08\t\x0e\x0f".contains(&byte) {
                self.0.push(format!("control {byte:#x}"));
            }
        }
        fn hook(&mut self, _: &Params, _: &[u8], _: bool, action: char) {
            self.0.push(format!("DCS {action}"));
        }
        fn osc_dispatch(&mut self, params: &[&[u8]], _: bool) {
            self.0.push(format!("OSC {params:?}"));
        }
        fn csi_dispatch(&mut self, params: &Params, between: &[u8], ignore: bool, action: char) {
            let flat: Vec<u16> = params.iter().flatten().copied().collect();
            let fine = match between {
                [] => {
                    "@ABCDEFGHILMPSTXZ`abdefgmr".contains(action)
                        || ("JK".contains(action) && flat[0] < 3)
                        || ("hl".contains(action) && flat == [4])
                }
                b"?" => flat.iter().all(|mode| match mode {
                    6 | 7 | 25 | 47 | 1047..=1049 => "hl".contains(action),
                    2004 => action == 'l',
                    _ => false,
                }),
                _ => false,
            };
            if !fine || ignore || (action == 'T' && flat.len() > 1) {
                self.0.push(format!("CSI {between:?} {flat:?} {action}"));
            }
        }
        fn esc_dispatch(&mut self, between: &[u8], ignore: bool, byte: u8) {
            let fine = match between {
                [] => b"78DEHM".contains(&byte),
                b"(" | b")" => b"0B".contains(&byte),
                _ => false,
            };
            if !fine || ignore {
                self.0.push(format!("ESC {between:?} {byte:#x}"));
            }
        }
    }

    /// Bytes that are rich in sequences, whole and broken.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let bit = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..6),
            "\\x1b\\[[?>=!<]?[0-9;:]{0,12}[ $]?[@-~]".prop_map(String::into_bytes),
            "\\x1b[ -/]{0,2}[0-~]".prop_map(String::into_bytes),
            "\\x1b[\\]PX^_][ -~]{0,9}(\\x07|\\x1b\\\\\\\\)?".prop_map(String::into_bytes),
            "\\PC{1,5}".prop_map(String::into_bytes),
            "[\u{80}-\u{9f}\u{202a}-\u{202e}\u{2066}-\u{2069}]".prop_map(String::into_bytes),
        ];
        prop::collection::vec(bit, 0..24).prop_map(|bits| bits.concat())
    }

    proptest! {
        #[test]
        fn nothing_but_what_is_allowed_comes_out(bytes in stream()) {
            let out = sanitized(&bytes);
            let mut judge = Judge(Vec::new());
            Parser::<1024>::default().advance(&mut judge, &out);
            prop_assert!(judge.0.is_empty(), "{:?} from {:?}", judge.0, out);
            prop_assert!(std::str::from_utf8(&out).is_ok());
        }

        #[test]
        fn sanitising_again_changes_nothing(bytes in stream()) {
            let once = sanitized(&bytes);
            prop_assert_eq!(sanitized(&once), once);
        }

        #[test]
        fn pieces_come_out_like_the_whole(bytes in stream(), size in 1usize..7) {
            let (mut sanitizer, mut out) = (Sanitizer::new(), Vec::new());
            for piece in bytes.chunks(size) {
                sanitizer.push(piece, &mut out);
            }
            prop_assert_eq!(out, sanitized(&bytes));
        }
    }
}
