//! The connections of this process, and the watch over what must end them. An end that could not be
//! written down is tried again until it is, or the next start does it.
//!
//! Always holds: a kill, a disabled, removed, unbound or re-passworded account, a revoked certificate,
//! or a rule for signing in that asks for more than was given, ends its live sessions within about a
//! second on every node, because every such change bumps the store's revision, and every node asks for
//! it twice a second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::Bastion;
use super::connection::Connection;
use crate::audit::{Context, EndReason};
use crate::auth::machine::Authenticated;
use crate::domain::{Id, SignInPolicy, UnixTime};
use crate::store::{Error, Live, Store};

/// How often the store is asked whether anything changed.
const POLL: Duration = Duration::from_millis(500);

/// How long one look may take: a dead connection to the store must not hold up the next look.
const LOOK: Duration = Duration::from_secs(10);

/// How often a node says that it lives.
const BEAT: Duration = Duration::from_secs(15);

/// How many beats of ours without one of another node's until that one counts as dead.
const MISSED: u32 = 4;

/// The connections of this process by session id.
#[derive(Default)]
pub(super) struct Table(Mutex<HashMap<Id, Arc<Connection>>>, Mutex<Vec<SessionEnd>>);

/// The end of a session, as it is to be written down.
pub(super) struct SessionEnd {
    pub(super) session: Id,
    pub(super) reason: EndReason,
    /// What it carried, up and down.
    pub(super) carried: (u64, u64),
    pub(super) context: Context,
    pub(super) at: UnixTime,
}

impl SessionEnd {
    /// Writes it down, unless it is already.
    pub(super) async fn write(&self, store: &Store) -> Result<(), Error> {
        let Self { session, reason, carried, context, at } = self;
        store.close_session(session, *reason, *carried, context, *at).await
    }
}

impl Table {
    pub(super) fn enter(&self, conn: &Arc<Connection>) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(conn.id.clone(), Arc::clone(conn));
    }

    pub(super) fn leave(&self, id: &Id) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Keeps an end that could not be written, for [`watch`] to try again.
    pub(super) fn keep(&self, end: SessionEnd) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push(end);
    }

    /// How many ends are kept.
    pub(super) fn kept(&self) -> usize {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Writes the ends that are kept, until one fails again.
    async fn write_kept(&self, store: &Store) -> Result<(), Error> {
        loop {
            let end = self.1.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(end) = end else { return Ok(()) };
            // What takes too long is dropped in the middle: it must be kept nevertheless.
            let written = tokio::time::timeout(LOOK, end.write(store)).await;
            if let Err(error) = written.unwrap_or(Err(Error::Busy)) {
                self.keep(end);
                return Err(error);
            }
            tracing::info!(session = %end.session, "a session's end is written down after all");
        }
    }

    /// How many sessions the account has here that signed in on `conn`, this one included.
    pub(super) fn sessions_like(&self, conn: &Connection) -> usize {
        let Some(account) = conn.who().map(Authenticated::account) else { return 0 };
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.values().filter(|c| c.who().is_some_and(|who| who.account() == account)).count()
    }

    /// Everything that is connected now.
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Ends every connection.
    pub(super) fn end_all(&self, reason: EndReason, message: &str) {
        for conn in self.all() {
            conn.end(reason, message);
        }
    }

    /// Ends what the store says must end. `before` are the connections that were signed in when it
    /// was asked: one that it does not know as open was closed behind our back. Gives whether some
    /// cannot be judged yet, because they change their own account just now.
    fn check(&self, live: &Live, before: &[Arc<Connection>]) -> bool {
        let mut later = false;
        let epochs: HashMap<&Id, Option<i64>> =
            live.epochs.iter().map(|(id, e)| (id, *e)).collect();
        for conn in self.all() {
            if live.killed.contains(&conn.id) {
                conn.end(EndReason::Killed, "an administrator ended this session");
            }
            if live.revoked.contains(&conn.id) {
                let message = "the certificate that you signed in with was revoked";
                conn.end(EndReason::Revoked, message);
            }
            let is_spared = conn.is_spared(); // Before its epoch is read.
            let Some((account, epoch)) = conn.identity() else { continue };
            // A session that signed in after the store was read is not in `epochs`, or has an epoch
            // that is newer than what was read.
            let ended = match epochs.get(account) {
                None => false,
                Some(None) => {
                    conn.end(EndReason::Revoked, "your account was changed: sign in again");
                    continue;
                }
                Some(Some(now)) => *now > epoch,
            };
            conn.note_spared(ended && is_spared);
            if ended && is_spared {
                later = true;
                continue;
            }
            if ended {
                conn.end(EndReason::Revoked, "your account was changed: sign in again");
            }
        }
        let open: HashSet<&Id> = live.open.iter().collect();
        for conn in before.iter().filter(|conn| !open.contains(&conn.id)) {
            conn.end(EndReason::Revoked, "this session is no longer known: sign in again");
        }
        // Also one that was let in and has a notice to read first. One that the store opened after it was
        // read went by the rules of then: it asked for them with the end of the log in hand.
        for conn in self.all().iter().filter(|conn| open.contains(&conn.id)) {
            let Some((account, given)) = conn.given() else { continue };
            let default = SignInPolicy::default();
            let policy = live.policies.get(account).unwrap_or(&default);
            if !policy.allows(given, conn.source.ip()) {
                conn.end(EndReason::Revoked, "more is asked of you by now: sign in again");
            }
        }
        later
    }
}

/// Watches the store's revision until the process ends, and tells `revisions` of every change.
pub(super) async fn watch(bastion: Arc<Bastion>, revisions: watch::Sender<i64>) {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    let mut again = false;
    let part = bastion.pulse.part("the watch over the store");
    loop {
        ticks.tick().await;
        part.turn();
        let looked = tokio::time::timeout(LOOK, look(&bastion, &revisions, again)).await;
        match looked.unwrap_or(Err(Error::Busy)) {
            Ok(later) => (failing, again) = (false, later),
            Err(error) if !failing => {
                failing = true; // Said once, not twice a second.
                tracing::error!(%error, "failed to watch the store: nobody can sign in until it is back");
            }
            Err(_) => {}
        }
        if !failing && let Err(error) = bastion.live.write_kept(&bastion.store).await {
            tracing::debug!(%error, "a session's end still cannot be written down");
        }
    }
}

/// Looks once, also if nothing seems to have changed if it is to look `again`; gives whether it has
/// to once more.
async fn look(
    bastion: &Bastion,
    revisions: &watch::Sender<i64>,
    again: bool,
) -> Result<bool, Error> {
    let revision = bastion.store.revision().await?;
    if revision == *revisions.borrow() && !again {
        return Ok(false);
    }
    let mut before = bastion.live.all();
    before.retain(|conn| conn.who().is_some());
    let live = bastion.store.live().await?;
    let later = bastion.live.check(&live, &before);
    // Forwards ask the policy again when they see the new number.
    revisions.send_replace(revision);
    Ok(later)
}

/// Says that this node lives and which sealing keys it holds, now and then and when something changed
/// (a rotation asks for it so); and closes the sessions of nodes that no longer live. SQLite's store has
/// one node, which closes its own at its next start, and those that it left under another name.
pub(super) async fn beat(bastion: Arc<Bastion>) {
    let mut others = Others::default();
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut revisions = bastion.revisions();
    loop {
        // Only by the clock does another node miss its beats.
        let is_due = tokio::select! {
            _ = ticks.tick() => true,
            Ok(()) = revisions.changed() => false,
        };
        let beats = match bastion.store.beat().await {
            Ok(beats) => beats,
            // `watch` says so as well. What could not be read is no sign of death.
            Err(error) => {
                tracing::debug!(%error, "failed to tell the other nodes that this one lives");
                continue;
            }
        };
        if !is_due {
            continue;
        }
        for node in others.dead(beats) {
            match bastion.store.close_lost(&node, bastion.clock.now()).await {
                Ok(0) => {}
                Ok(sessions) => {
                    tracing::warn!(node, sessions, "closed the sessions of a dead node")
                }
                Err(error) => {
                    tracing::error!(%error, node, "failed to close a dead node's sessions")
                }
            }
        }
    }
}

/// What was last heard of other nodes.
#[derive(Default)]
struct Others(HashMap<String, (i64, u32)>);

impl Others {
    /// Takes in how often each has said that it lives; gives those that did not for too long.
    fn dead(&mut self, beats: Vec<(String, i64)>) -> Vec<String> {
        let before = std::mem::take(&mut self.0);
        let mut dead = Vec::new();
        for (node, beats) in beats {
            let missed = match before.get(&node) {
                Some((last, missed)) if *last == beats => missed + 1,
                _ => 0,
            };
            if missed >= MISSED {
                dead.push(node);
            } else {
                self.0.insert(node, (beats, missed));
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_dead_that_missed_its_beats_and_no_other() {
        let mut others = Others::default();
        let beats = |lively: i64| vec![("lively".to_owned(), lively), ("quiet".to_owned(), 7)];
        for n in 0..i64::from(MISSED) {
            assert!(others.dead(beats(n)).is_empty(), "{n}");
        }
        assert_eq!(others.dead(beats(99)), ["quiet"]);
        // It is there again.
        assert!(others.dead(vec![("quiet".to_owned(), 1)]).is_empty());
    }
}
