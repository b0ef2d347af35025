//! `passwd`: users choose another password.
//!
//! Always holds: a code is asked for before the old password, so that whoever finds an open session
//! cannot even try passwords; the new one keeps to the same rules as at the first login.

use anyhow::bail;
use secrecy::{ExposeSecret as _, SecretString};

use super::authenticator::OTHERS_END;
use super::dialog::Dialog;
use super::own::Own;
use super::proof::{Proof, TRIES, Wrong};
use crate::audit::{Event, Refusal, Step};
use crate::auth::password::{self, Broken, Verified};
use crate::auth::prompt;
use crate::domain::RadiusMode;

/// The most new passwords that may break a rule.
const MAX_NEW_PASSWORDS: u32 = 6;

pub(super) async fn change(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    if own.radius_mode().await? == Some(RadiusMode::Both) {
        let text = "your password is checked by a RADIUS server, so it is changed where that is: ask \
                    your administrator";
        return own.refuse(Refusal::NotOffered, text).await;
    }
    own.prove(dialog, Proof::Code).await?;
    let old = old_password(own, dialog).await?;
    let new = new_password(own, dialog, &old).await?;
    let hash = own.caller.service.hashing.hash(new).await?;
    let (store, context, now) = (own.store, &own.context, own.now());
    let account = own.caller.who.account();
    own.change(async |epoch| {
        let changed =
            store.choose_password(account, epoch, &hash, Vec::new(), context, now).await?;
        Ok(changed.map(|epoch| (epoch, ())))
    })
    .await?;
    dialog.say(&format!("Your password is changed. {OTHERS_END}")).await?;
    Ok(())
}

/// Asks for the present password until it is right, or a few were wrong.
async fn old_password(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<SecretString> {
    for _ in 0..TRIES {
        let typed = dialog.ask("The password you have now: ", false).await?;
        own.may_try().await?;
        let account = own.account().await?; // Not if it is locked by now.
        let hashing = &own.caller.service.hashing;
        match hashing.verify(typed.clone(), Some(account.password)).await? {
            Verified::Match { .. } => return Ok(typed),
            Verified::Mismatch => {}
        }
        let (step, reason) = (Step::Password, Refusal::WrongPassword);
        let wrong = Wrong { step, reason, drift: None, notes: Vec::new() };
        dialog.say(&own.failed(wrong).await?).await?;
    }
    bail!("too many wrong answers: nothing was changed");
}

/// Asks for a new password, twice.
async fn new_password(
    own: &Own<'_>,
    dialog: &mut Dialog<'_>,
    old: &SecretString,
) -> anyhow::Result<SecretString> {
    let rules = &own.caller.service.rules.password;
    for _ in 0..MAX_NEW_PASSWORDS {
        let new = dialog.ask(prompt::NEW_PASSWORD, false).await?;
        // Unlike a one-time password, the old one may be longer than the new one.
        let broken = if new.expose_secret() == old.expose_secret() {
            Err(Broken::Same)
        } else {
            password::check_new(&new, None, own.caller.who.user(), rules)
        };
        if let Err(broken) = broken {
            let (step, reason) = (Step::NewPassword, Refusal::PasswordRejected);
            let note = Event::StepFailed { step, reason };
            own.store.record(own.now(), &own.context, note).await?;
            dialog.say(&broken.to_string()).await?;
            continue;
        }
        let again = dialog.ask(prompt::REPEAT, false).await?;
        if new.expose_secret() == again.expose_secret() {
            return Ok(new);
        }
        dialog.say(prompt::NO_MATCH).await?;
    }
    bail!("no new password was chosen: the old one stays");
}
