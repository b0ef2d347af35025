//! What both SSH servers answer alike: the outer one (`handler`) and the one in it (`relay::door`).
//!
//! Always holds: every request on a session channel is answered here, at once, and acted on
//! elsewhere: `shell` and `relay::session` read the requests from the channel, in their order.
//! russh loses an answer that comes after the next request, and refuses by itself what it does not
//! know: no handler sees a `break` (RFC 4335).

use std::sync::Arc;

use super::forward::ConnectionFlow;
use super::relay::{Listen, Relay};
use crate::domain::Capability;

/// What the answers depend on.
pub(super) trait Answering {
    /// The flow of the connection's channels.
    fn flow(&self) -> &ConnectionFlow;
    /// The relay that the channels lead to, once there is one.
    fn relay(&self) -> Option<&Arc<Relay>>;
    /// Makes the way to the target that was chosen, if nobody needed it yet: a client asks for the
    /// target's ports before it opens a session.
    fn make_way(&self, user: russh::server::Handle) -> impl Future<Output = ()> + Send;
    /// Whether `right` is granted; if not, that is written down.
    fn allowed(&self, right: Capability, request: &str) -> bool;
}

/// Asks the target to listen for the user (`-R`); `port` 0 becomes the one that it chose. The answer
/// is the target's, and waits for it: at most a few seconds.
pub(super) async fn listen(relay: &Arc<Relay>, address: &str, port: &mut u32) -> bool {
    let asked = Listen::Port(address.to_owned(), *port);
    match super::relay::listen(relay, asked).await {
        Some(bound) if *port == 0 => {
            *port = bound;
            true
        }
        bound => bound.is_some(),
    }
}

/// Answers a request on a session channel.
pub(super) fn answer(
    session: &mut russh::server::Session,
    channel: russh::ChannelId,
    granted: bool,
) -> Result<(), russh::Error> {
    if granted { session.channel_success(channel) } else { session.channel_failure(channel) }
}

/// The callbacks of a `russh::server::Handler` that is [`Answering`].
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
            self.make_way(session.handle()).await;
            let allowed =
                self.allowed(Capability::RemoteForward, &format!("tcpip-forward {address}:{port}"));
            match self.relay().filter(|_| allowed) {
                Some(relay) => Ok($crate::server::answers::listen(relay, address, port).await),
                None => Ok(false),
            }
        }

        async fn cancel_tcpip_forward(
            &mut self,
            address: &str,
            port: u32,
            _session: &mut Session,
        ) -> Result<bool, Ended> {
            match self.relay() {
                Some(relay) => {
                    let asked = $crate::server::relay::Listen::Port(address.to_owned(), port);
                    Ok($crate::server::relay::unlisten(relay, asked).await)
                }
                None => Ok(false),
            }
        }

        async fn streamlocal_forward(
            &mut self,
            path: &str,
            session: &mut Session,
        ) -> Result<bool, Ended> {
            self.make_way(session.handle()).await;
            let request = format!("streamlocal-forward {path}");
            let allowed = self.allowed(Capability::RemoteForward, &request);
            match self.relay().filter(|_| allowed) {
                Some(relay) => {
                    let asked = $crate::server::relay::Listen::Socket(path.to_owned());
                    Ok($crate::server::relay::listen(relay, asked).await.is_some())
                }
                None => Ok(false),
            }
        }

        async fn cancel_streamlocal_forward(
            &mut self,
            path: &str,
            _session: &mut Session,
        ) -> Result<bool, Ended> {
            match self.relay() {
                Some(relay) => {
                    let asked = $crate::server::relay::Listen::Socket(path.to_owned());
                    Ok($crate::server::relay::unlisten(relay, asked).await)
                }
                None => Ok(false),
            }
        }
    };
}
pub(super) use answers;
