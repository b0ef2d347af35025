//! The inner SSH server of a `ssh -J` connection to a target in record mode.
//!
//! Always holds: it is reached only through a `direct-tcpip` channel of somebody who signed in on
//! the outer connection, and lets that person in without another question, as far as the policy
//! allows the account: the one question of the bastion's is for a fresh code, where a grant
//! asks for it; the others are the target's own. One task serves it, apart from the outer
//! connection's.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::server::{
    Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey, run_stream,
};
use russh::{Channel, ChannelId, ChannelWriteHalf, Disconnect, Pty, Sig};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::admit::{State, questions_only};
use super::stream::ChannelStream;
use super::{Onward, Relay, host_key};
use crate::domain::{Capability, Destination, Target};
use crate::policy::Checked;
use crate::server::answers::{Answering, answer, answers};
use crate::server::connection::Connection;
use crate::server::forward::ConnectionFlow;
use crate::server::handler::{Ended, prohibited};
use crate::server::settings::Settings;
use crate::server::ssh;
use crate::server::stream::{GuardedStream, StreamControl};
use crate::server::traffic::Counts;

/// How long the inner SSH may take to end once it was cut off.
const LAST: Duration = Duration::from_secs(5);
/// How long an inner client may take to hear why its connection is ended from here; the outer one
/// waits for it.
const TOLD: Duration = Duration::from_millis(1500);

/// Serves the inner SSH on `channel` to its end, and counts what it carries; gives why it ended.
pub(in crate::server) async fn serve(
    conn: &Arc<Connection>,
    channel: Channel<Msg>,
    (target, destination, addresses): (&Target, &Destination, Checked),
    counts: Arc<Counts>,
) -> String {
    // Not the connection's own: what goes on inside ends after its client was told why.
    let cancel = CancellationToken::new();
    let _cut = cancel.clone().drop_guard();
    let _screen = conn.screens.token();
    let flow = conn.flow.open(channel.id());
    let (stream, drain, channel) = ChannelStream::new(channel, flow, counts);
    let (stream, control) = GuardedStream::new(stream, conn.settings.login_grace);
    let door = Door {
        conn: Arc::clone(conn),
        target: target.clone(),
        addresses,
        user: Arc::new(OnceLock::new()),
        cancel: cancel.clone(),
        control: control.clone(),
        relay: OnceLock::new(),
        entered: Notify::new(),
        flow: Arc::new(conn.flow.inner()),
    };
    let door = Arc::new(door);
    let inner = run(&door, destination, stream);
    tokio::pin!(inner);
    let over = async {
        conn.cancel.cancelled().await;
        if conn.ended_by_us().is_some() {
            tokio::time::sleep(TOLD).await;
        }
    };
    let cut = tokio::select! {
        why = &mut inner => {
            cancel.cancel();
            control.kill();
            close(conn, &channel).await;
            return why;
        }
        within = drain.run() => match within {
            true => "the client closed it".to_owned(),
            false => "the client ignored its window".to_owned(),
        },
        () = over => "it was ended".to_owned(),
    };
    cancel.cancel();
    control.kill();
    // The inner SSH runs on a task of russh's: over before the channel's place is given back.
    if tokio::time::timeout(LAST, inner).await.is_err() {
        tracing::error!(session = %conn.id, "an inner connection outlives its channel");
    }
    close(conn, &channel).await;
    // A client that is told why goes, too.
    door.relay.get().and_then(|relay| relay.ended()).unwrap_or(cut)
}

/// Closes the client's channel: one that only said that nothing more comes, as `ssh -W` does, would
/// wait for ever.
async fn close(conn: &Connection, channel: &ChannelWriteHalf<Msg>) {
    tokio::select! {
        _gone = channel.close() => {}
        () = conn.cancel.cancelled() => {}
    }
}

/// What the inner connection's callbacks share.
pub(super) struct Door {
    pub(super) conn: Arc<Connection>,
    pub(super) target: Target,
    pub(super) addresses: Checked,
    pub(super) user: Arc<OnceLock<russh::server::Handle>>,
    pub(super) cancel: CancellationToken,
    pub(super) control: StreamControl,
    pub(super) relay: OnceLock<Arc<Relay>>,
    /// Told once the relay is there.
    pub(super) entered: Notify,
    pub(super) flow: Arc<ConnectionFlow>,
}

async fn run(
    door: &Arc<Door>,
    destination: &Destination,
    stream: GuardedStream<ChannelStream>,
) -> String {
    let conn = &door.conn;
    let now = conn.bastion.clock.now();
    let (ca, name) = (&conn.bastion.relay.host_ca, destination.host.as_str());
    let (key, certificate) = match host_key::stand_in(ca, &door.target, name, now) {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(%error, "failed to make a target's stand-in host key");
            return "the bastion could not make its host key".to_owned();
        }
    };
    let config = config(key, certificate, &conn.settings);
    let handler = Handler { door: Arc::clone(door), state: State::New };
    let mut session = match run_stream(Arc::new(config), stream, handler).await {
        Ok(session) => session,
        Err(error) => return error.reason().to_string(),
    };
    // Only this once.
    let handle = door.user.get_or_init(|| session.handle()).clone();
    let watch = async {
        door.entered.notified().await;
        match door.relay.get() {
            Some(relay) => relay.watch().await,
            None => std::future::pending().await,
        }
    };
    let over = async {
        conn.cancel.cancelled().await;
        match conn.ended_by_us() {
            Some(why) => why,
            None => std::future::pending().await, // The client left.
        }
    };
    let why = tokio::select! {
        why = watch => why,
        why = over => why,
        ended = &mut session => return match ended {
            Ok(()) => "the client closed it".to_owned(),
            Err(error) => error.reason().to_string(),
        },
    };
    let goodbye = handle.disconnect(Disconnect::ByApplication, why.clone(), String::new());
    let told = goodbye.await.is_ok();
    // The client reads it and goes; one that does not is cut off.
    if !told || tokio::time::timeout(Duration::from_secs(2), &mut session).await.is_err() {
        tracing::debug!("a client did not take in why its connection ended");
    }
    why
}

fn config(
    key: PrivateKey,
    certificate: russh::keys::Certificate,
    settings: &Settings,
) -> russh::server::Config {
    let none = crate::auth::machine::Methods::INTERACTIVE;
    ssh::config(key, certificate, none, settings.flow.window, settings.older_clients)
}

/// The callbacks of the inner connection; who may call them is decided in `admit`.
pub(super) struct Handler {
    pub(super) door: Arc<Door>,
    pub(super) state: State,
}

impl Handler {
    async fn onward(&self, channel: Channel<Msg>, onward: Onward, reply: ChannelOpenHandle) {
        let Some(relay) = self.relay() else { return };
        match self.door.conn.slot_for(&onward.to_string()) {
            Ok(slot) => {
                let serve = super::serve_onward(Arc::clone(relay), channel, onward, slot, reply);
                self.door.conn.tasks.spawn(serve);
            }
            Err(refusal) => reply.reject(refusal).await,
        }
    }
}

impl Answering for Handler {
    fn flow(&self) -> &ConnectionFlow {
        &self.door.flow
    }

    fn relay(&self) -> Option<&Arc<Relay>> {
        self.door.relay.get()
    }

    fn way(
        &self,
        _user: russh::server::Handle,
    ) -> Option<impl Future<Output = Option<Arc<Relay>>> + Send + 'static> {
        // Who is in, has come this way.
        self.relay().map(|relay| std::future::ready(Some(Arc::clone(relay))))
    }

    fn conn(&self) -> &Arc<Connection> {
        &self.door.conn
    }

    fn allowed(&self, right: Capability, request: &str) -> bool {
        self.relay().is_some_and(|relay| relay.check(right, request).is_ok())
    }
}

impl russh::server::Handler for Handler {
    type Error = Ended;

    // The callbacks for data, windows and requests on channels (`pty_request` to `signal`) and for ports
    // (`tcpip_forward` and its like), from `server::answers`. What was asked on a channel is acted on in
    // `session`, what was asked about ports in `onward`.
    answers!();

    async fn authentication_banner(&mut self) -> Result<Option<String>, Ended> {
        let notice = &self.door.conn.settings.record.notice;
        Ok((!notice.is_empty()).then(|| format!("{notice}\r\n")))
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Ended> {
        let cancel = self.door.cancel.clone();
        Ok(Self::unless_cut(cancel, self.enter(user)).await)
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Ended> {
        let cancel = self.door.cancel.clone();
        let work = async {
            match self.enter(user).await {
                Auth::Accept => Auth::Accept,
                // A password is no code, and none for the target before that.
                other if matches!(self.state, State::Proving(..)) => other,
                // A client that does not wait to be asked: its password is for the target.
                _ => self.interact(user, Some(vec![Zeroizing::new(password.to_owned())])).await,
            }
        };
        Ok(Self::unless_cut(cancel, work).await)
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        _offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Ended> {
        // Who it is was settled on the outer connection: any key is as good as none.
        Ok(match self.state {
            State::New | State::In => Auth::Accept,
            State::Proving(..) | State::Asking(..) | State::Refused(_) => questions_only(),
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Ended> {
        let cancel = self.door.cancel.clone();
        Ok(Self::unless_cut(cancel, self.enter(user)).await)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Ended> {
        let text =
            |bytes: bytes::Bytes| Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        let answers = response.map(|answers| answers.take(8).map(text).collect());
        let cancel = self.door.cancel.clone();
        Ok(Self::unless_cut(cancel, self.interact(user, answers)).await)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Ended> {
        match self.relay() {
            Some(_) => Ok(()),
            None => Err(Ended::Refused(crate::audit::Refusal::NotOffered)),
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Ended> {
        let Some(relay) = self.relay() else { return Ok(()) };
        match self.door.conn.slot_for("session") {
            Ok(slot) => {
                super::serve_session(relay, channel, session.handle(), slot, reply).await;
            }
            Err(refusal) => reply.reject(refusal).await,
        }
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
        _session: &mut Session,
    ) -> Result<(), Ended> {
        let (host, originator) = (host.to_owned(), originator.to_owned());
        self.onward(channel, Onward::Tcp { host, port, originator, originator_port }, reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Ended> {
        self.onward(channel, Onward::Socket(path.to_owned()), reply).await;
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
        reply.reject(prohibited("x11 channels are opened by targets")).await;
        Ok(())
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Ended> {
        reply.reject(prohibited("forwarded-tcpip channels are opened by targets")).await;
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Ended> {
        Ok(answer(session, channel, !self.door.flow.begun(channel))?)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Ended> {
        Ok(answer(session, channel, self.door.flow.begin(channel))?)
    }
}
