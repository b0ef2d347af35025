//! Connections beside the sessions: from a target on (`-L`, `-D`, socket files), and the ports and
//! socket files that a target listens on for the user (`-R`).
//!
//! Always holds: each is checked, and written down before it is opened.

use std::sync::Arc;

use russh::server::ChannelOpenHandle;
use russh::{Channel, ChannelOpenFailure, client, server};
use tokio::sync::oneshot::Sender;
use tokio::time::timeout;

use super::Relay;
use super::asked::Listen;
use super::bridge;
use super::destination::Cleared;
use super::target::{STEP, TargetConnection};
use super::target_auth::Stage;
use crate::audit::{Event, Refusal};
use crate::domain::{Capability, noted, printable};
use crate::server::connection::ChannelSlot;
use crate::server::handler::prohibited;
use crate::server::traffic::Counts;

/// Where a connection from the target on leads.
pub(in crate::server) enum Onward {
    /// `-L`, `-D` (RFC 4254 section 7.2).
    Tcp { host: String, port: u32, originator: String, originator_port: u32 },
    /// A socket file (OpenSSH's PROTOCOL section 2.4).
    Socket(String),
}

impl std::fmt::Display for Onward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "direct-tcpip {}:{port}", noted(host)),
            Self::Socket(path) => write!(f, "direct-streamlocal {}", noted(path)),
        }
    }
}

impl Onward {
    /// Where it may lead, and what permits that if it is not the target itself.
    async fn check(self, relay: &Relay) -> Result<(Self, Option<Cleared>), String> {
        match self {
            Self::Tcp { host, port, originator, originator_port } => {
                let cleared = relay.check_onward(&host, port).await?;
                let (host, port) = (cleared.host.clone(), cleared.port);
                Ok((Self::Tcp { host, port, originator, originator_port }, Some(cleared)))
            }
            Self::Socket(_) => {
                relay.check(Capability::Forward, &self.to_string())?;
                Ok((self, None))
            }
        }
    }

    async fn open(
        self,
        connection: &TargetConnection,
    ) -> Result<Channel<client::Msg>, russh::Error> {
        let handle = &connection.handle;
        match self {
            Self::Tcp { host, port, originator, originator_port } => {
                handle.channel_open_direct_tcpip(host, port, originator, originator_port).await
            }
            Self::Socket(path) => handle.channel_open_direct_streamlocal(path).await,
        }
    }
}

/// Serves a connection from the target on. Runs on the connection's task set.
pub(in crate::server) async fn serve_onward(
    relay: Arc<Relay>,
    channel: Channel<server::Msg>,
    onward: Onward,
    _slot: ChannelSlot,
    reply: ChannelOpenHandle,
) {
    let (onward, cleared) = match onward.check(&relay).await {
        Ok(checked) => checked,
        Err(message) => return reply.reject(prohibited(&message)).await,
    };
    let failed = |reason: String| ChannelOpenFailure::Other { code: 2, reason };
    let connection = match relay.connection().await {
        Ok(Stage::In(connection)) => connection,
        Ok(Stage::Asking(_)) => {
            let reason = format!("{} asks again for each connection", relay.name());
            return reply.reject(failed(reason)).await;
        }
        Err(message) => return reply.reject(failed(message)).await,
    };
    let to = onward.to_string();
    if !relay.opened_onward(&to).await {
        return reply.reject(failed("the bastion cannot write its audit log".to_owned())).await;
    }
    let opened = tokio::select! {
        opened = timeout(STEP, onward.open(&connection)) => opened,
        () = relay.cancel.cancelled() => return relay.closed_onward(to, (0, 0), relay.ended()),
    };
    let refusal = match opened {
        Ok(Ok(target)) => {
            reply.accept().await;
            let meter = relay.meter(None);
            let why = carry(&relay, channel, target, meter.counts(), cleared.as_ref()).await;
            return relay.closed_onward(to, meter.counts().both(), why);
        }
        Ok(Err(russh::Error::ChannelOpenFailure(why))) => shown(why),
        Ok(Err(error)) => failed(printable(&error.to_string())),
        Err(_) => failed(format!("no answer within {} s", STEP.as_secs())),
    };
    let why = match &refusal {
        ChannelOpenFailure::Other { reason, .. } => reason.clone(),
        other => format!("{other:?}"),
    };
    relay.closed_onward(to, (0, 0), Some(why));
    reply.reject(refusal).await;
}

/// Carries an open connection to its end, which comes, too, once it may no longer lead where it
/// does; gives why it was ended from here, if it was.
async fn carry(
    relay: &Relay,
    channel: Channel<server::Msg>,
    target: Channel<client::Msg>,
    counts: &Counts,
    cleared: Option<&Cleared>,
) -> Option<String> {
    let flow = relay.flow.open(channel.id());
    let cancel = relay.cancel.child_token();
    let carried = bridge::carry(channel, target, flow, counts, &cancel);
    tokio::pin!(carried);
    let lapsed = async {
        match cleared {
            Some(cleared) => cleared.watch(relay).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = &mut carried => relay.ended(),
        why = lapsed => {
            cancel.cancel();
            carried.await;
            Some(why)
        }
    }
}

/// A target's refusal, with nothing in it that a terminal would act on.
fn shown(why: ChannelOpenFailure) -> ChannelOpenFailure {
    match why {
        ChannelOpenFailure::Other { code, reason } => {
            ChannelOpenFailure::Other { code, reason: noted(&reason) }
        }
        other => other,
    }
}

/// The connection that the target is to listen on, once that is written down. Where there is none, the
/// user is told in the next session: the answer to a global request has no room for a reason.
async fn listener(relay: &Arc<Relay>, listen: &Listen) -> Option<Arc<TargetConnection>> {
    let what = noted(&listen.to_string());
    let home = match relay.home().await {
        Some(home) => home,
        None => match relay.connection().await {
            Ok(Stage::In(connection)) => {
                relay.keep(Arc::clone(&connection), false).await;
                connection
            }
            Ok(Stage::Asking(_)) => {
                refuse_unasked(relay, what);
                return None;
            }
            Err(why) => {
                relay.tell_later(format!("{what} was refused: {why}"));
                return None;
            }
        },
    };
    relay.opened_onward(&what).await.then_some(home)
}

/// The target has a question, and nobody can be asked: the client opens no session before it has the
/// answer about its port.
fn refuse_unasked(relay: &Relay, what: String) {
    relay.tell_later(format!(
        "{what} was refused: {} asks for something first, and nobody can be asked before a session. Ask \
         for it again once this one is open ('~C', or 'ssh -O forward'), or connect with ssh -J; with '-o \
         ExitOnForwardFailure=no' a session opens nevertheless",
        relay.name()
    ));
    let (request, reason) = (what, Refusal::TargetAsks);
    relay.conn.record_refusal(Event::RequestRefused { request, reason });
}

/// Asks the target to listen for the user (`-R`), and sees to it until it no longer does; `told` is
/// sent the port that it is bound to, 0 for a socket file, or dropped. Runs on the connection's task
/// set. If nobody waits to be told any more, they were told that it failed, and it is taken back.
pub(in crate::server) async fn listen(relay: Arc<Relay>, listen: Listen, told: Sender<u32>) {
    let what = listen.to_string();
    if relay.check(Capability::RemoteForward, &what).is_err() {
        return;
    }
    let Some(home) = listener(&relay, &listen).await else { return };
    let taken_back = home.asked.listen(listen.clone());
    let answer = async {
        match &listen {
            Listen::Port(address, port) => home.handle.tcpip_forward(address, *port).await,
            Listen::Socket(path) => home.handle.streamlocal_forward(path).await.map(|()| 0),
        }
    };
    let answer = tokio::select! {
        answer = timeout(STEP, answer) => answer,
        () = relay.cancel.cancelled() => return relay.closed_onward(noted(&what), (0, 0), relay.ended()),
    };
    let (listen, why) = match answer {
        Ok(Ok(bound)) => {
            let listen = home.asked.bound(listen, bound);
            let why = if told.send(bound).is_ok() {
                tokio::select! {
                    () = taken_back.cancelled() => None,
                    () = home.asked.over.cancelled() => Some("the target closed it".to_owned()),
                    () = relay.cancel.cancelled() => relay.ended(),
                }
            } else {
                take_back(&home, &listen).await;
                Some("the target answered too late".to_owned())
            };
            (listen, why)
        }
        Ok(Err(_)) => (listen, Some("the target refused it".to_owned())),
        Err(_) => (listen, Some(format!("no answer within {} s", STEP.as_secs()))),
    };
    home.asked.unlisten(&listen);
    relay.closed_onward(noted(&what), (0, 0), why);
}

/// Takes that back; `told` is sent whether the target did.
pub(in crate::server) async fn unlisten(relay: Arc<Relay>, listen: Listen, told: Sender<bool>) {
    let done = match relay.home().await {
        Some(home) => take_back(&home, &listen).await,
        None => false,
    };
    if told.send(done).is_err() {
        tracing::debug!("a target answered too late to a port that was taken back");
    }
}

async fn take_back(home: &TargetConnection, listen: &Listen) -> bool {
    let answer = async {
        match listen {
            Listen::Port(address, port) => home.handle.cancel_tcpip_forward(address, *port).await,
            Listen::Socket(path) => home.handle.cancel_streamlocal_forward(path).await,
        }
    };
    let done = matches!(timeout(STEP, answer).await, Ok(Ok(())));
    done && home.asked.unlisten(listen)
}
