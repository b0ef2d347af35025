//! How much a client may send before its target has read it.
//!
//! russh 0.65 opens a channel's window again when data *arrives*, not when it was consumed, and lets
//! a handler choose only the size of the next window, for all channels of a connection at once.
//! Waiting instead would stop the whole connection, and deadlock commands like `zcat` on the other
//! side of a bridge. So a channel over its budget is answered with windows of 2 bytes (less is never
//! asked about again): its client trickles, and each trickle asks anew.
//!
//! Always holds: a channel's queue stays within its budget and one window, or, while other channels
//! of the connection go on at full speed, within [`FlowLimits::hard`] and three windows: past that all
//! channels of the connection trickle, as they do once the connection holds half of what it may. A
//! client that ignores its window is cut off, and so is a connection whose channels hold more than
//! [`FlowLimits::connection`]: no client's word is taken for how much memory it takes. What all
//! clients hold together is in `budget`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use russh::ChannelId;

use super::budget::{Account, Budget, Holder};
use crate::domain::Id;

/// The window of a channel that must not send more.
const CLOSED: u32 = 2;
/// How long the connection waits for each trickle, so that it does not spin.
const TRICKLE: Duration = Duration::from_millis(2);

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// A channel's window while its target keeps up.
    pub window: u32,
    /// What a channel may hold before its window closes.
    pub channel: usize,
    /// What all channels of a connection may hold: their windows close at half of it, and the
    /// connection ends past it. See [`FlowLimits::most`].
    pub connection: usize,
    /// What all channels of the process may hold. See `budget`.
    pub total: usize,
}

impl FlowLimits {
    /// What a channel may hold before its neighbours are slowed as well.
    fn hard(&self) -> usize {
        self.channel.saturating_mul(16).min(self.most() / 2)
    }

    /// More than any client that keeps to its window can have sent: it may have had one when its
    /// channel became full, one more since russh is a step behind, and what is on its way to us.
    fn absurd(&self) -> usize {
        self.hard().saturating_add(3 * self.window as usize)
    }

    /// What a connection may hold: room for one full channel at least.
    fn most(&self) -> usize {
        let least = self.channel.saturating_mul(2).saturating_add(8 * self.window as usize);
        self.connection.max(least)
    }
}

/// The flow of one connection's channels.
#[derive(Debug)]
pub struct ConnectionFlow {
    holder: Arc<Holder>,
    limits: FlowLimits,
    /// Not held: the pump holds its channel's flow. russh tells nobody of a client's answer to a
    /// close of ours, and what was held for that channel would count to the connection's end.
    channels: Mutex<HashMap<ChannelId, Weak<ChannelFlow>>>,
    /// How many channels trickle: almost always none, and then nothing else is looked at.
    trickling: Arc<AtomicUsize>,
}

/// The flow of one channel: what its pump has taken in and not yet written.
#[derive(Debug)]
pub struct ChannelFlow {
    account: Arc<Account>,
    holder: Arc<Holder>,
    limits: FlowLimits,
    held: AtomicUsize,
    trickles: AtomicBool,
    trickling: Arc<AtomicUsize>,
    /// Whether it was said what the channel is for.
    begun: AtomicBool,
}

impl ConnectionFlow {
    /// The flow of a new connection.
    pub fn new(budget: Arc<Budget>, limits: FlowLimits) -> Self {
        Self::of(Holder::new(budget), limits)
    }

    fn of(holder: Arc<Holder>, limits: FlowLimits) -> Self {
        Self { holder, limits, channels: Mutex::default(), trickling: Arc::default() }
    }

    /// Takes note of the account that the connection is of, before its first channel.
    pub(in crate::server) fn belongs_to(&self, account: &Id) {
        self.holder.belongs_to(account);
    }

    /// The flow of an SSH connection inside one of this one's channels: the same client's.
    pub(in crate::server) fn inner(&self) -> Self {
        Self::of(Arc::clone(&self.holder), self.limits)
    }

    /// Waits until the connection is to be ended for what it holds.
    pub(in crate::server) async fn over(&self) {
        self.holder.over.cancelled().await;
    }

    /// Begins to count a channel.
    pub fn open(&self, channel: ChannelId) -> Arc<ChannelFlow> {
        let flow = Arc::new(ChannelFlow {
            account: self.holder.account(),
            holder: Arc::clone(&self.holder),
            limits: self.limits,
            held: AtomicUsize::new(0),
            trickles: AtomicBool::new(false),
            trickling: Arc::clone(&self.trickling),
            begun: AtomicBool::new(false),
        });
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|_, other| other.strong_count() > 0);
        channels.insert(channel, Arc::downgrade(&flow));
        flow
    }

    /// Forgets a channel.
    pub fn closed(&self, channel: ChannelId) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = channels.remove(&channel).and_then(|flow| flow.upgrade()) {
            flow.trickle(false);
        }
    }

    /// Takes note of a request that says what a session is for; false if one did before: only one
    /// per channel can succeed (RFC 4254 section 6.5).
    pub(in crate::server) fn begin(&self, channel: ChannelId) -> bool {
        self.find(channel).is_none_or(|flow| !flow.begun.swap(true, Ordering::Relaxed))
    }

    /// Whether there was such a request.
    pub(in crate::server) fn begun(&self, channel: ChannelId) -> bool {
        self.find(channel).is_some_and(|flow| flow.begun.load(Ordering::Relaxed))
    }

    fn find(&self, channel: ChannelId) -> Option<Arc<ChannelFlow>> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.get(&channel)?.upgrade()
    }

    /// The size of the next window; for `Handler::adjust_window`.
    pub fn adjust_window(&self, channel: ChannelId, _current: u32) -> u32 {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let full = is_full(&self.holder, self.limits);
        let Some(flow) = channels.get(&channel).and_then(Weak::upgrade) else {
            return self.limits.window;
        };
        let over = full || flow.held() > self.limits.channel;
        flow.trickle(over);
        // The window is the connection's: what this channel gets, a full one may take.
        let neighbour = self.trickling.load(Ordering::Relaxed) > 0
            && channels.values().filter_map(Weak::upgrade).any(|o| o.held() > self.limits.hard());
        if over || neighbour { CLOSED } else { self.limits.window }
    }

    /// How long to wait after data of `channel`; for `Handler::data`.
    pub fn trickle_delay(&self, channel: ChannelId) -> Option<Duration> {
        if self.trickling.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.get(&channel)?.upgrade()?.trickles.load(Ordering::Relaxed).then_some(TRICKLE)
    }
}

/// Whether a connection, or its account, holds so much that its windows close.
fn is_full(holder: &Holder, limits: FlowLimits) -> bool {
    holder.is_over_share() || holder.held() > limits.most() / 2
}

impl ChannelFlow {
    /// Whether its connection, or account, holds so much that the windows close.
    pub(in crate::server) fn is_full(&self) -> bool {
        is_full(&self.holder, self.limits)
    }

    /// What a connection may have on its way to a user who is served as fast as they read. Far less than
    /// it may hold: all of it may come to wait.
    pub(in crate::server) fn most_asked(&self) -> usize {
        self.limits.most() / 4
    }

    /// Counts bytes that were taken in.
    pub(in crate::server) fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let client = self.holder.take(&self.account, bytes);
        if client > self.limits.most() || self.held() > self.limits.absurd() {
            self.holder.over.cancel();
        }
    }

    /// Counts bytes that were written.
    pub(in crate::server) fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.holder.give(&self.account, bytes);
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the client sent more than its window can have let it, or is to be cut off since it
    /// holds too much.
    pub(in crate::server) fn overrun(&self) -> bool {
        self.holder.over.is_cancelled()
    }

    /// Whether more than a window waits: more than anybody sends before saying what it is for.
    pub(in crate::server) fn exceeds_window(&self) -> bool {
        self.held() > self.limits.window as usize
    }

    fn trickle(&self, on: bool) {
        if self.trickles.swap(on, Ordering::Relaxed) != on {
            if on {
                self.trickling.fetch_add(1, Ordering::Relaxed);
            } else {
                self.trickling.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// A pump that ends, however, holds nothing any more.
impl Drop for ChannelFlow {
    fn drop(&mut self) {
        self.give(self.held());
        self.trickle(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::ssh_encoding::Decode as _;

    const MIB: usize = 1 << 20;
    const LIMITS: FlowLimits =
        FlowLimits { window: 1 << 20, channel: MIB, connection: 32 * MIB, total: 64 * MIB };

    fn id(number: u8) -> ChannelId {
        ChannelId::decode(&mut &[0, 0, 0, number][..]).unwrap()
    }

    fn connection(budget: &Arc<Budget>) -> ConnectionFlow {
        ConnectionFlow::new(Arc::clone(budget), LIMITS)
    }

    #[test]
    fn a_channel_and_a_connection_that_hold_too_much_are_over() {
        let budget = Arc::new(Budget::new(LIMITS));
        let (one, other) = (connection(&budget), connection(&budget));
        let channel = one.open(id(0));
        channel.take(19 * MIB);
        assert!(!channel.overrun());
        channel.take(1);
        assert!(channel.overrun());
        // Over many channels, some of them in an inner SSH.
        let inner = other.inner();
        let channels: Vec<_> =
            (0..32).map(|n| if n % 2 == 0 { &other } else { &inner }.open(id(n))).collect();
        for channel in &channels {
            assert!(!channel.overrun());
            channel.take(MIB);
        }
        assert_eq!(other.adjust_window(id(0), 0), CLOSED);
        assert!(!channels[0].overrun());
        channels[31].take(1);
        assert!(channels[0].overrun() && channels[31].overrun());
        drop((channel, channels));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn the_largest_holder_makes_room_for_all_others() {
        let budget = Arc::new(Budget::new(LIMITS));
        let connections: Vec<_> = (0..8).map(|_| connection(&budget)).collect();
        let channels: Vec<_> = connections.iter().map(|c| c.open(id(0))).collect();
        for (channel, mib) in channels.iter().zip([8, 8, 8, 8, 8, 8, 12]) {
            channel.take(mib * MIB);
        }
        // Nobody signed in on these: each counts for itself. Who holds nothing is not slowed.
        assert_eq!(connections[6].adjust_window(id(0), 0), CLOSED);
        assert_eq!(connections[7].adjust_window(id(0), 0), LIMITS.window);
        channels[7].take(4 * MIB);
        assert!(channels.iter().all(|channel| !channel.overrun()));
        let over = || channels.iter().filter(|channel| channel.overrun()).count();
        channels[7].take(1);
        assert!(channels[6].overrun());
        // What it holds is on its way out.
        channels[7].take(MIB);
        assert_eq!(over(), 1);
    }

    #[test]
    fn a_large_window_leaves_room_for_one_channel_at_least() {
        let limits = FlowLimits { window: 16 << 20, channel: 300 * MIB, ..LIMITS };
        assert!(limits.hard() >= limits.channel && limits.absurd() < limits.most());
        assert!(LIMITS.absurd() < LIMITS.most());
    }
}
