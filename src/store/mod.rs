//! Where everything that must outlive the process is kept: SQLite or PostgreSQL, one schema.
//!
//! Always holds: what changes the store happens in a [`Tx`], together with the audit event that
//! records it; a [`Tx`] that is dropped before [`Tx::commit`] changed nothing. It changes its rows
//! first, then appends to the audit log, then bumps the revision, so that no two wait for each other.
//! Query bodies are written once and expanded for both engines by the `on!` macro. No secret is
//! stored in the clear.

mod access;
mod audit;
mod carried;
mod certificate;
mod commit;
mod keys;
mod login;
mod open;
mod own;
mod pool;
mod radius;
mod recording;
mod remember;
mod schema;
pub mod seal;
mod session;
mod sign_in;
mod sqlite;
mod target;
mod user;

use std::sync::{Arc, Mutex};

use diesel::prelude::*;

use diesel_async::RunQueryDsl;

pub use access::{Access, GroupRow};
pub use audit::{EventFilter, EventRow};
pub use carried::{Carried, Carrier};
pub use certificate::{CertificateRow, MAX_CERTIFICATES, NewCertificate};
pub use keys::SealingKey;
pub use login::{CodeFailures, FailureNote, KnownSource, NewAuthenticator, SignIn, Throttled};
pub use open::{Opening, Settings};
pub use radius::FactorRow;
pub use recording::{NewRecording, RecordingEnd, RecordingRow};
pub use remember::RememberedRow;
pub use session::{ForwardRow, Live, SessionFilter, SessionRow};
pub use target::{AccountRow, AccountSecret, TrustedKey};
pub use user::{BindingPassword, KeyRow, LockRow, NewUser, UserDetail, UserRow};

use crate::audit::Record;
use crate::audit::chain::Anchor;
use crate::keys::AuditKey;
use pool::{Lease, Pool, Use, on};

/// The store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no store that can be used.
    #[error("failed to read the store's URL: {0}")]
    Url(String),
    /// PostgreSQL cannot be reached.
    #[error("failed to reach the PostgreSQL server: {}", chain(.0))]
    Connect(#[source] tokio_postgres::Error),
    /// The SQLite file cannot be opened, or PostgreSQL refused a connection.
    #[error("failed to open the store: {0}")]
    Open(#[from] diesel::ConnectionError),
    /// A query failed.
    #[error("failed to use the store: {0}")]
    Query(#[source] diesel::result::Error),
    /// The audit log ends before what this process wrote to it, or in another event.
    #[error(
        "the audit log ends with event {end}, but is not as this process left it at event {written}: \
         it was cut back or replaced, and nothing is written to it until a restart; run 'sallyport \
         audit verify' with an anchor"
    )]
    CutBack {
        /// The last event that this process wrote.
        written: i64,
        /// The last event that there is.
        end: i64,
    },
    /// Changes that waited for their commit were not made.
    #[error("failed to write to the store: {0}")]
    Commit(Arc<str>),
    /// The schema could not be brought up to date.
    #[error("failed to bring the store's schema up to date: {0}")]
    Migrate(String),
    /// There is no SQLite file.
    #[error("there is no store at {0}: run 'sallyport serve' or 'sallyport init' first")]
    Missing(std::path::PathBuf),
    /// The schema is not one that this program can use as it is.
    #[error(
        "the store is not set up, or was by an older sallyport: restart the server, or run 'sallyport \
         init'"
    )]
    Older,
    /// The schema is one that this program does not know.
    #[error("the store was set up by a newer sallyport (schema {0}): use that one")]
    Newer(String),
    /// A key file is not the one that belongs to the store.
    #[error(
        "the {which} key here is {here}, but the store belongs to {store}: put that {which} key here \
         (or pass the credential that the server gets)"
    )]
    OtherKey {
        /// Which of the keys.
        which: &'static str,
        /// The one in its file.
        here: String,
        /// The one that the store remembers.
        store: String,
    },
    /// No connection, or no lock, in time.
    #[error("the store is busy: no connection was free within 5 seconds")]
    Busy,
    /// A secret could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] seal::Error),
    /// An audit event could not be written down.
    #[error("failed to write the audit log: {0}")]
    Audit(String),
    /// The system has no randomness to give.
    #[error("failed to get randomness from the system: {0}")]
    Random(#[from] getrandom::Error),
    /// A row does not read back as what it must be.
    #[error("the store holds a damaged row in {table}: {reason}")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// What was to be added is there already, or what was named is not there, or in use.
    #[error("{0}")]
    Conflict(String),
}

impl From<diesel::result::Error> for Error {
    /// Two that add the same, or use what goes away at that moment: the constraints tell the second.
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::DatabaseErrorKind::{ForeignKeyViolation, UniqueViolation};
        match error {
            diesel::result::Error::DatabaseError(UniqueViolation | ForeignKeyViolation, _) => {
                Self::Conflict("somebody else changed the same at that moment: look again".into())
            }
            other => Self::Query(other),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Audit(error.to_string())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The store, shared by everything in the process.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    pool: Pool,
    keyring: seal::Keyring,
    audit_key: AuditKey,
    node: String,
    /// The end of the audit log as this process last wrote it.
    written: Arc<Mutex<Option<Anchor>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("node", &self.0.node).finish_non_exhaustive()
    }
}

/// Changes that happen together or not at all.
pub(crate) struct Tx<'a> {
    lease: Lease,
    store: &'a Inner,
    /// What it appended to the audit log: told to the log for operators once it lasts.
    appended: Vec<Record>,
    /// The end of the log with that.
    end: Option<Anchor>,
    /// Whether an event could not be appended: nothing may last then.
    is_cut: bool,
}

impl Store {
    /// The sealing keys.
    pub fn keyring(&self) -> &seal::Keyring {
        &self.0.keyring
    }

    /// The key that signs the audit log.
    pub fn audit_key(&self) -> &AuditKey {
        &self.0.audit_key
    }

    /// Whether other nodes may use the same store.
    pub fn is_shared(&self) -> bool {
        self.0.pool.is_shared()
    }

    /// The name of this node, as events and sessions carry it.
    pub fn node(&self) -> &str {
        &self.0.node
    }

    /// Begins to change the store. Writers wait for each other here.
    pub(crate) async fn begin(&self) -> Result<Tx<'_>, Error> {
        self.start(Use::Write).await
    }

    /// Begins to change a few rows that are found by their keys.
    pub(crate) async fn begin_short(&self) -> Result<Tx<'_>, Error> {
        self.start(Use::ShortWrite).await
    }

    /// Begins to read the store, as it is at one moment.
    pub(crate) async fn read(&self) -> Result<Tx<'_>, Error> {
        self.start(Use::Read).await
    }

    /// Begins to read a few rows that are found by their keys.
    pub(crate) async fn read_short(&self) -> Result<Tx<'_>, Error> {
        self.start(Use::ShortRead).await
    }

    async fn start(&self, what: Use) -> Result<Tx<'_>, Error> {
        let lease = match self.0.pool.begin(what).await {
            // A connection that the server closed since it was last used: once more with new ones.
            Err(Error::Query(_)) => {
                self.0.pool.forget_idle();
                self.0.pool.begin(what).await?
            }
            other => other?,
        };
        Ok(Tx { lease, store: &self.0, appended: Vec::new(), end: None, is_cut: false })
    }
}

impl Tx<'_> {
    /// Makes the changes of this transaction last.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        self.move_end().await?;
        let (written, end) = (Arc::clone(&self.store.written), self.end.take());
        let appended = std::mem::take(&mut self.appended);
        let told = move || {
            audit::note_written(&written, end);
            appended.iter().for_each(audit::mirror);
        };
        self.lease.commit(Box::new(told)).await
    }

    /// Undoes the changes of this transaction, and keeps its connection. What it read is so by then.
    pub(crate) async fn roll_back(self) -> Result<(), Error> {
        self.lease.roll_back().await
    }

    /// Tells every node that live sessions have to be checked against what is stored now.
    pub(crate) async fn bump_revision(&mut self) -> Result<(), Error> {
        use schema::revision::dsl;
        on!(self.lease.engine(), conn => {
            diesel::update(dsl::revision).set(dsl::value.eq(dsl::value + 1)).execute(conn).await
        })?;
        Ok(())
    }

    /// The engine, for query bodies.
    pub(crate) fn engine(&mut self) -> &mut pool::Engine {
        self.lease.engine()
    }
}

/// Shows a column of 0 or 1 as what it means.
fn as_bool<S: serde::Serializer>(value: &i64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bool(*value != 0)
}

/// Parses what a column holds; a value of ours that does not read back is a damaged row.
fn parse<T: std::str::FromStr>(table: &'static str, text: &str) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| Error::Damaged { table, reason: e.to_string() })
}
