//! The bastion's own SSH connection to a target: dial, check the host key (`callbacks`), sign in
//! (`target_auth`).
//!
//! Always holds: nothing is sent to a target whose host key is not trusted; dial, handshake and
//! each step of signing in have deadlines with reasons; the socket dies with the last handle on the
//! connection.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client;
use russh::keys::ssh_key::HashAlg;
use russh::keys::{Algorithm, PublicKey};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Relay;
use super::asked::Asked;
use super::callbacks::{Handler, HostKeys};
use super::target_auth::{Stage, sign_in};
use crate::audit::Event;
use crate::domain::{AccountAuth, printable};
use crate::server::forward::dial;
use crate::server::ssh;
use crate::server::stream::{GuardedStream, StreamControl};
use crate::store::{AccountSecret, TrustedKey};

/// How long the handshake, and each step of signing in, may take.
pub(super) const STEP: Duration = Duration::from_secs(15);
/// How long a user may think about a target's question.
pub(super) const ANSWER: Duration = Duration::from_secs(120);

/// A signed-in connection to a target.
pub(super) struct TargetConnection {
    pub(super) handle: client::Handle<Handler>,
    pub(super) control: StreamControl,
    /// What lets the target open channels on it.
    pub(super) asked: Arc<Asked>,
}

impl Drop for TargetConnection {
    fn drop(&mut self) {
        self.control.kill();
    }
}

/// A handshake: its socket dies with it, unless a connection came of it.
struct Unfinished(Option<StreamControl>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(control) = &self.0 {
            control.kill();
        }
    }
}

/// The connection that was made while the user signed in.
pub(super) struct Home {
    connection: Arc<TargetConnection>,
    /// For all channels: the user was asked something on the way.
    shared: bool,
    used: bool,
}

/// Why there is no connection; a sentence for the user.
pub(super) type Failed = String;

impl Relay {
    /// A connection to open one channel on; made anew unless there is one to use. There is none before
    /// the fresh code is given that the permit may ask for.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Stage, Failed> {
        if self.asks_code() {
            return Err(self.refuse_unasked());
        }
        {
            let mut home = self.home.lock().await;
            if let Some(home) = home.as_mut().filter(|home| home.shared || !home.used) {
                home.used = true;
                if !home.connection.handle.is_closed() {
                    return Ok(Stage::In(Arc::clone(&home.connection)));
                }
            }
        }
        connect(self).await
    }

    /// Keeps a connection for the first channel, or, if `shared`, for all.
    pub(super) async fn keep(&self, connection: Arc<TargetConnection>, shared: bool) {
        *self.home.lock().await = Some(Home { connection, shared, used: false });
    }

    /// The connection for what is not a channel of the user's: `-R`.
    pub(super) async fn home(&self) -> Option<Arc<TargetConnection>> {
        self.home.lock().await.as_ref().map(|home| Arc::clone(&home.connection))
    }

    /// Whether signing in has to wait for the agent that a channel will forward.
    pub(super) async fn needs_agent(&self) -> Result<bool, Failed> {
        Ok(self.secret().await?.is_some_and(|secret| secret.auth == AccountAuth::Agent))
    }

    async fn secret(&self) -> Result<Option<AccountSecret>, Failed> {
        let store = &self.conn.bastion.store;
        store.account_secret(&self.target().id, self.account()).await.map_err(|error| {
            tracing::error!(%error, "failed to read how to sign in on a target");
            "the bastion cannot read how to sign in there: ask your administrator".to_owned()
        })
    }
}

/// Connects and signs in, as far as that goes without the user.
async fn connect(relay: &Arc<Relay>) -> Result<Stage, Failed> {
    let outcome = try_connect(relay).await;
    if let Err(error) = &outcome {
        relay.conn.record(Event::TargetFailed {
            target: relay.target().name.clone(),
            account: relay.account().clone(),
            error: error.clone(),
        });
    }
    outcome
}

async fn try_connect(relay: &Arc<Relay>) -> Result<Stage, Failed> {
    let name = relay.target().name.as_str();
    let secret = relay.secret().await?;
    let dialled = dial::dial(relay.addresses.addresses(), relay.conn.settings.dial_timeout).await;
    let (address, socket) = dialled.map_err(|error| error.for_target(name))?;
    let connection = handshake(relay, socket).await?;
    tracing::debug!(target = name, %address, "connected to a target");
    sign_in(relay, connection, secret).await
}

async fn handshake(relay: &Arc<Relay>, socket: TcpStream) -> Result<TargetConnection, Failed> {
    let name = &relay.target().name;
    let store = &relay.conn.bastion.store;
    let trusted = store.trusted_keys(&relay.target().id).await.map_err(|error| {
        tracing::error!(%error, "failed to read a target's host keys");
        "the bastion cannot read the target's host keys: try again".to_owned()
    })?;
    let (stream, control) = GuardedStream::new(socket, STEP + ANSWER);
    let stream = stream.reading_ahead();
    let refused = Arc::new(Mutex::new(None));
    let config = config(&trusted, relay.conn.settings.flow.window);
    let asked = Arc::new(Asked::default());
    let handler = Handler {
        relay: Arc::downgrade(relay),
        host_keys: HostKeys::parse(&trusted),
        refused: Arc::clone(&refused),
        asked: Arc::clone(&asked),
        _over: asked.over.clone().drop_guard(),
        control: control.clone(),
    };
    // russh's task and its socket would outlive whoever stops waiting.
    let mut guard = Unfinished(Some(control.clone()));
    let connecting = client::connect_stream(Arc::new(config), stream, handler);
    let result = timeout(STEP, connecting).await;
    let why = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (result, why) {
        (_, Some(why)) => Err(why),
        (Ok(Ok(handle)), None) => {
            guard.0 = None;
            Ok(TargetConnection { handle, control, asked })
        }
        (Ok(Err(error)), None) => {
            tracing::info!(target = %name, %error, "failed to speak SSH with a target");
            Err(format!(
                "{name} does not speak SSH as it should: {}",
                printable(&error.to_string())
            ))
        }
        (Err(_), None) => {
            Err(format!("{name} did not finish the SSH handshake within {} s", STEP.as_secs()))
        }
    }
}

/// How to speak with a target for which these keys are trusted.
pub(super) fn config(trusted: &[TrustedKey], window: u32) -> client::Config {
    let mut preferred = ssh::target_preferred();
    // A target with several host keys shall show one that we know.
    let known: Vec<Algorithm> = trusted
        .iter()
        .filter(|key| key.authority == 0)
        .filter_map(|key| PublicKey::from_openssh(&key.key).ok())
        .flat_map(|key| match key.algorithm() {
            Algorithm::Rsa { .. } => vec![
                Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
                Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
            ],
            other => vec![other],
        })
        .collect();
    // The others stay, so that a target with another key is known as that.
    let others = preferred.key.iter().filter(|other| !known.contains(other)).cloned();
    preferred.key = Cow::Owned(known.iter().cloned().chain(others).collect());
    if trusted.iter().any(|key| key.authority != 0) {
        preferred.host_key_certificates = preferred.key.clone();
    }
    client::Config {
        window_size: window,
        maximum_packet_size: 32 * 1024,
        channel_buffer_size: 16,
        preferred,
        // A target that is gone is found by TCP's keepalive; one that hangs, by the user.
        keepalive_interval: None,
        nodelay: true,
        ..client::Config::default()
    }
}
