//! A channel of the `sftp` subsystem between its filter and the user.
//!
//! Always holds: answers wait for the user in their order, and what is audited is noted before the
//! answer that it comes with can be taken. The target is read all the time, since a russh client that
//! waits stops its whole connection: instead, no more is asked of the target than answers may wait
//! for the user. So whoever reads slowly is served slowly, and keeps nobody else waiting, nor what
//! they write themselves.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::server::connection::Connection;
use crate::server::forward::ChannelFlow;
use crate::sftp::{self, Action, FileEvent};

/// Bytes of answers that may be asked for, and not be with the user yet: what OpenSSH's `sftp` asks
/// for at a time.
const MOST: usize = 2 * 1024 * 1024;
/// The same while the user's connection, or account, holds so much that its windows are closed, or its
/// other channels are owed much.
const LEAST: usize = 64 * 1024;
/// Bytes that may wait for the user whatever was asked for: past it the target is not read.
const ABSURD: usize = 4 * MOST;

/// The filter, and its answers that wait for the user.
pub(super) struct Files {
    inner: Mutex<Inner>,
    /// Where the answers count that wait.
    flow: Arc<ChannelFlow>,
    /// Where those count as well that are owed.
    conn: Arc<Connection>,
    /// Something was put there.
    ready: Notify,
    /// Something was sent, or answered.
    moved: Notify,
}

struct Inner {
    filter: sftp::Filter,
    waiting: VecDeque<Bytes>,
    /// The bytes that wait, or are being sent.
    held: usize,
    /// What of them, and of those that are owed, the connection counts.
    counted: usize,
}

impl Inner {
    /// Bytes of answers that were asked for, and are not with the user yet.
    fn asked(&self) -> usize {
        self.held + self.filter.expected()
    }
}

/// What is to be done after the filter looked.
pub(super) struct Passed {
    /// For the target.
    pub(super) requests: Vec<Bytes>,
    /// What was noted.
    pub(super) events: Vec<FileEvent>,
    /// Whether the channel may go on; what was left, since it may not be asked for yet.
    pub(super) result: Result<Bytes, String>,
}

impl Files {
    pub(super) fn new(filter: sftp::Filter, flow: Arc<ChannelFlow>, conn: Arc<Connection>) -> Self {
        let inner = Inner { filter, waiting: VecDeque::new(), held: 0, counted: 0 };
        Self { inner: Mutex::new(inner), flow, conn, ready: Notify::new(), moved: Notify::new() }
    }

    /// Bytes of answers that may be asked for, and not be with the user yet.
    fn most(&self) -> usize {
        let much = self.conn.answers.load(Relaxed) > self.flow.most_asked();
        if much || self.flow.is_full() { LEAST } else { MOST }
    }

    /// Tells the connection what is asked for now, and everybody that it changed.
    fn count(&self, mut inner: MutexGuard<'_, Inner>) {
        let asked = inner.asked();
        let before = std::mem::replace(&mut inner.counted, asked);
        // The sum wraps where it shrinks.
        self.conn.answers.fetch_add(asked.wrapping_sub(before), Relaxed);
        drop(inner);
        self.moved.notify_waiters();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the filter look, which is given how many bytes may be asked for in all, and then `note` what
    /// it tells; keeps the answers for [`Files::next`].
    pub(super) fn pass(
        &self,
        look: impl FnOnce(&mut sftp::Filter, usize, &mut Vec<Action>) -> Result<Bytes, sftp::Error>,
        note: impl FnOnce(&[FileEvent]) -> Result<(), String>,
    ) -> Passed {
        let (mut actions, mut requests, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        let mut events = Vec::new();
        let most = self.most();
        let mut inner = self.inner();
        let most = most.saturating_sub(inner.held);
        let looked = look(&mut inner.filter, most, &mut actions);
        for action in actions {
            match action {
                Action::ToServer(data) => requests.push(data),
                Action::ToClient(data) => answers.push(data),
                Action::Event(event) => events.push(event),
            }
        }
        if let Err(why) = note(&events) {
            return Passed { requests: Vec::new(), events, result: Err(why) };
        }
        let held = answers.iter().map(Bytes::len).sum::<usize>();
        self.flow.take(held);
        inner.held += held;
        inner.waiting.extend(answers);
        self.count(inner);
        self.ready.notify_one();
        let result = looked
            .map_err(|error| format!("the file transfer is not SFTP as it should be: {error}"));
        Passed { requests, events, result }
    }

    /// Waits for the next answer; [`Files::done`] says that it was sent.
    pub(super) async fn next(&self) -> Bytes {
        loop {
            if let Some(next) = self.inner().waiting.pop_front() {
                return next;
            }
            self.ready.notified().await;
        }
    }

    /// Takes note that an answer of `len` bytes was sent.
    pub(super) fn done(&self, len: usize) {
        let mut inner = self.inner();
        inner.held -= len;
        self.flow.give(len);
        self.count(inner);
    }

    /// Waits until more may be asked for.
    pub(super) async fn room(&self) {
        self.until(|inner| inner.asked() < self.most()).await;
    }

    /// Waits while a target says far more than it was asked for.
    pub(super) async fn sane(&self) {
        self.until(|inner| inner.held < ABSURD).await;
    }

    /// Waits until the user was sent everything.
    pub(super) async fn told(&self) {
        self.until(|inner| inner.held == 0).await;
    }

    async fn until(&self, enough: impl Fn(&Inner) -> bool) {
        loop {
            let moved = self.moved.notified(); // From here on none is missed.
            if enough(&self.inner()) {
                return;
            }
            moved.await;
        }
    }

    /// Ends it: gives what was still going on.
    pub(super) fn finish(&self) -> Vec<FileEvent> {
        let mut actions = Vec::new();
        self.inner().filter.finish(&mut actions);
        let event = |action| match action {
            Action::Event(event) => Some(event),
            Action::ToServer(_) | Action::ToClient(_) => None,
        };
        actions.into_iter().filter_map(event).collect()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.conn.answers.fetch_sub(self.inner().counted, Relaxed);
    }
}
