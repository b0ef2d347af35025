//! The administrative verbs, shared by the command line and the console.
//!
//! Always holds: a verb that changes something does so in one transaction with its audit event;
//! its output has no raw control byte. Which caller may use which verb is decided before: here
//! everything is allowed.

mod access;
mod audit;
mod certificate;
pub mod out;
pub mod output;
pub mod replay;
mod sealing;
mod session;
mod target;
mod user;

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

pub use access::{explain, grants, groups};
pub use audit::{export, list_events, verify_file, verify_store};
pub use certificate::{certificates, revoke_certificate};
pub use out::Out;
pub use sealing::{add_sealing_key, sealing};
pub use session::{list_sessions, sessions};
pub use target::{TargetInput, address_of, find_target, targets};
pub use user::{NewPassword, otp, read_keys, users};

use crate::audit::Context;
use crate::auth::password;
use crate::domain::{RadiusMode, UnixTime};
use crate::store::Store;

/// One for the whole process.
static TURN: Semaphore = Semaphore::const_new(1);

/// Waits for one's turn at work that takes much time or memory: reading and checking many rows. Nobody
/// keeps it while their output is taken, so who reads slowly holds up nobody.
pub async fn turn() -> Option<SemaphorePermit<'static>> {
    TURN.acquire().await.ok() // It is never closed.
}

/// What every verb works with.
#[derive(Debug, Clone, Copy)]
pub struct Verbs<'a> {
    /// The store.
    pub store: &'a Store,
    /// Who acts.
    pub context: &'a Context,
    /// The time it is.
    pub now: UnixTime,
    /// Whether to show JSON, or a table of which width.
    pub format: output::Format,
    /// What a password hash costs.
    pub cost: password::Cost,
    /// What a password must keep to.
    pub rules: &'a password::Rules,
    /// The folder of recordings.
    pub recordings: &'a std::path::Path,
    /// How long an authenticator may be bound after it was allowed.
    pub binding_window: Duration,
    /// How RADIUS servers are asked for whom nothing else is set; `None` if there are none.
    pub radius: Option<RadiusMode>,
}
