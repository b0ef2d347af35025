//! What record mode needs to know of targets: accounts with their secrets, trusted host keys.
//!
//! Always holds: an account's secret is sealed for its own row, and opened only for the connection
//! that uses it.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use zeroize::Zeroizing;

use super::pool::on;
use super::schema::{target_accounts, target_keys, targets};
use super::{Error, Store, Tx, access::no_such, parse, seal};
use crate::audit::{Context, Event};
use crate::domain::{AccountAuth, AccountName, Id, TargetName, UnixTime};

/// An account as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountRow {
    /// Its name on the target.
    pub account: String,
    /// How the bastion signs in as it.
    pub auth: String,
    /// Whether a secret is stored.
    pub secret: bool,
    /// When it was added.
    pub created_at: i64,
}

/// A host key, or an authority's key, that is trusted for a target.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Serialize)]
pub struct TrustedKey {
    /// "ALGORITHM BASE64".
    pub key: String,
    /// 1 if it is an authority that signs host certificates.
    #[serde(serialize_with = "super::as_bool")]
    pub authority: i64,
    /// When it was pinned.
    pub pinned_at: i64,
}

/// How to sign in on a target as one account.
pub struct AccountSecret {
    /// The way.
    pub auth: AccountAuth,
    /// The private key or password.
    pub secret: Option<Zeroizing<Vec<u8>>>,
}

impl Store {
    /// Adds an account to a target, or replaces it.
    ///
    /// # Errors
    /// When there is no such target, or the store fails.
    pub async fn set_account(
        &self,
        target: &TargetName,
        account: &AccountName,
        (auth, secret): (AccountAuth, Option<&[u8]>),
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_target(target).await?;
        let row = row_of(id.as_str(), account.as_str());
        let sealed = match secret {
            Some(secret) => Some(tx.seal(place(&row), secret).await?),
            None => None,
        };
        let row = (
            target_accounts::target_id.eq(id.as_str()),
            target_accounts::name.eq(account.as_str()),
            target_accounts::auth.eq(auth.word()),
            target_accounts::secret.eq(sealed),
            target_accounts::created_at.eq(now.0),
        );
        on!(tx.engine(), conn => {
            diesel::delete(target_accounts::table.find((id.as_str(), account.as_str())))
                .execute(conn)
                .await?;
            diesel::insert_into(target_accounts::table).values(row).execute(conn).await
        })?;
        let (target, account) = (target.clone(), account.clone());
        tx.changed(now, context, Event::AccountAdded { target, account, auth }).await
    }

    /// Removes an account from a target.
    ///
    /// # Errors
    /// When it is not there, or the store fails.
    pub async fn remove_account(
        &self,
        target: &TargetName,
        account: &AccountName,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_target(target).await?;
        let removed = on!(tx.engine(), conn => {
            diesel::delete(target_accounts::table.find((id.as_str(), account.as_str())))
                .execute(conn)
                .await
        })?;
        if removed == 0 {
            return Err(Error::Conflict(format!("{target} has no account {account}")));
        }
        let (target, account) = (target.clone(), account.clone());
        tx.changed(now, context, Event::AccountRemoved { target, account }).await
    }

    /// A target's accounts, by name.
    ///
    /// # Errors
    /// When there is no such target, or the store fails.
    pub async fn accounts(&self, target: &TargetName) -> Result<Vec<AccountRow>, Error> {
        type Columns = (String, String, Option<String>, i64);
        let mut tx = self.read_short().await?;
        let id = tx.target_id(target).await?;
        let rows: Vec<Columns> = on!(tx.engine(), conn => {
            target_accounts::table
                .filter(target_accounts::target_id.eq(id.as_str()))
                .order(target_accounts::name)
                .select((
                    target_accounts::name,
                    target_accounts::auth,
                    target_accounts::secret,
                    target_accounts::created_at,
                ))
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        let row = |(account, auth, secret, created_at): Columns| AccountRow {
            account,
            auth,
            secret: secret.is_some(),
            created_at,
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// How to sign in on the target `id` as `account`; `None` if nobody said.
    ///
    /// # Errors
    /// When the store fails, or the secret does not open.
    pub async fn account_secret(
        &self,
        target: &Id,
        account: &AccountName,
    ) -> Result<Option<AccountSecret>, Error> {
        let mut tx = self.read_short().await?;
        let found: Option<(String, Option<String>)> = on!(tx.engine(), conn => {
            target_accounts::table
                .find((target.as_str(), account.as_str()))
                .select((target_accounts::auth, target_accounts::secret))
                .first(conn)
                .await
                .optional()
        })?;
        tx.commit().await?;
        let Some((auth, sealed)) = found else { return Ok(None) };
        let row = row_of(target.as_str(), account.as_str());
        let secret = sealed.map(|sealed| self.keyring().open(place(&row), &sealed)).transpose()?;
        Ok(Some(AccountSecret { auth: parse("target_accounts", &auth)?, secret }))
    }

    /// Trusts a key for a target; with `only`, no other from now on.
    ///
    /// # Errors
    /// When there is no such target, or the store fails.
    pub async fn pin_key(
        &self,
        target: &TargetName,
        (key, fingerprint): (&str, &str),
        authority: bool,
        context: &Context,
        now: UnixTime,
    ) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let id = tx.target_id(target).await?;
        let row = (
            target_keys::target_id.eq(id.as_str()),
            target_keys::key.eq(key),
            target_keys::authority.eq(i64::from(authority)),
            target_keys::pinned_at.eq(now.0),
        );
        let added = on!(tx.engine(), conn => {
            diesel::insert_into(target_keys::table).values(row).on_conflict_do_nothing().execute(conn).await
        })?;
        if added == 0 {
            tx.roll_back().await?;
            return Ok(false);
        }
        let (target, key) = (target.clone(), fingerprint.to_owned());
        tx.changed(now, context, Event::HostKeyPinned { target, key, authority }).await?;
        Ok(true)
    }

    /// Trusts the first host key that a target showed; false if another was trusted meanwhile.
    ///
    /// # Errors
    /// When there is no such target, or the store fails.
    pub async fn pin_first_key(
        &self,
        target: &TargetName,
        (key, fingerprint): (&str, &str),
        context: &Context,
        now: UnixTime,
    ) -> Result<bool, Error> {
        let mut tx = self.begin_short().await?;
        let id = tx.take_target(target).await?; // Two first sights come one after the other.
        let trusted = tx.trusted_keys(&id).await?;
        if !trusted.is_empty() {
            tx.roll_back().await?;
            return Ok(trusted.iter().any(|known| known.key == key));
        }
        let row = (
            target_keys::target_id.eq(id.as_str()),
            target_keys::key.eq(key),
            target_keys::authority.eq(0),
            target_keys::pinned_at.eq(now.0),
        );
        on!(tx.engine(), conn => {
            diesel::insert_into(target_keys::table).values(row).execute(conn).await
        })?;
        let (target, key) = (target.clone(), fingerprint.to_owned());
        let event = Event::HostKeyPinned { target, key, authority: false };
        tx.changed(now, context, event).await?;
        Ok(true)
    }

    /// Trusts no key for a target any more; gives how many there were. `fingerprint` names them for
    /// the audit log.
    ///
    /// # Errors
    /// When there is no such target, or the store fails.
    pub async fn unpin_keys(
        &self,
        target: &TargetName,
        fingerprint: impl Fn(&str) -> String,
        context: &Context,
        now: UnixTime,
    ) -> Result<usize, Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_target(target).await?;
        let keys = tx.trusted_keys(&id).await?;
        on!(tx.engine(), conn => {
            diesel::delete(target_keys::table.filter(target_keys::target_id.eq(id.as_str())))
                .execute(conn)
                .await
        })?;
        for key in &keys {
            let (target, key) = (target.clone(), fingerprint(&key.key));
            tx.append(now, context, Event::HostKeyUnpinned { target, key }).await?;
        }
        tx.bump_revision().await?;
        tx.commit().await?;
        Ok(keys.len())
    }

    /// The keys that are trusted for the target `id`, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn trusted_keys(&self, target: &Id) -> Result<Vec<TrustedKey>, Error> {
        let mut tx = self.read_short().await?;
        let keys = tx.trusted_keys(target).await?;
        tx.commit().await?;
        Ok(keys)
    }
}

impl Tx<'_> {
    pub(super) async fn target_id(&mut self, name: &TargetName) -> Result<Id, Error> {
        let id: Option<String> = on!(self.engine(), conn => {
            targets::table.filter(targets::name.eq(name.as_str())).select(targets::id).first(conn).await.optional()
        })?;
        parse("targets", &id.ok_or_else(|| no_such("target", name))?)
    }

    /// The id of the target `name`, whose row is held until the transaction ends. Before what belongs to
    /// the target is changed: whoever removes it takes these rows in that order.
    pub(super) async fn take_target(&mut self, name: &TargetName) -> Result<Id, Error> {
        let id: Option<String> = on!(self.engine(), conn => {
            diesel::update(targets::table.filter(targets::name.eq(name.as_str())))
                .set(targets::name.eq(name.as_str()))
                .returning(targets::id)
                .get_result(conn)
                .await
                .optional()
        })?;
        parse("targets", &id.ok_or_else(|| no_such("target", name))?)
    }

    /// Holds a target's row until the transaction ends.
    pub(super) async fn hold_target(&mut self, id: &str) -> Result<(), Error> {
        on!(self.engine(), conn => {
            diesel::update(targets::table.find(id))
                .set(targets::name.eq(targets::name))
                .execute(conn)
                .await
        })?;
        Ok(())
    }

    async fn trusted_keys(&mut self, target: &Id) -> Result<Vec<TrustedKey>, Error> {
        Ok(on!(self.engine(), conn => {
            target_keys::table
                .filter(target_keys::target_id.eq(target.as_str()))
                .order((target_keys::pinned_at, target_keys::key))
                .select((target_keys::key, target_keys::authority, target_keys::pinned_at))
                .load(conn)
                .await
        })?)
    }
}

pub(super) fn row_of(target: &str, account: &str) -> String {
    format!("{target}/{account}")
}

pub(super) fn place(row: &str) -> seal::Place<'_> {
    seal::Place { column: "target_accounts.secret", row }
}
