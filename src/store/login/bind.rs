//! Passwords that their owners choose, and authenticators that they bind.
//!
//! Always holds: an authenticator is bound to an account that has none, while its window is open and by a
//! password that may; each change is at the epoch that the login began with, and moves it.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use secrecy::SecretString;

use super::super::pool::on;
use super::super::schema::{binding_passwords, recovery_codes, users};
use super::super::{Error, Store, Tx, parse, seal};
use crate::audit::{Context, Event, Note, Refusal};
use crate::auth::{recovery, totp};
use crate::domain::{Id, TimeStep, UnixTime};

/// A new authenticator to be bound.
#[derive(Debug)]
pub struct NewAuthenticator<'a> {
    /// Whose.
    pub account: &'a Id,
    /// The epoch that must still hold.
    pub epoch: i64,
    /// The secret.
    pub secret: &'a totp::Secret,
    /// The step whose code confirmed it.
    pub step: TimeStep,
}

impl Store {
    /// Puts a password that its owner chose in the place of a one-time one; gives the new epoch. Where
    /// no authenticator is bound, it may bind one as the one-time password could.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn choose_password(
        &self,
        account: &Id,
        epoch: i64,
        hash: &str,
        notes: Vec<Note>,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<i64, Refusal>, Error> {
        use users::dsl;
        let mut tx = self.begin_short().await?;
        let changed: Option<(i64, String, Option<String>)> = on!(tx.engine(), conn => {
            diesel::update(dsl::users)
                .filter(dsl::id.eq(account.as_str()))
                .filter(dsl::epoch.eq(epoch))
                .filter(dsl::disabled_at.is_null())
                .set((
                    dsl::epoch.eq(dsl::epoch + 1),
                    dsl::password_hash.eq(hash),
                    dsl::password_one_time.eq(0),
                    dsl::password_set_at.eq(now.0),
                ))
                .returning((dsl::epoch, dsl::name, dsl::otp_secret))
                .get_result(conn)
                .await
                .optional()
        })?;
        let Some((epoch, name, otp)) = changed else {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        };
        tx.let_password_bind(account, otp.is_none()).await?;
        tx.append_notes(context, notes).await?;
        let name = parse("users", &name)?;
        tx.append(now, context, Event::PasswordSet { name, one_time: false }).await?;
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(Ok(epoch))
    }

    /// Stores the hash of a password anew, because the cost it was hashed at changed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn rehash(&self, account: &Id, old: &str, new: &str) -> Result<(), Error> {
        use users::dsl;
        let mut tx = self.begin_short().await?;
        on!(tx.engine(), conn => {
            diesel::update(dsl::users)
                .filter(dsl::id.eq(account.as_str()))
                .filter(dsl::password_hash.eq(old))
                .set(dsl::password_hash.eq(new))
                .execute(conn)
                .await
        })?;
        tx.commit().await
    }

    /// Binds an authenticator to an account that has none, while its window is open and its password is
    /// one to bind with; gives the account's new epoch and its recovery codes.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn bind(
        &self,
        new: &NewAuthenticator<'_>,
        notes: Vec<Note>,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<(i64, Vec<SecretString>), Refusal>, Error> {
        let codes = recovery::generate()?;
        let mut tx = self.begin_short().await?;
        let Some(epoch) = tx.set_authenticator(new, now).await? else {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AlreadyBound));
        };
        tx.replace_recovery_codes(new.account, &codes).await?;
        tx.append_notes(context, notes).await?;
        let recovery_codes = u32::try_from(codes.len()).unwrap_or(u32::MAX);
        tx.append(now, context, Event::AuthenticatorBound { recovery_codes }).await?;
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(Ok((epoch, codes)))
    }
}

impl Tx<'_> {
    async fn set_authenticator(
        &mut self,
        new: &NewAuthenticator<'_>,
        now: UnixTime,
    ) -> Result<Option<i64>, Error> {
        use users::dsl;
        let id = new.account.as_str();
        self.hold_account(id).await?;
        let sealed = self.seal(otp_place(id), new.secret.expose()).await?;
        let may_bind = binding_passwords::table.find(id).select(binding_passwords::user_id);
        let epoch: Option<i64> = on!(self.engine(), conn => {
            diesel::update(dsl::users)
                .filter(dsl::id.eq(id))
                .filter(dsl::epoch.eq(new.epoch))
                .filter(dsl::disabled_at.is_null())
                .filter(dsl::otp_secret.is_null())
                .filter(dsl::binding_until.gt(now.0))
                .filter(dsl::password_one_time.ne(0).or(dsl::id.eq_any(may_bind)))
                .set((
                    dsl::epoch.eq(dsl::epoch + 1),
                    dsl::otp_secret.eq(sealed),
                    dsl::otp_bound_at.eq(now.0),
                    dsl::otp_last_step.eq(new.step.0),
                    dsl::otp_last_used_at.eq(now.0),
                    dsl::otp_drift_seconds.eq(None::<i64>),
                    dsl::binding_until.eq(None::<i64>),
                ))
                .returning(dsl::epoch)
                .get_result(conn)
                .await
                .optional()
        })?;
        if epoch.is_some() {
            self.let_password_bind(new.account, false).await?;
        }
        Ok(epoch)
    }

    /// Says whether the account's own password may bind an authenticator. Its row is held already.
    pub(in crate::store) async fn let_password_bind(
        &mut self,
        account: &Id,
        may: bool,
    ) -> Result<(), Error> {
        use binding_passwords::dsl;
        let id = account.as_str();
        on!(self.engine(), conn => {
            if may {
                diesel::insert_into(dsl::binding_passwords)
                    .values(dsl::user_id.eq(id))
                    .on_conflict_do_nothing()
                    .execute(conn)
                    .await
            } else {
                diesel::delete(dsl::binding_passwords.find(id)).execute(conn).await
            }
        })?;
        Ok(())
    }

    pub(in crate::store) async fn replace_recovery_codes(
        &mut self,
        account: &Id,
        codes: &[SecretString],
    ) -> Result<(), Error> {
        use recovery_codes::dsl;
        use secrecy::ExposeSecret as _;
        let rows: Vec<_> = codes
            .iter()
            .filter_map(|code| recovery::normalize(code.expose_secret()))
            .map(|code| {
                (dsl::user_id.eq(account.as_str()), dsl::hash.eq(recovery::hash(account, &code)))
            })
            .collect();
        on!(self.engine(), conn => {
            diesel::delete(dsl::recovery_codes.filter(dsl::user_id.eq(account.as_str())))
                .execute(conn)
                .await
        })?;
        for row in rows {
            on!(self.engine(), conn => {
                diesel::insert_into(dsl::recovery_codes).values(row).execute(conn).await
            })?;
        }
        Ok(())
    }

    pub(in crate::store) async fn recovery_left(&mut self, account: &Id) -> Result<u32, Error> {
        use recovery_codes::dsl;
        let left: i64 = on!(self.engine(), conn => {
            dsl::recovery_codes
                .filter(dsl::user_id.eq(account.as_str()))
                .filter(dsl::used_at.is_null())
                .count()
                .get_result(conn)
                .await
        })?;
        Ok(u32::try_from(left).unwrap_or(u32::MAX))
    }
}

/// Where a user's TOTP secret lives.
pub(in crate::store) fn otp_place(user: &str) -> seal::Place<'_> {
    seal::Place { column: "users.otp_secret", row: user }
}
