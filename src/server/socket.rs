//! Listening sockets, our own or systemd's, and the options of accepted ones.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

const BACKLOG: i32 = 1024;
/// How often a quiet target is asked whether it is still there.
const TARGET_KEEPALIVE: Duration = Duration::from_secs(30);

/// The sockets to listen on: those that systemd passed (`LISTEN_FDS`), else new ones on `addresses`.
///
/// # Errors
/// When an address cannot be listened on, or what was passed is no listening TCP socket; the error
/// names it.
pub fn listeners(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    match passed.len() {
        0 => addresses.iter().map(|address| listen(*address)).collect(),
        count => (0..count).map(|place| take(&mut passed, place)).collect(),
    }
}

/// One of the passed sockets: every one must be of use, so that none waits for an answer in vain.
fn take(passed: &mut listenfd::ListenFd, place: usize) -> io::Result<TcpListener> {
    let unfit = |what: &str| {
        let number = place + 1;
        io::Error::other(format!(
            "failed to take the sockets that systemd passed: number {number} {what}; in the socket \
             unit leave only ListenStream= with TCP addresses, and Accept=no"
        ))
    };
    let socket = passed.take_tcp_listener(place).map_err(|_| unfit("is no TCP socket"))?;
    let socket = socket.ok_or_else(|| unfit("is missing"))?;
    if !SockRef::from(&socket).is_listener()? {
        return Err(unfit("does not listen"));
    }
    adopt(socket)
}

fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // Its own socket for each family: no IPv4-mapped sources, and both can be configured.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        adopt(socket.into())
    };
    open().map_err(|e| {
        let advice = match e.kind() {
            io::ErrorKind::AddrInUse => {
                "; stop what listens there, or choose another port with [server] listen or \
                 SALLYPORT_SERVER__LISTEN='[\"0.0.0.0:2022\"]'"
            }
            io::ErrorKind::PermissionDenied => {
                "; ports below 1024 take CAP_NET_BIND_SERVICE or a socket of systemd's"
            }
            io::ErrorKind::AddrNotAvailable => "; [server] listen takes addresses of this host",
            _ => "",
        };
        io::Error::new(e.kind(), format!("failed to listen on {address}: {e}{advice}"))
    })
}

/// Accepts the next connection, whatever goes wrong in between (no file descriptors left, a client
/// that is gone already): it waits a moment and tries again.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut wait = Duration::from_millis(50);
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::error!(%error, "failed to accept a connection");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// Whether `ip` is an address of this host: only those can be bound.
pub fn is_ours(ip: &IpAddr) -> bool {
    std::net::UdpSocket::bind((*ip, 0)).is_ok()
}

/// Sets an accepted socket up: no Nagle delay, and a client that is gone is noticed after three
/// keepalives without an answer, also while data waits for it.
///
/// # Errors
/// When the system refuses an option.
pub fn tune(stream: &TcpStream, keepalive: Duration) -> io::Result<()> {
    set_up(stream, keepalive)?;
    #[cfg(target_os = "linux")]
    if !keepalive.is_zero() {
        SockRef::from(stream).set_tcp_user_timeout(Some(keepalive * 3))?;
    }
    Ok(())
}

/// Sets a socket to a target up: no Nagle delay, keepalives. No TCP_USER_TIMEOUT: it would also end
/// a connection to a target that answers, but reads nothing (tcp(7)), and how long that may go on
/// is the pump's matter. With data on the way, one that is gone is noticed when the system gives
/// retransmitting up.
///
/// # Errors
/// When the system refuses an option.
pub fn tune_to_target(stream: &TcpStream) -> io::Result<()> {
    set_up(stream, TARGET_KEEPALIVE)
}

fn set_up(stream: &TcpStream, keepalive: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    if !keepalive.is_zero() {
        let options =
            TcpKeepalive::new().with_time(keepalive).with_interval(keepalive).with_retries(3);
        socket.set_tcp_keepalive(&options)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_host_are_told_from_others() {
        assert!(is_ours(&"127.0.0.1".parse().unwrap()));
        assert!(!is_ours(&"192.0.2.1".parse().unwrap())); // RFC 5737: nobody's.
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_silent_client_is_gone_after_three_keepalives_and_one_is_never_asked_if_so_set() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        for seconds in [7, 0] {
            let _client = TcpStream::connect(address).await.unwrap();
            let (stream, _) = accept(&listener).await;
            tune(&stream, Duration::from_secs(seconds)).unwrap();
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(socket.keepalive().unwrap(), seconds > 0);
            let timeout = (seconds > 0).then_some(Duration::from_secs(3 * seconds));
            assert_eq!(socket.tcp_user_timeout().unwrap(), timeout);
            if seconds > 0 {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(seconds));
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(seconds));
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
            }
        }
    }
}
