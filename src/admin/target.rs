//! Targets: register, list, show; their accounts and trusted host keys.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use serde::Serialize;
use zeroize::Zeroizing;

use super::output::{Format, Row, json_line, list, show};
use super::{Out, Verbs};
use crate::cli::{AccountCommand, TargetCommand};
use crate::domain::{
    AccountAuth, Grant, GrantObject, Id, Mode, RuleOrDefault, Target, TargetAddress, TargetName,
    UnixTime,
};
use crate::keys;
use crate::policy;
use crate::store::{AccountRow, Store, TrustedKey};

/// How long a new target's name may take to resolve, for the sake of a warning.
const RESOLVE: std::time::Duration = std::time::Duration::from_secs(3);

/// What a command takes from elsewhere than its arguments.
#[derive(Default)]
pub struct TargetInput {
    /// A private key or password, from standard input.
    pub secret: Option<Zeroizing<Vec<u8>>>,
    /// A host key, from a file or shown by the target: its line and fingerprint.
    pub key: Option<(String, String)>,
}

/// The target `name`.
///
/// # Errors
/// When there is none, or the store fails.
pub async fn find_target(store: &Store, name: &TargetName) -> anyhow::Result<Target> {
    let found = store.targets().await?.into_iter().find(|target| target.name == *name);
    found.with_context(|| format!("there is no target {name}: see 'sallyport target list'"))
}

/// Runs `target ...`.
///
/// # Errors
/// What the store says, or what is wrong with the input.
pub async fn targets(
    verbs: &Verbs<'_>,
    command: TargetCommand,
    input: TargetInput,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        TargetCommand::Add { name, address, mode, mut labels } => {
            labels.sort();
            if labels.windows(2).any(|pair| matches!(pair, [a, b] if a.key == b.key)) {
                bail!("a target has one value for each label: give every key once");
            }
            let target = Target {
                id: Id::random()?,
                name,
                address,
                mode,
                labels,
                sign_in: None,
                created_at: now,
            };
            store.add_target(&target, context, now).await?;
            added(&target, out)?;
            if let Some(warning) = unreachable(&target).await {
                writeln!(out, "warning: {warning}")?;
            }
        }
        TargetCommand::List => list(out, verbs.format, &store.targets().await?)?,
        TargetCommand::Show { name } => show(out, verbs.format, &detail(store, &name).await?)?,
        TargetCommand::Remove { name } => {
            store.remove_target(&name, context, now).await?;
            writeln!(out, "target {name} is removed, with the grants for it alone")?;
        }
        TargetCommand::Pin { name, authority, replace, .. } => {
            let key = input.key.context("there is no host key to pin")?;
            pin(verbs, &name, key, (authority, replace), out).await?;
        }
        TargetCommand::Unpin { name } => {
            let unpinned = store.unpin_keys(&name, fingerprint, context, now).await?;
            writeln!(out, "no host key of {name} is trusted any more ({unpinned} were)")?;
        }
        TargetCommand::SignIn { name, rule: RuleOrDefault(rule) } => {
            store.set_target_sign_in(&name, rule.as_ref(), context, now).await?;
            match rule {
                Some(rule) => writeln!(out, "{name} asks for {rule}")?,
                None => writeln!(out, "{name} asks for nothing more than what lets people in")?,
            }
        }
        TargetCommand::Account(command) => accounts(verbs, command, input.secret, out).await?,
    }
    Ok(())
}

/// Why nobody would be let through to a target, if its name leads nowhere that is permitted.
pub(super) async fn unreachable(target: &Target) -> Option<String> {
    let (host, port) = (&target.address.host, target.address.port);
    let looking = tokio::net::lookup_host((host.as_str(), port));
    // One that does not resolve yet is no fault.
    let found = tokio::time::timeout(RESOLVE, looking).await.ok()?.ok()?;
    let found: Vec<_> = found.map(|address| address.ip()).collect();
    let ip = policy::forbidden_address(host, &found)?;
    let address = std::net::SocketAddr::new(ip, port);
    Some(format!(
        "{} is at {host}, which leads to {ip}, and no name may lead there: everybody is refused. \
         Register the address itself, if that is meant: sallyport target add NAME {address}",
        target.name
    ))
}

fn added(target: &Target, out: &mut Out<'_>) -> std::io::Result<()> {
    let Target { name, address, mode, .. } = target;
    writeln!(out, "target {name} is {address} ({mode})")?;
    if *mode == Mode::Record {
        writeln!(out, "next, trust its host key: sallyport target pin {name}")?;
    }
    Ok(())
}

async fn pin(
    verbs: &Verbs<'_>,
    name: &TargetName,
    (line, new): (String, String),
    (authority, replace): (bool, bool),
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    let target = find_target(store, name).await?;
    let trusted = store.trusted_keys(&target.id).await?;
    let others: Vec<&TrustedKey> = trusted.iter().filter(|key| key.key != line).collect();
    if replace {
        store.unpin_keys(name, fingerprint, context, now).await?;
    } else if !others.is_empty() && !authority {
        let old: Vec<String> = others.iter().map(|key| fingerprint(&key.key)).collect();
        bail!(
            "{name} is trusted by {}, and this is {new}: if you know why it changed, add --replace",
            old.join(", ")
        );
    }
    store.pin_key(name, (&line, &new), authority, context, now).await?;
    match verbs.format {
        Format::Json => json_line(out, &store.trusted_keys(&target.id).await?)?,
        Format::Table { .. } if authority => {
            writeln!(out, "host certificates of {name} by {new} are trusted")?;
        }
        Format::Table { .. } => writeln!(out, "{name} is trusted by its host key {new}")?,
    }
    Ok(())
}

async fn accounts(
    verbs: &Verbs<'_>,
    command: AccountCommand,
    secret: Option<Zeroizing<Vec<u8>>>,
    out: &mut Out<'_>,
) -> anyhow::Result<()> {
    let (store, context, now) = (verbs.store, verbs.context, verbs.now);
    match command {
        AccountCommand::Add { target, account, auth, .. } => {
            let secret = checked(auth, secret)?;
            let secret = secret.as_ref().map(|secret| secret.as_slice());
            if find_target(store, &target).await?.mode == Mode::Tunnel {
                bail!(
                    "{target} is in tunnel mode: people sign in there themselves, so it takes no \
                     accounts (see 'sallyport target add --help')"
                );
            }
            let rows = store.accounts(&target).await?;
            let before = rows.iter().find(|row| row.account == account.as_str());
            store.set_account(&target, &account, (auth, secret), context, now).await?;
            let instead = before.map(|row| format!(", no longer by: {}", row.auth));
            let instead = instead.unwrap_or_default();
            writeln!(out, "the bastion signs in on {target} as {account} by: {auth}{instead}")?;
        }
        AccountCommand::List { target } => {
            list(out, verbs.format, &store.accounts(&target).await?)?;
        }
        AccountCommand::Remove { target, account } => {
            store.remove_account(&target, &account, context, now).await?;
            writeln!(out, "account {account} of {target} is forgotten")?;
        }
    }
    Ok(())
}

/// The secret, if it is what `auth` takes.
fn checked(
    auth: AccountAuth,
    secret: Option<Zeroizing<Vec<u8>>>,
) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
    match (auth, secret) {
        (AccountAuth::Key, Some(key)) => {
            keys::private_key(&key)?;
            Ok(Some(key))
        }
        (AccountAuth::Password, Some(text)) => {
            let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
            let password = text.get(..=end.context("the password is empty")?);
            let password = password.unwrap_or_default().to_vec();
            std::str::from_utf8(&password).context("the password is not UTF-8")?;
            Ok(Some(Zeroizing::new(password)))
        }
        (AccountAuth::Key | AccountAuth::Password, None) => {
            bail!("--auth {auth} takes a secret: give it with --secret-stdin")
        }
        (AccountAuth::Ca | AccountAuth::Agent | AccountAuth::Ask, Some(_)) => {
            bail!("--auth {auth} takes no secret: leave --secret-stdin out")
        }
        (AccountAuth::Ca | AccountAuth::Agent | AccountAuth::Ask, None) => Ok(None),
    }
}

/// The fingerprint of a stored key.
fn fingerprint(line: &str) -> String {
    keys::fingerprint(line).unwrap_or_else(|| "an unreadable key".to_owned())
}

async fn detail(store: &Store, name: &TargetName) -> anyhow::Result<TargetDetail> {
    let target = find_target(store, name).await?;
    let meant = |grant: &Grant| match &grant.object {
        GrantObject::Target(name) => *name == target.name,
        GrantObject::Label(label) => target.labels.contains(label),
    };
    let grants = store.grants().await?.into_iter().filter(meant).collect();
    let accounts = store.accounts(name).await?;
    let host_keys = store.trusted_keys(&target.id).await?;
    Ok(TargetDetail { target, accounts, host_keys, grants })
}

/// A target with all that belongs to it.
#[derive(Debug, Serialize)]
struct TargetDetail {
    #[serde(flatten)]
    target: Target,
    accounts: Vec<AccountRow>,
    host_keys: Vec<TrustedKey>,
    grants: Vec<Grant>,
}

impl Row for TargetDetail {
    const HEADINGS: &'static [&'static str] = &[
        "TARGET",
        "ADDRESS",
        "MODE",
        "LABELS",
        "ADDED",
        "SIGN-IN",
        "ACCOUNTS",
        "HOST KEYS",
        "GRANTED TO",
    ];
    fn cells(&self) -> Vec<String> {
        let mut cells = self.target.cells();
        let account = |row: &AccountRow| format!("{} ({})", row.account, row.auth);
        let accounts: Vec<String> = self.accounts.iter().map(account).collect();
        let key = |key: &TrustedKey| match key.authority {
            0 => fingerprint(&key.key),
            _ => format!("certificates by {}", fingerprint(&key.key)),
        };
        let keys: Vec<String> = self.host_keys.iter().map(key).collect();
        let keys = match (self.target.mode, keys.is_empty()) {
            (Mode::Record, true) => {
                format!("none: run 'sallyport target pin {}'", self.target.name)
            }
            _ => keys.join("; "),
        };
        let grants: Vec<String> = self.grants.iter().map(ToString::to_string).collect();
        cells.extend([
            self.target.created_at.to_string(),
            self.target.sign_in.as_ref().map(ToString::to_string).unwrap_or_default(),
            accounts.join("; "),
            keys,
            grants.join("; "),
        ]);
        cells
    }
}

impl Row for Target {
    const HEADINGS: &'static [&'static str] = &["TARGET", "ADDRESS", "MODE", "LABELS"];
    fn cells(&self) -> Vec<String> {
        let labels: Vec<String> = self.labels.iter().map(ToString::to_string).collect();
        vec![
            self.name.to_string(),
            self.address.to_string(),
            self.mode.to_string(),
            labels.join(" "),
        ]
    }
}

impl Row for AccountRow {
    const HEADINGS: &'static [&'static str] = &["ACCOUNT", "SIGNS IN BY", "SECRET", "ADDED"];
    fn cells(&self) -> Vec<String> {
        let secret = if self.secret { "sealed" } else { "" };
        let added = UnixTime(self.created_at).to_string();
        vec![self.account.clone(), self.auth.clone(), secret.to_owned(), added]
    }
}

/// The address of a target, for who wants to ask it for its host key.
///
/// # Errors
/// When there is no such target, or the store fails.
pub async fn address_of(store: &Store, name: &TargetName) -> anyhow::Result<TargetAddress> {
    Ok(find_target(store, name).await?.address)
}
