//! Certificates that the login CA gave to users.

use std::io::Write as _;

use super::output::{Row, list};
use super::{Out, Verbs};
use crate::cli::CertificateCommand;
use crate::domain::{UnixTime, UserName};
use crate::store::CertificateRow;

/// Runs `certificate ...`.
///
/// # Errors
/// What the store says.
pub async fn certificates(
    verbs: &Verbs<'_>,
    command: CertificateCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    match command {
        CertificateCommand::List { user } => {
            let rows = verbs.store.certificates(user.as_ref(), verbs.now).await?;
            Ok(list(out, verbs.format, &rows)?)
        }
        CertificateCommand::Revoke { serial } => revoke_certificate(verbs, None, serial, out).await,
    }
}

/// Revokes a certificate, of this user only if one is named.
///
/// # Errors
/// When there is none that holds, or the store fails.
pub async fn revoke_certificate(
    verbs: &Verbs<'_>,
    user: Option<&UserName>,
    serial: i64,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    verbs.store.revoke_certificate(user, serial, verbs.context, verbs.now).await?;
    Ok(writeln!(out, "certificate {serial} is revoked; sessions that it opened end")?)
}

impl Row for CertificateRow {
    const HEADINGS: &'static [&'static str] =
        &["SERIAL", "USER", "KEY", "FROM", "ISSUED", "UNTIL", "LAST USED"];
    fn cells(&self) -> Vec<String> {
        let time = |at: i64| UnixTime(at).to_string();
        vec![
            self.serial.to_string(),
            self.user.clone(),
            self.key.clone(),
            self.source.clone().unwrap_or_else(|| "anywhere".to_owned()),
            time(self.issued_at),
            time(self.expires_at),
            self.last_used_at.map(time).unwrap_or_default(),
        ]
    }
}
