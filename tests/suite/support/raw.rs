//! An SSH client that sends whatever a test wants to, in whatever order: RFC 4253 with
//! curve25519-sha256 and aes256-gcm@openssh.com, and no check of the server's key.

use std::path::Path;

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::signature::Ed25519KeyPair;
use ring::{aead, digest, rand::SystemRandom};
use russh::keys::PrivateKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::PATIENCE;

pub const DISCONNECT: u8 = 1;
pub const IGNORE: u8 = 2;
const UNIMPLEMENTED: u8 = 3;
const DEBUG: u8 = 4;
const SERVICE_REQUEST: u8 = 5;
const EXT_INFO: u8 = 7;
const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const ECDH_INIT: u8 = 30;
const USERAUTH_REQUEST: u8 = 50;
pub const USERAUTH_FAILURE: u8 = 51;
pub const USERAUTH_SUCCESS: u8 = 52;
const USERAUTH_BANNER: u8 = 53;
pub const INFO_REQUEST: u8 = 60;
const INFO_RESPONSE: u8 = 61;
pub const CHANNEL_OPEN: u8 = 90;
pub const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
pub const CHANNEL_OPEN_FAILURE: u8 = 92;
const WINDOW_ADJUST: u8 = 93;
pub const DATA: u8 = 94;
pub const CLOSE: u8 = 97;
pub const GLOBAL_REQUEST: u8 = 80;
pub const REQUEST_FAILURE: u8 = 82;

const VERSION: &str = "SSH-2.0-Raw";

/// Data types of RFC 4251 section 5.
#[derive(Default)]
pub struct Packet(pub Vec<u8>);

impl Packet {
    pub fn new(message: u8) -> Self {
        Self(vec![message])
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn number(self, n: u32) -> Self {
        self.bytes(&n.to_be_bytes())
    }

    pub fn text(self, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        self.number(u32::try_from(text.len()).unwrap()).bytes(text)
    }

    /// A positive number in as few bytes as it needs.
    fn mpint(self, n: &[u8]) -> Self {
        let n = &n[n.iter().position(|byte| *byte != 0).unwrap_or(n.len())..];
        let sign: &[u8] = if n.first().is_some_and(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
        self.text([sign, n].concat())
    }
}

/// Takes a `string` off the front.
pub fn take<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let len = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    let (text, rest) = bytes[4..].split_at(len);
    *bytes = rest;
    text
}

/// One direction of aes256-gcm@openssh.com.
struct Cipher {
    key: aead::LessSafeKey,
    iv: [u8; 12],
}

impl Cipher {
    fn nonce(&mut self) -> aead::Nonce {
        let nonce = aead::Nonce::assume_unique_for_key(self.iv);
        let counter = u64::from_be_bytes(self.iv[4..].try_into().unwrap()).wrapping_add(1);
        self.iv[4..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

pub struct RawClient {
    pub stream: TcpStream,
    keys: Option<(Cipher, Cipher)>,
    /// The session's identifier (RFC 4253 section 7.2).
    id: Vec<u8>,
    /// What the server offered.
    offer: Vec<u8>,
}

impl RawClient {
    /// Connects and agrees on keys; nothing is asked for yet.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        Self::over(stream).await.expect("no keys were agreed on")
    }

    /// Connects from another address of loopback.
    pub async fn socket_from(from: &str, port: u16) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(format!("127.0.0.1:{port}").parse().unwrap()).await.unwrap()
    }

    /// Agrees on keys over a connection; `None` if the server closes it.
    pub async fn over(stream: TcpStream) -> Option<Self> {
        stream.set_nodelay(true).unwrap();
        let mut client = Self { stream, keys: None, id: Vec::new(), offer: Vec::new() };
        client.write(format!("{VERSION}\r\n").as_bytes()).await;
        let server_version = client.line().await?;
        let lists = [
            "curve25519-sha256",
            "ssh-ed25519",
            "aes256-gcm@openssh.com",
            "aes256-gcm@openssh.com",
            "hmac-sha2-256-etm@openssh.com",
            "hmac-sha2-256-etm@openssh.com",
            "none",
            "none",
            "",
            "",
        ];
        let ours = lists.iter().fold(Packet::new(KEXINIT).bytes(&[7; 16]), Packet::text);
        let ours = ours.bytes(&[0; 5]).0;
        client.send(&ours).await;
        let theirs = client.expect(KEXINIT).await?;
        let random = SystemRandom::new();
        let secret = EphemeralPrivateKey::generate(&X25519, &random).unwrap();
        let public = secret.compute_public_key().unwrap();
        client.send(&Packet::new(ECDH_INIT).text(&public).0).await;
        let reply = client.expect(ECDH_INIT + 1).await?;
        let mut rest = &reply[1..];
        let (host_key, server_public) = (take(&mut rest), take(&mut rest));
        let peer = UnparsedPublicKey::new(&X25519, server_public);
        let shared = agree_ephemeral(secret, &peer, |k| Packet::default().mpint(k).0).unwrap();
        let hashed = Packet::default()
            .text(VERSION)
            .text(&server_version)
            .text(&ours)
            .text(&theirs)
            .text(host_key)
            .text(&public)
            .text(server_public)
            .bytes(&shared);
        let session = digest::digest(&digest::SHA256, &hashed.0);
        let derive = |letter: u8| {
            let id = session.as_ref();
            digest::digest(&digest::SHA256, &[&shared[..], id, &[letter], id].concat())
        };
        let cipher = |iv: u8, key: u8| {
            let key = aead::UnboundKey::new(&aead::AES_256_GCM, derive(key).as_ref()).unwrap();
            let iv = derive(iv).as_ref()[..12].try_into().unwrap();
            Cipher { key: aead::LessSafeKey::new(key), iv }
        };
        client.id = session.as_ref().to_vec();
        client.offer = theirs;
        client.send(&[NEWKEYS]).await;
        client.expect(NEWKEYS).await?;
        client.keys = Some((cipher(b'A', b'C'), cipher(b'B', b'D')));
        client.send(&Packet::new(SERVICE_REQUEST).text("ssh-userauth").0).await;
        client.expect(SERVICE_REQUEST + 1).await?;
        Some(client)
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.read::<1>().await?[0]);
        }
        line.truncate(line.len() - 2);
        Some(line)
    }

    async fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes).await.then_some(bytes)
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> bool {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_exact(bytes)).await;
        read.expect("the server says nothing").is_ok()
    }

    /// Writes bytes as they are; an end of the connection is seen by who reads.
    async fn write(&mut self, bytes: &[u8]) {
        let written = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await;
        let _gone = written.expect("the server takes nothing");
    }

    /// Sends one packet.
    pub async fn send(&mut self, payload: &[u8]) {
        let packet = self.seal(payload);
        self.write(&packet).await;
    }

    /// Sends one packet many times; false if the server closes the connection before it took all.
    pub async fn pour(&mut self, payload: &[u8], times: usize) -> bool {
        let packets: Vec<u8> = (0..times).flat_map(|_| self.seal(payload)).collect();
        let written = tokio::time::timeout(PATIENCE, self.stream.write_all(&packets)).await;
        written.expect("the server takes nothing").is_ok()
    }

    /// A packet as it goes over the connection.
    fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        let len = if self.keys.is_some() { 1 } else { 5 } + payload.len();
        let padding = 16 - len % 16 + if 16 - len % 16 < 4 { 16 } else { 0 };
        let mut body = vec![u8::try_from(padding).unwrap()];
        body.extend_from_slice(payload);
        body.resize(body.len() + padding, 0);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        if let Some((ours, _)) = &mut self.keys {
            let (nonce, aad) = (ours.nonce(), aead::Aad::from(length));
            ours.key.seal_in_place_append_tag(nonce, aad, &mut body).unwrap();
        }
        [&length[..], &body].concat()
    }

    /// The next packet; `None` at the connection's end.
    pub async fn receive(&mut self) -> Option<Vec<u8>> {
        let length = self.read::<4>().await?;
        let tag = if self.keys.is_some() { 16 } else { 0 };
        let mut body = vec![0; u32::from_be_bytes(length) as usize + tag];
        if !self.fill(&mut body).await {
            return None;
        }
        if let Some((_, theirs)) = &mut self.keys {
            let (nonce, aad) = (theirs.nonce(), aead::Aad::from(length));
            theirs.key.open_in_place(nonce, aad, &mut body).unwrap();
            body.truncate(body.len() - tag);
        }
        let payload = body[1..body.len() - usize::from(body[0])].to_vec();
        if [IGNORE, UNIMPLEMENTED, DEBUG, EXT_INFO].contains(&payload[0]) {
            return Box::pin(self.receive()).await;
        }
        Some(payload)
    }

    /// What the server says when it ends the connection.
    pub async fn receive_disconnect(&mut self) -> String {
        loop {
            let packet = self.receive().await.expect("it ended without a word");
            if packet[0] == DISCONNECT {
                return String::from_utf8_lossy(take(&mut &packet[5..])).into_owned();
            }
        }
    }

    async fn expect(&mut self, message: u8) -> Option<Vec<u8>> {
        let packet = self.receive().await?;
        assert_eq!(packet[0], message, "{packet:?}");
        Some(packet)
    }

    fn request(user: &str, method: &str) -> Packet {
        Packet::new(USERAUTH_REQUEST).text(user).text("ssh-connection").text(method)
    }

    /// Asks for keyboard-interactive on `devices`.
    pub async fn start_interactive(&mut self, user: &str, devices: &str) {
        let packet = Self::request(user, "keyboard-interactive").text("").text(devices);
        self.send(&packet.0).await;
    }

    pub async fn send_password(&mut self, user: &str, password: &str) {
        let packet = Self::request(user, "password").bytes(&[0]).text(password);
        self.send(&packet.0).await;
    }

    /// Asks whether an Ed25519 key that nobody has would do (RFC 4252 section 7).
    pub async fn offer_key(&mut self, user: &str) {
        let blob = Packet::default().text("ssh-ed25519").text([7; 32]).0;
        let offer = Self::request(user, "publickey").bytes(&[0]).text("ssh-ed25519").text(blob);
        self.send(&offer.0).await;
    }

    /// Signs in without anything to show; the last reply.
    pub async fn sign_in_by_none(&mut self, user: &str) -> u8 {
        self.send(&Self::request(user, "none").0).await;
        self.reply().await
    }

    /// Signs in with an Ed25519 key; the last reply.
    pub async fn sign_in_by_key(&mut self, user: &str, key: &Path) -> u8 {
        let key = PrivateKey::read_openssh_file(key).unwrap();
        let seed = &key.key_data().ed25519().unwrap().private;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).unwrap();
        let blob = key.public_key().to_bytes().unwrap();
        let sign = async |signed: &[u8]| Packet::default().text(pair.sign(signed)).0;
        self.send_key(user, "ssh-ed25519", &blob, sign).await;
        self.reply().await
    }

    /// Proves to have a key (RFC 4252 section 7); `sign` gives what follows the algorithm's name in the
    /// signature.
    pub async fn send_key(
        &mut self,
        user: &str,
        algorithm: &str,
        blob: &[u8],
        sign: impl AsyncFnOnce(&[u8]) -> Vec<u8>,
    ) {
        let request = Self::request(user, "publickey").bytes(&[1]).text(algorithm).text(blob);
        let signed = Packet::default().text(&self.id).bytes(&request.0).0;
        let signature = Packet::default().text(algorithm).bytes(&sign(&signed).await).0;
        self.send(&request.text(signature).0).await;
    }

    pub async fn answer(&mut self, answer: &str) {
        self.send(&Packet::new(INFO_RESPONSE).number(1).text(answer).0).await;
    }

    /// Answers a question that asks nothing.
    pub async fn answer_nothing(&mut self) {
        self.send(&Packet::new(INFO_RESPONSE).number(0).0).await;
    }

    /// What the server says to a request; [`DISCONNECT`] at the connection's end.
    pub async fn reply(&mut self) -> u8 {
        loop {
            match self.receive().await.map_or(DISCONNECT, |packet| packet[0]) {
                USERAUTH_BANNER => {}
                other => return other,
            }
        }
    }

    /// A whole login: the last reply.
    pub async fn log_in(&mut self, user: &str, password: &str, code: &str) -> u8 {
        self.start_interactive(user, "").await;
        for answer in [password, code] {
            let reply = self.reply().await;
            if reply != INFO_REQUEST {
                return reply;
            }
            self.answer(answer).await;
        }
        self.reply().await
    }

    /// The ten lists of the server's KEXINIT, in their order (RFC 4253 section 7.1).
    pub fn offered(&self) -> Vec<Vec<String>> {
        let mut rest = &self.offer[17..];
        let mut list = || String::from_utf8(take(&mut rest).to_vec()).unwrap();
        let names = |list: String| list.split(',').map(str::to_owned).collect();
        (0..10).map(|_| names(list())).collect()
    }

    /// Asks for a channel, which is number `ours` here; `content` is what the kind has beyond that.
    pub async fn ask_channel(&mut self, kind: &str, ours: u32, content: Packet) {
        let open = Packet::new(CHANNEL_OPEN).text(kind).number(ours).number(1 << 20);
        self.send(&open.number(32_768).bytes(&content.0).0).await;
    }

    /// Asks for a `direct-tcpip` channel.
    pub async fn ask_direct(&mut self, ours: u32, host: &str, port: u16) {
        let to = Packet::default().text(host).number(port.into()).text("127.0.0.1").number(1);
        self.ask_channel("direct-tcpip", ours, to).await;
    }

    /// The next packet that is neither a request of the server's own nor a change of a window.
    pub async fn next(&mut self) -> Vec<u8> {
        loop {
            let packet = self.receive().await.expect("the connection ended");
            if ![GLOBAL_REQUEST, WINDOW_ADJUST].contains(&packet[0]) {
                return packet;
            }
        }
    }

    /// The server's number for a channel that it opened; or the reason's code and text. russh 0.65
    /// answers a channel of an unknown kind twice: what is about others is passed over.
    pub async fn opened(&mut self, ours: u32) -> Result<u32, (u32, String)> {
        loop {
            let packet = self.next().await;
            let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
            match packet[0] {
                CHANNEL_OPEN_CONFIRMATION if number(1) == ours => return Ok(number(5)),
                CHANNEL_OPEN_FAILURE if number(1) == ours => {
                    let text = take(&mut &packet[9..]).to_vec();
                    return Err((number(5), String::from_utf8(text).unwrap()));
                }
                CHANNEL_OPEN_FAILURE => {}
                other => panic!("a channel was answered by message {other}"),
            }
        }
    }
}
