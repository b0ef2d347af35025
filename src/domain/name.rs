//! Names of people and groups. A name is plain ASCII, so that it can stand in a
//! log line, a shell command and an `ssh` user name without quoting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::printable;

/// Text that is not a name, id or address of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {} {what}: use {rule}", article(what))]
pub struct NameError {
    what: &'static str,
    given: String,
    rule: &'static str,
}

fn article(what: &str) -> &'static str {
    if what.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" }
}

impl NameError {
    pub(crate) fn new(what: &'static str, given: &str, rule: &'static str) -> Self {
        Self { what, given: printable(given), rule }
    }
}

/// Whether `s` is 1 to `max` characters of `a-z 0-9 . _ -`, with no `.` or `-` in front.
pub(super) fn is_name(s: &str, max: usize) -> bool {
    let plain =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    !s.is_empty() && s.len() <= max && !s.starts_with(['.', '-']) && s.bytes().all(plain)
}

/// A name is text that keeps to a rule, which is given as a function and in words.
macro_rules! name {
    ($(#[$meta:meta])* $name:ident, $what:literal, $is_one:expr, $rule:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                let is_one: fn(&str) -> bool = $is_one;
                if is_one(s) {
                    Ok(Self(s.to_owned()))
                } else {
                    Err(NameError::new($what, s, $rule))
                }
            }
        }

        $crate::domain::as_text!($name, NameError);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
pub(super) use name;

name! {
    /// The name somebody signs in with.
    UserName, "user name", |s| is_name(s, 32), "1 to 32 of a-z 0-9 . _ - and no . or - in front"
}

name! {
    /// The name of a group of users.
    GroupName, "group name", |s| is_name(s, 32), "1 to 32 of a-z 0-9 . _ - and no . or - in front"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_plain() {
        for good in ["alice", "a", "j.doe", "ci-runner_2", "0day", "_svc"] {
            assert_eq!(good.parse::<UserName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(33);
        for bad in ["", "Alice", "-x", ".x", "a b", "a+b", "a@b", "ä", "a\n", "a\u{1b}[2J", &long]
        {
            let error = bad.parse::<UserName>().unwrap_err().to_string();
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }
}
