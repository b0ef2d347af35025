//! The PROXY protocol, versions 1 and 2: who connects through a load balancer.
//!
//! Always holds: a header is read only from listed networks, and from them it is required; nothing
//! behind the header is taken off the socket. The proxy's own address never stands for a client's, which
//! grants, remembered logins and known sources go by: a connection of its own (LOCAL) signs nobody in,
//! and one whose client it does not know (UNKNOWN) is refused. By proxy-protocol.txt section 2 a receiver
//! may go by the connection's own addresses for both; for who decides by addresses that is no answer.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::domain::Source;

/// More than any header that is worth reading has.
const MAX_HEADER: usize = 536;

/// A listed proxy sent no usable header.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke.
    #[error("failed to read the PROXY header: {0}")]
    Io(#[from] std::io::Error),
    /// It went without a byte, as one does that only looks whether somebody listens.
    #[error("the connection was closed before its PROXY header")]
    Unused,
    /// It took too long.
    #[error("no PROXY header came in time")]
    TimedOut,
    /// It is none.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(proxy_header::Error),
    /// It names nobody.
    #[error(
        "the load balancer does not say who connects through it (UNKNOWN, or no internet address)"
    )]
    Unknown,
    /// It goes on and on.
    #[error("the PROXY header is longer than {MAX_HEADER} bytes")]
    TooLong,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client's, from there.
    Client(Source),
    /// A listed proxy's own, as for a health check.
    Proxy,
}

/// Byte 13 of a version 2 header: version 2, command LOCAL (section 2.2).
const LOCAL: u8 = 0x20;
/// How a version 2 header begins.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Finds out where a connection from `peer` really comes from.
///
/// # Errors
/// When `peer` is a listed proxy and sends no usable header.
pub async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
    trusted: &[IpNet],
    timeout: Duration,
) -> Result<Origin, Error> {
    let ip = peer.ip().to_canonical();
    if !trusted.iter().any(|net| net.contains(&ip)) {
        return Ok(Origin::Client(Source(peer)));
    }
    tokio::time::timeout(timeout, header(stream)).await.map_err(|_| Error::TimedOut)?
}

/// Reads byte by byte, so that nothing behind the header is taken: at most 536 of them, once.
async fn header(stream: &mut (impl AsyncRead + Unpin)) -> Result<Origin, Error> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let mut bytes = Vec::with_capacity(128);
    while bytes.len() < MAX_HEADER {
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) if bytes.is_empty() => return Err(Error::Unused),
            Err(error) => return Err(error.into()),
        }
        match ProxyHeader::parse(&bytes, config) {
            Ok((header, _)) => {
                let is_local = bytes.strip_prefix(V2).and_then(<[u8]>::first) == Some(&LOCAL);
                return match header.proxied_address() {
                    Some(address) => Ok(Origin::Client(Source(address.source))),
                    None if is_local => Ok(Origin::Proxy),
                    None => Err(Error::Unknown),
                };
            }
            Err(proxy_header::Error::BufferTooShort) => {}
            Err(error) => return Err(Error::Malformed(error)),
        }
    }
    Err(Error::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    const V2_TCP4: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\x08\xae";

    /// The proxy speaks for itself; the address is to be ignored.
    const V2_LOCAL: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\x08\xae";
    const V2_LOCAL_BARE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    /// The proxy command, and a family that it does not name, or a socket file's.
    const V2_UNSPEC: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";
    const V2_UNIX_HEAD: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8";
    const V2_TCP6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
        \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\
        \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x30\x39\x08\xae";
    /// Two of them behind the address: PP2_TYPE_NOOP and PP2_TYPE_UNIQUE_ID.
    const V2_TLVS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x16\
        \xc0\0\x02\x07\x7f\0\0\x01\x30\x39\x08\xae\x04\0\x02ab\x05\0\x02cd";

    async fn read(sent: &[u8], peer: &str) -> (Result<Origin, Error>, Vec<u8>) {
        let (mut client, mut ours) = tokio::io::duplex(2048);
        client.write_all(sent).await.unwrap();
        drop(client);
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let source =
            read_header(&mut ours, peer.parse().unwrap(), &trusted, Duration::from_secs(5)).await;
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        (source, rest)
    }

    #[tokio::test]
    async fn headers_of_listed_proxies_name_the_source_and_leave_the_rest() {
        for (header, source) in [
            (&b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 22\r\n"[..], "192.0.2.7:12345"),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 22\r\n", "[2001:db8::7]:12345"),
            (V2_TCP4, "192.0.2.7:12345"),
            (V2_TCP6, "[2001:db8::7]:12345"),
            (V2_TLVS, "192.0.2.7:12345"),
        ] {
            let (found, rest) = read(&[header, b"SSH-2.0-x\r\n"].concat(), "10.0.0.9:5").await;
            assert_eq!(found.unwrap(), client(source));
            assert_eq!(rest, b"SSH-2.0-x\r\n");
        }
    }

    fn client(source: &str) -> Origin {
        Origin::Client(Source(source.parse().unwrap()))
    }

    #[tokio::test]
    async fn the_proxys_own_address_stands_for_no_client() {
        for header in [V2_LOCAL, V2_LOCAL_BARE] {
            let (found, rest) = read(&[header, b"rest"].concat(), "10.0.0.9:5").await;
            assert_eq!((found.unwrap(), &rest[..]), (Origin::Proxy, &b"rest"[..]));
        }
        let unix = [V2_UNIX_HEAD, &[0; 216]].concat();
        let named = b"PROXY UNKNOWN 192.0.2.7 192.0.2.1 5 22\r\n";
        for header in [&b"PROXY UNKNOWN\r\n"[..], named, V2_UNSPEC, &unix] {
            let found = read(header, "10.0.0.9:5").await.0;
            assert!(matches!(found, Err(Error::Unknown)), "{header:?}: {found:?}");
        }
    }

    #[tokio::test]
    async fn nobody_else_is_believed_and_listed_proxies_must_send_one() {
        let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 22\r\n";
        let (found, rest) = read(header, "198.51.100.1:5").await;
        assert_eq!(found.unwrap(), client("198.51.100.1:5"));
        assert_eq!(rest, header);
        assert!(matches!(read(b"SSH-2.0-x\r\n", "10.0.0.9:5").await.0, Err(Error::Malformed(_))));
        assert!(matches!(read(b"PROXY TC", "10.0.0.9:5").await.0, Err(Error::Io(_))));
        assert!(matches!(read(b"", "10.0.0.9:5").await.0, Err(Error::Unused)));
        assert!(read(&V2_TCP4[..20], "10.0.0.9:5").await.0.is_err());
        assert!(read(&[b'P'; 2000], "10.0.0.9:5").await.0.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_proxy_is_given_up() {
        let (_client, mut ours) = tokio::io::duplex(64);
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let peer = "10.0.0.9:5".parse().unwrap();
        let found = read_header(&mut ours, peer, &trusted, Duration::from_secs(5)).await;
        assert!(matches!(found, Err(Error::TimedOut)));
    }
}
