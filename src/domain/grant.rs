//! Grants: who may go to which targets, as whom, to do what, when and from where.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::{NameError, name};
use super::{
    Capability, GroupName, Hours, Id, Label, Mode, SignInRule, TargetAddress, TargetName, UnixTime,
    UserName,
};

/// A target that an administrator registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its id.
    pub id: Id,
    /// The name people type.
    pub name: TargetName,
    /// Where it is reached.
    pub address: TargetAddress,
    /// Whether the bastion sees inside.
    pub mode: Mode,
    /// Its labels.
    pub labels: Vec<Label>,
    /// Which factors it asks for; what let somebody in, if nothing was said.
    pub sign_in: Option<SignInRule>,
    /// When it was registered.
    pub created_at: UnixTime,
}

name! {
    /// The name of an account on a target.
    AccountName, "account name", is_account,
    "1 to 64 printable ASCII characters without spaces or , + : / @ and quotes"
}

fn is_account(s: &str) -> bool {
    let plain =
        |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '+' | ':' | '/' | '@' | '"' | '\'');
    !s.is_empty() && s.len() <= 64 && !s.starts_with('-') && s.chars().all(plain)
}

/// Whom a grant is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantSubject {
    /// One user.
    User(UserName),
    /// Everybody in a group.
    Group(GroupName),
}

/// What a grant is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantObject {
    /// One target.
    Target(TargetName),
    /// Every target with a label.
    Label(Label),
}

/// A stored rule; without one that fits, everything is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// Its id.
    pub id: Id,
    /// Whom it is for.
    pub subject: GrantSubject,
    /// What it is for.
    pub object: GrantObject,
    /// Accounts on the target; empty for any.
    pub accounts: Vec<AccountName>,
    /// What it allows; empty for everything but what must be named.
    pub allow: Vec<Capability>,
    /// When it holds; always if not said.
    pub hours: Option<Hours>,
    /// From where it holds; from anywhere if empty.
    pub from: Vec<ipnet::IpNet>,
    /// Until when it holds; for ever if not said.
    pub until: Option<UnixTime>,
    /// Whether a fresh code is asked for at each connection that it has a part in.
    pub step_up: bool,
    /// When it was added.
    pub created_at: UnixTime,
}

impl Grant {
    /// Whether it allows `what`.
    pub fn allows(&self, what: Capability) -> bool {
        if self.allow.is_empty() { what.by_default() } else { self.allow.contains(&what) }
    }

    /// Whether it is about this user, who is in `groups`.
    pub fn concerns(&self, user: &UserName, groups: &[GroupName]) -> bool {
        match &self.subject {
            GrantSubject::User(name) => name == user,
            GrantSubject::Group(group) => groups.contains(group),
        }
    }

    /// Whether it is about this target.
    pub fn leads_to(&self, target: &Target) -> bool {
        match &self.object {
            GrantObject::Target(name) => *name == target.name,
            GrantObject::Label(label) => target.labels.contains(label),
        }
    }

    /// When and from where it holds, and whether it takes a fresh code, in the words of the command
    /// that would add it; empty if always, from everywhere and without one.
    pub fn conditions(&self) -> String {
        let hours = self.hours.as_ref().map(|hours| format!("hours {hours}"));
        let from: Vec<String> = self.from.iter().map(ToString::to_string).collect();
        let from = (!from.is_empty()).then(|| format!("from {}", from.join(",")));
        let until = self.until.map(|until| format!("until {until}"));
        let step_up = self.step_up.then(|| "step-up".to_owned());
        [hours, from, until, step_up].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// Whether it is for `account`.
    pub fn is_for(&self, account: &AccountName) -> bool {
        self.accounts.is_empty() || self.accounts.contains(account)
    }
}

/// One line, in the words of the command that would add it.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            GrantSubject::User(user) => write!(f, "user {user}")?,
            GrantSubject::Group(group) => write!(f, "group {group}")?,
        }
        match &self.object {
            GrantObject::Target(target) => write!(f, " to target {target}")?,
            GrantObject::Label(label) => write!(f, " to label {label}")?,
        }
        let list = |items: Vec<String>| items.join(",");
        if !self.accounts.is_empty() {
            write!(f, " as {}", list(self.accounts.iter().map(ToString::to_string).collect()))?;
        }
        if !self.allow.is_empty() {
            write!(f, " allow {}", list(self.allow.iter().map(ToString::to_string).collect()))?;
        }
        match self.conditions() {
            conditions if conditions.is_empty() => Ok(()),
            conditions => write!(f, " {conditions}"),
        }
    }
}
