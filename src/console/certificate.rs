//! `certificate`: a short-lived certificate of the login CA for one of the user's keys.
//!
//! Always holds: a certificate is given only in a session that a code was used up for, so that none
//! leads to another, and as the first thing of it, so that whoever finds one open gets none for a key of
//! their own; the store knows of it before its holder does.

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncWriteExt as _;

use super::dialog::{Dialog, NoAnswer};
use super::own::Own;
use crate::audit::Refusal;
use crate::domain::Factors;
use crate::keys;
use crate::store::{MAX_CERTIFICATES, NewCertificate};

/// The most lines that are looked through for a key.
const MAX_LINES: usize = 100;

pub(super) async fn issue(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    let (caller, who) = (own.caller, own.caller.who);
    let Some(settings) = &caller.certificates else {
        let text = "no certificates are given here: an administrator can set \
                    login.certificate_life in the configuration";
        return own.refuse(Refusal::NotOffered, text).await;
    };
    if !who.code_given() {
        let text = "a certificate is given only to who has just signed in with a code: sign in \
                    without the one that you have, as with 'ssh -F none'";
        return own.refuse(Refusal::SignInRule, text).await;
    }
    // The time of a recovery code is not kept.
    let just_now = own.is_fresh() || (who.code_at().is_none() && caller.service.is_first);
    if !just_now {
        let text = "a certificate is given only right after a code, on a connection of its own, as with \
                    'ssh -F none' or 'ssh -S none'";
        return own.refuse(Refusal::SignInRule, text).await;
    }
    let source = caller.source.ip();
    let policy = own.store.user(who.user()).await?.sign_in;
    if !policy.allows(Factors::CERTIFICATE.with(Factors::OTP), source) {
        let text = format!("a certificate would not let you in: you have to give {policy}");
        return own.refuse(Refusal::SignInRule, &text).await;
    }
    let line = public_key(dialog).await?;
    let (fingerprint, _) = keys::public_key(line.expose_secret())?;
    let now = own.now();
    let until = now.plus(settings.life);
    let (account, epoch) = own.account_and_epoch();
    let session = own.context.session.as_ref().context("there is no session")?;
    let serial = keys::random_serial()?;
    let source = settings.bound_to_source.then(|| source.to_string());
    let request = keys::LoginCertificate {
        user: who.user().as_str(),
        key: line.expose_secret(),
        id: &format!("{} session {session} serial {serial}", who.user()),
        serial: serial.unsigned_abs(),
        source: source.as_deref(),
    };
    let certificate = settings.authority.issue(&request, now, settings.life)?;
    let key = fingerprint.as_str();
    let new = NewCertificate { serial, account, epoch, key, source, session, until };
    let issued = own.store.issue_certificate(&new, &own.context, now).await?;
    if let Err(reason @ Refusal::TooManyCertificates) = issued {
        let text = format!(
            "you have {MAX_CERTIFICATES} certificates that hold already: 'certificate list' shows them, \
             revoke one with 'certificate revoke SERIAL', or wait until one expires"
        );
        return own.refuse(reason, &text).await;
    }
    own.made(issued).await?;
    dialog.out().write_all(format!("{certificate}\n").as_bytes()).await?;
    dialog.out().flush().await?;
    let from = new.source.map(|source| format!(", from {source}")).unwrap_or_default();
    dialog
        .say(&format!("Certificate {serial} lets you in with {key}{from} until {until}."))
        .await?;
    Ok(())
}

/// The first public key that is typed or piped in.
async fn public_key(dialog: &mut Dialog<'_>) -> anyhow::Result<SecretString> {
    if dialog.has_terminal() {
        return dialog.ask("Public key: ", true).await;
    }
    for _ in 0..MAX_LINES {
        let line = match dialog.read().await {
            Ok(line) => line,
            Err(error) if error.is::<NoAnswer>() => break,
            Err(error) => return Err(error),
        };
        let text = line.expose_secret().trim();
        if !text.is_empty() && !text.starts_with('#') {
            return Ok(line);
        }
    }
    bail!("there is no public key: pipe one in, as '< ~/.ssh/id_ed25519.pub'")
}
