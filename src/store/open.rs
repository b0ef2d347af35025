//! Opening the store: reading its URL, connecting, bringing the schema up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use diesel::migration::{Migration, MigrationSource as _};
use diesel::prelude::*;
use diesel::sqlite::Sqlite;
use diesel_async::RunQueryDsl;
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::pool::{Address, Engine, Pool, on};
use super::schema::{migrations, users};
use super::{Error, Inner, Store, seal};
use crate::keys::AuditKey;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// What it takes to open a store.
#[derive(Debug)]
pub struct Settings {
    /// `sqlite:PATH`, or `postgres://…` as libpq writes it.
    pub url: String,
    /// PostgreSQL's password, which must not stand in the URL.
    pub password: Option<SecretString>,
    /// The certificate authority that PostgreSQL's certificate must be from; without it, the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// The most connections at a time.
    pub connections: usize,
    /// The name of this node.
    pub node: String,
}

/// Whether opening may change the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Make it if there is none, and bring its schema up to date: for the server and `init`.
    Prepare,
    /// Take it as it is, or refuse it.
    AsItIs,
}

impl Store {
    /// Opens the store, with the keys that belong to it.
    ///
    /// # Errors
    /// When it cannot be reached, its schema is not this program's, or it belongs to other keys.
    pub async fn open(
        settings: &Settings,
        keyring: seal::Keyring,
        audit_key: AuditKey,
        opening: Opening,
    ) -> Result<Self, Error> {
        let address = address(settings)?;
        if opening == Opening::AsItIs
            && let Some(path) = missing(&address)
        {
            return Err(Error::Missing(path));
        }
        let pool = Pool::new(address, settings.connections.max(2));
        let mut engine = connect(&pool).await?;
        let pending = is_pending(&mut engine).await?;
        match opening {
            Opening::Prepare => migrate(engine).await?,
            Opening::AsItIs if pending => return Err(Error::Older),
            Opening::AsItIs => {}
        }
        let node = settings.node.clone();
        let store =
            Self(Arc::new(Inner { pool, keyring, audit_key, node, written: Arc::default() }));
        store.check_keys(opening).await?;
        Ok(store)
    }

    /// Whether the store that `settings` name has users already. Makes nothing.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn is_used(settings: &Settings) -> Result<bool, Error> {
        let address = address(settings)?;
        if missing(&address).is_some() {
            return Ok(false);
        }
        let mut engine = connect(&Pool::new(address, 1)).await?;
        if !has_table(&mut engine, "users").await? {
            return Ok(false);
        }
        let users: i64 = on!(&mut engine, conn => users::table.count().get_result(conn).await)?;
        Ok(users > 0)
    }
}

#[cfg(test)]
impl Store {
    /// A new one, on SQLite, in `dir`.
    pub(super) async fn for_test(dir: &Path) -> Self {
        let settings = Settings {
            url: format!("sqlite:{}", dir.join("db").display()),
            password: None,
            tls_ca_file: None,
            connections: 2,
            node: "test".into(),
        };
        let ring = seal::Keyring::load_or_create(&dir.join("sealing_key")).unwrap();
        let audit = crate::keys::load_or_create(&dir.join("audit_key"), "audit").unwrap();
        Self::open(&settings, ring, AuditKey::new(audit), Opening::Prepare).await.unwrap()
    }
}

async fn connect(pool: &Pool) -> Result<Engine, Error> {
    let connecting = tokio::time::timeout(super::pool::PATIENCE, pool.connect());
    connecting.await.map_err(|_| Error::Busy)?
}

/// The SQLite file, if it is not there: connecting would make it.
fn missing(address: &Address) -> Option<PathBuf> {
    match address {
        Address::Sqlite(path) if !path.exists() => Some(path.clone()),
        Address::Sqlite(_) | Address::Postgres(..) => None,
    }
}

/// Whether there is a table of that name where ours are.
async fn has_table(engine: &mut Engine, name: &'static str) -> QueryResult<bool> {
    let sql = match engine {
        Engine::Sqlite(_) => format!("(SELECT count(*) FROM sqlite_master WHERE name = '{name}')"),
        Engine::Postgres(_) => format!("(SELECT count(to_regclass('{name}')))"),
    };
    let count = diesel::dsl::sql::<diesel::sql_types::BigInt>(&sql);
    let count: i64 = on!(engine, conn => diesel::select(count).get_result(conn).await)?;
    Ok(count > 0)
}

/// Whether migrations of this program are still to be run. Changes nothing.
async fn is_pending(engine: &mut Engine) -> Result<bool, Error> {
    let mut run: Vec<String> = Vec::new();
    if has_table(engine, "__diesel_schema_migrations").await? {
        run = on!(engine, conn => migrations::table.select(migrations::version).load(conn).await)?;
    }
    let ours: Vec<Box<dyn Migration<Sqlite>>> =
        MIGRATIONS.migrations().map_err(|e| Error::Migrate(e.to_string()))?;
    let ours: Vec<String> = ours.iter().map(|m| m.name().version().to_string()).collect();
    match run.iter().find(|version| !ours.contains(version)) {
        Some(unknown) => Err(Error::Newer(unknown.clone())),
        None => Ok(ours.iter().any(|version| !run.contains(version))),
    }
}

async fn migrate(engine: Engine) -> Result<(), Error> {
    let fail = |e: Box<dyn std::error::Error + Send + Sync>| Error::Migrate(e.to_string());
    match engine {
        Engine::Sqlite(conn) => {
            AsyncMigrationHarness::new(conn.into_statements())
                .run_pending_migrations(MIGRATIONS)
                .map_err(fail)?;
        }
        Engine::Postgres(mut conn) => {
            // Nodes that start together take turns; the lock ends with the connection.
            conn.batch_execute("SELECT pg_advisory_lock(738219)").await?;
            let mut harness: AsyncMigrationHarness<AsyncPgConnection> =
                AsyncMigrationHarness::new(*conn);
            harness.run_pending_migrations(MIGRATIONS).map_err(fail)?;
        }
    }
    Ok(())
}

fn address(settings: &Settings) -> Result<Address, Error> {
    let url = settings.url.as_str();
    if let Some(path) = url.strip_prefix("sqlite:") {
        if path.is_empty() {
            return Err(Error::Url("\"sqlite:\" needs a path after it".into()));
        }
        return Ok(Address::Sqlite(PathBuf::from(path)));
    }
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Error::Url("use \"sqlite:PATH\" or \"postgres://USER@HOST/DATABASE\"".into()));
    }
    let (url, mode) = take_ssl_mode(url)?;
    let mut config: tokio_postgres::Config =
        url.parse().map_err(|e: tokio_postgres::Error| Error::Url(super::chain(&e)))?;
    if let Some(password) = &settings.password {
        config.password(password.expose_secret());
    }
    // The timeouts below are the server's; a server that is gone is found by these.
    config.tcp_user_timeout(Duration::from_secs(10)).keepalives_idle(Duration::from_secs(10));
    config.application_name("sallyport").connect_timeout(super::pool::PATIENCE).options(
        "-c statement_timeout=5000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=10000",
    );
    // libpq's default would fall back to clear text. On this machine clear text is fine; to
    // another it is not, unless the URL says so.
    let by_place = if is_local(&config) { SslMode::Disable } else { SslMode::Require };
    config.ssl_mode(mode.unwrap_or(by_place));
    Ok(Address::Postgres(Box::new(config), tls(settings.tls_ca_file.as_deref())?))
}

/// Whether it is on this machine by all that is said of it: libpq's `hostaddr` is where the bytes go, and
/// `host` is whose they are to be. Where neither is said, nothing is known.
fn is_local(config: &tokio_postgres::Config) -> bool {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let named = hosts.iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    });
    let is_said = !hosts.is_empty() || !addresses.is_empty();
    is_said && named && addresses.iter().all(std::net::IpAddr::is_loopback)
}

/// Takes `sslmode` out of a URL: it has more values than the driver knows (libpq, section 32.19).
fn take_ssl_mode(url: &str) -> Result<(String, Option<SslMode>), Error> {
    let Some((address, parameters)) = url.split_once('?') else {
        return Ok((url.to_owned(), None));
    };
    let (mut mode, mut others) = (None, Vec::new());
    for parameter in parameters.split('&') {
        match parameter.split_once('=') {
            Some(("sslmode", value)) => mode = Some(ssl_mode(value)?),
            _ => others.push(parameter),
        }
    }
    let question = if others.is_empty() { "" } else { "?" };
    Ok((format!("{address}{question}{}", others.join("&")), mode))
}

/// The certificate and the name in it are checked whenever there is TLS: libpq's weaker `require` and
/// `verify-ca` are as good as `verify-full`. What may fall back to clear text is not taken.
fn ssl_mode(value: &str) -> Result<SslMode, Error> {
    match value {
        "disable" => Ok(SslMode::Disable),
        "require" | "verify-ca" | "verify-full" => Ok(SslMode::Require),
        "allow" | "prefer" => Err(Error::Url(format!(
            "sslmode={value} may fall back to clear text: use verify-full or disable"
        ))),
        _ => Err(Error::Url("sslmode is unknown: use verify-full or disable".into())),
    }
}

fn tls(ca_file: Option<&Path>) -> Result<MakeRustlsConnect, Error> {
    let mut roots = rustls::RootCertStore::empty();
    let fail = |e: String| Error::Url(format!("tls_ca_file: {e}"));
    match ca_file {
        Some(path) => {
            let at = |e: String| fail(format!("{}: {e}", path.display()));
            for cert in CertificateDer::pem_file_iter(path).map_err(|e| at(e.to_string()))? {
                let cert = cert.map_err(|e| at(e.to_string()))?;
                roots.add(cert).map_err(|e| at(e.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_of_another_age_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let settings = Settings {
            url: format!("sqlite:{}", at("db").display()),
            password: None,
            tls_ca_file: None,
            connections: 2,
            node: "test".into(),
        };
        let open = async |opening| {
            let ring = seal::Keyring::load_or_create(&at("sealing_key")).unwrap();
            let audit = crate::keys::load_or_create(&at("audit_key"), "audit").unwrap();
            Store::open(&settings, ring, AuditKey::new(audit), opening).await
        };
        assert!(matches!(open(Opening::AsItIs).await, Err(Error::Missing(_))));
        assert!(!at("db").exists() && !Store::is_used(&settings).await.unwrap());
        std::fs::write(at("db"), "").unwrap();
        assert!(matches!(open(Opening::AsItIs).await, Err(Error::Older)));
        assert!(!Store::is_used(&settings).await.unwrap());
        open(Opening::Prepare).await.unwrap();
        let store = open(Opening::AsItIs).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let newer = "INSERT INTO __diesel_schema_migrations (version) VALUES ('99991231000000')";
        on!(tx.engine(), conn => conn.batch_execute(newer).await).unwrap();
        tx.commit().await.unwrap();
        for opening in [Opening::AsItIs, Opening::Prepare] {
            let refused = open(opening).await;
            assert!(
                matches!(&refused, Err(Error::Newer(v)) if v == "99991231000000"),
                "{refused:?}"
            );
        }
    }

    /// What a URL says of TLS, and the error if it says something else.
    fn mode_of(url: &str) -> Result<SslMode, String> {
        let settings = Settings {
            url: url.into(),
            password: None,
            tls_ca_file: None,
            connections: 2,
            node: "test".into(),
        };
        match address(&settings) {
            Ok(Address::Postgres(config, _)) => Ok(config.get_ssl_mode()),
            Ok(Address::Sqlite(path)) => panic!("{}", path.display()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn another_machine_is_spoken_to_over_tls_and_nothing_falls_back() {
        for (url, mode) in [
            ("postgres://u@localhost/d", SslMode::Disable),
            ("postgres://u@127.0.0.1/d", SslMode::Disable),
            ("postgresql://u@[::1]:5433/d", SslMode::Disable),
            ("postgres:///d?host=/run/postgresql", SslMode::Disable),
            ("postgres://u@db.example/d", SslMode::Require),
            ("postgres://u@192.0.2.1/d?application_name=sslmode=", SslMode::Require),
            ("postgres://u@localhost,db.example/d", SslMode::Require),
            ("postgres://u@localhost/d?hostaddr=192.0.2.1", SslMode::Require),
            ("postgres:///d?hostaddr=192.0.2.1", SslMode::Require),
            ("postgres://u@/d?hostaddr=10.0.0.9", SslMode::Require),
            ("postgres://u@/d?hostaddr=127.0.0.1", SslMode::Disable),
            ("postgres://u@localhost/d?hostaddr=127.0.0.1", SslMode::Disable),
            ("postgres://u@localhost,localhost/d?hostaddr=127.0.0.1,10.0.0.9", SslMode::Require),
            ("postgres://u@db.example/d?hostaddr=127.0.0.1", SslMode::Require),
            ("postgres:///d", SslMode::Require),
            ("postgres://u@db.example/d?sslmode=disable", SslMode::Disable),
            ("postgres://u@db.example/d?sslmode=disable&sslmode=verify-full", SslMode::Require),
            ("postgres://u@db.example/d?ssl%6Dode=disable", SslMode::Require),
            ("postgres://u@localhost/d?sslmode=require", SslMode::Require),
            ("postgres://u@localhost/d?connect_timeout=3&sslmode=verify-ca", SslMode::Require),
            ("postgres://u@localhost/d?sslmode=verify-full&connect_timeout=3", SslMode::Require),
        ] {
            assert_eq!(mode_of(url), Ok(mode), "{url}");
        }
        for (value, said) in [
            ("prefer", "sslmode=prefer may fall back to clear text"),
            ("allow", "sslmode=allow may fall back to clear text"),
            ("", "sslmode is unknown"),
            ("verify_full", "sslmode is unknown"),
            ("disable%20", "sslmode is unknown"),
        ] {
            let error = mode_of(&format!("postgres://u@db.example/d?sslmode={value}")).unwrap_err();
            assert!(error.contains(said), "{value}: {error}");
        }
        mode_of("postgres://u@db.example/d?sslrootcert=x").unwrap_err();
    }
}
