//! A RADIUS client (RFC 2865) that asks servers whether a user is who they say: PAP and challenges,
//! over UDP or TLS (RadSec, RFC 6614), with failover. It knows nothing of the rest of the program.
//!
//! Always holds: a reply counts only if it was proved to come from the server that was asked, for
//! this very request (CVE-2024-3596 included); whatever else comes in is counted, logged and
//! otherwise ignored; no failure ever turns into an accept; no secret is shown or logged.
//!
//! Texts from a server ([`Reply::message`]) are raw: make them printable before anybody sees them.
//!
//! ```no_run
//! # use sallyport::radius::*;
//! # async fn example(code: secrecy::SecretString) -> Result<bool, Box<dyn std::error::Error>> {
//! let servers = vec![
//!     Server::udp("north", "north.example:1812", "a long secret".into()),
//!     Server::udp("south", "south.example:1812", "another one".into()),
//! ];
//! let client = Client::new(servers, Settings::new("bastion"))?;
//! let request =
//!     Request { user: "alice", password: &code, calling_station: "192.0.2.7", state: None };
//! Ok(match client.authenticate(request).await?.verdict {
//!     Verdict::Accept => true,
//!     Verdict::Reject => false,
//!     Verdict::Challenge(_state) => false, // Show the message, and ask again with the state.
//! })
//! # }
//! ```
//!
//! Reading order: [`packet`] (the bytes), [`Server`] (what is set), `udp` and `radsec` (one exchange
//! with one server), [`Client`] (several servers).

mod address;
mod client;
mod failure;
pub mod packet;
mod radsec;
mod server;
mod udp;

pub use client::{Client, Probe, ProbeAnswer, Reply, Request, State, Verdict};
pub use failure::{Discards, Error, Failure, Failures, Reason};
pub use server::{RADSEC_SECRET, Server, Settings, SetupError, Tls, TlsError, Transport};
