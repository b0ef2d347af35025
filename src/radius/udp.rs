//! One exchange with one server over UDP.
//!
//! Always holds: each exchange has a socket of its own, connected, so its port is random and the
//! system drops whatever comes from elsewhere; a request that is sent again is the same, byte for
//! byte (RFC 5080 section 2.2.1), so a server can tell that it has seen it and a code is used once.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::address::{Addresses, nowhere, silence};
use super::failure::{Discards, Reason};
use super::packet::{Answer, Ask, Header, MAX_PACKET, Query, SharedSecret};
use super::server::Server;

/// Asks the server, and waits for its answer until its time is over.
pub(super) async fn exchange(
    server: &Server,
    secret: &SharedSecret,
    ask: &Ask<'_>,
    discards: &mut Discards,
) -> Result<Answer, Reason> {
    let began = Instant::now();
    let deadline = began + server.timeout;
    let mut outcome = Err(nowhere());
    for (address, until) in Addresses::of(&server.address, deadline).await? {
        let query = Query::new(Header::random()?, ask, secret)?;
        let required = server.requires_signature();
        let read = |datagram: &[u8]| {
            query.read(datagram, secret, required).map_err(|why| discards.add(why)).ok()
        };
        let heard = send(query.bytes(), address, until, server.tries, read).await;
        outcome = match heard {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => Err(silence(began, discards)),
            Err(reason) => Err(reason),
        };
    }
    outcome
}

/// Sends a request as often as set, and returns the first datagram that `read` makes something of.
async fn send<T>(
    request: &[u8],
    address: SocketAddr,
    until: Instant,
    tries: u32,
    mut read: impl FnMut(&[u8]) -> Option<T>,
) -> Result<Option<T>, Reason> {
    let socket = connect(address).await.map_err(Reason::Unreachable)?;
    let mut next = Instant::now();
    for wait in waits(until.saturating_duration_since(next), tries, &jitter(tries)?) {
        next += wait;
        socket.send(request).await.map_err(Reason::Unreachable)?;
        if let Some(found) = receive(&socket, next, &mut read).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A socket on a random port that hears only `address`.
async fn connect(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let here: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(here).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// The first datagram until `until` that `read` makes something of.
async fn receive<T>(
    socket: &UdpSocket,
    until: Instant,
    read: &mut impl FnMut(&[u8]) -> Option<T>,
) -> Result<Option<T>, Reason> {
    // One byte more than a packet may have, so that a longer one is seen to be.
    let mut buffer = vec![0; MAX_PACKET + 1];
    // Not only the timer: it is not looked at as long as a flood of packets comes in.
    while Instant::now() < until {
        match timeout_at(until, socket.recv(&mut buffer)).await {
            Err(_) => break,
            Ok(Err(error)) => return Err(Reason::Unreachable(error)),
            Ok(Ok(length)) => {
                if let Some(found) = buffer.get(..length).and_then(&mut *read) {
                    return Ok(Some(found));
                }
            }
        }
    }
    Ok(None)
}

/// How long to wait after each of `tries` sends: twice as long as before, give or take a tenth
/// (RFC 5080 section 2.2.1), and all together `total`. `jitter` has an octet for each.
fn waits(total: Duration, tries: u32, jitter: &[u8]) -> Vec<Duration> {
    let first = total / 2_u32.saturating_pow(tries).saturating_sub(1).max(1);
    let (mut planned, mut before, mut left) = (first, first, total);
    let mut waits = Vec::new();
    for (sent, octet) in (1..=tries).zip(jitter) {
        // From -1/10 of the wait before to +1/10.
        let wait = planned - before / 10 + before * u32::from(*octet) / 1275;
        let this = if sent == tries { left } else { wait.min(left) };
        left -= this;
        waits.push(this);
        (planned, before) = (wait * 2, wait);
    }
    waits
}

/// An octet of randomness for each send.
fn jitter(tries: u32) -> Result<Vec<u8>, getrandom::Error> {
    let mut octets = vec![0; usize::try_from(tries).unwrap_or_default()];
    getrandom::fill(&mut octets)?;
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double() {
        let waits = |jitter: &[u8]| {
            waits(Duration::from_millis(7000), 3, jitter)
                .iter()
                .map(Duration::as_millis)
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(&[0, 0, 0]), [900, 1710, 4390]);
        assert_eq!(waits(&[255, 255, 255]), [1100, 2310, 3590]);
    }

    proptest! {
        #[test]
        fn all_waits_together_are_the_timeout(
            ms in 1u64..300_000, tries in 1u32..=10, jitter in prop::collection::vec(any::<u8>(), 10)
        ) {
            let waits = waits(Duration::from_millis(ms), tries, &jitter);
            prop_assert_eq!(waits.len(), usize::try_from(tries).unwrap());
            prop_assert_eq!(waits.iter().sum::<Duration>(), Duration::from_millis(ms));
        }
    }
}
