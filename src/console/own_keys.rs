//! `keys add` and `keys remove`: users look after their own public keys.
//!
//! Always holds: a key, which can stand for the password from then on, is added only after a fresh
//! code, and only if it is strong; removing one takes a code, too. Without a terminal nothing can be asked
//! (standard input is the file with the keys): the code is that of the sign-in, if the command is the first
//! thing on the connection and follows at once, or a line after the keys. What is read from a pipe is
//! never taken for a code by its place alone.

use anyhow::bail;
use secrecy::{ExposeSecret as _, SecretString};

use super::authenticator::OTHERS_END;
use super::dialog::{Dialog, NoAnswer};
use super::own::Own;
use super::proof::Proof;
use crate::admin;
use crate::audit::Refusal;
use crate::domain::{RadiusMode, printable};

/// What the line with the code begins with.
const CODE: &str = "code ";
/// The most lines that are read.
const MAX_LINES: usize = 100;

pub(super) async fn add(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    let (text, is_proven) = if dialog.has_terminal() {
        let line = dialog.ask("Public key: ", true).await?;
        (line.expose_secret().to_owned(), false)
    } else {
        let (text, code) = piped(dialog).await?;
        if let Some(code) = &code {
            dialog.answer(code.expose_secret());
        } else if !own.is_fresh() {
            return stale(own).await;
        }
        (text, code.is_none())
    };
    let keys = admin::read_keys(&text)?;
    if is_proven {
        own.account().await?; // Not if it is locked or changed by now.
    } else {
        own.prove(dialog, Proof::Code).await?;
    }
    let (account, name) = (own.account_and_epoch(), own.caller.who.user());
    let added = own.store.add_own_keys(account, name, &keys, &own.context, own.now()).await?;
    own.made(added).await?;
    for (fingerprint, _) in &keys {
        dialog.say(&format!("You may sign in with {fingerprint} and a code.")).await?;
    }
    Ok(())
}

/// Refuses keys that no fresh code came with; says exactly what to type.
async fn stale(own: &Own<'_>) -> anyhow::Result<()> {
    let (caller, command) = (own.caller, own.purpose.to_string());
    let mut ways = Vec::new();
    // Else the next connection would take no code either.
    let why = if caller.who.code_at().is_some() {
        let anew = caller.own_line("-S none ", &command);
        ways.push(format!("connect anew, as '{anew} < id_ed25519.pub'"));
        "this connection was opened over a minute ago, or is shared"
    } else {
        "your sign-in took none that counts here"
    };
    if own.radius_mode().await? != Some(RadiusMode::Both) {
        ways.push("end the input with a line such as \"code 492039\"".to_owned());
    }
    ways.push(format!("paste the key into '{}'", caller.own_line("-t ", &command)));
    let text = format!("no code came with the key, and {why}: {}", ways.join(", or "));
    own.refuse(Refusal::WrongCode, &text).await
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
    own.prove(dialog, Proof::Code).await?;
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
