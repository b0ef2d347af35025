//! Which combinations of factors are enough to sign in.
//!
//! Always holds: a combination has a password, a key or a certificate in it; without a one-time code
//! it has more than a password, and holds only from networks that are named. More than what is asked
//! for is never less: what a combination allows, it allows with further factors too.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{GroupName, as_text, printable};

/// Factors that somebody gave, or is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Factors(u8);

impl Factors {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// The account's password, or one that a RADIUS server judged.
    pub const PASSWORD: Self = Self(1);
    /// A public key of the account.
    pub const KEY: Self = Self(2);
    /// A user certificate that stands for the account.
    pub const CERTIFICATE: Self = Self(4);
    /// A one-time code: of the authenticator, a recovery code, or one that a RADIUS server judged.
    pub const OTP: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);

    const WORDS: [(Self, &'static str); 4] = [
        (Self::PASSWORD, "password"),
        (Self::KEY, "key"),
        (Self::CERTIFICATE, "certificate"),
        (Self::OTP, "otp"),
    ];

    /// These and `more`.
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// These but `less`.
    pub const fn without(self, less: Self) -> Self {
        Self(self.0 & !less.0)
    }

    /// Whether all of `others` are among these.
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl fmt::Display for Factors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = Self::WORDS.iter().filter(|(factor, _)| self.has(*factor));
        let words: Vec<&str> = words.map(|(_, word)| *word).collect();
        f.pad(&if words.is_empty() { "nothing".to_owned() } else { words.join("+") })
    }
}

impl fmt::Debug for Factors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Factors({self})")
    }
}

/// Factors that are enough together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Combination {
    factors: Factors,
    /// Where they are enough; everywhere if empty.
    from: Vec<IpNet>,
}

impl Combination {
    fn allows(&self, given: Factors, source: IpAddr) -> bool {
        let here = self.from.is_empty() || self.from.iter().any(|net| net.contains(&source));
        here && given.has(self.factors)
    }
}

/// A rule: combinations of which each is enough.
///
/// Written `password+otp, key from 10.0.0.0/8 192.0.2.7/32`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignInRule(Vec<Combination>);

as_text!(SignInRule, SignInRuleError);

impl Default for SignInRule {
    /// What holds where nothing else is set: a code, and one thing before it.
    fn default() -> Self {
        let with_code =
            |factor: Factors| Combination { factors: factor.with(Factors::OTP), from: Vec::new() };
        Self([Factors::PASSWORD, Factors::KEY, Factors::CERTIFICATE].map(with_code).into())
    }
}

impl SignInRule {
    /// Whether `given` is enough from `source`.
    pub fn allows(&self, given: Factors, source: IpAddr) -> bool {
        self.0.iter().any(|combination| combination.allows(given, source))
    }

    /// The same rule from everywhere, for a question that names no source.
    pub fn from_everywhere(&self) -> Self {
        let anywhere = |c: &Combination| Combination { factors: c.factors, from: Vec::new() };
        Self(self.0.iter().map(anywhere).collect())
    }
}

/// What is wrong with a rule's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no rule for signing in: {why}; write such as \"key+otp\", or \"password+otp, key from 10.0.0.0/8\""
)]
pub struct SignInRuleError {
    given: String,
    why: String,
}

impl FromStr for SignInRule {
    type Err = SignInRuleError;
    fn from_str(text: &str) -> Result<Self, SignInRuleError> {
        let fail = |why| SignInRuleError { given: printable(text), why };
        let mut rule = Vec::new();
        for part in text.split(',') {
            let combination = combination(part.trim()).map_err(fail)?;
            if !rule.contains(&combination) {
                rule.push(combination);
            }
        }
        Ok(Self(rule))
    }
}

fn combination(text: &str) -> Result<Combination, String> {
    let (words, networks) = text.split_once(" from ").unwrap_or((text, ""));
    let mut factors = Factors::NONE;
    for word in words.trim().split('+') {
        let known = Factors::WORDS.iter().find(|(_, known)| *known == word);
        let (factor, _) = known.ok_or_else(|| {
            let word = printable(word);
            format!("{word:?} is none of password, key, certificate, otp")
        })?;
        factors = factors.with(*factor);
    }
    let from: Vec<IpNet> = networks.split_whitespace().map(network).collect::<Result<_, _>>()?;
    if factors == Factors::OTP {
        return Err("a code comes after a password, a key or a certificate".to_owned());
    }
    if factors == Factors::PASSWORD {
        return Err("a password is never enough alone".to_owned());
    }
    if !factors.has(Factors::OTP) && from.is_empty() {
        return Err(format!("{factors} without otp is enough only from networks that are named"));
    }
    Ok(Combination { factors, from })
}

/// A network, or an address that is one by itself.
///
/// # Errors
/// When the text is neither.
pub fn network(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().ok();
    let parsed = parsed.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.map(|net| net.trunc()).ok_or_else(|| {
        format!(
            "{:?} is not a network: write 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32",
            printable(text)
        )
    })
}

impl fmt::Display for SignInRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Combination { factors, from }) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{factors}")?;
            for (n, network) in from.iter().enumerate() {
                write!(f, "{}{network}", if n == 0 { " from " } else { " " })?;
            }
        }
        Ok(())
    }
}

/// Where a rule comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleOrigin {
    /// Nobody set one.
    Default,
    /// It was set for the user.
    User,
    /// It was set for a group of theirs.
    Group(GroupName),
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::User => f.write_str("the user's own rule"),
            Self::Group(group) => write!(f, "the rule of group {group}"),
        }
    }
}

/// The rules that hold for one user: what they give must be enough for each.
///
/// The user's own rule stands in the place of their groups': that is how a service account, or one
/// for emergencies, gets a rule that its groups do not have. Without one all their groups' rules hold
/// together: joining a group may add to what is asked of somebody, and never takes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignInPolicy(Vec<(RuleOrigin, SignInRule)>);

impl Default for SignInPolicy {
    fn default() -> Self {
        Self(vec![(RuleOrigin::Default, SignInRule::default())])
    }
}

impl SignInPolicy {
    /// The rules that hold for somebody with this rule of their own and these of their groups.
    pub fn new(own: Option<SignInRule>, groups: Vec<(GroupName, SignInRule)>) -> Self {
        if let Some(own) = own {
            return Self(vec![(RuleOrigin::User, own)]);
        }
        if groups.is_empty() {
            return Self::default();
        }
        Self(groups.into_iter().map(|(group, rule)| (RuleOrigin::Group(group), rule)).collect())
    }

    /// Whether `given` is enough from `source`.
    pub fn allows(&self, given: Factors, source: IpAddr) -> bool {
        self.0.iter().all(|(_, rule)| rule.allows(given, source))
    }

    /// The same rules from everywhere, for a question that names no source.
    pub fn from_everywhere(&self) -> Self {
        Self(self.0.iter().map(|(by, rule)| (by.clone(), rule.from_everywhere())).collect())
    }
}

impl fmt::Display for SignInPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (origin, rule)) in self.0.iter().enumerate() {
            write!(f, "{}{rule} ({origin})", if n == 0 { "" } else { "; and " })?;
        }
        Ok(())
    }
}

impl Serialize for SignInPolicy {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Stated<'a> {
            rule: &'a SignInRule,
            from: String,
        }
        s.collect_seq(self.0.iter().map(|(origin, rule)| Stated { rule, from: origin.to_string() }))
    }
}

/// A rule that is set, or `default` for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOrDefault(pub Option<SignInRule>);

impl FromStr for RuleOrDefault {
    type Err = SignInRuleError;
    fn from_str(text: &str) -> Result<Self, SignInRuleError> {
        match text {
            "default" => Ok(Self(None)),
            text => text.parse().map(|rule| Self(Some(rule))),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any rule there can be.
    pub(crate) fn any_rule() -> impl Strategy<Value = SignInRule> {
        let networks = ["192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32"];
        let networks: Vec<IpNet> = networks.map(|net| net.parse().unwrap()).into();
        let from = prop::sample::subsequence(networks, 0..3);
        let combination = (1_u8..16, from).prop_filter_map("no combination", |(bits, from)| {
            combination(&SignInRule(vec![Combination { factors: Factors(bits), from }]).to_string())
                .ok()
        });
        prop::collection::vec(combination, 1..4)
            .prop_map(|combinations| SignInRule(combinations).to_string().parse().unwrap())
    }

    fn rule(text: &str) -> SignInRule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_say_what_is_enough() {
        let here = "192.0.2.7".parse().unwrap();
        let (password, key, otp) = (Factors::PASSWORD, Factors::KEY, Factors::OTP);
        for (text, given, enough) in [
            ("password+otp", password.with(otp), true),
            ("password+otp", Factors::ALL, true),
            ("password+otp", password, false),
            ("password+otp", key.with(otp), false),
            ("key+otp, password+otp", key.with(otp), true),
            ("key from 192.0.2.0/24", key, true),
            ("key from 192.0.2.7", key, true),
            ("key from 10.0.0.0/8", key, false),
            ("key from 10.0.0.0/8, key+otp", key, false),
            ("key from 10.0.0.0/8 192.0.2.0/24", key, true),
            ("certificate+otp", key.with(otp), false),
        ] {
            assert_eq!(rule(text).allows(given, here), enough, "{text} {given}");
        }
        let default = SignInRule::default();
        assert_eq!(default.to_string(), "password+otp, key+otp, certificate+otp");
        assert!(!default.allows(Factors::ALL.without(otp), here) && !default.allows(otp, here));
    }

    #[test]
    fn rules_that_would_be_holes_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "none of password"),
            ("otp", "comes after"),
            ("password", "never enough alone"),
            ("password from 10.0.0.0/8", "never enough alone"),
            ("key", "only from networks"),
            ("key from ", "none of password"),
            ("key+otp, certificate", "only from networks"),
            ("key+sms", "\"sms\" is none of"),
            ("key from anywhere", "not a network"),
            ("key+otp,", "none of password"),
            ("key\x1b+otp", "none of password"),
        ] {
            let error = text.parse::<SignInRule>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("key+otp"), "{text}: {error}");
            assert!(!error.contains('\x1b'), "{error}");
        }
    }

    #[test]
    fn a_users_own_rule_goes_first_and_groups_add_up() {
        let here = "192.0.2.7".parse().unwrap();
        let group = |name: &str, text| (name.parse::<GroupName>().unwrap(), rule(text));
        let groups = vec![group("a", "password+otp"), group("b", "key+otp, password+otp")];
        let otp = Factors::OTP;
        let both = SignInPolicy::new(None, groups.clone());
        assert!(!both.allows(otp.with(Factors::KEY), here));
        assert!(both.allows(otp.with(Factors::PASSWORD), here));
        let own = SignInPolicy::new(Some(rule("key from 192.0.2.0/24")), groups);
        assert!(own.allows(Factors::KEY, here));
        assert_eq!(own.to_string(), "key from 192.0.2.0/24 (the user's own rule)");
        assert_eq!(SignInPolicy::new(None, Vec::new()), SignInPolicy::default());
    }

    proptest! {
        #[test]
        fn rules_read_back(rule in any_rule()) {
            prop_assert_eq!(&rule.to_string().parse::<SignInRule>().unwrap(), &rule);
            let json = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<SignInRule>(&json).unwrap(), rule);
        }

        /// What allows somebody in has a code, or a key or certificate from a named network; and more
        /// is never less.
        #[test]
        fn no_rule_is_a_hole(rule in any_rule(), bits in 0_u8..16, more in 0_u8..16) {
            let (given, nowhere) = (Factors(bits), "203.0.113.1".parse().unwrap());
            for source in [nowhere, "192.0.2.7".parse().unwrap()] {
                if rule.allows(given, source) {
                    let strong = given.has(Factors::KEY) || given.has(Factors::CERTIFICATE);
                    prop_assert!(strong || given.has(Factors::PASSWORD.with(Factors::OTP)));
                    prop_assert!(source != nowhere || given.has(Factors::OTP));
                    prop_assert!(rule.allows(given.with(Factors(more)), source));
                }
            }
        }

        #[test]
        fn texts_are_read_without_a_panic(text in any::<String>()) {
            if let Ok(rule) = text.parse::<SignInRule>() {
                prop_assert_eq!(rule.to_string().parse::<SignInRule>().unwrap(), rule);
            }
        }
    }
}
