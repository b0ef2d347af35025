//! Groups, grants, and why they lead where they lead.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::bail;

use super::output::{Format, Row, json_line, list};
use super::{Out, Verbs};
use crate::cli::{Explain, GrantAdd, GrantCommand, GroupCommand};
use crate::domain::{Destination, Grant, GrantObject, GrantSubject, Id, UnixTime};
use crate::policy::{self, Subject};
use crate::store::GroupRow;

/// What is granted, to whom, and on what.
#[derive(Debug)]
pub enum AccessCommand {
    /// `group ...`
    Group(GroupCommand),
    /// `grant ...`
    Grant(GrantCommand),
}

/// Runs `group ...` and `grant ...`.
///
/// # Errors
/// What the store says.
pub async fn access(
    verbs: &Verbs<'_>,
    command: AccessCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    match command {
        AccessCommand::Group(command) => groups(verbs, command, out).await,
        AccessCommand::Grant(command) => grants(verbs, command, out).await,
    }
}

async fn groups(verbs: &Verbs<'_>, command: GroupCommand, out: &mut Out<'_>) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        GroupCommand::Add { group } => {
            store.add_group(&group, context, now).await?;
            writeln!(out, "group {group} is added")?;
        }
        GroupCommand::Remove { group } => {
            store.remove_group(&group, context, now).await?;
            writeln!(out, "group {group} is removed, with the grants for it")?;
        }
        GroupCommand::List => list(out, verbs.format, &store.groups().await?)?,
        GroupCommand::Join { group, user } => {
            store.join_group(&group, &user, context, now).await?;
            writeln!(out, "{user} is in {group}")?;
        }
        GroupCommand::Leave { group, user } => {
            store.leave_group(&group, &user, context, now).await?;
            writeln!(out, "{user} is no longer in {group}")?;
        }
    }
    Ok(())
}

async fn grants(verbs: &Verbs<'_>, command: GrantCommand, out: &mut Out<'_>) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        GrantCommand::Add(add) => {
            let grant = grant(*add, now)?;
            store.add_grant(&grant, context, now).await?;
            match verbs.format {
                Format::Json => json_line(out, &grant)?,
                Format::Table { .. } => writeln!(out, "grant {}: {grant}", grant.id)?,
            }
        }
        GrantCommand::List => list(out, verbs.format, &store.grants().await?)?,
        GrantCommand::Remove { id } => {
            let grant = store.remove_grant(id.as_str(), context, now).await?;
            writeln!(out, "grant {} is removed: {grant}", grant.id)?;
        }
    }
    Ok(())
}

fn grant(add: GrantAdd, now: UnixTime) -> anyhow::Result<Grant> {
    let subject = match (add.user, add.group) {
        (Some(user), None) => GrantSubject::User(user),
        (None, Some(group)) => GrantSubject::Group(group),
        _ => bail!("give --user or --group, one of them"),
    };
    let object = match (add.target, add.label) {
        (Some(target), None) => GrantObject::Target(target),
        (None, Some(label)) => GrantObject::Label(label),
        _ => bail!("give --target or --label, one of them"),
    };
    let zone = jiff::tz::TimeZone::system();
    let until = add.until.map(|when| when.resolve(now, &zone)).transpose()?;
    if until.is_some_and(|until| until <= now) {
        bail!("--until lies in the past: the grant would never hold");
    }
    Ok(Grant {
        id: Id::random()?,
        subject,
        object,
        accounts: add.accounts,
        allow: add.allow,
        hours: add.hours,
        from: add.from,
        until,
        created_at: now,
    })
}

/// Runs `explain`; whether the policy permits it.
///
/// # Errors
/// When there is no such user, or the store fails.
pub async fn explain(verbs: &Verbs<'_>, asked: Explain, out: &mut Out<'_>) -> anyhow::Result<bool> {
    let detail = verbs.store.user(&asked.user).await?;
    let account: Id = detail.user.id.parse()?;
    let port = asked.target.port;
    let destination = Destination::parse(asked.target.host.as_str(), u32::from(port))?;
    let mut access = verbs.store.access_to(&account, &destination).await?;
    let limited: Vec<Grant> =
        access.grants.iter().filter(|grant| !grant.from.is_empty()).cloned().collect();
    if asked.from.is_none() {
        access.grants.iter_mut().for_each(|grant| grant.from.clear());
    }
    let zone = jiff::tz::TimeZone::system();
    let at = asked.at.map_or(Ok(verbs.now), |when| when.resolve(verbs.now, &zone))?;
    let source = asked.from.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_canonical();
    let subject = Subject { user: &asked.user, groups: &access.groups, source };
    let mut explained = policy::explain(
        &subject,
        &access.targets,
        &access.grants,
        &destination,
        asked.account.as_ref(),
        at,
    );
    // As they were added, whatever of them was looked at.
    for grant in &limited {
        let id = grant.id.to_string();
        let mut mine = explained.grants.iter_mut().filter(|verdict| verdict.grant == id);
        mine.by_ref().for_each(|verdict| verdict.rule = grant.to_string());
    }
    if detail.user.disabled_at.is_some() {
        explained.permitted = false;
        explained.decision = format!("refused: {} is disabled and cannot sign in", asked.user);
    }
    match verbs.format {
        Format::Json => json_line(out, &explained)?,
        Format::Table { .. } => {
            write!(out, "{explained}")?;
            if !limited.is_empty() && asked.from.is_none() {
                writeln!(out, "  from where they come was not looked at: give it with --from")?;
            }
        }
    }
    Ok(explained.permitted)
}

impl Row for Grant {
    const HEADINGS: &'static [&'static str] = &["GRANT", "RULE"];
    fn cells(&self) -> Vec<String> {
        vec![self.id.to_string(), self.to_string()]
    }
}

impl Row for GroupRow {
    const HEADINGS: &'static [&'static str] = &["GROUP", "MEMBERS"];
    fn cells(&self) -> Vec<String> {
        vec![self.group.clone(), self.members.join(" ")]
    }
}
