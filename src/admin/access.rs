//! Groups, grants, and why they lead where they lead.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Error, bail};

use super::output::{Format, Row, json_line, list};
use super::user::{said, shown_factor};
use super::{Out, Verbs};
use crate::cli::{Explain, GrantAdd, GrantCommand, GroupCommand};
use crate::domain::{
    Destination, Factors, Grant, GrantObject, GrantSubject, Id, Mode, Remember, RuleOrDefault,
    Target, UnixTime,
};
use crate::policy::{self, Explanation, Question};
use crate::store::{GroupRow, UserDetail};

/// Runs `group ...`.
///
/// # Errors
/// What the store says.
pub async fn groups(
    verbs: &Verbs<'_>,
    command: GroupCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
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
        GroupCommand::Factor { group, second } => {
            let second = second.second().map_err(Error::msg)?;
            store.set_group_factor(&group, second, context, now).await?;
            let what = said(verbs, second);
            writeln!(out, "members of {group} of whom nothing else is set: {what}")?;
        }
        GroupCommand::Remember { group, remember } => {
            store.set_group_remember(&group, remember, context, now).await?;
            match remember {
                Remember::For(time) => writeln!(
                    out,
                    "members of {group} are asked for a code once in {} s from one address with one key",
                    time.as_secs()
                )?,
                Remember::Off => {
                    writeln!(out, "members of {group} are asked for a code each time")?
                }
                Remember::Unsaid => writeln!(out, "{group} says nothing of remembered logins")?,
            }
        }
        GroupCommand::SignIn { group, rule: RuleOrDefault(rule) } => {
            store.set_group_sign_in(&group, rule.as_ref(), context, now).await?;
            let rule = rule.map_or_else(|| "no rule of this group".to_owned(), |r| r.to_string());
            writeln!(out, "members of {group} without a rule of their own: {rule}")?;
        }
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

/// Runs `grant ...`.
///
/// # Errors
/// What the store says, or that it would never hold.
pub async fn grants(
    verbs: &Verbs<'_>,
    command: GrantCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        GrantCommand::Add(add) => {
            let grant = grant(*add, now)?;
            let same = |old: &&Grant| {
                Grant { id: grant.id.clone(), created_at: now, ..(*old).clone() } == grant
            };
            if let Some(old) = store.grants().await?.iter().find(same) {
                bail!("there is this grant already: {} ({old})", old.id);
            }
            if grant.step_up {
                can_ask(&grant, &store.targets().await?)?;
            }
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

/// Refuses a grant that could only ask for a code where nobody can be asked.
fn can_ask(grant: &Grant, targets: &[Target]) -> anyhow::Result<()> {
    let mut led_to = targets.iter().filter(|target| grant.leads_to(target)).peekable();
    let Some(first) = led_to.peek().map(|target| target.name.clone()) else { return Ok(()) };
    if led_to.all(|target| target.mode == Mode::Tunnel) {
        bail!(
            "{first} is in tunnel mode, where nobody can be asked for a code: leave --step-up out, or \
             register the target with --mode record"
        );
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
        step_up: add.step_up,
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
    let access = verbs.store.access_explained(&account, &destination).await?;
    let zone = jiff::tz::TimeZone::system();
    let at = asked.at.map_or(Ok(verbs.now), |when| when.resolve(verbs.now, &zone))?;
    let question = Question {
        user: &asked.user,
        groups: &access.groups,
        source: asked.from.map(|source| source.to_canonical()),
        account: asked.account.as_ref(),
    };
    let mut explained =
        policy::explain(&question, &access.targets, &access.grants, &destination, at);
    if let (true, Some(target)) = (explained.permitted, access.targets.first())
        && let Some(why) = super::target::unreachable(target).await
    {
        explained.cannot_be_reached(&why);
    }
    look_at_sign_in(&mut explained, &detail, question.source, at);
    let asks_code = look_at_rules(&mut explained, &detail, &access.targets, question.source);
    if asks_code {
        look_at_factor(&mut explained, verbs, &detail, at);
        look_at_code_limit(&mut explained, &detail, question.source, at);
    }
    match verbs.format {
        Format::Json => json_line(out, &explained)?,
        Format::Table { .. } => write!(out, "{explained}")?,
    }
    Ok(explained.permitted)
}

/// Adds what keeps the user from signing in, or would from some source.
fn look_at_sign_in(
    explained: &mut Explanation,
    detail: &UserDetail,
    source: Option<IpAddr>,
    at: UnixTime,
) {
    let (user, name) = (&detail.user, &detail.user.name);
    for lock in &detail.locks {
        let Some(until) = lock.locked_until.map(UnixTime).filter(|until| at < *until) else {
            continue;
        };
        let locked = format!("{name} is locked from {} until {until}", lock.source);
        let of_site = lock.source.ends_with("/48");
        let spared = |ip| of_site && detail.known_sources.iter().any(|known| known.covers(ip, at));
        let contains = |ip| lock.source.parse().is_ok_and(|net: ipnet::IpNet| net.contains(&ip));
        let here = |ip| contains(ip) && !spared(ip);
        match source {
            Some(ip) if here(ip) => explained.cannot_sign_in(locked),
            Some(_) => {}
            None => explained.sign_in.push(locked),
        }
    }
    if user.disabled_at.is_some() {
        explained.cannot_sign_in(format!("{name} is disabled"));
    }
}

/// Adds from where no code of the user's is taken, if there were too many wrong ones.
fn look_at_code_limit(
    explained: &mut Explanation,
    detail: &UserDetail,
    source: Option<IpAddr>,
    at: UnixTime,
) {
    let Some(counted) = detail.code_failures else { return };
    let Some(until) = counted.limited(at) else { return };
    let name = &detail.user.name;
    let remark = format!(
        "{name}: {} wrong codes, so until {until} a code is taken only from where they signed in \
         before: see 'sallyport user unlock {name}'",
        counted.failures
    );
    match source {
        Some(ip) if detail.known_sources.iter().any(|known| known.covers(ip, at)) => {}
        Some(_) => explained.cannot_sign_in(remark),
        None => explained.sign_in.push(remark),
    }
}

/// Adds which factors are asked of the user, and by the target; gives whether a code among them would
/// let somebody in.
fn look_at_rules(
    explained: &mut Explanation,
    detail: &UserDetail,
    targets: &[Target],
    source: Option<IpAddr>,
) -> bool {
    let name = &detail.user.name;
    explained.sign_in.push(format!("{name} has to give {}", detail.sign_in));
    for target in targets {
        if let Some(rule) = &target.sign_in {
            explained.sign_in.push(format!("{} asks for {rule}", target.name));
        }
    }
    let nowhere = Ipv4Addr::UNSPECIFIED.into();
    let (policy, address) = match source {
        Some(source) => (detail.sign_in.clone(), source),
        None => (detail.sign_in.from_everywhere(), nowhere),
    };
    if !policy.allows(Factors::ALL, address) {
        explained.cannot_sign_in(format!("nothing lets {name} in from {address}: {policy}"));
        return false;
    }
    !policy.allows(Factors::ALL.without(Factors::OTP), address)
}

/// Adds what is to be known about the user's second step.
fn look_at_factor(
    explained: &mut Explanation,
    verbs: &Verbs<'_>,
    detail: &UserDetail,
    at: UnixTime,
) {
    let (user, name) = (&detail.user, &detail.user.name);
    if !detail.signs_in_by_totp() {
        match verbs.radius {
            Some(_) => explained.sign_in.push(format!(
                "{name} signs in by {}{}",
                shown_factor(verbs, detail),
                detail.factor_group.as_ref().map(|g| format!(", set for {g}")).unwrap_or_default()
            )),
            None => explained.cannot_sign_in(format!(
                "{name} signs in by RADIUS, and no server is configured: see [radius]"
            )),
        }
        return;
    }
    match (user.otp_bound_at, user.binding_until.map(UnixTime)) {
        (Some(_), _) => {}
        (None, Some(until)) if at < until => {
            let remark = format!("{name} has to bind an authenticator first, until {until}");
            explained.sign_in.push(remark);
        }
        (None, _) => explained.cannot_sign_in(format!(
            "{name} has no authenticator, and may bind none: see 'sallyport otp reset {name}'"
        )),
    }
}

impl Row for Grant {
    const HEADINGS: &'static [&'static str] = &["GRANT", "RULE"];
    fn cells(&self) -> Vec<String> {
        vec![self.id.to_string(), self.to_string()]
    }
}

impl Row for GroupRow {
    const HEADINGS: &'static [&'static str] =
        &["GROUP", "FACTOR", "SIGN-IN", "REMEMBER", "MEMBERS"];
    fn cells(&self) -> Vec<String> {
        let words = [self.factor.clone(), self.radius_mode.clone()];
        let factor = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let sign_in = self.sign_in.clone().unwrap_or_default();
        let remember = match self.remember_seconds {
            None => String::new(),
            Some(0) => "off".to_owned(),
            Some(seconds) => format!("{:#}", jiff::SignedDuration::from_secs(seconds)),
        };
        vec![self.group.clone(), factor, sign_in, remember, self.members.join(" ")]
    }
}
