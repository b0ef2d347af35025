//! What is done to files inside a recorded session: SFTP is filtered, the old scp protocol watched.
//!
//! Always holds: these are state machines fed with the bytes of one session channel. They do no
//! I/O, read no clock, hold a bounded amount of memory and take every byte for hostile.
//!
//! - [`Filter`] sits in the middle of the `sftp` subsystem (draft-ietf-secsh-filexfer-02): it
//!   forwards what the [`Rights`] allow, answers the rest itself, and tells what happened.
//! - [`scp::Observer`] looks at `scp -t` and `scp -f` without touching them.

mod event;
mod files;
mod filter;
mod ledger;
mod packet;
mod requests;
mod rights;
pub mod scp;
mod stream;

pub use event::{FileEvent, Operation, Outcome, RemotePath};
pub use filter::{Action, Filter};
pub use packet::{Error, Side};
pub use rights::Rights;

#[cfg(test)]
mod tests;
