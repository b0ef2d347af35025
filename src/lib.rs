//! Sallyport: an SSH bastion with a one-time-code second factor.
//!
//! Reading order: [`domain`] (the words), [`audit::Event`] (what can happen), [`auth`] (login as a
//! state machine), [`policy`] (who may go where), [`sftp`] (which file requests pass), [`radius`]
//! (asking other servers about a user; a client on its own), then the shell around them: [`clock`] (what
//! time it is, also in tests), [`keys`] and [`config`] (what is read from files), [`hashing`] (passwords, on
//! threads of their own), [`recording`], [`store`], [`server`], [`console`], [`admin`], [`cli`], [`setup`]
//! (what has to be there before the rest), and [`serve`] (which puts them together). Beside them:
//! [`doctor`] (what may be wrong with all that), [`logging`] (for operators; the audit log is the store's)
//! and [`harden`] (what the process gives up at its start).
//!
//! Imports point down only, in the order that `tests/suite/architecture.rs` states and checks. The core
//! (`domain`, `auth`, `policy`, `audit`, `sftp`) knows no tokio, russh, diesel or clock.

pub mod admin;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod doctor;
pub mod domain;
pub mod harden;
pub mod hashing;
pub mod keys;
pub mod logging;
pub mod policy;
pub mod radius;
pub mod recording;
pub mod serve;
pub mod server;
pub mod setup;
pub mod sftp;
pub mod store;
