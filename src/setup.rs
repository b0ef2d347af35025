//! What has to be there before anything can be done: folder, keys, store, a first administrator.
//!
//! Always holds: only [`init`] makes anything, and for a store that has users already no key but the
//! login CA's; the first administrator's password is shown once, on a terminal only, but for `init --json`,
//! which is asked for it.

pub mod first_password;
mod radius;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};

use crate::audit::{Actor, Context};
use crate::auth::password::{self, Cost};
use crate::clock::Clock;
use crate::config::{Config, KeyFile};
use crate::domain::{Role, SecondFactor, UserName};
use crate::keys::{self, AuditKey};
use crate::server;
use crate::store::seal::Keyring;
use crate::store::{NewUser, Opening, Settings as StoreSettings, Store};

pub use radius::{radius_server, radius_settings};

/// The first administrator's name.
const FIRST_ADMIN: &str = "admin";

/// What a hash costs by the configuration.
pub fn cost(config: &Config) -> Cost {
    let memory_kib = u32::try_from(config.login.argon2_memory.bytes() / 1024).unwrap_or(u32::MAX);
    Cost { memory_kib, passes: config.login.argon2_passes, lanes: 1 }
}

/// What a new password must keep to.
pub fn password_rules(config: &Config) -> password::Rules {
    password::Rules {
        min_length: config.login.password_min_length,
        min_score: config.login.password_min_score,
    }
}

/// Makes `dir`, for the owner only, if it is not there; refuses one that others can enter.
pub(crate) fn private_folder(dir: &Path) -> anyhow::Result<()> {
    let name = dir.display();
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("failed to make {name}"))?;
    }
    let mode = fs::metadata(dir)
        .with_context(|| format!("failed to look at {name}"))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        bail!("others can enter the data folder {name}: run chmod 700 {name}");
    }
    Ok(())
}

/// Opens the store as it is; what is missing or too old is an error that says what to do.
///
/// # Errors
/// When keys or store cannot be used.
pub async fn open(config: &Config) -> anyhow::Result<Store> {
    let sealing = config.key_path(KeyFile::SealingKey);
    if !is_there(&sealing)? {
        bail!(
            "there is no sealing key at {}: run 'sallyport serve' or 'sallyport init' first, name \
             the configuration with --config, or, if the service has its keys as credentials, pass \
             them on as its unit says",
            sealing.display()
        );
    }
    let keyring = Keyring::load(&sealing)?;
    let audit = AuditKey::new(keys::load(&config.key_path(KeyFile::AuditKey))?);
    Ok(Store::open(&store_settings(config)?, keyring, audit, Opening::AsItIs).await?)
}

/// Opens the store, making folder, keys and the store itself if they are missing.
async fn prepare(config: &Config) -> anyhow::Result<Store> {
    private_folder(&config.data_dir)?;
    let settings = store_settings(config)?;
    for key in KeyFile::ALL {
        let path = config.key_path(key);
        // New keys would neither open what is sealed in a store nor go on signing its log. The login
        // CA's is younger than some stores, and a new one only ends what the old one signed.
        if key != KeyFile::LoginCa && !is_there(&path)? && Store::is_used(&settings).await? {
            bail!(
                "there is no {} at {}, but the store has users already: put the key file that \
                 belongs to it there, or pass the credential",
                key.shown(),
                path.display()
            );
        }
    }
    let keyring = Keyring::load_or_create(&config.key_path(KeyFile::SealingKey))?;
    for key in KeyFile::ALL.into_iter().filter(|key| *key != KeyFile::SealingKey) {
        keys::load_or_create(&config.key_path(key), &format!("sallyport {}", key.shown()))?;
    }
    let audit = AuditKey::new(keys::load(&config.key_path(KeyFile::AuditKey))?);
    Ok(Store::open(&settings, keyring, audit, Opening::Prepare).await?)
}

fn is_there(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| format!("failed to look for {}", path.display()))
}

fn store_settings(config: &Config) -> anyhow::Result<StoreSettings> {
    Ok(StoreSettings {
        url: config.store_url(),
        password: secret_file(config.store_password_path().as_deref())?,
        tls_ca_file: some_path(&config.store.tls_ca_file),
        connections: config.store.connections,
        node: node(config),
    })
}

/// The text of a secret file, without the line break at its end.
pub(crate) fn secret_file(path: Option<&Path>) -> anyhow::Result<Option<SecretString>> {
    let Some(path) = path else { return Ok(None) };
    let bytes = keys::read_secret(path)?;
    let text =
        std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
}

fn some_path(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

/// The name that the host gives itself.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// The name of this node.
pub(crate) fn node(config: &Config) -> String {
    if config.node.is_empty() { host_name() } else { config.node.clone() }
}

/// Makes everything that a first start makes: folder, keys, store, administrator. Gives the store
/// and, if the administrator is new, their one-time password.
///
/// # Errors
/// When something of it cannot be made or used.
pub async fn init(config: &Config, clock: &Clock) -> anyhow::Result<(Store, Option<SecretString>)> {
    let store = prepare(config).await?;
    if store.has_users().await? {
        return Ok((store, None));
    }
    // One at a time in a folder, which has one file for the password.
    let folder = fs::File::open(&config.data_dir)?;
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)
        .with_context(|| format!("failed to lock {}", config.data_dir.display()))?;
    let admin =
        if store.has_users().await? { None } else { first_admin(config, &store, clock).await? };
    Ok((store, admin))
}

async fn first_admin(
    config: &Config,
    store: &Store,
    clock: &Clock,
) -> anyhow::Result<Option<SecretString>> {
    let name: UserName = FIRST_ADMIN.parse()?;
    let one_time = password::one_time()?;
    let now = clock.now();
    let new = NewUser {
        name: &name,
        role: Role::Admin,
        // Said, so that no group's setting keeps the first administrator out with its servers.
        factor: Some(SecondFactor::TOTP),
        password_hash: &password::hash(&one_time, cost(config))?,
        one_time: true,
        binding_until: now.plus(config.login.binding_window.0),
        keys: Vec::new(),
    };
    let context = Context { actor: Some(Actor::Server), ..Context::default() };
    first_password::keep(config, &one_time).context("failed to keep the first password")?;
    match store.add_user(&new, &context, now).await {
        Ok(_) => Ok(Some(one_time)),
        // Another node was first.
        Err(crate::store::Error::Conflict(_)) => first_password::discard(config).map(|()| None),
        Err(error) => {
            // Whether it was added is not told by a connection that broke: the password is kept then.
            if matches!(store.has_users().await, Ok(false)) {
                first_password::discard(config)?;
            }
            Err(error.into())
        }
    }
}

/// The host key's kind and fingerprint, as ssh's question about it has them.
///
/// # Errors
/// When it cannot be used.
pub fn host_key(config: &Config) -> anyhow::Result<String> {
    let key = keys::load(&config.key_path(KeyFile::HostKey))?;
    Ok(format!("ED25519 {}", keys::public_key_line(key.public_key())?.1))
}

/// What `init --json` tells.
///
/// # Errors
/// When the host key cannot be used.
pub fn made(config: &Config, one_time: Option<&SecretString>) -> anyhow::Result<serde_json::Value> {
    Ok(serde_json::json!({
        "data_dir": config.data_dir,
        "made": one_time.is_some(),
        "administrator": one_time.map(|_| FIRST_ADMIN),
        "one_time_password": one_time.map(|password| password.expose_secret()),
        "host_key": host_key(config)?,
    }))
}

/// Tells whoever started it for the first time how to go on.
///
/// # Errors
/// When it cannot be written.
pub fn welcome(
    config: &Config,
    listening: &[SocketAddr],
    one_time: &SecretString,
) -> anyhow::Result<()> {
    let port = server::port_to_type(config.server.public_port, listening);
    let host = match config.server.public_host.as_str() {
        "" => "localhost",
        host => host,
    };
    let password = first_password::told(config, one_time, &std::io::stdout());
    let mut out = std::io::stdout().lock();
    writeln!(out, "This is the first start: made keys, a store and an administrator.\n")?;
    writeln!(out, "  administrator       admin")?;
    writeln!(out, "  one-time password   {password}")?;
    writeln!(out, "  sign in with        ssh -p {port} admin@{host}")?;
    writeln!(out, "  host key            {}, which ssh asks about\n", host_key(config)?)?;
    writeln!(out, "The first login sets a password and binds an authenticator app.")?;
    out.flush()?;
    // It was shown, and is not needed there.
    if std::io::stdout().is_terminal() {
        first_password::discard(config)?;
    }
    Ok(())
}
