//! Everything that is tested from outside, in one binary: with the real OpenSSH, PuTTY, sshd and
//! PostgreSQL, on loopback, each started and stopped by the test that needs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub)] // Nothing outside a test binary could be reached.

mod abuse;
mod architecture;
mod certificate;
mod cli;
mod clients;
mod console;
mod crash;
mod data_path;
mod deadlines;
mod doctor;
mod drain;
mod ended_factors;
mod first_login;
mod forwarding;
mod guard;
mod identity;
mod indexes;
mod known_hosts;
mod lifecycle;
mod login;
mod login_certificate;
mod login_cost;
mod memory;
mod menu;
mod one_code;
mod own;
mod postgres;
mod postgres_tls;
mod radius;
mod radius_doctor;
mod radius_forged;
mod radius_login;
mod radius_own;
mod radius_shell;
mod radius_step_up;
mod radius_tls;
mod record;
mod record_abuse;
mod record_files;
mod record_journal;
mod record_onward;
mod record_rights;
mod record_signin;
mod record_table;
mod record_target;
mod record_tools;
mod record_wire;
mod reload;
mod remembered;
mod secrets;
mod shipped_files;
mod sign_in;
mod step_up;
mod store;
mod support;
mod systemd;
mod tampering;
mod traffic;
mod transport;
