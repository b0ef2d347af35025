//! Lengths of time and sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A length of time, such as "30s", "10m", "1h 30m", "7d".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl Span {
    pub(super) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        // Days are 24 hours here: a lock or a grace time has no time zone.
        let days = s.strip_suffix('d').and_then(|days| days.trim().parse::<u32>().ok());
        let time = match days {
            Some(days) => Some(Duration::from_secs(u64::from(days) * 86_400)),
            None => s.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()),
        };
        time.map(Self).ok_or_else(|| {
            format!("{s:?} is no length of time: write it like \"30s\", \"10m\", \"24h\" or \"7d\"")
        })
    }
}

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

/// A number of bytes, such as "64 KiB" or "1 MiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(u64);

impl Size {
    pub(super) const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The size in bytes, as much of it as fits.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is no size: write it like \"64 KiB\", \"1 MiB\" or \"2 GiB\"");
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let shift = match unit.trim() {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes() {
        for (text, seconds) in [
            ("30s", 30),
            ("10m", 600),
            ("24h", 86_400),
            ("1h 30m", 5400),
            ("7d", 604_800),
            ("0s", 0),
        ] {
            assert_eq!(text.parse::<Span>().unwrap(), Span::seconds(seconds), "{text}");
        }
        for (text, bytes) in [("19 MiB", 19 << 20), ("64KiB", 65_536), ("10 B", 10)] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in ["", "30", "-5s", "soon"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["", "1", "1 MB", "x MiB", "99999999999 GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
