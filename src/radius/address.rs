//! A server's name, and the addresses behind it.
//!
//! Always holds: all addresses together get no more time than one would.

use std::net::SocketAddr;

use tokio::time::{Instant, timeout_at};

use super::failure::{Discards, Reason};

/// More addresses than these are not tried: each would get too little time.
const MOST: usize = 4;

/// Tries the addresses of `host:port` one after the other, each with its share of the time until
/// `deadline`, and returns the first success or the last failure.
pub(super) async fn each<T>(
    address: &str,
    deadline: Instant,
    mut attempt: impl AsyncFnMut(SocketAddr, Instant) -> Result<T, Reason>,
) -> Result<T, Reason> {
    let began = Instant::now();
    let found = timeout_at(deadline, tokio::net::lookup_host(address)).await;
    let found = found.map_err(|_| silence(began, Discards::default()))?.map_err(Reason::Resolve)?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.dedup();
    addresses.truncate(MOST);
    let none = std::io::Error::new(std::io::ErrorKind::NotFound, "it has no address");
    let mut last = Reason::Resolve(none);
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left;
        left -= 1;
        match attempt(address, now + share).await {
            Ok(done) => return Ok(done),
            Err(reason) => last = reason,
        }
    }
    Err(last)
}

/// That nothing came since `began`.
pub(super) fn silence(began: Instant, discards: Discards) -> Reason {
    Reason::Silent { waited: began.elapsed(), discards }
}
