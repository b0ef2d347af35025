//! From a configuration to an opened store and a running server.
//!
//! Always holds: nothing listens before keys, store and configuration are in order; the first
//! administrator's password is shown once, and never to a log.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Actor, Context};
use crate::auth::account::ThrottleRules;
use crate::auth::machine::{Methods, Rules};
use crate::auth::password::{self, Cost};
use crate::clock::Clock;
use crate::config::{Config, KeyFile, Loaded, Method};
use crate::domain::{Factor, Role, UserName};
use crate::keys::{self, AuditKey};
use crate::logging;
use crate::recording::Writer;
use crate::server::forward::{FlowLimits, PumpLimits};
use crate::server::guard::{Guard, Limits};
use crate::server::hashing::Hashing;
use crate::server::settings::RecordSettings;
use crate::server::{self, Bastion, Settings, SshConfig, relay, socket, ssh};
use crate::store::seal::Keyring;
use crate::store::{NewUser, Opening, Settings as StoreSettings, Store};

/// How long a host certificate is good for; a new one is made at every start, reload and day.
const CERTIFICATE: Duration = Duration::from_secs(90 * 24 * 3600);
/// What one recording may hold in memory for a slow disk.
const RECORD_QUEUE: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 3600);

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
fn private_folder(dir: &Path) -> anyhow::Result<()> {
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
        // New keys would neither open what is sealed in a store nor go on signing its log.
        if !is_there(&path)? && Store::is_used(&settings).await? {
            bail!(
                "there is no {} at {}, but the store has users already: put the key file that \
                 belongs to it there, or pass the credential",
                key.shown(),
                path.display()
            );
        }
    }
    let keyring = Keyring::load_or_create(&config.key_path(KeyFile::SealingKey))?;
    for key in [KeyFile::AuditKey, KeyFile::HostKey, KeyFile::HostCa, KeyFile::UserCa] {
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
        password: password_file(config.store_password_path().as_deref())?,
        tls_ca_file: some_path(&config.store.tls_ca_file),
        connections: config.store.connections,
        node: node(config),
    })
}

fn password_file(path: Option<&Path>) -> anyhow::Result<Option<SecretString>> {
    let Some(path) = path else { return Ok(None) };
    let bytes = keys::read_secret(path)?;
    let text =
        std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
}

fn some_path(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

fn node(config: &Config) -> String {
    if config.node.is_empty() { host_name() } else { config.node.clone() }
}

/// Makes everything that a first start makes: folder, keys, store, administrator. Gives the store
/// and, if the administrator is new, their one-time password.
///
/// # Errors
/// When something of it cannot be made or used.
pub async fn init(config: &Config, clock: &Clock) -> anyhow::Result<(Store, Option<SecretString>)> {
    let store = prepare(config).await?;
    let admin =
        if store.has_users().await? { None } else { first_admin(config, &store, clock).await? };
    Ok((store, admin))
}

async fn first_admin(
    config: &Config,
    store: &Store,
    clock: &Clock,
) -> anyhow::Result<Option<SecretString>> {
    let name: UserName = "admin".parse()?;
    let one_time = password::one_time()?;
    let now = clock.now();
    let new = NewUser {
        name: &name,
        role: Role::Admin,
        factor: Factor::Totp,
        password_hash: &password::hash(&one_time, cost(config))?,
        one_time: true,
        binding_until: now.plus(config.login.binding_window.0),
        keys: Vec::new(),
    };
    let context = Context { actor: Some(Actor::Server), ..Context::default() };
    match store.add_user(&new, &context, now).await {
        Ok(_) => Ok(Some(one_time)),
        // Another node was first.
        Err(crate::store::Error::Conflict(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
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
    // The journal is no place for a password. The variable alone says nothing: terminals of a desktop
    // inherit it from the session's manager.
    let journal = std::env::var("JOURNAL_STREAM").ok();
    let password = if logging::is_journal(journal.as_deref(), &std::io::stdout()) {
        let path = config.data_dir.join("first-password");
        keys::replace_secret(&path, one_time.expose_secret().as_bytes())?;
        format!("in the file {}: delete it afterwards", path.display())
    } else {
        one_time.expose_secret().to_owned()
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "This is the first start: made keys, a store and an administrator.\n")?;
    writeln!(out, "  administrator       admin")?;
    writeln!(out, "  one-time password   {password}")?;
    writeln!(out, "  sign in with        ssh -p {port} admin@{host}\n")?;
    writeln!(out, "The first login sets a password and binds an authenticator app.")?;
    out.flush()?;
    Ok(())
}

/// The settings of new connections.
///
/// # Errors
/// When a size is out of range; the configuration was checked for that.
pub fn settings(config: &Config) -> anyhow::Result<Settings> {
    let (login, server, forward) = (&config.login, &config.server, &config.forward);
    let offers = |method| login.methods.contains(&method);
    let methods = Methods {
        password: offers(Method::Password),
        publickey: offers(Method::PublicKey),
        keyboard_interactive: offers(Method::KeyboardInteractive),
    };
    let rules = Rules {
        issuer: login.issuer.clone(),
        methods,
        max_answers: login.max_answers,
        password: password_rules(config),
    };
    Ok(Settings {
        rules: Arc::new(rules),
        throttle: ThrottleRules {
            lock_after: i64::from(login.lock_after),
            lock_for: login.lock_for.0,
            backoff_first: login.backoff_first.0,
            backoff_max: login.backoff_max.0,
        },
        login_grace: server.login_grace.0,
        binding_grace: server.binding_grace.0,
        max_channels: server.max_channels,
        dial_timeout: forward.dial_timeout.0,
        flow: FlowLimits {
            window: u32::try_from(forward.window.bytes())?,
            channel: forward.channel_budget.as_usize(),
            total: forward.total_budget.as_usize(),
        },
        pump: PumpLimits { stall: forward.stall_timeout.0 },
        record: record_settings(config),
        banner: server.banner.clone(),
        public_host: config.server.public_host.clone(),
        host_name: host_name(),
        public_port: server.public_port,
        keepalive: server.keepalive.0,
        drain: server.drain.0,
        proxy_from: server.proxy_from.clone(),
    })
}

fn record_settings(config: &Config) -> RecordSettings {
    let record = &config.record;
    let some = |bytes: u64| (bytes > 0).then_some(bytes);
    RecordSettings {
        folder: config.recordings(),
        notice: record.notice.clone(),
        input: record.input,
        strict: record.strict,
        limits: crate::recording::Limits {
            queue_bytes: RECORD_QUEUE,
            min_free_bytes: record.min_free.bytes(),
        },
        trust_first_use: record.trust_first_use,
        keep_for: record.keep_for.limit(),
        keep_bytes: some(record.keep_bytes.bytes()),
    }
}

/// The guard's limits.
pub fn limits(config: &Config) -> Limits {
    let (server, login) = (&config.server, &config.login);
    let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    Limits {
        connections: server.max_connections,
        unauthenticated: server.max_unauthenticated,
        unauthenticated_per_source: server.max_unauthenticated_per_source,
        attempts_per_minute: at_least_one(login.attempts_per_minute),
        attempts_burst: at_least_one(login.attempts_burst),
        exempt: server.penalty_exempt.clone(),
    }
}

fn ssh_config(config: &Config, settings: &Settings, clock: &Clock) -> anyhow::Result<SshConfig> {
    let host_key = keys::load(&config.key_path(KeyFile::HostKey))?;
    let ca = keys::load(&config.key_path(KeyFile::HostCa))?;
    let mut names = vec![settings.public_host.clone(), settings.host_name.clone()];
    names.retain(|name| !name.is_empty());
    names.dedup();
    let public = host_key.public_key();
    let certificate = keys::host_certificate(&ca, public, &names, clock.now(), CERTIFICATE)?;
    Ok(ssh::config(host_key, certificate, settings.rules.methods, settings.flow.window))
}

/// Puts a bastion together from a configuration and an opened store.
///
/// # Errors
/// When a key cannot be used, or a value is out of range.
pub fn bastion(config: &Config, store: Store, clock: Clock) -> anyhow::Result<Bastion> {
    let settings = settings(config)?;
    let ssh = ssh_config(config, &settings, &clock)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let places =
        if config.login.hash_concurrency == 0 { cores } else { config.login.hash_concurrency };
    let hashing = Hashing::new(places, config.login.hash_queue, cost(config))?;
    let writer = Writer::start().context("failed to start the recordings' threads")?;
    let ca = |key| keys::load(&config.key_path(key));
    let relay = relay::Shared::new(ca(KeyFile::HostCa)?, ca(KeyFile::UserCa)?, writer);
    let guard = Guard::new(limits(config));
    Ok(Bastion::new(store, clock, guard, hashing, (settings, ssh), relay))
}

/// `sallyport serve`: serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or the store fails at the start or the end.
pub async fn serve(
    loaded: Loaded,
    load_again: impl Fn() -> anyhow::Result<Loaded> + Send + 'static,
) -> anyhow::Result<()> {
    let config = loaded.config;
    private_folder(&config.data_dir)?;
    let _lock = lock(&config.data_dir)?;
    // Before anybody can see that it listens, so that a signal from then on stops it in good order.
    let shutdown = CancellationToken::new();
    let signals = watch_signals(shutdown.clone())?;
    let hangup = signal(SignalKind::hangup())?;
    let (store, one_time) = init(&config, &Clock::System).await?;
    let bastion = Arc::new(bastion(&config, store, Clock::System)?);
    let listeners = socket::listeners(&config.server.listen)?;
    let mut addresses = Vec::new();
    for listener in &listeners {
        let address = listener.local_addr()?;
        tracing::info!(%address, "listening");
        addresses.push(address);
    }
    if let Some(one_time) = one_time {
        welcome(&config, &addresses, &one_time)?;
    }
    let anchor = bastion.store.audit_head().await?;
    tracing::info!(anchor = %anchor, key = %bastion.store.audit_key().public().fingerprint(), "audit log");

    let helpers = TaskTracker::new();
    let stop = CancellationToken::new();
    helpers.spawn(stop.clone().run_until_cancelled_owned(signals));
    let reloading = watch_reloads(Arc::clone(&bastion), config, hangup, load_again);
    helpers.spawn(stop.clone().run_until_cancelled_owned(reloading));
    helpers.spawn(stop.clone().run_until_cancelled_owned(watchdog()));
    helpers.close();
    notify(&[sd_notify::NotifyState::Ready]);

    let result = server::run(bastion, listeners, shutdown).await;
    stop.cancel();
    helpers.wait().await;
    Ok(result?)
}

/// Keeps a second server off the same data folder: it would close the first one's sessions.
fn lock(dir: &Path) -> anyhow::Result<fs::File> {
    let path = dir.join("serve.lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("failed to open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| anyhow::anyhow!("another sallyport serves from {}: stop it first", dir.display()),
    )?;
    Ok(file)
}

fn watch_signals(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        shutdown.cancel();
    })
}

/// On SIGHUP, and once a day for the sake of the host certificate, reads the configuration anew.
async fn watch_reloads(
    bastion: Arc<Bastion>,
    mut config: Config,
    mut hangup: tokio::signal::unix::Signal,
    load_again: impl Fn() -> anyhow::Result<Loaded> + Send + 'static,
) {
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(DAY) => false,
        };
        let new = if asked { load_again().map(|loaded| loaded.config) } else { Ok(config.clone()) };
        match new.and_then(|new| reload(&bastion, &config, new)) {
            Ok(new) => config = new,
            Err(error) => {
                let error = logging::whole(&error);
                tracing::error!(error, "failed to reload: the old configuration stays in force");
            }
        }
    }
}

fn reload(bastion: &Bastion, old: &Config, new: Config) -> anyhow::Result<Config> {
    let (_, restart) = Config::reloadable_differences(old, &new);
    for key in restart {
        tracing::warn!(key, "changed in the configuration: takes a restart");
    }
    let settings = settings(&new)?;
    let ssh = ssh_config(&new, &settings, &bastion.clock)?;
    bastion.guard.set_limits(limits(&new));
    bastion.reload(settings, ssh);
    tracing::info!("the configuration is in force for new connections");
    Ok(new)
}

/// Tells systemd twice in its interval that we live.
async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "failed to notify systemd");
    }
}
