//! The real binary, serving from a folder of its own, and its store, open in the test as well.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use sallyport::clock::Clock;
use sallyport::config::Config;
use sallyport::setup;
use sallyport::store::{EventFilter, SessionRow, Store};
use tokio::process::{Child, Command};

use super::bastion::{Engine, test_config};
use super::people::Registry;
use super::postgres::{self, Postgres};
use super::ssh::{Run, run};
use super::{command, ended, eventually, signal, tool};

pub const BINARY: &str = env!("CARGO_BIN_EXE_sallyport");

pub struct Server {
    pub dir: tempfile::TempDir,
    store: Option<Store>,
    pub child: Child,
    pub port: u16,
    starts: u32,
    /// Its store's URL; empty for SQLite.
    url: String,
    /// What the first node on PostgreSQL stops after itself.
    _postgres: Option<Postgres>,
}

impl Server {
    /// Starts one with `extra` TOML in its configuration.
    pub async fn start(extra: &str) -> Self {
        Self::on(Engine::Sqlite, extra).await
    }

    /// The same, with its store on `engine`.
    pub async fn on(engine: Engine, extra: &str) -> Self {
        Self::launched(engine, extra, async |_| {}, |_| {}).await
    }

    /// Starts one in a network of its own, which [`Self::inside`] reaches, and among mounts of its own;
    /// `first` is done there before.
    pub async fn alone(extra: &str, first: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = configure(dir.path(), "", extra);
        let (store, _) = setup::init(&config, &Clock::System).await.unwrap();
        let apart = if postgres::is_root() { "-mn" } else { "-rmn" };
        let script = format!("ip link set lo up && {first} && exec \"$@\"");
        let mut unshare = command(tool("unshare"));
        unshare.args([apart, "/bin/sh", "-c", &script, "sh"]);
        let child = launch_by(unshare.arg(BINARY), dir.path(), 1).spawn().unwrap();
        Self::served(dir, store, child, String::new(), None).await
    }

    /// A command in the network of a server that is [`Self::alone`].
    pub fn inside(&self, program: &str) -> Command {
        let mut nsenter = command(tool("nsenter"));
        nsenter.args(["-t", &self.child.id().unwrap().to_string(), "-n"]);
        if !postgres::is_root() {
            nsenter.args(["-U", "--preserve-credentials"]);
        }
        nsenter.arg(tool(program));
        nsenter
    }

    /// Starts another node on the same PostgreSQL, with the same keys.
    pub async fn beside(&self, extra: &str) -> Self {
        assert!(!self.url.is_empty(), "SQLite's store has one node");
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (self.dir.path().join("data"), dir.path().join("data"));
        run(command("/bin/cp").arg("-a").arg(from).arg(to)).await.ok();
        let config = configure(dir.path(), &self.url, extra);
        let store = setup::open(&config).await.unwrap();
        let child = launch(dir.path(), 1).spawn().unwrap();
        Self::served(dir, store, child, self.url.clone(), None).await
    }

    /// The same, after `prepare` saw the store, and with `change` made to the command.
    pub async fn prepared(
        extra: &str,
        prepare: impl AsyncFnOnce(Registry<'_>),
        change: impl FnOnce(&mut Command),
    ) -> Self {
        Self::launched(Engine::Sqlite, extra, prepare, change).await
    }

    async fn launched(
        engine: Engine,
        extra: &str,
        prepare: impl AsyncFnOnce(Registry<'_>),
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(Postgres::start().await),
        };
        let url = postgres.as_ref().map_or_else(String::new, Postgres::url);
        let config = configure(dir.path(), &url, extra);
        let (store, _) = setup::init(&config, &Clock::System).await.unwrap();
        prepare(Registry { store: &store, now: Clock::System.now() }).await;
        let mut command = launch(dir.path(), 1);
        change(&mut command);
        let child = command.spawn().unwrap();
        Self::served(dir, store, child, url, postgres).await
    }

    /// Waits until it serves.
    async fn served(
        dir: tempfile::TempDir,
        store: Store,
        child: Child,
        url: String,
        postgres: Option<Postgres>,
    ) -> Self {
        let store = Some(store);
        let mut server = Self { dir, store, child, port: 0, starts: 1, url, _postgres: postgres };
        server.port = server.listens().await;
        server
    }

    /// Starts it once more, after its end.
    pub async fn start_again(&mut self) {
        self.starts += 1;
        self.child = launch(self.dir.path(), self.starts).spawn().unwrap();
        self.port = self.listens().await;
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("the test has closed the store")
    }

    /// Closes the test's connections to the store, so that only the server has it open.
    pub fn close_store(&mut self) {
        self.store = None;
    }

    /// Opens the store again.
    pub async fn open_store(&mut self) {
        let path = config_path(self.dir.path());
        let config = Config::load(Some(&path), std::iter::empty()).unwrap().config;
        self.store = Some(setup::open(&config).await.unwrap());
    }

    async fn listens(&self) -> u16 {
        let line = self.logged("message", "listening").await;
        let address: std::net::SocketAddr = line["address"].as_str().unwrap().parse().unwrap();
        // It listens a moment before it has written down that it serves, and serves.
        self.logged("message", "{\"kind\":\"server-started\"").await;
        address.port()
    }

    /// Everything that was logged since the last start, a line each.
    pub fn log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(log_path(self.dir.path(), self.starts)).unwrap();
        // The last line may not be whole yet.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of the log whose `field` begins with `text`.
    pub async fn logged(&self, field: &str, text: &str) -> serde_json::Value {
        eventually(&format!("the log has a {field} {text:?}"), async || {
            let said = |line: &serde_json::Value| {
                line[field].as_str().is_some_and(|value| value.starts_with(text))
            };
            self.log().into_iter().find(said)
        })
        .await
    }

    pub fn signal(&self, what: rustix::process::Signal) {
        signal(&self.child, what);
    }

    /// Waits for its end, which must be in good order.
    pub async fn ends_well(&mut self) {
        assert_eq!(ended(&mut self.child).await.code(), Some(0));
    }

    /// A command of the same configuration.
    pub fn cli(&self, args: &[&str]) -> Command {
        let mut cli = command(BINARY);
        cli.arg("--config").arg(config_path(self.dir.path())).args(args);
        cli
    }

    pub async fn run(&self, args: &[&str]) -> Run {
        run(&mut self.cli(args)).await
    }

    pub fn registry(&self) -> Registry<'_> {
        Registry { store: self.store(), now: Clock::System.now() }
    }

    /// Replaces its configuration; it reads it at the next start or SIGHUP.
    pub fn configure(&self, extra: &str) {
        configure(self.dir.path(), &self.url, extra);
    }

    /// The events of a kind, oldest first.
    pub async fn kinds(&self, kind: &str) -> Vec<serde_json::Value> {
        let filter = EventFilter { kind: Some(kind.into()), ..Default::default() };
        let rows = self.store().events(&filter, 100_000).await.unwrap();
        rows.iter().rev().map(|row| serde_json::from_str(&row.body).unwrap()).collect()
    }

    /// Waits until an event of `kind` with these fields is written.
    pub async fn event(&self, kind: &str, fields: &[(&str, &str)]) -> serde_json::Value {
        eventually(&format!("there is an event {kind} {fields:?}"), async || {
            let fits = |event: &serde_json::Value| fields.iter().all(|(k, v)| event[*k] == *v);
            self.kinds(kind).await.into_iter().find(fits)
        })
        .await
    }

    /// Every session, and whether one of its forwards is open.
    pub async fn sessions(&self) -> Vec<(SessionRow, bool)> {
        let mut all = Vec::new();
        for session in self.store().sessions(&Default::default(), 100_000).await.unwrap() {
            let forwards = self.store().forwards_of(&session.id).await.unwrap();
            let open = forwards.iter().any(|forward| forward.closed_at.is_none());
            all.push((session, open));
        }
        all
    }

    pub async fn nothing_is_open(&self) {
        let open = |(session, forward): &(SessionRow, bool)| session.ended_at.is_none() || *forward;
        let left: Vec<_> = self.sessions().await.into_iter().filter(open).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn configure(dir: &Path, url: &str, extra: &str) -> Config {
    let config = test_config(dir, url, extra);
    let path = config_path(dir);
    let mut table: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    let log = table.entry("log").or_insert_with(|| toml::Table::new().into());
    log.as_table_mut().unwrap().insert("format".into(), "json".into());
    std::fs::write(path, table.to_string()).unwrap();
    config
}

pub fn config_path(dir: &Path) -> PathBuf {
    dir.join("sallyport.toml")
}

fn log_path(dir: &Path, start: u32) -> PathBuf {
    dir.join(format!("log-{start}"))
}

fn launch(dir: &Path, start: u32) -> Command {
    let mut serve = command(BINARY);
    launch_by(&mut serve, dir, start);
    serve
}

/// Lets a command that ends with the binary serve.
fn launch_by<'a>(serve: &'a mut Command, dir: &Path, start: u32) -> &'a mut Command {
    let log = std::fs::File::create(log_path(dir, start)).unwrap();
    serve
        .arg("--config")
        .arg(config_path(dir))
        .arg("serve")
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
}
