//! For how long a login with a code is remembered.

use std::str::FromStr;
use std::time::Duration;

use super::printable;

/// The longest: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a group says of its members' logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remember {
    /// They are remembered for so long, if no other group of theirs says less.
    For(Duration),
    /// They are not remembered, whatever other groups say.
    Off,
    /// Nothing: what other groups say holds; where none says anything, nothing is remembered.
    Unsaid,
}

/// It is no such length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no time to remember a login for: write such as \"8h\", at most a week; off; or none"
)]
pub struct RememberError(String);

impl FromStr for Remember {
    type Err = RememberError;
    fn from_str(text: &str) -> Result<Self, RememberError> {
        match text {
            "off" => return Ok(Self::Off),
            "none" => return Ok(Self::Unsaid),
            _ => {}
        }
        let time = text.parse::<jiff::SignedDuration>().ok();
        let time = time.and_then(|time| Duration::try_from(time).ok());
        let time = time.filter(|time| (Duration::from_secs(1)..=LONGEST).contains(time));
        time.map(Self::For).ok_or_else(|| RememberError(printable(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_bounded() {
        let hours = |n: u64| Remember::For(Duration::from_secs(n * 3600));
        for (text, read) in [
            ("8h", Some(hours(8))),
            ("168h", Some(hours(168))),
            ("off", Some(Remember::Off)),
            ("none", Some(Remember::Unsaid)),
            ("169h", None),
            ("0s", None),
            ("-8h", None),
            ("8", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), read, "{text}");
        }
    }
}
