//! How much a client may send before its target has read it.
//!
//! russh 0.65 opens a channel's window again when data *arrives*, not when it was consumed, and lets
//! a handler choose only the size of the next window, for all channels of a connection at once.
//! Waiting instead would stop the whole connection, and deadlock commands like `zcat` on the other
//! side of a bridge. So a channel over its budget is answered with windows of 2 bytes (less is never
//! asked about again): its client trickles, and each trickle asks anew.
//!
//! Always holds: a channel's queue stays within its budget and one window, or, while other channels
//! of the connection go on at full speed, within [`FlowLimits::hard`] and one window: past that all
//! channels of the connection trickle. A client that ignores its window is cut off.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use russh::ChannelId;

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
    /// What all channels of the process may hold before every window closes.
    pub total: usize,
}

impl FlowLimits {
    /// What a channel may hold before its neighbours are slowed as well.
    fn hard(&self) -> usize {
        self.channel.saturating_mul(16)
    }

    /// More than any client that keeps to its window can have sent.
    fn absurd(&self) -> usize {
        self.hard().saturating_add(8 * self.window as usize).saturating_add(64 << 20)
    }
}

/// What all channels of the process hold.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// An empty budget.
    pub fn new(limits: FlowLimits) -> Self {
        Self { held: AtomicUsize::new(0), limit: limits.total }
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// The flow of one connection's channels.
#[derive(Debug)]
pub struct ConnectionFlow {
    budget: Arc<Budget>,
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
    budget: Arc<Budget>,
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
        Self { budget, limits, channels: Mutex::default(), trickling: Arc::default() }
    }

    /// Begins to count a channel.
    pub fn open(&self, channel: ChannelId) -> Arc<ChannelFlow> {
        let flow = Arc::new(ChannelFlow {
            budget: Arc::clone(&self.budget),
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
        let full = self.budget.held() > self.budget.limit;
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

impl ChannelFlow {
    /// Counts bytes that were taken in.
    pub(in crate::server) fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that were written.
    pub(in crate::server) fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the client sent more than its window can have let it.
    pub(in crate::server) fn overrun(&self) -> bool {
        self.held() > self.limits.absurd()
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
