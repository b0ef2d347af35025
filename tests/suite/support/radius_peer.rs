//! The far end of RADIUS over UDP, played by a test: it takes requests and answers them as told,
//! rightly or not. Its packets are made here, and not by the code that is tested.

use std::net::SocketAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use sallyport::radius::Server;
use tokio::net::UdpSocket;

use super::PATIENCE;

pub const SECRET: &str = "a secret of this test";

pub struct Peer {
    pub socket: UdpSocket,
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub bytes: Vec<u8>,
    pub from: SocketAddr,
}

/// A reply, right in everything that is not changed.
pub struct Forgery {
    pub code: u8,
    pub identifier: u8,
    pub request_authenticator: [u8; 16],
    pub attributes: Vec<u8>,
    pub secret: &'static str,
    /// What stands in the Message-Authenticator, or nothing.
    pub mac: Mac,
}

pub enum Mac {
    Right,
    Wrong,
    Missing,
}

pub const ACCEPT: u8 = 2;
pub const REJECT: u8 = 3;
pub const CHALLENGE: u8 = 11;

impl Peer {
    pub async fn start() -> Self {
        Self { socket: UdpSocket::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn server(&self, name: &str) -> Server {
        let address = self.socket.local_addr().unwrap().to_string();
        Server { timeout: PATIENCE, ..Server::udp(name, &address, SECRET.into()) }
    }

    /// The next request, whether sent for the first time or again.
    pub async fn asked(&self) -> Asked {
        let mut bytes = vec![0; 5000];
        let received = tokio::time::timeout(PATIENCE, self.socket.recv_from(&mut bytes)).await;
        let (length, from) = received.expect("no request came").unwrap();
        bytes.truncate(length);
        Asked { bytes, from }
    }

    pub async fn send(&self, to: &Asked, packet: &[u8]) {
        self.socket.send_to(packet, to.from).await.unwrap();
    }
}

impl Asked {
    /// The right reply to this request.
    pub fn reply(&self, code: u8) -> Forgery {
        Forgery {
            code,
            identifier: self.bytes[1],
            request_authenticator: self.bytes[4..20].try_into().unwrap(),
            attributes: Vec::new(),
            secret: SECRET,
            mac: Mac::Right,
        }
    }

    /// The values of an attribute.
    pub fn values(&self, kind: u8) -> Vec<Vec<u8>> {
        let (mut rest, mut values) = (&self.bytes[20..], Vec::new());
        while let [this, length, ..] = *rest {
            let (attribute, behind) = rest.split_at(length.into());
            if this == kind {
                values.push(attribute[2..].to_vec());
            }
            rest = behind;
        }
        values
    }
}

impl Forgery {
    pub fn with(mut self, kind: u8, value: &[u8]) -> Self {
        self.attributes.extend([kind, u8::try_from(value.len() + 2).unwrap()]);
        self.attributes.extend_from_slice(value);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let signed = !matches!(self.mac, Mac::Missing);
        let length = 20 + if signed { 18 } else { 0 } + self.attributes.len();
        let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
        let head = [self.code, self.identifier, high, low];
        let mut attributes = Vec::new();
        if signed {
            let mut mac = Hmac::<Md5>::new_from_slice(self.secret.as_bytes()).unwrap();
            for part in
                [&head, &self.request_authenticator[..], &[80, 18], &[0; 16], &self.attributes]
            {
                mac.update(part);
            }
            let mut mac = mac.finalize().into_bytes();
            if matches!(self.mac, Mac::Wrong) {
                mac[0] ^= 1;
            }
            attributes.extend([80, 18]);
            attributes.extend_from_slice(&mac);
        }
        attributes.extend_from_slice(&self.attributes);
        let authenticator = Md5::new()
            .chain_update(head)
            .chain_update(self.request_authenticator)
            .chain_update(&attributes)
            .chain_update(self.secret)
            .finalize();
        [&head, &authenticator[..], &attributes].concat()
    }
}
