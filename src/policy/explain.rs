//! Why the policy answers as it does, grant by grant.
//!
//! Always holds: the answer explained is [`super::authorize`]'s own, and each grant's verdict comes
//! from the functions that it decides with.

use serde::Serialize;

use super::{Decision, Subject, authorize, covers, holds, is_meant};
use crate::domain::{AccountName, Destination, Grant, GrantSubject, Target, UnixTime};

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether the connection would be let through.
    pub permitted: bool,
    /// The decision in a sentence.
    pub decision: String,
    /// Every grant that is about this user, and what it says.
    pub grants: Vec<Verdict>,
}

/// What one grant says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The grant's id.
    pub grant: String,
    /// The grant's text.
    pub rule: String,
    /// Whether it permits.
    pub permits: bool,
    /// Why, or why not.
    pub why: String,
}

/// Explains what [`authorize`] decides, and why. With `account`, grants for other accounts of the
/// target are set aside first.
pub fn explain(
    who: &Subject<'_>,
    targets: &[Target],
    grants: &[Grant],
    destination: &Destination,
    account: Option<&AccountName>,
    now: UnixTime,
) -> Explanation {
    let for_account = |grant: &Grant| {
        account.is_none_or(|account| grant.accounts.is_empty() || grant.accounts.contains(account))
    };
    let considered: Vec<Grant> = grants.iter().filter(|g| for_account(g)).cloned().collect();
    let decision = authorize(who, targets, &considered, destination, now);
    let verdicts = grants.iter().filter(|grant| concerns(grant, who)).map(|grant| {
        let (permits, why) = if for_account(grant) {
            verdict(grant, who, targets, destination, now)
        } else {
            (false, "it is for other accounts of the target".to_owned())
        };
        Verdict { grant: grant.id.to_string(), rule: grant.to_string(), permits, why }
    });
    let grants = verdicts.collect();
    match decision {
        Decision::Permit(permit) => Explanation {
            permitted: true,
            decision: format!("permitted: {} at {}", permit.target().name, permit.target().address),
            grants,
        },
        Decision::Refuse(refused) => Explanation {
            permitted: false,
            decision: format!("refused: {}", refused.message),
            grants,
        },
    }
}

fn concerns(grant: &Grant, who: &Subject<'_>) -> bool {
    match &grant.subject {
        GrantSubject::User(user) => user == who.user,
        GrantSubject::Group(group) => who.groups.contains(group),
    }
}

fn verdict(
    grant: &Grant,
    who: &Subject<'_>,
    targets: &[Target],
    destination: &Destination,
    now: UnixTime,
) -> (bool, String) {
    let meant = targets.iter().filter(|t| is_meant(t, destination) && covers(grant, who, t));
    let Some(target) = meant.into_iter().next() else {
        return (false, format!("it does not cover {destination}"));
    };
    match holds(grant, who, target, &destination.host, now) {
        Ok(Some(until)) => (true, format!("it covers {}, at least until {until}", target.name)),
        Ok(None) => (true, format!("it covers {}", target.name)),
        Err((_, refused)) => (false, refused.message),
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.decision)?;
        if self.grants.is_empty() {
            return writeln!(f, "  no grant names this user or one of their groups");
        }
        for verdict in &self.grants {
            let mark = if verdict.permits { "yes" } else { "no " };
            writeln!(f, "  {mark} {} {}", verdict.grant, verdict.rule)?;
            writeln!(f, "      {}", verdict.why)?;
        }
        Ok(())
    }
}
