//! Why the policy answers as it does, grant by grant.
//!
//! Always holds: the answer explained is [`super::authorize`]'s own, and each grant's verdict comes
//! from the functions that it decides with. Where no source is asked about, the condition is taken
//! off the grants before, and told.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::{Decision, Subject, authorize, covers, holds, is_meant};
use crate::domain::{
    AccountName, Destination, Factors, Grant, GroupName, SignInRule, Target, UnixTime, UserName,
};

/// Whose access is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The user.
    pub user: &'a UserName,
    /// The groups they are in.
    pub groups: &'a [GroupName],
    /// Where they would connect from; not judged if not said.
    pub source: Option<IpAddr>,
    /// The account of the target, if one is asked about: grants for others are set aside.
    pub account: Option<&'a AccountName>,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether the connection would be let through.
    pub permitted: bool,
    /// The decision in a sentence.
    pub decision: String,
    /// What is to be known about signing in, which comes before all.
    pub sign_in: Vec<String>,
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

/// Explains what [`authorize`] decides, and why.
pub fn explain(
    asked: &Question<'_>,
    targets: &[Target],
    grants: &[Grant],
    destination: &Destination,
    now: UnixTime,
) -> Explanation {
    let Question { user, groups, source, account } = *asked;
    // As if everything were given that a target may ask for; what that is, is told beside.
    let address = source.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let who = Subject { user, groups, source: address, given: Factors::ALL };
    let anywhere = |target: &Target| Target {
        sign_in: target.sign_in.as_ref().map(SignInRule::from_everywhere),
        ..target.clone()
    };
    let judged_targets: Vec<Target> = match source {
        Some(_) => targets.to_vec(),
        None => targets.iter().map(anywhere).collect(),
    };
    let targets = &judged_targets[..];
    let for_account = |grant: &Grant| account.is_none_or(|account| grant.is_for(account));
    let judged = |grant: &Grant| match source {
        Some(_) => grant.clone(),
        None => Grant { from: Vec::new(), ..grant.clone() },
    };
    let decide = |considered: &[Grant]| authorize(&who, targets, considered, destination, now);
    let considered: Vec<&Grant> = grants.iter().filter(|grant| for_account(grant)).collect();
    // One that holds from everywhere is the better answer to a question without a source.
    let everywhere: Vec<Grant> =
        considered.iter().filter(|g| g.from.is_empty()).map(|g| (*g).clone()).collect();
    let decision = match (source, decide(&everywhere)) {
        (None, permit @ Decision::Permit(_)) => permit,
        _ => decide(&considered.into_iter().map(judged).collect::<Vec<_>>()),
    };
    let only_from = |grant: &Grant| match source {
        None if !grant.from.is_empty() => format!(", from {} only", networks(grant)),
        _ => String::new(),
    };
    let verdicts = grants.iter().filter(|grant| grant.concerns(user, groups)).map(|grant| {
        let (permits, why) = if for_account(grant) {
            verdict(&judged(grant), &who, targets, destination, now)
        } else {
            (false, "it is for other accounts of the target".to_owned())
        };
        let why = if permits { why + &only_from(grant) } else { why };
        Verdict { grant: grant.id.to_string(), rule: grant.to_string(), permits, why }
    });
    let verdicts = verdicts.collect();
    let (permitted, decision) = match decision {
        Decision::Permit(permit) => {
            let by = grants.iter().find(|grant| grant.id == *permit.grant());
            let (name, address) = (&permit.target().name, &permit.target().address);
            (
                true,
                format!("permitted{}: {name} at {address}", by.map(only_from).unwrap_or_default()),
            )
        }
        Decision::Refuse(refused) => (false, format!("refused: {}", of(user, &refused.message))),
    };
    Explanation { permitted, decision, sign_in: Vec::new(), grants: verdicts }
}

impl Explanation {
    /// Adds that what is granted cannot be reached.
    pub fn cannot_be_reached(&mut self, why: &str) {
        self.permitted = false;
        self.decision = format!("refused: {why}");
    }

    /// Adds that they cannot sign in at all, which goes before whatever is granted; that is still
    /// told after it.
    pub fn cannot_sign_in(&mut self, why: String) {
        let granted = &self.decision;
        self.decision = match granted.strip_prefix("refused: ") {
            Some(refused) => format!("refused: {why}; and {refused}"),
            None => format!("refused: {why}; otherwise {granted}"),
        };
        self.permitted = false;
        self.sign_in.push(why);
    }
}

/// What the user would be told, as somebody else is told it.
fn of(user: &UserName, message: &str) -> String {
    let message = message.split_once("; you signed in with").map_or(message, |(asks, _)| asks);
    message
        .replace("granted to you", &format!("granted to {user}"))
        .replace("your grant", &format!("the grant of {user}"))
        .replace("your address", "the address")
}

fn networks(grant: &Grant) -> String {
    grant.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
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
        let asked = targets.iter().find(|target| is_meant(target, destination));
        return match asked {
            Some(target) => (false, format!("it does not cover {}", target.name)),
            None => (false, format!("there is no target {destination}")),
        };
    };
    match holds(grant, who, target, &destination.host, now) {
        Ok(Some(until)) => (true, format!("it covers {}, at least until {until}", target.name)),
        Ok(None) => (true, format!("it covers {}", target.name)),
        Err((_, refused)) => (false, of(who.user, &refused.message)),
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.decision)?;
        for remark in self.sign_in.iter().filter(|why| !self.decision.contains(why.as_str())) {
            writeln!(f, "  {remark}")?;
        }
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
