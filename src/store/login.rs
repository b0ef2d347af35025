//! What the store does for a login: read an account, use a code or a recovery code up, bind an
//! authenticator, take the password that was chosen, write failures, attacks and sessions.
//!
//! Always holds: a code, a recovery code and a binding are used up by a compare-and-set in the same
//! transaction that writes down what they were used for, so that each works once over all
//! connections and nodes. A login commits only if the account's epoch is still the one that it
//! began with, its source was not locked meanwhile, and what was given is enough by the rules that
//! hold at that moment.

mod account;
mod bind;
mod claim;
mod code_limit;
mod failures;
mod known;

pub use bind::NewAuthenticator;
pub use claim::SignIn;
pub use code_limit::CodeFailures;
pub use failures::{FailureNote, Throttled};
pub use known::KnownSource;

pub(super) use bind::otp_place;
pub(super) use failures::A_SITE;

#[cfg(test)]
mod tests;
