//! The targets of the menu, and which of them a filter leaves.
//!
//! Always holds: what is selected is one of those that are left, if any are.

use std::ops::Range;

use ratatui_core::text::Span;

use super::{Entry, shown};
use crate::domain::Mode;

/// An entry as it is shown and searched.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) entry: Entry,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) accounts: String,
    pub(super) notes: String,
    /// What a filter looks for its words in, in lower case: the name, the rest of it.
    sought: (String, String),
}

impl Row {
    fn new(entry: Entry) -> Self {
        let remark = shown(&entry.remark);
        let mut notes = match (entry.holds_now, remark.is_empty()) {
            (true, _) => remark,
            (false, true) => "not now".to_owned(),
            (false, false) => format!("not now: {remark}"),
        };
        let tunnel = (entry.mode == Mode::Tunnel).then(|| "tunnel".to_owned());
        for note in tunnel.into_iter().chain(entry.labels.iter().map(|label| shown(label))) {
            if !notes.is_empty() {
                notes.push_str("  ");
            }
            notes.push_str(&note);
        }
        let accounts = match entry.mode {
            Mode::Tunnel => "-".to_owned(), // Whoever is at the other end asks.
            Mode::Record if entry.accounts.is_empty() => "any".to_owned(),
            Mode::Record => shown(&entry.accounts.join(", ")),
        };
        let (name, address) = (shown(&entry.name), shown(&entry.address));
        // No word has a line break in it.
        let rest = format!("{address}\n{}", entry.labels.join("\n")).to_lowercase();
        Self { sought: (name.to_lowercase(), rest), name, address, accounts, notes, entry }
    }

    /// Whether all `words` are in it, and how well: less is better.
    fn rank(&self, words: &[&str]) -> Option<u8> {
        let (name, rest) = &self.sought;
        let rank = |word: &&str| match name.strip_prefix(word) {
            Some("") => Some(0),
            Some(_) => Some(1),
            None if name.contains(word) => Some(2),
            None => rest.contains(word).then_some(3),
        };
        let ranks: Option<Vec<u8>> = words.iter().map(rank).collect();
        Some(ranks?.into_iter().min().unwrap_or(0))
    }
}

/// All rows, those that the filter leaves, and the selected one.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    rows: Vec<Row>,
    /// The numbers of the rows that are left, best first.
    left: Vec<usize>,
    /// Which of those is selected; 0 if there is none.
    selected: usize,
    /// Which of those is shown first.
    top: usize,
    /// How many are shown at once.
    height: usize,
    /// The widest name, address and accounts.
    pub(super) widths: [usize; 3],
}

impl List {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        let rows: Vec<Row> = entries.into_iter().map(Row::new).collect();
        let widest = |text: fn(&Row) -> &str| {
            rows.iter().map(|row| Span::raw(text(row)).width()).max().unwrap_or(0)
        };
        let widths = [widest(|row| &row.name), widest(|row| &row.address), widest(|r| &r.accounts)];
        let left = (0..rows.len()).collect();
        Self { rows, left, selected: 0, top: 0, height: 1, widths }
    }

    /// How many there are.
    pub(super) fn all(&self) -> usize {
        self.rows.len()
    }

    /// How many the filter leaves.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// Leaves those in which all words of `filter` are, and selects the best.
    pub(super) fn filter(&mut self, filter: &str) {
        let filter = filter.to_lowercase();
        let words: Vec<&str> = filter.split_whitespace().collect();
        let ranked = |(n, row): (usize, &Row)| Some((row.rank(&words)?, n));
        let mut left: Vec<(u8, usize)> = self.rows.iter().enumerate().filter_map(ranked).collect();
        left.sort_unstable();
        self.left = left.into_iter().map(|(_, n)| n).collect();
        self.select(0);
    }

    /// Whether there is a target of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.entry.name == name)
    }

    /// Whether a name has this text in it.
    pub(super) fn any_name_has(&self, text: &str) -> bool {
        self.rows.iter().any(|row| row.sought.0.contains(text))
    }

    /// Selects the one of those left with this number, or the last.
    pub(super) fn select(&mut self, n: usize) {
        self.selected = n.min(self.left.len().saturating_sub(1));
        self.scroll();
    }

    /// Selects the target with this name, if it is left.
    pub(super) fn select_name(&mut self, name: &str) {
        let named = |n: &usize| self.rows.get(*n).is_some_and(|row| row.entry.name == name);
        self.select(self.left.iter().position(named).unwrap_or(self.selected));
    }

    pub(super) fn up(&mut self, by: usize) {
        self.select(self.selected.saturating_sub(by));
    }

    pub(super) fn down(&mut self, by: usize) {
        self.select(self.selected.saturating_add(by));
    }

    /// A page, of which one line stays in sight.
    pub(super) fn page(&self) -> usize {
        self.height.saturating_sub(1).max(1)
    }

    /// There is room for this many.
    pub(super) fn set_height(&mut self, height: usize) {
        self.height = height.max(1);
        self.scroll();
    }

    fn scroll(&mut self) {
        let first = (self.selected + 1).saturating_sub(self.height);
        self.top = self.top.clamp(first, self.selected.max(first));
        // No empty lines below while there are rows above.
        self.top = self.top.min(self.left.len().saturating_sub(self.height));
    }

    /// Which of those left is selected, from 0.
    pub(super) fn position(&self) -> usize {
        self.selected
    }

    /// The selected one.
    pub(super) fn selected(&self) -> Option<&Row> {
        self.left.get(self.selected).and_then(|n| self.rows.get(*n))
    }

    /// Those that are to be shown, and whether each is the selected one.
    pub(super) fn visible(&self) -> impl Iterator<Item = (&Row, bool)> {
        let range: Range<usize> = self.top..self.left.len().min(self.top + self.height);
        let row = |n: &usize| self.rows.get(*n);
        let selected = self.selected - self.top.min(self.selected);
        let shown = self.left.get(range).unwrap_or_default().iter().filter_map(row);
        shown.enumerate().map(move |(n, row)| (row, n == selected))
    }

    /// Notes which account was used last on a target.
    pub(super) fn used(&mut self, name: &str, account: &str) {
        for row in self.rows.iter_mut().filter(|row| row.entry.name == name) {
            row.entry.last_account = Some(account.to_owned());
        }
    }

    /// Takes over which accounts were used, for those of which that is not known.
    pub(super) fn remember(&mut self, before: &Self) {
        for Row { entry, .. } in &before.rows {
            for row in self.rows.iter_mut().filter(|row| row.entry.name == entry.name) {
                if row.entry.last_account.is_none() {
                    row.entry.last_account.clone_from(&entry.last_account);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{entries, entry};
    use super::*;
    use proptest::prelude::*;

    fn names(list: &List) -> Vec<&str> {
        list.left.iter().map(|n| list.rows[*n].name.as_str()).collect()
    }

    #[test]
    fn all_words_must_be_somewhere_and_the_best_comes_first() {
        let mut list = List::new(entries());
        let all = ["web-prod-1", "web-prod-2", "db1", "db10", "olddb1", "pg1", "router"];
        for (filter, left) in [
            ("", &all[..]),
            ("db1", &["db1", "db10", "olddb1"]),
            ("DB", &["db1", "db10", "olddb1", "router"]),
            ("web -2", &["web-prod-2"]),
            ("-2 WEB", &["web-prod-2"]),
            ("env=prod", &["web-prod-1", "web-prod-2", "db1"]),
            ("prod db", &["db1"]),
            ("10.0.0.5", &["db1"]),
            ("o", &["olddb1", "web-prod-1", "web-prod-2", "router", "db1"]),
            ("1 o", &["olddb1", "web-prod-1", "web-prod-2", "db1", "router"]),
            ("  ", &all),
            ("nothing", &[]),
            ("db1 nothing", &[]),
        ] {
            list.filter(filter);
            assert_eq!(names(&list), left, "{filter:?}");
        }
    }

    #[test]
    fn a_selection_survives_by_name() {
        let mut list = List::new(entries());
        list.select_name("pg1");
        assert_eq!(list.selected().unwrap().name, "pg1");
        list.select_name("gone");
        assert_eq!(list.selected().unwrap().name, "pg1");
    }

    #[test]
    fn notes_say_what_matters_first() {
        let row = Row::new(Entry {
            holds_now: false,
            remark: "Mon-Fri\x1b[2J".into(),
            labels: vec!["env=prod".into()],
            mode: Mode::Tunnel,
            ..entry("a", "b")
        });
        assert_eq!(row.notes, "not now: Mon-Fri\\u{1b}[2J  tunnel  env=prod");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Filter(String),
        Up(usize),
        Down(usize),
        Height(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            "[dbw 01-]{0,4}".prop_map(Step::Filter),
            (0..30_usize).prop_map(Step::Up),
            (0..30_usize).prop_map(Step::Down),
            (0..12_usize).prop_map(Step::Height),
        ]
    }

    proptest! {
        #[test]
        fn what_is_selected_is_left_and_visible(
            steps in proptest::collection::vec(step(), 0..30),
            empty in any::<bool>(),
        ) {
            let mut list = List::new(if empty { Vec::new() } else { entries() });
            for step in steps {
                match step {
                    Step::Filter(text) => list.filter(&text),
                    Step::Up(by) => list.up(by),
                    Step::Down(by) => list.down(by),
                    Step::Height(height) => list.set_height(height),
                }
                prop_assert_eq!(list.selected().is_some(), list.left() > 0);
                let visible: Vec<_> = list.visible().collect();
                prop_assert_eq!(visible.len(), list.left().min(list.height));
                let selected: Vec<_> = visible.iter().filter(|(_, is)| *is).collect();
                prop_assert_eq!(selected.len(), usize::from(list.left() > 0));
            }
        }
    }
}
