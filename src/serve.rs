//! From a configuration to a running server: its settings, signals, reloads.
//!
//! Always holds: nothing listens before keys, store and configuration are in order.

mod reload;
mod systemd;

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::account::ThrottleRules;
use crate::auth::machine::{Methods, RadiusRules, Rules};
use crate::clock::Clock;
use crate::config::{Config, KeyFile, Loaded, Method};
use crate::console::Certificates;
use crate::keys::{self, Authorities};
use crate::logging;
use crate::radius;
use crate::recording::Writer;
use crate::server::forward::{FlowLimits, PumpLimits};
use crate::server::guard::{Guard, Limits};
use crate::server::hashing::Hashing;
use crate::server::radius::RadiusSettings;
use crate::server::settings::RecordSettings;
use crate::server::{self, Bastion, Front, Settings, relay, socket};
use crate::setup::{self, cost, host_name, init, password_rules, private_folder, welcome};
use crate::store::Store;

pub use reload::reload;

/// What one recording may hold in memory for a slow disk.
const RECORD_QUEUE: usize = 1 << 20;

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
    let certificates = certificates(config)?;
    let login_ca = certificates.as_ref().map(|certificates| certificates.authority.as_ref());
    let authorities = Authorities::load(&login.user_ca_files, login_ca)
        .context("failed to read login.user_ca_files")?;
    let rules = Rules {
        issuer: login.issuer.clone(),
        methods,
        max_answers: login.max_answers,
        password: password_rules(config),
        radius: RadiusRules {
            mode: config.radius.mode,
            both_in_one: config.radius.both_in_one,
            challenge_request: config.radius.challenge_request.clone(),
            code_life: config.radius.code_life.0,
        },
        certificates: authorities.has_listed(),
    };
    Ok(Settings {
        rules: Arc::new(rules),
        authorities: Arc::new(authorities),
        certificates,
        throttle: ThrottleRules {
            lock_after: i64::from(login.lock_after),
            site_lock_after: i64::from(login.site_lock_after),
            attack_after: i64::from(login.attack_after),
            code_failures_max: i64::from(login.code_failures_max),
            lock_for: login.lock_for.0,
            backoff_first: login.backoff_first.0,
            backoff_max: login.backoff_max.0,
        },
        login_grace: server.login_grace.0,
        binding_grace: server.binding_grace.0,
        binding_window: login.binding_window.0,
        max_channels: server.max_channels,
        max_sessions_per_account: server.max_sessions_per_account,
        dial_timeout: forward.dial_timeout.0,
        flow: FlowLimits {
            window: u32::try_from(forward.window.bytes())?,
            channel: forward.channel_budget.as_usize(),
            connection: forward.connection_budget.as_usize(),
            total: forward.total_budget.as_usize(),
        },
        pump: PumpLimits { stall: forward.stall_timeout.0 },
        radius: radius_settings(config)?,
        record: record_settings(config),
        banner: server.banner.clone(),
        older_clients: server.older_clients,
        public_host: config.server.public_host.clone(),
        host_name: host_name(),
        public_port: server.public_port,
        keepalive: server.keepalive.0,
        drain: server.drain.0,
        proxy_from: server.proxy_from.clone(),
    })
}

/// How certificates are given to users, if they are.
fn certificates(config: &Config) -> anyhow::Result<Option<Certificates>> {
    let login = &config.login;
    let Some(life) = login.certificate_life.limit() else { return Ok(None) };
    let authority = keys::LoginCa::new(keys::load(&config.key_path(KeyFile::LoginCa))?);
    let bound_to_source = login.certificate_bound_to_source;
    Ok(Some(Certificates { authority: Arc::new(authority), life, bound_to_source }))
}

/// Reads the secrets of the RADIUS servers. Without servers, nobody waits for them.
fn radius_settings(config: &Config) -> anyhow::Result<RadiusSettings> {
    let radius = &config.radius;
    if radius.server.is_empty() {
        return Ok(RadiusSettings::default());
    }
    let servers = radius.server.iter().map(|server| setup::radius_server(config, server));
    let servers = servers.collect::<anyhow::Result<Vec<_>>>()?;
    let client = radius::Client::new(servers, setup::radius_settings(config))?;
    Ok(RadiusSettings { client: Some(Arc::new(client)), refusal_wait: radius.refusal_wait.0 })
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
            max_bytes: some(record.max_bytes.bytes()),
            max_account_bytes: some(record.max_bytes_per_account.bytes()),
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

/// Puts a bastion together from a configuration and an opened store.
///
/// # Errors
/// When a key cannot be used, or a value is out of range.
pub fn bastion(config: &Config, store: Store, clock: Clock) -> anyhow::Result<Bastion> {
    let settings = settings(config)?;
    let front = Front::new(keys::load(&config.key_path(KeyFile::HostKey))?, &settings);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let places =
        if config.login.hash_concurrency == 0 { cores } else { config.login.hash_concurrency };
    let hashing = Hashing::new(places, config.login.hash_queue, cost(config))?;
    let writer = Writer::start().context("failed to start the recordings' threads")?;
    let ca = |key| keys::load(&config.key_path(key));
    let relay = relay::Shared::new(ca(KeyFile::HostCa)?, ca(KeyFile::UserCa)?, writer);
    let guard = Guard::new(limits(config));
    Ok(Bastion::new(store, clock, guard, hashing, (settings, front), relay))
}

/// `sallyport serve`: serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or the store fails at the start or the end.
pub async fn serve(
    loaded: Loaded,
    load_again: impl Fn() -> anyhow::Result<Loaded> + Send + 'static,
    log: logging::Filter,
) -> anyhow::Result<()> {
    let config = loaded.config;
    allow_files().context("failed to raise the limit of open files")?;
    private_folder(&config.data_dir)?;
    let _lock = lock(&config.data_dir)?;
    // Before anybody can see that it listens, so that a signal from then on stops it in good order.
    let shutdown = CancellationToken::new();
    let signals = watch_signals(shutdown.clone())?;
    let hangup = signal(SignalKind::hangup())?;
    // Before anything is made: whoever cannot listen must not have made an administrator whose
    // password nobody is told. Who connects already waits until everything is there.
    let listeners = socket::listeners(&config.server.listen)?;
    let mut addresses = Vec::new();
    for listener in &listeners {
        let address = listener.local_addr()?;
        tracing::info!(%address, "listening");
        addresses.push(address);
    }
    let (store, one_time) = init(&config, &Clock::System).await?;
    if let Some(one_time) = one_time {
        welcome(&config, &addresses, &one_time)?;
    }
    let bastion = Arc::new(bastion(&config, store, Clock::System)?);
    let anchor = bastion.store.audit_head().await?;
    tracing::info!(anchor = %anchor, key = %bastion.store.audit_key().public().fingerprint(), "audit log");

    let helpers = TaskTracker::new();
    let stop = CancellationToken::new();
    helpers.spawn(stop.clone().run_until_cancelled_owned(signals));
    let (settled, bastion_of) = (config.clone(), Arc::clone(&bastion));
    let forgetting = async move { setup::first_password::forget(settled, &bastion_of).await };
    helpers.spawn(stop.clone().run_until_cancelled_owned(forgetting));
    let reloading = reload::watch(Arc::clone(&bastion), config, log, hangup, load_again);
    helpers.spawn(stop.clone().run_until_cancelled_owned(reloading));
    let watched = Arc::clone(&bastion);
    let watchdog = async move { systemd::watchdog(&watched.pulse).await };
    helpers.spawn(stop.clone().run_until_cancelled_owned(watchdog));
    helpers.close();
    systemd::ready();

    let result = server::run(bastion, listeners, shutdown.clone()).await;
    stop.cancel();
    helpers.wait().await;
    result?;
    if !shutdown.is_cancelled() {
        anyhow::bail!("nothing accepted connections any more: the log says what happened");
    }
    Ok(())
}

/// Takes as many open files as the system allows: each connection is one, and each forward another. What
/// a shell gives by default is for programs that use select(2).
fn allow_files() -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
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
        systemd::stopping();
        shutdown.cancel();
    })
}
