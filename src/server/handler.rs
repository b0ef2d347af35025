//! russh's callbacks, kept thin: turn what comes over the wire into our types, answer, hand on.
//!
//! Always holds: after somebody signed in no callback waits for a dial, the store or a slow peer
//! (one task serves a connection: whoever waits here stops all its channels), but for 2 ms after data
//! for a target that is far behind (`forward::flow`), and up to 2 s for a target that is to listen
//! (`answers`); every request gets an
//! answer, what is not offered a refusal; see RFC 4252 to 4254 and 4256.

use std::borrow::Cow;
use std::sync::Arc;

use russh::keys::ssh_key::HashAlg;
use russh::keys::{Algorithm, Certificate, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodSet, Pty, Sig};
use secrecy::SecretString;

use super::answers::{Answering, answer, answers};
use super::connection::Connection;
use super::forward::ConnectionFlow;
use super::login::Login;
use super::relay::{self, selector, selector::Entrance};
use super::ssh::method_set;
use super::{direct, shell};
use crate::audit::{EndReason, Event, Refusal};
use crate::auth::machine::{Methods, Reply, Request};
use crate::domain::{Capability, noted};

/// Why SSH on a connection ended, other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// We cut it off.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The transport failed, or the client broke the protocol.
    #[error(transparent)]
    Ssh(#[from] russh::Error),
}

impl Ended {
    pub(super) fn reason(&self) -> EndReason {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            // An ordinary `ssh` that exits ends like this: with an end, or, if it left something
            // unread, with a reset. A network that is gone is a timeout.
            Self::Ssh(russh::Error::Disconnect | russh::Error::HUP) => EndReason::ClientClosed,
            Self::Ssh(russh::Error::IO(e))
                if matches!(e.kind(), UnexpectedEof | BrokenPipe | ConnectionReset) =>
            {
                EndReason::ClientClosed
            }
            Self::Ssh(
                russh::Error::IO(_)
                | russh::Error::KeepaliveTimeout
                | russh::Error::InactivityTimeout
                | russh::Error::ConnectionTimeout,
            ) => EndReason::ConnectionLost,
            Self::Refused(_) | Self::Ssh(_) => EndReason::ProtocolError,
        }
    }
}

/// The callbacks of one connection.
pub(super) struct Handler {
    conn: Arc<Connection>,
    /// Signing in; `None` afterwards.
    login: Option<Login>,
    /// Whether the client was told that no method is left.
    cut_off: bool,
    /// The target that the user name chose.
    entrance: Option<Arc<Entrance>>,
    /// The user name of the first request, as it was sent.
    user: Option<String>,
}

/// The name that a request of `user` signs in as, on a connection whose first was of `first`: never that
/// one's, unless both are the same as they were sent.
fn requested<'a>(first: &'a str, user: &'a str) -> &'a str {
    let (login, _) = selector::parse(first);
    match user {
        _ if user == first => login,
        // Plain "alice" after "alice+db1": what tells them apart is in the first.
        _ if user == login => first,
        _ => user,
    }
}

impl Handler {
    pub(super) fn new(conn: Arc<Connection>) -> Self {
        let login = Some(Login::new(Arc::clone(&conn)));
        Self { conn, login, cut_off: false, entrance: None, user: None }
    }

    /// The name that signs in. Another user name than the first, also if only what it chooses
    /// differs, is passed on whole and refused (RFC 4252 section 5).
    fn login_name(&mut self, user: &str) -> String {
        let first = self.user.get_or_insert_with(|| {
            let chosen = selector::parse(user).1;
            self.entrance = chosen.map(|selector| Arc::new(Entrance::new(selector)));
            user.to_owned()
        });
        requested(first, user).to_owned()
    }

    /// Serves a connection from the chosen target on. Its place is taken before the way there is known,
    /// which may take as long as a name to resolve.
    async fn onward(
        &self,
        entrance: &Arc<Entrance>,
        channel: Channel<Msg>,
        onward: relay::Onward,
        handle: russh::server::Handle,
        reply: ChannelOpenHandle,
    ) {
        let slot = match self.conn.slot_for(&onward.to_string()) {
            Ok(slot) => slot,
            Err(refusal) => return reply.reject(refusal).await,
        };
        let (conn, entrance) = (Arc::clone(&self.conn), Arc::clone(entrance));
        self.conn.tasks.spawn(async move {
            match entrance.relay(&conn, handle).await {
                Ok(relay) => relay::serve_onward(relay, channel, onward, slot, reply).await,
                Err(message) => reply.reject(prohibited(&message)).await,
            }
        });
    }

    async fn request(&mut self, user: &str, request: Request) -> Result<Auth, Ended> {
        let name = self.login_name(user);
        let Some(login) = self.login.as_mut().filter(|_| !self.cut_off) else {
            return Err(Ended::Refused(Refusal::TooManyAttempts));
        };
        Ok(match login.request(&name, request).await {
            Reply::Refuse(methods) => Auth::Reject {
                proceed_with_methods: Some(method_set(methods)),
                partial_success: false,
            },
            Reply::Continue => Auth::Reject {
                proceed_with_methods: Some(method_set(Methods::INTERACTIVE)),
                partial_success: true,
            },
            Reply::KeyOk => Auth::Accept,
            Reply::Ask(question) => Auth::Partial {
                name: Cow::Borrowed(""),
                instructions: Cow::Owned(question.instruction),
                prompts: Cow::Owned(
                    question
                        .prompt
                        .into_iter()
                        .map(|(text, echo)| (Cow::Owned(text), echo))
                        .collect(),
                ),
            },
            Reply::Accept(who) => {
                self.conn.sign_in(who);
                Auth::Accept
            }
            Reply::Disconnect(_) => {
                // No method left: a client then says "Permission denied" and goes by itself.
                self.cut_off = true;
                self.conn.control.extend(std::time::Duration::from_secs(2));
                Auth::Reject {
                    proceed_with_methods: Some(MethodSet::empty()),
                    partial_success: false,
                }
            }
        })
    }

    /// Writes a refused request down.
    fn refuse(&self, request: impl Into<String>) {
        let (request, reason) = (noted(&request.into()), Refusal::NotOffered);
        self.conn.record_refused_request(Event::RequestRefused { request, reason });
    }

    /// Refuses to open a channel of a kind that is not offered.
    async fn refuse_channel(&self, kind: &str, reply: ChannelOpenHandle) {
        let (request, reason) = (kind.to_owned(), Refusal::NotOffered);
        self.conn.record_refusal(Event::RequestRefused { request, reason });
        reply.reject(prohibited(&format!("{kind} is not offered by this bastion"))).await;
    }
}

/// "Administratively prohibited" (RFC 4254 section 5.1) with a reason for people.
pub(super) fn prohibited(reason: &str) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: 1, reason: reason.to_owned() }
}

/// The key's fingerprint, if it is of a kind and size that can be trusted; RSA signs with SHA-2
/// only (RFC 8332) and has 2048 bits at least.
fn fingerprint(key: &PublicKey, algorithm: &Algorithm) -> Option<String> {
    let strong = crate::keys::is_strong(key) && !matches!(algorithm, Algorithm::Rsa { hash: None });
    strong.then(|| key.fingerprint(HashAlg::Sha256).to_string())
}

impl Answering for Handler {
    fn flow(&self) -> &ConnectionFlow {
        &self.conn.flow
    }

    fn relay(&self) -> Option<&Arc<relay::Relay>> {
        self.entrance.as_ref()?.known()
    }

    fn way(
        &self,
        user: russh::server::Handle,
    ) -> Option<impl Future<Output = Option<Arc<relay::Relay>>> + Send + 'static> {
        let (conn, entrance) = (Arc::clone(&self.conn), Arc::clone(self.entrance.as_ref()?));
        Some(async move {
            let found = entrance.relay(&conn, user).await;
            let why = |why: &String| tracing::debug!(why, "there is no way to a target");
            found.inspect_err(why).ok()
        })
    }

    fn conn(&self) -> &Arc<Connection> {
        &self.conn
    }

    fn allowed(&self, right: Capability, request: &str) -> bool {
        match self.relay() {
            Some(relay) => relay.check(right, request).is_ok(),
            // For the target that the menu leads to: decided once more when one is chosen.
            None if self.entrance.is_none() && self.conn.menu_may_need(right) => true,
            None => {
                self.refuse(request);
                false
            }
        }
    }
}

impl russh::server::Handler for Handler {
    type Error = Ended;

    // The callbacks for data, windows and requests on channels (`pty_request` to `signal`) and for ports
    // (`tcpip_forward` and its like), from `server::answers`. What was asked on a channel is acted on in
    // `shell`, or for a target in `relay::session`; what was asked about ports in `relay::onward`.
    answers!();

    async fn authentication_banner(&mut self) -> Result<Option<String>, Ended> {
        let banner = &self.conn.settings.banner;
        Ok((!banner.is_empty()).then(|| format!("{banner}\r\n")))
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Ended> {
        self.request(user, Request::None).await
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Ended> {
        self.request(user, Request::Password(SecretString::from(password))).await
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Ended> {
        let key = fingerprint(offer.public_key, offer.algorithm).unwrap_or_default();
        self.request(user, Request::KeyOffer(key)).await
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Ended> {
        let key = fingerprint(key.public_key, key.algorithm).unwrap_or_default();
        self.request(user, Request::Key(key)).await
    }

    /// A user certificate that is in its time by the system's clock, and whose signatures are right. russh
    /// 0.65 refuses any other by itself, before it calls anything here: `server_read_auth_request_pk` in
    /// its `server/encrypted.rs` compares the dates first, ahead of `auth_publickey_offered`, and its
    /// answer (`reject_auth_request`) calls no handler either. What is below us, the socket, sees nothing
    /// but what is encrypted. So such a refusal is in no audit event; [`Authorities::check`] decides by the
    /// same dates again, by the bastion's own clock, and audits what it refuses.
    ///
    /// [`Authorities::check`]: crate::keys::Authorities::check
    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Ended> {
        let name = self.login_name(user);
        let (conn, source) = (&self.conn, self.conn.source.ip());
        let now = conn.bastion.clock.now();
        let shown = conn.settings.authorities.check(certificate, &name, source, now);
        self.request(user, Request::Certificate(shown)).await
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Ended> {
        let request = match response {
            None => Request::Interactive,
            Some(answers) => Request::Answers(
                answers
                    .take(4)
                    .map(|bytes| SecretString::from(String::from_utf8_lossy(&bytes).into_owned()))
                    .collect(),
            ),
        };
        self.request(user, request).await
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Ended> {
        self.login = None;
        match self.conn.who() {
            Some(_) => Ok(()),
            None => Err(Ended::Refused(Refusal::NotOffered)), // Cannot be; would be a hole.
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Ended> {
        let Some(entrance) = self.entrance.clone() else {
            shell::open(&self.conn, channel, session.handle(), reply).await;
            return Ok(());
        };
        let slot = match self.conn.slot_for("session") {
            Ok(slot) => slot,
            Err(refusal) => {
                reply.reject(refusal).await;
                return Ok(());
            }
        };
        let (conn, handle) = (Arc::clone(&self.conn), session.handle());
        self.conn.tasks.spawn(async move {
            match entrance.relay(&conn, handle.clone()).await {
                Ok(relay) => relay::serve_session(&relay, channel, handle, slot, reply).await,
                Err(message) => reply.reject(prohibited(&message)).await,
            }
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        originator: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Ended> {
        if let Some(entrance) = &self.entrance {
            let (host, originator) = (host.to_owned(), originator.to_owned());
            let onward = relay::Onward::Tcp { host, port, originator, originator_port };
            self.onward(entrance, channel, onward, session.handle(), reply).await;
            return Ok(());
        }
        let (conn, host) = (Arc::clone(&self.conn), host.to_owned());
        let Some(slot) = conn.channel_slot() else {
            let (destination, reason) =
                (noted(&format!("{host}:{port}")), Refusal::TooManyChannels);
            // Nobody looked yet which target it means.
            conn.record_refusal(Event::ForwardRefused { destination, target: None, reason });
            let why = "too many channels on this connection: close some, or wait";
            reply.reject(prohibited(why)).await;
            return Ok(());
        };
        self.conn.tasks.spawn(direct::serve(conn, channel, (host, port), slot, reply));
        Ok(())
    }

    async fn channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _address: &str,
        _port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Ended> {
        self.refuse_channel("x11", reply).await;
        Ok(())
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Ended> {
        self.refuse_channel("forwarded-tcpip", reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Ended> {
        match &self.entrance {
            Some(entrance) => {
                let onward = relay::Onward::Socket(path.to_owned());
                self.onward(entrance, channel, onward, session.handle(), reply).await;
            }
            None => self.refuse_channel("direct-streamlocal", reply).await,
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Ended> {
        let taken = self.entrance.is_some() && !self.conn.flow.begun(channel);
        Ok(answer(session, channel, taken)?)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Ended> {
        if self.entrance.is_some() {
            return Ok(answer(session, channel, self.conn.flow.begin(channel))?);
        }
        self.refuse(format!("subsystem {name}"));
        Ok(session.channel_failure(channel)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn another_user_name_never_signs_in_as_the_first() {
        for (first, login) in
            [("alice", "alice"), ("alice+db1", "alice"), ("alice+root@db1", "alice")]
        {
            assert_eq!(requested(first, first), login);
            for user in ["alice", "alice+db1", "alice+root@db1", "alice+", "bob", "bob+db1", ""] {
                assert!(user == first || requested(first, user) != login, "{first}, then {user}");
            }
        }
    }

    #[test]
    fn a_client_that_ended_is_told_from_a_network_that_did() {
        let by = |kind: ErrorKind| Ended::Ssh(russh::Error::IO(kind.into())).reason();
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe] {
            assert_eq!(by(kind), EndReason::ClientClosed, "{kind}");
        }
        for kind in [ErrorKind::TimedOut, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable]
        {
            assert_eq!(by(kind), EndReason::ConnectionLost, "{kind}");
        }
        let broken = Ended::Ssh(russh::Error::Inconsistent).reason();
        assert_eq!(broken, EndReason::ProtocolError);
    }
}
