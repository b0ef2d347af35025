//! Targets, groups and grants.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::pool::on;
use super::schema::{grants, group_members, target_labels, targets, user_groups, users};
use super::{Error, Store, Tx, parse};
use crate::audit::{Context, Event};
use crate::domain::{
    Destination, Grant, GrantObject, GrantSubject, GroupName, Host, Id, Label, Mode, SignInRule,
    Target, TargetAddress, TargetName, UnixTime, UserName,
};

/// What the policy needs to decide about one user.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The groups the user is in.
    pub groups: Vec<GroupName>,
    /// The grants for the user or one of these groups.
    pub grants: Vec<Grant>,
    /// The targets in question.
    pub targets: Vec<Target>,
}

/// A row of `targets`.
type TargetRow = (String, String, String, i64, String, i64);

/// A row of `grants`, with the names that its ids stand for.
#[derive(Queryable)]
struct GrantRow {
    id: String,
    user: Option<String>,
    group: Option<String>,
    target: Option<String>,
    label: Option<String>,
    accounts: String,
    allow: String,
    hours: Option<String>,
    sources: String,
    until: Option<i64>,
    created_at: i64,
    step_up: i64,
}

/// A group with its members.
#[derive(Debug, Clone, serde::Serialize)]
pub struct GroupRow {
    /// Its name.
    pub group: String,
    /// When it was added.
    pub created_at: i64,
    /// Who is in it.
    pub members: Vec<String>,
    /// What answers for the second step of members of whom nothing else is set.
    pub factor: Option<String>,
    /// How RADIUS is asked then, if that was said.
    pub radius_mode: Option<String>,
    /// Which factors are asked of members without a rule of their own, if that was said.
    pub sign_in: Option<String>,
    /// For how many seconds members' logins are remembered, if that was said; 0: not at all.
    pub remember_seconds: Option<i64>,
}

impl Store {
    /// What decides whether `account` may go to `destination`: of their grants only those that lead to
    /// a target that it means.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn access_to(
        &self,
        account: &Id,
        destination: &Destination,
    ) -> Result<Access, Error> {
        let mut tx = self.read_short().await?;
        let groups = tx.groups_of(account).await?;
        let targets = tx.targets_meant(destination).await?;
        let grants = tx.grants_leading(account, &groups, &targets).await?;
        tx.commit().await?;
        Ok(Access { groups, grants, targets })
    }

    /// As [`Self::access_to`], with all grants of `account`: for who wants to know why another one does
    /// not lead there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn access_explained(
        &self,
        account: &Id,
        destination: &Destination,
    ) -> Result<Access, Error> {
        let mut tx = self.read().await?;
        let groups = tx.groups_of(account).await?;
        let grants = tx.grants_for(account, &groups).await?;
        let targets = tx.targets_meant(destination).await?;
        tx.commit().await?;
        Ok(Access { groups, grants, targets })
    }

    /// What `account` may go to: the targets that their grants lead to, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn access_of(&self, account: &Id) -> Result<Access, Error> {
        let mut tx = self.read().await?;
        let groups = tx.groups_of(account).await?;
        let grants = tx.grants_for(account, &groups).await?;
        let targets = tx.targets_granted(&grants).await?;
        tx.commit().await?;
        Ok(Access { groups, grants, targets })
    }

    /// Every target, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn targets(&self) -> Result<Vec<Target>, Error> {
        let mut tx = self.read().await?;
        let targets = tx.all_targets().await?;
        tx.commit().await?;
        Ok(targets)
    }

    /// The targets in record mode at `port`, with their hosts.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recorded_at(&self, port: u16) -> Result<Vec<(TargetName, Host)>, Error> {
        let mut tx = self.read().await?;
        let rows = tx.recorded_at(port).await?;
        tx.commit().await?;
        let row = |(name, host): (String, String)| {
            Ok((parse("targets", &name)?, parse("targets", &host)?))
        };
        rows.into_iter().map(row).collect()
    }

    /// Every grant, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn grants(&self) -> Result<Vec<Grant>, Error> {
        let mut tx = self.read().await?;
        let grants = tx.grants_where(None).await?;
        tx.commit().await?;
        Ok(grants)
    }

    /// Every group, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn groups(&self) -> Result<Vec<GroupRow>, Error> {
        let mut tx = self.read().await?;
        let groups: Vec<(String, i64)> = on!(tx.engine(), conn => {
            user_groups::table.order(user_groups::name).load(conn).await
        })?;
        let members: Vec<(String, String)> = on!(tx.engine(), conn => {
            group_members::table
                .inner_join(users::table)
                .order(users::name)
                .select((group_members::group_name, users::name))
                .load(conn)
                .await
        })?;
        let mut factors = tx.group_factors().await?;
        let mut rules = tx.group_sign_ins().await?;
        let remembers = tx.group_remembers().await?;
        tx.commit().await?;
        let mut of: HashMap<String, Vec<String>> = HashMap::new();
        for (group, member) in members {
            of.entry(group).or_default().push(member);
        }
        Ok(groups
            .into_iter()
            .map(|(group, created_at)| {
                let members = of.remove(&group).unwrap_or_default();
                let (factor, radius_mode) = factors.remove(&group).unzip();
                let radius_mode = radius_mode.flatten();
                let sign_in = rules.remove(&group);
                let remember_seconds = remembers.get(&group).map(|millis| millis / 1000);
                GroupRow {
                    group,
                    created_at,
                    members,
                    factor,
                    radius_mode,
                    sign_in,
                    remember_seconds,
                }
            })
            .collect())
    }

    /// Registers a target.
    ///
    /// # Errors
    /// When the name is taken, or the address by a target in the other mode: a tunnel to it would pass
    /// the recording by. Or when the store fails.
    pub async fn add_target(
        &self,
        target: &Target,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        if tx.target_named(&target.name).await?.is_some() {
            return Err(Error::Conflict(format!("there is a target {} already", target.name)));
        }
        let row = (
            targets::id.eq(target.id.as_str()),
            targets::name.eq(target.name.as_str()),
            targets::host.eq(target.address.host.as_str()),
            targets::port.eq(i64::from(target.address.port)),
            targets::mode.eq(target.mode.word()),
            targets::created_at.eq(target.created_at.0),
        );
        on!(tx.engine(), conn => {
            diesel::insert_into(targets::table).values(row).execute(conn).await
        })?;
        for label in &target.labels {
            let row = (
                target_labels::target_id.eq(target.id.as_str()),
                target_labels::key.eq(&label.key),
                target_labels::value.eq(&label.value),
            );
            on!(tx.engine(), conn => {
                diesel::insert_into(target_labels::table).values(row).execute(conn).await
            })?;
        }
        let event = Event::TargetAdded {
            target: target.name.clone(),
            address: target.address.to_string(),
            mode: target.mode.to_string(),
            labels: target.labels.iter().map(ToString::to_string).collect(),
        };
        tx.append(now, context, event).await?;
        // Whoever appends stands in a line: of two that are added at once, the second sees the first.
        if let Some(other) = tx.in_other_mode(target).await? {
            let Target { address, mode, .. } = target;
            return Err(Error::Conflict(format!(
                "{address} is the target {other} already, which is not in {mode} mode: a tunnel would \
                 pass the recording by. Leave one of them, or give both the same --mode"
            )));
        }
        tx.bump_revision().await?;
        tx.commit().await
    }

    /// Removes a target, and the grants for it alone.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn remove_target(
        &self,
        name: &TargetName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_target(name).await?;
        let lost = tx.grants_where(Some(GrantFilter::Target(id.as_str().to_owned()))).await?;
        on!(tx.engine(), conn => {
            diesel::delete(targets::table.find(id.as_str())).execute(conn).await
        })?;
        tx.append_removed(lost, context, now).await?;
        tx.changed(now, context, Event::TargetRemoved { target: name.clone() }).await
    }

    /// Adds a group.
    ///
    /// # Errors
    /// When the name is taken, or the store fails.
    pub async fn add_group(
        &self,
        group: &GroupName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        if tx.has_group(group).await? {
            return Err(Error::Conflict(format!("there is a group {group} already")));
        }
        let row = (user_groups::name.eq(group.as_str()), user_groups::created_at.eq(now.0));
        on!(tx.engine(), conn => {
            diesel::insert_into(user_groups::table).values(row).execute(conn).await
        })?;
        tx.changed(now, context, Event::GroupAdded { group: group.clone() }).await
    }

    /// Removes a group, and the grants for it.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn remove_group(
        &self,
        group: &GroupName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.take_group(group).await?;
        let lost = tx.grants_where(Some(GrantFilter::Group(group.as_str().to_owned()))).await?;
        on!(tx.engine(), conn => {
            diesel::delete(user_groups::table.find(group.as_str())).execute(conn).await
        })?;
        tx.append_removed(lost, context, now).await?;
        tx.changed(now, context, Event::GroupRemoved { group: group.clone() }).await
    }

    /// Puts a user into a group.
    ///
    /// # Errors
    /// When one of them is not there, or the user is in it already, or the store fails.
    pub async fn join_group(
        &self,
        group: &GroupName,
        user: &UserName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.user_id(user).await?;
        if !tx.has_group(group).await? {
            return Err(no_such("group", group));
        }
        let row =
            (group_members::group_name.eq(group.as_str()), group_members::user_id.eq(id.as_str()));
        let joined = on!(tx.engine(), conn => {
            diesel::insert_into(group_members::table).values(row).on_conflict_do_nothing().execute(conn).await
        })?;
        if joined == 0 {
            return Err(Error::Conflict(format!("{user} is in the group {group} already")));
        }
        tx.changed(now, context, Event::GroupJoined { group: group.clone(), name: user.clone() })
            .await
    }

    /// Takes a user out of a group.
    ///
    /// # Errors
    /// When the user is not in it, or the store fails.
    pub async fn leave_group(
        &self,
        group: &GroupName,
        user: &UserName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.user_id(user).await?;
        let left = on!(tx.engine(), conn => {
            diesel::delete(group_members::table.find((group.as_str(), id.as_str()))).execute(conn).await
        })?;
        if left == 0 {
            return Err(Error::Conflict(format!("{user} is not in a group {group}")));
        }
        tx.changed(now, context, Event::GroupLeft { group: group.clone(), name: user.clone() })
            .await
    }

    /// Adds a grant.
    ///
    /// # Errors
    /// When its user, group or target is not there, or the store fails.
    pub async fn add_grant(
        &self,
        grant: &Grant,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let (user, group) = match &grant.subject {
            GrantSubject::User(user) => (Some(tx.user_id(user).await?.to_string()), None),
            GrantSubject::Group(group) if tx.has_group(group).await? => {
                (None, Some(group.to_string()))
            }
            GrantSubject::Group(group) => return Err(no_such("group", group)),
        };
        let (target, label) = match &grant.object {
            GrantObject::Target(name) => match tx.target_named(name).await? {
                Some(id) => (Some(id.to_string()), None),
                None => return Err(no_such("target", name)),
            },
            GrantObject::Label(label) => (None, Some(label.to_string())),
        };
        let row = (
            grants::id.eq(grant.id.as_str()),
            grants::user_id.eq(user),
            grants::group_name.eq(group),
            grants::target_id.eq(target),
            grants::label.eq(label),
            grants::accounts.eq(join(&grant.accounts)),
            grants::allow.eq(join(&grant.allow)),
            grants::hours.eq(grant.hours.as_ref().map(ToString::to_string)),
            grants::sources.eq(join(&grant.from)),
            grants::until.eq(grant.until.map(|t| t.0)),
            grants::created_at.eq(grant.created_at.0),
            grants::step_up.eq(i64::from(grant.step_up)),
        );
        on!(tx.engine(), conn => {
            diesel::insert_into(grants::table).values(row).execute(conn).await
        })?;
        let event = Event::GrantAdded { grant: grant.id.clone(), rule: grant.to_string() };
        tx.changed(now, context, event).await
    }

    /// Removes the grant whose id begins with `prefix`.
    ///
    /// # Errors
    /// When there is none, or more than one, or the store fails.
    pub async fn remove_grant(
        &self,
        prefix: &str,
        context: &Context,
        now: UnixTime,
    ) -> Result<Grant, Error> {
        let mut tx = self.begin().await?;
        let mut found = tx.grants_where(None).await?;
        found.retain(|grant| grant.id.as_str().starts_with(prefix));
        let grant = match <[Grant; 1]>::try_from(found) {
            Ok([grant]) => grant,
            Err(none) if none.is_empty() => return Err(no_such("grant", prefix)),
            Err(_) => {
                return Err(Error::Conflict(format!(
                    "more than one grant begins with {prefix}: type more of it"
                )));
            }
        };
        let removed = on!(tx.engine(), conn => {
            diesel::delete(grants::table.find(grant.id.as_str())).execute(conn).await
        })?;
        if removed == 0 {
            return Err(no_such("grant", prefix)); // Somebody else was first.
        }
        let event = Event::GrantRemoved { grant: grant.id.clone(), rule: grant.to_string() };
        tx.changed(now, context, event).await?;
        Ok(grant)
    }
}

/// Which grants to read.
pub(super) enum GrantFilter {
    /// For this user or one of these groups.
    For(String, Vec<String>),
    /// For this user or one of these groups, and for one of these targets, by id, or labels.
    Leading(String, Vec<String>, Vec<String>, Vec<String>),
    /// For this target alone, by id.
    Target(String),
    /// For this group.
    Group(String),
    /// For this user alone, by id.
    User(String),
}

impl Tx<'_> {
    /// Appends the event of an administrator's change, tells every node, and commits.
    pub(super) async fn changed(
        mut self,
        now: UnixTime,
        context: &Context,
        event: Event,
    ) -> Result<(), Error> {
        self.append(now, context, event).await?;
        self.bump_revision().await?;
        self.commit().await
    }

    /// Appends that grants go together with what they were for.
    pub(super) async fn append_removed(
        &mut self,
        lost: Vec<Grant>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        for grant in lost {
            let rule = grant.to_string();
            self.append(now, context, Event::GrantRemoved { grant: grant.id, rule }).await?;
        }
        Ok(())
    }

    pub(super) async fn groups_of(&mut self, account: &Id) -> Result<Vec<GroupName>, Error> {
        let names: Vec<String> = on!(self.engine(), conn => {
            group_members::table
                .filter(group_members::user_id.eq(account.as_str()))
                .select(group_members::group_name)
                .order(group_members::group_name)
                .load(conn)
                .await
        })?;
        names.iter().map(|name| parse("group_members", name)).collect()
    }

    async fn grants_for(
        &mut self,
        account: &Id,
        groups: &[GroupName],
    ) -> Result<Vec<Grant>, Error> {
        let groups = groups.iter().map(ToString::to_string).collect();
        self.grants_where(Some(GrantFilter::For(account.to_string(), groups))).await
    }

    /// Those of them that lead to one of `targets`.
    async fn grants_leading(
        &mut self,
        account: &Id,
        groups: &[GroupName],
        targets: &[Target],
    ) -> Result<Vec<Grant>, Error> {
        let groups = groups.iter().map(ToString::to_string).collect();
        let ids = targets.iter().map(|target| target.id.to_string()).collect();
        let labels = targets.iter().flat_map(|target| &target.labels).map(ToString::to_string);
        let filter = GrantFilter::Leading(account.to_string(), groups, ids, labels.collect());
        self.grants_where(Some(filter)).await
    }

    pub(super) async fn grants_where(
        &mut self,
        filter: Option<GrantFilter>,
    ) -> Result<Vec<Grant>, Error> {
        let rows: Vec<GrantRow> = on!(self.engine(), conn => {
            let mut query = grants::table
                .left_join(users::table)
                .left_join(targets::table)
                .select((
                    grants::id, users::name.nullable(), grants::group_name, targets::name.nullable(),
                    grants::label, grants::accounts, grants::allow, grants::hours, grants::sources,
                    grants::until, grants::created_at, grants::step_up,
                ))
                .order((grants::created_at, grants::id))
                .into_boxed();
            query = match &filter {
                None => query,
                Some(GrantFilter::For(user, groups)) => {
                    query.filter(grants::user_id.eq(user).or(grants::group_name.eq_any(groups)))
                }
                Some(GrantFilter::Leading(user, groups, ids, labels)) => query
                    .filter(grants::user_id.eq(user).or(grants::group_name.eq_any(groups)))
                    .filter(grants::target_id.eq_any(ids).or(grants::label.eq_any(labels))),
                Some(GrantFilter::Target(id)) => query.filter(grants::target_id.eq(id)),
                Some(GrantFilter::Group(name)) => query.filter(grants::group_name.eq(name)),
                Some(GrantFilter::User(id)) => query.filter(grants::user_id.eq(id)),
            };
            query.load(conn).await
        })?;
        rows.into_iter().map(grant).collect()
    }

    /// The targets that a destination can mean, by name or by address.
    async fn targets_meant(&mut self, destination: &Destination) -> Result<Vec<Target>, Error> {
        let (host, port) = (destination.host.as_str(), i64::from(destination.port));
        let rows: Vec<TargetRow> = on!(self.engine(), conn => {
            targets::table
                .filter(targets::name.eq(host).or(targets::host.eq(host).and(targets::port.eq(port))))
                .load(conn)
                .await
        })?;
        let ids: Vec<String> = rows.iter().map(|row| row.0.clone()).collect();
        self.described(rows, &ids).await
    }

    /// The targets that `grants` lead to, by name.
    async fn targets_granted(&mut self, grants: &[Grant]) -> Result<Vec<Target>, Error> {
        let (mut names, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for grant in grants {
            match &grant.object {
                GrantObject::Target(name) => names.insert(name.as_str()),
                GrantObject::Label(Label { key, value }) => labels.insert((key, value)),
            };
        }
        let mut ids: BTreeSet<String> = BTreeSet::new();
        for names in pieces(names) {
            let found: Vec<String> = on!(self.engine(), conn => {
                targets::table.filter(targets::name.eq_any(names)).select(targets::id).load(conn).await
            })?;
            ids.extend(found);
        }
        for (key, value) in labels {
            let found: Vec<String> = on!(self.engine(), conn => {
                target_labels::table
                    .filter(target_labels::key.eq(key).and(target_labels::value.eq(value)))
                    .select(target_labels::target_id)
                    .load(conn)
                    .await
            })?;
            ids.extend(found);
        }
        let mut all = Vec::new();
        for ids in pieces(ids) {
            let rows: Vec<TargetRow> = on!(self.engine(), conn => {
                targets::table.filter(targets::id.eq_any(&ids)).load(conn).await
            })?;
            all.extend(self.described(rows, &ids).await?);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Targets of these rows and ids, with their labels and rules.
    async fn described(
        &mut self,
        rows: Vec<TargetRow>,
        ids: &[String],
    ) -> Result<Vec<Target>, Error> {
        let labels: Vec<(String, String, String)> = on!(self.engine(), conn => {
            target_labels::table.filter(target_labels::target_id.eq_any(ids)).load(conn).await
        })?;
        let rules = self.target_sign_ins_of(ids).await?;
        targets_of(rows, labels, rules)
    }

    async fn all_targets(&mut self) -> Result<Vec<Target>, Error> {
        let rows: Vec<TargetRow> =
            on!(self.engine(), conn => targets::table.order(targets::name).load(conn).await)?;
        let labels: Vec<(String, String, String)> =
            on!(self.engine(), conn => target_labels::table.load(conn).await)?;
        let rules = self.target_sign_ins().await?;
        targets_of(rows, labels, rules)
    }

    async fn recorded_at(&mut self, port: u16) -> Result<Vec<(String, String)>, Error> {
        let (port, mode) = (i64::from(port), Mode::Record.word());
        Ok(on!(self.engine(), conn => {
            targets::table
                .filter(targets::port.eq(port).and(targets::mode.eq(mode)))
                .order(targets::name)
                .select((targets::name, targets::host))
                .load(conn)
                .await
        })?)
    }

    async fn target_named(&mut self, name: &TargetName) -> Result<Option<Id>, Error> {
        let id: Option<String> = on!(self.engine(), conn => {
            targets::table.filter(targets::name.eq(name.as_str())).select(targets::id).first(conn).await.optional()
        })?;
        id.map(|id| parse("targets", &id)).transpose()
    }

    /// A target at the same address in the other mode.
    async fn in_other_mode(&mut self, target: &Target) -> Result<Option<String>, Error> {
        let (host, port) = (target.address.host.as_str(), i64::from(target.address.port));
        let mode = target.mode.word();
        Ok(on!(self.engine(), conn => {
            targets::table
                .filter(targets::host.eq(host).and(targets::port.eq(port)).and(targets::mode.ne(mode)))
                .order(targets::name)
                .select(targets::name)
                .first(conn)
                .await
                .optional()
        })?)
    }

    pub(super) async fn has_group(&mut self, group: &GroupName) -> Result<bool, Error> {
        let found: i64 = on!(self.engine(), conn => {
            user_groups::table.filter(user_groups::name.eq(group.as_str())).count().get_result(conn).await
        })?;
        Ok(found > 0)
    }

    /// Holds a group's row until the transaction ends. Before what belongs to the group is changed: whoever
    /// removes it takes these rows in that order.
    pub(super) async fn take_group(&mut self, group: &GroupName) -> Result<(), Error> {
        let taken = on!(self.engine(), conn => {
            diesel::update(user_groups::table.find(group.as_str()))
                .set(user_groups::name.eq(group.as_str()))
                .execute(conn)
                .await
        })?;
        if taken == 1 { Ok(()) } else { Err(no_such("group", group)) }
    }

    /// The id of the user `name`, whose row nobody else changes until the transaction ends.
    pub(super) async fn take_user(&mut self, name: &UserName) -> Result<Id, Error> {
        let id: Option<String> = on!(self.engine(), conn => {
            diesel::update(users::table.filter(users::name.eq(name.as_str())))
                .set(users::name.eq(name.as_str()))
                .returning(users::id)
                .get_result(conn)
                .await
                .optional()
        })?;
        parse("users", &id.ok_or_else(|| no_such("user", name))?)
    }

    /// The id of the user `name`.
    pub(super) async fn user_id(&mut self, name: &UserName) -> Result<Id, Error> {
        let id: Option<String> = on!(self.engine(), conn => {
            users::table.filter(users::name.eq(name.as_str())).select(users::id).first(conn).await.optional()
        })?;
        parse("users", &id.ok_or_else(|| no_such("user", name))?)
    }
}

pub(super) fn no_such(what: &str, name: impl std::fmt::Display) -> Error {
    Error::Conflict(format!("there is no {what} {name}: see 'sallyport {what} list'"))
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn split<T: std::str::FromStr>(table: &'static str, text: &str) -> Result<Vec<T>, Error>
where
    T::Err: std::fmt::Display,
{
    text.split(',').filter(|item| !item.is_empty()).map(|item| parse(table, item)).collect()
}

fn grant(row: GrantRow) -> Result<Grant, Error> {
    let damaged = || Error::Damaged { table: "grants", reason: format!("grant {}", row.id) };
    Ok(Grant {
        id: parse("grants", &row.id)?,
        subject: match (&row.user, &row.group) {
            (Some(user), None) => GrantSubject::User(parse("grants", user)?),
            (None, Some(group)) => GrantSubject::Group(parse("grants", group)?),
            _ => return Err(damaged()),
        },
        object: match (&row.target, &row.label) {
            (Some(target), None) => GrantObject::Target(parse("grants", target)?),
            (None, Some(label)) => GrantObject::Label(parse("grants", label)?),
            _ => return Err(damaged()),
        },
        accounts: split("grants", &row.accounts)?,
        allow: split("grants", &row.allow)?,
        hours: row.hours.as_deref().map(|hours| parse("grants", hours)).transpose()?,
        from: split("grants", &row.sources)?,
        until: row.until.map(UnixTime),
        created_at: UnixTime(row.created_at),
        step_up: row.step_up != 0,
    })
}

/// So many at a time as one query may well name.
fn pieces<T>(all: BTreeSet<T>) -> impl Iterator<Item = Vec<T>> {
    let mut left = all.into_iter().peekable();
    std::iter::from_fn(move || left.peek().is_some().then(|| left.by_ref().take(500).collect()))
}

/// Targets with the labels and rules that name their ids.
fn targets_of(
    rows: Vec<TargetRow>,
    labels: Vec<(String, String, String)>,
    mut rules: HashMap<String, SignInRule>,
) -> Result<Vec<Target>, Error> {
    let mut of: HashMap<String, Vec<Label>> = HashMap::new();
    for (target, key, value) in labels {
        of.entry(target).or_default().push(Label { key, value });
    }
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let (labels, rule) = (of.remove(&row.0).unwrap_or_default(), rules.remove(&row.0));
        all.push(target(row, labels, rule)?);
    }
    Ok(all)
}

fn target(
    row: TargetRow,
    labels: Vec<Label>,
    sign_in: Option<SignInRule>,
) -> Result<Target, Error> {
    let (id, name, host, port, mode, created_at) = row;
    let port = u16::try_from(port)
        .map_err(|_| Error::Damaged { table: "targets", reason: format!("port {port}") })?;
    Ok(Target {
        labels,
        sign_in,
        id: parse("targets", &id)?,
        name: parse("targets", &name)?,
        address: TargetAddress { host: parse("targets", &host)?, port },
        mode: parse("targets", &mode)?,
        created_at: UnixTime(created_at),
    })
}
