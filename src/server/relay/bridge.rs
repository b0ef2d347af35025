//! Two channels, one to the user and one to the target, as one.
//!
//! Always holds: the user's channel is drained all the time into a counted queue; the target's is
//! read only as fast as the user takes it, which holds up that target connection and no other.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::server::forward::{ChannelFlow, Pieces};
use crate::server::traffic::Counts;

/// How long a target may take for what a user sent before they closed the channel.
const LAST: Duration = Duration::from_secs(30);

/// What the user sends, in order.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Piece {
    Data(Bytes),
    Eof,
    Close,
}

/// The user's data on its way to the target.
pub(in crate::server) struct Uplink {
    state: Mutex<State>,
    ready: Notify,
    flow: Arc<ChannelFlow>,
}

#[derive(Default)]
struct State {
    data: Pieces,
    eof: Mark,
    close: Mark,
}

/// What is said once.
#[derive(Default, PartialEq, Eq)]
enum Mark {
    #[default]
    Unsaid,
    Waits,
    Taken,
}

impl Mark {
    fn say(&mut self) {
        if *self == Self::Unsaid {
            *self = Self::Waits;
        }
    }

    fn take(&mut self) -> bool {
        let waits = *self == Self::Waits;
        if waits {
            *self = Self::Taken;
        }
        waits
    }
}

impl State {
    fn next(&mut self) -> Option<Piece> {
        let data = self.data.pop().map(Piece::Data);
        data.or_else(|| self.eof.take().then_some(Piece::Eof))
            .or_else(|| self.close.take().then_some(Piece::Close))
    }
}

impl Uplink {
    pub(in crate::server) fn new(flow: Arc<ChannelFlow>) -> Self {
        Self { state: Mutex::default(), ready: Notify::new(), flow }
    }

    /// Puts a piece at the end; false if the client sent more than it was allowed to.
    ///
    /// What takes no window (an empty piece, an end after the end) is not kept: there would be no
    /// bound on how many of them wait. Nor is data after the end (RFC 4254 section 5.3).
    pub(super) fn push(&self, piece: Piece) -> bool {
        let mut state = self.state();
        match piece {
            Piece::Data(data) if data.is_empty() || state.eof != Mark::Unsaid => return true,
            Piece::Data(data) => {
                self.flow.take(data.len());
                state.data.push(data);
            }
            Piece::Eof => state.eof.say(),
            Piece::Close => state.close.say(),
        }
        drop(state);
        self.ready.notify_one();
        !self.flow.overrun()
    }

    /// The same before it was said what the data is for.
    pub(super) fn push_early(&self, piece: Piece) -> bool {
        self.push(piece) && !self.flow.exceeds_window()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next piece.
    pub(in crate::server) async fn next(&self) -> Piece {
        loop {
            let piece = self.state().next();
            match piece {
                Some(piece) => return piece,
                None => self.ready.notified().await,
            }
        }
    }

    /// Where what waits is counted.
    pub(super) fn flow(&self) -> &Arc<ChannelFlow> {
        &self.flow
    }

    /// Puts what was taken and not used back to the front.
    pub(super) fn give_back(&self, data: Bytes) {
        if !data.is_empty() {
            self.state().data.push_front(data);
        }
    }

    /// Drops what waits, but for the end of it.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        while let Some(data) = state.data.pop() {
            self.flow.give(data.len());
        }
    }

    /// Takes note that `len` bytes are no longer held.
    pub(in crate::server) fn done(&self, len: usize) {
        self.flow.give(len);
    }
}

/// Carries bytes between `user` and `target`, and counts them, until one of them closes, or `cancel`
/// says so.
pub(super) async fn carry(
    user: Channel<server::Msg>,
    target: Channel<client::Msg>,
    flow: Arc<ChannelFlow>,
    counts: &Counts,
    cancel: &CancellationToken,
) {
    let (mut from_user, to_user) = user.split();
    let (mut from_target, to_target) = target.split();
    let uplink = Uplink::new(flow);
    {
        let up = up(&uplink, &to_target, counts);
        tokio::pin!(up);
        let left = tokio::select! {
            left = intake(&mut from_user, &uplink) => left,
            () = &mut up => false,
            () = down(&mut from_target, &to_user, counts) => false,
            () = cancel.cancelled() => false,
        };
        // A client closes as soon as both sides said that no more comes: what it sent before that
        // is still on its way.
        if left && uplink.push(Piece::Close) {
            tokio::select! {
                () = up => {}
                () = discard(&mut from_target) => {}
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(LAST) => {}
            }
        }
    }
    // Whoever is gone cannot be told.
    if to_user.close().await.is_err() || to_target.close().await.is_err() {
        tracing::debug!("a side left before the end of a channel");
    }
}

/// Takes in what the user sends; true if they closed the channel, false if they broke the rules or
/// are gone.
async fn intake(from_user: &mut ChannelReadHalf, uplink: &Uplink) -> bool {
    while let Some(message) = from_user.wait().await {
        let within = match message {
            ChannelMsg::Data { data } => uplink.push(Piece::Data(data)),
            ChannelMsg::Eof => uplink.push(Piece::Eof),
            ChannelMsg::Close => return true,
            _ => true,
        };
        if !within {
            return false;
        }
    }
    false
}

/// Takes what the target sends to nobody, so that its connection does not stand still.
async fn discard(from_target: &mut ChannelReadHalf) {
    while let Some(message) = from_target.wait().await {
        if matches!(message, ChannelMsg::Close) {
            return;
        }
    }
}

async fn up(uplink: &Uplink, to_target: &ChannelWriteHalf<client::Msg>, counts: &Counts) {
    loop {
        let sent = match uplink.next().await {
            Piece::Data(data) => {
                let len = data.len();
                let sent = to_target.data_bytes(data).await;
                uplink.done(len);
                counts.up.fetch_add(len as u64, Relaxed);
                sent
            }
            Piece::Eof => to_target.eof().await,
            Piece::Close => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn down(
    from_target: &mut ChannelReadHalf,
    to_user: &ChannelWriteHalf<server::Msg>,
    counts: &Counts,
) {
    while let Some(message) = from_target.wait().await {
        let sent = match message {
            ChannelMsg::Data { data } => {
                counts.down.fetch_add(data.len() as u64, Relaxed);
                to_user.data_bytes(data).await
            }
            ChannelMsg::Eof => to_user.eof().await,
            ChannelMsg::Close => return,
            _ => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}
