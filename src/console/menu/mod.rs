//! The full-screen menu that `ssh USER@bastion` shows in a terminal: the targets granted to
//! somebody, to find one by typing and go there.
//!
//! Letters always filter, as in `fzf`. `o`, `s` and `q` are commands only as the very first letter,
//! and going on typing takes that back: `s` shows the sessions, `sq` goes on to filter for `sq`.
//! Ctrl-O and Ctrl-S work always. Esc and Ctrl-C go one step back: from a page to the list, from a
//! filter to none, from the list out.
//!
//! Always holds: [`Menu`] does no input or output and knows no time; any keys at any size leave it
//! in order; what it gives out is for the terminal of [`Menu::draw`] alone, and holds nothing of a
//! name or a text that a terminal could act on. It decides nothing: what it says about a grant is
//! what it was told, and whoever connects asks the policy anew.

mod keys;
mod list;
mod paint;
mod terminal;

use ratatui_core::layout::Size;

pub use self::keys::{Key, Keys};
use self::list::List;
use self::paint::Layout;
use self::terminal::Screen;
use super::OwnVerb;
use crate::domain::{AccountName, Mode, printable};

/// The largest screen that is used; of a larger one, the upper left.
const MAX_SIZE: Size = Size::new(300, 100);
/// The longest filter or account that can be typed.
const MAX_TYPED: usize = 64;
/// The longest text that is shown as one.
const MAX_TEXT: usize = 1000;
/// The most lines of a page.
const MAX_LINES: usize = 2000;

/// A target that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name it is registered under.
    pub name: String,
    /// Where it is, as `HOST:PORT`.
    pub address: String,
    /// The accounts on it that are granted; if empty, any.
    pub accounts: Vec<String>,
    /// The account that was used there last, if that is known: it is offered first.
    pub last_account: Option<String>,
    /// Its labels, as `KEY=VALUE`.
    pub labels: Vec<String>,
    /// Whether it can be connected to from here, or only be reached through.
    pub mode: Mode,
    /// Whether a grant holds right now, from where the user is.
    pub holds_now: bool,
    /// What else is to be known, such as when the grant holds.
    pub remark: String,
    /// The line that leads there from the user's own computer (`ssh -J ...`).
    pub command: String,
}

/// What the menu says about its user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The user's name; it is also the account offered where any may be used.
    pub user: String,
    /// The bastion's name, as people type it.
    pub host: String,
    /// Since when an authenticator has been bound, as a date; none if there is none.
    pub authenticator_since: Option<String>,
    /// How many recovery codes are left; shown only with an authenticator.
    pub recovery_codes_left: u32,
    /// By how many seconds its clock was off when a code last failed; ahead if positive.
    pub last_drift: Option<i64>,
    /// What to do when no target is granted; if empty, to ask the administrator.
    pub when_empty: String,
}

/// A text that the menu asks for, to be given to [`Menu::show`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The user's authenticator.
    Authenticator,
    /// The user's sessions.
    Sessions,
}

/// What a key leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Nothing but another picture.
    Stay,
    /// A text is wanted.
    Show(Page),
    /// The user wants to go to a target. The menu is as before and may be drawn again afterwards.
    Connect {
        /// The target's name, as given.
        target: String,
        /// The account on it.
        account: String,
    },
    /// The user wants to change something of their own account, in a dialog outside the menu.
    Own(OwnVerb),
    /// The user has had enough.
    Quit,
}

/// The menu.
#[derive(Debug, Clone)]
pub struct Menu {
    facts: Facts,
    list: List,
    filter: String,
    view: View,
    /// What is to be told until the next key.
    notice: String,
    /// The command that was just given by a bare letter, and may turn out to begin a filter.
    letter: Option<char>,
    /// After a `/`: the next letter is no command.
    literal: bool,
    size: Size,
    screen: Option<Screen>,
}

/// What is shown.
#[derive(Debug, Clone)]
enum View {
    List,
    Account(Question),
    Text(Text),
}

/// Which account to use on a target.
#[derive(Debug, Clone)]
struct Question {
    target: String,
    /// The granted ones; if empty, any.
    accounts: Vec<String>,
    /// What may be chosen by the arrows; the first is taken when nothing is typed.
    choices: Vec<String>,
    chosen: usize,
    typed: String,
}

/// A page to read.
#[derive(Debug, Clone)]
struct Text {
    /// Which of the pages that are asked for it is.
    page: Option<Page>,
    title: String,
    lines: Vec<String>,
    /// The first line shown, of those that they are wrapped to.
    top: usize,
}

impl Menu {
    /// The menu of these entries, in their order, on a terminal of this many columns and rows.
    pub fn new(facts: Facts, entries: Vec<Entry>, (columns, rows): (u16, u16)) -> Self {
        let mut menu = Self {
            facts,
            list: List::new(entries),
            filter: String::new(),
            view: View::List,
            notice: String::new(),
            letter: None,
            literal: false,
            size: Size::ZERO,
            screen: None,
        };
        menu.resize(columns, rows);
        menu
    }

    /// Whether a terminal of this kind (the `TERM` of its `pty-req`) can show the menu. Those that
    /// nobody knows can: nearly all are like xterm.
    pub fn suits(term: &str) -> bool {
        let term = term.to_ascii_lowercase();
        let lacking = ["dumb", "emacs", "unknown", "network", "dialup", "vt52", "adm", "wy", "tvi"];
        let lacking = lacking.iter().chain(&["ibm327", "teletype", "tty", "lpr", "printer"]);
        !term.is_empty() && !lacking.into_iter().any(|kind| term.starts_with(kind))
    }

    /// The terminal has another size. 0, which means unknown (RFC 4254 section 6.2), is 80 or 24.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let known = |given: u16, usual: u16, most: u16| match given {
            0 => usual,
            given => given.min(most),
        };
        self.size = Size::new(known(columns, 80, MAX_SIZE.width), known(rows, 24, MAX_SIZE.height));
        self.fit();
    }

    /// Other entries, because time has passed. What was typed and selected stays.
    pub fn update(&mut self, entries: Vec<Entry>) {
        let selected = self.list.selected().map(|row| row.entry.name.clone());
        let used = std::mem::replace(&mut self.list, List::new(entries));
        self.list.remember(&used);
        self.list.filter(&self.filter);
        self.fit();
        if let Some(name) = selected {
            self.list.select_name(&name);
        }
        if matches!(&self.view, View::Account(question) if !self.list.has(&question.target)) {
            self.view = View::List;
        }
    }

    /// Other facts about the user.
    pub fn update_facts(&mut self, facts: Facts) {
        self.facts = facts;
    }

    /// Tells something in one line, until the next key: why connecting failed, for example.
    pub fn say(&mut self, notice: &str) {
        self.notice = shown(notice);
    }

    /// Shows a text to scroll through and come back from.
    pub fn show(&mut self, title: &str, lines: impl IntoIterator<Item = impl AsRef<str>>) {
        self.open(None, title, lines);
    }

    /// Shows a page that was asked for. On that of the authenticator, letters change it.
    pub fn show_page(
        &mut self,
        page: Page,
        title: &str,
        lines: impl IntoIterator<Item = impl AsRef<str>>,
    ) {
        self.open(Some(page), title, lines);
    }

    fn open(
        &mut self,
        page: Option<Page>,
        title: &str,
        lines: impl IntoIterator<Item = impl AsRef<str>>,
    ) {
        let lines = lines.into_iter().take(MAX_LINES).map(|line| shown(line.as_ref())).collect();
        self.view = View::Text(Text { page, title: shown(title), lines, top: 0 });
    }

    /// What brings the terminal to what is to be shown now: only what has changed since the last
    /// time; the first time, and the first after [`Self::leave`], everything.
    pub fn draw(&mut self) -> Vec<u8> {
        let mut screen = self.screen.take().unwrap_or_else(|| Screen::new(self.size));
        let bytes = screen.draw(self.size, |frame| paint::paint(self, frame));
        self.screen = Some(screen);
        bytes
    }

    /// What brings the terminal back to what it showed before; nothing if nothing was drawn.
    pub fn leave(&mut self) -> Vec<u8> {
        self.screen.take().map(Screen::leave).unwrap_or_default()
    }

    /// A key was pressed.
    pub fn key(&mut self, key: Key) -> Outcome {
        self.notice.clear();
        let letter = self.letter.take();
        if key == Key::Ctrl('l') {
            if let Some(screen) = &mut self.screen {
                screen.forget();
            }
            return Outcome::Stay;
        }
        let outcome = match &mut self.view {
            View::List => self.key_in_list(key, letter),
            View::Account(_) => self.key_in_question(key),
            View::Text(_) => match self.own(key, letter) {
                Some(verb) => Outcome::Own(verb),
                None => {
                    self.key_in_text(key, letter);
                    Outcome::Stay
                }
            },
        };
        self.fit();
        outcome
    }

    fn key_in_list(&mut self, key: Key, letter: Option<char>) -> Outcome {
        match key {
            Key::Char('?') | Key::F1 => self.show("Help", paint::HELP.lines()),
            Key::Char('q') if letter == Some('q') => return Outcome::Quit,
            Key::Char(c) => return self.letter(c, letter),
            Key::Ctrl('o') => return Outcome::Show(Page::Authenticator),
            Key::Ctrl('s') => return Outcome::Show(Page::Sessions),
            Key::Enter => return self.enter(),
            Key::Up | Key::BackTab | Key::Ctrl('p') => self.list.up(1),
            Key::Down | Key::Tab | Key::Ctrl('n') => self.list.down(1),
            Key::PageUp | Key::Ctrl('b') => self.list.up(self.list.page()),
            Key::PageDown | Key::Ctrl('f') => self.list.down(self.list.page()),
            Key::Home => self.list.select(0),
            Key::End => self.list.select(usize::MAX),
            Key::Backspace => self.refilter(|filter| {
                filter.pop();
            }),
            Key::Ctrl('u') => self.refilter(String::clear),
            Key::Ctrl('w') => self.refilter(drop_word),
            Key::Esc | Key::Ctrl('c' | 'g') if self.filter.is_empty() && !self.literal => {
                return Outcome::Quit;
            }
            Key::Ctrl('d') if self.filter.is_empty() => return Outcome::Quit,
            Key::Esc | Key::Ctrl('c' | 'g') => self.refilter(String::clear),
            Key::Delete | Key::Left | Key::Right | Key::Ctrl(_) => {}
        }
        Outcome::Stay
    }

    /// A letter goes to the filter, unless it is the first and a command; `before` is one that was.
    fn letter(&mut self, c: char, before: Option<char>) -> Outcome {
        if let (Some(before @ ('o' | 's')), true) = (before, self.filter.is_empty()) {
            self.refilter(|filter| filter.extend([before, c]));
        } else if self.filter.is_empty() && !self.literal {
            match c {
                '/' => self.literal = true,
                ' ' => {}
                'o' => {
                    self.letter = Some(c);
                    return Outcome::Show(Page::Authenticator);
                }
                's' => {
                    self.letter = Some(c);
                    return Outcome::Show(Page::Sessions);
                }
                'q' => {
                    self.letter = Some(c);
                    self.refilter(|filter| filter.push(c));
                    self.say("q again leaves; anything else goes on filtering.");
                }
                _ => self.refilter(|filter| filter.push(c)),
            }
        } else if self.filter.chars().count() < MAX_TYPED {
            self.refilter(|filter| filter.push(c));
        }
        Outcome::Stay
    }

    fn refilter(&mut self, change: impl FnOnce(&mut String)) {
        change(&mut self.filter);
        self.literal = false;
        self.list.filter(&self.filter);
    }

    fn enter(&mut self) -> Outcome {
        let Some(row) = self.list.selected() else { return Outcome::Stay };
        let entry = &row.entry;
        match (entry.mode, entry.accounts.as_slice()) {
            (Mode::Tunnel, _) => {
                let title = format!("{}: from your own computer", entry.name);
                let lines = [
                    "Nobody looks inside the connections to this target: they pass through here \
                     encrypted from end to end, so they have to begin on your own computer. Leave \
                     the menu and type there:",
                    "",
                    &entry.command.clone(),
                ]
                .map(str::to_owned);
                self.show(&title, lines);
                Outcome::Stay
            }
            (Mode::Record, [account]) => self.connect(entry.name.clone(), account.clone()),
            (Mode::Record, accounts) => {
                let granted =
                    |name: &&str| accounts.is_empty() || accounts.iter().any(|a| a == name);
                let own = self.facts.user.as_str();
                let root = accounts.is_empty().then_some("root");
                let offered =
                    entry.last_account.as_deref().into_iter().chain([own]).filter(granted);
                let mut choices: Vec<String> = Vec::new();
                for account in offered.chain(accounts.iter().map(String::as_str)).chain(root) {
                    if !choices.iter().any(|choice| choice == account) {
                        choices.push(account.to_owned());
                    }
                }
                let (target, accounts) = (entry.name.clone(), accounts.to_vec());
                let typed = String::new();
                self.view = View::Account(Question { target, accounts, choices, chosen: 0, typed });
                Outcome::Stay
            }
        }
    }

    fn connect(&mut self, target: String, account: String) -> Outcome {
        self.view = View::List;
        self.list.used(&target, &account);
        // Back from there, the next name is typed anew.
        self.refilter(String::clear);
        self.list.select_name(&target);
        Outcome::Connect { target, account }
    }

    fn key_in_question(&mut self, key: Key) -> Outcome {
        let View::Account(question) = &mut self.view else { return Outcome::Stay };
        match key {
            Key::Char(c) if question.typed.len() < MAX_TYPED && c.is_ascii_graphic() => {
                question.typed.push(c);
            }
            Key::Backspace => {
                question.typed.pop();
            }
            Key::Ctrl('u' | 'w') => question.typed.clear(),
            Key::Up | Key::BackTab | Key::Ctrl('p') => question.choose(false),
            Key::Down | Key::Tab | Key::Ctrl('n') => question.choose(true),
            Key::Esc | Key::Ctrl('c' | 'g') => self.view = View::List,
            Key::Ctrl('d') if question.typed.is_empty() => self.view = View::List,
            Key::Enter => {
                let account = question.answer().to_owned();
                if let Err(error) = account.parse::<AccountName>() {
                    self.notice = shown(&error.to_string());
                } else if question.allows(&account) {
                    let target = question.target.clone();
                    return self.connect(target, account);
                } else {
                    let granted = question.accounts.join(", ");
                    self.notice = shown(&format!("{account} is not granted; these are: {granted}"));
                }
            }
            _ => {}
        }
        Outcome::Stay
    }

    /// What a letter on the authenticator's page means, unless it goes on with a name whose first
    /// letter brought the page up. Names have no capitals, so those always mean it.
    fn own(&self, key: Key, letter: Option<char>) -> Option<OwnVerb> {
        let View::Text(Text { page: Some(Page::Authenticator), .. }) = &self.view else {
            return None;
        };
        let Key::Char(c) = key else { return None };
        if letter.is_some_and(|letter| self.list.any_name_has(&format!("{letter}{c}"))) {
            return None;
        }
        match c.to_ascii_lowercase() {
            'n' => Some(OwnVerb::Rebind),
            'c' => Some(OwnVerb::Codes),
            'u' => Some(OwnVerb::Unbind),
            'p' => Some(OwnVerb::Passwd),
            _ => None,
        }
    }

    fn key_in_text(&mut self, key: Key, letter: Option<char>) {
        let page = Layout::of(self.size).page().saturating_sub(1).max(1);
        let View::Text(text) = &mut self.view else { return };
        match key {
            Key::Up | Key::BackTab | Key::Ctrl('p') => text.top = text.top.saturating_sub(1),
            Key::Down | Key::Tab | Key::Ctrl('n') => text.top = text.top.saturating_add(1),
            Key::PageUp | Key::Ctrl('b') => text.top = text.top.saturating_sub(page),
            Key::PageDown | Key::Ctrl('f') | Key::Char(' ') => {
                text.top = text.top.saturating_add(page);
            }
            Key::Home => text.top = 0,
            Key::End => text.top = usize::MAX,
            Key::Char('q') if !letter.is_some_and(|l| self.list.any_name_has(&format!("{l}q"))) => {
                self.view = View::List;
            }
            Key::Char('?') | Key::F1 => self.view = View::List,
            Key::Char(c) => {
                // Whoever types a name types on, whatever its first letter brought up.
                self.view = View::List;
                self.refilter(|filter| {
                    if let Some(letter) = letter {
                        filter.clear();
                        filter.push(letter);
                    }
                    if filter.chars().count() < MAX_TYPED {
                        filter.push(c);
                    }
                });
            }
            Key::Enter | Key::Esc | Key::Backspace | Key::Left | Key::Ctrl('c' | 'd' | 'g') => {
                self.view = View::List;
            }
            Key::Delete | Key::Right | Key::Ctrl(_) => {}
        }
    }

    /// Scrolls so that what matters is in sight.
    fn fit(&mut self) {
        let layout = Layout::of(self.size);
        self.list.set_height(layout.list_height());
        if let View::Text(text) = &mut self.view {
            let lines = paint::wrapped(&text.lines, self.size.width).len();
            text.top = text.top.min(lines.saturating_sub(layout.page()));
        }
    }
}

impl Question {
    /// What is taken: what was typed, or else what is offered.
    fn answer(&self) -> &str {
        let offered = self.choices.first().map_or("", String::as_str);
        if self.typed.is_empty() { offered } else { &self.typed }
    }

    fn allows(&self, account: &str) -> bool {
        self.accounts.is_empty() || self.accounts.iter().any(|granted| granted == account)
    }

    /// Fills in the next of the choices, or the one before.
    fn choose(&mut self, next: bool) {
        let count = self.choices.len().max(1);
        self.chosen = if self.typed.is_empty() && self.chosen == 0 && count > 1 {
            // The first is offered already.
            if next { 1 } else { count - 1 }
        } else {
            (self.chosen + if next { 1 } else { count - 1 }) % count
        };
        self.typed = self.choices.get(self.chosen).cloned().unwrap_or_default();
    }
}

/// `text` as it may be shown: [`printable`], of bounded length, and without what makes the
/// width of a character depend on the terminal (variation selectors, half-width sound marks).
fn shown(text: &str) -> String {
    let steady = |c| match c {
        '\u{FE00}'..='\u{FE0F}' => None,
        '\u{FF9E}' => Some('\u{309B}'),
        '\u{FF9F}' => Some('\u{309C}'),
        c => Some(c),
    };
    printable(&text.chars().filter_map(steady).take(MAX_TEXT).collect::<String>())
}

/// Drops the last word and what is after it.
fn drop_word(text: &mut String) {
    let kept = text.trim_end().trim_end_matches(|c: char| !c.is_whitespace()).len();
    text.truncate(kept);
}

#[cfg(test)]
mod tests;
