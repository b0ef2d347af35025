//! Users, their passwords, keys and authenticators, as an administrator changes them.

use std::collections::HashSet;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::access::GrantFilter;
use super::login::{A_SITE, CodeFailures, KnownSource};
use super::pool::on;
use super::radius::FactorRow;
use super::schema::{code_failures, recovery_codes, throttle, user_keys, users};
use super::{Error, Store, Tx};
use crate::audit::{Context, Event};
use crate::domain::{
    Id, RadiusMode, Role, SecondFactor, SignInPolicy, UnixTime, UserName, Verifier,
};

/// A user as administrators see it: no secret and no hash.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = users)]
#[allow(missing_docs)]
pub struct UserRow {
    pub id: String,
    pub name: String,
    pub role: String,
    /// The one that applies, be it the user's own, a group's, or the default.
    pub factor: String,
    pub created_at: i64,
    pub disabled_at: Option<i64>,
    #[serde(serialize_with = "super::as_bool")]
    pub password_one_time: i64,
    pub password_set_at: i64,
    pub binding_until: Option<i64>,
    pub otp_bound_at: Option<i64>,
    pub otp_last_used_at: Option<i64>,
    pub otp_drift_seconds: Option<i64>,
}

/// Everything that `user show` tells.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct UserDetail {
    #[serde(flatten)]
    pub user: UserRow,
    /// How RADIUS is asked, if that was set.
    pub radius_mode: Option<RadiusMode>,
    /// The group that the factor is from.
    pub factor_group: Option<String>,
    /// Which factors are asked of them, and where that comes from.
    pub sign_in: SignInPolicy,
    pub groups: Vec<String>,
    pub keys: Vec<KeyRow>,
    pub recovery_codes_left: u32,
    pub locks: Vec<LockRow>,
    /// Wrong codes after a right first factor, from everywhere.
    pub code_failures: Option<CodeFailures>,
    /// Where somebody signed in from with a code, the latest first.
    pub known_sources: Vec<KnownSource>,
}

impl UserDetail {
    /// Whether an authenticator that is bound here answers for the second step.
    pub fn signs_in_by_totp(&self) -> bool {
        self.user.factor == Verifier::Totp.word()
    }
}

/// A public key of a user.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = user_keys)]
#[allow(missing_docs)]
pub struct KeyRow {
    pub fingerprint: String,
    pub public_key: String,
    pub added_at: i64,
}

/// Failures of a user from one source.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = throttle)]
#[allow(missing_docs)]
pub struct LockRow {
    pub source: String,
    pub failures: i64,
    pub last_failed_at: i64,
    pub locked_until: Option<i64>,
}

/// What binds the next authenticator after a reset.
#[derive(Debug, Clone, Copy)]
pub enum BindingPassword<'a> {
    /// A one-time password that was made for it, by its hash.
    OneTime(&'a str),
    /// The password that the account has: for who takes the risk that somebody else knows it.
    Kept,
}

/// A user to be added.
#[derive(Debug)]
pub struct NewUser<'a> {
    /// The name.
    pub name: &'a UserName,
    /// The role.
    pub role: Role,
    /// The second factor; if none is said, what their groups say, or TOTP.
    pub factor: Option<SecondFactor>,
    /// The password's hash.
    pub password_hash: &'a str,
    /// Whether it must be changed at the first login.
    pub one_time: bool,
    /// Until when an authenticator may be bound.
    pub binding_until: UnixTime,
    /// Public keys, each with its fingerprint.
    pub keys: Vec<(String, String)>,
}

impl Store {
    /// Whether there is any user at all.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn has_users(&self) -> Result<bool, Error> {
        let mut tx = self.read().await?;
        let count: i64 = on!(tx.engine(), conn => users::table.count().get_result(conn).await)?;
        tx.commit().await?;
        Ok(count > 0)
    }

    /// Every user, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn users(&self) -> Result<Vec<UserRow>, Error> {
        let mut tx = self.read().await?;
        let mut rows: Vec<UserRow> = on!(tx.engine(), conn => {
            users::table.order(users::name).select(UserRow::as_select()).load(conn).await
        })?;
        let factors = tx.factors().await?;
        tx.commit().await?;
        for row in &mut rows {
            if let Some(factor) = factors.get(&row.id) {
                row.factor.clone_from(factor);
            }
        }
        Ok(rows)
    }

    /// The names of users who are locked from some source at `now`, or from all that are not known.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn locked(&self, now: UnixTime) -> Result<HashSet<String>, Error> {
        let mut tx = self.read().await?;
        let names: Vec<String> = on!(tx.engine(), conn => {
            throttle::table
                .filter(throttle::locked_until.gt(now.0))
                .select(throttle::account)
                .load(conn)
                .await
        })?;
        let limited: Vec<String> = on!(tx.engine(), conn => {
            users::table
                .inner_join(code_failures::table.on(code_failures::user_id.eq(users::id)))
                .filter(code_failures::limited_until.gt(now.0))
                .select(users::name)
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(names.into_iter().chain(limited).collect())
    }

    /// Everything about one user that may be shown.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn user(&self, name: &UserName) -> Result<UserDetail, Error> {
        let mut tx = self.read().await?;
        let id = tx.user_id(name).await?;
        let mut user: UserRow = on!(tx.engine(), conn => {
            users::table.find(id.as_str()).select(UserRow::as_select()).first(conn).await
        })?;
        let keys = on!(tx.engine(), conn => {
            user_keys::table
                .filter(user_keys::user_id.eq(id.as_str()))
                .order(user_keys::added_at)
                .select(KeyRow::as_select())
                .load(conn)
                .await
        })?;
        let locks = on!(tx.engine(), conn => {
            throttle::table
                .filter(throttle::account.eq(name.as_str()))
                .order(throttle::source)
                .select(LockRow::as_select())
                .load(conn)
                .await
        })?;
        let groups = tx.groups_of(&id).await?.iter().map(ToString::to_string).collect();
        let recovery_codes_left = tx.recovery_left(&id).await?;
        let code_failures = tx.code_failures(&id).await?;
        let known_sources = tx.known_sources(&id).await?;
        let FactorRow { factor, mode: radius_mode, group } = tx.second_factor(&id).await?;
        let sign_in = tx.sign_in_policy(&id).await?;
        tx.commit().await?;
        user.factor = factor.to_string();
        let factor_group = group.map(|group| group.to_string());
        Ok(UserDetail {
            user,
            radius_mode,
            factor_group,
            sign_in,
            groups,
            keys,
            recovery_codes_left,
            locks,
            code_failures,
            known_sources,
        })
    }

    /// Adds a user, with an open binding window; the password that is given binds, one-time or not.
    ///
    /// # Errors
    /// When the name is taken, or the store fails.
    pub async fn add_user(
        &self,
        new: &NewUser<'_>,
        context: &Context,
        now: UnixTime,
    ) -> Result<Id, Error> {
        let id = Id::random()?;
        let SecondFactor { factor, .. } = new.factor.unwrap_or(SecondFactor::TOTP);
        let row = (
            users::id.eq(id.as_str()),
            users::name.eq(new.name.as_str()),
            users::role.eq(new.role.word()),
            users::factor.eq(Verifier::Totp.word()),
            users::created_at.eq(now.0),
            users::epoch.eq(1),
            users::password_hash.eq(new.password_hash),
            users::password_one_time.eq(i64::from(new.one_time)),
            users::password_set_at.eq(now.0),
            users::binding_until.eq((factor == Verifier::Totp).then_some(new.binding_until.0)),
            users::otp_last_step.eq(i64::MIN),
        );
        let mut tx = self.begin().await?;
        let added = on!(tx.engine(), conn => {
            diesel::insert_into(users::table).values(row).on_conflict_do_nothing().execute(conn).await
        })?;
        if added == 0 {
            return Err(Error::Conflict(format!("there is a user {} already", new.name)));
        }
        tx.put_user_factor(&id, new.factor).await?;
        tx.let_password_bind(&id, !new.one_time).await?;
        let (name, role) = (new.name.clone(), new.role);
        let one_time_password = new.one_time;
        tx.append(now, context, Event::UserAdded { name, role, factor, one_time_password }).await?;
        if factor == Verifier::Totp {
            let until = new.binding_until;
            let about = about(context, new.name);
            tx.append(now, &about, Event::BindingWindowOpened { until }).await?;
        }
        for (fingerprint, key) in &new.keys {
            tx.add_key(&id, new.name, fingerprint, key, context, now).await?;
        }
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Disables or enables a user; disabling ends their sessions.
    ///
    /// # Errors
    /// When there is none of that name, or it is so already, or the store fails.
    pub async fn set_disabled(
        &self,
        name: &UserName,
        disabled: bool,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        let changed = on!(tx.engine(), conn => {
            let update = diesel::update(users::table.find(id.as_str()));
            if disabled {
                update.filter(users::disabled_at.is_null())
                    .set((users::disabled_at.eq(Some(now.0)), users::epoch.eq(users::epoch + 1)))
                    .execute(conn).await
            } else {
                update.filter(users::disabled_at.is_not_null())
                    .set((users::disabled_at.eq(None::<i64>), users::epoch.eq(users::epoch + 1)))
                    .execute(conn).await
            }
        })?;
        if changed == 0 {
            let state = if disabled { "disabled" } else { "enabled" };
            return Err(Error::Conflict(format!("{name} is {state} already")));
        }
        let name = name.clone();
        let event =
            if disabled { Event::UserDisabled { name } } else { Event::UserEnabled { name } };
        tx.changed(now, context, event).await
    }

    /// Lifts every lock of a user; gives how many sources had failures.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn unlock(
        &self,
        name: &UserName,
        context: &Context,
        now: UnixTime,
    ) -> Result<usize, Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        let lifted = tx.forget_all_failures(name).await?;
        tx.forget_code_failures(&id).await?;
        let sources = u64::try_from(lifted).unwrap_or(u64::MAX);
        tx.changed(now, context, Event::UserUnlocked { name: name.clone(), sources }).await?;
        Ok(lifted)
    }

    /// Removes a user with everything of theirs; sessions and audit events stay. Whoever gets the name
    /// next inherits no lock.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn remove_user(
        &self,
        name: &UserName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        tx.forget_all_failures(name).await?;
        let lost = tx.grants_where(Some(GrantFilter::User(id.to_string()))).await?;
        on!(tx.engine(), conn => diesel::delete(users::table.find(id.as_str())).execute(conn).await)?;
        tx.append_removed(lost, context, now).await?;
        tx.changed(now, context, Event::UserRemoved { name: name.clone() }).await
    }

    /// Sets a user's password; ends their sessions. While they have no authenticator it may bind one.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_password(
        &self,
        name: &UserName,
        hash: &str,
        one_time: bool,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        let otp: Option<String> = on!(tx.engine(), conn => {
            diesel::update(users::table.find(id.as_str()))
                .set((
                    users::epoch.eq(users::epoch + 1),
                    users::password_hash.eq(hash),
                    users::password_one_time.eq(i64::from(one_time)),
                    users::password_set_at.eq(now.0),
                ))
                .returning(users::otp_secret)
                .get_result(conn)
                .await
        })?;
        tx.let_password_bind(&id, !one_time && otp.is_none()).await?;
        tx.changed(now, context, Event::PasswordSet { name: name.clone(), one_time }).await
    }

    /// Unbinds a user's authenticator, if there is one, and opens the binding window for who has
    /// `password`; ends their sessions. Wrong codes are forgotten, and from where they are known.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn reset_otp(
        &self,
        name: &UserName,
        until: UnixTime,
        password: BindingPassword<'_>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        let unbound = on!(tx.engine(), conn => {
            diesel::update(users::table.find(id.as_str()))
                .filter(users::otp_secret.is_not_null())
                .set((
                    users::otp_secret.eq(None::<String>),
                    users::otp_bound_at.eq(None::<i64>),
                    users::otp_drift_seconds.eq(None::<i64>),
                ))
                .execute(conn)
                .await
        })?;
        // Also without an authenticator: a binding may be under way, and a session left of before.
        on!(tx.engine(), conn => {
            diesel::update(users::table.find(id.as_str()))
                .set((users::epoch.eq(users::epoch + 1), users::binding_until.eq(until.0)))
                .execute(conn)
                .await?;
            diesel::delete(recovery_codes::table.filter(recovery_codes::user_id.eq(id.as_str())))
                .execute(conn)
                .await
        })?;
        tx.forget_code_failures(&id).await?;
        tx.forget_known_sources(&id, None).await?;
        match password {
            BindingPassword::OneTime(hash) => tx.put_one_time(&id, hash, now).await?,
            BindingPassword::Kept => tx.let_password_bind(&id, true).await?,
        }
        let about = about(context, name);
        if unbound > 0 {
            tx.append(now, &about, Event::AuthenticatorUnbound).await?;
        }
        let name = name.clone();
        let event = match password {
            BindingPassword::OneTime(_) => Event::PasswordSet { name, one_time: true },
            BindingPassword::Kept => Event::PasswordMayBind { name },
        };
        tx.append(now, context, event).await?;
        tx.changed(now, &about, Event::BindingWindowOpened { until }).await
    }

    /// Adds a public key to a user.
    ///
    /// # Errors
    /// When there is none of that name, or they have the key, or the store fails.
    pub async fn add_key(
        &self,
        name: &UserName,
        fingerprint: &str,
        key: &str,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        tx.add_key(&id, name, fingerprint, key, context, now).await?;
        tx.commit().await
    }

    /// Removes a public key from a user, by its fingerprint.
    ///
    /// # Errors
    /// When they have no such key, or the store fails.
    pub async fn remove_key(
        &self,
        name: &UserName,
        fingerprint: &str,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        let removed = on!(tx.engine(), conn => {
            diesel::delete(user_keys::table.find((id.as_str(), fingerprint))).execute(conn).await
        })?;
        if removed == 0 {
            return Err(Error::Conflict(format!(
                "{name} has no key with that fingerprint: see 'sallyport user key list {name}'"
            )));
        }
        // Whoever signed in with it, or is about to, has to sign in again.
        on!(tx.engine(), conn => {
            diesel::update(users::table.find(id.as_str()))
                .set(users::epoch.eq(users::epoch + 1))
                .execute(conn)
                .await
        })?;
        let event = Event::KeyRemoved { name: name.clone(), key: fingerprint.to_owned() };
        tx.changed(now, context, event).await
    }
}

/// The context of a change by somebody, about the account `name`.
fn about(context: &Context, name: &UserName) -> Context {
    Context { user: Some(name.to_string()), ..context.clone() }
}

impl Tx<'_> {
    /// Forgets the failures of a user from everywhere; gives from how many sources there were some.
    async fn forget_all_failures(&mut self, name: &UserName) -> Result<usize, Error> {
        let mut forgotten = 0;
        // Sites after their networks, as failures take them: no two wait for each other.
        for sites in [false, true] {
            let is_theirs = throttle::account.eq(name.as_str());
            let kind = throttle::source.like(A_SITE).eq(sites);
            forgotten += on!(self.engine(), conn => {
                diesel::delete(throttle::table.filter(is_theirs).filter(kind)).execute(conn).await
            })?;
        }
        Ok(forgotten)
    }

    /// Puts a one-time password in the place of the account's. Its row is held already.
    pub(super) async fn put_one_time(
        &mut self,
        id: &Id,
        hash: &str,
        now: UnixTime,
    ) -> Result<(), Error> {
        on!(self.engine(), conn => {
            diesel::update(users::table.find(id.as_str()))
                .set((
                    users::password_hash.eq(hash),
                    users::password_one_time.eq(1),
                    users::password_set_at.eq(now.0),
                ))
                .execute(conn)
                .await
        })?;
        self.let_password_bind(id, false).await
    }

    pub(super) async fn add_key(
        &mut self,
        id: &Id,
        name: &UserName,
        fingerprint: &str,
        key: &str,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let row = (
            user_keys::user_id.eq(id.as_str()),
            user_keys::fingerprint.eq(fingerprint),
            user_keys::public_key.eq(key),
            user_keys::added_at.eq(now.0),
        );
        let added = on!(self.engine(), conn => {
            diesel::insert_into(user_keys::table).values(row).on_conflict_do_nothing().execute(conn).await
        })?;
        if added == 0 {
            return Err(Error::Conflict(format!("{name} has that key already")));
        }
        self.append(
            now,
            context,
            Event::KeyAdded { name: name.clone(), key: fingerprint.to_owned() },
        )
        .await
    }
}
