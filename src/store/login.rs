//! What the store does for a login: read an account, use a code or a recovery code up, bind an
//! authenticator, take the password that was chosen, write failures, attacks and sessions.
//!
//! Always holds: a code, a recovery code and a binding are used up by a compare-and-set in the same
//! transaction that writes down what they were used for, so that each works once over all
//! connections and nodes. A login commits only if the account's epoch is still the one that it
//! began with, its source was not locked meanwhile, and what was given is enough by the rules that
//! hold at that moment.

mod code_limit;
mod known;

pub use code_limit::CodeFailures;
pub use known::KnownSource;

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use secrecy::SecretString;

use super::pool::on;
use super::schema::{
    attacks, binding_passwords, recovery_codes, sessions, throttle, user_keys, users,
};
use super::{Error, Store, Tx, parse, seal};
use crate::audit::{Context, Event, Note, Refusal, Step};
use crate::auth::account::{Account, Otp, Throttle, ThrottleRules};
use crate::auth::machine::{Attempt, Claim, Claimed, Opened};
use crate::auth::{recovery, totp};
use crate::domain::{
    Factor, Factors, Id, SecondFactor, Source, TimeStep, UnixTime, UserName, printable,
};

/// A row of `users`, as far as signing in needs it.
#[derive(Queryable, Selectable)]
#[diesel(table_name = users)]
struct LoginRow {
    id: String,
    name: String,
    role: String,
    disabled_at: Option<i64>,
    epoch: i64,
    password_hash: String,
    password_one_time: i64,
    binding_until: Option<i64>,
    factor: String,
    otp_secret: Option<String>,
    otp_last_step: i64,
    otp_drift_seconds: Option<i64>,
}

/// Whose failures are counted together: an account's (ours or not) from one source.
#[derive(Debug, Clone)]
pub struct Throttled {
    account: String,
    source: String,
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

/// The session that a login opens.
#[derive(Debug)]
pub struct SignIn<'a> {
    /// The session's id.
    pub session: &'a Id,
    /// Where it comes from.
    pub source: &'a Source,
    /// The client's identification.
    pub client: &'a str,
}

impl Store {
    /// Reads the account `name`, and the failures of `whose` as far as they still count. It takes the
    /// same work whether there is such an account or not, also where `name` is none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn account(
        &self,
        name: Option<&UserName>,
        whose: &Throttled,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<(Option<Box<Account>>, Throttle), Error> {
        let mut tx = self.read_short().await?;
        let account = tx.account(name, now).await?;
        // Nobody's is looked for, too.
        let nobodys = Id::from_random([0; Id::LEN]);
        let id = account.as_ref().map_or(&nobodys, |account| &account.id);
        let throttle = tx.throttle(id, whose, rules, now).await?;
        tx.commit().await?;
        Ok((account.map(Box::new), throttle))
    }

    /// Uses the attempt's claim up.
    ///
    /// # Errors
    /// When the store fails; nothing was used up then.
    pub async fn claim(
        &self,
        attempt: Attempt,
        whose: &Throttled,
        rules: &ThrottleRules,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<Claimed, Refusal>, Error> {
        self.claim_for(attempt, None, whose, rules, context, now).await
    }

    /// As [`Self::claim`]; opens the session as well, and forgets the failures of `whose`.
    ///
    /// # Errors
    /// When the store fails; nothing was used up or opened then.
    pub async fn sign_in(
        &self,
        attempt: Attempt,
        sign_in: &SignIn<'_>,
        whose: &Throttled,
        rules: &ThrottleRules,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<Opened, Refusal>, Error> {
        let claimed = self.claim_for(attempt, Some(sign_in), whose, rules, context, now).await?;
        Ok(claimed.map(Opened::committed))
    }

    async fn claim_for(
        &self,
        attempt: Attempt,
        open_session: Option<&SignIn<'_>>,
        whose: &Throttled,
        rules: &ThrottleRules,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<Claimed, Refusal>, Error> {
        let mut tx = self.begin_short().await?;
        let mut used = tx.use_claim(&attempt, whose, rules, now).await?;
        if let (Ok(_), Some(sign_in)) = (&used, open_session) {
            if let Claim::Remembered(remembered) = &attempt.claim
                && remembered.source != sign_in.source.ip()
            {
                used = Err(Refusal::AccountChanged);
            }
            let policy = tx.sign_in_policy(&attempt.account).await?;
            if !policy.allows(attempt.given, sign_in.source.ip()) {
                used = Err(Refusal::SignInRule);
            }
        }
        let recovery_left = match used {
            Ok(recovery_left) => recovery_left,
            Err(refusal) => {
                tx.roll_back().await?;
                return Ok(Err(refusal));
            }
        };
        let steps = attempt.steps.clone();
        if let Some(sign_in) = open_session {
            tx.forget_failures(whose).await?;
            if attempt.steps.iter().any(|step| step.is_code()) {
                tx.signed_in_from(&attempt.account, whose, now).await?;
            }
            tx.open_session(&attempt.account, sign_in, now).await?;
            if let Claim::Certificate(serial) = attempt.claim {
                tx.opened_by_certificate(sign_in.session, serial).await?;
            }
        }
        let (account, epoch, key) = (attempt.account.clone(), attempt.epoch, attempt.key.clone());
        let by_code = attempt.claim.is_code_of_now();
        tx.append_claim(attempt, recovery_left, context, now).await?;
        if let Some(sign_in) = open_session {
            tx.append(now, context, Event::SignedIn { steps }).await?;
            if let (Some(key), true) = (key, by_code) {
                let source = sign_in.source.ip().to_string();
                tx.remember_login((&account, epoch), (&key, &source), context, now).await?;
            }
        }
        tx.commit().await?;
        Ok(Ok(Claimed { recovery_left }))
    }

    /// Writes a failed login down; gives the failures in a row, and whether they lock now.
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
    /// The account `name`. Nobody's is looked for to the end like anybody's: this comes before the
    /// first prompt, and how long it takes must not tell which names there are.
    async fn account(
        &mut self,
        name: Option<&UserName>,
        now: UnixTime,
    ) -> Result<Option<Account>, Error> {
        let name = name.map_or("", UserName::as_str); // No user's name is empty.
        let row: Option<LoginRow> = on!(self.engine(), conn => {
            users::table
                .filter(users::name.eq(name))
                .select(LoginRow::as_select())
                .first(conn)
                .await
                .optional()
        })?;
        let id: Id = match &row {
            Some(row) => parse("users", &row.id)?,
            None => Id::from_random([0; Id::LEN]),
        };
        let keys: Vec<String> = on!(self.engine(), conn => {
            user_keys::table
                .filter(user_keys::user_id.eq(id.as_str()))
                .select(user_keys::fingerprint)
                .load(conn)
                .await
        })?;
        let password_binds: i64 = on!(self.engine(), conn => {
            binding_passwords::table.find(id.as_str()).count().get_result(conn).await
        })?;
        let recovery_left = self.recovery_left(&id).await?;
        let set = self.factor_set(&id).await?;
        let sign_in = self.sign_in_policy(&id).await?;
        let certificates = self.certificates_of(&id, now).await?;
        let remembered = self.remembered_of(&id, now).await?;
        let otp = self.open_otp(&id, row.as_ref())?;
        let Some(row) = row else { return Ok(None) };
        let factor = match set {
            Some(set) => set.second_factor(),
            None => SecondFactor { factor: parse("users", &row.factor)?, mode: None },
        };
        Ok(Some(Account {
            id,
            name: parse("users", &row.name)?,
            role: parse("users", &row.role)?,
            factor,
            sign_in,
            epoch: row.epoch,
            disabled: row.disabled_at.is_some(),
            password: row.password_hash,
            one_time: row.password_one_time != 0,
            password_binds: password_binds > 0,
            binding_until: row.binding_until.map(UnixTime),
            otp,
            keys,
            certificates,
            remembered,
            recovery_left,
            drift: row.otp_drift_seconds.filter(|_| factor.factor == Factor::Totp),
        }))
    }

    /// The authenticator that is bound; something is opened also where there is none.
    fn open_otp(&self, id: &Id, row: Option<&LoginRow>) -> Result<Option<Otp>, Error> {
        let (keyring, place) = (&self.store.keyring, otp_place(id.as_str()));
        let Some((row, sealed)) = row.and_then(|row| Some((row, row.otp_secret.as_ref()?))) else {
            keyring.open_decoy(place, totp::Secret::LEN);
            return Ok(None);
        };
        let secret = keyring.open(place, sealed)?;
        let damaged = || Error::Damaged { table: "users", reason: "the secret's length".into() };
        let bytes = <&[u8; totp::Secret::LEN]>::try_from(&secret[..]).map_err(|_| damaged())?;
        let secret = totp::Secret::from_bytes(bytes);
        Ok(Some(Otp { secret, last_step: TimeStep(row.otp_last_step) }))
    }

    /// The failures that hold for a source. A site's lock does not, where the source itself is known:
    /// neighbours must not lock it out.
    async fn throttle(
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

    /// Uses a claim up, if the account is as the login found it and its source is not locked; gives
    /// how many recovery codes are left.
    async fn use_claim(
        &mut self,
        attempt: &Attempt,
        whose: &Throttled,
        rules: &ThrottleRules,
        now: UnixTime,
    ) -> Result<Result<u32, Refusal>, Error> {
        use users::dsl;
        let id = attempt.account.as_str();
        let may_be_guessed = attempt.claim.is_code_of_now();
        let is_same =
            dsl::id.eq(id).and(dsl::epoch.eq(attempt.epoch)).and(dsl::disabled_at.is_null());
        // An update that changes nothing comes first: it holds the row until the transaction ends.
        let same = on!(self.engine(), conn => {
            diesel::update(dsl::users)
                .filter(is_same)
                .set(dsl::epoch.eq(dsl::epoch))
                .execute(conn)
                .await
        })?;
        if same != 1 {
            return Ok(Err(Refusal::AccountChanged));
        }
        let throttle = self.throttle(&attempt.account, whose, rules, now).await?;
        if throttle.locked_until.is_some() {
            return Ok(Err(Refusal::Locked));
        }
        if may_be_guessed && self.is_past_code_limit(&attempt.account, whose, now).await? {
            return Ok(Err(Refusal::CodeLimit));
        }
        let bound: bool = on!(self.engine(), conn => {
            dsl::users.find(id).select(dsl::otp_secret.is_not_null()).first(conn).await
        })?;
        let present = self.second_factor(&attempt.account).await?.factor;
        let is_right = match (&attempt.claim, present) {
            (Claim::NoCode, _) => !attempt.given.has(Factors::OTP),
            (Claim::Radius { .. }, Factor::Totp)
            | (Claim::Code(_) | Claim::RecoveryCode(_), Factor::Radius) => false,
            // Unbound since: neither a code nor what was claimed before is of any use.
            (_, Factor::Totp) => bound,
            (_, Factor::Radius) => true,
        };
        // What a login began with was the factor of then: a group's can change, and moves no epoch.
        let fits = is_right && attempt.factor == present;
        if !fits {
            return Ok(Err(Refusal::AccountChanged));
        }
        match &attempt.claim {
            Claim::Nothing | Claim::NoCode => {}
            Claim::Remembered(remembered) => {
                if !self.use_remembered(&attempt.account, remembered, now).await? {
                    return Ok(Err(Refusal::AccountChanged));
                }
            }
            Claim::Certificate(serial) => {
                let account = (&attempt.account, attempt.epoch);
                if !self.use_certificate(account, *serial, now).await? {
                    return Ok(Err(Refusal::CertificateRefused));
                }
            }
            Claim::Radius { codes, life } => {
                let until = now.plus(*life);
                if !self.use_codes(&attempt.account, codes, now, until).await? {
                    return Ok(Err(Refusal::ReplayedCode));
                }
            }
            Claim::Code(step) => {
                let claimed = on!(self.engine(), conn => {
                    diesel::update(dsl::users)
                        .filter(dsl::id.eq(id).and(dsl::otp_last_step.lt(step.0)))
                        .set((
                            dsl::otp_last_step.eq(step.0),
                            dsl::otp_last_used_at.eq(now.0),
                            dsl::otp_drift_seconds.eq(None::<i64>),
                        ))
                        .execute(conn)
                        .await
                })?;
                if claimed != 1 {
                    return Ok(Err(Refusal::ReplayedCode));
                }
            }
            Claim::RecoveryCode(hash) => {
                use recovery_codes::dsl;
                let claimed = on!(self.engine(), conn => {
                    diesel::update(dsl::recovery_codes.find((id, hash)))
                        .filter(dsl::used_at.is_null())
                        .set(dsl::used_at.eq(now.0))
                        .execute(conn)
                        .await
                })?;
                if claimed != 1 {
                    return Ok(Err(Refusal::WrongRecoveryCode));
                }
            }
        }
        Ok(Ok(self.recovery_left(&attempt.account).await?))
    }

    /// Writes down what led to a claim, and the claim.
    async fn append_claim(
        &mut self,
        attempt: Attempt,
        recovery_left: u32,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        self.append_notes(context, attempt.notes).await?;
        let event = match attempt.claim.step().filter(|step| step.is_code()) {
            None => return Ok(()),
            Some(Step::RecoveryCode) => Event::RecoveryCodeUsed { left: recovery_left },
            Some(step) => Event::StepPassed { step, key: None },
        };
        self.append(now, context, event).await
    }

    async fn open_session(
        &mut self,
        account: &Id,
        sign_in: &SignIn<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let name: String = on!(self.engine(), conn => {
            users::table.find(account.as_str()).select(users::name).first(conn).await
        })?;
        let row = (
            sessions::id.eq(sign_in.session.as_str()),
            sessions::user_id.eq(account.as_str()),
            sessions::user_name.eq(name),
            sessions::node.eq(self.store.node.clone()),
            sessions::source.eq(sign_in.source.to_string()),
            sessions::client.eq(sign_in.client),
            sessions::started_at.eq(now.0),
            sessions::bytes_up.eq(0),
            sessions::bytes_down.eq(0),
        );
        on!(self.engine(), conn => {
            diesel::insert_into(sessions::table).values(row).execute(conn).await
        })?;
        Ok(())
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

    async fn forget_failures(&mut self, whose: &Throttled) -> Result<(), Error> {
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
    pub(super) async fn let_password_bind(&mut self, account: &Id, may: bool) -> Result<(), Error> {
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

    pub(super) async fn replace_recovery_codes(
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

    pub(super) async fn recovery_left(&mut self, account: &Id) -> Result<u32, Error> {
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

/// What the name of a site ends with, and of no network.
pub(super) const A_SITE: &str = "%/48";

/// Where a user's TOTP secret lives.
pub(super) fn otp_place(user: &str) -> seal::Place<'_> {
    seal::Place { column: "users.otp_secret", row: user }
}

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

#[cfg(test)]
mod tests;
