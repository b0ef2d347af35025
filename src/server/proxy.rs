//! The PROXY protocol, versions 1 and 2: who connects through a load balancer.
//!
//! Always holds: a header is read only from listed networks, and from them it is required; nothing
//! behind the header is taken off the socket.

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
    /// It goes on and on.
    #[error("the PROXY header is longer than {MAX_HEADER} bytes")]
    TooLong,
}

/// Finds out where a connection from `peer` really comes from.
///
/// # Errors
/// When `peer` is a listed proxy and sends no usable header.
pub async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
    trusted: &[IpNet],
    timeout: Duration,
) -> Result<Source, Error> {
    let ip = peer.ip().to_canonical();
    if !trusted.iter().any(|net| net.contains(&ip)) {
        return Ok(Source(peer));
    }
    tokio::time::timeout(timeout, header(stream, peer)).await.map_err(|_| Error::TimedOut)?
}

/// Reads byte by byte, so that nothing behind the header is taken: at most 536 of them, once.
async fn header(stream: &mut (impl AsyncRead + Unpin), peer: SocketAddr) -> Result<Source, Error> {
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
                // LOCAL or UNKNOWN: the proxy speaks for itself, as in a health check.
                return Ok(Source(header.proxied_address().map_or(peer, |address| address.source)));
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

    const V2: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\x08\xae";

    /// The proxy speaks for itself; the address is to be ignored.
    const V2_LOCAL: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\x08\xae";
    const V2_LOCAL_BARE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    const V2_TCP6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
        \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\
        \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x30\x39\x08\xae";
    /// Two of them behind the address: PP2_TYPE_NOOP and PP2_TYPE_UNIQUE_ID.
    const V2_TLVS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x16\
        \xc0\0\x02\x07\x7f\0\0\x01\x30\x39\x08\xae\x04\0\x02ab\x05\0\x02cd";

    async fn read(sent: &[u8], peer: &str) -> (Result<Source, Error>, Vec<u8>) {
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
            (b"PROXY UNKNOWN\r\n", "10.0.0.9:5"),
            (V2, "192.0.2.7:12345"),
            (V2_LOCAL, "10.0.0.9:5"),
            (V2_LOCAL_BARE, "10.0.0.9:5"),
            (V2_TCP6, "[2001:db8::7]:12345"),
            (V2_TLVS, "192.0.2.7:12345"),
        ] {
            let (found, rest) = read(&[header, b"SSH-2.0-x\r\n"].concat(), "10.0.0.9:5").await;
            assert_eq!(found.unwrap().to_string(), source);
            assert_eq!(rest, b"SSH-2.0-x\r\n");
        }
    }

    #[tokio::test]
    async fn nobody_else_is_believed_and_listed_proxies_must_send_one() {
        let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 22\r\n";
        let (found, rest) = read(header, "198.51.100.1:5").await;
        assert_eq!(found.unwrap().to_string(), "198.51.100.1:5");
        assert_eq!(rest, header);
        assert!(matches!(read(b"SSH-2.0-x\r\n", "10.0.0.9:5").await.0, Err(Error::Malformed(_))));
        assert!(matches!(read(b"PROXY TC", "10.0.0.9:5").await.0, Err(Error::Io(_))));
        assert!(matches!(read(b"", "10.0.0.9:5").await.0, Err(Error::Unused)));
        assert!(read(&V2[..20], "10.0.0.9:5").await.0.is_err());
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
