//! Connections to the store, of either engine, lent out and taken back.
//!
//! Always holds: a connection goes back into the pool only when its lender says that it is clean;
//! one that is dropped in the middle of anything (an error, a cancelled task, an open transaction)
//! is closed, and the engine undoes what it had not committed. Where SQLite's transaction is shared
//! ([`super::commit`]), what was done is undone back to its savepoint instead.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::FutureExt as _;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;
use super::commit::{Seat, Then, Waiting};
use super::sqlite::Sqlite;

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
    /// SQLite, which waits for its file.
    Sqlite(Sqlite),
    /// PostgreSQL.
    Postgres(Box<AsyncPgConnection>),
}

/// Runs one query body on whichever engine a connection is of.
macro_rules! on {
    ($engine:expr, $conn:ident => $body:expr) => {
        match $engine {
            $crate::store::pool::Engine::Sqlite(conn) => {
                let $conn = &mut *conn.statements();
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

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Reads, however much.
    Read,
    /// Reads a few rows by their keys.
    ShortRead,
    /// Writes, however much.
    Write,
    /// Writes a few rows by their keys.
    ShortWrite,
}

impl Use {
    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ShortWrite)
    }

    fn is_short(self) -> bool {
        matches!(self, Self::ShortRead | Self::ShortWrite)
    }
}

/// A set of connections to one store.
pub(super) struct Pool(Arc<Shared>);

pub(super) struct Shared {
    address: Address,
    idle: Mutex<Vec<Engine>>,
    permits: Arc<Semaphore>,
    /// SQLite has one writer at a time: waiting here is fair, waiting inside it is polling.
    pub(super) writer: Arc<tokio::sync::Mutex<Waiting>>,
}

/// A connection on loan, in a transaction. Dropping it undoes that.
pub(super) struct Lease {
    pool: Arc<Shared>,
    /// `None` only while it is given back or dropped.
    held: Option<Held>,
}

/// What a lease holds.
enum Held {
    /// A transaction of its own, and the writer's lock if it is one of SQLite.
    Alone(Engine, OwnedSemaphorePermit, Option<OwnedMutexGuard<Waiting>>),
    /// One that is committed together with others.
    Seated(Seat, OwnedMutexGuard<Waiting>),
}

impl Pool {
    /// Whether it is a server's, which others may be connected to.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.0.address, Address::Postgres(..))
    }

    pub(super) fn new(address: Address, size: usize) -> Self {
        Self(Arc::new(Shared {
            address,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(size)),
            writer: Arc::default(),
        }))
    }

    /// Lends a connection, with a transaction begun.
    pub(super) async fn begin(&self, what: Use) -> Result<Lease, Error> {
        let held = tokio::time::timeout(PATIENCE, self.lend(what)).await;
        Ok(Lease { pool: Arc::clone(&self.0), held: Some(held.map_err(|_| Error::Busy)??) })
    }

    async fn lend(&self, what: Use) -> Result<Held, Error> {
        let pool = &self.0;
        let mut writer = None;
        if what.writes() && matches!(pool.address, Address::Sqlite(_)) {
            let mut open = Arc::clone(&pool.writer).lock_owned().await;
            if what == Use::ShortWrite
                && let Some(seat) = open.join()
            {
                return Ok(Held::Seated(seat, open));
            }
            open.commit(pool).await; // What is long stands alone.
            writer = Some(open);
        }
        let permit = Arc::clone(&pool.permits).acquire_owned().await.map_err(|_| Error::Busy)?;
        let idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut engine = match idle {
            Some(engine) => engine,
            None => self.connect().await?,
        };
        engine.begin(what).await?;
        Ok(match writer {
            Some(open) if what == Use::ShortWrite => {
                Held::Seated(Seat::first(engine, permit)?, open)
            }
            writer => Held::Alone(engine, permit, writer),
        })
    }

    pub(super) async fn connect(&self) -> Result<Engine, Error> {
        match &self.0.address {
            Address::Sqlite(path) => Ok(Engine::Sqlite(Sqlite::open(path).await?)),
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
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Shared {
    /// Takes a connection back that has no open transaction and has not failed.
    pub(super) fn take_back(&self, engine: Engine) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
    }
}

impl Engine {
    async fn begin(&mut self, what: Use) -> Result<(), Error> {
        let sql = match (&*self, what.writes()) {
            (Self::Sqlite(_), true) => "BEGIN IMMEDIATE",
            (Self::Sqlite(_), false) => "BEGIN DEFERRED",
            (Self::Postgres(_), true) => "BEGIN",
            (Self::Postgres(_), false) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        // Who writes waits here for other processes; a short transaction waits for nobody later on.
        self.run_here(what == Use::ShortRead);
        self.run(sql).await?;
        self.run_here(what.is_short());
        Ok(())
    }

    /// Runs SQL text that is the same for both engines and gives nothing back.
    pub(super) async fn run(&mut self, sql: &str) -> Result<(), Error> {
        on!(self, conn => conn.batch_execute(sql).await)?;
        Ok(())
    }

    /// The same, of SQLite, here and now: for what waits for nobody.
    pub(super) fn run_now(&mut self, sql: &str) -> Result<(), Error> {
        self.run_here(true);
        self.run(sql).now_or_never().unwrap_or(Err(Error::Busy))
    }

    /// Says whether SQLite's statements run where they are asked for, from now on.
    pub(super) fn run_here(&self, here: bool) {
        if let Self::Sqlite(conn) = self {
            conn.run_here(here);
        }
    }
}

impl Lease {
    /// The connection, for query bodies.
    // What was given back cannot be named any more.
    #[allow(clippy::unreachable)]
    pub(super) fn engine(&mut self) -> &mut Engine {
        match &mut self.held {
            Some(Held::Alone(engine, ..)) => engine,
            Some(Held::Seated(seat, _)) => &mut seat.engine,
            None => unreachable!("a lease holds its connection until it is given back"),
        }
    }

    /// Makes what was done last, does `then` once it does, and gives the connection back.
    pub(super) async fn commit(mut self, then: Then) -> Result<(), Error> {
        match self.held.take() {
            Some(Held::Seated(seat, mut open)) => {
                let commit = open.leave(seat, then, &self.pool)?;
                drop(open); // Whoever waits goes on in the same transaction.
                commit.lasts().await
            }
            held => {
                self.end(held, "COMMIT").await?;
                then();
                Ok(())
            }
        }
    }

    /// Undoes what was done, and gives the connection back. What others did and this one may have seen
    /// lasts by then.
    pub(super) async fn roll_back(mut self) -> Result<(), Error> {
        match self.held.take() {
            Some(Held::Seated(seat, mut open)) => {
                let seen = open.undo(seat, &self.pool);
                drop(open);
                match seen {
                    Some(commit) => commit.lasts().await,
                    None => Ok(()),
                }
            }
            held => self.end(held, "ROLLBACK").await,
        }
    }

    async fn end(&self, held: Option<Held>, sql: &str) -> Result<(), Error> {
        if let Some(Held::Alone(mut engine, _permit, _writer)) = held {
            engine.run(sql).await?;
            self.pool.take_back(engine);
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Held::Seated(seat, mut open)) = self.held.take() {
            open.undo(seat, &self.pool);
        }
    }
}
