//! What was done to the files of one channel, on its way into the audit log.
//!
//! Always holds: it is written in the order in which it was noted, with the times of that; whatever
//! waits goes into one transaction; nothing that was noted is dropped unless the store fails, which
//! ends the channel. When [`Journal::close`] says so, all of it is in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::audit::{Context, Event, Note};
use crate::domain::{Id, UnixTime};
use crate::server::Bastion;
use crate::server::connection::Connection;
use crate::sftp::FileEvent;

/// Events that may wait before whoever makes them does, and the most of one transaction.
const WAITING: usize = 128;

/// A channel's journal, while the channel goes on.
pub(super) struct Journal {
    bastion: Arc<Bastion>,
    queue: mpsc::UnboundedSender<(UnixTime, FileEvent)>,
    waiting: Arc<Waiting>,
    /// True if everything was written.
    writer: JoinHandle<bool>,
}

#[derive(Default)]
struct Waiting {
    events: AtomicUsize,
    /// Told when there are fewer.
    fewer: Notify,
}

fn unwritable() -> String {
    "this session ends, since the audit log cannot be written".to_owned()
}

impl Journal {
    /// Begins one; what it writes runs on the connection's task set.
    pub(super) fn start(conn: &Connection, recording: Id) -> Self {
        let (queue, noted) = mpsc::unbounded_channel();
        let (bastion, waiting) = (Arc::clone(&conn.bastion), Arc::<Waiting>::default());
        let about = (conn.context(), recording);
        let writing = write(Arc::clone(&bastion), about, noted, Arc::clone(&waiting));
        Self { bastion, queue, waiting, writer: conn.tasks.spawn(writing) }
    }

    /// Notes an event, without waiting: whoever is cut off while waiting for [`Journal::room`] has
    /// told it.
    pub(super) fn note(&self, event: FileEvent) -> Result<(), String> {
        self.waiting.events.fetch_add(1, SeqCst);
        self.queue.send((self.bastion.clock.now(), event)).map_err(|_| unwritable())
    }

    /// Waits until few enough events wait that more may be made.
    pub(super) async fn room(&self) -> Result<(), String> {
        loop {
            let fewer = self.waiting.fewer.notified(); // From here on none is missed.
            if self.waiting.events.load(SeqCst) < WAITING {
                return Ok(());
            }
            tokio::select! {
                () = fewer => {}
                why = self.failed() => return Err(why),
            }
        }
    }

    /// Waits until the store failed; for ever if it does not.
    pub(super) async fn failed(&self) -> String {
        self.queue.closed().await;
        unwritable()
    }

    /// Waits until everything is in the store.
    pub(super) async fn close(self) -> Result<(), String> {
        drop(self.queue);
        if matches!(self.writer.await, Ok(true)) { Ok(()) } else { Err(unwritable()) }
    }
}

/// Writes what was noted, until no more can be; false if the store failed.
async fn write(
    bastion: Arc<Bastion>,
    (context, recording): (Context, Id),
    mut noted: mpsc::UnboundedReceiver<(UnixTime, FileEvent)>,
    waiting: Arc<Waiting>,
) -> bool {
    let mut group = Vec::new();
    loop {
        let taken = noted.recv_many(&mut group, WAITING).await;
        if taken == 0 {
            return true;
        }
        let noted = |(at, event)| Note { at, event: accessed(&recording, &event) };
        let notes = group.drain(..).map(noted);
        // Apart from this task's own memory, which most channels hold for nothing.
        let written = Box::pin(bastion.store.record_all(&context, notes.collect())).await;
        if let Err(error) = written {
            tracing::error!(%error, "failed to write audit events of files");
            return false;
        }
        waiting.events.fetch_sub(taken, SeqCst);
        waiting.fewer.notify_waiters();
    }
}

fn accessed(recording: &Id, event: &FileEvent) -> Event {
    Event::FileAccessed {
        recording: recording.clone(),
        operation: event.operation.to_string(),
        path: event.path.to_string(),
        to: event.second.as_ref().map(ToString::to_string),
        read: event.bytes_read,
        written: event.bytes_written,
        outcome: event.outcome.to_string(),
    }
}
