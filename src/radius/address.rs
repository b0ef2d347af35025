//! A server's name, and the addresses behind it.
//!
//! Always holds: all addresses together get no more time than one would.

use std::net::SocketAddr;

use tokio::time::{Instant, timeout_at};

use super::failure::{Discards, Reason};

/// More addresses than these are not tried: each would get too little time.
const MOST: usize = 4;

/// The addresses of a server, to be tried one after the other until a deadline: each with the
/// moment until which it may be, an equal share of the time that is then left.
#[derive(Debug)]
pub(super) struct Addresses {
    left: Vec<SocketAddr>,
    deadline: Instant,
}

impl Addresses {
    /// Looks up the addresses of `host:port`.
    pub(super) async fn of(address: &str, deadline: Instant) -> Result<Self, Reason> {
        let began = Instant::now();
        let found = timeout_at(deadline, tokio::net::lookup_host(address)).await;
        let found = found.map_err(|_| silence(began, &Discards::default()))?;
        let mut left: Vec<SocketAddr> = found.map_err(Reason::Resolve)?.collect();
        left.dedup();
        left.truncate(MOST);
        left.reverse();
        Ok(Self { left, deadline })
    }
}

impl Iterator for Addresses {
    type Item = (SocketAddr, Instant);

    fn next(&mut self) -> Option<Self::Item> {
        let shares = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
        let next = self.left.pop()?;
        let now = Instant::now();
        Some((next, now + self.deadline.saturating_duration_since(now) / shares))
    }
}

/// That a name has no addresses: what is to be said when there was none to try.
pub(super) fn nowhere() -> Reason {
    Reason::Resolve(std::io::Error::new(std::io::ErrorKind::NotFound, "it has no address"))
}

/// That nothing was heard since `began` but what was discarded.
pub(super) fn silence(began: Instant, discards: &Discards) -> Reason {
    Reason::Silent { waited: began.elapsed(), discards: discards.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn addresses_share_the_time() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let address = |last| SocketAddr::from(([192, 0, 2, last], 1812));
        let left = vec![address(3), address(2), address(1)];
        let mut addresses = Addresses { left, deadline: at(3000) };
        assert_eq!(addresses.next(), Some((address(1), at(1000))));
        // The first is refused at once, so the others get more.
        assert_eq!(addresses.next(), Some((address(2), at(1500))));
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(addresses.next(), Some((address(3), at(3000))));
        assert_eq!(addresses.next(), None);
    }

    #[tokio::test]
    async fn an_address_needs_no_look_up() {
        let deadline = Instant::now() + Duration::from_secs(9);
        let found = Addresses::of("[::1]:1812", deadline).await.unwrap();
        assert_eq!(found.left, ["[::1]:1812".parse().unwrap()]);
    }
}
