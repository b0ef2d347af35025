//! Times of the week at which a grant holds, on the wall clock of a named time zone.
//!
//! Always holds: the text of [`Hours`] reads back as the same hours; a window that ends before it
//! begins runs into the next day and belongs to the day it begins on.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::{UnixTime, as_text, printable};

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Minutes in a day.
const DAY: u16 = 24 * 60;

/// Text that says no hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} are no hours: {why}; write them like 'Mon-Fri 08:00-18:00 Europe/Berlin'")]
pub struct HoursError {
    given: String,
    why: String,
}

/// When a grant holds: windows of the week in one time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    windows: Vec<Window>,
    zone: String,
    tz: TimeZone,
}

/// Some days of the week, and minutes of the day from `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    /// Bit 0 is Monday.
    days: u8,
    from: u16,
    to: u16,
}

impl Window {
    /// Whether minute `minute` of weekday `day` (0 is Monday) lies in the window.
    fn contains(self, day: u8, minute: u16) -> bool {
        let on = |day: u8| self.days & (1 << (day % 7)) != 0;
        if self.from < self.to {
            on(day) && (self.from..self.to).contains(&minute)
        } else {
            (on(day) && minute >= self.from) || (on(day + 6) && minute < self.to)
        }
    }
}

impl Hours {
    /// Whether they hold at `now`.
    pub fn contains(&self, now: UnixTime) -> bool {
        let Ok(time) = jiff::Timestamp::from_millisecond(now.0) else { return false };
        let local = time.to_zoned_datetime(self.tz.clone());
        let day = u8::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
        let minute = |n: i8| u16::try_from(n).unwrap_or(0);
        let minute = minute(local.hour()) * 60 + minute(local.minute());
        self.windows.iter().any(|window| window.contains(day, minute))
    }

    /// When they next begin or end after `now`; `None` if they never do.
    ///
    /// Wall clocks change by whole minutes at whole minutes, so the next change is found by
    /// looking at minutes; a week and a day of them is the longest that it can be away.
    pub fn next_change(&self, now: UnixTime) -> Option<UnixTime> {
        let held = self.contains(now);
        let first = now.0.div_euclid(60_000) + 1;
        (first..=first + 8 * i64::from(DAY))
            .map(|minute| UnixTime(minute * 60_000))
            .find(|time| self.contains(*time) != held)
    }
}

impl FromStr for Hours {
    type Err = HoursError;
    fn from_str(s: &str) -> Result<Self, HoursError> {
        let fail = |why: String| HoursError { given: printable(s), why };
        let (windows, zone) = s
            .trim()
            .rsplit_once(' ')
            .ok_or_else(|| fail("they need days, times and a time zone".into()))?;
        let tz = TimeZone::get(zone).map_err(|_| {
            let zone = printable(zone);
            fail(match zone.contains(':') {
                true => "a time zone is missing at the end, such as Europe/Berlin or UTC".into(),
                false => {
                    format!("{zone:?} is no time zone: write one such as Europe/Berlin or UTC")
                }
            })
        })?;
        let windows =
            windows.split(';').map(|w| window(w.trim()).map_err(fail)).collect::<Result<_, _>>()?;
        Ok(Self { windows, zone: tz.iana_name().unwrap_or(zone).to_owned(), tz })
    }
}

fn window(s: &str) -> Result<Window, String> {
    let (days, times) = match s.rsplit_once(' ') {
        Some((days, times)) => (days_of(days.trim())?, times),
        None => return Err(format!("{:?} needs days and times", printable(s))),
    };
    let (from, to) = times.split_once('-').ok_or("times are FROM-TO")?;
    let (from, to) = (minutes(from)?, minutes(to)?);
    if from == to || from == DAY {
        return Err("a window needs a beginning and a later end".into());
    }
    Ok(Window { days, from, to })
}

fn days_of(s: &str) -> Result<u8, String> {
    if s.eq_ignore_ascii_case("daily") {
        return Ok(0x7f);
    }
    let day = |name: &str| {
        let found = DAYS.iter().position(|d| d.eq_ignore_ascii_case(name.trim()));
        found
            .ok_or_else(|| format!("{:?} is no day (Mon Tue Wed Thu Fri Sat Sun)", printable(name)))
    };
    let mut days = 0;
    for part in s.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        // Fri-Mon goes over the end of the week.
        let last = if last < first { last + 7 } else { last };
        days |= (first..=last).fold(0, |days, day| days | 1 << (day % 7));
    }
    Ok(days)
}

fn minutes(s: &str) -> Result<u16, String> {
    let bad = || format!("{:?} is no time of day (00:00 to 24:00)", printable(s));
    let (h, m) = s.trim().split_once(':').ok_or_else(bad)?;
    let number = |part: &str| match part.len() {
        2 => part.parse::<u16>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit())),
        _ => None,
    };
    let (h, m) = (number(h).ok_or_else(bad)?, number(m).ok_or_else(bad)?);
    let minutes = h * 60 + m;
    (m < 60 && minutes <= DAY).then_some(minutes).ok_or_else(bad)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, window) in self.windows.iter().enumerate() {
            let sep = if i == 0 { "" } else { "; " };
            let (from, to) = (window.from, window.to);
            write!(
                f,
                "{sep}{} {:02}:{:02}-{:02}:{:02}",
                days_text(window.days),
                from / 60,
                from % 60,
                to / 60,
                to % 60
            )?;
        }
        write!(f, " {}", self.zone)
    }
}

/// Runs of days, as `Mon-Wed,Fri`.
fn days_text(days: u8) -> String {
    let on = |day: usize| days & (1 << day) != 0;
    let mut runs: Vec<String> = Vec::new();
    let mut day = 0;
    while let Some(first) = (day..7).find(|d| on(*d)) {
        let last = (first..7).take_while(|d| on(*d)).last().unwrap_or(first);
        let name = |d: usize| DAYS.get(d).copied().unwrap_or_default();
        runs.push(if first == last {
            name(first).into()
        } else {
            format!("{}-{}", name(first), name(last))
        });
        day = last + 1;
    }
    runs.join(",")
}

as_text!(Hours, HoursError);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(local: &str) -> UnixTime {
        let zoned: jiff::ZonedDateTime = local.parse().unwrap();
        UnixTime(zoned.timestamp().as_millisecond())
    }

    #[test]
    fn a_missing_time_zone_is_told_from_a_wrong_one() {
        let says = |text: &str| text.parse::<Hours>().unwrap_err().to_string();
        assert!(says("daily 22:00-06:00").contains("a time zone is missing"));
        assert!(says("Mon-Fri 08:00-18:00 Berlin").contains("\"Berlin\" is no time zone"));
    }

    #[test]
    fn windows_of_the_week() {
        let berlin = |s: &str| format!("{s}[Europe/Berlin]");
        for (hours, inside, outside) in [
            ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-24T08:00", "2026-11-24T18:00"),
            ("mon-fri 08:00-18:00 Europe/Berlin", "2026-11-27T17:59", "2026-11-28T12:00"),
            ("Fri-Mon 00:00-24:00 Europe/Berlin", "2026-11-29T23:59", "2026-11-24T00:00"),
            ("Tue,Thu 09:00-10:00 Europe/Berlin", "2026-11-26T09:30", "2026-11-25T09:30"),
            // Overnight belongs to the day it begins on: Tuesday's runs into Wednesday.
            ("Tue 22:00-06:00 Europe/Berlin", "2026-11-25T05:59", "2026-11-24T05:59"),
            ("Sun 22:00-06:00 Europe/Berlin", "2026-11-23T03:00", "2026-11-24T03:00"),
            (
                "daily 09:00-12:00; Mon 14:00-15:00 Europe/Berlin",
                "2026-11-23T14:30",
                "2026-11-24T14:30",
            ),
        ] {
            let hours: Hours = hours.parse().unwrap();
            assert!(hours.contains(at(&berlin(inside))), "{hours} {inside}");
            assert!(!hours.contains(at(&berlin(outside))), "{hours} {outside}");
        }
    }

    #[test]
    fn the_wall_clock_counts_when_it_is_put_forward_or_back() {
        let hours: Hours = "Sun 01:00-04:00 Europe/Berlin".parse().unwrap();
        // 29 March 2026: 02:00 to 03:00 does not exist; the window is two hours long.
        let begin = at("2026-03-29T00:59+01:00[Europe/Berlin]");
        let opens = hours.next_change(begin).unwrap();
        let closes = hours.next_change(opens).unwrap();
        assert_eq!(closes.since(opens).as_secs(), 2 * 3600);
        // 25 October 2026: 02:00 to 03:00 comes twice; the window is four hours long.
        let begin = at("2026-10-25T00:59+02:00[Europe/Berlin]");
        let opens = hours.next_change(begin).unwrap();
        let closes = hours.next_change(opens).unwrap();
        assert_eq!(closes.since(opens).as_secs(), 4 * 3600);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (bad, why) in [
            ("", "time zone"),
            ("Mon-Fri 08:00-18:00", "a time zone is missing"),
            ("Mon-Fri 08:00-18:00 Mars/Base", "no time zone"),
            ("Mo 08:00-18:00 UTC", "no day"),
            ("Mon 8:00-18:00 UTC", "no time of day"),
            ("Mon 08:00-24:01 UTC", "no time of day"),
            ("Mon 08:00-08:00 UTC", "beginning"),
            ("08:00-18:00 UTC", "days and times"),
        ] {
            let error = bad.parse::<Hours>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn hours_that_never_change_say_so() {
        let always: Hours = "daily 00:00-24:00 UTC".parse().unwrap();
        assert_eq!(always.next_change(UnixTime(0)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn text_reads_back_and_nothing_changes_between_changes(
            days in 1_u8..128, from in 0_u16..DAY, length in 1_u16..DAY, now in 1_700_000_000_000_i64..1_900_000_000_000,
        ) {
            let to = (from + length) % DAY;
            prop_assume!(to != from);
            let window = Window { days, from, to };
            let tz = TimeZone::get("Europe/Berlin").unwrap();
            let hours = Hours { windows: vec![window], zone: "Europe/Berlin".into(), tz };
            let again: Hours = hours.to_string().parse().unwrap();
            prop_assert_eq!(&again, &hours);
            let now = UnixTime(now);
            if let Some(change) = hours.next_change(now) {
                prop_assert_ne!(hours.contains(now), hours.contains(change));
                let mut time = now.0;
                while time < change.0 {
                    prop_assert_eq!(hours.contains(UnixTime(time)), hours.contains(now));
                    time += 17 * 60_000;
                }
            }
        }
    }
}
