//! The keys that secrets are sealed under: list, add, rotate.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::output::{Format, Row, list};
use super::{Out, Verbs};
use crate::cli::KeyCommand;
use crate::store::seal::Keyring;
use crate::store::{SealingKey, Store};

impl Row for SealingKey {
    const HEADINGS: &'static [&'static str] = &["KEY", "SEALS", "SECRETS", "HERE"];

    fn cells(&self) -> Vec<String> {
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        vec![self.id.clone(), yes(self.seals), self.secrets.to_string(), yes(self.held)]
    }
}

/// Runs `key ...`.
///
/// # Errors
/// When the sealing key file cannot be read or written, a node does not hold the key, or the store
/// fails.
pub async fn sealing(
    verbs: &Verbs<'_>,
    command: KeyCommand,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let keyring = verbs.store.keyring();
    match command {
        KeyCommand::List => Ok(list(out, verbs.format, &verbs.store.sealing_keys().await?)?),
        KeyCommand::Add { file: Some(file) } => add_sealing_key(&file, verbs.format, out),
        KeyCommand::Add { file: None } => add(keyring, verbs.format, out),
        KeyCommand::Rotate { to: Some(to) } => rotate(verbs, &to, out).await,
        KeyCommand::Rotate { to: None } if verbs.store.is_shared() => bail!(
            "other nodes may share this store, and each needs the new key first: run 'sallyport key \
             add', copy {} to every node, then run 'sallyport key rotate --to KEY'",
            keyring.path().display()
        ),
        KeyCommand::Rotate { to: None } => {
            let to = added(keyring)?;
            rotate(verbs, &to, out).await
        }
    }
}

/// How long a server has to say which keys it holds, where another node notices if it is dead.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same, where none would: four times as long as a server takes to say that it lives.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// Waits until every server that uses the store said that it holds the key, or one said so not; then the
/// rotation refuses, and says which. SQLite's only one is forgotten if it says nothing any more.
async fn settle(store: &Store, key: &str) -> anyhow::Result<()> {
    let Some(mut seen) = store.node_without(key).await? else { return Ok(()) };
    store.ask_nodes().await?;
    let began = Instant::now();
    while let Some((node, beats)) = store.node_without(key).await? {
        if node == seen.0 && beats != seen.1 {
            return Ok(()); // It was asked and does not hold it.
        }
        let waited = began.elapsed();
        if store.is_shared() && waited >= PATIENCE {
            return Ok(());
        }
        if !store.is_shared() && waited >= DEAD_AFTER {
            store.forget_node(&node).await?;
        }
        seen = (node, beats);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn rotate(verbs: &Verbs<'_>, to: &str, out: &mut Out<'_>) -> anyhow::Result<()> {
    settle(verbs.store, to).await?;
    let secrets = verbs.store.rotate(to, verbs.context, verbs.now).await?;
    if verbs.format == Format::Json {
        writeln!(out, "{}", serde_json::json!({ "secrets": secrets, "key": to }))?;
    } else {
        writeln!(
            out,
            "{secrets} secrets were sealed anew, under the key {to}, which seals from now on"
        )?;
        writeln!(
            out,
            "a key that 'sallyport key list' shows no secrets for may be taken out of the file"
        )?;
    }
    Ok(())
}

/// Runs `key add --file`, for which no store is needed.
///
/// # Errors
/// When the file is no sealing key file, or cannot be written.
pub fn add_sealing_key(file: &Path, format: Format, out: &mut Out<'_>) -> anyhow::Result<()> {
    add(&Keyring::load(file)?, format, out)
}

fn add(keyring: &Keyring, format: Format, out: &mut Out<'_>) -> anyhow::Result<()> {
    let id = added(keyring)?;
    let file = keyring.path().display();
    if format == Format::Json {
        writeln!(out, "{}", serde_json::json!({ "key": id, "file": file.to_string() }))?;
    } else {
        writeln!(out, "added the key {id} to {file}; it seals nothing yet")?;
        writeln!(
            out,
            "copy the file to every node (restart those that get it as a credential), then run"
        )?;
        writeln!(out, "  sallyport key rotate --to {id}")?;
    }
    Ok(())
}

fn added(keyring: &Keyring) -> anyhow::Result<String> {
    let file: &Path = keyring.path();
    keyring.add_key().with_context(|| {
        format!(
            "failed to add a key to {}: if that is a credential, run 'sallyport key add --file FILE' on \
             the file it comes from, restart the service, then run 'sallyport key rotate --to KEY'",
            file.display()
        )
    })
}
