//! What answers for the second step of a user or group (TOTP, or RADIUS and how), and which codes a
//! RADIUS server accepted before.
//!
//! Always holds: what is set for a user goes before what is set for a group of theirs, and of these
//! before all others that of the group whose name comes first; a code is stored as a keyed hash, so
//! that a copy of the store does not give it away, and each stands for one sign-in within its life.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::pool::{on, replace};
use super::schema::{group_factors, group_members, used_codes, user_factors, users};
use super::{Error, Store, Tx, parse};
use crate::audit::{Context, Event};
use crate::auth::machine::Codes;
use crate::domain::{GroupName, Id, RadiusMode, SecondFactor, UnixTime, UserName, Verifier};

/// What the key of the hashes is for. The audit key is what it comes from: unlike the sealing keys it
/// never changes, so that nodes cannot have different ones for a while.
const PURPOSE: &str = "sallyport-used-code-1";

/// What answers for the second step of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactorRow {
    /// What.
    pub factor: Verifier,
    /// How a RADIUS server is asked; the configured way if it was not said.
    pub mode: Option<RadiusMode>,
    /// The group that this is set for; `None`: it is the user's own, or the default.
    pub group: Option<GroupName>,
}

impl FactorRow {
    /// The same without where it comes from.
    pub(super) fn second_factor(&self) -> SecondFactor {
        SecondFactor { factor: self.factor, mode: self.mode }
    }
}

impl Store {
    /// Sets what answers for a user's second step; `None`: what their groups say, or TOTP. Their
    /// sessions end.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_user_factor(
        &self,
        name: &UserName,
        second: Option<SecondFactor>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = tx.take_user(name).await?;
        on!(tx.engine(), conn => {
            diesel::update(users::table.find(id.as_str()))
                .set(users::epoch.eq(users::epoch + 1))
                .execute(conn)
                .await
        })?;
        tx.put_user_factor(&id, second).await?;
        let (factor, mode) = (second.map(|s| s.factor), second.and_then(|s| s.mode));
        let name = name.clone();
        tx.changed(now, context, Event::UserFactorSet { name, factor, mode }).await
    }

    /// Sets what answers for the second step of a group's members of whom nothing else is set. Their
    /// sessions stay; logins that are under way do not go on.
    ///
    /// # Errors
    /// When there is none of that name, or the store fails.
    pub async fn set_group_factor(
        &self,
        group: &GroupName,
        second: Option<SecondFactor>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let (factor, mode) = (second.map(|s| s.factor), second.and_then(|s| s.mode));
        tx.take_group(group).await?;
        let row = factor.map(|factor| {
            (
                group_factors::group_name.eq(group.as_str()),
                group_factors::factor.eq(factor.word()),
                group_factors::radius_mode.eq(mode.map(RadiusMode::word)),
            )
        });
        replace!(tx, group_factors::table, group.as_str(), row);
        let group = group.clone();
        tx.changed(now, context, Event::GroupFactorSet { group, factor, mode }).await
    }

    /// Drops the hashes of codes whose life is over.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_used_codes(&self, now: UnixTime) -> Result<usize, Error> {
        use used_codes::dsl;
        let mut tx = self.begin().await?;
        let dropped = on!(tx.engine(), conn => {
            diesel::delete(dsl::used_codes.filter(dsl::expires_at.le(now.0))).execute(conn).await
        })?;
        tx.commit().await?;
        Ok(dropped)
    }
}

impl Tx<'_> {
    /// What answers for the second step of `user`.
    pub(super) async fn second_factor(&mut self, user: &Id) -> Result<FactorRow, Error> {
        if let Some(set) = self.factor_set(user).await? {
            return Ok(set);
        }
        let factor: String = on!(self.engine(), conn => {
            users::table.find(user.as_str()).select(users::factor).first(conn).await
        })?;
        row("users", &factor, None)
    }

    /// What is set for `user` or a group of theirs. It asks for both whatever it finds: a login must
    /// not tell by its time what is set.
    pub(super) async fn factor_set(&mut self, user: &Id) -> Result<Option<FactorRow>, Error> {
        let own: Option<(String, Option<String>)> = on!(self.engine(), conn => {
            user_factors::table
                .find(user.as_str())
                .select((user_factors::factor, user_factors::radius_mode))
                .first(conn)
                .await
                .optional()
        })?;
        let of_group: Option<(String, String, Option<String>)> = on!(self.engine(), conn => {
            group_factors::table
                .inner_join(
                    group_members::table.on(group_members::group_name.eq(group_factors::group_name)),
                )
                .filter(group_members::user_id.eq(user.as_str()))
                .order(group_factors::group_name)
                .select((group_factors::group_name, group_factors::factor, group_factors::radius_mode))
                .first(conn)
                .await
                .optional()
        })?;
        if let Some((factor, mode)) = own {
            return row("user_factors", &factor, mode.as_deref()).map(Some);
        }
        let Some((group, factor, mode)) = of_group else { return Ok(None) };
        let group = Some(parse("group_factors", &group)?);
        Ok(Some(FactorRow { group, ..row("group_factors", &factor, mode.as_deref())? }))
    }

    /// The factors of all users of whom something is set, by the users' ids.
    pub(super) async fn factors(&mut self) -> Result<HashMap<String, String>, Error> {
        let of_groups: Vec<(String, String)> = on!(self.engine(), conn => {
            group_factors::table
                .inner_join(
                    group_members::table.on(group_members::group_name.eq(group_factors::group_name)),
                )
                .order(group_factors::group_name.desc())
                .select((group_members::user_id, group_factors::factor))
                .load(conn)
                .await
        })?;
        let own: Vec<(String, String)> = on!(self.engine(), conn => {
            user_factors::table
                .select((user_factors::user_id, user_factors::factor))
                .load(conn)
                .await
        })?;
        // What goes first comes last here, and stays.
        Ok(of_groups.into_iter().chain(own).collect())
    }

    /// What is set for all groups, by their names.
    pub(super) async fn group_factors(
        &mut self,
    ) -> Result<HashMap<String, (String, Option<String>)>, Error> {
        let rows: Vec<(String, String, Option<String>)> =
            on!(self.engine(), conn => group_factors::table.load(conn).await)?;
        Ok(rows.into_iter().map(|(group, factor, mode)| (group, (factor, mode))).collect())
    }

    /// Sets what answers for a user's second step, in place of what was set before.
    pub(super) async fn put_user_factor(
        &mut self,
        user: &Id,
        second: Option<SecondFactor>,
    ) -> Result<(), Error> {
        let row = second.map(|SecondFactor { factor, mode }| {
            (
                user_factors::user_id.eq(user.as_str()),
                user_factors::factor.eq(factor.word()),
                user_factors::radius_mode.eq(mode.map(RadiusMode::word)),
            )
        });
        replace!(self, user_factors::table, user.as_str(), row);
        Ok(())
    }

    /// Uses codes up; whether none of them was used by this user within its life.
    pub(super) async fn use_codes(
        &mut self,
        user: &Id,
        codes: &Codes,
        now: UnixTime,
        until: UnixTime,
    ) -> Result<bool, Error> {
        use used_codes::dsl;
        let key = self.store.audit_key.derive(PURPOSE).map_err(super::seal::Error::from)?;
        let mut hashes: Vec<String> = codes.iter().map(|code| hash(&key, user, code)).collect();
        // The same answer may be asked for twice in one login.
        hashes.sort();
        hashes.dedup();
        for hash in hashes {
            on!(self.engine(), conn => {
                diesel::delete(dsl::used_codes.find((user.as_str(), &hash)))
                    .filter(dsl::expires_at.le(now.0))
                    .execute(conn)
                    .await
            })?;
            let row =
                (dsl::user_id.eq(user.as_str()), dsl::hash.eq(&hash), dsl::expires_at.eq(until.0));
            let used = on!(self.engine(), conn => {
                diesel::insert_into(dsl::used_codes)
                    .values(row)
                    .on_conflict_do_nothing()
                    .execute(conn)
                    .await
            })?;
            if used != 1 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn row(table: &'static str, factor: &str, mode: Option<&str>) -> Result<FactorRow, Error> {
    let mode = mode.map(|mode| parse(table, mode)).transpose()?;
    Ok(FactorRow { factor: parse(table, factor)?, mode, group: None })
}

/// What is stored of a code. There are few codes, so the hash needs a key that is not in the store.
fn hash(key: &Zeroizing<[u8; 32]>, user: &Id, code: &str) -> String {
    // A key of the length of a block, as HMAC pads shorter ones itself (RFC 2104 section 2).
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key.iter()) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new(&(*block).into());
    mac.update(user.as_str().as_bytes());
    mac.update(b" ");
    mac.update(code.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_of_the_key_the_user_and_the_code() {
        let key = |byte| Zeroizing::new([byte; 32]);
        let user = |byte| Id::from_random([byte; Id::LEN]);
        let one = hash(&key(1), &user(1), "123456");
        assert_eq!(one, hash(&key(1), &user(1), "123456"));
        assert_eq!(one.len(), 64);
        assert_ne!(one, hash(&key(2), &user(1), "123456"));
        assert_ne!(one, hash(&key(1), &user(2), "123456"));
        assert_ne!(one, hash(&key(1), &user(1), "123457"));
    }
}
