//! The vocabulary: names, addresses and times that every other module speaks in.
//!
//! Always holds: a value of one of these types is well formed, because its
//! constructor parsed it. Nothing here reads a clock or a socket, nor any file but the system's time
//! zones: hours in a zone that a host does not have cannot be read there.

mod grant;
mod hours;
mod name;
mod remember;
mod sign_in;
mod target;
mod text;
mod time;
mod when;

pub use grant::{AccountName, Grant, GrantObject, GrantSubject, Target};
pub use hours::{Hours, HoursError};
pub use name::{GroupName, NameError, UserName};
pub use remember::{Remember, RememberError};
#[cfg(test)]
pub(crate) use sign_in::tests::any_rule;
pub use sign_in::{
    Factors, RuleOrDefault, RuleOrigin, SignInPolicy, SignInRule, SignInRuleError, network,
};
pub use target::{
    AccountAuth, Capability, Destination, DestinationError, Host, Label, Mode, TargetAddress,
    TargetName,
};
pub(crate) use text::is_unsafe;
pub use text::{noted, printable, printable_json};
pub use time::{TimeStep, UnixTime};
pub use when::{When, WhenError};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Declares an enum whose variants have one word each: in the store, on the
/// command line, in JSON and in messages.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that stands for this variant everywhere outside the program.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::domain::UnknownWord;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                match s {
                    $($word => Ok(Self::$variant),)+
                    other => Err($crate::domain::UnknownWord {
                        what: $what,
                        given: $crate::domain::printable(other),
                        known: &[$($word),+],
                    }),
                }
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.word())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let word = <String as ::serde::Deserialize>::deserialize(d)?;
                word.parse().map_err(::serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use words;

/// Lets a type that has a text (`Display`, `FromStr`) stand for it in JSON and TOML, with
/// `#[serde(try_from = "String", into = "String")]`.
macro_rules! as_text {
    ($name:ident, $error:ty) => {
        impl ::std::convert::TryFrom<String> for $name {
            type Error = $error;
            fn try_from(s: String) -> Result<Self, $error> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}
pub(crate) use as_text;

/// A word that is none of those an option takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a {what}: use one of {}", .known.join(", "))]
pub struct UnknownWord {
    /// What was expected, such as "role".
    pub what: &'static str,
    /// What was given, made printable.
    pub given: String,
    /// The words that would have been taken.
    pub known: &'static [&'static str],
}

words! {
    /// What somebody may do with the bastion itself, beside passing through it.
    Role, "role" {
        /// Passes through to granted targets and looks after their own authenticator.
        User = "user",
        /// Also reads sessions and the audit log; changes nothing.
        Auditor = "auditor",
        /// Also changes users, targets and grants, and ends sessions.
        Admin = "admin",
    }
}

words! {
    /// Who judges the code of a login (NIST 800-63B: the verifier), which `--factor` sets; what somebody gave
    /// are `Factors`.
    Verifier, "factor" {
        /// The bastion: a time-based one-time code (RFC 6238) from an app bound to the account.
        Totp = "totp",
        /// A RADIUS server.
        Radius = "radius",
    }
}

words! {
    /// How much of a login a RADIUS server decides, and how it is asked.
    RadiusMode, "RADIUS mode" {
        /// Our own password; then the code, which goes to the server as User-Password.
        Code = "code",
        /// Password and code both go to the server; our own password is not used.
        Both = "both",
        /// Our own password; then whatever the server asks (Access-Challenge).
        Challenge = "challenge",
    }
}

/// What answers for somebody's second step, as it was set for them or for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SecondFactor {
    /// What answers.
    pub factor: Verifier,
    /// How a RADIUS server is asked; the configured way if it was not said.
    pub mode: Option<RadiusMode>,
}

impl SecondFactor {
    /// The authenticator that is bound to the account.
    pub const TOTP: Self = Self { factor: Verifier::Totp, mode: None };
}

/// Where a connection comes from, as the client's own address (behind a proxy,
/// the one that the PROXY header named).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(pub SocketAddr);

impl Source {
    /// The address, with an IPv4-mapped IPv6 address turned into the IPv4 one.
    pub fn ip(&self) -> IpAddr {
        self.0.ip().to_canonical()
    }

    /// The source as throttling counts it: an IPv4 address, or the /64 of an IPv6 one,
    /// since one person commonly holds a whole /64 (RFC 6177).
    pub fn network(&self) -> ipnet::IpNet {
        let ip = self.ip();
        let prefix = match ip {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 64,
        };
        ipnet::IpNet::new(ip, prefix).map_or_else(|_| ip.into(), |net| net.trunc())
    }

    /// The /48 of an IPv6 source: what one site commonly holds (RFC 6177), which is 65,536 networks.
    pub fn site(&self) -> Option<ipnet::IpNet> {
        match self.ip() {
            IpAddr::V4(_) => None,
            ip => ipnet::IpNet::new(ip, 48).ok().map(|net| net.trunc()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip(), self.0.port()).fmt(f)
    }
}

impl Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        SocketAddr::deserialize(d).map(Source)
    }
}

/// The id of a stored row: 12 characters of lower-case base32 (60 random bits).
///
/// Short enough to type; `session kill` and its like take any unambiguous beginning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    const ALPHABET: &'static str = "0123456789abcdefghjkmnpqrstvwxyz";
    /// How many characters an id has.
    pub const LEN: usize = 12;

    /// Makes an id of 12 random bytes.
    pub fn from_random(bytes: [u8; Self::LEN]) -> Self {
        // At its whole length from the start: some are secrets, and growing would leave copies.
        let mut text = String::with_capacity(Self::LEN);
        text.extend(bytes.iter().filter_map(|b| Self::ALPHABET.chars().nth(usize::from(b % 32))));
        Self(text)
    }

    /// A new id from the system's random number generator.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::LEN];
        getrandom::fill(&mut bytes)?;
        Ok(Self::from_random(bytes))
    }

    /// Whether `text` is an id.
    pub fn is(text: &str) -> bool {
        text.len() == Self::LEN && text.chars().all(|c| Self::ALPHABET.contains(c))
    }

    /// The id as text, and no copy of it left.
    pub fn into_string(self) -> String {
        self.0
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Id {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if Self::is(s) {
            Ok(Self(s.to_owned()))
        } else {
            Err(NameError::new("id", s, "12 characters of 0-9 and a-z without i, l, o, u"))
        }
    }
}

/// The beginning of an [`Id`], as people type it: 1 to 12 of its characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdPrefix(String);

impl IdPrefix {
    /// The beginning as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first and the last text between which, both included, all ids lie that begin so, and no
    /// others: in the order of any collation, since ids are of digits and small letters. An index finds
    /// them by it, which it does not by LIKE.
    pub fn range(&self) -> (&str, String) {
        (&self.0, format!("{}{}", self.0, "z".repeat(Id::LEN)))
    }
}

impl fmt::Display for IdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for IdPrefix {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        if (1..=Id::LEN).contains(&s.len()) && s.chars().all(|c| Id::ALPHABET.contains(c)) {
            Ok(Self(s.to_owned()))
        } else {
            let rule = "an id, or its beginning, as the list shows it";
            Err(NameError::new("id", s, rule))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_counted_by_address_or_by_its_ipv6_network() {
        let network = |s: &str| Source(s.parse().unwrap()).network().to_string();
        assert_eq!(network("192.0.2.7:1"), "192.0.2.7/32");
        assert_eq!(network("[::ffff:192.0.2.7]:1"), "192.0.2.7/32");
        assert_eq!(network("[2001:db8:1:2:3:4:5:6]:1"), "2001:db8:1:2::/64");
    }

    #[test]
    fn words_read_back_and_name_the_choices_when_unknown() {
        for role in Role::ALL {
            assert_eq!(role.word().parse::<Role>().unwrap(), *role);
        }
        let error = "root\x1b".parse::<Role>().unwrap_err().to_string();
        assert!(error.contains("user, auditor, admin"), "{error}");
        assert!(!error.contains('\x1b'));
    }

    #[test]
    fn an_id_is_twelve_plain_characters() {
        let id = Id::random().unwrap();
        assert_eq!(id.as_str().parse::<Id>().unwrap(), id);
        assert!("ABCDEFGHJKMN".parse::<Id>().is_err());
    }

    #[test]
    fn an_id_may_be_cut_short() {
        for good in ["7", "7kq2", "7kq2m9x4v1ab"] {
            assert_eq!(good.parse::<IdPrefix>().unwrap().as_str(), good);
        }
        for bad in ["", "%", "_", "A", "7kq2m9x4v1abc", "i"] {
            assert!(bad.parse::<IdPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_lie_in_the_range_of_their_beginning_and_of_no_other() {
        let id = "7kq2m9x4v1ab";
        for (prefix, is_in) in [
            ("7", true),
            ("7kq2m9x4v1ab", true),
            ("7kq2m9x4v1a", true),
            ("7kq2m9x4v1ac", false),
            ("7kq1", false),
            ("7kq3", false),
            ("8", false),
            ("6z", false),
        ] {
            let prefix: IdPrefix = prefix.parse().unwrap();
            let (first, last) = prefix.range();
            assert_eq!(first <= id && id <= last.as_str(), is_in, "{prefix}");
            assert_eq!(id.starts_with(prefix.as_str()), is_in, "{prefix}");
        }
    }
}
