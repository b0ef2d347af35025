//! What somebody may do on a target in record mode, as one of its accounts.
//!
//! Always holds: an [`AccountPermit`] is made only by [`authorize_account`]; its rights are those of
//! the grants that hold for that very account right now, and of no others.

use super::{Refused, Subject, covers, holds};
use crate::audit::Refusal;
use crate::domain::{AccountName, Capability, Grant, Id, Target, UnixTime};

/// Proof that somebody may be an account on a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountPermit {
    target: Target,
    account: AccountName,
    rights: Vec<Capability>,
    grants: Vec<Id>,
    until: Option<UnixTime>,
    step_up: bool,
}

/// The policy's answer about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum AccountDecision {
    /// Let them be that account.
    Permit(AccountPermit),
    /// Do not.
    Refuse(Refused),
}

impl AccountPermit {
    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The account on it.
    pub fn account(&self) -> &AccountName {
        &self.account
    }

    /// Whether `what` is among the rights.
    pub fn allows(&self, what: Capability) -> bool {
        self.rights.contains(&what)
    }

    /// Everything that is allowed.
    pub fn rights(&self) -> &[Capability] {
        &self.rights
    }

    /// The grants that permit it.
    pub fn grants(&self) -> &[Id] {
        &self.grants
    }

    /// The next moment at which it may stop holding, and has to be asked for again.
    pub fn until(&self) -> Option<UnixTime> {
        self.until
    }

    /// Whether a fresh code has to be given before the target is reached.
    ///
    /// One grant that asks for it is enough, whatever the others say. Rights add up over grants, so a
    /// code that only all of them together could ask for would be turned off by any further grant, made
    /// for a group or a label with something else in mind. Whoever adds `--step-up` to a target means
    /// everybody who is covered by it.
    pub fn step_up(&self) -> bool {
        self.step_up
    }

    /// Whether everything that `earlier` allowed is still allowed.
    pub fn covers(&self, earlier: &Self) -> bool {
        earlier.rights.iter().all(|right| self.allows(*right))
    }
}

/// Decides what `who` may do on `target` as `account` at `now`.
pub fn authorize_account(
    who: &Subject<'_>,
    target: &Target,
    grants: &[Grant],
    account: &AccountName,
    now: UnixTime,
) -> AccountDecision {
    let mut permit = AccountPermit {
        target: target.clone(),
        account: account.clone(),
        rights: Vec::new(),
        grants: Vec::new(),
        until: None,
        step_up: false,
    };
    let mut refused: Option<(u8, Refused)> = None;
    let mut others: Vec<&AccountName> = Vec::new();
    for grant in grants.iter().filter(|grant| covers(grant, who, target)) {
        if !grant.is_for(account) {
            others.extend(&grant.accounts);
            continue;
        }
        match holds(grant, who, target, format_args!("{account} on {}", target.name), now) {
            Ok(until) => permit.add(grant, until),
            Err((rank, why)) => {
                if refused.as_ref().is_none_or(|(best, _)| rank > *best) {
                    refused = Some((rank, why));
                }
            }
        }
    }
    if !permit.grants.is_empty() {
        return AccountDecision::Permit(permit);
    }
    let (_, refused) = refused.unwrap_or_else(|| (0, not_for(account, target, others)));
    AccountDecision::Refuse(refused)
}

impl AccountPermit {
    fn add(&mut self, grant: &Grant, until: Option<UnixTime>) {
        self.grants.push(grant.id.clone());
        self.step_up |= grant.step_up;
        let new = Capability::ALL.iter().filter(|right| grant.allows(**right));
        self.rights.extend(new);
        self.rights.sort();
        self.rights.dedup();
        // When the first of them ends there may be fewer rights: asked anew then.
        self.until = [self.until, until].into_iter().flatten().min();
    }
}

/// The accounts on `target` that grants for `who` name, whether or not they hold right now.
pub fn granted_accounts(who: &Subject<'_>, target: &Target, grants: &[Grant]) -> Vec<AccountName> {
    let mine = grants.iter().filter(|grant| covers(grant, who, target));
    let mut names: Vec<AccountName> = mine.flat_map(|grant| grant.accounts.clone()).collect();
    names.sort();
    names.dedup();
    names
}

fn not_for(account: &AccountName, target: &Target, mut others: Vec<&AccountName>) -> Refused {
    others.sort();
    others.dedup();
    let names = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = if names.is_empty() {
        format!("{} is not granted to you", target.name)
    } else {
        format!("{account} on {} is not granted to you, but {names}", target.name)
    };
    Refused { reason: Refusal::NotGranted, message, target: Some(target.name.clone()) }
}
