//! How a verb shows what it found: a table for people, JSON for programs.
//!
//! Always holds: nothing a terminal could act on leaves here, whatever a name, a
//! client version or a command contains, in a table and in JSON alike.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::domain::{UnixTime, printable, printable_json};

/// In what form to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns under a heading.
    Table {
        /// Columns of the terminal to fit into; without one, a row is always one line.
        width: Option<u16>,
    },
    /// One JSON value; of a list, every row on a line of its own.
    Json,
}

/// Something that can be shown: `Serialize` is its JSON, the rest its row in a table.
pub trait Row: Serialize {
    /// The columns' headings.
    const HEADINGS: &'static [&'static str];
    /// The row's cells, one for each heading. They need not be printable.
    fn cells(&self) -> Vec<String>;
}

/// Shows many rows: a table with headings, also when it is empty, or a JSON array.
///
/// # Errors
/// When `out` cannot be written.
pub fn list<R: Row>(out: &mut dyn Write, format: Format, rows: &[R]) -> io::Result<()> {
    let width = match format {
        Format::Table { width } => width,
        Format::Json => return json_array(out, rows),
    };
    let mut table = plain_table(width);
    table.set_header(R::HEADINGS.to_vec());
    table.add_rows(rows.iter().map(|row| printable_cells(&row.cells())));
    if let Some(first) = table.column_mut(0) {
        // A name or an id: it has to be copied whole.
        first.set_constraint(ColumnConstraint::ContentWidth);
    }
    write_table(out, &table)
}

/// Shows one row: a line for each heading, or a JSON object.
///
/// # Errors
/// When `out` cannot be written.
pub fn show<R: Row>(out: &mut dyn Write, format: Format, row: &R) -> io::Result<()> {
    let width = match format {
        Format::Table { width } => width,
        Format::Json => return json_line(out, row),
    };
    let mut table = plain_table(width);
    // A cell may have several lines, each printable by itself.
    let lines = |cell: &String| {
        printable_cells(&cell.lines().map(str::to_owned).collect::<Vec<_>>()).join("\n")
    };
    let cells: Vec<String> = row
        .cells()
        .iter()
        .map(|cell| if cell.is_empty() { "-".to_owned() } else { lines(cell) })
        .collect();
    table
        .add_rows(R::HEADINGS.iter().zip(cells).map(|(heading, cell)| [heading.to_string(), cell]));
    write_table(out, &table)
}

/// Writes one value as a line of JSON; many of them are JSON Lines, which an export is.
///
/// # Errors
/// When `out` cannot be written.
pub fn json_line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", json(value)?)
}

fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(printable_json(&serde_json::to_string(value)?))
}

fn json_array<R: Row>(out: &mut dyn Write, rows: &[R]) -> io::Result<()> {
    let mut before = "[";
    for row in rows {
        write!(out, "{before}\n{}", json(row)?)?;
        before = ",";
    }
    out.write_all(if rows.is_empty() { b"[]\n" } else { b"\n]\n" })
}

/// No borders: what is shown can be cut by `awk` and copied from a terminal.
fn plain_table(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table
}

fn write_table(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        // The cells' padding puts a blank in front of every line.
        let line = line.strip_prefix(' ').unwrap_or(&line);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// An empty cell is shown as `-`, so that columns can still be counted.
fn printable_cells(cells: &[String]) -> Vec<String> {
    cells.iter().map(|c| if c.is_empty() { "-".to_owned() } else { printable(c) }).collect()
}

/// How long `then` lies before or after `now`, in the largest unit that counts at least 1.
pub fn age(now: UnixTime, then: UnixTime) -> String {
    let ago = then <= now;
    let between = if ago { now.since(then) } else { then.since(now) };
    match length(between) {
        _ if between.as_secs() == 0 => "now".to_owned(),
        length if ago => format!("{length} ago"),
        length => format!("in {length}"),
    }
}

/// A length of time, in the largest unit that counts at least 1.
pub fn length(of: Duration) -> String {
    let seconds = of.as_secs();
    let (count, unit) = match seconds {
        0..=59 => (seconds, "s"),
        60..=3_599 => (seconds / 60, "m"),
        3_600..=86_399 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count} {unit}")
}

/// Nobody reads the output any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct ReaderGone;

/// Marks a broken pipe of an output as that, so that [`reader_is_gone`] knows it again.
pub fn mark(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::BrokenPipe {
        io::Error::new(ErrorKind::BrokenPipe, ReaderGone)
    } else {
        error
    }
}

/// Whether a verb ended because nobody reads its output, which is no failure.
pub fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
        io.is_some_and(|inner| inner.is::<ReaderGone>()) || cause.is::<ReaderGone>()
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use proptest::prelude::*;

    use super::*;

    #[derive(Serialize)]
    struct Seen {
        name: String,
        client: String,
    }

    impl Row for Seen {
        const HEADINGS: &'static [&'static str] = &["NAME", "CLIENT"];
        fn cells(&self) -> Vec<String> {
            vec![self.name.clone(), self.client.clone()]
        }
    }

    fn seen(name: &str, client: &str) -> Seen {
        Seen { name: name.into(), client: client.into() }
    }

    fn listed(format: Format, rows: &[Seen]) -> String {
        let mut out = Vec::new();
        list(&mut out, format, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    const WIDE: Format = Format::Table { width: None };

    #[test]
    fn a_table_has_headings_and_no_borders() {
        let rows = [seen("alice", "OpenSSH 9.2"), seen("bob", "")];
        assert_eq!(listed(WIDE, &rows), "NAME   CLIENT\nalice  OpenSSH 9.2\nbob    -\n");
        assert_eq!(listed(WIDE, &[]), "NAME  CLIENT\n");
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let rows = [seen("alice", &"word ".repeat(40))];
        let shown = listed(Format::Table { width: Some(40) }, &rows);
        assert!(shown.lines().count() > 2);
        assert!(shown.lines().all(|line| line.chars().count() <= 40), "{shown}");
        assert_eq!(listed(WIDE, &rows).lines().count(), 2);
    }

    #[test]
    fn json_is_an_array_with_a_row_a_line() {
        let rows = [seen("alice", "x"), seen("bob", "y")];
        let shown = listed(Format::Json, &rows);
        assert_eq!(
            shown,
            "[\n{\"name\":\"alice\",\"client\":\"x\"},\n{\"name\":\"bob\",\"client\":\"y\"}\n]\n"
        );
        assert_eq!(listed(Format::Json, &[]), "[]\n");
    }

    #[test]
    fn one_thing_is_shown_as_lines_or_as_an_object() {
        let row = seen("alice", "x");
        let (mut lines, mut object) = (Vec::new(), Vec::new());
        show(&mut lines, WIDE, &row).unwrap();
        show(&mut object, Format::Json, &row).unwrap();
        assert_eq!(lines, b"NAME    alice\nCLIENT  x\n");
        assert_eq!(object, b"{\"name\":\"alice\",\"client\":\"x\"}\n");
    }

    #[test]
    fn ages() {
        let now = UnixTime(1_000_000_000_000);
        let at = |s: i64| UnixTime(now.0 + s * 1000);
        for (offset, shown) in [
            (0, "now"),
            (-59, "59 s ago"),
            (-60, "1 m ago"),
            (-7_199, "1 h ago"),
            (-86_400 * 3, "3 d ago"),
            (90, "in 1 m"),
        ] {
            assert_eq!(age(now, at(offset)), shown);
        }
        assert_eq!(age(now, now.plus(Duration::from_secs(7_200))), "in 2 h");
        assert_eq!(length(Duration::from_millis(900)), "0 s");
    }

    #[test]
    fn a_reader_that_leaves_is_told_from_a_connection_that_breaks() {
        struct Left;
        impl Write for Left {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let left = list(&mut Left, Format::Json, &[seen("a", "b")]).map_err(mark);
        let left = left.context("failed to list");
        assert!(reader_is_gone(&left.unwrap_err()));
        let broke = anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe));
        assert!(!reader_is_gone(&broke.context("failed to reach the store")));
    }

    proptest! {
        #[test]
        fn nothing_raw_gets_out(name in any::<String>(), client in any::<String>()) {
            for format in [WIDE, Format::Json] {
                let shown = listed(format, &[seen(&name, &client)]);
                prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'));
                prop_assert_eq!(shown.lines().count(), if format == WIDE { 2 } else { 3 });
            }
        }
    }
}
