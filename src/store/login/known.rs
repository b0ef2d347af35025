//! The sources that an account is known from: somebody signed in from there with a code.
//!
//! Always holds: a source becomes known only in the transaction that opens a session for which a code
//! was used; what others try takes it from nobody; another authenticator, or none, takes it from all but the
//! source that its user bound it from.
//!
//! But a store that is older than this began with the IPv4 addresses of its sessions, also of those that were
//! opened without a code (migration 40); those of who has no authenticator were taken out again (43), and what
//! is left is over 90 days after the last of these sessions.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::pool::on;
use super::super::schema::{code_failures, known_sources};
use super::super::{Error, Store, Tx};
use super::Throttled;
use crate::auth::account::{CODE_FAILURES_FOR, KNOWN_FOR};
use crate::domain::{Id, Source, UnixTime};

/// A source that a user is known from: an IPv4 address or the /64 of an IPv6 one.
#[derive(Debug, Clone, Queryable, Selectable, Serialize)]
#[diesel(table_name = known_sources)]
#[allow(missing_docs)]
pub struct KnownSource {
    pub source: String,
    pub last_at: i64,
}

impl KnownSource {
    /// Whether it is known at `now`, and is where `ip` is.
    pub fn covers(&self, ip: std::net::IpAddr, now: UnixTime) -> bool {
        let network = self.source.parse::<ipnet::IpNet>();
        now < UnixTime(self.last_at).plus(KNOWN_FOR) && network.is_ok_and(|net| net.contains(&ip))
    }
}

impl Store {
    /// Where somebody signed in from after `since`, the latest first, of the latest `most` notes: each user
    /// has their own of a source.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn latest_known_sources(
        &self,
        since: UnixTime,
        most: usize,
    ) -> Result<Vec<KnownSource>, Error> {
        use known_sources::dsl;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut tx = self.read().await?;
        let latest = on!(tx.engine(), conn => {
            dsl::known_sources
                .filter(dsl::last_at.gt(since.0))
                .order(dsl::last_at.desc())
                .limit(most)
                .select(KnownSource::as_select())
                .load(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(latest)
    }

    /// Drops sources that are no longer known at `now`, and counts of wrong codes that are over.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_old_sources(&self, now: UnixTime) -> Result<usize, Error> {
        let (known, counted) = (now.minus(KNOWN_FOR), now.minus(CODE_FAILURES_FOR));
        let mut tx = self.begin().await?;
        let dropped = on!(tx.engine(), conn => {
            diesel::delete(code_failures::table.filter(code_failures::since.le(counted.0)))
                .execute(conn)
                .await?;
            diesel::delete(known_sources::table.filter(known_sources::last_at.le(known.0)))
                .execute(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(dropped)
    }
}

impl Tx<'_> {
    /// Whether the account is known from there.
    pub(super) async fn is_known(
        &mut self,
        account: &Id,
        whose: &Throttled,
        now: UnixTime,
    ) -> Result<bool, Error> {
        use known_sources::dsl;
        let since = now.minus(KNOWN_FOR);
        let known: i64 = on!(self.engine(), conn => {
            dsl::known_sources
                .find((account.as_str(), &whose.source))
                .filter(dsl::last_at.gt(since.0))
                .count()
                .get_result(conn)
                .await
        })?;
        Ok(known > 0)
    }

    /// Takes note of a sign-in with a code. From a source that was known before it ends the count of wrong
    /// codes, too. The account's row is held.
    pub(super) async fn signed_in_from(
        &mut self,
        account: &Id,
        whose: &Throttled,
        now: UnixTime,
    ) -> Result<(), Error> {
        use known_sources::dsl;
        if self.is_known(account, whose, now).await? {
            self.forget_code_failures(account).await?;
        }
        let row = (dsl::user_id.eq(account.as_str()), dsl::source.eq(&whose.source));
        on!(self.engine(), conn => {
            diesel::insert_into(dsl::known_sources)
                .values((row, dsl::last_at.eq(now.0)))
                .on_conflict((dsl::user_id, dsl::source))
                .do_update()
                .set(dsl::last_at.eq(now.0))
                .execute(conn)
                .await
        })?;
        Ok(())
    }

    /// Makes every source of the account unknown but this one, which becomes no better known. The account's
    /// row is held.
    pub(in super::super) async fn forget_known_sources(
        &mut self,
        account: &Id,
        but: Option<&Source>,
    ) -> Result<(), Error> {
        use known_sources::dsl;
        let kept = but.map(|source| source.network().to_string()).unwrap_or_default();
        on!(self.engine(), conn => {
            diesel::delete(dsl::known_sources)
                .filter(dsl::user_id.eq(account.as_str()))
                .filter(dsl::source.ne(&kept))
                .execute(conn)
                .await
        })?;
        Ok(())
    }

    /// Where the account is known from, the latest first.
    pub(in super::super) async fn known_sources(
        &mut self,
        account: &Id,
    ) -> Result<Vec<KnownSource>, Error> {
        use known_sources::dsl;
        Ok(on!(self.engine(), conn => {
            dsl::known_sources
                .filter(dsl::user_id.eq(account.as_str()))
                .order((dsl::last_at.desc(), dsl::source))
                .select(KnownSource::as_select())
                .load(conn)
                .await
        })?)
    }
}
