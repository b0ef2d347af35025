//! A bastion in the test's own process, with a clock that the test moves, and people who use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sallyport::audit::Context;
use sallyport::audit::Record;
use sallyport::clock::{Clock, TestClock};
use sallyport::config::Config;
use sallyport::domain::{AccountAuth, Grant, Id, Mode, Role, Target, UnixTime};
use sallyport::keys;
use sallyport::server::{self, Bastion};
use sallyport::store::{EventFilter, Store};
use sallyport::{serve, server::socket, setup};
use secrecy::SecretString;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use super::people::{PASSWORD, Person, Registry, code_at, code_of, secret_of};
use super::postgres::{self, Postgres};
use super::present_user;
use super::sshd::Sshd;

/// Which engine the store is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

pub struct TestBastion {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub port: u16,
    pub bastion: Arc<Bastion>,
    pub clock: TestClock,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
    pub postgres: Option<Postgres>,
}

/// A configuration for tests: cheap hashes, short waits.
pub fn test_config(dir: &Path, url: &str, extra: &str) -> Config {
    let password = dir.join("store-password");
    keys::replace_secret(&password, postgres::PASSWORD.as_bytes()).unwrap();
    let text = format!(
        "data_dir = \"{data}\"\nnode = \"test\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n\
         public_host = \"bastion\"\npenalty_exempt = [\"127.0.0.0/8\"]\ndrain = \"1s\"\n\
         [store]\nurl = \"{url}\"\npassword_file = \"{password}\"\n\
         [login]\nargon2_memory = \"8 KiB\"\nargon2_passes = 1\nbackoff_first = \"1ms\"\n\
         backoff_max = \"2ms\"\nattempts_per_minute = 100000\nattempts_burst = 100000\n\
         [record]\nmin_free = \"1 MiB\"\n{extra}",
        data = dir.join("data").display(),
        password = password.display(),
    );
    let path = dir.join("sallyport.toml");
    std::fs::write(&path, merge(&text, extra)).unwrap();
    Config::load(Some(&path), std::iter::empty()).unwrap_or_else(|e| panic!("{e}")).config
}

/// TOML knows each section once: what `extra` sets replaces what the base sets.
fn merge(text: &str, extra: &str) -> String {
    let base = text.strip_suffix(extra).unwrap();
    let mut base: toml::Table = base.parse().unwrap();
    let extra: toml::Table = extra.parse().unwrap();
    for (section, values) in extra {
        match (base.get_mut(&section), values) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => old.extend(new),
            (_, values) => drop(base.insert(section, values)),
        }
    }
    base.to_string()
}

impl TestBastion {
    pub async fn start(engine: Engine) -> Self {
        Self::start_with(engine, "").await
    }

    /// Starts one with `extra` TOML in its configuration.
    pub async fn start_with(engine: Engine, extra: &str) -> Self {
        Self::start_at(Clock::System.now(), engine, extra).await
    }

    /// Starts one whose clock stands at `now`.
    pub async fn start_at(now: UnixTime, engine: Engine, extra: &str) -> Self {
        Self::start_prepared(now, engine, extra, |_| {}).await
    }

    /// Starts one that `prepare` changes before it runs.
    pub async fn start_prepared(
        now: UnixTime,
        engine: Engine,
        extra: &str,
        prepare: impl FnOnce(&mut Bastion),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let postgres = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(Postgres::start().await),
        };
        let url = postgres.as_ref().map_or_else(String::new, Postgres::url);
        let config = test_config(dir.path(), &url, extra);
        let clock = TestClock::at(now);
        let (store, _) = setup::init(&config, &Clock::Test(clock.clone())).await.unwrap();
        let mut bastion = serve::bastion(&config, store, Clock::Test(clock.clone())).unwrap();
        prepare(&mut bastion);
        let bastion = Arc::new(bastion);
        let shutdown = CancellationToken::new();
        let (port, task) = Self::run(&config, &bastion, &shutdown);
        Self { dir, config, port, bastion, clock, shutdown, task: Some(task), postgres }
    }

    fn run(
        config: &Config,
        bastion: &Arc<Bastion>,
        shutdown: &CancellationToken,
    ) -> (u16, JoinHandle<()>) {
        let listeners = socket::listeners(&config.server.listen).unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        let running = server::run(Arc::clone(bastion), listeners, shutdown.clone());
        #[allow(clippy::disallowed_methods)] // The test is the task's owner: `stop` waits for it.
        (port, tokio::spawn(async { running.await.unwrap() }))
    }

    /// Stops it, and starts another process's worth of it on the same store, on another port.
    pub async fn restart(&mut self) {
        self.stop().await;
        let (store, clock) = (self.other_store().await, Clock::Test(self.clock.clone()));
        self.bastion = Arc::new(serve::bastion(&self.config, store, clock).unwrap());
        self.shutdown = CancellationToken::new();
        let (port, task) = Self::run(&self.config, &self.bastion, &self.shutdown);
        (self.port, self.task) = (port, Some(task));
    }

    pub fn store(&self) -> &Store {
        &self.bastion.store
    }

    pub fn now(&self) -> UnixTime {
        self.bastion.clock.now()
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            tokio::time::timeout(super::PATIENCE, task).await.expect("it did not stop").unwrap();
        }
    }

    /// The same store as another process opens it.
    pub async fn other_store(&self) -> Store {
        setup::open(&self.config).await.unwrap()
    }

    /// Runs SQL behind the store's back.
    pub async fn tamper(&self, sql: &str) {
        use diesel::Connection as _;
        use diesel::connection::SimpleConnection as _;
        if let Some(postgres) = &self.postgres {
            return postgres.execute(sql).await;
        }
        let path = self.path("data/sallyport.db");
        let mut file = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        file.batch_execute(&format!("PRAGMA busy_timeout = 5000; {sql}")).unwrap();
    }

    /// For putting people, targets and grants into the store.
    pub fn registry(&self) -> Registry<'_> {
        Registry { store: self.store(), now: self.now() }
    }

    /// See [`Registry::newcomer`].
    pub async fn newcomer(&self, name: &str) -> SecretString {
        self.registry().newcomer(name).await
    }

    /// See [`Registry::person`].
    pub async fn person(&self, name: &str) -> Person {
        self.registry().person(name).await
    }

    pub async fn person_as(&self, name: &str, role: Role) -> Person {
        self.registry().person_as(name, role).await
    }

    /// See [`Registry::grant`].
    pub async fn grant(&self, user: &str, target: &str, address: &str) -> Id {
        self.registry().grant(user, target, address).await
    }

    pub async fn target(&self, name: &str, address: &str) {
        self.target_in(Mode::Tunnel, name, address).await;
    }

    /// Registers an sshd as a target in record mode, with its host key pinned and the key of the
    /// present user's account stored.
    pub async fn record_target(&self, name: &str, sshd: &Sshd) {
        self.target_in(Mode::Record, name, &format!("127.0.0.1:{}", sshd.port)).await;
        self.pin(name, &sshd.host_key(), false).await;
        let key = std::fs::read(sshd.identity()).unwrap();
        self.account(name, &present_user(), AccountAuth::Key, Some(&key)).await;
    }

    /// Trusts a host key, or the key of an authority that signs them.
    pub async fn pin(&self, target: &str, line: &str, authority: bool) {
        let (line, fingerprint) = keys::host_key_line(line).unwrap();
        let key = (line.as_str(), fingerprint.as_str());
        let (target, context) = (target.parse().unwrap(), Context::default());
        let pinned = self.store().pin_key(&target, key, authority, &context, self.now()).await;
        assert!(pinned.unwrap());
    }

    /// Says how to sign in as an account of a target.
    pub async fn account(
        &self,
        target: &str,
        name: &str,
        auth: AccountAuth,
        secret: Option<&[u8]>,
    ) {
        let (target, name) = (target.parse().unwrap(), name.parse().unwrap());
        let (way, context) = ((auth, secret), Context::default());
        self.store().set_account(&target, &name, way, &context, self.now()).await.unwrap();
    }

    pub async fn target_in(&self, mode: Mode, name: &str, address: &str) {
        let target = Target {
            id: Id::random().unwrap(),
            name: name.parse().unwrap(),
            address: address.parse().unwrap(),
            mode,
            sign_in: None,
            labels: Vec::new(),
            created_at: self.now(),
        };
        self.store().add_target(&target, &Context::default(), self.now()).await.unwrap();
    }

    pub async fn add_grant(&self, user: &str, target: &str, change: impl FnOnce(&mut Grant)) -> Id {
        self.registry().add_grant(user, target, change).await
    }

    /// Every event, oldest first.
    pub async fn events(&self) -> Vec<Record> {
        let rows = self.store().events(&EventFilter::default(), 100_000).await.unwrap();
        rows.iter().rev().map(|row| serde_json::from_str(&row.body).unwrap()).collect()
    }

    /// Events as JSON, for looking at one field.
    pub async fn kinds(&self, kind: &str) -> Vec<serde_json::Value> {
        let rows = self
            .store()
            .events(&EventFilter { kind: Some(kind.into()), ..Default::default() }, 100_000)
            .await;
        rows.unwrap().iter().rev().map(|row| serde_json::from_str(&row.body).unwrap()).collect()
    }

    /// Waits until an event of `kind` with these fields is written.
    pub async fn event(&self, kind: &str, fields: &[(&str, &str)]) -> serde_json::Value {
        let fits =
            |event: &serde_json::Value| fields.iter().all(|(key, value)| event[*key] == *value);
        let what = format!("there is an event {kind} {fields:?}");
        let looked = super::eventually_or(&what, async || {
            let events = self.kinds(kind).await;
            events.iter().find(|event| fits(event)).cloned().ok_or(events)
        });
        looked.await
    }

    /// The code of a step that was not used yet: moves the clock to it.
    pub fn code(&self, person: &Person) -> String {
        self.clock.advance(Duration::from_secs(30));
        code_at(person, self.now())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
