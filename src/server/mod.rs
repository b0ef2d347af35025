//! The SSH server: accepts, guards, signs in, forwards, drains.
//!
//! Always holds: every task belongs to a connection or to [`run`], and none outlives it; the accept
//! loop ends only when it is told to.
//!
//! Reading order: [`run`], `connection::serve`, `handler`, `login`, `direct`, `forward`.

mod ahead;
mod answers;
mod connection;
mod direct;
pub mod forward;
mod front;
pub mod guard;
mod handler;
mod live;
mod login;
pub mod proxy;
pub mod pulse;
pub mod radius;
mod refusals;
pub mod relay;
pub mod settings;
mod shell;
pub mod socket;
pub mod ssh;
pub mod stream;
mod traffic;
mod unseen;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::hashing;
pub use front::Front;
pub use settings::Settings;
/// What [`ssh::config`] makes.
pub type SshConfig = russh::server::Config;

use crate::audit::{Context, EndReason, Event, Refusal};
use crate::clock::Clock;
use crate::domain::{Id, Source};
use crate::policy;
use crate::store::Store;
use forward::Budget;
use guard::Guard;
use hashing::Hashing;

/// What people hear whose sessions end with the bastion.
const STOPPING: &str = "the bastion is stopping";

/// What all connections of a process share.
pub struct Bastion {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// Caps and penalties.
    pub guard: Arc<Guard>,
    /// Where passwords are hashed.
    pub hashing: Hashing,
    /// What all channels together may hold for slow targets.
    pub budget: Arc<Budget>,
    /// Where targets' names are looked up.
    pub resolver: forward::dial::Resolver,
    /// Where the names of targets lead whose sessions are recorded.
    pub recorded: forward::known::KnownAddresses,
    /// What record mode shares.
    pub relay: relay::Shared,
    /// Whether it still turns.
    pub pulse: pulse::Pulse,
    settings: RwLock<Arc<Settings>>,
    front: RwLock<Arc<Front>>,
    listeners: RwLock<Vec<SocketAddr>>,
    live: live::Table,
    revisions: watch::Receiver<i64>,
    revisions_sender: watch::Sender<i64>,
    draining: CancellationToken,
}

impl std::fmt::Debug for Bastion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bastion").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Bastion {
    /// Puts a bastion together; nothing runs yet.
    pub fn new(
        store: Store,
        clock: Clock,
        guard: Arc<Guard>,
        hashing: Hashing,
        (settings, front): (Settings, Front),
        relay: relay::Shared,
    ) -> Self {
        let (revisions_sender, revisions) = watch::channel(-1);
        let resolver = forward::dial::Resolver::system();
        Self {
            store,
            clock,
            guard,
            hashing,
            budget: Arc::new(Budget::new(settings.flow)),
            recorded: forward::known::KnownAddresses::new(resolver.apart()),
            resolver,
            relay,
            pulse: pulse::Pulse::default(),
            settings: RwLock::new(Arc::new(settings)),
            front: RwLock::new(Arc::new(front)),
            listeners: RwLock::default(),
            live: live::Table::default(),
            revisions,
            revisions_sender,
            draining: CancellationToken::new(),
        }
    }

    /// Replaces what new connections are served by.
    pub fn reload(&self, mut settings: Settings, front: Front) {
        settings.public_port = port_to_type(settings.public_port, &self.listeners());
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        *self.front.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(front);
    }

    /// Takes note of where it listens.
    fn listens(&self, addresses: Vec<SocketAddr>) {
        let mut settings = (*self.settings()).clone();
        settings.public_port = port_to_type(settings.public_port, &addresses);
        *self.listeners.write().unwrap_or_else(PoisonError::into_inner) = addresses;
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What new connections are greeted by.
    pub fn front(&self) -> Arc<Front> {
        Arc::clone(&self.front.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The addresses among `found` and elsewhere that lead to the bastion's own listeners, which
    /// nobody is forwarded to.
    fn own_addresses(&self, found: &[IpAddr]) -> Vec<SocketAddr> {
        own_addresses(self.listeners(), found, socket::is_ours)
    }

    /// How many sessions are over here whose end could not be written down yet.
    pub fn failed_ends(&self) -> usize {
        self.live.kept()
    }

    /// Tells of every change that a forward's permit has to be checked against.
    pub fn revisions(&self) -> watch::Receiver<i64> {
        self.revisions.clone()
    }

    fn draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}

/// The port that people type: the configured one or, if that is 0, the first that is listened on.
pub fn port_to_type(configured: u16, listening: &[SocketAddr]) -> u16 {
    match configured {
        0 => listening.first().map_or(22, SocketAddr::port),
        configured => configured,
    }
}

/// Serves on `listeners` until `shutdown`, then drains: no new connections or channels, sessions go
/// on for the configured time, then everybody is told and cut off.
///
/// # Errors
/// When the store fails at the start or the end; nothing is served without it.
pub async fn run(
    bastion: Arc<Bastion>,
    listeners: Vec<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), crate::store::Error> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    bastion.store.close_interrupted(bastion.clock.now()).await?;
    let started = Event::ServerStarted { version };
    bastion.store.record(bastion.clock.now(), &server_context(), started).await?;

    let mut addresses: Vec<SocketAddr> = Vec::new();
    addresses.extend(listeners.iter().filter_map(|l| l.local_addr().ok()));
    bastion.listens(addresses);

    let connections = TaskTracker::new();
    let watching = TaskTracker::new();
    let stop_watching = CancellationToken::new();
    let watch = live::watch(Arc::clone(&bastion), bastion.revisions_sender.clone());
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(watch));
    // Beside accepting: however many they are, nobody waits for them.
    let recalling = recall_known(Arc::clone(&bastion));
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(recalling));
    let housekeeping = housekeep(Arc::clone(&bastion));
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(housekeeping));
    let beat = live::beat(Arc::clone(&bastion));
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(beat));
    let carried = traffic::write_down(Arc::clone(&bastion));
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(carried));
    let summing = sum_refusals_up(Arc::clone(&bastion));
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(summing));
    let old = Arc::clone(&bastion);
    let closing = async move { relay::keep::close_left_open(&old).await };
    watching.spawn(stop_watching.clone().run_until_cancelled_owned(closing));
    watching.close();

    let accepting = TaskTracker::new();
    let mut turning = Vec::new();
    for listener in listeners {
        let part = bastion.pulse.part("an accept loop");
        turning.push(Arc::clone(&part));
        let accept = accept(Arc::clone(&bastion), listener, connections.clone(), part);
        accepting.spawn(shutdown.clone().run_until_cancelled_owned(accept));
    }
    accepting.close();
    accepting.wait().await;
    drop(turning); // From here on nothing is accepted, and nothing has to turn for that.

    drain(&bastion, &connections).await;
    bastion.relay.finishing.close();
    bastion.relay.finishing.wait().await;
    bastion.relay.writer.drain().await;
    stop_watching.cancel();
    watching.wait().await;
    write_suppressed(&bastion).await;
    // There is no other node that would notice; and a rotation must not wait for one that is gone.
    if !bastion.store.is_shared() {
        bastion.store.forget_node(bastion.store.node()).await?;
    }
    bastion.store.record(bastion.clock.now(), &server_context(), Event::ServerStopped).await
}

fn server_context() -> Context {
    Context { actor: Some(crate::audit::Actor::Server), ..Context::default() }
}

async fn accept(
    bastion: Arc<Bastion>,
    listener: TcpListener,
    connections: TaskTracker,
    part: Arc<pulse::Part>,
) {
    let mut idle = tokio::time::interval(pulse::IDLE_TURN);
    loop {
        let next = socket::accept(&listener);
        tokio::pin!(next);
        let (stream, peer) = loop {
            part.turn();
            tokio::select! {
                accepted = &mut next => break accepted,
                _ = idle.tick() => {}
            }
        };
        let bastion = Arc::clone(&bastion);
        connections.spawn(admit(bastion, stream, peer));
    }
}

/// Finds out who connects, and serves them if the guard lets them in.
async fn admit(bastion: Arc<Bastion>, mut stream: TcpStream, peer: SocketAddr) {
    let settings = bastion.settings();
    if let Err(error) = socket::tune(&stream, settings.keepalive) {
        return tracing::debug!(%error, %peer, "failed to set a connection's socket up");
    }
    // Counted before its header is waited for: a proxy cannot hold more than everybody else.
    let mut admission = match bastion.guard.enter() {
        Ok(admission) => admission,
        Err(denied) => {
            drop(stream); // Before anything waits: it is counted nowhere.
            return turn_away(&bastion, Source(peer), Refusal::Guarded, &denied.to_string()).await;
        }
    };
    let timeout = Duration::from_secs(5);
    let source = proxy::read_header(&mut stream, peer, &settings.proxy_from, timeout).await;
    let source = match source {
        Ok(proxy::Origin::Client(source)) => source,
        Ok(proxy::Origin::Proxy) => return greet(stream).await,
        Err(error @ proxy::Error::Unused) => return tracing::debug!(%error, %peer),
        Err(error) => {
            drop((stream, admission));
            let reason = match error {
                proxy::Error::Unknown => Refusal::ProxyUnknown,
                _ => Refusal::ProxyHeader,
            };
            return turn_away(&bastion, Source(peer), reason, &error.to_string()).await;
        }
    };
    match admission.identify(&source, std::time::Instant::now()) {
        Ok(()) => connection::serve(bastion, settings, stream, source, admission).await,
        Err(denied) => {
            drop((stream, admission));
            turn_away(&bastion, source, Refusal::Guarded, &denied.to_string()).await;
        }
    }
}

/// Shows a load balancer's health check that an SSH server is here, and ends it: nobody signs in from the
/// load balancer's own address.
async fn greet(mut stream: TcpStream) {
    let said = async {
        stream.write_all(format!("{}\r\n", ssh::ID).as_bytes()).await?;
        stream.shutdown().await?;
        // What it may say is taken first: with that unread, the system could take back what was said.
        tokio::io::copy(&mut stream.take(512), &mut tokio::io::sink()).await
    };
    let greeted = tokio::time::timeout(Duration::from_secs(5), said).await;
    tracing::trace!(?greeted, "a load balancer looked whether somebody is here");
}

/// Writes down, once a minute for each source, that a connection was not let in.
async fn turn_away(bastion: &Bastion, source: Source, reason: Refusal, why: &str) {
    tracing::debug!(%source, why, "a connection was refused");
    if !bastion.guard.should_report(&source, std::time::Instant::now()) {
        return;
    }
    let context = Context { source: Some(source), ..Context::default() };
    let event = Event::SignInRefused { reason };
    if let Err(error) = bastion.store.record(bastion.clock.now(), &context, event).await {
        tracing::error!(%error, "failed to write an audit event of a refused connection");
    }
}

/// Says once a minute how many refusals were not written down by themselves, if there were any.
async fn sum_refusals_up(bastion: Arc<Bastion>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(60));
    loop {
        ticks.tick().await;
        write_suppressed(&bastion).await;
        for conn in bastion.live.all() {
            conn.write_suppressed().await;
        }
    }
}

async fn write_suppressed(bastion: &Bastion) {
    let count = bastion.guard.take_suppressed();
    if count == 0 {
        return;
    }
    tracing::warn!(count, "refusals before sign-in were counted and not written down one by one");
    let event = Event::RefusalsSuppressed { count };
    if let Err(error) = bastion.store.record(bastion.clock.now(), &server_context(), event).await {
        tracing::error!(%error, count, "failed to write down how many refusals there were");
    }
}

/// Lets sessions go on for the configured time, then ends them; at once, where nothing goes on.
async fn drain(bastion: &Arc<Bastion>, connections: &TaskTracker) {
    bastion.draining.cancel();
    connections.close();
    // Whoever is not through yet would only lose the session again.
    for conn in bastion.live.all() {
        if conn.who().is_none() {
            conn.end(
                EndReason::ServerStopped,
                "the bastion is stopping: connect again in a moment",
            );
        }
    }
    let wait = bastion.settings().drain;
    tracing::info!(sessions = connections.len(), wait = ?wait, "draining: sessions may end by themselves");
    let ended = tokio::select! {
        () = connections.wait() => true,
        () = end_unused(bastion) => false,
        () = tokio::time::sleep(wait) => false,
    };
    if !ended {
        bastion.live.end_all(EndReason::ServerStopped, STOPPING);
        connections.wait().await;
    }
}

/// Ends connections on which nothing goes on, until it is dropped. Later ones get a moment: a client
/// mostly goes by itself after its last channel.
async fn end_unused(bastion: &Bastion) {
    let mut unused: Vec<Id> = bastion.live.all().iter().map(|conn| conn.id.clone()).collect();
    loop {
        let conns = bastion.live.all();
        let now: Vec<_> = conns.into_iter().filter(|conn| !conn.is_in_use()).collect();
        for conn in now.iter().filter(|conn| unused.contains(&conn.id)) {
            conn.end(EndReason::ServerStopped, STOPPING);
        }
        unused = now.iter().map(|conn| conn.id.clone()).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Tells the guard where somebody signed in from before this start: a restart, of which there may be one
/// because of an attack, must not take their places from them.
async fn recall_known(bastion: Arc<Bastion>) {
    let now = bastion.clock.now();
    let since = now.minus(guard::KNOWN_FOR);
    match bastion.store.latest_known_sources(since, guard::MAX_SOURCES).await {
        Ok(latest) => {
            let ago =
                |at: i64| Duration::from_millis(u64::try_from(now.0 - at).unwrap_or_default());
            let networks = latest.iter().filter_map(|known| {
                known.source.parse().ok().map(|network| (network, ago(known.last_at)))
            });
            bastion.guard.recall(networks, std::time::Instant::now());
        }
        Err(error) => {
            tracing::warn!(%error, "failed to recall where somebody signed in from: until they do again, \
                                    they have no places of their own");
        }
    }
}

/// What has to be done now and then: forget old failures, shrink the guard's tables.
async fn housekeep(bastion: Arc<Bastion>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(600));
    loop {
        ticks.tick().await;
        let lock_for = bastion.settings().throttle.lock_for;
        let before = crate::domain::UnixTime(
            bastion.clock.now().0 - i64::try_from(lock_for.as_millis()).unwrap_or(i64::MAX),
        );
        if let Err(error) = bastion.store.forget_old_failures(before).await {
            tracing::warn!(%error, "failed to forget old failures");
        }
        if let Err(error) = bastion.store.forget_old_sources(bastion.clock.now()).await {
            tracing::warn!(%error, "failed to forget sources that nobody signs in from any more");
        }
        if let Err(error) = bastion.store.forget_used_codes(bastion.clock.now()).await {
            tracing::warn!(%error, "failed to forget codes that were used");
        }
        let week = crate::domain::UnixTime(bastion.clock.now().0 - 7 * 24 * 3600 * 1000);
        if let Err(error) = bastion.store.forget_old_logins(week).await {
            tracing::warn!(%error, "failed to forget logins that were remembered");
        }
        if let Err(error) = bastion.store.forget_old_certificates(before).await {
            tracing::warn!(%error, "failed to forget certificates whose time is over");
        }
        bastion.guard.prune(std::time::Instant::now());
        if let Err(error) = relay::keep::apply_retention(&bastion).await {
            tracing::error!(%error, "failed to remove old recordings");
        }
    }
}

/// `listeners`, and where those that listen everywhere are reached among `found`.
fn own_addresses(
    mut listeners: Vec<SocketAddr>,
    found: &[IpAddr],
    is_ours: impl Fn(&IpAddr) -> bool,
) -> Vec<SocketAddr> {
    let everywhere = |address: &&SocketAddr| address.ip().is_unspecified();
    let ports: Vec<u16> = listeners.iter().filter(everywhere).map(SocketAddr::port).collect();
    let ours = found.iter().map(|ip| policy::plain(*ip)).filter(is_ours);
    listeners.extend(ours.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port))));
    listeners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_of_writing_our_address_hides_it() {
        let ours: IpAddr = "10.0.0.5".parse().unwrap();
        for way in ["10.0.0.5", "::ffff:10.0.0.5", "2002:a00:5::", "64:ff9b::a00:5"] {
            let found = [way.parse().unwrap(), "10.0.0.6".parse().unwrap()];
            let listeners = vec!["0.0.0.0:22".parse().unwrap(), "192.0.2.1:23".parse().unwrap()];
            let own = own_addresses(listeners, &found, |ip| *ip == ours);
            assert_eq!(own[2..], ["10.0.0.5:22".parse().unwrap()], "{way}");
        }
    }

    #[test]
    fn the_port_to_type_is_the_configured_one_or_that_of_the_first_socket() {
        let listening = ["127.0.0.1:2022".parse().unwrap(), "[::1]:2023".parse().unwrap()];
        assert_eq!(port_to_type(0, &listening), 2022);
        assert_eq!(port_to_type(443, &listening), 443);
        assert_eq!(port_to_type(0, &[]), 22);
    }
}
