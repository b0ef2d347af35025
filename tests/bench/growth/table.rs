//! Figures by the size of the store, and the table of them.

use std::fmt::Write as _;
use std::time::Duration;

/// How long one thing took, in a store of one size.
struct Took {
    median: Duration,
    p95: Duration,
}

struct Row {
    what: &'static str,
    /// In the order of the table's sizes.
    took: Vec<Took>,
}

pub struct Table {
    engine: String,
    events: Vec<u64>,
    rows: Vec<Row>,
}

impl Table {
    pub fn new(engine: String, events: Vec<u64>) -> Self {
        Self { engine, events, rows: Vec::new() }
    }

    /// What was measured in the next size.
    pub fn push(&mut self, what: &'static str, mut all: Vec<Duration>) {
        all.sort();
        let at = |percent: usize| all[(all.len() - 1) * percent / 100];
        let took = Took { median: at(50), p95: at(95) };
        match self.rows.iter_mut().find(|row| row.what == what) {
            Some(row) => row.took.push(took),
            None => self.rows.push(Row { what, took: vec![took] }),
        }
    }

    /// Medians in milliseconds, and the last of them to the first.
    pub fn text(&self) -> String {
        let mut text = format!("{:<44}", format!("{}: ms, by audit events", self.engine));
        for events in &self.events {
            write!(text, " {events:>10}").unwrap();
        }
        text.push_str("  last to first\n");
        for row in &self.rows {
            write!(text, "{:<44}", row.what).unwrap();
            for took in &row.took {
                write!(text, " {:>10.2}", took.median.as_secs_f64() * 1000.0).unwrap();
            }
            writeln!(text, " {:>14.2}", row.ratio()).unwrap();
        }
        text
    }

    pub fn json(&self) -> serde_json::Value {
        let figures = |row: &Row| {
            let sizes = self.events.iter().zip(&row.took).map(|(events, took)| {
                serde_json::json!({
                    "events": events,
                    "median_ms": took.median.as_secs_f64() * 1000.0,
                    "p95_ms": took.p95.as_secs_f64() * 1000.0,
                })
            });
            let sizes: Vec<_> = sizes.collect();
            serde_json::json!({ "what": row.what, "sizes": sizes, "last_to_first": row.ratio() })
        };
        let rows: Vec<_> = self.rows.iter().map(figures).collect();
        serde_json::json!({ "engine": self.engine, "figures": rows })
    }
}

impl Row {
    fn ratio(&self) -> f64 {
        let of = |took: Option<&Took>| took.map_or(f64::NAN, |took| took.median.as_secs_f64());
        of(self.took.last()) / of(self.took.first())
    }
}
