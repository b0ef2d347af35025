//! Who may go where, when: one pure function, and proof of its answer.
//!
//! Always holds: without a grant that fits, everything is refused; a [`Permit`] is made only by
//! [`authorize`], and addresses to dial only by [`Permit::check_addresses`], so an unchecked
//! connection does not compile. A target nobody registered and one that is not granted to you are
//! refused in the same words.

mod account;
mod address;
mod explain;

use std::net::IpAddr;

pub use account::{AccountDecision, AccountPermit, authorize_account, granted_accounts};
pub use address::{Checked, forbidden_address, plain};
pub use explain::{Explanation, Question, Verdict, explain};

use crate::audit::Refusal;
use crate::auth::machine::Authenticated;
use crate::domain::{
    Capability, Destination, Factors, Grant, GroupName, Id, Mode, Target, TargetName, UnixTime,
    UserName,
};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The signed-in user.
    pub user: &'a UserName,
    /// The groups they are in.
    pub groups: &'a [GroupName],
    /// Where they connected from.
    pub source: IpAddr,
    /// The factors that they signed in with.
    pub given: Factors,
}

impl<'a> Subject<'a> {
    /// Somebody who signed in from `source`, and is in these groups now.
    pub fn of(who: &'a Authenticated, groups: &'a [GroupName], source: IpAddr) -> Self {
        Self { user: who.user(), groups, source, given: who.given() }
    }
}

/// The policy's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Let them through.
    Permit(Permit),
    /// Do not.
    Refuse(Refused),
}

/// Proof that a destination was permitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    target: Target,
    grant: Id,
    until: Option<UnixTime>,
}

impl Permit {
    /// The target that the destination means.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The grant that permits it.
    pub fn grant(&self) -> &Id {
        &self.grant
    }

    /// The next moment at which it may stop holding, and has to be asked for again.
    pub fn until(&self) -> Option<UnixTime> {
        self.until
    }
}

/// A refusal, with the sentence that a signed-in user sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// For the audit log.
    pub reason: Refusal,
    /// For the user.
    pub message: String,
    /// For the audit log: the target that was meant, if one was. The user is not told whether there is
    /// one.
    pub target: Option<TargetName>,
}

/// Decides whether `who` may connect to `destination` at `now`.
pub fn authorize(
    who: &Subject<'_>,
    targets: &[Target],
    grants: &[Grant],
    destination: &Destination,
    now: UnixTime,
) -> Decision {
    let mut best: Option<Permit> = None;
    let mut refused: Option<(u8, Refused)> = None;
    for target in targets.iter().filter(|target| is_meant(target, destination)) {
        let covering = || grants.iter().filter(|grant| covers(grant, who, target));
        let asks = covering()
            .any(|grant| cannot_ask(grant, target) && holds(grant, who, target, "", now).is_ok());
        for grant in covering() {
            match holds(grant, who, target, &destination.host, now) {
                // One grant that asks is enough, as for an account: see `AccountPermit::step_up`.
                Ok(_) if asks => refused = Some((u8::MAX, nobody_to_ask(target))),
                Ok(until) => {
                    let permit = Permit { target: target.clone(), grant: grant.id.clone(), until };
                    if best.as_ref().is_none_or(|best| lasts_longer(&permit, best)) {
                        best = Some(permit);
                    }
                }
                Err((rank, why)) => {
                    if refused.as_ref().is_none_or(|(best, _)| rank > *best) {
                        refused = Some((rank, why));
                    }
                }
            }
        }
    }
    match (best, refused) {
        (Some(permit), _) => Decision::Permit(permit),
        (None, Some((_, refused))) => Decision::Refuse(refused),
        (None, None) => Decision::Refuse(Refused {
            reason: Refusal::NotGranted,
            message: format!("{} is not granted to you", asked_for(destination)),
            target: targets.iter().find(|t| is_meant(t, destination)).map(|t| t.name.clone()),
        }),
    }
}

/// The targets that some grant lets `who` reach, each with the grants that cover it, whether or
/// not they hold right now.
pub fn granted_targets<'a>(
    who: &Subject<'_>,
    targets: &'a [Target],
    grants: &'a [Grant],
) -> Vec<(&'a Target, Vec<&'a Grant>)> {
    let covering =
        |target| grants.iter().filter(|grant| covers(grant, who, target)).collect::<Vec<_>>();
    targets.iter().map(|t| (t, covering(t))).filter(|(_, grants)| !grants.is_empty()).collect()
}

/// Which of the rights that are asked for on a session channel some grant gives `who` on a target that
/// the menu leads to, whether or not it holds right now.
pub fn session_rights(who: &Subject<'_>, targets: &[Target], grants: &[Grant]) -> Vec<Capability> {
    let granted = granted_targets(who, targets, grants);
    let recorded = || granted.iter().filter(|(target, _)| target.mode == Mode::Record);
    let is_given = |right: &Capability| {
        recorded().any(|(_, grants)| grants.iter().any(|grant| grant.allows(*right)))
    };
    let rights = Capability::ALL.iter().copied().filter(|right| right.is_for_sessions());
    rights.filter(is_given).collect()
}

/// Whether `grant` holds for `who` right now.
pub fn holds_now(grant: &Grant, who: &Subject<'_>, target: &Target, now: UnixTime) -> bool {
    !cannot_ask(grant, target) && holds(grant, who, target, target.name.as_str(), now).is_ok()
}

/// Whether a destination means this target: by its name (`ssh -J` asks for port 22 when nobody
/// said another) or by its own host and port.
fn is_meant(target: &Target, destination: &Destination) -> bool {
    let port = destination.port == target.address.port;
    let by_name =
        destination.host.as_str() == target.name.as_str() && (port || destination.port == 22);
    by_name || (destination.host == target.address.host && port)
}

/// Whether a grant is about this user and this target.
fn covers(grant: &Grant, who: &Subject<'_>, target: &Target) -> bool {
    grant.concerns(who.user, who.groups) && grant.leads_to(target)
}

/// Whether a grant's conditions hold: until when at least, or why not. The number ranks the
/// reasons by how much they help whoever reads them.
fn holds(
    grant: &Grant,
    who: &Subject<'_>,
    target: &Target,
    asked: impl std::fmt::Display,
    now: UnixTime,
) -> Result<Option<UnixTime>, (u8, Refused)> {
    let refuse = |rank, reason, message| {
        Err((rank, Refused { reason, message, target: Some(target.name.clone()) }))
    };
    if let Some(until) = grant.until.filter(|until| now >= *until) {
        return refuse(1, Refusal::Expired, format!("your grant for {asked} ended on {until}"));
    }
    if target.mode == Mode::Tunnel && !grant.allows(Capability::Forward) {
        let message = format!("{asked} is granted to you, but not for forwarding");
        return refuse(2, Refusal::NotGranted, message);
    }
    if target.mode == Mode::Tunnel && !grant.accounts.is_empty() {
        let message = format!(
            "{asked} is granted to you for single accounts, which cannot be told in tunnel mode"
        );
        return refuse(2, Refusal::NotGranted, message);
    }
    if !grant.from.is_empty() && !grant.from.iter().any(|net| net.contains(&who.source)) {
        let message =
            format!("your address {} is not one that the grant for {asked} allows", who.source);
        return refuse(3, Refusal::WrongSource, message);
    }
    let closes = match &grant.hours {
        Some(hours) if !hours.contains(now) => {
            return refuse(4, Refusal::OutsideHours, format!("outside granted hours ({hours})"));
        }
        Some(hours) => hours.next_change(now),
        None => None,
    };
    if let Some(rule) = &target.sign_in
        && !rule.allows(who.given, who.source)
    {
        let message = format!("{} asks for {rule}; you signed in with {}", target.name, who.given);
        return refuse(5, Refusal::SignInRule, message);
    }
    Ok([grant.until, closes].into_iter().flatten().min())
}

/// Whether a grant asks for a code where nobody can be asked: the bastion does not see into a tunnel.
fn cannot_ask(grant: &Grant, target: &Target) -> bool {
    grant.step_up && target.mode == Mode::Tunnel
}

fn nobody_to_ask(target: &Target) -> Refused {
    let name = &target.name;
    let message =
        format!("{name} asks for a fresh code, which nobody can be asked for in tunnel mode");
    Refused { reason: Refusal::StepUp, message, target: Some(name.clone()) }
}

fn lasts_longer(a: &Permit, b: &Permit) -> bool {
    let end = |permit: &Permit| permit.until.map_or(i64::MAX, |until| until.0);
    end(a) > end(b)
}

/// The destination as the user typed it: without the port that nobody types.
fn asked_for(destination: &Destination) -> String {
    match destination.port {
        22 => destination.host.to_string(),
        _ => destination.to_string(),
    }
}

#[cfg(test)]
mod tests;
