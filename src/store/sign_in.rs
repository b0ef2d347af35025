//! Which factors users have to sign in with, and targets ask for.
//!
//! Always holds: a rule is written as it reads back; what holds for a user is read in the transaction
//! that uses it.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::pool::on;
use super::schema::{group_members, group_sign_in, sessions, target_sign_in, user_sign_in};
use super::{Error, Store, Tx, parse};
use crate::audit::{Context, Event};
use crate::domain::{GroupName, Id, SignInPolicy, SignInRule, TargetName, UnixTime, UserName};

/// What is set for one user, and for their groups.
type Set = (Option<SignInRule>, Vec<(GroupName, SignInRule)>);

impl Store {
    /// Sets which factors a user has to sign in with; `None`: what their groups say. Their sessions
    /// that were signed in with less end.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_user_sign_in(
        &self,
        name: &UserName,
        rule: Option<&SignInRule>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        on!(tx.engine(), conn => {
            diesel::delete(user_sign_in::table.find(id.as_str())).execute(conn).await
        })?;
        if let Some(rule) = rule {
            let row =
                (user_sign_in::user_id.eq(id.as_str()), user_sign_in::rule.eq(rule.to_string()));
            on!(tx.engine(), conn => {
                diesel::insert_into(user_sign_in::table).values(row).execute(conn).await
            })?;
        }
        let (name, rule) = (name.clone(), rule.cloned());
        tx.changed(now, context, Event::UserSignInSet { name, rule }).await
    }

    /// The same, for the members of a group without a rule of their own.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_group_sign_in(
        &self,
        group: &GroupName,
        rule: Option<&SignInRule>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.take_group(group).await?;
        on!(tx.engine(), conn => {
            diesel::delete(group_sign_in::table.find(group.as_str())).execute(conn).await
        })?;
        if let Some(rule) = rule {
            let row = (
                group_sign_in::group_name.eq(group.as_str()),
                group_sign_in::rule.eq(rule.to_string()),
            );
            on!(tx.engine(), conn => {
                diesel::insert_into(group_sign_in::table).values(row).execute(conn).await
            })?;
        }
        let (group, rule) = (group.clone(), rule.cloned());
        tx.changed(now, context, Event::GroupSignInSet { group, rule }).await
    }

    /// Sets which factors whoever wants to reach a target has to have signed in with; `None`: what let
    /// them in is enough. Connections to it of who signed in with less end.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_target_sign_in(
        &self,
        target: &TargetName,
        rule: Option<&SignInRule>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_target(target).await?;
        tx.put_target_sign_in(&id, rule).await?;
        let (target, rule) = (target.clone(), rule.cloned());
        tx.changed(now, context, Event::TargetSignInSet { target, rule }).await
    }
}

impl Tx<'_> {
    async fn put_target_sign_in(
        &mut self,
        id: &Id,
        rule: Option<&SignInRule>,
    ) -> Result<(), Error> {
        on!(self.engine(), conn => {
            diesel::delete(target_sign_in::table.find(id.as_str())).execute(conn).await
        })?;
        let Some(rule) = rule else { return Ok(()) };
        let row =
            (target_sign_in::target_id.eq(id.as_str()), target_sign_in::rule.eq(rule.to_string()));
        on!(self.engine(), conn => {
            diesel::insert_into(target_sign_in::table).values(row).execute(conn).await
        })?;
        Ok(())
    }

    /// The rules that hold for `user` when they sign in.
    pub(super) async fn sign_in_policy(&mut self, user: &Id) -> Result<SignInPolicy, Error> {
        let own: Option<String> = on!(self.engine(), conn => {
            user_sign_in::table
                .find(user.as_str())
                .select(user_sign_in::rule)
                .first(conn)
                .await
                .optional()
        })?;
        let own = own.map(|rule| parse("user_sign_in", &rule)).transpose()?;
        let of_groups: Vec<(String, String)> = on!(self.engine(), conn => {
            group_sign_in::table
                .inner_join(
                    group_members::table.on(group_members::group_name.eq(group_sign_in::group_name)),
                )
                .filter(group_members::user_id.eq(user.as_str()))
                .order(group_sign_in::group_name)
                .select((group_sign_in::group_name, group_sign_in::rule))
                .load(conn)
                .await
        })?;
        let of_groups = of_groups.iter().map(|(group, rule)| {
            Ok((parse("group_sign_in", group)?, parse("group_sign_in", rule)?))
        });
        Ok(SignInPolicy::new(own, of_groups.collect::<Result<_, Error>>()?))
    }

    /// The rules that hold for each user with a live session on `node` of whom, or of whose groups,
    /// something is set.
    pub(super) async fn sign_in_policies(
        &mut self,
        node: &str,
    ) -> Result<HashMap<Id, SignInPolicy>, Error> {
        let live = || {
            let is_live = sessions::node.eq(node).and(sessions::ended_at.is_null());
            sessions::table.filter(is_live).select(sessions::user_id)
        };
        let own: Vec<(String, String)> = on!(self.engine(), conn => {
            user_sign_in::table.filter(user_sign_in::user_id.eq_any(live())).load(conn).await
        })?;
        let of_groups: Vec<(String, String, String)> = on!(self.engine(), conn => {
            group_sign_in::table
                .inner_join(
                    group_members::table.on(group_members::group_name.eq(group_sign_in::group_name)),
                )
                .filter(group_members::user_id.eq_any(live()))
                .order(group_sign_in::group_name)
                .select((group_members::user_id, group_sign_in::group_name, group_sign_in::rule))
                .load(conn)
                .await
        })?;
        let mut rules: HashMap<Id, Set> = HashMap::new();
        for (user, rule) in own {
            let of_user = rules.entry(parse("user_sign_in", &user)?).or_default();
            of_user.0 = Some(parse("user_sign_in", &rule)?);
        }
        for (user, group, rule) in of_groups {
            let of_user = rules.entry(parse("group_members", &user)?).or_default();
            of_user.1.push((parse("group_sign_in", &group)?, parse("group_sign_in", &rule)?));
        }
        let policies = rules.into_iter();
        Ok(policies.map(|(user, (own, groups))| (user, SignInPolicy::new(own, groups))).collect())
    }

    /// The rules of all groups that have one, by their names.
    pub(super) async fn group_sign_ins(&mut self) -> Result<HashMap<String, String>, Error> {
        let rows: Vec<(String, String)> =
            on!(self.engine(), conn => group_sign_in::table.load(conn).await)?;
        Ok(rows.into_iter().collect())
    }

    /// The rules of all targets that have one, by their ids.
    pub(super) async fn target_sign_ins(&mut self) -> Result<HashMap<String, SignInRule>, Error> {
        let rows: Vec<(String, String)> =
            on!(self.engine(), conn => target_sign_in::table.load(conn).await)?;
        target_rules(rows)
    }

    /// The rules of these targets, as far as they have one, by their ids.
    pub(super) async fn target_sign_ins_of(
        &mut self,
        ids: &[String],
    ) -> Result<HashMap<String, SignInRule>, Error> {
        let rows: Vec<(String, String)> = on!(self.engine(), conn => {
            target_sign_in::table.filter(target_sign_in::target_id.eq_any(ids)).load(conn).await
        })?;
        target_rules(rows)
    }
}

fn target_rules(rows: Vec<(String, String)>) -> Result<HashMap<String, SignInRule>, Error> {
    let rows = rows.into_iter();
    rows.map(|(id, rule)| Ok((id, parse("target_sign_in", &rule)?))).collect()
}
