//! Points in time as plain numbers, so that the core can compute with them
//! without a clock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01 00:00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// Whole seconds since the epoch; 0 for anything before it.
    pub fn seconds(self) -> u64 {
        u64::try_from(self.0 / 1000).unwrap_or(0)
    }

    /// This time moved forward by `d`.
    #[must_use]
    pub fn plus(self, d: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This time moved back by `d`.
    #[must_use]
    pub fn minus(self, d: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long `self` lies after `earlier`; zero if it does not.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        let ms = self.0.saturating_sub(earlier.0);
        std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// The TOTP time step this moment lies in (RFC 6238 section 4.2; T0 = 0, X = 30 s).
    pub fn step(self) -> TimeStep {
        TimeStep(self.0.div_euclid(TimeStep::MILLIS))
    }
}

/// RFC 3339 in UTC with whole seconds, such as `2026-11-24T08:20:03Z`.
impl UnixTime {
    /// The day, in UTC, as `2026-11-24`.
    pub fn date(self) -> String {
        self.to_string().chars().take_while(|c| *c != 'T').collect()
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0.div_euclid(1000)) {
            Ok(t) => f.pad(&t.to_string()),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// A 30-second interval since the epoch, numbered from 0 (RFC 6238 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeStep(pub i64);

impl TimeStep {
    /// The length of a step in seconds.
    pub const SECONDS: u64 = 30;
    const MILLIS: i64 = 30_000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_thirty_seconds_long() {
        assert_eq!(UnixTime(59_000).step(), TimeStep(1));
        assert_eq!(UnixTime(60_000).step(), TimeStep(2));
        assert_eq!(UnixTime(1_111_111_109_000).step(), TimeStep(0x0235_23EC)); // RFC 6238 appendix B
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(UnixTime(1_795_508_403_999).to_string(), "2026-11-24T08:20:03Z");
    }
}
