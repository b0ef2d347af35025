//! The two threads that write all recordings, and what they know of each.
//!
//! Always holds: a file ends with a whole line; nothing is written into it past its limits; the thread
//! that writes never waits for the disk to have kept something.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::super::asciicast::Encoder;
use super::super::usage::Part;
use super::space::compare;
use super::{Failure, Limits};

/// How long lines wait in memory for more lines.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// How many bytes of lines are written at once.
const FLUSH_AT: usize = 64 * 1024;
/// How long written lines wait until the disk is asked to keep them.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Tells a recorder that its recording failed.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: PathBuf,
    pub(super) failure: watch::Sender<Option<Failure>>,
    /// The bytes that may still wait; closed when no more are taken.
    pub(super) room: Arc<Semaphore>,
}

impl Fault {
    /// The first failure stays. Whoever is told of it finds the queue closed.
    fn fail(&self, failure: Failure) {
        self.failure.send_if_modified(|first| {
            let new = first.is_none();
            if new {
                tracing::error!(error = %failure, path = %self.path.display(), "a recording failed");
                self.room.close();
                *first = Some(failure);
            }
            new
        });
    }

    pub(super) fn reason(&self) -> Failure {
        self.failure.borrow().clone().unwrap_or(Failure::Finished)
    }
}

#[derive(Debug)]
pub(super) enum Payload {
    Output(Bytes),
    Input(Bytes),
    Resize(u16, u16),
    Marker(String),
}

#[derive(Debug)]
pub(super) enum Command {
    Open(u64, Box<Track>),
    /// The permit is given back when the event is among the lines to be written.
    Event(u64, Duration, Payload, OwnedSemaphorePermit),
    Close(u64, Duration, Option<oneshot::Sender<Closed>>),
    Drain(oneshot::Sender<()>),
}

#[derive(Debug)]
pub(super) struct Closed {
    pub(super) events: u64,
    pub(super) duration: Duration,
    pub(super) part: Part,
}

#[derive(Debug)]
pub(super) enum Sync {
    Dirty(Arc<Syncing>),
    Last(Arc<Syncing>, Closed, Option<oneshot::Sender<Closed>>),
    Drain(oneshot::Sender<()>),
}

/// A file as the thread that syncs sees it.
#[derive(Debug)]
pub(super) struct Syncing {
    file: File,
    fault: Arc<Fault>,
    /// Whether it waits for its turn already.
    queued: AtomicBool,
}

/// A recording as the thread that writes sees it.
#[derive(Debug)]
pub(super) struct Track {
    shared: Arc<Syncing>,
    encoder: Encoder,
    lines: Vec<u8>,
    /// How many lines after the header are in the file.
    kept: u64,
    limits: Limits,
    /// The file's bytes.
    part: Part,
    failed: bool,
    /// Whether the file holds what the disk may not.
    dirty: bool,
    synced: Instant,
}

impl Track {
    pub(super) fn new(file: File, fault: Arc<Fault>, limits: Limits, part: Part) -> Self {
        let shared = Arc::new(Syncing { file, fault, queued: AtomicBool::new(false) });
        let (encoder, lines, synced) = (Encoder::new(), Vec::new(), Instant::now());
        let (failed, dirty) = (false, false);
        Self { shared, encoder, lines, kept: 0, limits, part, failed, dirty, synced }
    }

    fn add(&mut self, at: Duration, payload: Payload) {
        if self.failed {
            return;
        }
        match payload {
            Payload::Output(bytes) => self.encoder.output(at, &bytes, &mut self.lines),
            Payload::Input(bytes) => self.encoder.input(at, &bytes, &mut self.lines),
            Payload::Resize(columns, rows) => {
                self.encoder.resize(at, columns, rows, &mut self.lines);
            }
            Payload::Marker(label) => self.encoder.marker(at, &label, &mut self.lines),
        }
        if self.lines.len() >= FLUSH_AT {
            self.flush();
        }
    }

    /// Writes the lines that wait. They are whole, so the file always ends with a whole line,
    /// unless the disk is full: then the part of a line that it took is cut off again.
    fn flush(&mut self) {
        if self.lines.is_empty() || self.failed {
            return;
        }
        let fits = self.keep_what_fits();
        let written = write_lines(&self.shared.file, &self.lines);
        match &written {
            Ok(()) if fits.is_ok() => self.kept = self.encoder.events(),
            Ok(()) => self.kept += count_lines(&self.lines),
            Err(short) => self.kept += short.lines,
        }
        self.part.add(u64::try_from(self.lines.len()).unwrap_or(0));
        if let Err(Failure::AccountFull { max }) = fits {
            self.part.fill(max);
        }
        self.dirty = true;
        self.lines.clear();
        self.lines.shrink_to(2 * FLUSH_AT);
        let space = || {
            let stat = rustix::fs::fstatvfs(self.shared.file.as_fd()).map_err(io::Error::from)?;
            compare(&stat, self.limits.min_free_bytes)
        };
        let written = written.map_err(|short| Failure::from(short.error));
        if let Err(failure) = written.and(fits).and_then(|()| space()) {
            self.failed = true;
            self.shared.fault.fail(failure);
        }
    }

    /// Drops the lines that the file may not take any more.
    fn keep_what_fits(&mut self) -> Result<(), Failure> {
        let Limits { max_bytes, max_account_bytes, .. } = self.limits;
        let own = max_bytes.map(|max| (max, self.part.bytes(), Failure::Full { max }));
        let all = max_account_bytes
            .map(|max| (max, self.part.of_account(), Failure::AccountFull { max }));
        let room = |(max, taken, failure): (u64, u64, _)| (max.saturating_sub(taken), failure);
        let least = own.into_iter().chain(all).map(room).min_by_key(|(room, _)| *room);
        let Some((room, full)) = least else { return Ok(()) };
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let Some(fitting) = self.lines.get(..room) else { return Ok(()) };
        if room == self.lines.len() {
            return Ok(());
        }
        let whole = fitting.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.lines.truncate(whole);
        Err(full)
    }

    /// Whether the thread has to come back for this recording.
    fn waits(&self) -> bool {
        self.dirty || !self.lines.is_empty()
    }

    fn sync(&mut self, now: Instant, syncs: &mpsc::Sender<Sync>) {
        let due = now.duration_since(self.synced) >= SYNC_EVERY;
        if self.dirty && due && !self.shared.queued.swap(true, Ordering::SeqCst) {
            (self.dirty, self.synced) = (false, now);
            send_sync(syncs, Sync::Dirty(Arc::clone(&self.shared)));
        }
    }

    fn close(
        mut self,
        at: Duration,
        reply: Option<oneshot::Sender<Closed>>,
        syncs: &mpsc::Sender<Sync>,
    ) {
        if !self.failed {
            self.encoder.finish(at, &mut self.lines);
        }
        self.flush();
        let closed = Closed { events: self.kept, duration: at, part: self.part };
        send_sync(syncs, Sync::Last(self.shared, closed, reply));
    }
}

/// Not all lines could be written, but so many.
#[derive(Debug)]
pub(super) struct Short {
    pub(super) lines: u64,
    pub(super) error: io::Error,
}

pub(super) fn write_lines(mut file: &File, lines: &[u8]) -> Result<(), Short> {
    let mut rest = lines;
    let error = loop {
        if rest.is_empty() {
            return Ok(());
        }
        match file.write(rest) {
            Ok(0) => break io::ErrorKind::WriteZero.into(),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break error,
        }
    };
    let done = lines.get(..lines.len() - rest.len()).unwrap_or_default();
    let whole = done.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    cut_off(file, done.len() - whole);
    Err(Short { lines: count_lines(done), error })
}

fn count_lines(lines: &[u8]) -> u64 {
    u64::try_from(lines.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(0)
}

/// Takes `bytes` off the file's end. Readers cope with what cannot be taken off.
pub(super) fn cut_off(file: &File, bytes: usize) {
    let cut = u64::try_from(bytes).unwrap_or(0);
    if cut == 0 {
        return;
    }
    let result = file.metadata().and_then(|meta| file.set_len(meta.len().saturating_sub(cut)));
    if let Err(error) = result {
        tracing::debug!(%error, "a part of a line stays at a recording's end");
    }
}

/// The thread that writes. It sleeps while no recording has lines that wait.
pub(super) fn write_all(queue: &mpsc::Receiver<Command>, syncs: &mpsc::Sender<Sync>) {
    let mut tracks: HashMap<u64, Track> = HashMap::new();
    let (mut flushed, mut waiting) = (Instant::now(), false);
    loop {
        let command = if waiting {
            match queue.recv_timeout(FLUSH_EVERY.saturating_sub(flushed.elapsed())) {
                Ok(command) => Some(command),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        } else {
            let Ok(command) = queue.recv() else { break };
            Some(command)
        };
        match command {
            Some(Command::Open(key, track)) => _ = tracks.insert(key, *track),
            Some(Command::Event(key, at, payload, permit)) => {
                waiting = true;
                if let Some(track) = tracks.get_mut(&key) {
                    track.add(at, payload);
                }
                drop(permit);
            }
            Some(Command::Close(key, at, reply)) => {
                if let Some(track) = tracks.remove(&key) {
                    track.close(at, reply, syncs);
                }
            }
            Some(Command::Drain(reply)) => {
                flush_all(&mut tracks);
                for track in tracks.values_mut().filter(|track| track.dirty) {
                    track.dirty = false;
                    send_sync(syncs, Sync::Dirty(Arc::clone(&track.shared)));
                }
                send_sync(syncs, Sync::Drain(reply));
            }
            None => {}
        }
        if flushed.elapsed() >= FLUSH_EVERY {
            flushed = Instant::now();
            flush_all(&mut tracks);
            tracks.values_mut().for_each(|track| track.sync(flushed, syncs));
            waiting = tracks.values().any(Track::waits);
        }
    }
}

fn flush_all(tracks: &mut HashMap<u64, Track>) {
    tracks.values_mut().for_each(Track::flush);
}

fn send_sync(syncs: &mpsc::Sender<Sync>, sync: Sync) {
    if syncs.send(sync).is_err() {
        tracing::error!("the thread that syncs recordings is gone");
    }
}

/// The thread that syncs: apart from the one that writes, so that a slow disk holds up no lines.
pub(super) fn sync_all(queue: &mpsc::Receiver<Sync>) {
    while let Ok(sync) = queue.recv() {
        match sync {
            Sync::Dirty(shared) => shared.sync(),
            Sync::Last(shared, closed, reply) => {
                shared.sync();
                drop(shared);
                if let Some(reply) = reply {
                    // Whoever asked may have gone; the file is on the disk all the same.
                    if reply.send(closed).is_err() {
                        tracing::debug!("nobody waits for a finished recording");
                    }
                }
            }
            Sync::Drain(reply) => reply.send(()).unwrap_or_default(),
        }
    }
}

impl Syncing {
    fn sync(&self) {
        // Before the disk is asked: what is written from now on needs to be asked for again.
        self.queued.store(false, Ordering::SeqCst);
        match rustix::fs::fdatasync(self.file.as_fd()) {
            // Not a file of a disk: a pipe or a device.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => self.fault.fail(io::Error::from(error).into()),
        }
    }
}
