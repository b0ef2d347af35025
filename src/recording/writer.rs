//! Writes recordings as they happen: sessions hand over what passed, one thread per process puts
//! it into files, another one sees to it that it reaches the disk (`track`).
//!
//! Always holds: what a session handed over is in its file within a second, and is then asked onto
//! the disk at most once a second; what waits in memory is bounded for each session by its own
//! limit, so a slow disk slows who feeds it and costs nobody else memory; once a recording failed,
//! every further call says so. Nothing here blocks an asynchronous task.

mod space;
mod track;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, TryAcquireError, oneshot, watch};

pub use space::free_space_ok;

use super::asciicast::Header;
use super::seal::{self, Sealed};
use super::usage::{Part, Usage};
use crate::domain::Id;
use space::{create_file, enough_space, path_of};
use track::{Closed, Command, Fault, Payload, Track, sync_all, write_all};

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

#[cfg(test)]
mod tests;
