//! What is refused on one connection, on its way to the audit log.
//!
//! Always holds: each refusal is written down or counted, and the count is written down; what one
//! connection writes is bounded, at a time and over time, so that nobody fills the log, or the line
//! for it, for everybody; a refused channel never ends its connection, however many are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use tokio::time::Instant;

use super::connection::Connection;
use crate::audit::{EndReason, Event};

/// Refusals that a connection may write down at once; and one more each second.
const WRITTEN: usize = 100;
/// Refusals of one connection that may wait to be written down.
const WAITING: usize = 16;

/// The refusals of one connection so far.
pub(super) struct Refusals {
    began: Instant,
    /// Requests that cost no channel: how many were refused.
    requests: AtomicUsize,
    written: AtomicUsize,
    waiting: AtomicUsize,
    suppressed: AtomicU64,
}

impl Default for Refusals {
    fn default() -> Self {
        let (requests, written, waiting, suppressed) = Default::default();
        Self { began: Instant::now(), requests, written, waiting, suppressed }
    }
}

impl Refusals {
    /// How many there may have been by now.
    fn allowed(&self) -> usize {
        WRITTEN + usize::try_from(self.began.elapsed().as_secs()).unwrap_or(0)
    }

    /// Counts a refused request; whether there are more than anybody asks for by mistake.
    fn is_flood(&self) -> bool {
        self.requests.fetch_add(1, SeqCst) > self.allowed()
    }

    /// Whether one more may be written down, which then waits for it; if not, it is counted.
    fn may_write(&self) -> bool {
        let below = |most| move |n: usize| (n < most).then_some(n + 1);
        let waits = self.waiting.fetch_update(SeqCst, SeqCst, below(WAITING)).is_ok();
        let written = || self.written.fetch_update(SeqCst, SeqCst, below(self.allowed())).is_ok();
        if waits && written() {
            return true;
        }
        if waits {
            self.waiting.fetch_sub(1, SeqCst);
        }
        self.suppressed.fetch_add(1, SeqCst);
        false
    }
}

impl Connection {
    /// Writes a refusal down, in the background; or counts it.
    pub(super) fn record_refusal(self: &Arc<Self>, event: Event) {
        if !self.refusals.may_write() {
            return;
        }
        let conn = Arc::clone(self);
        self.tasks.spawn(async move {
            conn.write(event).await;
            conn.refusals.waiting.fetch_sub(1, SeqCst);
        });
    }

    /// The same for a request that costs no channel, and so comes as fast as a client can send it: one
    /// that goes on is sent away.
    pub(super) fn record_refused_request(self: &Arc<Self>, event: Event) {
        if self.refusals.is_flood() {
            return self.end(EndReason::ProtocolError, "too many refused requests");
        }
        self.record_refusal(event);
    }

    /// Writes down how many refusals were only counted since this was asked last.
    pub(super) async fn write_suppressed(&self) {
        let count = self.refusals.suppressed.swap(0, SeqCst);
        if count > 0 {
            tracing::warn!(count, session = %self.id, "refusals were counted and not written down one by one");
            self.write(Event::RefusalsSuppressed { count }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_is_not_written_is_counted() {
        let refusals = Refusals::default();
        let written = |times: usize| (0..times).filter(|_| refusals.may_write()).count();
        // As many as may wait, until one of them is through.
        assert_eq!(written(2 * WAITING), WAITING);
        refusals.waiting.store(0, SeqCst);
        let mut all = WAITING;
        for _ in 0..10 {
            all += written(WAITING);
            refusals.waiting.store(0, SeqCst);
        }
        assert_eq!(all, WRITTEN);
        assert_eq!(refusals.suppressed.load(SeqCst) as usize, WAITING * 12 - WRITTEN);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(written(5), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_flood_of_requests_is_one() {
        let refusals = Refusals::default();
        assert_eq!((0..=WRITTEN).filter(|_| refusals.is_flood()).count(), 0);
        assert!(refusals.is_flood());
    }
}
