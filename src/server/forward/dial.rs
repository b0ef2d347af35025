//! From a target's host and port to a connected socket, in bounded time.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::socket;
use crate::domain::Host;

/// How many names are looked up at a time: each takes a thread of the runtime's blocking pool, which
/// has 512 and is the store's, too, and keeps it when its time is over: nothing ends getaddrinfo(3).
const LOOKUPS: usize = 32;

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

type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Looks names up, a bounded number at a time.
///
/// Always holds: a lookup that nobody waits for any more keeps its place until it answers, as it
/// keeps its thread. So a slow DNS server leaves the store and the password hashes theirs.
#[derive(Clone)]
pub struct Resolver {
    places: Arc<Semaphore>,
    lookup: Arc<Lookup>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Resolver {
    /// The host's own resolver.
    pub fn system() -> Self {
        Self::new(|host, port| Ok((host, port).to_socket_addrs()?.map(|a| a.ip()).collect()))
    }

    /// A resolver that asks `lookup`, which may block.
    pub fn new(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self { places: Arc::new(Semaphore::new(LOOKUPS)), lookup: Arc::new(lookup) }
    }

    /// The same, with places of its own: whoever asks the other one takes none of them.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { places: Arc::new(Semaphore::new(LOOKUPS)), lookup: Arc::clone(&self.lookup) }
    }

    /// Resolves `host`, once. Literal addresses do not go to DNS.
    ///
    /// # Errors
    /// When it does not resolve in time, the wait for a place included.
    pub async fn resolve(
        &self,
        host: &Host,
        port: u16,
        timeout: Duration,
    ) -> Result<Vec<IpAddr>, DialError> {
        if let Some(ip) = host.ip() {
            return Ok(vec![ip]);
        }
        let found = tokio::time::timeout(timeout, self.look_up(host.as_str().to_owned(), port));
        let found = found.await.map_err(|_| DialError::ResolveTimedOut(timeout))?;
        found.map_err(DialError::Resolve)
    }

    async fn look_up(&self, host: String, port: u16) -> io::Result<Vec<IpAddr>> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
        let lookup = Arc::clone(&self.lookup);
        let looking = tokio::task::spawn_blocking(move || {
            let _until_it_answers = place;
            lookup(&host, port)
        });
        looking.await?
    }
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
        let resolver = Resolver::system();
        assert_eq!(
            resolver.resolve(&host("192.0.2.1"), 22, five).await.unwrap(),
            ["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
        assert!(!resolver.resolve(&host("localhost"), 22, five).await.unwrap().is_empty());
        let error = resolver.resolve(&host("nowhere.invalid"), 22, five).await.unwrap_err();
        assert_eq!(error.for_target("db1"), "the address of db1 does not resolve");
    }

    /// Lookups that hang keep their places, and with them no more threads than there are places.
    #[tokio::test]
    async fn a_name_server_that_does_not_answer_takes_no_more_threads_than_it_may() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = std::sync::Mutex::new(hang);
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let resolver = Resolver::new(move |name, _| {
            if name == "slow.example" {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                // An error once nobody holds the other end.
                assert!(hang.lock().unwrap().recv().is_err());
            }
            Ok(vec![IpAddr::from([192, 0, 2, 9])])
        });
        let (slow, other) = ("slow.example".parse().unwrap(), "other.example".parse().unwrap());
        let soon = Duration::from_millis(300);
        for _ in 0..2 {
            let many = (0..LOOKUPS * 2).map(|_| resolver.resolve(&slow, 22, soon));
            for found in futures_util::future::join_all(many).await {
                assert!(matches!(found, Err(DialError::ResolveTimedOut(_))), "{found:?}");
            }
        }
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), LOOKUPS);
        // A literal address needs no place; a name waits for one, as long as it may.
        assert!(resolver.resolve(&"192.0.2.1".parse().unwrap(), 22, soon).await.is_ok());
        assert!(resolver.resolve(&other, 22, soon).await.is_err());
        drop(release);
        let found = resolver.resolve(&other, 22, Duration::from_secs(20)).await.unwrap();
        assert_eq!(found, [IpAddr::from([192, 0, 2, 9])]);
    }
}
