//! A channel of the `sftp` subsystem between its filter and the user.
//!
//! Always holds: answers wait for the user in their order, and what is audited is noted before the
//! answer that it comes with can be taken; the two directions share the filter and nothing else, so
//! that neither waits for the other's peer, and wait only while more than [`ROOM`] waits for the
//! user.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::sftp::{self, Action, FileEvent};

/// Bytes that may wait for the user before the two directions wait, too.
const ROOM: usize = 64 * 1024;

/// The filter, and its answers that wait for the user.
pub(super) struct Files {
    inner: Mutex<Inner>,
    /// Something was put there.
    ready: Notify,
    /// Something was sent.
    sent: Notify,
}

struct Inner {
    filter: sftp::Filter,
    waiting: VecDeque<Bytes>,
    /// The bytes that wait, or are being sent.
    held: usize,
}

/// What is to be done after the filter looked.
pub(super) struct Passed {
    /// For the target.
    pub(super) requests: Vec<Bytes>,
    /// What was noted.
    pub(super) events: Vec<FileEvent>,
    /// Whether the channel may go on.
    pub(super) result: Result<(), String>,
}

impl Files {
    pub(super) fn new(filter: sftp::Filter) -> Self {
        let inner = Inner { filter, waiting: VecDeque::new(), held: 0 };
        Self { inner: Mutex::new(inner), ready: Notify::new(), sent: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the filter look, and then `note` what it tells; keeps the answers for [`Files::next`].
    pub(super) fn pass(
        &self,
        look: impl FnOnce(&mut sftp::Filter, &mut Vec<Action>) -> Result<(), sftp::Error>,
        note: impl FnOnce(&[FileEvent]) -> Result<(), String>,
    ) -> Passed {
        let (mut actions, mut requests, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        let mut events = Vec::new();
        let mut inner = self.inner();
        let looked = look(&mut inner.filter, &mut actions);
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
        inner.held += answers.iter().map(Bytes::len).sum::<usize>();
        inner.waiting.extend(answers);
        drop(inner);
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
        self.inner().held -= len;
        self.sent.notify_waiters();
    }

    /// Waits until there is room for more.
    pub(super) async fn room(&self) {
        self.until(|held| held <= ROOM).await;
    }

    /// Waits until the user was sent everything.
    pub(super) async fn told(&self) {
        self.until(|held| held == 0).await;
    }

    async fn until(&self, enough: impl Fn(usize) -> bool) {
        loop {
            let sent = self.sent.notified(); // From here on none is missed.
            if enough(self.inner().held) {
                return;
            }
            sent.await;
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
