//! Using up what a login is for, and opening its session.
//!
//! Always holds: see [`super`]. The account's row is held from the beginning of the transaction.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::pool::on;
use super::super::schema::{recovery_codes, sessions, users};
use super::super::{Error, Store, Tx};
use super::Throttled;
use crate::audit::{Context, Event, Refusal, Step};
use crate::auth::account::ThrottleRules;
use crate::auth::machine::{Attempt, Claim, Claimed, Opened};
use crate::domain::{Factors, Id, Source, UnixTime, Verifier};

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
        if let (Ok(_), Some(sign_in), Claim::Remembered(remembered)) =
            (&used, open_session, &attempt.claim)
            && remembered.source != sign_in.source.ip()
        {
            used = Err(Refusal::AccountChanged);
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
        let (verifier, given) = (attempt.factor, attempt.given);
        let by_code = attempt.claim.is_code_of_now();
        tx.append_claim(attempt, recovery_left, context, now).await?;
        if let Some(sign_in) = open_session {
            tx.append(now, context, Event::SignedIn { steps }).await?;
            if let Some(refusal) = tx.ruled_out(&account, verifier, given, sign_in).await? {
                tx.roll_back().await?;
                return Ok(Err(refusal));
            }
            if let (Some(key), true) = (key, by_code) {
                let source = sign_in.source.ip().to_string();
                tx.remember_login((&account, epoch), (&key, &source), context, now).await?;
            }
        }
        tx.commit().await?;
        Ok(Ok(Claimed { recovery_left }))
    }
}

impl Tx<'_> {
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
        if !self.fits(attempt).await? {
            return Ok(Err(Refusal::AccountChanged));
        }
        match self.use_up(attempt, now).await? {
            None => Ok(Ok(self.recovery_left(&attempt.account).await?)),
            Some(refusal) => Ok(Err(refusal)),
        }
    }

    /// Why the rules of now do not let in what was given, if they do not. The end of the log is held by
    /// now: who changes a rule either did so before this, or finds the session when it is done.
    async fn ruled_out(
        &mut self,
        account: &Id,
        verifier: Verifier,
        given: Factors,
        sign_in: &SignIn<'_>,
    ) -> Result<Option<Refusal>, Error> {
        if self.second_factor(account).await?.factor != verifier {
            return Ok(Some(Refusal::AccountChanged));
        }
        let policy = self.sign_in_policy(account).await?;
        let is_enough = policy.allows(given, sign_in.source.ip());
        Ok((!is_enough).then_some(Refusal::SignInRule))
    }

    /// Whether what is claimed is what the account is asked for now.
    async fn fits(&mut self, attempt: &Attempt) -> Result<bool, Error> {
        use users::dsl;
        let id = attempt.account.as_str();
        let bound: bool = on!(self.engine(), conn => {
            dsl::users.find(id).select(dsl::otp_secret.is_not_null()).first(conn).await
        })?;
        let present = self.second_factor(&attempt.account).await?.factor;
        let is_right = match (&attempt.claim, present) {
            (Claim::NoCode, _) => !attempt.given.has(Factors::OTP),
            (Claim::Radius { .. }, Verifier::Totp)
            | (Claim::Code(_) | Claim::RecoveryCode(_), Verifier::Radius) => false,
            // Unbound since: neither a code nor what was claimed before is of any use.
            (_, Verifier::Totp) => bound,
            (_, Verifier::Radius) => true,
        };
        // What a login began with was the factor of then: a group's can change, and moves no epoch.
        Ok(is_right && attempt.factor == present)
    }

    /// Uses up what works once; or why it does not.
    async fn use_up(&mut self, attempt: &Attempt, now: UnixTime) -> Result<Option<Refusal>, Error> {
        let id = attempt.account.as_str();
        match &attempt.claim {
            Claim::Nothing | Claim::NoCode => {}
            Claim::Remembered(remembered) => {
                if !self.use_remembered(&attempt.account, remembered, now).await? {
                    return Ok(Some(Refusal::AccountChanged));
                }
            }
            Claim::Certificate(serial) => {
                let account = (&attempt.account, attempt.epoch);
                if !self.use_certificate(account, *serial, now).await? {
                    return Ok(Some(Refusal::CertificateRefused));
                }
            }
            Claim::Radius { codes, life } => {
                let until = now.plus(*life);
                if !self.use_codes(&attempt.account, codes, now, until).await? {
                    return Ok(Some(Refusal::ReplayedCode));
                }
            }
            Claim::Code(step) => {
                use users::dsl;
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
                    return Ok(Some(Refusal::ReplayedCode));
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
                    return Ok(Some(Refusal::WrongRecoveryCode));
                }
            }
        }
        Ok(None)
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
}
