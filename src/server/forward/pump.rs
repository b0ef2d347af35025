//! One forward's bytes, both ways, in one task.
//!
//! Always holds: taking in from the client never waits for the target; each direction can end
//! alone (half-close); when [`pump`] returns, both sockets are closed or about to be.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::flow::ChannelFlow;
use super::queue::Queue;
use crate::server::traffic::Counts;

/// The most bytes of one read from the target.
const READ: usize = 256 * 1024;
/// The first read of a target that was quiet: most answers are small.
const FIRST_READ: usize = 4 * 1024;
/// How long the end of a channel may take to be queued for the client.
const CLOSING: Duration = Duration::from_secs(2);

/// When a forward is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PumpLimits {
    /// How long the target may take none of what waits for it.
    pub stall: Duration,
}

/// Why a forward ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// Both sides said that they have no more to send.
    #[error("both sides finished")]
    Finished,
    /// The client closed the channel, or its connection is gone.
    #[error("the client closed it")]
    ClientClosed,
    /// The target's socket failed.
    #[error("the target failed: {0}")]
    Target(io::Error),
    /// The target took nothing for too long.
    #[error("the target did not read for {0:?}")]
    Stalled(Duration),
    /// The client sent more than it was allowed to.
    #[error("the client ignored its window")]
    Overrun,
    /// The connection, or the permission, ended.
    #[error("it was ended")]
    Cancelled,
}

/// What the two directions tell each other, and everybody else.
struct Progress<'a> {
    counts: &'a Counts,
    client_finished: AtomicBool,
    target_finished: AtomicBool,
}

/// Carries bytes between `channel` and `target` until one side ends it, or `cancel` does. What was
/// written to the target counts as `up`, what was sent to the client as `down`.
pub(in crate::server) async fn pump(
    channel: Channel<Msg>,
    mut target: TcpStream,
    flow: Arc<ChannelFlow>,
    limits: PumpLimits,
    counts: &Counts,
    cancel: CancellationToken,
) -> End {
    let (mut from_client, to_client) = channel.split();
    let (from_target, to_target) = target.split();
    let (client_finished, target_finished) = Default::default();
    let progress = Progress { counts, client_finished, target_finished };
    let end = {
        let up =
            up(&mut from_client, to_target, Queue::new(flow.clone()), &flow, limits, &progress);
        let down = down(from_target, &to_client, &progress);
        tokio::pin!(up, down);
        tokio::select! {
            end = &mut up => end,
            result = &mut down => match result {
                Err(end) => end,
                // The target has finished; the client may still have more to say.
                Ok(()) => tokio::select! {
                    end = &mut up => end,
                    () = cancel.cancelled() => End::Cancelled,
                },
            },
            () = cancel.cancelled() => End::Cancelled,
        }
    };
    // A client that is gone cannot be told; one that does not read is told when it does.
    let close = tokio::time::timeout(CLOSING, to_client.close());
    if !matches!(end, End::ClientClosed) && !matches!(close.await, Ok(Ok(()))) {
        tracing::debug!("the client left before the end of a forward");
    }
    end
}

/// From the client to the target.
async fn up(
    from_client: &mut ChannelReadHalf,
    mut to_target: WriteHalf<'_>,
    mut queue: Queue,
    flow: &ChannelFlow,
    limits: PumpLimits,
    progress: &Progress<'_>,
) -> End {
    let mut last_write = Instant::now();
    loop {
        let message = if queue.is_empty() {
            from_client.wait().await
        } else {
            tokio::select! {
                message = from_client.wait() => message,
                ready = to_target.writable() => {
                    if let Err(error) = ready {
                        return End::Target(error);
                    }
                    match write(&to_target, &mut queue, progress) {
                        Ok(true) => last_write = Instant::now(),
                        Ok(false) => {}
                        Err(error) => return End::Target(error),
                    }
                    if let Some(end) = finish_if_done(&mut to_target, &queue, progress).await {
                        return end;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(last_write + limits.stall) => {
                    return End::Stalled(limits.stall);
                }
            }
        };
        if queue.is_empty() {
            last_write = Instant::now();
        }
        if let Some(end) = take_in(message, &mut queue, progress) {
            return end;
        }
        // Whatever else is there already goes into the same write.
        while let Some(message) = from_client.wait().now_or_never() {
            if let Some(end) = take_in(message, &mut queue, progress) {
                return end;
            }
        }
        if flow.overrun() {
            return End::Overrun;
        }
        match write(&to_target, &mut queue, progress) {
            Ok(true) => last_write = Instant::now(),
            Ok(false) => {}
            Err(error) => return End::Target(error),
        }
        if let Some(end) = finish_if_done(&mut to_target, &queue, progress).await {
            return end;
        }
    }
}

/// Takes a message of the client's in; gives the end, if it is one.
fn take_in(message: Option<ChannelMsg>, queue: &mut Queue, progress: &Progress<'_>) -> Option<End> {
    match message {
        Some(ChannelMsg::Data { data }) => queue.push(data),
        Some(ChannelMsg::Eof) => progress.client_finished.store(true, Relaxed),
        Some(ChannelMsg::Close) | None => {
            let finished =
                progress.client_finished.load(Relaxed) && progress.target_finished.load(Relaxed);
            return Some(if finished { End::Finished } else { End::ClientClosed });
        }
        Some(_) => {}
    }
    None
}

/// Writes what the target takes right now; whether it took anything.
fn write(
    to_target: &WriteHalf<'_>,
    queue: &mut Queue,
    progress: &Progress<'_>,
) -> io::Result<bool> {
    if queue.is_empty() {
        return Ok(false);
    }
    match queue.write_with(|slices| to_target.try_write_vectored(slices)) {
        Ok(written) => {
            progress.counts.up.fetch_add(written as u64, Relaxed);
            Ok(written > 0)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Passes the client's end of data on once everything before it was written.
async fn finish_if_done(
    to_target: &mut WriteHalf<'_>,
    queue: &Queue,
    progress: &Progress<'_>,
) -> Option<End> {
    if !progress.client_finished.load(Relaxed) || !queue.is_empty() {
        return None;
    }
    if progress.target_finished.load(Relaxed) {
        return Some(End::Finished);
    }
    // Done again for every message after EOF, of which only Close is allowed: harmless.
    match to_target.shutdown().await {
        Ok(()) => None,
        Err(error) if error.kind() == io::ErrorKind::NotConnected => None,
        Err(error) => Some(End::Target(error)),
    }
}

/// From the target to the client. Holds no buffer while the target is quiet.
async fn down(
    from_target: ReadHalf<'_>,
    to_client: &ChannelWriteHalf<Msg>,
    progress: &Progress<'_>,
) -> Result<(), End> {
    let mut size = FIRST_READ;
    loop {
        from_target.readable().await.map_err(End::Target)?;
        let mut buffer = BytesMut::with_capacity(size);
        let read = match from_target.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(End::Target(error)),
        };
        // A target that filled the buffer has more; one that did not gets a small one next time.
        size = if read == size { READ } else { FIRST_READ.max(read.next_power_of_two()).min(READ) };
        to_client.data_bytes(buffer.freeze()).await.map_err(|_| End::ClientClosed)?;
        progress.counts.down.fetch_add(read as u64, Relaxed);
    }
    progress.target_finished.store(true, Relaxed);
    to_client.eof().await.map_err(|_| End::ClientClosed)?;
    if progress.client_finished.load(Relaxed) { Err(End::Finished) } else { Ok(()) }
}
