//! What the menu looks like, at any size.
//!
//! Always holds: what is drawn follows from the menu's state alone; nothing is drawn outside the
//! screen; our own words are plain ASCII without borders, so every terminal and character set shows
//! them; colour only repeats what a word or a mark says.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Size;
use ratatui_core::style::{Color, Style};
use ratatui_core::terminal::Frame;
use ratatui_core::text::Span;

use super::list::Row;
use super::{Menu, Question, Text, View, shown};

/// What `?` shows.
pub(super) const HELP: &str = "\
Type to filter: what is left has every word you typed in its name, address or labels. A name \
that begins with a word comes first.

  Up Down PgUp PgDn Home End   select
  Enter                        connects
  Backspace, Ctrl-W, Ctrl-U    delete a letter, a word, everything
  Esc, Ctrl-C                  one step back: clears the filter, then leaves
  Ctrl-D                       leaves, while nothing is typed
  o or Ctrl-O                  my authenticator: N, C, U, P change it there
  s or Ctrl-S                  my sessions
  q                            leaves, pressed twice
  ? or F1                      this page
  Ctrl-L                       draws the screen anew

o, s and q are commands only as the first letter. A name that begins with one of them is simply \
typed on, or begun with a slash.

Where several accounts are granted, Enter asks for one. It offers the one you used last, else \
the one called like you, else the first that is granted. Where any account may be used, it offers \
the one you used last, else the one called like you. Up and Down go through them.

!  in front of a target: its grant does not hold now, or not from where you are. Enter asks \
   all the same, and the answer is that of the moment.
tunnel  Nobody looks inside its connections, so they begin on your own computer. Enter shows how.

Without this menu: the line at the bottom leads to the selected target from your own computer.";

/// Which row of the screen is for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    rows: u16,
    title: Option<u16>,
    typed: u16,
    headings: Option<u16>,
    list: (u16, u16),
    /// More about the selected target, and the line that leads there.
    detail: Option<u16>,
    command: Option<u16>,
    /// The facts, or a notice.
    facts: Option<u16>,
    keys: Option<u16>,
}

impl Layout {
    pub(super) fn of(size: Size) -> Self {
        let rows = size.height;
        let last = rows.saturating_sub(1);
        let small = Self {
            rows,
            title: None,
            typed: 0,
            headings: None,
            list: (1, last),
            detail: None,
            command: None,
            facts: None,
            keys: None,
        };
        match rows {
            0..4 => small,
            4..10 => Self { list: (1, rows.saturating_sub(2)), keys: Some(last), ..small },
            _ => {
                let detail = (rows >= 16).then(|| rows.saturating_sub(4));
                let below = if detail.is_some() { 4 } else { 3 };
                Self {
                    title: Some(0),
                    typed: 1,
                    headings: Some(2),
                    list: (3, rows.saturating_sub(3 + below)),
                    detail,
                    command: Some(rows.saturating_sub(3)),
                    facts: Some(rows.saturating_sub(2)),
                    keys: Some(last),
                    ..small
                }
            }
        }
    }

    /// How many targets are shown at once.
    pub(super) fn list_height(self) -> usize {
        self.list.1.into()
    }

    /// How many lines of a page are shown at once: all but its title and the keys.
    pub(super) fn page(self) -> usize {
        let others = u16::from(self.rows > 1) + u16::from(self.keys.is_some());
        self.rows.saturating_sub(others).max(1).into()
    }

    /// Where a notice stands.
    fn notice(self) -> u16 {
        self.facts.or(self.keys).unwrap_or(self.rows.saturating_sub(1))
    }
}

/// Draws the menu.
pub(super) fn paint(menu: &Menu, frame: &mut Frame<'_>) {
    let layout = Layout::of(menu.size);
    let mut canvas = Canvas { width: frame.area().width.into(), buffer: frame.buffer_mut() };
    let cursor = match &menu.view {
        View::Text(text) => {
            canvas.text(text, layout);
            None
        }
        View::List | View::Account(_) => {
            canvas.title(menu, layout);
            canvas.list(menu, layout);
            canvas.about_selected(menu, layout);
            canvas.facts(menu, layout);
            let column = match &menu.view {
                View::Account(question) => canvas.question(question, layout),
                _ => canvas.filter(menu, layout),
            };
            Some((column, layout.typed))
        }
    };
    if !menu.notice.is_empty() {
        let notice = Style::new().fg(Color::Yellow).bold();
        canvas.clear(layout.notice());
        canvas.put(0, layout.notice(), &menu.notice, usize::MAX, notice);
    }
    if let Some(cursor) = cursor {
        frame.set_cursor_position(cursor);
    }
}

struct Canvas<'a> {
    buffer: &'a mut Buffer,
    width: usize,
}

impl Canvas<'_> {
    /// Writes `text` at a column of a row, into at most `room` columns; what is cut off ends in `~`.
    /// Gives the column after it.
    fn put(&mut self, column: usize, row: u16, text: &str, room: usize, style: Style) -> usize {
        let room = room.min(self.width.saturating_sub(column));
        let Ok(x) = u16::try_from(column) else { return column };
        if room == 0 || row >= self.buffer.area().height {
            return column;
        }
        let whole = width(text) <= room;
        let (end, _) =
            self.buffer.set_stringn(x, row, text, if whole { room } else { room - 1 }, style);
        if whole {
            return end.into();
        }
        let (end, _) = self.buffer.set_stringn(end, row, "~", 1, style);
        end.into()
    }

    fn clear(&mut self, row: u16) {
        self.put(0, row, &" ".repeat(self.width), usize::MAX, Style::reset());
    }

    /// Writes `text` at the right edge of a row, if `free` columns are left of it.
    fn put_right(&mut self, free: usize, row: u16, text: &str) {
        let column = self.width.saturating_sub(width(text));
        if column >= free {
            self.put(column, row, text, usize::MAX, Style::new());
        }
    }

    fn title(&mut self, menu: &Menu, layout: Layout) {
        let Some(row) = layout.title else { return };
        let user = shown(&format!("{}@{}", menu.facts.user, menu.facts.host));
        let bold = Style::new().bold();
        let column = self.put(0, row, "Sallyport", usize::MAX, bold) + 2;
        let column = self.put(column, row, &user, usize::MAX, Style::new());
        let targets = match menu.list.all() {
            1 => "1 target".to_owned(),
            count => format!("{count} targets"),
        };
        self.put_right(column + 2, row, &targets);
    }

    /// One line in which something is typed, after the first of `labels` that leaves room for it;
    /// gives the column of the cursor.
    fn typed(&mut self, row: u16, labels: &[&str], typed: &str) -> u16 {
        let fits = |label: &&&str| width(label) + 12 <= self.width;
        let label = labels.iter().find(fits).copied().unwrap_or(">");
        self.clear(row);
        let start = self.put(0, row, label, usize::MAX, Style::new().bold());
        let start = if start == 0 { 0 } else { start + 1 };
        // The end of what was typed matters most. One column is the cursor's.
        let room = self.width.saturating_sub(start + 1);
        let mut tail = typed;
        while width(tail) > room {
            let mut chars = tail.chars();
            chars.next();
            tail = chars.as_str();
        }
        let end = self.put(start, row, tail, usize::MAX, Style::new());
        u16::try_from(end.min(self.width.saturating_sub(1))).unwrap_or(0)
    }

    fn filter(&mut self, menu: &Menu, layout: Layout) -> u16 {
        let hint = match (menu.filter.is_empty(), menu.literal) {
            (true, false) => "Type to filter:",
            _ => "Filter:",
        };
        let cursor = self.typed(layout.typed, &[hint, "Filter:"], &menu.filter);
        if menu.list.left() > 0 {
            let of = format!("{} of {}", menu.list.position() + 1, menu.list.left());
            self.put_right(usize::from(cursor) + 3, layout.typed, &of);
        }
        self.keys(
            layout,
            if menu.filter.is_empty() {
                &[
                    "Enter connects   ? help   o my authenticator   s my sessions   Esc leaves",
                    "Enter connects  ? help  Esc leaves",
                    "Enter  ? help  Esc",
                    "? help",
                ]
            } else {
                &[
                    "Enter connects  ? help  Ctrl-O my authenticator  Ctrl-S my sessions  Esc clears",
                    "Enter connects  ? help  Esc clears",
                    "Enter  ? help  Esc",
                    "? help",
                ]
            },
        );
        cursor
    }

    fn question(&mut self, question: &Question, layout: Layout) -> u16 {
        let offered = shown(question.choices.first().map_or("", String::as_str));
        let long = shown(&format!("Account on {} [{offered}]:", question.target));
        let labels = [long, format!("Account [{offered}]:"), format!("[{offered}]:")];
        let cursor = self.typed(
            layout.typed,
            &labels.iter().map(String::as_str).collect::<Vec<_>>(),
            &shown(&question.typed),
        );
        if let Some(row) = layout.facts {
            self.clear(row);
            let granted = match question.accounts.as_slice() {
                [] => "Any account may be used.".to_owned(),
                accounts => shown(&format!("Granted: {}", accounts.join(", "))),
            };
            self.put(0, row, &granted, usize::MAX, Style::new());
        }
        self.keys(
            layout,
            &[
                "Enter takes the account in brackets, or what you type   Up, Down choose   Esc back",
                "Enter connects   Up, Down choose   Esc back",
                "Enter connects  Esc back",
                "Enter  Esc",
            ],
        );
        cursor
    }

    /// The longest of these that fits.
    fn keys(&mut self, layout: Layout, keys: &[&str]) {
        let fits = |keys: &&&str| width(keys) <= self.width;
        let shortest = keys.last().copied().unwrap_or_default();
        let keys = keys.iter().find(fits).copied().unwrap_or(shortest);
        if let Some(row) = layout.keys {
            self.put(0, row, keys, usize::MAX, Style::new());
        }
    }

    fn list(&mut self, menu: &Menu, layout: Layout) {
        let (first, height) = layout.list;
        let rows = first..first.saturating_add(height);
        if menu.list.left() == 0 {
            let text = match (menu.list.all(), menu.facts.when_empty.as_str()) {
                (0, "") => "No target is granted to you yet: ask your administrator.".to_owned(),
                (0, next) => format!("No target is granted to you yet: {next}."),
                _ => "No target matches. Esc clears the filter.".to_owned(),
            };
            for (row, line) in rows.zip(wrapped(&[shown(&text)], menu.size.width)) {
                self.put(0, row, &line, usize::MAX, Style::new());
            }
            return;
        }
        let columns = Columns::of(self.width, menu.list.widths);
        if let Some(row) = layout.headings {
            let headings = ["TARGET", "ADDRESS", "ACCOUNTS", "NOTES"];
            self.cells(row, columns, headings, [Style::new().bold(); 2]);
        }
        for (row, (target, selected)) in rows.zip(menu.list.visible()) {
            self.row(row, columns, target, selected);
        }
    }

    fn row(&mut self, row: u16, columns: Columns, target: &Row, selected: bool) {
        let holds = target.entry.holds_now;
        let style = if selected { Style::new().reversed() } else { Style::new() };
        let notes = if holds || selected { style } else { style.fg(Color::Yellow) };
        if selected {
            self.put(0, row, &" ".repeat(self.width), usize::MAX, style);
            self.put(0, row, ">", usize::MAX, style);
        }
        if !holds {
            self.put(1, row, "!", usize::MAX, notes);
        }
        let texts = [&target.name, &target.address, &target.accounts, &target.notes];
        self.cells(row, columns, texts.map(String::as_str), [style, notes]);
    }

    fn cells(&mut self, row: u16, columns: Columns, texts: [&str; 4], [all, last]: [Style; 2]) {
        let mut column = MARKS;
        for (text, (room, style)) in
            texts.into_iter().zip(columns.0.into_iter().zip([all, all, all, last]))
        {
            if room > 0 {
                self.put(column, row, text, room, style);
                column += room + GAP;
            }
        }
    }

    fn about_selected(&mut self, menu: &Menu, layout: Layout) {
        let Some(target) = menu.list.selected() else { return };
        if let Some(row) = layout.detail {
            let about = match target.notes.as_str() {
                "" => format!("{}  {}", target.name, target.address),
                notes => format!("{}  {}  {notes}", target.name, target.address),
            };
            self.put(0, row, &about, usize::MAX, Style::new().bold());
        }
        if let Some(row) = layout.command {
            self.put(0, row, &shown(&target.entry.command), usize::MAX, Style::new());
        }
    }

    fn facts(&mut self, menu: &Menu, layout: Layout) {
        let (Some(row), facts) = (layout.facts, &menu.facts) else { return };
        let urgent = Style::new().fg(Color::Yellow);
        let mut column = 0;
        let mut put =
            |text: String, style| column = self.put(column, row, &text, usize::MAX, style) + 2;
        if let Some(seconds) = facts.last_drift {
            let side = if seconds > 0 { "fast" } else { "slow" };
            let off = seconds.unsigned_abs();
            put(format!("Your phone's clock was {off} s {side} when a code last failed."), urgent);
        }
        let Some(since) = &facts.authenticator_since else { return };
        match facts.recovery_codes_left {
            0 => put("No recovery code is left.".to_owned(), urgent),
            1 => put("1 recovery code is left.".to_owned(), urgent),
            left => put(format!("{left} recovery codes are left."), Style::new()),
        }
        put(shown(&format!("Authenticator bound since {since}.")), Style::new());
    }

    fn text(&mut self, text: &Text, layout: Layout) {
        let lines = wrapped(&text.lines, u16::try_from(self.width).unwrap_or(u16::MAX));
        let first = u16::from(layout.rows > 1);
        let page = layout.page();
        for (row, line) in (first..).zip(lines.iter().skip(text.top).take(page)) {
            self.put(0, row, line, usize::MAX, Style::new());
        }
        if first > 0 {
            let end = self.put(0, 0, &text.title, usize::MAX, Style::new().bold());
            if lines.len() > page {
                let last = (text.top + page).min(lines.len());
                let of = format!("{}-{last} of {}", text.top + 1, lines.len());
                self.put_right(end + 2, 0, &of);
            }
        }
        let keys = if lines.len() > page {
            &["Up, Down, PageUp, PageDown scroll   Esc back   or type to filter", "Esc back"]
        } else {
            &["Esc back   or type to filter", "Esc back"]
        };
        self.keys(layout, keys);
    }
}

/// The columns in front of a target's name, for marks, and between two others.
const MARKS: usize = 3;
const GAP: usize = 2;

/// How wide the name, address, accounts and notes are; 0 if there is no room for one.
#[derive(Debug, Clone, Copy)]
struct Columns([usize; 4]);

impl Columns {
    /// Divides `width` for texts as wide as `wanted`.
    fn of(width: usize, wanted: [usize; 3]) -> Self {
        let [name, address, accounts] = wanted;
        let room = width.saturating_sub(MARKS);
        if width < 40 {
            return Self([room, 0, 0, 0]);
        }
        // No name takes what the others need, unless they need less.
        let name = name.clamp(6, (room * 2 / 5).max(6));
        let address = address.clamp(7, (room * 3 / 10).max(7));
        let left = room.saturating_sub(name + GAP + address + GAP);
        if width < 60 {
            return Self([name, address + left, 0, 0]);
        }
        let accounts = accounts.clamp(8, (left / 2).max(8));
        let notes = left.saturating_sub(accounts + GAP);
        Self([name, address, accounts, notes])
    }
}

/// `lines` broken to this width: at a space where there is one in the second half.
pub(super) fn wrapped(lines: &[String], width: u16) -> Vec<String> {
    let room = usize::from(width.max(1));
    let mut rows = Vec::new();
    for line in lines {
        let mut rest = line.as_str();
        loop {
            let fitting = fitting(rest, room);
            let Some((head, tail)) = rest.split_at_checked(fitting).filter(|(_, t)| !t.is_empty())
            else {
                rows.push(rest.to_owned());
                break;
            };
            let space = if tail.starts_with(' ') { Some(head.len()) } else { head.rfind(' ') };
            let at = space.filter(|at| *at * 2 >= head.len() && *at > 0).unwrap_or(head.len());
            let (row, next) = rest.split_at_checked(at).unwrap_or((head, tail));
            rows.push(row.to_owned());
            rest = if space == Some(at) { next.trim_start_matches(' ') } else { next };
            if rest.is_empty() {
                break;
            }
        }
    }
    rows
}

/// How many bytes of `text` fit into `room` columns; at least one character.
fn fitting(text: &str, room: usize) -> usize {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += width(c.encode_utf8(&mut [0; 4]));
        if used > room && at > 0 {
            return at;
        }
    }
    text.len()
}

fn width(text: &str) -> usize {
    Span::raw(text).width()
}
