//! Signing in: the state machine and the pure parts that it decides with.

pub mod account;
pub mod machine;
pub mod password;
pub mod prompt;
pub mod qr;
pub mod recovery;
pub mod totp;
