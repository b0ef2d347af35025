//! Certificates that the login CA gave to users.
//!
//! Always holds: a certificate lets somebody in only while its row says so: for the account and epoch
//! that it was given for, in its time, and not revoked. So whatever ends an account's sessions (another
//! password, an authenticator unbound or changed, a key removed, the account disabled) ends its
//! certificates too. Revoking one ends the sessions that it opened. An account has a few at a time only:
//! each sign-in of its reads them all.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::pool::on;
use super::schema::{login_certificates, session_certificates, users};
use super::{Error, Store, Tx};
use crate::audit::{Context, Event, Refusal};
use crate::domain::{Id, UnixTime, UserName};

/// The most certificates of one account that hold at a time.
pub const MAX_CERTIFICATES: usize = 50;

/// A certificate that is about to be given to somebody.
#[derive(Debug)]
pub struct NewCertificate<'a> {
    /// The serial number.
    pub serial: i64,
    /// Whose.
    pub account: &'a Id,
    /// The epoch that must still hold.
    pub epoch: i64,
    /// The fingerprint of the key that it is for.
    pub key: &'a str,
    /// The one address that it holds from.
    pub source: Option<String>,
    /// The session that it was asked for in.
    pub session: &'a Id,
    /// Until when it holds.
    pub until: UnixTime,
}

/// A certificate as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Serialize)]
#[allow(missing_docs)]
pub struct CertificateRow {
    pub serial: i64,
    pub user: String,
    pub key: String,
    pub source: Option<String>,
    pub session_id: String,
    pub issued_at: i64,
    pub expires_at: i64,
    pub last_used_at: Option<i64>,
}

impl Store {
    /// Writes down that a certificate is given to somebody.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn issue_certificate(
        &self,
        new: &NewCertificate<'_>,
        context: &Context,
        now: UnixTime,
    ) -> Result<Result<(), Refusal>, Error> {
        use login_certificates::dsl;
        let mut tx = self.begin().await?;
        let held = on!(tx.engine(), conn => {
            diesel::update(users::table)
                .filter(users::id.eq(new.account.as_str()).and(users::epoch.eq(new.epoch)))
                .filter(users::disabled_at.is_null())
                .set(users::epoch.eq(users::epoch))
                .execute(conn)
                .await
        })?;
        if held != 1 {
            tx.roll_back().await?;
            return Ok(Err(Refusal::AccountChanged));
        }
        if tx.certificates_of(new.account, now).await?.len() >= MAX_CERTIFICATES {
            tx.roll_back().await?;
            return Ok(Err(Refusal::TooManyCertificates));
        }
        let row = (
            dsl::serial.eq(new.serial),
            dsl::user_id.eq(new.account.as_str()),
            dsl::key.eq(new.key),
            dsl::epoch.eq(new.epoch),
            dsl::source.eq(new.source.clone()),
            dsl::session_id.eq(new.session.as_str()),
            dsl::issued_at.eq(now.0),
            dsl::expires_at.eq(new.until.0),
        );
        on!(tx.engine(), conn => {
            diesel::insert_into(dsl::login_certificates).values(row).execute(conn).await
        })?;
        let event = Event::CertificateIssued {
            serial: new.serial,
            key: new.key.to_owned(),
            from: new.source.clone(),
            until: new.until,
        };
        tx.append(now, context, event).await?;
        tx.commit().await?;
        Ok(Ok(()))
    }

    /// The certificates that hold at `now`, of one user or of all; the newest first.
    ///
    /// # Errors
    /// When there is no such user, or the store fails.
    pub async fn certificates(
        &self,
        user: Option<&UserName>,
        now: UnixTime,
    ) -> Result<Vec<CertificateRow>, Error> {
        let mut tx = self.read().await?;
        let user = match user {
            Some(name) => Some(tx.user_id(name).await?),
            None => None,
        };
        let rows = tx.certificates_where(user.as_ref(), now).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// Revokes a certificate, of this user if one is named; sessions that it opened end.
    ///
    /// # Errors
    /// When there is none that holds, or the store fails.
    pub async fn revoke_certificate(
        &self,
        user: Option<&UserName>,
        serial: i64,
        context: &Context,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let id = match user {
            Some(name) => Some(tx.user_id(name).await?),
            None => None,
        };
        let held = tx.certificates_where(id.as_ref(), now).await?;
        let none = || Error::Conflict(format!("there is no certificate {serial} that holds"));
        let row = held.into_iter().find(|row| row.serial == serial).ok_or_else(none)?;
        let revoked = on!(tx.engine(), conn => {
            diesel::update(login_certificates::table.find(serial))
                .filter(login_certificates::revoked_at.is_null())
                .set(login_certificates::revoked_at.eq(now.0))
                .execute(conn)
                .await
        })?;
        if revoked != 1 {
            return Err(none()); // Somebody else was first.
        }
        let name = super::parse("users", &row.user)?;
        tx.changed(now, context, Event::CertificateRevoked { name, serial }).await
    }

    /// Drops certificates whose time was over long ago. Those that opened a session which goes on are
    /// not needed for it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_old_certificates(&self, before: UnixTime) -> Result<usize, Error> {
        use login_certificates::dsl;
        let mut tx = self.begin().await?;
        let dropped = on!(tx.engine(), conn => {
            diesel::delete(dsl::login_certificates.filter(dsl::expires_at.lt(before.0)))
                .execute(conn)
                .await
        })?;
        tx.commit().await?;
        Ok(dropped)
    }
}

impl Tx<'_> {
    async fn certificates_where(
        &mut self,
        user: Option<&Id>,
        now: UnixTime,
    ) -> Result<Vec<CertificateRow>, Error> {
        use login_certificates::dsl;
        Ok(on!(self.engine(), conn => {
            let mut query = dsl::login_certificates
                .inner_join(users::table.on(users::id.eq(dsl::user_id)))
                .filter(dsl::revoked_at.is_null().and(dsl::expires_at.gt(now.0)))
                .filter(dsl::epoch.eq(users::epoch).and(users::disabled_at.is_null()))
                .order((dsl::issued_at.desc(), dsl::serial))
                .select((
                    dsl::serial,
                    users::name,
                    dsl::key,
                    dsl::source,
                    dsl::session_id,
                    dsl::issued_at,
                    dsl::expires_at,
                    dsl::last_used_at,
                ))
                .into_boxed();
            if let Some(user) = user {
                query = query.filter(dsl::user_id.eq(user.as_str()));
            }
            query.load(conn).await
        })?)
    }

    /// The certificates of `user` that hold at `now`: serial numbers and keys.
    pub(super) async fn certificates_of(
        &mut self,
        user: &Id,
        now: UnixTime,
    ) -> Result<Vec<(i64, String)>, Error> {
        let rows = self.certificates_where(Some(user), now).await?;
        Ok(rows.into_iter().map(|row| (row.serial, row.key)).collect())
    }

    /// Whether a certificate holds for the account at its epoch; takes note that it was used.
    pub(super) async fn use_certificate(
        &mut self,
        (user, epoch): (&Id, i64),
        serial: i64,
        now: UnixTime,
    ) -> Result<bool, Error> {
        use login_certificates::dsl;
        let used = on!(self.engine(), conn => {
            diesel::update(dsl::login_certificates.find(serial))
                .filter(dsl::user_id.eq(user.as_str()).and(dsl::epoch.eq(epoch)))
                .filter(dsl::revoked_at.is_null().and(dsl::expires_at.gt(now.0)))
                .set(dsl::last_used_at.eq(now.0))
                .execute(conn)
                .await
        })?;
        Ok(used == 1)
    }

    /// Remembers by which certificate a session was opened.
    pub(super) async fn opened_by_certificate(
        &mut self,
        session: &Id,
        serial: i64,
    ) -> Result<(), Error> {
        use session_certificates::dsl;
        let row = (dsl::session_id.eq(session.as_str()), dsl::serial.eq(serial));
        on!(self.engine(), conn => {
            diesel::insert_into(dsl::session_certificates).values(row).execute(conn).await
        })?;
        Ok(())
    }
}
