//! `otp unbind`, `otp rebind` and `otp codes`: users look after their own authenticator.
//!
//! Always holds: nothing is changed before a code was right; the old authenticator works until the
//! new one has shown a code; recovery codes are shown once, to whoever just made them.

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncWriteExt as _;

use super::dialog::Dialog;
use super::own::Own;
use super::proof::Proof;
use crate::audit::{Event, Note, Refusal, Step};
use crate::auth::prompt::{self, BindInput};
use crate::auth::qr::Style;
use crate::auth::{password, totp};
use crate::domain::TimeStep;
use crate::store::NewAuthenticator;

/// The most wrong codes of a new authenticator; its secret is on the screen, so this bounds only the
/// dialog.
const MAX_BIND_TRIES: u32 = 10;

/// What is told after the others ended.
pub(super) const OTHERS_END: &str = "Your other sessions end; this one goes on.";

/// New recovery codes in the place of the old ones.
pub(super) async fn codes(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    own.prove(dialog, Proof::Code).await?;
    let renewed =
        own.store.renew_recovery_codes(own.account_and_epoch(), &own.context, own.now()).await?;
    let codes = own.made(renewed).await?;
    let said = "New recovery codes, each works once; the old ones are void:\n";
    show(dialog, &codes, said, "\nThey are not shown again.").await
}

/// No authenticator any more; another may be bound for a while, by who reads what is shown here: the
/// password alone, which somebody else may know, must not bind.
pub(super) async fn unbind(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    own.prove(dialog, Proof::CodeOrRecovery).await?;
    let one_time = password::one_time().context("failed to make a password")?;
    let hash = own.caller.service.hashing.hash(one_time.clone()).await?;
    let until = own.now().plus(own.caller.service.binding_window);
    let (who, context, now) = (own.caller.who, &own.context, own.now());
    let store = own.store;
    own.change(async |epoch| {
        let unbound =
            store.unbind((who.account(), epoch), who.user(), (until, &hash), context, now).await?;
        Ok(unbound.map(|epoch| (epoch, ())))
    })
    .await?;
    let text = format!(
        "Your authenticator is unbound, and the recovery codes are void. {OTHERS_END}\n\
         At your next login you bind another one, until {until}. Sign in with this one-time\n\
         password, in place of the one you had; you choose a new one there. It is not shown again:"
    );
    dialog.say(&text).await?;
    let out = dialog.out();
    out.write_all(format!("{}\n", one_time.expose_secret()).as_bytes()).await?;
    out.flush().await?;
    Ok(())
}

/// Another authenticator in the place of the bound one.
pub(super) async fn rebind(own: &Own<'_>, dialog: &mut Dialog<'_>) -> anyhow::Result<()> {
    own.prove(dialog, Proof::CodeOrRecovery).await?;
    let (secret, step, notes) = bind(own, dialog).await?;
    let (store, context, now) = (own.store, &own.context, own.now());
    let account = own.caller.who.account();
    let codes = own
        .change(async |epoch| {
            let new = NewAuthenticator { account, epoch, secret: &secret, step };
            store.rebind(&new, notes, context, now).await
        })
        .await?;
    let said = "Bound; the old authenticator is void. Recovery codes, each works once:\n";
    let last = "\nType one in place of a 6-digit code when your phone is gone. Keep them where\n\
                your phone is not: they are not shown again.";
    show(dialog, &codes, said, last).await?;
    dialog.say(OTHERS_END).await?;
    Ok(())
}

/// Shows a new secret until a code of it was given; gives both, and what went wrong meanwhile.
async fn bind(
    own: &Own<'_>,
    dialog: &mut Dialog<'_>,
) -> anyhow::Result<(totp::Secret, TimeStep, Vec<Note>)> {
    let make = || totp::Secret::generate().context("failed to make a secret");
    let (mut secret, mut style, mut note) = (make()?, Style::HalfBlocks, None);
    let (mut notes, mut wrong) = (Vec::new(), 0);
    while wrong < MAX_BIND_TRIES {
        let uri = totp::uri(&own.caller.service.rules.issuer, own.caller.who.user(), &secret);
        let question = prompt::bind(style, &uri, &secret, note.as_deref());
        note = None;
        let answer = dialog.ask(&question, true).await?;
        let code = match prompt::bind_input(answer.expose_secret()) {
            BindInput::Invert if style == Style::Inverted => {
                style = Style::HalfBlocks;
                continue;
            }
            BindInput::Invert => {
                style = Style::Inverted;
                continue;
            }
            BindInput::Ascii => {
                style = Style::Ascii;
                continue;
            }
            BindInput::Renew => {
                secret = make()?;
                continue;
            }
            BindInput::Code(code) => code,
        };
        note = Some(match totp::check(&secret, &code, own.now(), TimeStep(i64::MIN)) {
            totp::Check::Matches(step) => return Ok((secret, step, notes)),
            totp::Check::Drifted { seconds } => {
                notes.push(own.note(Event::ClockDrift { seconds }));
                prompt::binding_drift(seconds)
            }
            totp::Check::Replayed(_) | totp::Check::Wrong => prompt::BINDING_WRONG.to_owned(),
        });
        let reason = Refusal::WrongCode;
        notes.push(own.note(Event::StepFailed { step: Step::Binding, reason }));
        wrong += 1;
    }
    own.store.record_all(&own.context, notes).await?;
    bail!("too many wrong codes: the old authenticator stays bound")
}

/// Shows recovery codes, which are all that goes to standard output.
async fn show(
    dialog: &mut Dialog<'_>,
    codes: &[SecretString],
    before: &str,
    after: &str,
) -> anyhow::Result<()> {
    dialog.say(before).await?;
    let table = prompt::recovery_table(codes);
    let out = dialog.out();
    out.write_all(table.as_bytes()).await?;
    out.flush().await?;
    dialog.say(after).await?;
    Ok(())
}
