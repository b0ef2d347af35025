//! The socket under SSH, with a deadline, a kill switch, counters, and an ear for the client's name.
//!
//! Always holds: at its deadline or when it is killed, every read and write fails at once, and
//! whoever waits in one is woken; russh 0.65 has no login grace of its own, and its inactivity
//! timer is put off by any packet. Bytes pass through unaltered.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::ahead::ReadAhead;
use crate::domain::printable;

/// The longest identification line (RFC 4253 section 4.2), line break included.
const MAX_IDENTIFICATION: usize = 255;

/// Why a stream was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its deadline passed.
    Deadline,
    /// It was killed.
    Killed,
}

const WHOLE: u8 = 0;
const DEADLINE: u8 = 1;
const KILLED: u8 = 2;

struct Shared {
    cut: AtomicU8,
    /// `None` once disarmed.
    deadline: Mutex<Option<Instant>>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    client: OnceLock<String>,
}

impl Shared {
    fn wake(&self) {
        self.reader.wake();
        self.writer.wake();
    }

    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, why: u8) {
        // The first reason stays.
        let first = self.cut.compare_exchange(WHOLE, why, Ordering::SeqCst, Ordering::SeqCst);
        if first.is_ok() {
            self.wake();
        }
    }
}

/// A handle on a [`GuardedStream`], wherever that has gone.
#[derive(Clone)]
pub struct StreamControl(Arc<Shared>);

impl StreamControl {
    /// Lifts the deadline.
    pub fn disarm(&self) {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.wake();
    }

    /// Sets the deadline to `time` from now, if there is one.
    pub fn extend(&self, time: Duration) {
        let mut deadline = self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        if deadline.is_some() {
            *deadline = Some(Instant::now() + time);
        }
        drop(deadline);
        self.0.wake();
    }

    /// When the stream is cut, if there is a deadline.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }

    /// Makes every read and write fail from now on.
    pub fn kill(&self) {
        self.0.cut(KILLED);
    }

    /// Whether, and why, the stream was cut.
    pub fn cut(&self) -> Option<Cut> {
        match self.0.cut.load(Ordering::SeqCst) {
            DEADLINE => Some(Cut::Deadline),
            KILLED => Some(Cut::Killed),
            _ => None,
        }
    }

    /// The client's identification string, made printable, once it was read.
    pub fn client_version(&self) -> Option<String> {
        self.0.client.get().cloned()
    }
}

/// A stream under guard.
pub struct GuardedStream<S> {
    inner: S,
    /// What was read and not yet asked for.
    ahead: Option<ReadAhead>,
    shared: Arc<Shared>,
    /// Polled only while there is a deadline.
    alarm: Pin<Box<Sleep>>,
    /// The identification line so far; `None` once it is known, or is too long to be one.
    line: Option<Vec<u8>>,
}

impl<S> GuardedStream<S> {
    /// Guards `inner`, with a deadline `grace` from now.
    pub fn new(inner: S, grace: Duration) -> (Self, StreamControl) {
        let deadline = Instant::now() + grace;
        let shared = Arc::new(Shared {
            cut: AtomicU8::new(WHOLE),
            deadline: Mutex::new(Some(deadline)),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            client: OnceLock::new(),
        });
        let control = StreamControl(Arc::clone(&shared));
        let alarm = Box::pin(tokio::time::sleep_until(deadline));
        let (ahead, line) = (None, Some(Vec::new()));
        (Self { inner, ahead, shared, alarm, line }, control)
    }

    /// Reads more than it is asked for from the time on that there is no deadline.
    pub fn reading_ahead(mut self) -> Self {
        self.ahead = Some(ReadAhead::default());
        self
    }

    /// Fails if the stream is cut.
    fn check(&self) -> io::Result<()> {
        match self.shared.cut.load(Ordering::SeqCst) {
            WHOLE => Ok(()),
            DEADLINE => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the login grace time is over"))
            }
            _ => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was ended")),
        }
    }

    /// Cuts the stream if its deadline has passed; otherwise arranges to be woken by it.
    fn check_deadline(&mut self, cx: &mut Context<'_>) {
        while let Some(deadline) = self.shared.deadline() {
            if self.alarm.deadline() != deadline {
                self.alarm.as_mut().reset(deadline);
            }
            if self.alarm.as_mut().poll(cx).is_pending() {
                return;
            }
            if self.shared.deadline() == Some(deadline) {
                return self.shared.cut(DEADLINE);
            }
        }
    }

    /// Listens for the identification line among the bytes just read. Lines before it that do not
    /// begin with "SSH-" are not allowed from a client (RFC 4253 section 4.2).
    fn listen(&mut self, bytes: &[u8]) {
        let Some(line) = &mut self.line else { return };
        let end = bytes.iter().position(|b| *b == b'\n');
        line.extend_from_slice(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default());
        if line.len() > MAX_IDENTIFICATION {
            self.line = None;
        } else if end.is_some() {
            let text = String::from_utf8_lossy(line);
            let _set_once = self.shared.client.set(printable(text.trim_end_matches('\r')));
            self.line = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.shared.reader.register(cx.waker());
        // Before the read, so that a peer who drips bytes does not outlive its deadline.
        this.check_deadline(cx);
        this.check()?;
        let before = buf.filled().len();
        let inner = Pin::new(&mut this.inner);
        let read = match &mut this.ahead {
            // Strangers get no memory.
            Some(ahead) if this.shared.deadline().is_none() => ahead.poll_read(inner, cx, buf),
            _ => inner.poll_read(cx, buf),
        };
        if this.line.is_some() && matches!(read, Poll::Ready(Ok(()))) {
            this.listen(buf.filled().get(before..).unwrap_or_default());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.writer.register(cx.waker());
        self.check_deadline(cx);
        self.check()?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.writer.register(cx.waker());
        self.check_deadline(cx);
        self.check()?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.writer.register(cx.waker());
        self.check_deadline(cx);
        self.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const GRACE: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_reader_that_is_dripped_on() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let (mut stream, control) = GuardedStream::new(ours, GRACE);
        let begun = Instant::now();
        let drip = async {
            while peer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        };
        let read = async {
            let mut byte = [0];
            loop {
                if let Err(error) = stream.read_exact(&mut byte).await {
                    return error;
                }
            }
        };
        let error = tokio::select! { error = read => error, () = drip => unreachable!() };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(control.cut(), Some(Cut::Deadline));
        assert_eq!(begun.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_writer_whose_peer_does_not_read() {
        let (_peer, ours) = tokio::io::duplex(16);
        let (mut stream, control) = GuardedStream::new(ours, GRACE);
        let begun = Instant::now();
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(control.cut(), Some(Cut::Deadline));
        assert_eq!(begun.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_moves_both_ways_and_goes() {
        let (_peer, ours) = tokio::io::duplex(64);
        let (mut stream, control) = GuardedStream::new(ours, GRACE);
        let begun = Instant::now();
        let mut byte = [0];
        let moved = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            control.extend(Duration::from_secs(2));
            std::future::pending::<()>().await;
        };
        let read =
            tokio::select! { read = stream.read(&mut byte) => read, () = moved => unreachable!() };
        assert!(read.is_err());
        assert_eq!(begun.elapsed().as_secs(), 3);

        let (_peer, ours) = tokio::io::duplex(64);
        let (mut stream, control) = GuardedStream::new(ours, GRACE);
        control.disarm();
        control.extend(Duration::from_secs(1));
        let read = tokio::time::timeout(Duration::from_secs(9999), stream.read(&mut byte)).await;
        assert!(read.is_err(), "nothing cut it");
    }

    #[tokio::test]
    async fn a_kill_wakes_blocked_reads_and_writes() {
        let (_peer, ours) = tokio::io::duplex(16);
        let (mut stream, control) = GuardedStream::new(ours, GRACE);
        let (kill, write) =
            tokio::join!(async { control.kill() }, async { stream.write_all(&[0; 64]).await });
        let () = kill;
        assert_eq!(write.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let mut byte = [0];
        assert!(stream.read(&mut byte).await.is_err());
        assert_eq!(control.cut(), Some(Cut::Killed));
    }

    #[tokio::test]
    async fn the_client_is_heard_and_nothing_is_altered() {
        for (sent, heard) in [
            (&b"SSH-2.0-OpenSSH_9.2\r\nrest"[..], Some("SSH-2.0-OpenSSH_9.2")),
            (b"SSH-2.0-\x1b[2J\nrest", Some("SSH-2.0-\\u{1b}[2J")),
            (b"no line break", None),
            (&[b'x'; 300], None),
        ] {
            let (mut peer, ours) = tokio::io::duplex(512);
            let (mut stream, control) = GuardedStream::new(ours, GRACE);
            for byte in sent {
                peer.write_all(&[*byte]).await.unwrap();
                let mut read = [0];
                stream.read_exact(&mut read).await.unwrap();
                assert_eq!(read[0], *byte);
            }
            assert_eq!(control.client_version().as_deref(), heard);
        }
    }
}
