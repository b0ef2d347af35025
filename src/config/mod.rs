//! The configuration: TOML, checked, with overrides from the environment.
//!
//! Always holds: a key nobody knows is an error, with its line and column; every key has a default,
//! and `config/sallyport.toml` shows all of them (a test compares the two); secrets are named by
//! file only.

mod load;
mod units;

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

pub use load::{Error, Loaded, load};
pub use units::{Size, Span};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys and, by default, the SQLite store are.
    pub data_dir: PathBuf,
    /// The name of this node in sessions and events; empty for the host's name.
    pub node: String,
    /// See [`Server`].
    pub server: Server,
    /// See [`Store`].
    pub store: Store,
    /// See [`Keys`].
    pub keys: Keys,
    /// See [`Login`].
    pub login: Login,
    /// See [`Forward`].
    pub forward: Forward,
    /// See [`Log`].
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("sallyport-data"),
            node: String::new(),
            server: Server::default(),
            store: Store::default(),
            keys: Keys::default(),
            login: Login::default(),
            forward: Forward::default(),
            log: Log::default(),
        }
    }
}

/// Listening, limits, deadlines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Addresses to listen on, unless systemd passes sockets.
    pub listen: Vec<SocketAddr>,
    /// The bastion's name as people type it; empty for the host's name.
    pub public_host: String,
    /// Shown to every client before anything is asked; empty for nothing.
    pub banner: String,
    /// The most connections.
    pub max_connections: usize,
    /// The most connections that nobody has signed in on.
    pub max_unauthenticated: usize,
    /// The same, from one source.
    pub max_unauthenticated_per_source: usize,
    /// The most channels open at a time on one connection.
    pub max_channels: usize,
    /// From accepting a connection to its sign-in.
    pub login_grace: Span,
    /// From the first sight of the QR code to the sign-in.
    pub binding_grace: Span,
    /// TCP keepalive's interval; a peer that misses three is gone.
    pub keepalive: Span,
    /// How long sessions may go on after SIGTERM.
    pub drain: Span,
    /// Networks that send, and must send, a PROXY header.
    pub proxy_from: Vec<IpNet>,
    /// Networks that are neither penalized nor counted by source.
    pub penalty_exempt: Vec<IpNet>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 2222))],
            public_host: String::new(),
            banner: String::new(),
            max_connections: 4096,
            max_unauthenticated: 100,
            max_unauthenticated_per_source: 20,
            max_channels: 64,
            login_grace: Span::seconds(120),
            binding_grace: Span::seconds(600),
            keepalive: Span::seconds(30),
            drain: Span::seconds(30),
            proxy_from: Vec::new(),
            penalty_exempt: Vec::new(),
        }
    }
}

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// `sqlite:PATH` or `postgres://USER@HOST/DATABASE`; empty for a SQLite file in `data_dir`.
    pub url: String,
    /// A file with PostgreSQL's password.
    pub password_file: PathBuf,
    /// A file with the certificate authorities that PostgreSQL's certificate must be from.
    pub tls_ca_file: PathBuf,
    /// The most connections to the store.
    pub connections: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: String::new(),
            password_file: PathBuf::new(),
            tls_ca_file: PathBuf::new(),
            connections: 8,
        }
    }
}

/// Where key files are, if not in `data_dir` or among systemd's credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Keys {
    pub host_key: PathBuf,
    pub host_ca: PathBuf,
    pub user_ca: PathBuf,
    pub audit_key: PathBuf,
    pub sealing_key: PathBuf,
}

/// How a login goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Login {
    /// The name that authenticator apps show.
    pub issuer: String,
    /// Methods offered: `password`, `publickey`, `keyboard-interactive`.
    pub methods: Vec<String>,
    /// The least number of characters of a new password.
    pub password_min_length: usize,
    /// The least zxcvbn score of a new password, 0 to 4.
    pub password_min_score: u8,
    /// Memory of one password hash (Argon2id).
    pub argon2_memory: Size,
    /// Passes of one password hash.
    pub argon2_passes: u32,
    /// Password hashes at a time; 0 for one a core.
    pub hash_concurrency: usize,
    /// Logins that may wait for one.
    pub hash_queue: usize,
    /// How long after `user add` or `otp reset` an authenticator may be bound.
    pub binding_window: Span,
    /// Failures in a row, of one account from one source, that lock.
    pub lock_after: u32,
    /// How long such a lock lasts.
    pub lock_for: Span,
    /// The wait after a first failure; it doubles with each.
    pub backoff_first: Span,
    /// The longest such wait.
    pub backoff_max: Span,
    /// Login attempts a minute from one source.
    pub attempts_per_minute: u32,
    /// Login attempts at once from one source.
    pub attempts_burst: u32,
    /// Secrets that one connection may try.
    pub max_answers: u32,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            issuer: "Sallyport".into(),
            methods: ["publickey", "password", "keyboard-interactive"].map(String::from).into(),
            password_min_length: 12,
            password_min_score: 3,
            argon2_memory: Size::mib(19),
            argon2_passes: 2,
            hash_concurrency: 0,
            hash_queue: 256,
            binding_window: Span::seconds(24 * 3600),
            lock_after: 10,
            lock_for: Span::seconds(1800),
            backoff_first: Span::seconds(1),
            backoff_max: Span::seconds(30),
            attempts_per_minute: 60,
            attempts_burst: 60,
            max_answers: 6,
        }
    }
}

/// Forwarding.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forward {
    /// How long a target may take to answer; as long again for its name to resolve.
    pub dial_timeout: Span,
    /// A channel's window.
    pub window: Size,
    /// What one channel may hold for a slow target before its window closes.
    pub channel_budget: Size,
    /// What all channels together may hold.
    pub total_budget: Size,
    /// How long a target may take none of what waits for it.
    pub stall_timeout: Span,
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            dial_timeout: Span::seconds(10),
            window: Size::mib(1),
            channel_budget: Size::mib(1),
            total_budget: Size::mib(256),
            stall_timeout: Span::seconds(12 * 3600),
        }
    }
}

/// Logging; the audit log is apart from it, in the store.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `auto`, `human`, `json` or `journald`.
    pub format: String,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,sallyport=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: "auto".into(), level: "info".into() }
    }
}

/// The key files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum KeyFile {
    HostKey,
    HostCa,
    UserCa,
    AuditKey,
    SealingKey,
}

impl Config {
    /// The path of a key file: as configured, else a systemd credential of that name, else in
    /// `data_dir`.
    pub fn key_path(&self, key: KeyFile) -> PathBuf {
        let (configured, name) = match key {
            KeyFile::HostKey => (&self.keys.host_key, "host_key"),
            KeyFile::HostCa => (&self.keys.host_ca, "host_ca"),
            KeyFile::UserCa => (&self.keys.user_ca, "user_ca"),
            KeyFile::AuditKey => (&self.keys.audit_key, "audit_key"),
            KeyFile::SealingKey => (&self.keys.sealing_key, "sealing_key"),
        };
        if !configured.as_os_str().is_empty() {
            return configured.clone();
        }
        let credential =
            std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(name));
        credential.filter(|path| path.exists()).unwrap_or_else(|| self.data_dir.join(name))
    }

    /// The store's URL.
    pub fn store_url(&self) -> String {
        if self.store.url.is_empty() {
            format!("sqlite:{}", self.data_dir.join("sallyport.db").display())
        } else {
            self.store.url.clone()
        }
    }

    /// What changed between two configurations that a reload cannot put in force.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("data_dir", self.data_dir != new.data_dir),
            ("node", self.node != new.node),
            ("server.listen", self.server.listen != new.server.listen),
            ("store", self.store != new.store),
            ("keys", self.keys != new.keys),
            ("login.argon2_*, login.hash_*", self.hashing() != new.hashing()),
            ("forward.total_budget", self.forward.total_budget != new.forward.total_budget),
            ("log", self.log != new.log),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    fn hashing(&self) -> (Size, u32, usize, usize) {
        let login = &self.login;
        (login.argon2_memory, login.argon2_passes, login.hash_concurrency, login.hash_queue)
    }

    /// Checks what types do not.
    fn check(&self) -> Result<(), String> {
        let (server, login) = (&self.server, &self.login);
        let positive = [
            ("server.max_connections", server.max_connections),
            ("server.max_unauthenticated", server.max_unauthenticated),
            ("server.max_unauthenticated_per_source", server.max_unauthenticated_per_source),
            ("server.max_channels", server.max_channels),
            ("store.connections", self.store.connections),
            ("login.hash_queue", login.hash_queue),
            ("login.lock_after", login.lock_after as usize),
            ("login.max_answers", login.max_answers as usize),
            ("login.attempts_per_minute", login.attempts_per_minute as usize),
            ("login.attempts_burst", login.attempts_burst as usize),
            ("login.argon2_passes", login.argon2_passes as usize),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{key} must be 1 or more"));
        }
        if server.listen.is_empty() {
            return Err("server.listen must name an address".into());
        }
        let known = ["publickey", "password", "keyboard-interactive"];
        if let Some(other) = login.methods.iter().find(|m| !known.contains(&m.as_str())) {
            return Err(format!("login.methods: {other:?} is none of {}", known.join(", ")));
        }
        if !login.methods.iter().any(|m| m == "keyboard-interactive") {
            return Err(
                "login.methods must have keyboard-interactive: codes are asked for by it".into()
            );
        }
        if login.password_min_length < 8 || login.password_min_score > 4 {
            return Err(
                "login.password_min_length must be 8 or more, password_min_score 0 to 4".into()
            );
        }
        if login.argon2_memory.bytes() < 8 * 1024 || login.argon2_memory.bytes() > 1 << 32 {
            return Err("login.argon2_memory must be from 8 KiB to 4 GiB".into());
        }
        let window = self.forward.window.bytes();
        if !(64 * 1024..=16 << 20).contains(&window) {
            return Err("forward.window must be from 64 KiB to 16 MiB".into());
        }
        if server.login_grace.0.is_zero() || server.binding_grace.0.is_zero() {
            return Err(
                "server.login_grace and server.binding_grace must be longer than nothing".into()
            );
        }
        if !["auto", "human", "json", "journald"].contains(&self.log.format.as_str()) {
            return Err("log.format must be auto, human, json or journald".into());
        }
        let url = &self.store.url;
        let schemes = ["sqlite:", "postgres://", "postgresql://"];
        if !url.is_empty() && !schemes.iter().any(|scheme| url.starts_with(scheme)) {
            return Err("store.url must begin with sqlite: or postgres://".into());
        }
        Ok(())
    }
}
