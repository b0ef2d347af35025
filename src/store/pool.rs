//! Connections to the store, of either engine, lent out and taken back.
//!
//! Always holds: a connection goes back into the pool only when its lender says that it is clean;
//! one that is dropped in the middle of anything (an error, a cancelled task, an open transaction)
//! is closed, and the engine undoes what it had not committed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diesel::SqliteConnection;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;

/// How long anybody waits for a connection or for a lock before the store counts as failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Where the store is.
#[derive(Clone)]
pub(super) enum Address {
    /// A file.
    Sqlite(PathBuf),
    /// A server; the configuration holds the password and is never shown.
    Postgres(Box<tokio_postgres::Config>, MakeRustlsConnect),
}

/// A connection of either engine.
pub(crate) enum Engine {
    /// SQLite, run on the blocking pool.
    Sqlite(Box<SyncConnectionWrapper<SqliteConnection>>),
    /// PostgreSQL.
    Postgres(Box<AsyncPgConnection>),
}

/// Runs one query body on whichever engine a connection is of.
macro_rules! on {
    ($engine:expr, $conn:ident => $body:expr) => {
        match $engine {
            $crate::store::pool::Engine::Sqlite(conn) => {
                let $conn = &mut **conn;
                $body
            }
            $crate::store::pool::Engine::Postgres(conn) => {
                let $conn = &mut **conn;
                $body
            }
        }
    };
}
pub(super) use on;

/// Puts a row into a table in the place of the one with a key; or takes that one away, if there is none
/// to put. Whose row it is has to be held.
macro_rules! replace {
    ($tx:expr, $table:expr, $key:expr, $row:expr) => {{
        let (key, row) = ($key, $row);
        on!($tx.engine(), conn => diesel::delete($table.find(key)).execute(conn).await)?;
        if let Some(row) = row {
            on!($tx.engine(), conn => diesel::insert_into($table).values(row).execute(conn).await)?;
        }
    }};
}
pub(super) use replace;

/// A set of connections to one store.
pub(super) struct Pool {
    address: Address,
    idle: Mutex<Vec<Engine>>,
    permits: Arc<Semaphore>,
    /// SQLite has one writer at a time: waiting here is fair, waiting inside it is polling.
    writer: Arc<tokio::sync::Mutex<()>>,
}

/// A connection on loan. Dropping it closes it; [`Lease::give_back`] returns it.
pub(super) struct Lease<'a> {
    pool: &'a Pool,
    pub(super) engine: Engine,
    _permit: OwnedSemaphorePermit,
    writer: Option<OwnedMutexGuard<()>>,
}

impl Pool {
    /// Whether it is a server's, which others may be connected to.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.address, Address::Postgres(..))
    }

    pub(super) fn new(address: Address, size: usize) -> Self {
        Self {
            address,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(size)),
            writer: Arc::default(),
        }
    }

    /// Lends a connection, for writing if `write`.
    pub(super) async fn lend(&self, write: bool) -> Result<Lease<'_>, Error> {
        let wait = async {
            let one_writer = write && matches!(self.address, Address::Sqlite(_));
            let writer =
                if one_writer { Some(Arc::clone(&self.writer).lock_owned().await) } else { None };
            let permit =
                Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::Busy)?;
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let engine = match idle {
                Some(engine) => engine,
                None => self.connect().await?,
            };
            Ok(Lease { pool: self, engine, _permit: permit, writer })
        };
        tokio::time::timeout(PATIENCE, wait).await.map_err(|_| Error::Busy)?
    }

    pub(super) async fn connect(&self) -> Result<Engine, Error> {
        match &self.address {
            Address::Sqlite(path) => {
                let path =
                    path.to_str().ok_or_else(|| Error::Url("the path is not UTF-8".into()))?;
                let mut conn = SyncConnectionWrapper::<SqliteConnection>::establish(path).await?;
                conn.batch_execute(
                    "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; \
                     PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
                )
                .await?;
                Ok(Engine::Sqlite(Box::new(conn)))
            }
            Address::Postgres(config, tls) => {
                let (client, connection) =
                    config.connect(tls.clone()).await.map_err(Error::Connect)?;
                let conn =
                    AsyncPgConnection::try_from_client_and_connection(client, connection).await?;
                Ok(Engine::Postgres(Box::new(conn)))
            }
        }
    }

    /// Closes the connections that nobody holds, as after the server went away.
    pub(super) fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Lease<'_> {
    /// Returns a connection that has no open transaction and has not failed.
    pub(super) fn give_back(self) {
        let Self { pool, engine, _permit, writer } = self;
        pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
        drop(writer);
    }

    /// Runs SQL text that is the same for both engines and gives nothing back.
    pub(super) async fn run_sql(&mut self, sql: &str) -> Result<(), Error> {
        on!(&mut self.engine, conn => conn.batch_execute(sql).await)?;
        Ok(())
    }
}
