//! The SSH server: accepts, guards, signs in, forwards, drains.

pub mod forward;
pub mod guard;
pub mod proxy;
pub mod stream;
