//! Which key files belong to a store.
//!
//! Always holds: a store that was opened has the audit key that signed its log so far, and a sealing
//! key file with the key that its secrets were last sealed under.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::pool::on;
use super::schema::store_keys::dsl;
use super::{Error, Opening, Store, Tx};

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
                (dsl::kind.eq(SEALING), dsl::key.eq(self.keyring().primary())),
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
        if !self.keyring().holds(&sealing) {
            let here = self.keyring().primary();
            return Err(Error::OtherKey { which: "sealing", here, store: sealing });
        }
        tx.commit().await
    }
}

impl Tx<'_> {
    /// Remembers the key that every secret is sealed under now.
    pub(super) async fn set_sealing_key(&mut self, id: &str) -> Result<(), Error> {
        on!(self.engine(), conn => {
            diesel::update(dsl::store_keys.find(SEALING)).set(dsl::key.eq(id)).execute(conn).await
        })?;
        Ok(())
    }
}
