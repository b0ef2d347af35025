//! Exchanges with one server over TLS (RadSec, RFC 6614), all on one connection that is kept.
//!
//! Always holds: the server's certificate is checked against our authorities and its name before
//! anything is sent; a request is never on two connections at once; one task carries a connection,
//! and ends with whoever last needs it, so a request that is given up harms no other.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::address::{Addresses, nowhere, silence};
use super::failure::{Discards, Reason};
use super::packet::{Answer, Ask, HEADER, Header, MAX_PACKET, Query, SharedSecret};
use super::server::{Server, Tls, TlsError, host};

/// Replies that may lie ready for one request: the right one, and a few that are not.
const REPLIES: usize = 4;
/// Requests that may wait to be written: as many as there are identifiers.
const REQUESTS: usize = 256;

/// The way to a server over TLS.
#[derive(Debug)]
pub(super) struct Link {
    tls: Tls,
    /// The present connection. Locked while one is made, so that only one is.
    kept: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

impl Link {
    /// A link that is not connected yet; the files are read once to see that they can be used.
    pub(super) fn new(tls: &Tls, address: &str) -> Result<Self, TlsError> {
        configure(tls, address)?;
        Ok(Self { tls: tls.clone(), kept: tokio::sync::Mutex::new(None) })
    }

    /// Asks the server, and waits for its answer until its time is over.
    pub(super) async fn exchange(
        &self,
        server: &Server,
        secret: &SharedSecret,
        ask: &Ask<'_>,
        discards: &mut Discards,
    ) -> Result<Answer, Reason> {
        let began = Instant::now();
        let deadline = began + server.timeout;
        loop {
            let connected = timeout_at(deadline, self.connection(server, deadline)).await;
            let (connection, was_kept) = connected.map_err(|_| silence(began, discards))??;
            match connection.exchange(server, secret, ask, deadline, discards).await {
                // A server may close an idle connection just when a request is on its way.
                Err(Reason::Closed(_)) if was_kept => self.forget(&connection).await,
                Err(reason) => {
                    // Perhaps it leads nowhere any more, so the next request gets another.
                    self.forget(&connection).await;
                    return Err(reason);
                }
                Ok(answer) => return Ok(answer),
            }
        }
    }

    /// The kept connection and true, or a new one and false.
    async fn connection(
        &self,
        server: &Server,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, bool), Reason> {
        let mut kept = self.kept.lock().await;
        if let Some(connection) = kept.as_ref().filter(|kept| kept.waiting.is_open()) {
            return Ok((Arc::clone(connection), true));
        }
        let (config, name) = configure(&self.tls, &server.address)?;
        let connector = TlsConnector::from(Arc::new(config));
        let mut outcome = Err(nowhere());
        for (address, until) in Addresses::of(&server.address, deadline).await? {
            let began = Instant::now();
            let opened = timeout_at(until, open(&connector, &name, address)).await;
            outcome = opened.unwrap_or_else(|_| Err(silence(began, &Discards::default())));
            if outcome.is_ok() {
                break;
            }
        }
        let connection = Arc::new(Connection::start(outcome?));
        *kept = Some(Arc::clone(&connection));
        Ok((connection, false))
    }

    /// No new request is put on `connection`; those on it may still be answered.
    async fn forget(&self, connection: &Arc<Connection>) {
        let mut kept = self.kept.lock().await;
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, connection)) {
            *kept = None;
        }
    }
}

/// Reads the files: whom to trust, who we are, and the name that the server has to have.
fn configure(tls: &Tls, address: &str) -> Result<(ClientConfig, ServerName<'static>), TlsError> {
    let certificates = |what, path| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let fail = |why: rustls::pki_types::pem::Error| TlsError::file(what, path, why);
        let all = CertificateDer::pem_file_iter(path).map_err(fail)?;
        let all = all.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        if all.is_empty() {
            return Err(TlsError::file(what, path, "it holds no certificate"));
        }
        Ok(all)
    };
    let mut roots = rustls::RootCertStore::empty();
    let what = "the authorities";
    for authority in certificates(what, &tls.ca_file)? {
        roots.add(authority).map_err(|why| TlsError::file(what, &tls.ca_file, why))?;
    }
    let chain = certificates("our certificate", &tls.certificate_file)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file)
        .map_err(|why| TlsError::file("our private key", &tls.key_file, why))?;
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Identity)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(TlsError::Identity)?;
    let name = tls.server_name.as_deref().unwrap_or_else(|| host(address)).to_owned();
    let parsed = ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name))?;
    Ok((config, parsed))
}

/// A TLS connection to one address.
async fn open(
    connector: &TlsConnector,
    name: &ServerName<'static>,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>, Reason> {
    let stream = TcpStream::connect(address).await.map_err(Reason::Unreachable)?;
    stream.set_nodelay(true).map_err(Reason::Unreachable)?;
    connector.connect(name.clone(), stream).await.map_err(Reason::Tls)
}

/// A connection, and the task that carries it; the task ends with it.
#[derive(Debug)]
struct Connection {
    requests: mpsc::Sender<Zeroizing<Vec<u8>>>,
    waiting: Arc<Waiting>,
    _carrier: JoinSet<()>,
}

impl Connection {
    fn start(stream: TlsStream<TcpStream>) -> Self {
        let (requests, queue) = mpsc::channel(REQUESTS);
        let waiting = Arc::new(Waiting::default());
        let mut carrier = JoinSet::new();
        carrier.spawn(carry(stream, queue, Arc::clone(&waiting)));
        Self { requests, waiting, _carrier: carrier }
    }

    /// Sends a request and waits for its answer.
    async fn exchange(
        &self,
        server: &Server,
        secret: &SharedSecret,
        ask: &Ask<'_>,
        deadline: Instant,
        discards: &mut Discards,
    ) -> Result<Answer, Reason> {
        let began = Instant::now();
        let mut header = Header::random()?;
        let mut place = self.waiting.enter(header.identifier)?;
        header.identifier = place.identifier;
        let query = Query::new(header, ask, secret)?;
        let answered = timeout_at(deadline, async {
            let bytes = Zeroizing::new(query.bytes().to_vec());
            self.requests.send(bytes).await.map_err(|_| self.waiting.closed())?;
            loop {
                let packet = place.replies.recv().await.ok_or_else(|| self.waiting.closed())?;
                match query.read(&packet, secret, server.requires_signature()) {
                    Ok(answer) => return Ok(answer),
                    Err(why) => discards.add(why),
                }
            }
        })
        .await;
        answered.unwrap_or_else(|_| Err(silence(began, discards)))
    }
}

/// Carries a connection in both directions until it ends, then tells all that wait.
async fn carry(
    stream: TlsStream<TcpStream>,
    mut queue: mpsc::Receiver<Zeroizing<Vec<u8>>>,
    waiting: Arc<Waiting>,
) {
    let (mut incoming, mut outgoing) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = hear(&mut incoming, &waiting) => ended,
        ended = say(&mut outgoing, &mut queue) => ended,
    };
    waiting.close(&match ended {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => error.to_string(),
        // Many servers just close: rustls has more to say about that than people want to read.
        _ => "without giving a reason".into(),
    });
}

/// Hands each packet to the request that it answers.
async fn hear(stream: &mut (impl AsyncRead + Unpin), waiting: &Waiting) -> std::io::Result<()> {
    loop {
        let mut start = [0; 4];
        if stream.read(&mut start[..1]).await? == 0 {
            return Ok(());
        }
        stream.read_exact(&mut start[1..]).await?;
        let [_, identifier, high, low] = start;
        let length = usize::from(u16::from_be_bytes([high, low]));
        // Where the next packet begins is not known any more (RFC 6613 section 2.6.4).
        if !(HEADER..=MAX_PACKET).contains(&length) {
            let kind = std::io::ErrorKind::InvalidData;
            return Err(std::io::Error::new(kind, "a packet of an impossible length"));
        }
        let mut packet = start.to_vec();
        packet.resize(length, 0);
        if let Some(rest) = packet.get_mut(start.len()..) {
            stream.read_exact(rest).await?;
        }
        waiting.deliver(identifier, packet);
    }
}

/// Writes what is to be sent.
async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    queue: &mut mpsc::Receiver<Zeroizing<Vec<u8>>>,
) -> std::io::Result<()> {
    while let Some(packet) = queue.recv().await {
        stream.write_all(&packet).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// The requests on a connection that wait for an answer, by identifier.
#[derive(Debug)]
struct Waiting(Mutex<Result<Senders, String>>);

type Senders = HashMap<u8, mpsc::Sender<Vec<u8>>>;

impl Default for Waiting {
    fn default() -> Self {
        Self(Mutex::new(Ok(Senders::new())))
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Result<Senders, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place with the first free identifier from `start` on.
    fn enter(&self, start: u8) -> Result<Place<'_>, Reason> {
        let (sender, replies) = mpsc::channel(REPLIES);
        let mut all = self.lock();
        let senders = all.as_mut().map_err(|why| Reason::Closed(why.clone()))?;
        let identifier = (0..=u8::MAX)
            .map(|step| start.wrapping_add(step))
            .find(|identifier| !senders.contains_key(identifier))
            .ok_or(Reason::Full)?;
        senders.insert(identifier, sender);
        Ok(Place { identifier, replies, waiting: self })
    }

    /// Nobody waiting, or too many packets for one request: it is dropped, as UDP would do.
    fn deliver(&self, identifier: u8, packet: Vec<u8>) {
        let all = self.lock();
        if let Some(sender) = all.as_ref().ok().and_then(|senders| senders.get(&identifier)) {
            sender.try_send(packet).ok();
        }
    }

    /// The connection has ended: nobody can wait any longer.
    fn close(&self, why: &str) {
        *self.lock() = Err(why.into());
    }

    fn is_open(&self) -> bool {
        self.lock().is_ok()
    }

    fn closed(&self) -> Reason {
        Reason::Closed(self.lock().as_ref().err().cloned().unwrap_or_default())
    }
}

/// Where one request waits; given up when dropped.
#[derive(Debug)]
struct Place<'a> {
    identifier: u8,
    replies: mpsc::Receiver<Vec<u8>>,
    waiting: &'a Waiting,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Ok(senders) = self.waiting.lock().as_mut() {
            senders.remove(&self.identifier);
        }
    }
}
