//! Writes recordings as they happen: sessions hand over what passed, one thread per process puts
//! it into files, another one sees to it that it reaches the disk.
//!
//! Always holds: what a session handed over is in its file within a second, and is then asked onto
//! the disk at most once a second; what waits in memory is bounded for each session by its own
//! limit, so a slow disk slows who feeds it and costs nobody else memory; once a recording failed,
//! every further call says so. Nothing here blocks an asynchronous task.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot, watch};

use super::asciicast::{Encoder, Header};
use super::seal::{self, Sealed};
use super::usage::{Part, Usage};
use crate::domain::{Id, UnixTime};

/// How long lines wait in memory for more lines.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// How many bytes of lines are written at once.
const FLUSH_AT: usize = 64 * 1024;
/// How long written lines wait until the disk is asked to keep them.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// What an event costs beside its bytes.
const OVERHEAD: usize = 128;
/// The smallest queue, in bytes.
const LEAST_QUEUE: u32 = 1024;
/// How many finished recordings are compressed at a time.
const COMPRESSED_AT_ONCE: usize = 2;

/// What a recording may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may wait to be written before the session that feeds them has to wait.
    pub queue_bytes: usize,
    /// Bytes that must stay free where recordings are kept.
    pub min_free_bytes: u64,
    /// Bytes that its file may have before it is compressed, if not any number.
    pub max_bytes: Option<u64>,
    /// Bytes that all files of its account may have that are being written, if not any number.
    pub max_account_bytes: Option<u64>,
}

/// Why a recording ended before its session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The file could not be written.
    #[error("the recording cannot be written: {0}")]
    Io(Arc<io::Error>),
    /// Less is free than has to stay free.
    #[error("only {free} bytes are free for recordings, and {min} have to stay free")]
    LowSpace {
        /// What is free.
        free: u64,
        /// What has to be.
        min: u64,
    },
    /// The file is as large as it may be.
    #[error("the recording takes {max} bytes, as much as one may")]
    Full {
        /// What it may take.
        max: u64,
    },
    /// The files of the account that are being written are as large as they may be together.
    #[error(
        "the account's recordings that are being written take {max} bytes, as much as they may"
    )]
    AccountFull {
        /// What they may take.
        max: u64,
    },
    /// The recording was finished already.
    #[error("the recording is finished")]
    Finished,
    /// The thread that writes is gone.
    #[error("nothing writes recordings any more")]
    WriterGone,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// A recording that was written to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The file: `.cast.zst`, or `.cast` where compressing failed.
    pub path: PathBuf,
    /// The file's size.
    pub bytes: u64,
    /// How many events it holds.
    pub events: u64,
    /// From the beginning to the end; of an interrupted recording, to its last event.
    pub duration: Duration,
    /// The file's SHA-256, in hex.
    pub sha256: String,
    /// Why the recording is not whole, if it is not.
    pub failure: Option<Failure>,
}

/// The threads that write all recordings of this process. Clones share them; they end, all
/// written, with the last clone and the last [`Recorder`].
#[derive(Debug, Clone)]
pub struct Writer {
    commands: mpsc::Sender<Command>,
    next: Arc<AtomicU64>,
    compressing: Arc<Semaphore>,
    usage: Usage,
}

impl Writer {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start() -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let (syncs, to_sync) = mpsc::channel();
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("recording-write").spawn(move || write_all(&queue, &syncs))?;
        thread("recording-sync").spawn(move || sync_all(&to_sync))?;
        let compressing = Arc::new(Semaphore::new(COMPRESSED_AT_ONCE));
        Ok(Self { commands, next: Arc::default(), compressing, usage: Usage::default() })
    }

    /// Waits until everything that was handed over before is in its file and asked onto the disk,
    /// dropped recordings too.
    pub async fn drain(&self) {
        let (reply, drained) = oneshot::channel();
        if self.commands.send(Command::Drain(reply)).is_ok() {
            // A thread that is gone has nothing left to write.
            drained.await.unwrap_or_default();
        }
    }
}

/// Writes one recording. May be shared; dropping it closes the file as it is, soon after.
#[derive(Debug)]
pub struct Recorder {
    writer: Writer,
    key: u64,
    path: PathBuf,
    began: tokio::time::Instant,
    queue: u32,
    fault: Arc<Fault>,
    finished: AtomicBool,
}

impl Recorder {
    /// Begins `<folder>/<yyyy-mm-dd>/<id>.cast`, the day taken from the header's timestamp, for
    /// the owner's eyes only, and counts it for `account`. The header is on the disk when this returns.
    ///
    /// # Errors
    /// When the file exists or cannot be made, or too little space is free, on the disk or for the
    /// account.
    pub async fn create(
        writer: &Writer,
        folder: &Path,
        (id, account): (&Id, &Id),
        header: &Header,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let path = path_of(folder, id, header);
        let part = writer.usage.begin(account);
        if let Some(max) = limits.max_account_bytes.filter(|max| part.of_account() >= *max) {
            return Err(Failure::AccountFull { max });
        }
        let (line, file_path, folder) = (header.to_line(), path.clone(), folder.to_owned());
        let made = tokio::task::spawn_blocking(move || {
            enough_space(&folder, limits.min_free_bytes)?;
            let mut file = create_file(&folder, &file_path)?;
            file.write_all(&line)?;
            file.sync_all()?;
            seal::sync_folder_of(&file_path)?;
            Ok::<_, Failure>(file)
        });
        let file = made.await.map_err(io::Error::other)??;
        Self::on_file(writer, (file, path), part, limits)
    }

    /// A recorder for `file`, whose header is written.
    fn on_file(
        writer: &Writer,
        (file, path): (File, PathBuf),
        mut part: Part,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let queue = u32::try_from(limits.queue_bytes).unwrap_or(most).clamp(LEAST_QUEUE, most);
        let room = usize::try_from(queue).unwrap_or(Semaphore::MAX_PERMITS);
        let fault = Arc::new(Fault {
            path: path.clone(),
            failure: watch::Sender::new(None),
            room: Arc::new(Semaphore::new(room)),
        });
        let key = writer.next.fetch_add(1, Ordering::Relaxed);
        part.add(file.metadata()?.len());
        let track = Track::new(file, Arc::clone(&fault), limits, part);
        let open = Command::Open(key, Box::new(track));
        writer.commands.send(open).map_err(|_| Failure::WriterGone)?;
        let began = tokio::time::Instant::now();
        let finished = AtomicBool::new(false);
        Ok(Self { writer: writer.clone(), key, path, began, queue, fault, finished })
    }

    /// The file while it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records what the terminal is sent. Keeps the bytes until they are written, with the buffer
    /// they are a slice of; waits only while the queue is full.
    ///
    /// # Errors
    /// Once the recording failed or was finished.
    pub async fn output(&self, bytes: Bytes) -> Result<(), Failure> {
        self.stream(bytes, Payload::Output).await
    }

    /// Records what the user types; see [`Self::output`].
    ///
    /// # Errors
    /// Once the recording failed or was finished.
    pub async fn input(&self, bytes: Bytes) -> Result<(), Failure> {
        self.stream(bytes, Payload::Input).await
    }

    /// Records a new size of the terminal.
    ///
    /// # Errors
    /// Once the recording failed or was finished.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        self.push(self.began.elapsed(), Payload::Resize(columns, rows), 0).await
    }

    /// Records a place of note.
    ///
    /// # Errors
    /// Once the recording failed or was finished.
    pub async fn marker(&self, label: impl Into<String>) -> Result<(), Failure> {
        let label = label.into();
        let size = label.len();
        self.push(self.began.elapsed(), Payload::Marker(label), size).await
    }

    /// Waits until the recording fails; for ever if it does not.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.fault.failure.subscribe();
        match failure.wait_for(Option::is_some).await.map(|f| f.clone()) {
            Ok(Some(failure)) => failure,
            // Neither comes: the sender lives in `self`, and what is waited for is there.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends the recording: writes what is left onto the disk, compresses the file and hashes it.
    ///
    /// # Errors
    /// When the recording was finished before, or its file cannot even be read.
    pub async fn finish(&self) -> Result<Finished, Failure> {
        let (reply, closed) = oneshot::channel();
        self.close(Some(reply))?;
        let closed = closed.await.map_err(|_| Failure::WriterGone)?;
        let sealed = self.writer.seal(self.path.clone()).await?;
        let Sealed { path, bytes, sha256 } = sealed;
        let failure = self.fault.failure.borrow().clone();
        let Closed { events, duration, part } = closed;
        drop(part); // From here on the file is only as large as it is compressed.
        Ok(Finished { path, bytes, events, duration, sha256, failure })
    }

    fn close(&self, reply: Option<oneshot::Sender<Closed>>) -> Result<(), Failure> {
        if self.finished.swap(true, Ordering::SeqCst) {
            return Err(Failure::Finished);
        }
        self.fault.room.close();
        let close = Command::Close(self.key, self.began.elapsed(), reply);
        self.writer.commands.send(close).map_err(|_| Failure::WriterGone)
    }

    /// Hands bytes over in pieces of at most half the queue, so that writing and feeding overlap.
    async fn stream(&self, bytes: Bytes, wrap: fn(Bytes) -> Payload) -> Result<(), Failure> {
        let at = self.began.elapsed();
        let most = usize::try_from(self.queue / 2).unwrap_or(usize::MAX).max(1);
        let mut rest = bytes;
        while rest.len() > most {
            let piece = rest.split_to(most);
            self.push(at, wrap(piece), most).await?;
        }
        let size = rest.len();
        if size == 0 { Ok(()) } else { self.push(at, wrap(rest), size).await }
    }

    async fn push(&self, at: Duration, payload: Payload, size: usize) -> Result<(), Failure> {
        let cost = u32::try_from(size.saturating_add(OVERHEAD)).unwrap_or(u32::MAX).min(self.queue);
        let room = &self.fault.room;
        let permit = match Arc::clone(room).try_acquire_many_owned(cost) {
            Err(TryAcquireError::NoPermits) => Arc::clone(room).acquire_many_owned(cost).await.ok(),
            result => result.ok(),
        };
        let permit = permit.ok_or_else(|| self.fault.reason())?;
        let event = Command::Event(self.key, at, payload, permit);
        self.writer.commands.send(event).map_err(|_| Failure::WriterGone)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Sends, and waits for nothing. It fails only when the recording is closed already.
        self.close(None).unwrap_or_default();
    }
}

/// Ends a recording that a crash left: cuts off the last line if it is not whole, compresses the
/// file and hashes it. Does so too for one that the crash met while it was compressed.
///
/// # Errors
/// When the file is not there or cannot be read.
pub async fn close_interrupted(writer: &Writer, path: &Path) -> Result<Finished, Failure> {
    let plain = path.to_owned();
    let mended = tokio::task::spawn_blocking(move || seal::mend(&plain));
    let mended = mended.await.map_err(io::Error::other)??;
    let Sealed { path, bytes, sha256 } = writer.seal(path.to_owned()).await?;
    let (events, duration) = (mended.events, mended.duration);
    Ok(Finished { path, bytes, events, duration, sha256, failure: None })
}

/// Whether at least `min` bytes are free where `folder` is, or will be once it is made.
///
/// # Errors
/// When that cannot be found out.
pub fn free_space_ok(folder: &Path, min: u64) -> io::Result<bool> {
    match enough_space(folder, min) {
        Ok(()) => Ok(true),
        Err(Failure::Io(error)) => Err(io::Error::new(error.kind(), error)),
        Err(_) => Ok(false),
    }
}

fn enough_space(folder: &Path, min: u64) -> Result<(), Failure> {
    let there = folder.ancestors().find(|f| f.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(there).map_err(io::Error::from)?;
    compare(&stat, min)
}

fn compare(stat: &rustix::fs::StatVfs, min: u64) -> Result<(), Failure> {
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < min { Err(Failure::LowSpace { free, min }) } else { Ok(()) }
}

/// `<folder>/<yyyy-mm-dd>/<id>.cast`.
fn path_of(folder: &Path, id: &Id, header: &Header) -> PathBuf {
    let ms = header.timestamp.unwrap_or(0).saturating_mul(1000);
    let day = UnixTime(ms).to_string();
    let day = day.split_once('T').map_or("undated", |(day, _)| day);
    folder.join(day).join(format!("{id}.cast"))
}

/// Makes a new file, and the folders above it up to `folder`, for their owner alone.
fn create_file(folder: &Path, path: &Path) -> io::Result<File> {
    let day = path.parent().unwrap_or(folder);
    let make = || {
        if !day.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(day)?;
            seal::sync_folder_of(day)?;
            seal::sync_folder_of(folder)?;
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    };
    match make() {
        // The day's folder was empty, and was removed as such in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(),
        made => made,
    }
}

impl Writer {
    /// Compresses and hashes a recording that nothing writes any more, a few at a time.
    async fn seal(&self, path: PathBuf) -> Result<Sealed, Failure> {
        let place = Arc::clone(&self.compressing).acquire_owned().await.ok();
        let sealing = tokio::task::spawn_blocking(move || {
            let _place = place;
            seal::seal(&path)
        });
        Ok(sealing.await.map_err(io::Error::other)??)
    }
}

/// Tells a recorder that its recording failed.
#[derive(Debug)]
struct Fault {
    path: PathBuf,
    failure: watch::Sender<Option<Failure>>,
    /// The bytes that may still wait; closed when no more are taken.
    room: Arc<Semaphore>,
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

    fn reason(&self) -> Failure {
        self.failure.borrow().clone().unwrap_or(Failure::Finished)
    }
}

#[derive(Debug)]
enum Payload {
    Output(Bytes),
    Input(Bytes),
    Resize(u16, u16),
    Marker(String),
}

#[derive(Debug)]
enum Command {
    Open(u64, Box<Track>),
    /// The permit is given back when the event is among the lines to be written.
    Event(u64, Duration, Payload, OwnedSemaphorePermit),
    Close(u64, Duration, Option<oneshot::Sender<Closed>>),
    Drain(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Closed {
    events: u64,
    duration: Duration,
    part: Part,
}

#[derive(Debug)]
enum Sync {
    Dirty(Arc<Syncing>),
    Last(Arc<Syncing>, Closed, Option<oneshot::Sender<Closed>>),
    Drain(oneshot::Sender<()>),
}

/// A file as the thread that syncs sees it.
#[derive(Debug)]
struct Syncing {
    file: File,
    fault: Arc<Fault>,
    /// Whether it waits for its turn already.
    queued: AtomicBool,
}

/// A recording as the thread that writes sees it.
#[derive(Debug)]
struct Track {
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
    fn new(file: File, fault: Arc<Fault>, limits: Limits, part: Part) -> Self {
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
struct Short {
    lines: u64,
    error: io::Error,
}

fn write_lines(mut file: &File, lines: &[u8]) -> Result<(), Short> {
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
fn cut_off(file: &File, bytes: usize) {
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
fn write_all(queue: &mpsc::Receiver<Command>, syncs: &mpsc::Sender<Sync>) {
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
fn sync_all(queue: &mpsc::Receiver<Sync>) {
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::asciicast::tests::{header, outputs};
    use super::super::asciicast::{Event, Kind, Reader};
    use super::*;

    const LIMITS: Limits = Limits {
        queue_bytes: 64 * 1024,
        min_free_bytes: 1,
        max_bytes: None,
        max_account_bytes: None,
    };

    struct Place {
        folder: tempfile::TempDir,
        writer: Writer,
        id: Id,
        account: Id,
    }

    impl Place {
        fn new() -> Self {
            let (folder, writer) = (tempfile::tempdir().unwrap(), Writer::start().unwrap());
            let [id, account] = [(); 2].map(|()| Id::random().unwrap());
            Self { folder, writer, id, account }
        }

        /// Another recording, of `account`.
        async fn another(&self, account: &Id, limits: Limits) -> Result<Recorder, Failure> {
            let (folder, id) = (self.folder.path().join("recordings"), Id::random().unwrap());
            Recorder::create(&self.writer, &folder, (&id, account), &header(), limits).await
        }

        async fn create(&self, limits: Limits) -> Result<Recorder, Failure> {
            let folder = self.folder.path().join("recordings");
            let ids = (&self.id, &self.account);
            Recorder::create(&self.writer, &folder, ids, &header(), limits).await
        }

        /// A recorder whose file is something else.
        fn on(&self, file: impl Into<std::os::fd::OwnedFd>, limits: Limits) -> Recorder {
            let path = self.folder.path().join("elsewhere.cast");
            let part = self.writer.usage.begin(&self.account);
            Recorder::on_file(&self.writer, (File::from(file.into()), path), part, limits).unwrap()
        }
    }

    fn events(path: &Path) -> Vec<Event> {
        Reader::open(path).unwrap().map(Result::unwrap).collect()
    }

    fn kinds(path: &Path) -> Vec<Kind> {
        events(path).into_iter().map(|event| event.kind).collect()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_session_is_written_compressed_and_hashed() {
        let place = Place::new();
        let recorder = place.create(LIMITS).await.unwrap();
        let plain = recorder.path().to_owned();
        let day = place.folder.path().join("recordings/2026-11-24");
        assert_eq!(plain, day.join(format!("{}.cast", place.id)));
        assert_eq!(std::fs::read(&plain).unwrap(), header().to_line());
        for folder in [place.folder.path().join("recordings"), day.clone()] {
            assert_eq!(mode(&folder), 0o700);
        }
        recorder.output(Bytes::from_static(b"gr\xc3")).await.unwrap();
        recorder.output(Bytes::from_static(b"\xb6\xc3")).await.unwrap();
        recorder.input(Bytes::from_static(b"ls\r")).await.unwrap();
        recorder.resize(132, 43).await.unwrap();
        recorder.marker("scp").await.unwrap();
        recorder.output(Bytes::new()).await.unwrap();
        place.writer.drain().await;
        assert_eq!(kinds(&plain).len(), 5);

        let finished = recorder.finish().await.unwrap();
        assert_eq!(finished.path, day.join(format!("{}.cast.zst", place.id)));
        assert_eq!(mode(&finished.path), 0o600);
        assert_eq!(finished.bytes, std::fs::metadata(&finished.path).unwrap().len());
        assert!(finished.failure.is_none() && !plain.exists());
        let kinds = kinds(&finished.path);
        assert_eq!(finished.events, u64::try_from(kinds.len()).unwrap());
        let expected = [
            Kind::Output("gr".into()),
            Kind::Output("\u{f6}".into()),
            Kind::Input("ls\r".into()),
            Kind::Resize { columns: 132, rows: 43 },
            Kind::Marker("scp".into()),
            Kind::Output("\u{fffd}".into()),
        ];
        assert_eq!(kinds, expected);
        assert!(matches!(recorder.output("x".into()).await, Err(Failure::Finished)));
        assert!(matches!(recorder.finish().await, Err(Failure::Finished)));
    }

    #[tokio::test(start_paused = true)]
    async fn events_carry_the_time_since_the_beginning() {
        let place = Place::new();
        let recorder = place.create(LIMITS).await.unwrap();
        let began = tokio::time::Instant::now();
        tokio::time::advance(Duration::from_micros(1_234_567)).await;
        recorder.output("a".into()).await.unwrap();
        let at = began.elapsed();
        place.writer.drain().await;
        let time = events(recorder.path())[0].time;
        assert!(time >= at && time < at + Duration::from_secs(60), "{time:?}");
        assert!(recorder.finish().await.unwrap().duration >= time);
    }

    #[tokio::test]
    async fn an_existing_recording_is_never_overwritten() {
        let place = Place::new();
        let _first = place.create(LIMITS).await.unwrap();
        let Err(Failure::Io(error)) = place.create(LIMITS).await else { panic!("overwritten") };
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn what_was_handed_over_is_in_the_file_within_a_second() {
        let place = Place::new();
        let recorder = place.create(LIMITS).await.unwrap();
        let handed_over = Instant::now();
        recorder.output("$ ".into()).await.unwrap();
        // Nothing tells when a file grows, so it is looked at again and again.
        while kinds(recorder.path()).is_empty() {
            assert!(handed_over.elapsed() < Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_dropped_recorder_is_written_all_the_same() {
        let place = Place::new();
        let recorder = place.create(LIMITS).await.unwrap();
        let path = recorder.path().to_owned();
        recorder.output("abandoned".into()).await.unwrap();
        drop(recorder);
        place.writer.drain().await;
        assert_eq!(kinds(&path), [Kind::Output("abandoned".into())]);

        let finished = close_interrupted(&place.writer, &path).await.unwrap();
        assert_eq!(finished.events, 1);
        assert_eq!(kinds(&finished.path), [Kind::Output("abandoned".into())]);
        // And once more, as if a crash came before the result was noted.
        let again = close_interrupted(&place.writer, &path).await.unwrap();
        assert_eq!((again.sha256, again.events), (finished.sha256, 1));
    }

    #[tokio::test]
    async fn a_recording_that_a_crash_cut_off_is_closed() {
        let place = Place::new();
        let path = place.folder.path().join("x.cast");
        let cast = outputs(&[(0, "one"), (2500, "two"), (3000, "three")]);
        std::fs::write(&path, &cast[..cast.len() - 5]).unwrap();
        let finished = close_interrupted(&place.writer, &path).await.unwrap();
        assert_eq!(finished.events, 2);
        assert_eq!(finished.duration, Duration::from_millis(2500));
        assert_eq!(kinds(&finished.path).len(), 2);
        let missing = place.folder.path().join("never.cast");
        assert!(close_interrupted(&place.writer, &missing).await.is_err());
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_recording_and_says_so() {
        let place = Place::new();
        // The kernel's own full disk: every write fails with ENOSPC.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let recorder = place.on(full, Limits { min_free_bytes: 0, ..LIMITS });
        recorder.output("lost".into()).await.unwrap();
        let Failure::Io(error) = recorder.failed().await else { panic!("not an I/O error") };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(matches!(recorder.output("x".into()).await, Err(Failure::Io(_))));
        assert!(matches!(recorder.marker("x").await, Err(Failure::Io(_))));
    }

    #[tokio::test]
    async fn a_failed_recording_is_finished_with_what_was_written() {
        let place = Place::new();
        let first = place.create(LIMITS).await.unwrap();
        let path = first.path().to_owned();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        drop(first);
        // Less is free than the limit asks for: what was written stays, and no more comes.
        let limits = Limits { min_free_bytes: u64::MAX, ..LIMITS };
        let part = place.writer.usage.begin(&place.account);
        let recorder = Recorder::on_file(&place.writer, (file, path), part, limits).unwrap();
        recorder.output("the last that was kept".into()).await.unwrap();
        assert!(matches!(recorder.failed().await, Failure::LowSpace { .. }));
        assert!(matches!(recorder.output("x".into()).await, Err(Failure::LowSpace { .. })));
        let finished = recorder.finish().await.unwrap();
        assert!(matches!(finished.failure, Some(Failure::LowSpace { .. })));
        assert_eq!(kinds(&finished.path), [Kind::Output("the last that was kept".into())]);
    }

    #[tokio::test]
    async fn recordings_of_one_account_share_what_they_may_take_while_they_are_written() {
        let place = Place::new();
        let limits = Limits { max_bytes: Some(3000), max_account_bytes: Some(4096), ..LIMITS };
        let one = place.create(limits).await.unwrap();
        let two = place.another(&place.account, limits).await.unwrap();
        let feed = async |recorder: &Recorder| {
            while recorder.output("a line of some length".into()).await.is_ok() {
                place.writer.drain().await;
            }
            (recorder.failed().await, std::fs::metadata(recorder.path()).unwrap().len())
        };
        let (failure, first) = feed(&one).await;
        assert!(matches!(failure, Failure::Full { max: 3000 }), "{failure}");
        let (failure, second) = feed(&two).await;
        assert!(matches!(failure, Failure::AccountFull { max: 4096 }), "{failure}");
        assert!(first + second <= 4096 && first + second > 4000, "{first} {second}");
        // Somebody else's has its room; this account's does not begin, until one is finished.
        let refused = place.another(&place.account, limits).await.map(|_| ());
        assert!(matches!(refused, Err(Failure::AccountFull { max: 4096 })), "{refused:?}");
        let other = place.another(&Id::random().unwrap(), limits).await.unwrap();
        other.output("x".into()).await.unwrap();
        let finished = one.finish().await.unwrap();
        assert!(matches!(finished.failure, Some(Failure::Full { .. })));
        let next = place.another(&place.account, limits).await.unwrap();
        next.output("x".into()).await.unwrap();
        place.writer.drain().await;
        assert_eq!(kinds(next.path()), [Kind::Output("x".into())]);
    }

    #[tokio::test]
    async fn a_recording_that_is_full_keeps_whole_lines_and_no_more() {
        let place = Place::new();
        let max = 4096;
        let recorder = place.create(Limits { max_bytes: Some(max), ..LIMITS }).await.unwrap();
        let mut said = 0;
        while recorder.output(format!("line {said}").into()).await.is_ok() {
            said += 1;
            place.writer.drain().await;
        }
        assert!(matches!(recorder.failed().await, Failure::Full { max: 4096 }));
        let size = std::fs::metadata(recorder.path()).unwrap().len();
        assert!(size <= max && size > max - 64, "{size}");
        let finished = recorder.finish().await.unwrap();
        assert!(matches!(finished.failure, Some(Failure::Full { .. })));
        let kinds = kinds(&finished.path);
        assert_eq!(finished.events, u64::try_from(kinds.len()).unwrap());
        assert_eq!(kinds.len() + 1, said, "the last one did not fit");
        for (n, kind) in kinds.iter().enumerate() {
            assert_eq!(*kind, Kind::Output(format!("line {n}")));
        }
    }

    #[tokio::test]
    async fn too_little_free_space_refuses_a_recording() {
        let place = Place::new();
        let result = place.create(Limits { min_free_bytes: u64::MAX, ..LIMITS }).await;
        assert!(matches!(result, Err(Failure::LowSpace { .. })));
        assert!(!place.folder.path().join("recordings").exists());
        let not_made_yet = place.folder.path().join("a/b");
        assert!(free_space_ok(&not_made_yet, 1).unwrap());
        assert!(!free_space_ok(&not_made_yet, u64::MAX).unwrap());
    }

    #[test]
    fn part_of_a_line_that_a_full_disk_took_is_cut_off_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.cast");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{}\n[1,\"o\",\"a\"]\n[2,\"o").unwrap();
        cut_off(&file, 5);
        assert_eq!(std::fs::read(&path).unwrap(), b"{}\n[1,\"o\",\"a\"]\n");
    }

    #[test]
    fn lines_that_were_not_written_are_not_counted() {
        // A pipe that nobody reads takes 64 KiB and then, when told not to wait, fails.
        let (_reader, file) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(file));
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK).unwrap();
        let short = write_lines(&file, &b"[1,\"o\",\"a\"]\n".repeat(10_000)).unwrap_err();
        assert_eq!(short.error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(short.lines, 64 * 1024 / 12);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_slows_its_session_and_bounds_what_waits() {
        let place = Place::new();
        let (mut disk, file) = io::pipe().unwrap();
        let limits = Limits { queue_bytes: 16 * 1024, min_free_bytes: 0, ..LIMITS };
        let recorder = Arc::new(place.on(file, limits));
        let fed = Arc::new(AtomicU64::new(0));
        let (feeding, counted) = (Arc::clone(&recorder), Arc::clone(&fed));
        let mut tasks = tokio::task::JoinSet::new();
        let total = 2 * 1024 * 1024_u64;
        tasks.spawn(async move {
            for _ in 0..total / 1024 {
                feeding.output(vec![b'x'; 1024].into()).await.unwrap();
                counted.fetch_add(1024, Ordering::SeqCst);
            }
            feeding.finish().await.unwrap_err(); // Its path names no file.
        });
        // The pipe's own 64 KiB, the lines that are collected, a line's frame, and the queue.
        let bound = 2 * 64 * 1024 + 16 * 1024 + 8 * 1024;
        let read = tokio::task::spawn_blocking(move || {
            let (mut read, mut buffer) = (0_u64, [0; 4096]);
            loop {
                let waiting = fed.load(Ordering::SeqCst).saturating_sub(read);
                assert!(waiting <= bound, "{waiting} bytes wait in memory");
                match disk.read(&mut buffer).unwrap() {
                    0 => return read,
                    n => {
                        let xs = buffer[..n].iter().filter(|b| **b == b'x').count();
                        read += u64::try_from(xs).unwrap();
                    }
                }
            }
        });
        tasks.join_all().await;
        drop((recorder, place));
        assert_eq!(read.await.unwrap(), total);
    }

    #[tokio::test]
    async fn many_recordings_share_the_threads() {
        let place = Place::new();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..50 {
            let (writer, folder) = (place.writer.clone(), place.folder.path().to_owned());
            tasks.spawn(async move {
                let id = Id::random().unwrap();
                let limits = Limits { queue_bytes: 512, ..LIMITS };
                let recorder = Recorder::create(&writer, &folder, (&id, &id), &header(), limits)
                    .await
                    .unwrap();
                for line in 0..100 {
                    recorder.output(format!("{n}:{line}\r\n").into()).await.unwrap();
                }
                let finished = recorder.finish().await.unwrap();
                let text: String = kinds(&finished.path)
                    .into_iter()
                    .map(|kind| match kind {
                        Kind::Output(text) => text,
                        other => format!("{other:?}"),
                    })
                    .collect();
                let expected: String = (0..100).map(|line| format!("{n}:{line}\r\n")).collect();
                assert_eq!(text, expected);
                assert_eq!(finished.events, 100);
            });
        }
        tasks.join_all().await;
    }
}
