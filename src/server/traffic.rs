//! What sessions carry, counted while they go on: the pumps add, and a task of the node's writes down
//! what changed every few seconds.
//!
//! Always holds: a pump adds to its [`Counts`] and does nothing else; a byte counts once for its
//! session, while what carries it is open and after; a store that fails is tried again and ends
//! nothing, since the end of a session, forward or recording is written with its own bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Bastion;
use crate::domain::Id;
use crate::store::{Carried, Carrier, Error};

/// How often what changed is written down.
const EVERY: Duration = Duration::from_secs(5);
/// How long that may take: a dead connection to the store must not hold up the next time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that passed.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

impl Counts {
    /// Up and down.
    pub(super) fn both(&self) -> (u64, u64) {
        (self.up.load(Relaxed), self.down.load(Relaxed))
    }
}

/// What one connection carried, and what of it is open.
#[derive(Debug, Default)]
pub(super) struct Traffic(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What carried bytes and is over.
    ended: (u64, u64),
    open: Vec<Open>,
}

impl State {
    fn sums(&self) -> (u64, u64) {
        let adding = self.open.iter().filter(|open| open.adds);
        adding.fold(self.ended, |bytes, open| sum(bytes, open.counts.both()))
    }
}

#[derive(Debug)]
struct Open {
    carrier: Option<Carrier>,
    counts: Arc<Counts>,
    /// Whether it adds to the session's sums: what passes inside another channel is counted there.
    adds: bool,
}

/// Counts for as long as it is held.
#[derive(Debug)]
pub(super) struct Meter {
    counts: Arc<Counts>,
    traffic: Arc<Traffic>,
}

impl Meter {
    /// What it counted.
    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let mut state = self.traffic.state();
        let place = state.open.iter().position(|open| Arc::ptr_eq(&open.counts, &self.counts));
        let ended = place.map(|place| state.open.swap_remove(place));
        if ended.is_some_and(|open| open.adds) {
            state.ended = sum(state.ended, self.counts.both());
        }
    }
}

impl Traffic {
    /// Begins to count what `carrier` carries, if it has a row of its own; `adds` if that adds to the
    /// session's sums.
    pub(super) fn meter(self: &Arc<Self>, carrier: Option<Carrier>, adds: bool) -> Meter {
        let counts = Arc::<Counts>::default();
        let open = Open { carrier, counts: Arc::clone(&counts), adds };
        self.state().open.push(open);
        Meter { counts, traffic: Arc::clone(self) }
    }

    /// What the session carried so far, up and down.
    pub(super) fn sums(&self) -> (u64, u64) {
        self.state().sums()
    }

    /// The same with what is open, as the store is told it.
    fn carried(&self, session: &Id) -> Carried {
        let state = self.state();
        let row = |open: &Open| Some((open.carrier.clone()?, open.counts.both()));
        let open = state.open.iter().filter_map(row).collect();
        Carried { session: session.clone(), bytes: state.sums(), open }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum((up, down): (u64, u64), (more_up, more_down): (u64, u64)) -> (u64, u64) {
    (up.saturating_add(more_up), down.saturating_add(more_down))
}

/// Writes down what this node's sessions carry, until it is dropped.
pub(super) async fn write_down(bastion: Arc<Bastion>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut written, mut failing) = (Written::default(), false);
    loop {
        ticks.tick().await;
        let now = all(&bastion);
        let news = written.news(&now);
        if !news.is_empty() {
            let told = tokio::time::timeout(PATIENCE, bastion.store.write_carried(&news)).await;
            if let Err(error) = told.unwrap_or(Err(Error::Busy)) {
                if !failing {
                    tracing::error!(%error, "failed to write down what sessions carry: tried again");
                }
                failing = true;
                continue;
            }
        }
        (written, failing) = (Written::of(now), false);
    }
}

/// What every session of this node carried so far.
fn all(bastion: &Bastion) -> Vec<Carried> {
    let mut conns = bastion.live.all();
    conns.retain(|conn| conn.who().is_some());
    conns.iter().map(|conn| conn.traffic.carried(&conn.id)).collect()
}

/// What the store knows.
#[derive(Default)]
struct Written(HashMap<Id, Carried>);

impl Written {
    fn of(carried: Vec<Carried>) -> Self {
        Self(carried.into_iter().map(|carried| (carried.session.clone(), carried)).collect())
    }

    /// What of `now` the store does not know, nothing of a session on which nothing passed.
    fn news(&self, now: &[Carried]) -> Vec<Carried> {
        let news = now.iter().filter_map(|carried| {
            let old = self.0.get(&carried.session);
            let mut new = carried.clone();
            // What the store was not told of yet has 0 there.
            new.open.retain(|(carrier, bytes)| {
                let known = old.and_then(|old| old.open.iter().find(|(c, _)| c == carrier));
                *bytes != known.map_or((0, 0), |(_, bytes)| *bytes)
            });
            let is_new = new.bytes != old.map_or((0, 0), |old| old.bytes);
            (is_new || !new.open.is_empty()).then_some(new)
        });
        news.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Id {
        Id::random().unwrap()
    }

    fn pass(meter: &Meter, up: u64, down: u64) {
        meter.counts().up.fetch_add(up, Relaxed);
        meter.counts().down.fetch_add(down, Relaxed);
    }

    #[test]
    fn a_byte_counts_once_for_its_session_before_and_after_its_carrier_ended() {
        let (traffic, session) = (Arc::<Traffic>::default(), id());
        let (forward, recording) = (Carrier::Forward(id()), Carrier::Recording(id()));
        let outer = traffic.meter(Some(forward.clone()), true);
        let inner = traffic.meter(Some(recording.clone()), false);
        let nameless = traffic.meter(None, true);
        pass(&outer, 10, 200);
        pass(&inner, 7, 150);
        pass(&nameless, 1, 2);
        let carried = traffic.carried(&session);
        assert_eq!((&carried.session, carried.bytes), (&session, (11, 202)));
        assert_eq!(carried.open, [(forward, (10, 200)), (recording.clone(), (7, 150))]);
        drop(outer);
        assert_eq!(traffic.sums(), (11, 202));
        assert_eq!(traffic.carried(&session).open, [(recording, (7, 150))]);
        drop((inner, nameless));
        assert_eq!(traffic.sums(), (11, 202));
        assert!(traffic.carried(&session).open.is_empty());
        pass(&traffic.meter(None, true), u64::MAX, 1);
        assert_eq!(traffic.sums(), (u64::MAX, 203));
    }

    #[test]
    fn only_what_changed_is_news() {
        let (forward, recording) = (Carrier::Forward(id()), Carrier::Recording(id()));
        let carried = |session: &Id, bytes, open: &[(&Carrier, (u64, u64))]| {
            let open = open.iter().map(|(carrier, bytes)| ((*carrier).clone(), *bytes)).collect();
            Carried { session: session.clone(), bytes, open }
        };
        let (idle, busy) = (id(), id());
        let first = [
            carried(&idle, (0, 0), &[(&recording, (0, 0))]),
            carried(&busy, (1, 2), &[(&forward, (1, 2)), (&recording, (0, 0))]),
        ];
        let mut written = Written::default();
        assert_eq!(written.news(&first), [carried(&busy, (1, 2), &[(&forward, (1, 2))])]);
        // Until it is written, it stays news.
        assert_eq!(written.news(&first).len(), 1);
        written = Written::of(first.to_vec());
        assert!(written.news(&first).is_empty());
        // What ended is no news, nor is a session that did.
        assert!(written.news(&[carried(&busy, (1, 2), &[])]).is_empty());
        // A part alone may change: what passes inside another channel adds to no sum.
        let inside = [carried(&busy, (1, 2), &[(&forward, (1, 2)), (&recording, (0, 9))])];
        assert_eq!(written.news(&inside), [carried(&busy, (1, 2), &[(&recording, (0, 9))])]);
    }
}
