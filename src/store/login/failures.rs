//! Failures of signing in: counted by source, by site and by account, and the locks that they lead to.
//!
//! Always holds: a source's own row is held before its site's, that before the account's count; none of
//! them keeps out who signed in from there before, but its own failures.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::pool::on;
use super::super::schema::{attacks, throttle, users};
use super::super::{Error, Store, Tx};
use crate::audit::{Context, Event, Note, Refusal};
use crate::auth::account::{Throttle, ThrottleRules};
use crate::domain::{Id, Source, UnixTime, printable};

/// Whose failures are counted together: an account's (ours or not) from one source.
#[derive(Debug, Clone)]
pub struct Throttled {
    pub(super) account: String,
    pub(super) source: String,
    /// The IPv6 site that the source is in, whose failures are counted together as well.
    site: Option<String>,
}

impl Throttled {
    /// The key for the user name as it was typed, from `source`.
    pub fn new(typed: &str, source: &Source) -> Self {
        let account = printable(&typed.chars().take(64).collect::<String>());
        let site = source.site().map(|site| site.to_string());
        Self { account, source: source.network().to_string(), site }
    }

    /// Where failures are counted, the narrower place first, and how many lock there.
    fn places(&self, rules: &ThrottleRules) -> impl Iterator<Item = (&str, i64)> {
        let site = self.site.as_deref().map(|site| (site, rules.site_lock_after));
        std::iter::once((self.source.as_str(), rules.lock_after)).chain(site)
    }

    /// The user name as it was typed, printable.
    pub fn name(&self) -> &str {
        &self.account
    }
}

/// A login that failed.
#[derive(Debug)]
pub struct FailureNote {
    /// The account, if it is one of ours.
    pub account: Option<Id>,
    /// Why.
    pub reason: Refusal,
    /// Whether it counts towards the lock.
    pub counts: bool,
    /// Whether it was a wrong code after a right first factor.
    pub code: bool,
    /// By how many seconds the authenticator's clock seems to be off.
    pub drift: Option<i64>,
}

/// What came of counting a failure.
struct Counted {
    /// Failures in a row from the source.
    failures: i64,
    /// The locks that it led to.
    locked: Vec<Event>,
    /// What administrators are to know of the account.
    attack: Option<Event>,
}

impl Store {
    /// Writes a failed login down; gives the failures in a row.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn fail(
        &self,
        failure: FailureNote,
        notes: Vec<Note>,
        whose: &Throttled,
        rules: &ThrottleRules,
        context: &Context,
        now: UnixTime,
    ) -> Result<i64, Error> {
        let refused = Event::SignInRefused { reason: failure.reason };
        self.fail_with(refused, failure, notes, whose, rules, context, now).await
    }

    /// The failures in a row of `whose`, for who does not add one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn failures(
        &self,
        whose: &Throttled,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<i64, Error> {
        let nobodys = Id::from_random([0; Id::LEN]); // Whose lock it is makes no difference here.
        let mut tx = self.read_short().await?;
        let throttle = tx.throttle(&nobodys, whose, rules, now).await?;
        tx.commit().await?;
        Ok(throttle.failures)
    }

    /// As [`Self::fail`], of somebody who is signed in and had to prove again who they are; `refused`
    /// says what came of it.
    ///
    /// # Errors
    /// When the store fails.
    #[allow(clippy::too_many_arguments)]
    pub async fn fail_with(
        &self,
        refused: Event,
        failure: FailureNote,
        notes: Vec<Note>,
        whose: &Throttled,
        rules: &ThrottleRules,
        context: &Context,
        now: UnixTime,
    ) -> Result<i64, Error> {
        let mut tx = self.begin_short().await?;
        // The account before the failures, as everywhere.
        let of_code = failure.account.as_ref().filter(|_| failure.code);
        let held = match of_code {
            Some(account) => tx.hold_account(account.as_str()).await?,
            None => false,
        };
        if let (Some(account), Some(drift)) = (&failure.account, failure.drift) {
            tx.note_drift(account, drift).await?;
        }
        let counted = tx.count_failure(&failure, whose, rules, now).await?;
        let limited = match of_code {
            Some(account) if held => tx.count_code_failure(account, rules, now).await?,
            _ => None,
        };
        tx.append_notes(context, notes).await?;
        if let Some(seconds) = failure.drift {
            tx.append(now, context, Event::ClockDrift { seconds }).await?;
        }
        tx.append(now, context, refused).await?;
        // Names that are nobody's are counted as well, and need nobody's attention.
        let attack = counted.attack.filter(|_| failure.account.is_some());
        for event in counted.locked.into_iter().chain(attack).chain(limited) {
            tx.append(now, context, event).await?;
        }
        tx.commit().await?;
        Ok(counted.failures)
    }

    /// Writes down what happened so far in a login that goes on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn note(
        &self,
        account: &Id,
        drift: Option<i64>,
        notes: Vec<Note>,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin_short().await?;
        // The account before the log, as everywhere: else two that write to both could wait for each other.
        if let Some(seconds) = drift {
            tx.note_drift(account, seconds).await?;
        }
        tx.append_notes(context, notes).await?;
        if let Some(seconds) = drift {
            tx.append(now, context, Event::ClockDrift { seconds }).await?;
        }
        tx.commit().await
    }

    /// Drops failures that nobody asks about any more.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_old_failures(&self, before: UnixTime) -> Result<usize, Error> {
        use throttle::dsl;
        let mut tx = self.begin().await?;
        let mut dropped = 0;
        // Sites after their networks, as failures take them: no two wait for each other.
        for sites in [false, true] {
            let is_old = dsl::last_failed_at.lt(before.0);
            let kind = dsl::source.like(A_SITE).eq(sites);
            dropped += on!(tx.engine(), conn => {
                diesel::delete(dsl::throttle.filter(is_old).filter(kind)).execute(conn).await
            })?;
        }
        on!(tx.engine(), conn => {
            diesel::delete(attacks::table.filter(attacks::since.lt(before.0))).execute(conn).await
        })?;
        tx.commit().await?;
        Ok(dropped)
    }
}

impl Tx<'_> {
    /// The failures that hold for a source. A site's lock does not, where the source itself is known:
    /// neighbours must not lock it out.
    pub(super) async fn throttle(
        &mut self,
        account: &Id,
        whose: &Throttled,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<Throttle, Error> {
        use throttle::dsl;
        let mut throttle = Throttle::default();
        let known = self.is_known(account, whose, now).await?;
        for (place, _) in whose.places(rules) {
            let row: Option<(i64, i64, Option<i64>)> = on!(self.engine(), conn => {
                dsl::throttle
                    .find((&whose.account, place))
                    .select((dsl::failures, dsl::last_failed_at, dsl::locked_until))
                    .first(conn)
                    .await
                    .optional()
            })?;
            let here = row.map(|row| current(row, rules.lock_for, now)).unwrap_or_default();
            let is_own = place == whose.source;
            if is_own {
                throttle.failures = here.failures;
            }
            if is_own || !known {
                throttle.locked_until = throttle.locked_until.max(here.locked_until);
            }
        }
        Ok(throttle)
    }

    /// Adds one failure if it counts: to those of the source, of its site and of the account.
    async fn count_failure(
        &mut self,
        failure: &FailureNote,
        whose: &Throttled,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<Counted, Error> {
        let known = match &failure.account {
            Some(account) => self.is_known(account, whose, now).await?,
            None => false,
        };
        let mut places = Vec::new();
        for (place, lock_after) in whose.places(rules) {
            places.push((place, lock_after, self.hold_failures(whose, place, rules, now).await?));
        }
        let failures = places.as_slice().first().map_or(0, |(_, _, before)| before.failures);
        let mut counted = Counted { failures, locked: Vec::new(), attack: None };
        // Where the source is known, the site's lock holds for its neighbours only.
        let holds = |place: &str| place == whose.source || !known;
        let is_locked =
            places.iter().any(|(place, _, before)| before.locked_until.is_some() && holds(place));
        if is_locked || !failure.counts {
            return Ok(counted);
        }
        counted.failures += 1;
        for (place, lock_after, before) in places {
            if before.locked_until.is_some() {
                continue;
            }
            let failures = before.failures + 1;
            let until = (failures >= lock_after).then(|| now.plus(rules.lock_for));
            self.set_failures((&whose.account, place), failures, until, now).await?;
            let network = (place != whose.source).then(|| place.to_owned());
            let locked = until.map(|until| Event::SourceLocked { failures, until, network });
            counted.locked.extend(locked);
        }
        counted.attack = self.count_attack(&whose.account, rules, now).await?;
        Ok(counted)
    }

    /// The failures at a place, as far as they still count. Their row is there and held from then on.
    async fn hold_failures(
        &mut self,
        whose: &Throttled,
        place: &str,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<Throttle, Error> {
        use throttle::dsl;
        // The insert first: it makes the row, or waits for whoever holds it.
        let fresh = (
            dsl::account.eq(&whose.account),
            dsl::source.eq(place),
            dsl::failures.eq(0),
            dsl::last_failed_at.eq(now.0),
        );
        let row: (i64, i64, Option<i64>) = on!(self.engine(), conn => {
            diesel::insert_into(dsl::throttle)
                .values(fresh)
                .on_conflict((dsl::account, dsl::source))
                .do_update()
                .set(dsl::account.eq(&whose.account))
                .returning((dsl::failures, dsl::last_failed_at, dsl::locked_until))
                .get_result(conn)
                .await
        })?;
        Ok(current(row, rules.lock_for, now))
    }

    async fn set_failures(
        &mut self,
        key: (&str, &str),
        failures: i64,
        until: Option<UnixTime>,
        now: UnixTime,
    ) -> Result<(), Error> {
        use throttle::dsl;
        on!(self.engine(), conn => {
            diesel::update(dsl::throttle.find(key))
                .set((
                    dsl::failures.eq(failures),
                    dsl::last_failed_at.eq(now.0),
                    dsl::locked_until.eq(until.map(|t| t.0)),
                ))
                .execute(conn)
                .await
        })?;
        Ok(())
    }

    /// Counts a failure of the account from wherever; gives an event when there are as many as
    /// administrators are to know of, once in the time that failures are remembered.
    async fn count_attack(
        &mut self,
        account: &str,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<Option<Event>, Error> {
        use attacks::dsl;
        let fresh = (dsl::account.eq(account), dsl::failures.eq(0), dsl::since.eq(now.0));
        let (before, began): (i64, i64) = on!(self.engine(), conn => {
            diesel::insert_into(dsl::attacks)
                .values(fresh)
                .on_conflict(dsl::account)
                .do_update()
                .set(dsl::account.eq(account))
                .returning((dsl::failures, dsl::since))
                .get_result(conn)
                .await
        })?;
        let is_over = now >= UnixTime(began).plus(rules.lock_for);
        let (failures, since) = if is_over { (1, now) } else { (before + 1, UnixTime(began)) };
        on!(self.engine(), conn => {
            diesel::update(dsl::attacks.find(account))
                .set((dsl::failures.eq(failures), dsl::since.eq(since.0)))
                .execute(conn)
                .await
        })?;
        let is_told = failures == rules.attack_after;
        Ok(is_told.then_some(Event::AccountUnderAttack { failures, since }))
    }

    pub(super) async fn forget_failures(&mut self, whose: &Throttled) -> Result<(), Error> {
        use throttle::dsl;
        on!(self.engine(), conn => {
            diesel::delete(dsl::throttle.find((&whose.account, &whose.source))).execute(conn).await
        })?;
        let Some(site) = &whose.site else { return Ok(()) };
        // Not its lock: a known source signs in meanwhile, and its neighbours stay locked out.
        on!(self.engine(), conn => {
            diesel::delete(dsl::throttle.find((&whose.account, site)))
                .filter(dsl::locked_until.is_null())
                .execute(conn)
                .await
        })?;
        Ok(())
    }

    async fn note_drift(&mut self, account: &Id, drift: i64) -> Result<(), Error> {
        use users::dsl;
        on!(self.engine(), conn => {
            diesel::update(dsl::users.find(account.as_str()))
                .set(dsl::otp_drift_seconds.eq(drift))
                .execute(conn)
                .await
        })?;
        Ok(())
    }
}

/// What the name of a site ends with, and of no network.
pub(in crate::store) const A_SITE: &str = "%/48";

/// Failures as far as they still count: a lock that ran out, or `remembered` without a failure,
/// wipes them.
fn current(
    (failures, last, locked): (i64, i64, Option<i64>),
    remembered: Duration,
    now: UnixTime,
) -> Throttle {
    match locked.map(UnixTime) {
        Some(until) if now < until => Throttle { failures, locked_until: Some(until) },
        Some(_) => Throttle::default(),
        None if now >= UnixTime(last).plus(remembered) => Throttle::default(),
        None => Throttle { failures, locked_until: None },
    }
}
