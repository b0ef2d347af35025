//! Lengths of time and sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{as_text, printable};

/// Text that is no length of time or no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a {what}: write it like {example}")]
pub struct UnitError {
    given: String,
    what: &'static str,
    example: &'static str,
}

/// A length of time, such as "30s", "10m", "1h 30m", "7d" (a day is 24 hours: what is timed
/// here knows no time zone).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// The longest [`Span`], so that adding one to a time stays a time.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

impl Span {
    /// A length of `seconds`.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The length, or `None` where it is 0, which stands for "without limit".
    pub fn limit(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        let days = || s.strip_suffix('d')?.trim_end().parse::<u32>().ok();
        let time = match days() {
            Some(days) => Some(Duration::from_secs(u64::from(days) * 86_400)),
            None => s.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()),
        };
        time.filter(|time| *time <= LONGEST).map(Self).ok_or_else(|| UnitError {
            given: printable(s),
            what: "length of time",
            example: r#""30s", "10m", "24h" or "7d""#,
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::SignedDuration::try_from(self.0) {
            Ok(time) => f.pad(&format!("{time:#}")),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

/// A number of bytes, such as "64 KiB" or "1 MiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

/// Units from the largest down, and the power of two that each stands for.
const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Size {
    /// A size of `mib` times 1024 times 1024 bytes.
    pub const fn mib(mib: u64) -> Self {
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
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        let size = || {
            let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
            let (number, unit) = s.split_at(digits);
            let (_, power) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
            number.parse::<u64>().ok()?.checked_mul(1 << power)
        };
        size().map(Self).ok_or_else(|| UnitError {
            given: printable(s),
            what: "size",
            example: r#""64 KiB", "1 MiB" or "2 GiB""#,
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |power: u32| self.0 > 0 && self.0.is_multiple_of(1 << power);
        let (unit, power) = UNITS.into_iter().find(|(_, p)| whole(*p)).unwrap_or(("B", 0));
        f.pad(&format!("{} {unit}", self.0 >> power))
    }
}

as_text!(Span, UnitError);
as_text!(Size, UnitError);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        let table = [("30s", 30), ("10m", 600), ("24h", 86_400), ("1h 30m", 5400)];
        for (text, seconds) in table.into_iter().chain([("7d", 604_800), ("0s", 0)]) {
            assert_eq!(text.parse::<Span>().unwrap(), Span::seconds(seconds), "{text}");
        }
        for bad in ["", "30", "-5s", "soon", "d", "1 month", "99999999999d", "9000000h"] {
            let error = bad.parse::<Span>().unwrap_err().to_string();
            assert!(error.contains("length of time") && error.contains("24h"), "{error}");
        }
        assert_eq!(Span::seconds(0).limit(), None);
        assert_eq!(Span::seconds(1).limit(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("19 MiB", 19 << 20), ("64KiB", 65_536), ("10 B", 10), ("0 B", 0)] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in ["", "1", "1 MB", "x MiB", "-1 KiB", "1.5 MiB", "99999999999 GiB"] {
            let error = bad.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("size") && error.contains("64 KiB"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(seconds in 0..LONGEST.as_secs(), bytes: u64, shift in 0..64u32) {
            let span = Span::seconds(seconds);
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
            for size in [Size(bytes), Size((bytes >> shift) << shift)] {
                prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
            }
        }

        #[test]
        fn nothing_that_is_typed_breaks_the_reading(text: String) {
            let errors = [text.parse::<Span>().err(), text.parse::<Size>().err()];
            for error in errors.into_iter().flatten() {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }
    }
}
