//! What signed-in users change of their own account.
//!
//! Always holds: a change commits only if the account's epoch is still the one of the session that it
//! is made in, and its event is written with it. What ends the user's other sessions gives the new
//! epoch, for the session that must go on.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use secrecy::SecretString;

use super::login::otp_place;
use super::pool::on;
use super::schema::{recovery_codes, user_keys, users::dsl};
use super::{Error, NewAuthenticator, Store, Tx};
use crate::audit::{Context, Event, Note, Refusal};
use crate::auth::recovery;
use crate::domain::{Id, UnixTime, UserName, Verifier};

impl Store {
    /// Replaces an account's recovery codes; its sessions go on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn renew_recovery_codes(
        &self,
        (account, epoch): (&Id, i64),
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<Vec<SecretString>, Refusal>, Error> {
        let codes = recovery::generate()?;
        let mut tx = self.begin().await?;
        if !tx.hold_bound(account, epoch).await? {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        }
        tx.replace_recovery_codes(account, &codes).await?;
        let recovery_codes = u32::try_from(codes.len()).unwrap_or(u32::MAX);
        tx.append(now, context, Event::RecoveryCodesRenewed { recovery_codes }).await?;
        tx.commit().await?;
        Ok(Ok(codes))
    }

    /// Unbinds an account's authenticator and lets another be bound `until` then, with the one-time
    /// password of this hash; gives the new epoch. Wrong codes are forgotten, which were given with another
    /// password, and from where the user is known: else they could be kept out for those, from everywhere.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn unbind(
        &self,
        (account, epoch): (&Id, i64),
        name: &UserName,
        (until, one_time): (UnixTime, &str),
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<i64, Refusal>, Error> {
        let mut tx = self.begin().await?;
        if !tx.hold_bound(account, epoch).await? {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        }
        let new = (
            dsl::epoch.eq(dsl::epoch + 1),
            dsl::otp_secret.eq(None::<String>),
            dsl::otp_bound_at.eq(None::<i64>),
            dsl::otp_drift_seconds.eq(None::<i64>),
            dsl::binding_until.eq(until.0),
        );
        on!(tx.engine(), conn => {
            diesel::update(dsl::users.find(account.as_str())).set(new).execute(conn).await?;
            diesel::delete(recovery_codes::table.filter(recovery_codes::user_id.eq(account.as_str())))
                .execute(conn)
                .await
        })?;
        tx.forget_code_failures(account).await?;
        tx.forget_known_sources(account, None).await?;
        tx.put_one_time(account, one_time, now).await?;
        tx.append(now, context, Event::AuthenticatorUnbound).await?;
        let password = Event::PasswordSet { name: name.clone(), one_time: true };
        tx.append(now, context, password).await?;
        tx.append(now, context, Event::BindingWindowOpened { until }).await?;
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(Ok(epoch + 1))
    }

    /// Puts a new authenticator in the place of the bound one, with new recovery codes; gives the
    /// new epoch and those. The user is known from where they do it only, if they were before.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn rebind(
        &self,
        new: &NewAuthenticator<'_>,
        notes: Vec<Note>,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<(i64, Vec<SecretString>), Refusal>, Error> {
        let codes = recovery::generate()?;
        let id = new.account.as_str();
        let mut tx = self.begin().await?;
        if !tx.hold_bound(new.account, new.epoch).await? {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        }
        let sealed = tx.seal(otp_place(id), new.secret.expose()).await?;
        let row = (
            dsl::epoch.eq(dsl::epoch + 1),
            dsl::otp_secret.eq(sealed),
            dsl::otp_bound_at.eq(now.0),
            dsl::otp_last_step.eq(new.step.0),
            dsl::otp_last_used_at.eq(now.0),
            dsl::otp_drift_seconds.eq(None::<i64>),
            dsl::binding_until.eq(None::<i64>),
        );
        on!(tx.engine(), conn => {
            diesel::update(dsl::users.find(id)).set(row).execute(conn).await
        })?;
        tx.forget_known_sources(new.account, context.source.as_ref()).await?;
        tx.replace_recovery_codes(new.account, &codes).await?;
        tx.append_notes(context, notes).await?;
        let recovery_codes = u32::try_from(codes.len()).unwrap_or(u32::MAX);
        tx.append(now, context, Event::AuthenticatorUnbound).await?;
        tx.append(now, context, Event::AuthenticatorBound { recovery_codes }).await?;
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(Ok((new.epoch + 1, codes)))
    }

    /// Adds keys, each with its fingerprint, to the user's own: all of them or none.
    ///
    /// # Errors
    /// When they have one of them, or the store fails.
    pub async fn add_own_keys(
        &self,
        (account, epoch): (&Id, i64),
        name: &UserName,
        keys: &[(String, String)],
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<(), Refusal>, Error> {
        let mut tx = self.begin().await?;
        if !tx.hold_proven(account, epoch).await? {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        }
        for (fingerprint, key) in keys {
            tx.add_key(account, name, fingerprint, key, context, now).await?;
        }
        tx.commit().await?;
        Ok(Ok(()))
    }

    /// Removes one of the user's own keys; gives the new epoch, since whoever signed in with it has to
    /// sign in again.
    ///
    /// # Errors
    /// When they have no such key, or the store fails.
    pub async fn remove_own_key(
        &self,
        (account, epoch): (&Id, i64),
        name: &UserName,
        fingerprint: &str,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<i64, Refusal>, Error> {
        let mut tx = self.begin().await?;
        let held = on!(tx.engine(), conn => {
            diesel::update(dsl::users)
                .filter(dsl::id.eq(account.as_str()).and(dsl::epoch.eq(epoch)))
                .filter(dsl::disabled_at.is_null())
                .set(dsl::epoch.eq(dsl::epoch + 1))
                .execute(conn)
                .await
        })?;
        if held != 1 {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        }
        let removed = on!(tx.engine(), conn => {
            diesel::delete(user_keys::table.find((account.as_str(), fingerprint))).execute(conn).await
        })?;
        if removed == 0 {
            tx.roll_back().await?;
            let text = "you have no key with that fingerprint: 'keys' lists those that you have";
            return Err(Error::Conflict(text.to_owned()));
        }
        let event = Event::KeyRemoved { name: name.clone(), key: fingerprint.to_owned() };
        tx.append(now, context, event).await?;
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(Ok(epoch + 1))
    }
}

impl Tx<'_> {
    /// Whether the account has what a code is checked by, its authenticator or a RADIUS server, and is as
    /// the session found it; held as by [`Self::hold_bound`].
    async fn hold_proven(&mut self, account: &Id, epoch: i64) -> Result<bool, Error> {
        if self.hold_bound(account, epoch).await? {
            return Ok(true);
        }
        let held = on!(self.engine(), conn => {
            diesel::update(dsl::users)
                .filter(dsl::id.eq(account.as_str()).and(dsl::epoch.eq(epoch)))
                .filter(dsl::disabled_at.is_null())
                .set(dsl::epoch.eq(dsl::epoch))
                .execute(conn)
                .await
        })?;
        Ok(held == 1 && self.second_factor(account).await?.factor == Verifier::Radius)
    }

    /// Whether the account has an authenticator and is as the session found it. An update that changes
    /// nothing holds the row until the transaction ends.
    async fn hold_bound(&mut self, account: &Id, epoch: i64) -> Result<bool, Error> {
        let held = on!(self.engine(), conn => {
            diesel::update(dsl::users)
                .filter(dsl::id.eq(account.as_str()).and(dsl::epoch.eq(epoch)))
                .filter(dsl::disabled_at.is_null().and(dsl::otp_secret.is_not_null()))
                .set(dsl::epoch.eq(dsl::epoch))
                .execute(conn)
                .await
        })?;
        Ok(held == 1)
    }
}
