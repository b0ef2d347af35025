//! What a target may cause: it shows its host key, and asks the user for channels.
//!
//! Always holds: a host key that is not trusted, or cannot be looked up, is refused, and that is
//! audited; a channel is opened to the user only if their client asked for it on that connection,
//! with the right for it, counted and written down.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use russh::Channel;
use russh::client::{self, ChannelOpenHandle, Msg};
use russh::keys::ssh_key::{HashAlg, certificate::CertType};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use super::Relay;
use super::asked::{Asked, Listen, Opening, Unasked};
use super::target::STEP;
use crate::audit::Event;
use crate::domain::{Capability, Target, UnixTime, noted};
use crate::keys;
use crate::server::stream::StreamControl;
use crate::store::{Store, TrustedKey};

/// The keys that are trusted for a target.
pub(super) struct HostKeys {
    keys: Vec<PublicKey>,
    authorities: Vec<PublicKey>,
}

impl HostKeys {
    pub(super) fn parse(trusted: &[TrustedKey]) -> Self {
        let of = |authority| {
            let mine = trusted.iter().filter(move |key| key.authority == authority);
            mine.filter_map(|key| PublicKey::from_openssh(&key.key).ok()).collect()
        };
        Self { keys: of(0), authorities: of(1) }
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.authorities.is_empty()
    }

    /// Whether what the target showed is trusted; russh has checked that it holds the key.
    pub(super) fn trusts(
        &self,
        shown: &PublicKeyOrCertificate,
        target: &Target,
        now: UnixTime,
    ) -> bool {
        let certificate = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                return self.keys.iter().any(|known| known.key_data() == key.key_data());
            }
            PublicKeyOrCertificate::Certificate(certificate) => certificate,
        };
        let host = target.address.host.as_str();
        let named = certificate.valid_principals();
        let authorities: Vec<_> =
            self.authorities.iter().map(|key| key.fingerprint(HashAlg::Sha256)).collect();
        certificate.cert_type() == CertType::Host
            && named.iter().any(|name| name == host || name == target.name.as_str())
            && certificate.critical_options().is_empty()
            && certificate.validate_at(now.seconds(), &authorities).is_ok()
    }
}

/// "SHA256:..." of what a target showed.
pub(super) fn fingerprint(shown: &PublicKeyOrCertificate) -> String {
    match shown {
        PublicKeyOrCertificate::PublicKey { key, .. } => {
            key.fingerprint(HashAlg::Sha256).to_string()
        }
        PublicKeyOrCertificate::Certificate(certificate) => {
            let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
            format!("a certificate by {authority}")
        }
    }
}

/// What a target may cause.
pub(super) struct Handler {
    /// Not held: the relay holds this connection, and both would stay for ever.
    pub(super) relay: Weak<Relay>,
    pub(super) host_keys: HostKeys,
    /// Why its host key was refused.
    pub(super) refused: Arc<Mutex<Option<String>>>,
    /// What lets the target open channels.
    pub(super) asked: Arc<Asked>,
    /// Tells `asked` that the connection is over: russh drops this handler then.
    pub(super) _over: DropGuard,
    pub(super) control: StreamControl,
}

impl Handler {
    /// Trusts the first key that is seen, if the administrator chose that.
    async fn first_use(&self, relay: &Relay, shown: &PublicKeyOrCertificate) -> bool {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return false };
        if !relay.conn.settings.record.trust_first_use || !self.host_keys.is_empty() {
            return false;
        }
        pin(&relay.conn.bastion.store, relay, key).await
    }

    async fn refuse(&self, relay: &Relay, shown: &PublicKeyOrCertificate) {
        let name = &relay.target().name;
        let message = if self.host_keys.is_empty() {
            format!(
                "the host key of {name} is not known yet: ask your administrator to run 'sallyport target pin {name}'"
            )
        } else {
            format!(
                "the host key of {name} has changed: nothing was sent there. Ask your administrator, who can compare it and run 'sallyport target pin {name}'"
            )
        };
        let trusted = self.host_keys.keys.iter().chain(&self.host_keys.authorities);
        let event = Event::HostKeyRefused {
            target: name.clone(),
            offered: fingerprint(shown),
            trusted: trusted.map(|key| key.fingerprint(HashAlg::Sha256).to_string()).collect(),
        };
        let conn = &relay.conn;
        if let Err(error) =
            conn.bastion.store.record(conn.bastion.clock.now(), &conn.context(), event).await
        {
            tracing::error!(%error, "failed to write an audit event of a host key");
        }
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }

    /// Takes note of a channel that nobody asked the target for: each kind is written down once, and
    /// a target that goes on is cut off.
    fn unasked(&self, kind: &'static str) {
        let Some(relay) = self.relay.upgrade() else { return };
        let (target, account) = (relay.target().name.clone(), relay.account().clone());
        let Unasked { first, last } = self.asked.count(kind);
        if first {
            let (target, account) = (target.clone(), account.clone());
            relay.conn.record(Event::UnaskedChannel { target, account, what: kind.to_owned() });
        }
        if last {
            let error = "it opened channels that nobody asked for".to_owned();
            relay.conn.record(Event::TargetFailed { target, account, error });
            self.control.kill();
        }
    }

    /// Opens the channel to the user that a target asked for, and joins the two.
    fn join(&self, target: Channel<Msg>, reply: ChannelOpenHandle, wanted: Wanted) {
        let Some(relay) = self.relay.upgrade() else { return };
        if !relay.permit.allows(wanted.right()) || !self.asked.takes(wanted.opening()) {
            return self.unasked(wanted.kind()); // Dropping the reply refuses it.
        }
        let tasks = relay.conn.tasks.clone();
        tasks.spawn(async move {
            let (Some(user), Some(_slot)) = (relay.user.get(), relay.conn.channel_slot()) else {
                return;
            };
            let to = wanted.to_string();
            if !relay.opened_onward(&to).await {
                return;
            }
            let meter = relay.meter(None);
            match timeout(STEP, wanted.open(user)).await {
                Ok(Ok(channel)) => {
                    reply.accept().await;
                    let (flow, counts) = (relay.flow.open(channel.id()), meter.counts());
                    super::bridge::carry(channel, target, flow, counts, &relay.cancel).await;
                }
                _ => reply.reject(russh::ChannelOpenFailure::ConnectFailed).await,
            }
            relay.closed_onward(to, meter.counts().both(), relay.ended());
        });
    }
}

/// A channel that a target asks the user for.
enum Wanted {
    Agent,
    X11(String, u32),
    /// From where it listens for the user, and for whom if that is a port.
    Forwarded(Listen, (String, u32)),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent => f.write_str("the user's agent"),
            Self::X11(..) => f.write_str("the user's X11 display"),
            Self::Forwarded(Listen::Port(address, port), (originator, from)) => {
                let (address, originator) = (noted(address), noted(originator));
                write!(f, "forwarded-tcpip {address}:{port} for {originator}:{from}")
            }
            Self::Forwarded(Listen::Socket(path), _) => {
                write!(f, "forwarded-streamlocal {}", noted(path))
            }
        }
    }
}

impl Wanted {
    fn right(&self) -> Capability {
        match self {
            Self::Agent => Capability::Agent,
            Self::X11(..) => Capability::X11,
            Self::Forwarded(..) => Capability::RemoteForward,
        }
    }

    fn opening(&self) -> Opening<'_> {
        match self {
            Self::Agent => Opening::Agent,
            Self::X11(..) => Opening::X11,
            Self::Forwarded(listen, _) => Opening::Listen(listen),
        }
    }

    /// The channel's type on the wire.
    fn kind(&self) -> &'static str {
        match self {
            Self::Agent => "auth-agent@openssh.com",
            Self::X11(..) => "x11",
            Self::Forwarded(Listen::Port(..), _) => "forwarded-tcpip",
            Self::Forwarded(Listen::Socket(_), _) => "forwarded-streamlocal@openssh.com",
        }
    }

    async fn open(
        self,
        user: &russh::server::Handle,
    ) -> Result<Channel<russh::server::Msg>, russh::Error> {
        match self {
            Self::Agent => user.channel_open_agent().await,
            Self::X11(originator, port) => user.channel_open_x11(originator, port).await,
            Self::Forwarded(Listen::Port(address, port), (originator, from)) => {
                user.channel_open_forwarded_tcpip(address, port, originator, from).await
            }
            Self::Forwarded(Listen::Socket(path), _) => {
                user.channel_open_forwarded_streamlocal(path).await
            }
        }
    }
}

/// Pins a key that was seen for the first time.
async fn pin(store: &Store, relay: &Relay, key: &PublicKey) -> bool {
    let Ok((line, fingerprint)) = keys::public_key_line(key) else { return false };
    let conn = &relay.conn;
    let now = conn.bastion.clock.now();
    let pinned = store
        .pin_first_key(&relay.target().name, (&line, &fingerprint), &conn.context(), now)
        .await;
    match pinned {
        // Somebody else's first sight came first: this connection trusts what was pinned then.
        Ok(pinned) => pinned,
        Err(error) => {
            tracing::error!(%error, "failed to pin a host key");
            false
        }
    }
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let Some(relay) = self.relay.upgrade() else { return Ok(false) };
        let now = relay.conn.bastion.clock.now();
        let trusted = self.host_keys.trusts(shown, relay.target(), now);
        if trusted || self.first_use(&relay, shown).await {
            return Ok(true);
        }
        self.refuse(&relay, shown).await;
        Ok(false)
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.join(channel, reply, Wanted::Agent);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        channel: Channel<Msg>,
        originator: &str,
        port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.join(channel, reply, Wanted::X11(originator.to_owned(), port));
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        address: &str,
        port: u32,
        originator: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let from = Listen::Port(address.to_owned(), port);
        let originator = (originator.to_owned(), originator_port);
        self.join(channel, reply, Wanted::Forwarded(from, originator));
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let from = Listen::Socket(path.to_owned());
        self.join(channel, reply, Wanted::Forwarded(from, (String::new(), 0)));
        Ok(())
    }

    // What no sshd opens. Dropping the reply refuses it.

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.unasked("session");
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _originator: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.unasked("direct-tcpip");
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.unasked("direct-streamlocal@openssh.com");
        Ok(())
    }
}
