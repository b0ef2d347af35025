//! The screen that a recording was shown on, rebuilt by a terminal emulator, for whoever wants to
//! know what could be read on it.
//!
//! Always holds: the screen's size is bounded whatever the recording claims; whoever [`Look`]s is
//! called before text can vanish from the screen, so nothing that stood on it is missed; a line
//! that leaves it by scrolling is handed over whole, however many rows it was wrapped to.

use std::ops::Range;
use std::time::Duration;

use avt::operation::Operation;
use avt::parser::{DecMode, EdScope, Function};
use avt::{Line, Observation, Observer, Parser, ScreenKind, Terminal};

use super::asciicast::{Error, Header};

/// The largest screen that is emulated.
const MAX_COLUMNS: u16 = 1000;
const MAX_ROWS: u16 = 400;
/// What is shown for less than this, a sixtieth of a second, is only looked at where it vanishes.
const FRAME: Duration = Duration::from_micros(16_667);
/// The longest beginning of a sequence that is remembered; no sequence that does anything is longer.
const MAX_PENDING: usize = 1024;
/// The longest line, of many rows, that is put together: longer ones come in parts.
const MAX_JOINED: usize = 64 * 1024;

/// An emulated screen.
pub(super) struct Screen {
    terminal: Terminal,
    /// Apart from the terminal's own, so that what it parsed can be bounded.
    parser: Parser,
    /// What [`Self::feed`] was given and nothing came of yet: the beginning of a sequence.
    pending: String,
}

impl Screen {
    /// The empty screen at the beginning of a recording.
    pub(super) fn new(header: &Header) -> Result<Self, Error> {
        let (columns, rows) = bounded(header.width, header.height);
        let terminal = Terminal::new(columns, rows).map_err(|_| Error::NoHeader)?;
        Ok(Self { terminal, parser: Parser::new(), pending: String::new() })
    }

    /// Shows `text`, and remembers it while it is the beginning of a sequence.
    pub(super) fn feed(&mut self, text: &str) {
        let (parser, pending) = (&mut self.parser, &mut self.pending);
        let functions = text.chars().filter_map(|c| {
            let function = parser.feed(c);
            if function.is_some() {
                pending.clear();
            } else if pending.len() < MAX_PENDING {
                pending.push(c);
            }
            function
        });
        self.terminal.execute(functions.map(bound));
    }

    /// Shows `text` to `observer`.
    pub(super) fn feed_with<O: Observer>(&mut self, text: &str, observer: O) -> O::Output {
        let parser = &mut self.parser;
        let functions = text.chars().filter_map(|c| parser.feed(c));
        self.terminal.execute_with(functions.map(bound), observer)
    }

    /// Changes the size.
    pub(super) fn resize(&mut self, columns: u16, rows: u16) {
        let (columns, rows) = bounded(columns, rows);
        self.terminal.resize(columns, rows);
    }

    /// Changes the size before `observer`.
    pub(super) fn resize_with<O: Observer>(
        &mut self,
        columns: u16,
        rows: u16,
        observer: O,
    ) -> O::Output {
        let (columns, rows) = bounded(columns, rows);
        self.terminal.resize_with(columns, rows, observer)
    }

    /// The emulator, to look at.
    pub(super) fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// What paints this screen on a terminal that is empty and has default settings, and then
    /// the sequence that was begun, if what comes next goes on with one.
    pub(super) fn frame(&self) -> String {
        self.terminal.dump() + &self.pending
    }
}

fn bounded(columns: u16, rows: u16) -> (usize, usize) {
    (columns.clamp(1, MAX_COLUMNS).into(), rows.clamp(1, MAX_ROWS).into())
}

/// A few bytes may ask for thousands of repeated characters: no line has as many.
fn bound(function: Function) -> Function {
    match function {
        Function::Rep(n) => Function::Rep(n.min(MAX_COLUMNS)),
        other => other,
    }
}

/// Why the screen is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// It stays as it is for a while.
    Shown,
    /// These rows are about to be erased.
    Erased(Range<usize>),
    /// The screen is about to be cleared; the main one's lines then scroll off.
    Cleared,
    /// A new picture is about to be drawn over this one, or this one has scrolled by its height.
    Redrawn,
    /// The other screen, or another size, is about to come.
    Switched,
}

/// The screen as it is looked at.
pub(super) struct View<'a> {
    pub(super) terminal: &'a Terminal,
    /// Marks the rows that changed since the last look.
    pub(super) changed: &'a [bool],
    /// The beginning of the main screen's first line, as far as it scrolled off, and its rows.
    pub(super) beginning: (&'a str, u64),
}

/// Reads what is on the screen.
pub(super) trait Look {
    /// Looks at the screen.
    fn look(&mut self, view: &View<'_>, why: &Why);

    /// Takes a row that left the main screen at its top; the line that it is of comes later.
    fn row_scrolled_off(&mut self, _row: &Line) {}

    /// Takes a line that left the main screen at its top, of as many rows, and whether that was
    /// because the screen was cleared.
    fn scrolled_off(&mut self, line: &str, rows: u64, cleared: bool);
}

/// Follows a screen and calls whoever looks when it is time to.
pub(super) struct Watch<L> {
    pub(super) look: L,
    changed: Vec<bool>,
    any: bool,
    columns: usize,
    /// Lines that moved, and characters that were printed, since the last look, where scrolling
    /// keeps nothing: on the alternate screen and between margins.
    moved: usize,
    printed: usize,
    /// The height between the margins; 0 without margins.
    region: usize,
    clearing: bool,
    /// When what is shown now began to be.
    looked: Duration,
    /// The beginning of a line whose end is still on the screen, and its rows.
    joined: String,
    joined_rows: u64,
}

impl<L: Look> Watch<L> {
    pub(super) fn new(look: L) -> Self {
        Self {
            look,
            changed: Vec::new(),
            any: false,
            columns: 1,
            moved: 0,
            printed: 0,
            region: 0,
            clearing: false,
            looked: Duration::ZERO,
            joined: String::new(),
            joined_rows: 0,
        }
    }

    fn look(&mut self, terminal: &Terminal, why: &Why) {
        if self.any || *why != Why::Redrawn {
            let beginning = (self.joined.as_str(), self.joined_rows);
            self.look.look(&View { terminal, changed: &self.changed, beginning }, why);
        }
        if self.any {
            self.changed.fill(false);
            self.any = false;
        }
        (self.moved, self.printed) = (0, 0);
    }

    /// Counts towards the next look; says whether it is due.
    fn moves(&mut self, lines: u16, terminal: &Terminal) -> bool {
        let alternate = terminal.active_screen_kind() == ScreenKind::Alternate;
        if !alternate && self.region == 0 {
            return false;
        }
        self.moved += usize::from(lines.max(1)) + self.printed / self.columns;
        self.printed = 0;
        let height = if self.region == 0 { terminal.size().1 } else { self.region };
        self.moved >= height
    }

    /// What `function` is about to do to what is on the screen.
    fn effect(&mut self, function: &Function, terminal: &Terminal) -> Option<Why> {
        let rows = terminal.size().1;
        let cursor = terminal.cursor();
        let redrawn = |due: bool| due.then_some(Why::Redrawn);
        match function {
            Function::Print(_) => {
                self.printed += 1;
                let due = self.printed >= self.columns && self.moves(0, terminal);
                self.printed %= self.columns;
                redrawn(due)
            }
            Function::Rep(n) => {
                self.printed += usize::from(*n);
                redrawn(self.moves(0, terminal))
            }
            Function::Lf | Function::Nel | Function::Ri => redrawn(self.moves(1, terminal)),
            Function::Su(n) | Function::Sd(n) | Function::Il(n) | Function::Dl(n) => {
                redrawn(self.moves(*n, terminal))
            }
            Function::Cup(row, _) => redrawn(*row <= 1),
            Function::Ed(EdScope::Below) => {
                Some(Why::Erased(cursor.row + usize::from(cursor.col > 0)..rows))
            }
            Function::Ed(EdScope::Above) => Some(Why::Erased(0..cursor.row)),
            Function::Ed(EdScope::All) => Some(Why::Cleared),
            Function::Ris => {
                self.region = 0;
                Some(Why::Erased(0..rows))
            }
            Function::Decset(modes) | Function::Decrst(modes) => {
                let switches = |mode: &DecMode| {
                    matches!(mode, DecMode::AltScreenBuffer | DecMode::SaveCursorAltScreenBuffer)
                };
                modes.as_slice().iter().any(switches).then_some(Why::Switched)
            }
            Function::Decstbm(top, bottom) => {
                let (top, bottom) = (usize::from((*top).max(1)), usize::from(*bottom));
                let bottom = if bottom == 0 { rows } else { bottom.min(rows) };
                let height = (bottom + 1).saturating_sub(top);
                self.region = if height == rows { 0 } else { height.max(1) };
                None
            }
            _ => None,
        }
    }

    /// The beginning of the main screen's first line, as far as it scrolled off.
    pub(super) fn beginning(&self) -> &str {
        &self.joined
    }

    /// What happens next happens at `time`: looks at what is shown until then, if it is shown long
    /// enough for anybody to see.
    pub(super) fn until(&mut self, time: Duration, terminal: &Terminal) {
        if self.any && time.saturating_sub(self.looked) >= FRAME {
            self.look(terminal, &Why::Shown);
            self.looked = time;
        }
    }

    /// Looks once more, when nothing follows for a while.
    pub(super) fn pause(&mut self, terminal: &Terminal) {
        self.any = true;
        self.look(terminal, &Why::Redrawn);
    }
}

impl<L: Look> Observer for &mut Watch<L> {
    type Output = ();

    fn begin(&mut self, context: &mut Observation<'_>) {
        let (columns, rows) = context.terminal().size();
        self.columns = columns;
        if self.changed.is_empty() {
            self.changed.resize(rows, true);
            self.any = true;
        }
    }

    fn before(&mut self, context: &mut Observation<'_>, operation: &Operation) {
        let terminal = context.terminal();
        let why = match operation {
            Operation::Function(function) => {
                self.clearing = false;
                self.effect(function, terminal)
            }
            Operation::Resize { cols, .. } => {
                self.columns = *cols;
                Some(Why::Switched)
            }
        };
        if let Some(why) = why {
            self.clearing = why == Why::Cleared;
            Watch::look(self, terminal, &why);
        }
    }

    fn resized(&mut self, _: usize, rows: usize) {
        self.changed.clear();
        self.changed.resize(rows, true);
        (self.any, self.region) = (true, 0);
    }

    fn dirty(&mut self, rows: Range<usize>) {
        if let Some(rows) = self.changed.get_mut(rows) {
            rows.fill(true);
        }
        self.any = true;
    }

    fn evicted(&mut self, _: &mut Observation<'_>, line: &Line) {
        self.look.row_scrolled_off(line);
        self.joined.extend(line.chars());
        self.joined_rows += 1;
        if !line.is_wrapped() || self.joined.len() > MAX_JOINED {
            let rows = std::mem::take(&mut self.joined_rows);
            self.look.scrolled_off(self.joined.trim_end(), rows, self.clearing);
            self.joined.clear();
        }
    }

    fn end(&mut self, _: &mut Observation<'_>) {}
}

/// The rows of `terminal`'s shown screen by lines: where each begins, and how many rows it has.
pub(super) fn lines(screen: avt::Screen<'_>) -> impl Iterator<Item = (usize, usize)> {
    let mut begin = 0;
    let count = screen.visible_lines().len();
    let ends = screen
        .visible_lines()
        .enumerate()
        .filter_map(move |(row, line)| (!line.is_wrapped() || row + 1 == count).then_some(row + 1));
    ends.map(move |end| {
        let line = (begin, end - begin);
        begin = end;
        line
    })
}

/// Appends the text of `count` rows from `row` on, without the blanks at its end.
pub(super) fn append_text(screen: avt::Screen<'_>, row: usize, count: usize, to: &mut String) {
    for line in (row..row + count).filter_map(|row| screen.line(row)) {
        to.extend(line.chars());
    }
    to.truncate(to.trim_end().len());
}

#[cfg(test)]
mod tests {
    use super::super::asciicast::tests::header;
    use super::*;
    use proptest::prelude::*;

    /// Notes all that it is told.
    #[derive(Default)]
    struct Notes(Vec<String>);

    impl Look for Notes {
        fn look(&mut self, view: &View<'_>, why: &Why) {
            let mut text = String::new();
            for (row, count) in lines(view.terminal.screen()) {
                append_text(view.terminal.screen(), row, count, &mut text);
                text.push('|');
            }
            self.0.push(format!("{why:?} {}", text.trim_end_matches('|')));
        }
        fn scrolled_off(&mut self, line: &str, rows: u64, cleared: bool) {
            self.0.push(format!("off {line} {rows} {cleared}"));
        }
    }

    fn notes(columns: u16, rows: u16, texts: &[&str]) -> Vec<String> {
        let mut screen = Screen::new(&Header { width: columns, height: rows, ..header() }).unwrap();
        let mut watch = Watch::new(Notes::default());
        for text in texts {
            screen.feed_with(text, &mut watch);
            watch.until(Duration::MAX, screen.terminal());
            watch.looked = Duration::ZERO;
        }
        watch.look.0
    }

    #[test]
    fn text_is_looked_at_before_it_vanishes() {
        assert_eq!(
            notes(9, 2, &["a\x1b[H\x1b[Jb", "\x1b[?1049hc\x1b[2J\x1b[?1049l"]),
            [
                "Redrawn a",
                "Erased(0..2) a",
                "Shown b",
                "Switched b",
                "Cleared  c",
                "Switched ",
                "Shown b",
            ]
        );
    }

    #[test]
    fn wrapped_lines_scroll_off_whole() {
        assert_eq!(
            notes(4, 2, &["abcdefg\r\nh\r\n", "i\r\n"]),
            ["off abcdefg 2 false", "Shown h", "off h 1 false", "Shown i"]
        );
        assert_eq!(notes(4, 2, &["ab\x1b[2J"]), ["Cleared ab", "off ab 1 true", "Shown "]);
    }

    #[test]
    fn where_scrolling_keeps_nothing_every_screenful_is_looked_at() {
        for begin in ["\x1b[?1049h", "\x1b[2;4r\x1b[4H"] {
            let text: String = (0..40).map(|n| format!("<{n}>\r\n")).collect();
            let seen = notes(20, 4, &[&format!("{begin}{text}")]).concat();
            for n in 0..40 {
                assert!(seen.contains(&format!("<{n}>")), "{n} after {begin:?}: {seen}");
            }
        }
    }

    #[test]
    fn a_screen_of_any_claimed_size_is_bounded() {
        let mut screen =
            Screen::new(&Header { width: u16::MAX, height: u16::MAX, ..header() }).unwrap();
        assert_eq!(screen.terminal().size(), (1000, 400));
        screen.resize_with(0, 0, ());
        assert_eq!(screen.terminal().size(), (1, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_output_breaks_the_emulator_and_a_frame_shows_what_it_shows(
            bits in prop::collection::vec(prop_oneof![
                "\\x1b\\[[?]?[0-9;:]{0,9}[@-~]",
                "\\x1b[(-+78DEHMc]?[0B]?",
                "\\PC{1,30}",
                "(a{1,30}\r\n){1,9}",
                "[\r\n\t\\x08\\x0e\\x0f]{1,3}",
            ], 0..60),
            sizes in prop::collection::vec((1u16..40, 1u16..12), 1..4),
        ) {
            let (width, height) = sizes[0];
            let mut screen = Screen::new(&Header { width, height, ..header() }).unwrap();
            let mut watch = Watch::new(Notes::default());
            for (n, bit) in bits.iter().enumerate() {
                screen.feed_with(bit, &mut watch);
                if n % 20 == 19 {
                    let (width, height) = sizes[n % sizes.len()];
                    screen.resize_with(width, height, &mut watch);
                }
            }
            let (width, height) = screen.terminal().size();
            let mut again = Terminal::new(width, height).unwrap();
            again.feed(screen.frame());
            prop_assert_eq!(again.screen().text(), screen.terminal().screen().text());
        }
    }
}
