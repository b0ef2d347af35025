//! A connection to SQLite, which blocks whoever asks it.
//!
//! Always holds: whatever may wait (for the lock of another process, for the disk to have written)
//! and whatever may take long runs on the blocking pool. A statement that finds a few rows by their
//! keys takes less time than the way to that pool and back, and runs where it is asked for.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use diesel::{Connection as _, SqliteConnection};
use diesel_async::SimpleAsyncConnection as _;
use diesel_async::sync_connection_wrapper::{SpawnBlocking, SyncConnectionWrapper};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Error;

/// The same as the server's: other processes write, too, if seldom.
const PRAGMAS: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; \
                       PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";

/// A connection, and where its statements run.
pub(crate) struct Sqlite {
    conn: Box<Statements>,
    here: Arc<AtomicBool>,
}

/// What query bodies run on.
pub(crate) type Statements = SyncConnectionWrapper<SqliteConnection, Place>;

/// Runs statements here, or on the blocking pool.
pub(crate) struct Place {
    here: Arc<AtomicBool>,
}

impl SpawnBlocking for Place {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn StdError + Send + Sync>>>
    where
        R: Send + 'static,
    {
        if self.here.load(Relaxed) {
            return std::future::ready(Ok(task())).boxed();
        }
        let done = tokio::task::spawn_blocking(task);
        async { done.await.map_err(Into::into) }.boxed()
    }

    fn get_runtime() -> Self {
        Self { here: Arc::default() }
    }
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_str().ok_or_else(|| Error::Url("the path is not UTF-8".into()))?;
        let path = path.to_owned();
        let open = tokio::task::spawn_blocking(move || SqliteConnection::establish(&path));
        let open = open.await.map_err(|error| Error::Url(error.to_string()))??;
        let here = Arc::<AtomicBool>::default();
        let mut conn = Statements::with_runtime(open, Place { here: Arc::clone(&here) });
        conn.batch_execute(PRAGMAS).await?;
        Ok(Self { conn: Box::new(conn), here })
    }

    /// Says whether statements run where they are asked for, from now on.
    pub(super) fn run_here(&self, here: bool) {
        self.here.store(here, Relaxed);
    }

    /// What query bodies run on.
    pub(crate) fn statements(&mut self) -> &mut Statements {
        &mut self.conn
    }

    pub(super) fn into_statements(self) -> Statements {
        *self.conn
    }
}
