//! Figures, and the table of them.

use std::fmt::Write as _;

/// Measurements of one thing.
#[derive(Default, Clone)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value below which a share of them lies.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

struct Row {
    what: String,
    unit: &'static str,
    sshd: Series,
    ours: Series,
}

#[derive(Default)]
pub struct Table(Vec<Row>);

impl Table {
    pub fn new() -> Self {
        Self::default()
    }

    /// A figure of both.
    pub fn pair(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        sshd: Series,
        ours: Series,
    ) {
        self.0.push(Row { what: what.into(), unit, sshd, ours });
    }

    /// A figure that sshd has none of.
    pub fn ours(&mut self, what: impl Into<String>, unit: &'static str, ours: Series) {
        self.pair(what, unit, Series::default(), ours);
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let heads = ["", "unit", "sshd", "Sallyport", "ratio"];
        let line = format!(
            "{:<58} {:<9} {:>22} {:>22} {:>6}\n",
            heads[0], heads[1], heads[2], heads[3], heads[4]
        );
        text.push_str(&line);
        for row in &self.0 {
            let shown = |series: &Series| {
                if series.0.is_empty() {
                    return "-".to_owned();
                }
                format!(
                    "{} ({}..{})",
                    short(series.median()),
                    short(series.quantile(0.0)),
                    short(series.quantile(1.0))
                )
            };
            let sshd = shown(&row.sshd);
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            let ours = shown(&row.ours);
            writeln!(text, "{:<58} {:<9} {sshd:>22} {ours:>22} {ratio:>6}", row.what, row.unit)
                .unwrap();
        }
        text
    }

    pub fn json(&self) -> String {
        let figure = |series: &Series| {
            serde_json::json!({
                "median": series.median(),
                "least": series.quantile(0.0),
                "most": series.quantile(1.0),
                "rounds": series.0.len(),
            })
        };
        let rows: Vec<_> = self
            .0
            .iter()
            .map(|row| {
                serde_json::json!({
                    "what": row.what,
                    "unit": row.unit,
                    "sshd": figure(&row.sshd),
                    "sallyport": figure(&row.ours),
                    "ratio": row.ratio(),
                })
            })
            .collect();
        serde_json::to_string_pretty(&rows).unwrap()
    }
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        let sshd = self.sshd.median();
        (sshd > 0.0).then(|| self.ours.median() / sshd)
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
