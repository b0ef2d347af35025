//! The audit log: what happened, to whom, from where, in an order nobody can
//! change unseen.
//!
//! Always holds: an [`Event`] is written in the transaction of the fact it
//! records, before anybody is given what it speaks of; and [`chain`] can tell,
//! without a store, the first record that was edited, dropped, reordered or cut off.

pub mod chain;
mod event;

pub use event::{
    Actor, CertificateFault, Context, EndReason, Event, Note, RadiusVerdict, Record, Refusal, Step,
    kinds,
};
