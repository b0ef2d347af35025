//! Writes down what could be read on a recording's screen, as plain text with times.
//!
//! Always holds: every line that scrolled off the main screen is written once, in order, when it
//! is complete; a full-screen program's lines are written when their picture goes, is scrolled, or
//! stood still for a second, and only those that are new in it; nothing that a terminal acts on is
//! written. Memory depends on the screen's size and not on the recording's.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Write};
use std::ops::Range;
use std::time::Duration;

use avt::{Line, ScreenKind, Terminal};

use super::asciicast::{self, Kind, Reader};
use super::screen::{Look, Screen, View, Watch, Why, append_text, lines};
use super::search::mask;
use crate::domain::printable;

/// A full-screen picture that stands for this long is written down.
const STANDS_STILL: Duration = Duration::from_secs(1);

/// Why the text could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recording cannot be read.
    #[error(transparent)]
    Recording(#[from] asciicast::Error),
    /// The text cannot be written.
    #[error("the recording's text cannot be written: {0}")]
    Output(io::Error),
}

/// Writes the recording's text to `out`: a line each, after the time (hours, minutes, seconds
/// since the beginning) at which it last changed. Markers come as `-- label`. Says whether the
/// recording was whole. Blocks.
///
/// # Errors
/// When the recording is damaged, after what comes before, or `out` takes no more.
pub fn to_text(mut reader: Reader, out: impl Write) -> Result<bool, Error> {
    let mut screen = Screen::new(reader.header())?;
    let mut watch = Watch::new(Lines::new(out));
    let mut last = Duration::ZERO;
    let damage = loop {
        let event = match reader.next_event() {
            Ok(Some(event)) => event,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        watch.until(event.time, screen.terminal());
        if event.time.saturating_sub(last) >= STANDS_STILL {
            watch.pause(screen.terminal());
        }
        last = event.time;
        match event.kind {
            Kind::Output(text) => {
                watch.look.time = event.time;
                screen.feed_with(&text, &mut watch);
            }
            Kind::Resize { columns, rows } => {
                watch.look.time = event.time;
                screen.resize_with(columns, rows, &mut watch);
            }
            Kind::Marker(label) => watch.look.write(event.time, &format!("-- {label}")),
            Kind::Input(_) => {}
        }
        watch.look.check()?;
    };
    watch.until(Duration::MAX, screen.terminal());
    let beginning = watch.beginning().to_owned();
    watch.look.finish(screen.terminal(), &beginning);
    watch.look.check()?;
    damage.map_or_else(|| Ok(!reader.truncated()), |error| Err(error.into()))
}

/// A row of the main screen: what it shows, in short, and since when.
#[derive(Debug, Clone, Copy)]
struct Row {
    hash: u64,
    since: Duration,
}

struct Lines<W> {
    out: W,
    error: Option<io::Error>,
    time: Duration,
    /// The main screen's rows.
    rows: VecDeque<Row>,
    /// When the line that scrolls off row by row last changed.
    since: Option<Duration>,
    /// The lines of the alternate screen's last picture that was written.
    picture: HashSet<u64>,
    /// Whether something was written, and whether an empty line is due before more is.
    begun: bool,
    blank: bool,
    text: String,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            error: None,
            time: Duration::ZERO,
            rows: VecDeque::new(),
            since: None,
            picture: HashSet::new(),
            begun: false,
            blank: false,
            text: String::new(),
        }
    }

    fn check(&mut self) -> Result<(), Error> {
        self.error.take().map_or(Ok(()), |error| Err(Error::Output(error)))
    }

    /// Writes a line; of empty lines in a row, one.
    fn write(&mut self, since: Duration, line: &str) {
        if line.is_empty() {
            self.blank = self.begun;
            return;
        }
        let (seconds, ms) = (since.as_secs(), since.subsec_millis());
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let blank = if std::mem::take(&mut self.blank) { "\n" } else { "" };
        self.begun = true;
        let line = printable(line);
        let result =
            writeln!(self.out, "{blank}{hours:02}:{minutes:02}:{seconds:02}.{ms:03}  {line}");
        if let (Err(error), None) = (result, &self.error) {
            self.error = Some(error);
        }
    }

    /// Notes which rows of the main screen show something new.
    fn note(&mut self, view: &View<'_>) {
        let screen = view.terminal.primary_screen();
        let resized = self.rows.len() != view.changed.len();
        let before = if resized { std::mem::take(&mut self.rows) } else { VecDeque::new() };
        let blank = Row { hash: 0, since: self.time };
        self.rows.resize(view.changed.len(), blank);
        let rows = self.rows.iter_mut().zip(screen.visible_lines());
        for ((row, line), changed) in rows.zip(view.changed) {
            if !changed && !resized {
                continue;
            }
            let hash = hash_of(line.chars());
            if hash != row.hash || resized {
                let same = before.iter().find(|old| old.hash == hash);
                *row = Row { hash, since: same.map_or(self.time, |old| old.since) };
            }
        }
    }

    /// Writes the lines of the main screen that begin in `rows`.
    fn write_rows(&mut self, terminal: &Terminal, rows: &Range<usize>, beginning: &str) {
        let screen = terminal.primary_screen();
        let mut text = std::mem::take(&mut self.text);
        for (row, count) in lines(screen).filter(|(row, _)| rows.contains(row)) {
            text.clear();
            if row == 0 {
                text.push_str(beginning);
            }
            append_text(screen, row, count, &mut text);
            let rows = self.rows.iter().skip(row).take(count);
            let since = rows.map(|row| row.since).max().unwrap_or(self.time);
            self.write(since, &text);
        }
        self.text = text;
    }

    /// Writes the lines of the alternate screen that its last picture did not have.
    fn write_picture(&mut self, terminal: &Terminal) {
        let screen = terminal.screen();
        let mut text = std::mem::take(&mut self.text);
        let mut picture = HashSet::new();
        for (row, count) in lines(screen) {
            text.clear();
            append_text(screen, row, count, &mut text);
            let hash = hash_of(mask(&text).chars());
            if !text.is_empty() && picture.insert(hash) && !self.picture.contains(&hash) {
                self.write(self.time, &text);
            }
        }
        self.text = text;
        if !picture.is_empty() {
            self.picture = picture; // A cleared screen is no picture: the same may be drawn again.
        }
    }
}

impl<W: Write> Lines<W> {
    /// Writes what is still on the screens.
    fn finish(&mut self, terminal: &Terminal, beginning: &str) {
        if terminal.active_screen_kind() == ScreenKind::Alternate {
            self.write_picture(terminal);
        }
        self.write_rows(terminal, &(0..usize::MAX), beginning);
    }
}

impl<W: Write> Look for Lines<W> {
    fn look(&mut self, view: &View<'_>, why: &Why) {
        if view.terminal.active_screen_kind() == ScreenKind::Alternate {
            if *why != Why::Shown {
                self.write_picture(view.terminal);
            }
            return;
        }
        self.note(view);
        match why {
            Why::Erased(rows) => {
                let beginning = if rows.start == 0 { view.beginning.0 } else { "" };
                self.write_rows(view.terminal, rows, beginning);
            }
            // What is cleared scrolls off, and the rest stays.
            Why::Cleared | Why::Shown | Why::Redrawn | Why::Switched => {}
        }
    }

    fn row_scrolled_off(&mut self, row: &Line) {
        let hash = hash_of(row.chars());
        let noted = self.rows.pop_front().filter(|noted| noted.hash == hash);
        self.rows.push_back(Row { hash: 0, since: self.time });
        let since = noted.map_or(self.time, |noted| noted.since);
        self.since = self.since.max(Some(since));
    }

    fn scrolled_off(&mut self, line: &str, _: u64, _: bool) {
        let since = self.since.take().unwrap_or(self.time);
        self.write(since, line);
    }
}

/// A number that differs for what looks different; 0 for nothing but blanks. Two lines that share
/// one by chance would only share their times.
fn hash_of(chars: impl Iterator<Item = char>) -> u64 {
    let (mut hash, mut seen) = (0_u64, 0);
    for c in chars {
        hash = (hash.rotate_left(5) ^ u64::from(u32::from(c))).wrapping_mul(0x517c_c1b7_2722_0a95);
        seen = if c == ' ' { seen } else { hash };
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::super::asciicast::tests::{cast, header, outputs};
    use super::*;
    use bytes::Bytes;

    fn text(cast: Bytes) -> String {
        let mut out = Vec::new();
        assert!(to_text(Reader::from_bytes(cast).unwrap(), &mut out).unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_shell_session_reads_in_order_with_its_times() {
        let cast = cast(&[
            (0, Kind::Output("$ ".into())),
            (1000, Kind::Output("l".into())),
            (1500, Kind::Output("x\x08 \x08s".into())),
            (3_723_004, Kind::Output("\r\na  b\r\n\r\n\r\n".into())),
            (3_723_005, Kind::Marker("scp: put a\x1b".into())),
            (3_723_029, Kind::Output("$ ".into())),
        ]);
        let expected = "00:00:01.500  $ ls\n\
            01:02:03.004  a  b\n\
            01:02:03.029  $\n";
        let (marker, rest): (Vec<_>, Vec<_>) =
            text(cast).lines().map(str::to_owned).partition(|line| line.contains("--"));
        assert_eq!(marker, ["01:02:03.005  -- scp: put a\\u{1b}"]);
        assert_eq!(rest.join("\n").replace("\n\n", "\n") + "\n", expected);
    }

    #[test]
    fn everything_that_scrolls_by_is_there_once() {
        let lines: Vec<String> = (0..300).map(|n| format!("line {n}")).collect();
        for size in [1, 7, 100, 300] {
            let events: Vec<_> = lines
                .chunks(size)
                .zip(1..)
                .map(|(lines, n)| (n * 20, Kind::Output(lines.join("\r\n") + "\r\n")))
                .collect();
            let text = text(cast(&events));
            let read: Vec<_> = text.lines().map(|line| line.split_once("  ").unwrap()).collect();
            assert_eq!(read.iter().map(|(_, line)| *line).collect::<Vec<_>>(), lines, "{size}");
            for (n, (time, _)) in read.iter().enumerate() {
                let ms = (n / size + 1) * 20;
                assert_eq!(*time, format!("00:00:{:02}.{:03}", ms / 1000, ms % 1000), "{size}");
            }
        }
    }

    #[test]
    fn what_is_erased_is_written_before() {
        for (how, clear) in [
            ("below", "\x1b[H\x1b[J"),
            ("all", "\x1b[H\x1b[2J"),
            ("all and what scrolled off", "\x1b[H\x1b[2J\x1b[3J"),
            ("a reset", "\x1bc"),
        ] {
            let cast = outputs(&[(5, "one\r\ntwo"), (25, clear), (45, "three")]);
            let expected = "00:00:00.005  one\n00:00:00.005  two\n00:00:00.045  three\n";
            assert_eq!(text(cast).replace("\n\n", "\n"), expected, "{how}");
        }
    }

    #[test]
    fn a_full_screen_program_leaves_its_pictures() {
        let cast = outputs(&[
            (0, "$ less\r\n"),
            (10, "\x1b[?1049h\x1b[Hone 1\x1b[K\r\ntwo\x1b[K"),
            (5000, "\x1b[Hone 2\x1b[K"), // A counter.
            (9000, "\x1b[Htwo\x1b[K\r\nthree\x1b[K"),
            (9900, "\x1b[?1049l"),
            (9950, "$ "),
        ]);
        let lines: Vec<_> =
            text(cast).lines().map(|l| l.get(14..).unwrap_or("").to_owned()).collect();
        assert_eq!(lines, ["one 1", "two", "three", "$ less", "$"]);
    }

    #[test]
    fn wrapped_lines_come_whole_also_at_the_end() {
        let long = "0123456789".repeat(20);
        let cast = outputs(&[(0, &"\r\n".repeat(23)), (20, &long), (50, "!")]);
        assert_eq!(text(cast), format!("00:00:00.050  {long}!\n"));
    }

    #[test]
    fn damage_comes_after_what_could_be_read() {
        let bytes = [&outputs(&[(0, "one\r\n")])[..], b"bad\n[1,\"o\",\"\"]\n"].concat();
        let mut out = Vec::new();
        let error = to_text(Reader::from_bytes(bytes.into()).unwrap(), &mut out).unwrap_err();
        assert!(matches!(error, Error::Recording(_)));
        assert_eq!(out, b"00:00:00.000  one\n");
        let cut = [&header().to_line()[..], b"[0,\"o\",\"a\"]\n[1,\"o"].concat();
        assert!(!to_text(Reader::from_bytes(cut.into()).unwrap(), io::sink()).unwrap());
    }

    #[test]
    fn a_full_output_ends_it() {
        let reader = Reader::from_bytes(outputs(&[(0, "a\r\n"), (1, "b")])).unwrap();
        assert!(matches!(to_text(reader, &mut [0_u8; 4][..]), Err(Error::Output(_))));
    }
}
