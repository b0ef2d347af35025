//! Why the policy answers as it does, grant by grant.
//!
//! Always holds: the answer explained is [`super::authorize`]'s own (and, about an account in record
//! mode, [`super::authorize_account`]'s), and each grant's verdict comes from the functions that they
//! decide with. Where no source is asked about, the condition is taken
//! off the grants before, and told.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::{
    AccountDecision, Decision, Refused, Subject, authorize, authorize_account, cannot_ask, covers,
    holds, is_meant, nobody_to_ask,
};
use crate::domain::{
    AccountName, Capability, Destination, Factors, Grant, GroupName, Id, Mode, SignInRule, Target,
    UnixTime, UserName,
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
    /// The account of the target, if one is asked about: grants for others are set aside. In tunnel
    /// mode nobody sees it, and it makes no difference.
    pub account: Option<&'a AccountName>,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether the connection would be let through.
    pub permitted: bool,
    /// The decision in a sentence.
    pub decision: String,
    /// What may be done there, if that can be told: of an account, or in tunnel mode.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rights: Vec<Capability>,
    /// What is to be known about signing in, which comes before all.
    pub sign_in: Vec<String>,
    /// Whether a fresh code is asked for before the target is reached; of an account.
    pub step_up: bool,
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
    /// What it allows, if it permits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rights: Vec<Capability>,
}

/// Explains what [`authorize`] decides, and for an account [`authorize_account`], and why.
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
    let meant = targets.iter().find(|target| is_meant(target, destination));
    // In tunnel mode nobody sees as whom somebody signs in.
    let account = account.filter(|_| meant.is_none_or(|target| target.mode == Mode::Record));
    let for_account = |grant: &Grant| account.is_none_or(|account| grant.is_for(account));
    let judged = |grant: &Grant| match source {
        Some(_) => grant.clone(),
        None => Grant { from: Vec::new(), ..grant.clone() },
    };
    let decide = |grants: &[Grant]| decide(&who, account, targets, grants, destination, now);
    // One that holds from everywhere is the better answer to a question without a source.
    let everywhere: Vec<Grant> = grants.iter().filter(|g| g.from.is_empty()).cloned().collect();
    let decided = match (source, decide(&everywhere)) {
        (None, Ok(granted)) => Ok(granted),
        _ => decide(&grants.iter().map(judged).collect::<Vec<_>>()),
    };
    let only_from = |grant: &Grant| match source {
        None if !grant.from.is_empty() => format!(", from {} only", networks(grant)),
        _ => String::new(),
    };
    let verdicts = grants.iter().filter(|grant| grant.concerns(user, groups)).map(|grant| {
        let (permits, why, rights) = if for_account(grant) {
            verdict(&judged(grant), &who, targets, destination, now)
        } else {
            (false, "it is for other accounts of the target".to_owned(), Vec::new())
        };
        let code = if grant.step_up { ", after a fresh code" } else { "" };
        let why = if permits { why + &only_from(grant) + code } else { why };
        Verdict { grant: grant.id.to_string(), rule: grant.to_string(), permits, why, rights }
    });
    let verdicts = verdicts.collect();
    let mut step_up = false;
    let (permitted, decision, rights) = match decided {
        Ok(granted) => {
            let by = grants.iter().find(|grant| granted.grants.contains(&grant.id));
            let from = by.map(only_from).unwrap_or_default();
            step_up = granted.step_up;
            (true, format!("permitted{from}: {granted}"), granted.rights)
        }
        Err(refused) => (false, format!("refused: {}", of(user, &refused.message)), Vec::new()),
    };
    Explanation { permitted, decision, rights, sign_in: Vec::new(), step_up, grants: verdicts }
}

/// What would be let through, and by which grants.
struct Granted<'a> {
    target: Target,
    account: Option<&'a AccountName>,
    rights: Vec<Capability>,
    grants: Vec<Id>,
    step_up: bool,
}

impl std::fmt::Display for Granted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Target { name, address, .. } = &self.target;
        match self.account {
            Some(account) => {
                let code = if self.step_up { ", after a fresh code" } else { "" };
                write!(f, "{account} on {name} at {address}, for {}{code}", list(&self.rights))
            }
            None => write!(f, "{name} at {address}"),
        }
    }
}

/// Decides as a connection does: first about the destination, then about the account on it.
fn decide<'a>(
    who: &Subject<'_>,
    account: Option<&'a AccountName>,
    targets: &[Target],
    grants: &[Grant],
    destination: &Destination,
    now: UnixTime,
) -> Result<Granted<'a>, Refused> {
    let permit = match authorize(who, targets, grants, destination, now) {
        Decision::Permit(permit) => permit,
        Decision::Refuse(refused) => return Err(refused),
    };
    let target = permit.target().clone();
    let Some(name) = account else {
        // In record mode it depends on the account what may be done.
        let rights = if target.mode == Mode::Tunnel { vec![Capability::Forward] } else { vec![] };
        let grants = vec![permit.grant().clone()];
        return Ok(Granted { target, account, rights, grants, step_up: false });
    };
    match authorize_account(who, &target, grants, name, now) {
        AccountDecision::Permit(permit) => {
            let (rights, grants) = (permit.rights().to_vec(), permit.grants().to_vec());
            let step_up = permit.step_up();
            Ok(Granted { target, account, rights, grants, step_up })
        }
        AccountDecision::Refuse(refused) => Err(refused),
    }
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
) -> (bool, String, Vec<Capability>) {
    let meant = targets.iter().filter(|t| is_meant(t, destination) && covers(grant, who, t));
    let Some(target) = meant.into_iter().next() else {
        let asked = targets.iter().find(|target| is_meant(target, destination));
        return match asked {
            Some(target) => (false, format!("it does not cover {}", target.name), Vec::new()),
            None => (false, format!("there is no target {destination}"), Vec::new()),
        };
    };
    let until = match holds(grant, who, target, &destination.host, now) {
        Ok(until) => until.map(|until| format!(", at least until {until}")).unwrap_or_default(),
        Err((_, refused)) => return (false, of(who.user, &refused.message), Vec::new()),
    };
    if cannot_ask(grant, target) {
        return (false, nobody_to_ask(target).message, Vec::new());
    }
    let rights = match target.mode {
        Mode::Tunnel => vec![Capability::Forward],
        Mode::Record => {
            Capability::ALL.iter().copied().filter(|what| grant.allows(*what)).collect()
        }
    };
    (true, format!("it covers {}{until}", target.name), rights)
}

fn list(rights: &[Capability]) -> String {
    rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
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
            match &verdict.rights[..] {
                [] => writeln!(f, "      {}", verdict.why)?,
                rights => writeln!(f, "      {}, for {}", verdict.why, list(rights))?,
            }
        }
        Ok(())
    }
}
