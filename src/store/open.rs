//! Opening the store: reading its URL, connecting, bringing the schema up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::pool::{Address, Engine, Pool};
use super::{Error, Inner, Store, seal};
use crate::keys::AuditKey;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// What it takes to open a store.
#[derive(Debug)]
pub struct Settings {
    /// `sqlite:PATH`, or `postgres://…` as libpq writes it.
    pub url: String,
    /// PostgreSQL's password, when it does not stand in the URL.
    pub password: Option<SecretString>,
    /// The certificate authority that PostgreSQL's certificate must be from; without it, the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// The most connections at a time.
    pub connections: usize,
    /// The name of this node.
    pub node: String,
}

impl Store {
    /// Opens the store and brings its schema up to date.
    ///
    /// # Errors
    /// When it cannot be reached, or its schema cannot be brought up to date.
    pub async fn open(
        settings: &Settings,
        keyring: seal::Keyring,
        audit_key: AuditKey,
    ) -> Result<Self, Error> {
        let pool = Pool::new(address(settings)?, settings.connections.max(2));
        let connecting = tokio::time::timeout(super::pool::PATIENCE, pool.connect());
        migrate(connecting.await.map_err(|_| Error::Busy)??).await?;
        let node = settings.node.clone();
        Ok(Self(Arc::new(Inner { pool, keyring, audit_key, node })))
    }
}

async fn migrate(engine: Engine) -> Result<(), Error> {
    let fail = |e: Box<dyn std::error::Error + Send + Sync>| Error::Migrate(e.to_string());
    match engine {
        Engine::Sqlite(conn) => {
            AsyncMigrationHarness::new(*conn).run_pending_migrations(MIGRATIONS).map_err(fail)?;
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
    if !url.contains("sslmode=") {
        let local = |host: &Host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost"
                    || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        };
        let local = config.get_hosts().iter().all(local);
        config.ssl_mode(if local { SslMode::Disable } else { SslMode::Require });
    }
    Ok(Address::Postgres(Box::new(config), tls(settings.tls_ca_file.as_deref())?))
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
