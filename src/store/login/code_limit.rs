//! Wrong codes that followed a right first factor of an account, counted over all sources.
//!
//! Always holds: past the limit a code is taken only from a known source, and whether it is, is asked in
//! the transaction that uses it; the account's row is held before this one's.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::pool::on;
use super::super::schema::{code_failures, users};
use super::super::{Error, Tx};
use super::Throttled;
use crate::audit::Event;
use crate::auth::account::{CODE_FAILURES_FOR, ThrottleRules};
use crate::domain::{Id, UnixTime};

/// Wrong codes of a user after a right first factor, from everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Queryable, Selectable, Serialize)]
#[diesel(table_name = code_failures)]
#[allow(missing_docs)]
pub struct CodeFailures {
    pub failures: i64,
    pub since: i64,
    /// Until then a code is taken from known sources only.
    pub limited_until: Option<i64>,
}

impl CodeFailures {
    /// As far as they still count at `now`.
    pub fn current(self, now: UnixTime) -> Option<Self> {
        (now < UnixTime(self.since).plus(CODE_FAILURES_FOR)).then_some(self)
    }

    /// Until when a code is taken from known sources only, if that is so at `now`.
    pub fn limited(self, now: UnixTime) -> Option<UnixTime> {
        self.limited_until.map(UnixTime).filter(|until| now < *until)
    }
}

impl Tx<'_> {
    /// Holds an account's row until the transaction ends; gives whether it is there.
    pub(in super::super) async fn hold_account(&mut self, account: &str) -> Result<bool, Error> {
        let held = on!(self.engine(), conn => {
            diesel::update(users::table.find(account))
                .set(users::epoch.eq(users::epoch))
                .execute(conn)
                .await
        })?;
        Ok(held == 1)
    }

    /// What was counted of an account.
    pub(in super::super) async fn code_failures(
        &mut self,
        account: &Id,
    ) -> Result<Option<CodeFailures>, Error> {
        Ok(on!(self.engine(), conn => {
            code_failures::table
                .find(account.as_str())
                .select(CodeFailures::as_select())
                .first(conn)
                .await
                .optional()
        })?)
    }

    /// Counts a wrong code of an account whose row is held; gives an event when it is the one that
    /// reaches the limit.
    pub(super) async fn count_code_failure(
        &mut self,
        account: &Id,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<Option<Event>, Error> {
        use code_failures::dsl;
        let before = self.code_failures(account).await?.and_then(|before| before.current(now));
        let mut counted =
            before.unwrap_or(CodeFailures { failures: 0, since: now.0, limited_until: None });
        counted.failures += 1;
        let (failures, since) = (counted.failures, UnixTime(counted.since));
        let until = since.plus(CODE_FAILURES_FOR);
        let reached = counted.limited_until.is_none() && failures >= rules.code_failures_max;
        if reached {
            counted.limited_until = Some(until.0);
        }
        let values = (
            dsl::failures.eq(failures),
            dsl::since.eq(since.0),
            dsl::limited_until.eq(counted.limited_until),
        );
        on!(self.engine(), conn => {
            diesel::insert_into(dsl::code_failures)
                .values((dsl::user_id.eq(account.as_str()), values))
                .on_conflict(dsl::user_id)
                .do_update()
                .set(values)
                .execute(conn)
                .await
        })?;
        Ok(reached.then_some(Event::CodeLimitReached { failures, since, until }))
    }

    /// Whether a code of the account is not to be taken from there, right or not.
    pub(super) async fn is_past_code_limit(
        &mut self,
        account: &Id,
        whose: &Throttled,
        now: UnixTime,
    ) -> Result<bool, Error> {
        let counted = self.code_failures(account).await?;
        let limited = counted.and_then(|counted| counted.limited(now));
        Ok(limited.is_some() && !self.is_known(account, whose, now).await?)
    }

    /// Begins to count anew. The account's row is held.
    pub(in super::super) async fn forget_code_failures(
        &mut self,
        account: &Id,
    ) -> Result<(), Error> {
        on!(self.engine(), conn => {
            diesel::delete(code_failures::table.find(account.as_str())).execute(conn).await
        })?;
        Ok(())
    }
}
