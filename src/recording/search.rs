//! Finds text in a recording as it could be read on the screen.
//!
//! Always holds: text is found however it came there: in pieces, over several rows, corrected while
//! it was typed, redrawn, or scrolled by. Each appearance is found once: a line that is drawn again,
//! moves, or goes on being typed stays the same one, and so does a line that is replaced in place by
//! one that differs in digits alone (a clock, a counter) outside of what was searched for. Memory
//! depends on the screen's size and not on the recording's.

use std::collections::VecDeque;
use std::time::Duration;

use avt::ScreenKind;

use super::asciicast::{Error, Kind, Reader};
use super::screen::{Look, Screen, View, Watch, Why, append_text, lines};
use crate::domain::printable;

/// A line that vanished and comes back within this time is the same one.
const REDRAWN_WITHIN: Duration = Duration::from_secs(2);
/// A line that did not change for this long is taken to be complete.
const STANDS_STILL: Duration = Duration::from_secs(1);
/// The most vanished lines that are remembered.
const MOST_VANISHED: usize = 256;

/// Whether capital letters matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// `A` is not `a`.
    Sensitive,
    /// `A` is `a`.
    Insensitive,
}

/// A line that what was searched for is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// When it was first to be seen, since the beginning of the recording.
    pub time: Duration,
    /// The row it was in then, from 0; the lowest for a line that scrolled by, 0 for a marker.
    pub row: usize,
    /// The whole line, as it was before something else followed; made printable.
    pub line: String,
}

/// Looks for `needle` in the recording's screen and its markers. Hits come in the order in which
/// their lines stood still or went. Reading on blocks: iterate on a thread that may.
///
/// # Errors
/// When the recording's header makes no sense.
pub fn search(reader: Reader, needle: &str, case: Case) -> Result<Search, Error> {
    let screen = Screen::new(reader.header())?;
    let needle = match case {
        Case::Sensitive => needle.to_owned(),
        Case::Insensitive => needle.to_lowercase(),
    };
    let done = needle.is_empty();
    let watch = Watch::new(Finder::new(needle, case));
    Ok(Search { reader, screen, watch, done })
}

/// The hits of a [`search`].
pub struct Search {
    reader: Reader,
    screen: Screen,
    watch: Watch<Finder>,
    done: bool,
}

impl Search {
    /// Whether the recording, read to its end, proved to be cut off.
    pub fn truncated(&self) -> bool {
        self.reader.truncated()
    }

    fn step(&mut self) -> Result<(), Error> {
        let event = self.reader.next_event()?;
        let until = event.as_ref().map_or(Duration::MAX, |event| event.time);
        self.watch.until(until, self.screen.terminal());
        let Some(event) = event else {
            self.done = true;
            self.watch.look.finish();
            return Ok(());
        };
        let finder = &mut self.watch.look;
        finder.rest(event.time);
        match event.kind {
            Kind::Output(text) => {
                finder.time = event.time;
                self.screen.feed_with(&text, &mut self.watch);
            }
            Kind::Resize { columns, rows } => {
                finder.time = event.time;
                self.screen.resize_with(columns, rows, &mut self.watch);
            }
            Kind::Marker(label) => finder.mark(event.time, &label),
            Kind::Input(_) => {}
        }
        Ok(())
    }
}

impl Iterator for Search {
    type Item = Result<Hit, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(hit) = self.watch.look.hits.pop_front() {
                return Some(Ok(hit));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.step() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}

/// A line with the needle in it that is, or just was, on the screen.
struct Appearance {
    place: Place,
    text: String,
    /// What will be reported once the line stands still.
    hit: Option<Hit>,
    /// When its text last changed.
    changed: Duration,
    shown: bool,
    /// When it was last on the screen, once it is not.
    until: Duration,
    /// Whether the present look found it.
    found: bool,
}

/// A line's place: which screen it is on, and its number there, counted from the top of all that
/// the screen ever showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    alternate: bool,
    number: u64,
}

struct Finder {
    needle: String,
    case: Case,
    time: Duration,
    appearances: Vec<Appearance>,
    hits: VecDeque<Hit>,
    /// How many rows scrolled off the main screen.
    scrolled: u64,
    lowest: usize,
    text: String,
    folded: String,
}

impl Finder {
    fn new(needle: String, case: Case) -> Self {
        Self {
            needle,
            case,
            time: Duration::ZERO,
            appearances: Vec::new(),
            hits: VecDeque::new(),
            scrolled: 0,
            lowest: 0,
            text: String::new(),
            folded: String::new(),
        }
    }

    fn matches(&mut self, text: &str) -> bool {
        match self.case {
            Case::Sensitive => text.contains(&self.needle),
            Case::Insensitive if text.is_ascii() => {
                self.folded.clear();
                self.folded.push_str(text);
                self.folded.make_ascii_lowercase();
                self.folded.contains(&self.needle)
            }
            Case::Insensitive => text.to_lowercase().contains(&self.needle),
        }
    }

    fn mark(&mut self, time: Duration, label: &str) {
        if self.matches(label) {
            self.hits.push_back(Hit { time, row: 0, line: printable(label) });
        }
    }

    /// Where the appearance is that a line with the needle is one more sight of.
    fn known(&self, place: Place, text: &str) -> Option<usize> {
        let free = |a: &Appearance| !a.found && a.place.alternate == place.alternate;
        let goes_on = |a: &Appearance| a.shown && continues(&a.text, text, &self.needle);
        let all = &self.appearances;
        all.iter()
            .position(|a| free(a) && a.place == place && a.text == text)
            .or_else(|| all.iter().position(|a| free(a) && a.text == text))
            .or_else(|| all.iter().position(|a| free(a) && a.place == place && goes_on(a)))
    }

    /// A line with the needle is on the screen.
    fn sight(&mut self, place: Place, row: usize, text: &str) {
        let time = self.time;
        let known = self.known(place, text);
        let Some(known) = known.and_then(|at| self.appearances.get_mut(at)) else {
            let hit = Some(Hit { time, row, line: printable(text) });
            let text = text.to_owned();
            let (shown, until, changed, found) = (true, time, time, true);
            self.appearances.push(Appearance { place, text, hit, changed, shown, until, found });
            return;
        };
        (known.found, known.shown, known.place) = (true, true, place);
        if known.text != text {
            text.clone_into(&mut known.text);
            known.changed = time;
            if let Some(hit) = &mut known.hit {
                hit.line = printable(text);
            }
        }
    }

    /// Nothing changed until `time`: reports the lines that stood still for long enough.
    fn rest(&mut self, time: Duration) {
        let still = |a: &&mut Appearance| time.saturating_sub(a.changed) >= STANDS_STILL;
        let hits = self.appearances.iter_mut().filter(still).filter_map(|a| a.hit.take());
        self.hits.extend(hits);
    }

    /// Reports the lines that are gone, and forgets those that are for good. `untouched`
    /// tells the lines that were not looked for, since their rows did not change.
    fn settle(&mut self, alternate: bool, untouched: impl Fn(u64) -> bool) {
        let (time, hits) = (self.time, &mut self.hits);
        for a in &mut self.appearances {
            // The main screen stays as it is behind the alternate one.
            let stays = std::mem::take(&mut a.found)
                || (alternate && !a.place.alternate)
                || (a.place.alternate == alternate && untouched(a.place.number));
            if a.shown && !stays {
                (a.shown, a.until) = (false, time);
            }
            if !a.shown {
                hits.extend(a.hit.take());
            }
        }
        self.appearances.retain(|a| a.shown || time.saturating_sub(a.until) <= REDRAWN_WITHIN);
        let vanished = self.appearances.iter().filter(|a| !a.shown).count();
        let mut surplus = vanished.saturating_sub(MOST_VANISHED);
        self.appearances.retain(|a| {
            let goes = !a.shown && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Reports the lines that still waited for something to follow.
    fn finish(&mut self) {
        let hits = self.appearances.iter_mut().filter_map(|a| a.hit.take());
        self.hits.extend(hits);
    }
}

impl Look for Finder {
    fn look(&mut self, view: &View<'_>, _: &Why) {
        if !view.changed.iter().any(|changed| *changed) {
            return;
        }
        let screen = view.terminal.screen();
        let alternate = view.terminal.active_screen_kind() == ScreenKind::Alternate;
        let (beginning, rows) = if alternate { ("", 0) } else { view.beginning };
        let base = if alternate { 0 } else { self.scrolled };
        self.lowest = view.terminal.size().1.saturating_sub(1);
        let mut text = std::mem::take(&mut self.text);
        let mut untouched = Vec::new();
        for (row, count) in lines(screen) {
            text.clear();
            let mut number = base;
            if row == 0 {
                text.push_str(beginning);
            } else {
                number += rows + u64::try_from(row).unwrap_or(0);
            }
            if view.changed.iter().skip(row).take(count).any(|changed| *changed) {
                append_text(screen, row, count, &mut text);
                if self.matches(&text) {
                    self.sight(Place { alternate, number }, row, &text);
                }
            } else {
                untouched.push(number);
            }
        }
        self.text = text;
        self.settle(alternate, |number| untouched.binary_search(&number).is_ok());
    }

    fn scrolled_off(&mut self, line: &str, rows: u64, cleared: bool) {
        let (alternate, number) = (false, self.scrolled);
        self.scrolled += rows;
        if !self.matches(line) {
            return;
        }
        let place = Place { alternate, number };
        let (time, row) = (self.time, self.lowest);
        let found = Hit { time, row, line: printable(line) };
        let known = self.known(place, line).map(|at| self.appearances.remove(at));
        let mut known = known.unwrap_or_else(|| {
            let (text, hit) = (line.to_owned(), Some(found.clone()));
            let (until, changed, found) = (time, time, false);
            Appearance { place, text, hit, changed, shown: false, until, found }
        });
        let hit = known.hit.take().map(|hit| Hit { line: found.line, ..hit });
        self.hits.extend(hit);
        if cleared {
            // It may be drawn again at once.
            (known.shown, known.until) = (false, time);
            line.clone_into(&mut known.text);
            self.appearances.push(known);
        }
    }
}

/// Whether `new`, in the place of `old`, is the same line: typed on or taken back, or with other
/// digits outside of the needle.
fn continues(old: &str, new: &str, needle: &str) -> bool {
    if old.starts_with(new) || new.starts_with(old) {
        return true;
    }
    let masked = |text: &str| -> Vec<String> { text.split(needle).map(mask).collect() };
    masked(old) == masked(new)
}

/// `text` with every run of digits, and of blanks, as one.
pub(super) fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    for c in text.chars() {
        let c = if c.is_ascii_digit() { '0' } else { c };
        if !(matches!(c, '0' | ' ') && masked.ends_with(c)) {
            masked.push(c);
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::super::asciicast::tests::{cast, outputs};
    use super::*;
    use bytes::Bytes;

    fn hits(cast: Bytes, needle: &str) -> Vec<(u128, usize, String)> {
        search(Reader::from_bytes(cast).unwrap(), needle, Case::Sensitive)
            .unwrap()
            .map(|hit| hit.unwrap())
            .map(|hit| (hit.time.as_millis(), hit.row, hit.line))
            .collect()
    }

    fn lines_with(events: &[(u64, &str)], needle: &str) -> Vec<String> {
        hits(outputs(events), needle).into_iter().map(|(_, _, line)| line).collect()
    }

    #[test]
    fn text_is_found_however_it_came() {
        let wide = format!("{}needle", " ".repeat(77));
        type Case<'a> = (&'a str, &'a [(u64, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            ("at once", &[(0, "$ cat needle\r\n")], "$ cat needle"),
            ("in pieces", &[(0, "nee"), (900, "dle")], "needle"),
            ("with colours", &[(0, "ne\x1b[31med\x1b[0mle")], "needle"),
            ("with backspaces", &[(0, "nex"), (9, "\x08 \x08"), (20, "edle")], "needle"),
            ("by moving about", &[(0, "\x1b[5;4Hdle\x1b[5;1Hnee")], "needle"),
            ("over two rows", &[(0, &wide)], &wide),
            ("and erased at once", &[(0, "needle\x1b[2K\r")], ""),
            ("and cleared at once", &[(0, "needle\x1b[H\x1b[J")], "needle"),
            ("on the other screen", &[(0, "\x1b[?1049hneedle\x1b[?1049l")], "needle"),
        ];
        for (how, events, line) in cases {
            let expected: &[&str] = if line.is_empty() { &[] } else { &[line] };
            assert_eq!(lines_with(events, "needle"), expected, "{how}");
        }
    }

    #[test]
    fn a_hit_has_its_first_time_and_its_last_text() {
        let cast = outputs(&[
            (0, "\r\n$ "),
            (1000, "needl"),
            (1200, "e"),
            (1300, "s"),
            (1400, " in hay\r\n"),
            (5000, "$ "),
        ]);
        assert_eq!(hits(cast, "needle"), [(1200, 1, "$ needles in hay".to_owned())]);
    }

    #[test]
    fn scrolled_lines_are_found_once_each() {
        let text: String = (0..500).map(|n| format!("line {n} needle\r\n")).collect();
        let expected: Vec<String> = (0..500).map(|n| format!("line {n} needle")).collect();
        assert_eq!(lines_with(&[(0, &text)], "needle"), expected);
        let pieces: Vec<(u64, &str)> = (0..).zip(text.split_inclusive('\n')).collect();
        let mut found = lines_with(&pieces, "needle");
        found.sort_by_key(|line| expected.iter().position(|e| e == line));
        assert_eq!(found, expected);
        let same = "needle\r\n".repeat(100);
        assert_eq!(lines_with(&[(0, &same), (10, &same)], "needle").len(), 200);
    }

    #[test]
    fn a_redrawn_line_is_found_once() {
        let frame =
            |n: u64, clock: &str| (n * 1000, format!("\x1b[H{clock} needle 7\x1b[K\r\nx\x1b[J"));
        for clocks in [["top", "top", "top"], ["11:59:58", "11:59:59", "12:00:00"]] {
            let frames: Vec<_> = (0..).zip(clocks).map(|(n, clock)| frame(n, clock)).collect();
            let events: Vec<_> = frames.iter().map(|(at, text)| (*at, text.as_str())).collect();
            assert_eq!(lines_with(&events, "needle").len(), 1, "{clocks:?}");
        }
        let cleared = [
            (0, "needle"),
            (10, "\x1b[H\x1b[2J"),
            (20, "needle"),
            (30, "\x1b[2J\x1b[H"),
            (40, "needle"),
        ];
        assert_eq!(lines_with(&cleared, "needle").len(), 1);
        let behind =
            [(0, "needle"), (10, "\x1b[?1049hvim"), (90_000, "\x1b[?1049l"), (90_010, "!")];
        assert_eq!(lines_with(&behind, "needle"), ["needle"]);
    }

    #[test]
    fn another_appearance_is_another_hit() {
        let again = [(0, "needle\r\n"), (10, "\x1b[H\x1b[2J"), (9000, "$ "), (9010, "needle")];
        assert_eq!(lines_with(&again, "needle").len(), 2);
        // The next page of a pager: another line in the same place.
        let pages = [(0, "\x1b[Hneedle in hay\x1b[K"), (10, "\x1b[Hneedle in straw\x1b[K")];
        assert_eq!(lines_with(&pages, "needle"), ["needle in hay", "needle in straw"]);
        let digits = [(0, "\x1b[Hport 22 up\x1b[K"), (10, "\x1b[Hport 2222 up\x1b[K")];
        assert_eq!(lines_with(&digits, "22").len(), 2);
    }

    #[test]
    fn case_matters_only_if_it_shall() {
        let cast = outputs(&[(0, "Needle NEEDLE ÄRGER")]);
        for (needle, case, found) in [
            ("needle", Case::Sensitive, 0),
            ("needle", Case::Insensitive, 1),
            ("ärger", Case::Insensitive, 1),
            ("", Case::Sensitive, 0),
        ] {
            let reader = Reader::from_bytes(cast.clone()).unwrap();
            assert_eq!(search(reader, needle, case).unwrap().count(), found, "{needle}");
        }
    }

    #[test]
    fn markers_are_found_and_typed_text_that_was_not_shown_is_not() {
        let cast = cast(&[
            (0, Kind::Input("needle".into())),
            (10, Kind::Marker("sftp: get needle\x1b".into())),
            (20, Kind::Resize { columns: 20, rows: 5 }),
        ]);
        assert_eq!(hits(cast, "needle"), [(10, 0, "sftp: get needle\\u{1b}".to_owned())]);
    }

    #[test]
    fn a_new_size_makes_no_new_hit() {
        let cast = cast(&[
            (0, Kind::Output("some needle in a stack of hay\r\n$ ".into())),
            (3000, Kind::Resize { columns: 15, rows: 10 }),
            (6000, Kind::Resize { columns: 100, rows: 40 }),
            (9000, Kind::Output("ls".into())),
        ]);
        assert_eq!(hits(cast, "needle").len(), 1);
    }

    #[test]
    fn a_damaged_recording_ends_the_search_with_an_error() {
        let bytes = [&outputs(&[(0, "needle\r\n")])[..], b"bad\n[1,\"o\",\"\"]\n"].concat();
        let reader = Reader::from_bytes(bytes.into()).unwrap();
        let mut found = search(reader, "needle", Case::Sensitive).unwrap();
        assert!(found.next().unwrap().is_err());
        assert!(found.next().is_none());
    }
}
