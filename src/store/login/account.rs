//! Reading an account for a login.
//!
//! Always holds: nobody's is looked for to the end like anybody's, at the same cost.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::pool::on;
use super::super::schema::{binding_passwords, user_keys, users};
use super::super::{Error, Store, Tx, parse};
use super::{Throttled, otp_place};
use crate::auth::account::{Account, Otp, Throttle, ThrottleRules};
use crate::auth::totp;
use crate::domain::{Id, SecondFactor, TimeStep, UnixTime, UserName, Verifier};

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
            drift: row.otp_drift_seconds.filter(|_| factor.factor == Verifier::Totp),
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
}
