//! From a target's host and port to a connected socket, in bounded time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::socket;
use crate::domain::Host;

/// Why a target could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its name led nowhere.
    #[error("its name does not resolve: {0}")]
    Resolve(io::Error),
    /// The resolver did not answer.
    #[error("its name did not resolve within {0:?}")]
    ResolveTimedOut(Duration),
    /// Nothing answered.
    #[error("did not answer within {0:?}")]
    TimedOut(Duration),
    /// Nobody waits for it any more.
    #[error("the client left before it answered")]
    Left,
    /// The connection was refused, or there is no way there.
    #[error("{0}")]
    Connect(io::Error),
}

impl DialError {
    /// The error as a sentence about the target `name`.
    pub fn for_target(&self, name: &str) -> String {
        match self {
            Self::Resolve(_) => format!("the address of {name} does not resolve"),
            Self::ResolveTimedOut(after) => {
                format!("the address of {name} did not resolve within {} s", after.as_secs())
            }
            Self::Left => format!("the client left before {name} answered"),
            Self::TimedOut(after) => format!("{name} did not answer within {} s", after.as_secs()),
            Self::Connect(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                format!("{name} refused the connection")
            }
            Self::Connect(e) => format!("{name} cannot be reached: {e}"),
        }
    }
}

/// Resolves `host`, once. Literal addresses do not go to DNS.
///
/// # Errors
/// When it does not resolve in time.
pub async fn resolve(host: &Host, port: u16, timeout: Duration) -> Result<Vec<IpAddr>, DialError> {
    if let Some(ip) = host.ip() {
        return Ok(vec![ip]);
    }
    let found = tokio::time::timeout(timeout, tokio::net::lookup_host((host.as_str(), port))).await;
    let found = found.map_err(|_| DialError::ResolveTimedOut(timeout))?;
    Ok(found.map_err(DialError::Resolve)?.map(|address| address.ip()).collect())
}

/// Connects to the first of `addresses` that answers. Each gets an equal share of the time that is
/// left, so that one that swallows packets does not use up the others' chance.
///
/// # Errors
/// Why the last one failed.
pub async fn dial(
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<(SocketAddr, TcpStream), DialError> {
    let deadline = Instant::now() + timeout;
    let mut last = DialError::TimedOut(timeout);
    for (i, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - i).unwrap_or(1);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let tuned = socket::tune_to_target(&stream);
                return tuned.map(|()| (*address, stream)).map_err(DialError::Connect);
            }
            Ok(Err(error)) => last = DialError::Connect(error),
            Err(_) => last = DialError::TimedOut(timeout),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (address, stream) = dial(&[gone, good], Duration::from_secs(5)).await.unwrap();
        assert_eq!(address, good);
        // With one, a target that does not read would be gone before the pump gives it up.
        let socket = socket2::SockRef::from(&stream);
        assert_eq!((socket.tcp_user_timeout().unwrap(), socket.keepalive().unwrap()), (None, true));
        let error = dial(&[gone], Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.for_target("db1"), "db1 refused the connection");
    }

    #[tokio::test]
    async fn names_resolve_or_say_so() {
        let host = |h: &str| h.parse::<Host>().unwrap();
        let five = Duration::from_secs(5);
        assert_eq!(
            resolve(&host("192.0.2.1"), 22, five).await.unwrap(),
            ["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
        assert!(!resolve(&host("localhost"), 22, five).await.unwrap().is_empty());
        let error = resolve(&host("nowhere.invalid"), 22, five).await.unwrap_err();
        assert_eq!(error.for_target("db1"), "the address of db1 does not resolve");
    }
}
