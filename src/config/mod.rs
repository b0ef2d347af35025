//! The configuration: TOML, checked, with single keys overridden by the environment.
//!
//! Always holds: a key that nobody knows and a value that nothing can be done with are errors
//! which name their place; every key has a default, and `config/sallyport.toml` shows them all (a
//! test compares the two); secrets are named by file only. A [`Config`] from [`Config::load`]
//! has passed every check; one made in code is as good as its maker.

mod advice;
mod check;
mod load;
mod names;
mod radius;
mod reload;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::words;
use crate::logging::LogFormat;

pub use load::{Error, Loaded, environment};
pub use radius::{Radius, RadiusServer, Transport};
pub use reload::{NeedsRestart, Reloaded};
pub use units::{Size, Span};

words! {
    /// A way to sign in that is offered to clients (RFC 4252, RFC 4256).
    Method, "method" {
        /// A key of the account, then a code.
        PublicKey = "publickey",
        /// The password by itself, then a code.
        Password = "password",
        /// Questions, one after the other: the only way to ask for a code.
        KeyboardInteractive = "keyboard-interactive",
    }
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys and, by default, the SQLite store are; a relative path starts at the working
    /// folder.
    pub data_dir: PathBuf,
    /// The name of this node in sessions and events; empty: the host's name.
    pub node: String,
    /// Listening, limits, deadlines.
    pub server: Server,
    /// Where the store is.
    pub store: Store,
    /// Where the key files are.
    pub keys: Keys,
    /// How a login goes.
    pub login: Login,
    /// RADIUS servers that check codes or passwords.
    pub radius: Radius,
    /// Forwarding to targets.
    pub forward: Forward,
    /// Recording sessions on targets in record mode.
    pub record: Record,
    /// The log for operators; the audit log is apart from it, in the store.
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
            radius: Radius::default(),
            forward: Forward::default(),
            record: Record::default(),
            log: Log::default(),
        }
    }
}

/// Listening, limits, deadlines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Addresses to listen on, unless systemd passes sockets.
    pub listen: Vec<SocketAddr>,
    /// The bastion's name as people type it; empty: the host's name.
    pub public_host: String,
    /// The bastion's port as people type it; 0: that of the first socket it listens on.
    pub public_port: u16,
    /// Shown to every client before anything is asked; empty: nothing.
    pub banner: String,
    /// Whether MACs are offered that only older clients need.
    pub older_clients: bool,
    /// The most connections.
    pub max_connections: usize,
    /// The most connections that nobody has signed in on.
    pub max_unauthenticated: usize,
    /// The same, from one source.
    pub max_unauthenticated_per_source: usize,
    /// The most channels open at a time on one connection.
    pub max_channels: usize,
    /// The most sessions of one account on this node at a time; 0: any number.
    pub max_sessions_per_account: usize,
    /// From accepting a connection to its sign-in.
    pub login_grace: Span,
    /// From the first sight of the QR code to the sign-in.
    pub binding_grace: Span,
    /// TCP keepalive's interval for clients; one that misses three is gone; 0: off.
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
            public_port: 0,
            banner: String::new(),
            older_clients: false,
            max_connections: 4096,
            max_unauthenticated: 100,
            max_unauthenticated_per_source: 20,
            max_channels: 64,
            max_sessions_per_account: 100,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// `sqlite:PATH` or `postgres://USER@HOST/DATABASE`, without a password; empty: a SQLite file
    /// in `data_dir`.
    pub url: String,
    /// A file with PostgreSQL's password; empty: a systemd credential `store_password`, if any.
    pub password_file: PathBuf,
    /// A PEM file with the authorities that PostgreSQL's certificate must be from; empty: the
    /// system's.
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

/// Where the key files are; empty: see [`Config::key_path`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// The key that clients know the bastion by.
    pub host_key: PathBuf,
    /// The authority that signs host certificates.
    pub host_ca: PathBuf,
    /// The authority that signs user certificates for targets.
    pub user_ca: PathBuf,
    /// The authority that signs the certificates that users sign in with.
    pub login_ca: PathBuf,
    /// The key that signs every event of the audit log.
    pub audit_key: PathBuf,
    /// The key that secrets in the store are sealed with.
    pub sealing_key: PathBuf,
    /// Where systemd put this service's credentials; from the environment, not from the file.
    #[serde(skip)]
    pub credentials: Option<PathBuf>,
}

/// How a login goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Login {
    /// The name that authenticator apps show beside the code.
    pub issuer: String,
    /// Methods offered to clients; the order is the program's.
    pub methods: Vec<Method>,
    /// Files with the public keys of authorities whose user certificates are taken.
    pub user_ca_files: Vec<PathBuf>,
    /// How long the login CA's certificates hold; 0: it gives none, and none is taken.
    pub certificate_life: Span,
    /// Whether they hold only from the address that they were asked for from.
    pub certificate_bound_to_source: bool,
    /// The least number of characters of a new password.
    pub password_min_length: usize,
    /// The least zxcvbn score of a new password, 0 to 4.
    pub password_min_score: u8,
    /// Memory of one password hash (Argon2id).
    pub argon2_memory: Size,
    /// Passes of one password hash.
    pub argon2_passes: u32,
    /// Password hashes at a time; 0: one a core.
    pub hash_concurrency: usize,
    /// Logins that may wait for one.
    pub hash_queue: usize,
    /// How long after `user add` or `otp reset` an authenticator may be bound.
    pub binding_window: Span,
    /// Failures in a row, of one account from one source, that lock it for that source.
    pub lock_after: u32,
    /// The same, of one account from all networks of one IPv6 site (a /48) together.
    pub site_lock_after: u32,
    /// Failures of one account from everywhere, within `lock_for`, that administrators are told of.
    pub attack_after: u32,
    /// Wrong codes of one account after a right first factor, from everywhere, past which only sources
    /// that it signed in from before get in by a code.
    pub code_failures_max: u32,
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
    /// Passwords and codes that one connection may try.
    pub max_answers: u32,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            issuer: "Sallyport".to_owned(),
            methods: Method::ALL.to_vec(),
            user_ca_files: Vec::new(),
            certificate_life: Span::seconds(0),
            certificate_bound_to_source: true,
            password_min_length: 12,
            password_min_score: 3,
            argon2_memory: Size::mib(19),
            argon2_passes: 2,
            hash_concurrency: 0,
            hash_queue: 256,
            binding_window: Span::seconds(24 * 3600),
            lock_after: 10,
            site_lock_after: 100,
            attack_after: 100,
            code_failures_max: 50,
            lock_for: Span::seconds(1800),
            backoff_first: Span::seconds(1),
            backoff_max: Span::seconds(30),
            attempts_per_minute: 60,
            attempts_burst: 60,
            max_answers: 6,
        }
    }
}

/// Forwarding to targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forward {
    /// How long a target may take to answer; as long again for its name to resolve.
    pub dial_timeout: Span,
    /// A channel's window (RFC 4254 section 5.2).
    pub window: Size,
    /// What one channel may hold for a slow target before its window closes.
    pub channel_budget: Size,
    /// What all channels of one connection may hold: their windows close at half of it, and past it
    /// the connection ends. Two channels' budgets and eight windows at least.
    pub connection_budget: Size,
    /// What all channels together may hold. An account's windows close once it holds more than is free
    /// of it and more than an equal share; past it, the account that holds the most loses a connection.
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
            connection_budget: Size::mib(32),
            total_budget: Size::mib(256),
            stall_timeout: Span::seconds(12 * 3600),
        }
    }
}

/// Recording sessions on targets in record mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Record {
    /// Where recordings are kept; empty: `recordings` in `data_dir`.
    pub folder: PathBuf,
    /// What people are told before a recorded session; empty: nothing.
    pub notice: String,
    /// Whether what people type is recorded as well; passwords that they type are part of it.
    pub input: bool,
    /// Whether a session that cannot be recorded ends.
    pub strict: bool,
    /// What must stay free where recordings are kept: below that, no session begins.
    pub min_free: Size,
    /// What the file of one recording may take before it is compressed; 0: any amount.
    pub max_bytes: Size,
    /// What the files of all recordings of one account may take that are being written on this node;
    /// 0: any amount.
    pub max_bytes_per_account: Size,
    /// How long recordings are kept; 0: for ever.
    pub keep_for: Span,
    /// How much all of them may take, the oldest being removed first; 0: any amount.
    pub keep_bytes: Size,
    /// Whether the first host key that a target shows is trusted from then on.
    pub trust_first_use: bool,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            folder: PathBuf::new(),
            notice: "This session is recorded.".to_owned(),
            input: false,
            strict: true,
            min_free: Size::mib(500),
            max_bytes: Size::mib(4096),
            max_bytes_per_account: Size::mib(16384),
            keep_for: Span::seconds(0),
            keep_bytes: Size::mib(0),
            trust_first_use: false,
        }
    }
}

/// The log for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// In what form it is written to standard error.
    pub format: LogFormat,
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or directives such as
    /// `info,sallyport::server=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

/// One of the key files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFile {
    /// See [`Keys::host_key`].
    HostKey,
    /// See [`Keys::host_ca`].
    HostCa,
    /// See [`Keys::user_ca`].
    UserCa,
    /// See [`Keys::login_ca`].
    LoginCa,
    /// See [`Keys::audit_key`].
    AuditKey,
    /// See [`Keys::sealing_key`].
    SealingKey,
}

impl KeyFile {
    /// Every one of them.
    pub const ALL: [Self; 6] = [
        Self::SealingKey,
        Self::AuditKey,
        Self::HostKey,
        Self::HostCa,
        Self::UserCa,
        Self::LoginCa,
    ];

    /// What people call it.
    pub fn shown(self) -> &'static str {
        match self {
            Self::HostKey => "host key",
            Self::HostCa => "host CA",
            Self::UserCa => "user CA",
            Self::LoginCa => "login CA",
            Self::AuditKey => "audit key",
            Self::SealingKey => "sealing key",
        }
    }
}

impl Config {
    /// The path of a key file: as configured, else the systemd credential of its name if there is
    /// one, else the file of its name in `data_dir`.
    pub fn key_path(&self, key: KeyFile) -> PathBuf {
        let keys = &self.keys;
        let (configured, name) = match key {
            KeyFile::HostKey => (&keys.host_key, "host_key"),
            KeyFile::HostCa => (&keys.host_ca, "host_ca"),
            KeyFile::UserCa => (&keys.user_ca, "user_ca"),
            KeyFile::LoginCa => (&keys.login_ca, "login_ca"),
            KeyFile::AuditKey => (&keys.audit_key, "audit_key"),
            KeyFile::SealingKey => (&keys.sealing_key, "sealing_key"),
        };
        self.secret_path(configured, name).unwrap_or_else(|| self.data_dir.join(name))
    }

    /// The file with PostgreSQL's password: as configured, else the systemd credential
    /// `store_password` if there is one.
    pub fn store_password_path(&self) -> Option<PathBuf> {
        self.secret_path(&self.store.password_file, "store_password")
    }

    fn secret_path(&self, configured: &Path, credential: &str) -> Option<PathBuf> {
        if !configured.as_os_str().is_empty() {
            return Some(configured.to_owned());
        }
        let path = self.keys.credentials.as_ref()?.join(credential);
        path.exists().then_some(path)
    }

    /// The folder of recordings: as configured, else `recordings` in `data_dir`.
    pub fn recordings(&self) -> PathBuf {
        if self.record.folder.as_os_str().is_empty() {
            self.data_dir.join("recordings")
        } else {
            self.record.folder.clone()
        }
    }

    /// The store's URL: as configured, else that of `sallyport.db` in `data_dir`.
    pub fn store_url(&self) -> String {
        if self.store.url.is_empty() {
            format!("sqlite:{}", self.data_dir.join("sallyport.db").display())
        } else {
            self.store.url.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_where_it_is_said_to_be_else_a_credential_else_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sealing_key"), "x").unwrap();
        let mut config = Config { data_dir: "/d".into(), ..Config::default() };
        assert_eq!(config.key_path(KeyFile::SealingKey), Path::new("/d/sealing_key"));
        assert_eq!(config.store_password_path(), None);

        config.keys.credentials = Some(folder.path().to_owned());
        assert_eq!(config.key_path(KeyFile::SealingKey), folder.path().join("sealing_key"));
        assert_eq!(config.key_path(KeyFile::HostKey), Path::new("/d/host_key"));

        config.keys.sealing_key = "/elsewhere/key".into();
        assert_eq!(config.key_path(KeyFile::SealingKey), Path::new("/elsewhere/key"));
    }

    #[test]
    fn the_store_is_in_the_data_folder_unless_it_is_said_to_be_elsewhere() {
        let mut config = Config::default();
        assert_eq!(config.store_url(), "sqlite:sallyport-data/sallyport.db");
        config.store.url = "postgres://s@db/sallyport".into();
        assert_eq!(config.store_url(), "postgres://s@db/sallyport");
    }
}
