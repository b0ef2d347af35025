//! Moments as people type them: `2026-12-24T18:00`, `+7d`, `yesterday`.
//!
//! Reading is split in two, so that it stays pure: [`When`] is parsed where the
//! command line is, and [`When::resolve`]d against a given now and zone.

use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _, ZonedDateTime};

use super::{UnixTime, printable};

/// A moment, perhaps one that depends on now or on the zone.
#[derive(Debug, Clone)]
pub struct When(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// So long after now, or before it.
    FromNow(Span),
    /// The first moment of the day that lies so many days after today.
    Day(i64),
    /// A date and time of the zone that the reader lives in.
    Local(DateTime),
    /// A date and time that said its own zone or offset.
    Exact(Timestamp),
}

/// Text that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// It cannot be read.
    #[error(
        "{0:?} is not a time: write 2026-12-24, 2026-12-24T18:00, 2026-12-24T18:00+01:00, \
         2026-12-24T18:00[Europe/Berlin], now, yesterday, '+7d', '-2h', 'in 3 days' or '2 hours ago'"
    )]
    Unreadable(String),
    /// A span that does not say in which direction.
    #[error("{0:?} is not a time: write '+{0}' for later than now or '-{0}' for earlier")]
    NoDirection(String),
    /// It lies beyond the years that are kept.
    #[error("{0} is too far from now: use a time between the years 1970 and 9999")]
    OutOfRange(String),
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        let text = text.trim();
        let kind = match text.to_ascii_lowercase().as_str() {
            "now" => Kind::FromNow(Span::new()),
            "yesterday" => Kind::Day(-1),
            "today" => Kind::Day(0),
            "tomorrow" => Kind::Day(1),
            lower => match span(lower) {
                Some(span) => Kind::FromNow(span),
                None if lower.parse::<Span>().is_ok() => {
                    return Err(WhenError::NoDirection(printable(lower)));
                }
                None => date_time(text).ok_or_else(|| WhenError::Unreadable(printable(text)))?,
            },
        };
        Ok(Self(kind))
    }
}

impl When {
    /// The moment meant, read at `now` by somebody in `zone`.
    ///
    /// A local time that a clock change skips is moved forward by the change; one that happens
    /// twice is the first (RFC 5545 section 3.3.5).
    ///
    /// # Errors
    /// When it lies before 1970 or after 9999.
    pub fn resolve(&self, now: UnixTime, zone: &TimeZone) -> Result<UnixTime, WhenError> {
        self.timestamp(now, zone)
            .map(|t| UnixTime(t.as_millisecond()))
            .filter(|t| t.0 >= 0)
            .ok_or_else(|| WhenError::OutOfRange(self.shown()))
    }

    fn timestamp(&self, now: UnixTime, zone: &TimeZone) -> Option<Timestamp> {
        let now = Timestamp::from_millisecond(now.0).ok()?.to_zoned_datetime(zone.clone());
        let zoned: ZonedDateTime = match &self.0 {
            // In the zone, so that a day is a calendar day also when the clock changes.
            Kind::FromNow(span) => now.checked_add(*span).ok()?,
            Kind::Day(days) => now.checked_add(days.days()).ok()?.start_of_day().ok()?,
            Kind::Local(civil) => civil.to_zoned_datetime(zone.clone()).ok()?,
            Kind::Exact(timestamp) => return Some(*timestamp),
        };
        Some(zoned.timestamp())
    }

    fn shown(&self) -> String {
        match &self.0 {
            Kind::FromNow(span) => format!("{span:#}"),
            Kind::Day(days) => format!("{days} days"),
            Kind::Local(civil) => civil.to_string(),
            Kind::Exact(timestamp) => timestamp.to_string(),
        }
    }
}

/// `+7d`, `-1h30m`, `in 3 days`, `2 hours ago`: spans that say their direction, once.
fn span(text: &str) -> Option<Span> {
    let text = match text.strip_prefix("in ") {
        Some(rest) => Some(rest).filter(|rest| !is_directed(rest)),
        None => Some(text).filter(|text| is_directed(text)),
    }?;
    // jiff also reads ISO 8601 durations, "P7D"; `text` is in lower case, which it allows.
    text.parse().ok()
}

fn is_directed(span: &str) -> bool {
    span.starts_with(['+', '-']) || span.ends_with(" ago")
}

/// A date, or a date and time, with or without an offset or zone.
fn date_time(text: &str) -> Option<Kind> {
    let pieces = Pieces::parse(text).ok()?;
    if pieces.time_zone_annotation().is_some() {
        // Checks the zone's name, and an offset beside it against the zone's rules.
        let parsed = match pieces.offset() {
            Some(_) => text.parse::<ZonedDateTime>().ok()?,
            None => {
                let zone = pieces.to_time_zone().ok()??;
                pieces
                    .date()
                    .to_datetime(pieces.time().unwrap_or_default())
                    .to_zoned_datetime(zone)
                    .ok()?
            }
        };
        return Some(Kind::Exact(parsed.timestamp()));
    }
    if pieces.offset().is_some() {
        return Some(Kind::Exact(text.parse().ok()?));
    }
    Some(Kind::Local(pieces.date().to_datetime(pieces.time().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Friday 2026-03-27 12:00 in Berlin; clocks go forward on Sunday the 29th.
    const NOW: &str = "2026-03-27T11:00:00Z";

    fn resolve(text: &str) -> Result<String, WhenError> {
        let now = UnixTime(NOW.parse::<Timestamp>().unwrap().as_millisecond());
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        text.parse::<When>()?.resolve(now, &berlin).map(|t| t.to_string())
    }

    #[test]
    fn what_people_type() {
        for (text, meant) in [
            ("now", NOW),
            ("Now", NOW),
            ("today", "2026-03-26T23:00:00Z"),
            ("yesterday", "2026-03-25T23:00:00Z"),
            ("tomorrow", "2026-03-27T23:00:00Z"),
            ("2026-12-24", "2026-12-23T23:00:00Z"),
            ("2026-12-24T18:00", "2026-12-24T17:00:00Z"),
            ("2026-12-24 18:00", "2026-12-24T17:00:00Z"),
            ("2026-07-24T18:00:05", "2026-07-24T16:00:05Z"),
            ("2026-12-24T18:00Z", "2026-12-24T18:00:00Z"),
            ("2026-12-24T18:00+05:30", "2026-12-24T12:30:00Z"),
            ("2026-12-24T18:00[America/New_York]", "2026-12-24T23:00:00Z"),
            ("2026-12-24[America/New_York]", "2026-12-24T05:00:00Z"),
            ("2026-12-24T18:00-05:00[America/New_York]", "2026-12-24T23:00:00Z"),
            ("+90s", "2026-03-27T11:01:30Z"),
            ("-2h", "2026-03-27T09:00:00Z"),
            ("+1h30m", "2026-03-27T12:30:00Z"),
            ("in 3 hours", "2026-03-27T14:00:00Z"),
            ("2 weeks ago", "2026-03-13T11:00:00Z"),
            // Three days later at the same hour of the clock, which is 71 hours.
            ("in 3 days", "2026-03-30T10:00:00Z"),
            ("+3d", "2026-03-30T10:00:00Z"),
            ("+72h", "2026-03-30T11:00:00Z"),
            // 02:30 does not exist on that night.
            ("2026-03-29T02:30", "2026-03-29T01:30:00Z"),
        ] {
            assert_eq!(resolve(text).as_deref(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for bad in [
            "",
            "soon",
            "24.12.2026",
            "2026-13-01",
            "2026-02-30",
            "2026-12-24T25:00",
            "2026-12-24T18:00+99:00",
            "2026-12-24T18:00[Europe/Berlim]",
            "2026-12-24T18:00+05:00[Europe/Berlin]",
            "in -3 days",
            "in 3 days ago",
            "+",
            "a\x1b[2J",
        ] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(error.contains("2026-12-24T18:00") && error.contains("+7d"), "{bad}: {error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
        assert_eq!(resolve("7d"), Err(WhenError::NoDirection("7d".into())));
        for far in ["1969-12-31T00:00Z", "-9000 years", "+9000 years", "-80 years"] {
            assert!(matches!(resolve(far), Err(WhenError::OutOfRange(_))), "{far}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_on_one_printable_line(text in any::<String>()) {
            if let Err(error) = resolve(&text) {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }

        #[test]
        fn an_rfc_3339_time_means_itself(seconds in 0_i64..253_000_000_000) {
            let shown = UnixTime(seconds * 1000).to_string();
            prop_assert_eq!(resolve(&shown).unwrap(), shown);
        }
    }
}
