//! `keys add` and `keys remove`: users look after their own public keys.
//!
//! Always holds: a key, which can stand for the password from then on, is added only after a fresh
//! code, and only if it is strong. Without a terminal, the code is a line after the keys: what is
//! read from a pipe is never taken for a code by its place alone.

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};

use super::authenticator::OTHERS_END;
use super::dialog::{Dialog, NoAnswer};
use super::own::{Own, Proof};
use crate::admin;
use crate::domain::printable;

/// What the line with the code begins with.
const CODE: &str = "code ";
/// The most lines that are read.
const MAX_LINES: usize = 100;

pub(super) async fn add(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    let text = if dialog.has_terminal() {
        let line = dialog.ask("Public key: ", true).await?;
        line.expose_secret().to_owned()
    } else {
        let (text, code) = piped(dialog).await?;
        let code = code.context(
            "no code came with the key: end with a line such as \"code 492039\", or connect with a \
             terminal (ssh -t)",
        )?;
        dialog.answer(code.expose_secret());
        text
    };
    let keys = admin::read_keys(&text)?;
    own.prove(dialog, Proof::Code).await?;
    let (account, name) = (own.account_and_epoch(), own.caller.who.user());
    let added = own.store.add_own_keys(account, name, &keys, &own.context, own.now()).await?;
    own.made(added).await?;
    for (fingerprint, _) in &keys {
        dialog.say(&format!("You may sign in with {fingerprint} and a code.")).await?;
    }
    Ok(())
}

/// The lines of standard input, and the code among them.
async fn piped(dialog: &mut Dialog<'_>) -> anyhow::Result<(String, Option<SecretString>)> {
    let (mut text, mut code) = (String::new(), None);
    for _ in 0..MAX_LINES {
        let line = match dialog.read().await {
            Ok(line) => line,
            Err(error) if error.is::<NoAnswer>() => return Ok((text, code)),
            Err(error) => return Err(error),
        };
        match line.expose_secret().strip_prefix(CODE) {
            Some(typed) => code = Some(SecretString::from(typed.trim())),
            None => {
                text.push_str(line.expose_secret());
                text.push('\n');
            }
        }
        if code.is_some() {
            return Ok((text, code));
        }
    }
    bail!("there are more than {MAX_LINES} lines: give the keys, then the code");
}

pub(super) async fn remove(
    own: &Own<'_>,
    dialog: &mut Dialog<'_>,
    fingerprint: &str,
) -> anyhow::Result<()> {
    let (store, context, now) = (own.store, &own.context, own.now());
    let who = own.caller.who;
    own.change(async |epoch| {
        let account = (who.account(), epoch);
        let removed = store.remove_own_key(account, who.user(), fingerprint, context, now).await?;
        Ok(removed.map(|epoch| (epoch, ())))
    })
    .await?;
    let text = format!("You may no longer sign in with {}. {OTHERS_END}", printable(fingerprint));
    dialog.say(&text).await?;
    Ok(())
}
