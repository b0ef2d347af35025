//! What both SSH servers answer alike: the outer one (`handler`) and the one in it (`relay::door`).
//!
//! Always holds: every request on a session channel is answered here, at once, and acted on
//! elsewhere: `shell` and `relay::session` read the requests from the channel, in their order.
//! russh loses an answer that comes after the next request, and refuses by itself what it does not
//! know: no handler sees a `break` (RFC 4335).

use std::sync::Arc;
use std::time::Duration;

use russh::server::Handle;
use tokio::sync::oneshot;

use super::connection::Connection;
use super::forward::ConnectionFlow;
use super::relay::{Listen, Relay};
use crate::domain::Capability;

/// What the answers depend on.
pub(super) trait Answering {
    /// The flow of the connection's channels.
    fn flow(&self) -> &ConnectionFlow;
    /// The relay that the channels lead to, once there is one.
    fn relay(&self) -> Option<&Arc<Relay>>;
    /// The relay to the target that was chosen, which may have to be found yet: a client asks for the
    /// target's ports before it opens a session. `None` if no target was chosen.
    fn way(
        &self,
        user: Handle,
    ) -> Option<impl Future<Output = Option<Arc<Relay>>> + Send + 'static>;
    /// The connection that pays for it.
    fn conn(&self) -> &Arc<Connection>;
    /// Whether `right` is granted; if not, that is written down.
    fn allowed(&self, right: Capability, request: &str) -> bool;
}

/// How long a connection with open channels may stand still for a target's answer to a global
/// request. russh 0.65 takes the reply from what the callback returns, and serves nothing else of
/// the connection meanwhile: it cannot be given later.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Waits for an answer that is made on another task; `None` if it does not come in time.
async fn in_time<T>(conn: &Connection, answer: oneshot::Receiver<T>) -> Option<T> {
    // While there is no channel nobody waits for the connection, and the way to the target has to be
    // made first.
    let most = if conn.is_in_use() { STANDSTILL } else { conn.settings.dial_timeout };
    tokio::time::timeout(most, answer).await.ok()?.ok()
}

/// Asks the target to listen for the user (`-R`); gives the port, 0 for a socket file.
pub(super) async fn listen(answering: &impl Answering, user: Handle, asked: Listen) -> Option<u32> {
    let Some(way) = answering.way(user) else {
        // Not allowed without a target: this writes it down.
        let _refused = answering.allowed(Capability::RemoteForward, &asked.to_string());
        return None;
    };
    let place = answering.conn().listener_place(&asked.to_string())?;
    let (told, answer) = oneshot::channel();
    answering.conn().tasks.spawn(async move {
        let _until_it_is_over = place;
        if let Some(relay) = way.await {
            super::relay::listen(relay, asked, told).await;
        }
    });
    in_time(answering.conn(), answer).await
}

/// Takes that back.
pub(super) async fn unlisten(answering: &impl Answering, asked: Listen) -> bool {
    let Some(relay) = answering.relay() else { return false };
    let (told, answer) = oneshot::channel();
    answering.conn().tasks.spawn(super::relay::unlisten(Arc::clone(relay), asked, told));
    in_time(answering.conn(), answer).await.unwrap_or(false)
}

/// Answers a request on a session channel.
pub(super) fn answer(
    session: &mut russh::server::Session,
    channel: russh::ChannelId,
    granted: bool,
) -> Result<(), russh::Error> {
    if granted { session.channel_success(channel) } else { session.channel_failure(channel) }
}

/// The callbacks of a `russh::server::Handler` that is [`Answering`], for data, windows and requests on
/// channels and for ports. It stands in the handler's `impl`.
macro_rules! answers {
    () => {
        async fn channel_close(
            &mut self,
            channel: ChannelId,
            _session: &mut Session,
        ) -> Result<(), Ended> {
            self.flow().closed(channel);
            Ok(())
        }

        async fn data(
            &mut self,
            channel: ChannelId,
            _data: &[u8],
            _session: &mut Session,
        ) -> Result<(), Ended> {
            // Only while what a channel leads to does not read; see `forward::flow`.
            if let Some(delay) = self.flow().trickle_delay(channel) {
                tokio::time::sleep(delay).await;
            }
            Ok(())
        }

        fn adjust_window(&mut self, channel: ChannelId, current: u32) -> u32 {
            self.flow().adjust_window(channel, current)
        }

        async fn pty_request(
            &mut self,
            channel: ChannelId,
            _term: &str,
            _columns: u32,
            _rows: u32,
            _width: u32,
            _height: u32,
            _modes: &[(Pty, u32)],
            session: &mut Session,
        ) -> Result<(), Ended> {
            let early = !self.flow().begun(channel);
            Ok($crate::server::answers::answer(session, channel, early)?)
        }

        async fn shell_request(
            &mut self,
            channel: ChannelId,
            session: &mut Session,
        ) -> Result<(), Ended> {
            let first = self.flow().begin(channel);
            Ok($crate::server::answers::answer(session, channel, first)?)
        }

        async fn exec_request(
            &mut self,
            channel: ChannelId,
            _command: &[u8],
            session: &mut Session,
        ) -> Result<(), Ended> {
            let first = self.flow().begin(channel);
            Ok($crate::server::answers::answer(session, channel, first)?)
        }

        async fn x11_request(
            &mut self,
            channel: ChannelId,
            _single_connection: bool,
            _protocol: &str,
            _cookie: &str,
            _screen: u32,
            session: &mut Session,
        ) -> Result<(), Ended> {
            let granted = !self.flow().begun(channel) && self.allowed(Capability::X11, "x11-req");
            Ok($crate::server::answers::answer(session, channel, granted)?)
        }

        async fn agent_request(
            &mut self,
            channel: ChannelId,
            _session: &mut Session,
        ) -> Result<bool, Ended> {
            let early = !self.flow().begun(channel);
            Ok(early && self.allowed(Capability::Agent, "auth-agent-req"))
        }

        async fn window_change_request(
            &mut self,
            _channel: ChannelId,
            _columns: u32,
            _rows: u32,
            _width: u32,
            _height: u32,
            _session: &mut Session,
        ) -> Result<(), Ended> {
            Ok(()) // Never wants a reply (RFC 4254 section 6.7).
        }

        async fn signal(
            &mut self,
            _channel: ChannelId,
            _signal: Sig,
            _session: &mut Session,
        ) -> Result<(), Ended> {
            Ok(()) // Never wants a reply (RFC 4254 section 6.9).
        }

        async fn tcpip_forward(
            &mut self,
            address: &str,
            port: &mut u32,
            session: &mut Session,
        ) -> Result<bool, Ended> {
            let asked = $crate::server::relay::Listen::Port(address.to_owned(), *port);
            let bound = $crate::server::answers::listen(self, session.handle(), asked).await;
            if let (0, Some(bound)) = (*port, bound) {
                *port = bound;
            }
            Ok(bound.is_some())
        }

        async fn cancel_tcpip_forward(
            &mut self,
            address: &str,
            port: u32,
            _session: &mut Session,
        ) -> Result<bool, Ended> {
            let asked = $crate::server::relay::Listen::Port(address.to_owned(), port);
            Ok($crate::server::answers::unlisten(self, asked).await)
        }

        async fn streamlocal_forward(
            &mut self,
            path: &str,
            session: &mut Session,
        ) -> Result<bool, Ended> {
            let asked = $crate::server::relay::Listen::Socket(path.to_owned());
            let bound = $crate::server::answers::listen(self, session.handle(), asked).await;
            Ok(bound.is_some())
        }

        async fn cancel_streamlocal_forward(
            &mut self,
            path: &str,
            _session: &mut Session,
        ) -> Result<bool, Ended> {
            let asked = $crate::server::relay::Listen::Socket(path.to_owned());
            Ok($crate::server::answers::unlisten(self, asked).await)
        }
    };
}
pub(super) use answers;
