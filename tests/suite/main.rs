//! Everything that is tested from outside, in one binary: with the real OpenSSH, PuTTY, sshd and
//! PostgreSQL, on loopback, each started and stopped by the test that needs it.

mod architecture;
mod first_login;
mod forwarding;
mod lifecycle;
mod login;
mod shipped_files;
mod support;
