//! Logins that are remembered: whoever gave a code is not asked for another one for a while, from the
//! same address and with the same public key.
//!
//! Always holds: a login is remembered only as long as every group of its user that says anything says
//! so now, counted from the code; only for the epoch that it was at, so that whatever ends an account's
//! sessions ends it; and never for who came without a key.

use std::collections::HashMap;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::pool::on;
use super::schema::{group_members, group_remember, remembered_logins, users};
use super::{Error, Store, Tx, parse};
use crate::audit::{Context, Event};
use crate::auth::account::Remembered;
use crate::domain::{GroupName, Id, Remember, UnixTime, UserName};

/// A remembered login as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct RememberedRow {
    pub id: String,
    pub user: String,
    pub key: String,
    pub source: String,
    pub code_at: i64,
    pub until: i64,
    pub last_used_at: Option<i64>,
}

type Columns = (String, String, String, String, i64, Option<i64>);

impl Store {
    /// Sets for how long the logins of a group's members are remembered.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_group_remember(
        &self,
        group: &GroupName,
        remember: Remember,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.take_group(group).await?;
        on!(tx.engine(), conn => {
            diesel::delete(group_remember::table.find(group.as_str())).execute(conn).await
        })?;
        let time = match remember {
            Remember::For(time) => Some(time),
            Remember::Off => Some(Duration::ZERO),
            Remember::Unsaid => None,
        };
        if let Some(time) = time {
            let millis = i64::try_from(time.as_millis()).unwrap_or(0);
            let row =
                (group_remember::group_name.eq(group.as_str()), group_remember::millis.eq(millis));
            on!(tx.engine(), conn => {
                diesel::insert_into(group_remember::table).values(row).execute(conn).await
            })?;
        }
        let (group, seconds) = (group.clone(), time.map(|time| time.as_secs()));
        tx.changed(now, context, Event::GroupRememberSet { group, seconds }).await
    }

    /// The logins that are remembered at `now`, of one user or of all; the newest first.
    ///
    /// # Errors
    /// When there is no such user, or the store fails.
    pub async fn remembered(
        &self,
        user: Option<&UserName>,
        now: UnixTime,
    ) -> Result<Vec<RememberedRow>, Error> {
        let mut tx = self.read().await?;
        let rows = match user {
            Some(name) => {
                let id = tx.user_id(name).await?;
                tx.remembered_rows(&id, now).await?
            }
            None => tx.all_remembered(now).await?,
        };
        tx.commit().await?;
        Ok(rows)
    }

    /// Forgets one login of a user by the beginning of its id, or all; gives how many.
    ///
    /// # Errors
    /// When there is no such user or login, or the store fails.
    pub async fn forget_logins(
        &self,
        name: &UserName,
        id: Option<&str>,
        context: &Context,
        now: UnixTime,
    ) -> Result<u64, Error> {
        use remembered_logins::dsl;
        let mut tx = self.begin().await?;
        let user = tx.take_user(name).await?;
        let held = tx.remembered_rows(&user, now).await?;
        let meant = |row: &RememberedRow| id.is_none_or(|prefix| row.id.starts_with(prefix));
        let ids: Vec<String> = held.into_iter().filter(meant).map(|row| row.id).collect();
        match (id, ids.len()) {
            (Some(prefix), 0) => {
                let text = format!("no login of {name} is remembered as {prefix}");
                return Err(Error::Conflict(text));
            }
            (Some(prefix), 2..) => {
                let text = format!("more than one login begins with {prefix}: type more of it");
                return Err(Error::Conflict(text));
            }
            _ => {}
        }
        let forgotten = on!(tx.engine(), conn => {
            diesel::delete(dsl::remembered_logins.filter(dsl::id.eq_any(ids))).execute(conn).await
        })?;
        let logins = u64::try_from(forgotten).unwrap_or(u64::MAX);
        let event = Event::LoginsForgotten { name: name.clone(), logins };
        tx.changed(now, context, event).await?;
        Ok(logins)
    }

    /// Drops logins whose code was given before then.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_old_logins(&self, before: UnixTime) -> Result<usize, Error> {
        use remembered_logins::dsl;
        let mut tx = self.begin().await?;
        let dropped = on!(tx.engine(), conn => {
            diesel::delete(dsl::remembered_logins.filter(dsl::code_at.lt(before.0)))
                .execute(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(dropped)
    }
}

impl Tx<'_> {
    /// For how long logins of `user` are remembered, if at all: the least that a group of theirs says.
    async fn remember_for(&mut self, user: &Id) -> Result<Option<i64>, Error> {
        let least: Option<i64> = on!(self.engine(), conn => {
            group_remember::table
                .inner_join(
                    group_members::table.on(group_members::group_name.eq(group_remember::group_name)),
                )
                .filter(group_members::user_id.eq(user.as_str()))
                .select(diesel::dsl::min(group_remember::millis))
                .first(conn)
                .await
        })?;
        Ok(least.filter(|millis| *millis > 0))
    }

    /// What all groups say, in milliseconds, by their names.
    pub(super) async fn group_remembers(&mut self) -> Result<HashMap<String, i64>, Error> {
        let rows: Vec<(String, i64)> =
            on!(self.engine(), conn => group_remember::table.load(conn).await)?;
        Ok(rows.into_iter().collect())
    }

    async fn remembered_rows(
        &mut self,
        user: &Id,
        now: UnixTime,
    ) -> Result<Vec<RememberedRow>, Error> {
        use remembered_logins::dsl;
        // The same work for whom nothing is remembered of.
        let millis = self.remember_for(user).await?.unwrap_or(0);
        let rows: Vec<Columns> = on!(self.engine(), conn => {
            dsl::remembered_logins
                .inner_join(users::table.on(users::id.eq(dsl::user_id)))
                .filter(dsl::user_id.eq(user.as_str()).and(dsl::epoch.eq(users::epoch)))
                .filter(users::disabled_at.is_null())
                .filter(dsl::code_at.gt(now.0.saturating_sub(millis)))
                .order((dsl::code_at.desc(), dsl::id))
                .select((dsl::id, users::name, dsl::key, dsl::source, dsl::code_at, dsl::last_used_at))
                .load(conn)
                .await
        })?;
        let rows = rows.into_iter().map(|row| remembered(row, millis));
        Ok(rows.filter(|row| now.0 < row.until).collect())
    }

    /// The same of everybody, by their names.
    async fn all_remembered(&mut self, now: UnixTime) -> Result<Vec<RememberedRow>, Error> {
        use remembered_logins::dsl;
        let said: Vec<(String, i64)> = on!(self.engine(), conn => {
            group_remember::table
                .inner_join(
                    group_members::table.on(group_members::group_name.eq(group_remember::group_name)),
                )
                .filter(group_members::user_id.eq_any(dsl::remembered_logins.select(dsl::user_id)))
                .select((group_members::user_id, group_remember::millis))
                .load(conn)
                .await
        })?;
        let mut least: HashMap<String, i64> = HashMap::new();
        for (user, millis) in said {
            least.entry(user).and_modify(|least| *least = millis.min(*least)).or_insert(millis);
        }
        let rows: Vec<(String, Columns)> = on!(self.engine(), conn => {
            dsl::remembered_logins
                .inner_join(users::table.on(users::id.eq(dsl::user_id)))
                .filter(dsl::epoch.eq(users::epoch).and(users::disabled_at.is_null()))
                .order((users::name, dsl::code_at.desc(), dsl::id))
                .select((
                    dsl::user_id,
                    (dsl::id, users::name, dsl::key, dsl::source, dsl::code_at, dsl::last_used_at),
                ))
                .load(conn)
                .await
        })?;
        let rows = rows
            .into_iter()
            .map(|(user, row)| remembered(row, least.get(&user).copied().unwrap_or(0)));
        Ok(rows.filter(|row| now.0 < row.until).collect())
    }

    /// The logins of `user` that are remembered at `now`.
    pub(super) async fn remembered_of(
        &mut self,
        user: &Id,
        now: UnixTime,
    ) -> Result<Vec<Remembered>, Error> {
        let rows = self.remembered_rows(user, now).await?.into_iter();
        let remembered = |row: RememberedRow| {
            let id = parse("remembered_logins", &row.id)?;
            let source = parse("remembered_logins", &row.source)?;
            Ok(Remembered { id, key: row.key, source })
        };
        rows.map(remembered).collect()
    }

    /// Whether a login is remembered of this user, key and address; takes note that it was used.
    pub(super) async fn use_remembered(
        &mut self,
        user: &Id,
        asked: &Remembered,
        now: UnixTime,
    ) -> Result<bool, Error> {
        use remembered_logins::dsl;
        if !self.remembered_of(user, now).await?.contains(asked) {
            return Ok(false);
        }
        let used = on!(self.engine(), conn => {
            diesel::update(dsl::remembered_logins.find(asked.id.as_str()))
                .set(dsl::last_used_at.eq(now.0))
                .execute(conn)
                .await
        })?;
        Ok(used == 1)
    }

    /// Remembers a login for which a code was given just now, if that is what the user's groups say.
    pub(super) async fn remember_login(
        &mut self,
        (user, epoch): (&Id, i64),
        (key, source): (&str, &str),
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        use remembered_logins::dsl;
        let Some(millis) = self.remember_for(user).await? else { return Ok(()) };
        let id = Id::random()?;
        let row = (
            dsl::id.eq(id.as_str()),
            dsl::user_id.eq(user.as_str()),
            dsl::key.eq(key),
            dsl::source.eq(source),
            dsl::epoch.eq(epoch),
            dsl::code_at.eq(now.0),
        );
        on!(self.engine(), conn => {
            diesel::delete(
                dsl::remembered_logins
                    .filter(dsl::user_id.eq(user.as_str()).and(dsl::key.eq(key)))
                    .filter(dsl::source.eq(source)),
            )
            .execute(conn)
            .await?;
            diesel::insert_into(dsl::remembered_logins).values(row).execute(conn).await
        })?;
        let until = UnixTime(now.0.saturating_add(millis));
        self.append(now, context, Event::LoginRemembered { login: id, key: key.to_owned(), until })
            .await
    }
}

/// A login that is remembered for `millis` from its code on.
fn remembered(
    (id, user, key, source, code_at, last_used_at): Columns,
    millis: i64,
) -> RememberedRow {
    let until = code_at.saturating_add(millis);
    RememberedRow { id, user, key, source, code_at, until, last_used_at }
}
