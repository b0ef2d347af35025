//! Which key files belong to a store, and which key seals its secrets.
//!
//! Always holds: a store that was opened has the audit key that signed its log so far, and a sealing
//! key file with the key that seals; secrets are sealed under that one in the transaction that writes
//! them, so that none is under another when a rotation has ended; and no key seals that a node which
//! shares the store does not hold. Whoever seals holds whose secret it is first, then the row that says
//! which key seals, then the secret's.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use serde::Serialize;

use super::login::otp_place;
use super::pool::on;
use super::schema::store_keys::dsl;
use super::schema::{nodes, target_accounts, users};
use super::seal::{self, Place};
use super::{Error, Opening, Store, Tx, target};
use crate::audit::{Context, Event};
use crate::domain::{UnixTime, noted};

const AUDIT: &str = "audit";
const SEALING: &str = "sealing";

impl Store {
    /// Refuses keys that are not the store's; a store that knows none yet takes these.
    pub(super) async fn check_keys(&self, opening: Opening) -> Result<(), Error> {
        let mut tx = match opening {
            Opening::Prepare => self.begin().await?,
            Opening::AsItIs => self.read().await?,
        };
        if opening == Opening::Prepare {
            let rows = [
                (dsl::kind.eq(AUDIT), dsl::key.eq(self.audit_key().public().fingerprint())),
                (dsl::kind.eq(SEALING), dsl::key.eq(self.keyring().first())),
            ];
            for row in rows {
                on!(tx.engine(), conn => {
                    diesel::insert_into(dsl::store_keys)
                        .values(row)
                        .on_conflict_do_nothing()
                        .execute(conn)
                        .await
                })?;
            }
        }
        let known: Vec<(String, String)> = on!(tx.engine(), conn => {
            dsl::store_keys.select((dsl::kind, dsl::key)).load(conn).await
        })?;
        let of = |kind| known.iter().find(|(of, _)| of == kind).map(|(_, key)| key.clone());
        let (Some(audit), Some(sealing)) = (of(AUDIT), of(SEALING)) else {
            return Err(Error::Older);
        };
        let here = self.audit_key().public().fingerprint();
        if here != audit {
            return Err(Error::OtherKey { which: "audit", here, store: audit });
        }
        if !self.keyring().ids()?.contains(&sealing) {
            let here = self.keyring().first();
            return Err(Error::OtherKey { which: "sealing", here, store: sealing });
        }
        tx.commit().await
    }

    /// The key that seals now, and for every key of the file or the store how many secrets are under it.
    ///
    /// # Errors
    /// When the store or the file fails.
    pub async fn sealing_keys(&self) -> Result<Vec<SealingKey>, Error> {
        let held = self.keyring().ids()?;
        let mut tx = self.read().await?;
        let seals = tx.key_that_seals().await?;
        let sealed = tx.sealed().await?;
        tx.commit().await?;
        let under = |text: &str| text.split('.').nth(1).unwrap_or_default().to_owned();
        let mut ids: Vec<String> = sealed.iter().map(|secret| under(&secret.text)).collect();
        let of = |id: &str, ids: &[String]| ids.iter().filter(|of| *of == id).count() as u64;
        let mut all = held.clone();
        all.extend(ids.clone());
        all.sort();
        all.dedup();
        ids.sort();
        let key = |id: String| SealingKey {
            seals: id == seals,
            held: held.contains(&id),
            secrets: of(&id, &ids),
            id,
        };
        Ok(all.into_iter().map(key).collect())
    }

    /// Lets the key `id` seal from now on, and seals every secret anew that is under another; gives how
    /// many there were. May be run again where it was cut off.
    ///
    /// # Errors
    /// When a node does not hold the key, another rotation began meanwhile, a secret cannot be opened, or
    /// the store fails; what was sealed anew before stays so.
    pub async fn rotate(&self, id: &str, context: &Context, now: UnixTime) -> Result<u64, Error> {
        if !self.keyring().ids()?.iter().any(|held| held == id) {
            let file = self.keyring().path().display();
            return Err(Error::Conflict(format!(
                "there is no key {} in {file}: see 'sallyport key list'",
                noted(id)
            )));
        }
        let mut tx = self.begin().await?;
        // First, since who seals holds it until the end: what is sealed from here on is under the key.
        on!(tx.engine(), conn => {
            diesel::update(dsl::store_keys.find(SEALING)).set(dsl::key.eq(id)).execute(conn).await
        })?;
        if let Some((node, _)) = tx.node_without(id).await? {
            return Err(Error::Conflict(format!(
                "{node} does not hold the key {id}: copy the sealing key file to it (or restart it, if \
                 it gets the file as a credential), and try again some seconds later"
            )));
        }
        let mut old = tx.sealed().await?;
        old.retain(|secret| !secret.text.starts_with(&seal::under(id)));
        let secrets = old.len() as u64;
        tx.append(now, context, Event::KeyRotated { key: id.to_owned(), secrets }).await?;
        tx.commit().await?;
        // Each by itself: logins go on meanwhile, and open what is under either key.
        for secret in old {
            let mut tx = self.begin().await?;
            tx.reseal(id, &secret).await?;
            tx.commit().await?;
        }
        Ok(secrets)
    }

    /// Asks every node to say at once which sealing keys it holds.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn ask_nodes(&self) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.bump_revision().await?;
        tx.commit().await
    }

    /// A node that has not said that it holds the key `id`, and how often it has said that it lives.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn node_without(&self, id: &str) -> Result<Option<(String, i64)>, Error> {
        let mut tx = self.read().await?;
        let found = tx.node_without(id).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// Forgets a node until it is there again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_node(&self, node: &str) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        on!(tx.engine(), conn => {
            diesel::delete(nodes::table.find(node)).execute(conn).await
        })?;
        tx.commit().await
    }
}

/// A key of the sealing key file, or one that secrets are under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SealingKey {
    /// Its id.
    pub id: String,
    /// Whether it seals.
    pub seals: bool,
    /// Whether the file here holds it.
    pub held: bool,
    /// How many secrets are sealed under it.
    pub secrets: u64,
}

/// A sealed secret, and where it is.
struct Sealed {
    of: Owner,
    text: String,
}

/// Whose secret.
enum Owner {
    User(String),
    Account { target: String, name: String },
}

impl Tx<'_> {
    /// Seals `secret` for `place`, under the key that seals until this transaction ends.
    pub(super) async fn seal(&mut self, place: Place<'_>, secret: &[u8]) -> Result<String, Error> {
        // An update that changes nothing holds the row against a rotation.
        on!(self.engine(), conn => {
            diesel::update(dsl::store_keys.find(SEALING)).set(dsl::key.eq(dsl::key)).execute(conn).await
        })?;
        let id = self.key_that_seals().await?;
        Ok(self.store.keyring.seal(&id, place, secret)?)
    }

    async fn key_that_seals(&mut self) -> Result<String, Error> {
        Ok(on!(self.engine(), conn => {
            dsl::store_keys.find(SEALING).select(dsl::key).first(conn).await
        })?)
    }

    /// A node that uses the store and has not said that it holds the key `id`; and how often it has said
    /// that it lives.
    async fn node_without(&mut self, id: &str) -> Result<Option<(String, i64)>, Error> {
        let nodes: Vec<(String, i64, String)> =
            on!(self.engine(), conn => nodes::table.order(nodes::node).load(conn).await)?;
        let without = |keys: &str| !keys.split(' ').any(|held| held == id);
        let found = nodes.into_iter().find(|(_, _, keys)| without(keys));
        Ok(found.map(|(node, beats, _)| (node, beats)))
    }

    /// Holds the row that says which key seals; refuses if that is not `id` any more, since a rotation
    /// that began later seals under its own, also what this one would not have touched yet.
    async fn still_seals(&mut self, id: &str) -> Result<(), Error> {
        let held = on!(self.engine(), conn => {
            diesel::update(dsl::store_keys.find(SEALING))
                .filter(dsl::key.eq(id))
                .set(dsl::key.eq(dsl::key))
                .execute(conn)
                .await
        })?;
        if held == 1 {
            return Ok(());
        }
        let seals = self.key_that_seals().await?;
        Err(Error::Conflict(format!(
            "the key {seals} seals by now: another rotation began meanwhile, and goes on"
        )))
    }

    /// Every sealed secret.
    async fn sealed(&mut self) -> Result<Vec<Sealed>, Error> {
        use target_accounts::dsl as accounts;
        let of_users: Vec<(String, Option<String>)> = on!(self.engine(), conn => {
            users::table
                .filter(users::otp_secret.is_not_null())
                .select((users::id, users::otp_secret))
                .load(conn)
                .await
        })?;
        let of_accounts: Vec<(String, String, Option<String>)> = on!(self.engine(), conn => {
            accounts::target_accounts
                .filter(accounts::secret.is_not_null())
                .select((accounts::target_id, accounts::name, accounts::secret))
                .load(conn)
                .await
        })?;
        let users = of_users
            .into_iter()
            .filter_map(|(id, text)| Some(Sealed { of: Owner::User(id), text: text? }));
        let accounts = of_accounts.into_iter().filter_map(|(target, name, text)| {
            Some(Sealed { of: Owner::Account { target, name }, text: text? })
        });
        Ok(users.chain(accounts).collect())
    }

    /// Seals a secret anew under the key `id`, if it is still what it was.
    async fn reseal(&mut self, id: &str, secret: &Sealed) -> Result<(), Error> {
        let keyring = &self.store.keyring;
        let anew = |place| keyring.seal(id, place, &keyring.open(place, &secret.text)?);
        match &secret.of {
            Owner::User(user) => {
                self.hold_account(user).await?;
                self.still_seals(id).await?;
                let new = anew(otp_place(user))?;
                on!(self.engine(), conn => {
                    diesel::update(users::table.find(user))
                        .filter(users::otp_secret.eq(&secret.text))
                        .set(users::otp_secret.eq(&new))
                        .execute(conn)
                        .await
                })?;
            }
            Owner::Account { target, name } => {
                self.hold_target(target).await?;
                self.still_seals(id).await?;
                let new = anew(target::place(&target::row_of(target, name)))?;
                on!(self.engine(), conn => {
                    diesel::update(target_accounts::table.find((target, name)))
                        .filter(target_accounts::secret.eq(&secret.text))
                        .set(target_accounts::secret.eq(&new))
                        .execute(conn)
                        .await
                })?;
            }
        }
        Ok(())
    }
}
