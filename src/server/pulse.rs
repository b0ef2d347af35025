//! Whether what the server lives by still turns, for whoever restarts one that hangs.
//!
//! Always holds: a part counts from [`Pulse::part`] until its owner lets go of it; one whose task
//! died or hangs meanwhile is found stuck, since nothing turns it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// How often a part that has nothing to do turns at least.
pub(super) const IDLE_TURN: Duration = Duration::from_secs(1);

/// When a part that did not turn counts as stuck: longer than a turn may take, a look at a store that
/// does not answer included.
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// The parts of a server that must turn.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Vec<Weak<Part>>>);

/// One of them.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    turned: Mutex<Instant>,
}

impl Part {
    /// Says that it turns.
    pub fn turn(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_stuck(&self) -> bool {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > STUCK_AFTER
    }
}

impl Pulse {
    /// A new part, which counts for as long as what this gives, or a clone of it, is kept.
    pub fn part(&self, name: &'static str) -> Arc<Part> {
        let part = Arc::new(Part { name, turned: Mutex::new(Instant::now()) });
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|part| part.strong_count() > 0);
        parts.push(Arc::downgrade(&part));
        part
    }

    /// The name of a part that no longer turns, if there is one.
    pub fn stuck(&self) -> Option<&'static str> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(Weak::upgrade).find(|part| part.is_stuck()).map(|part| part.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_turn_is_stuck_until_its_owner_lets_go() {
        let pulse = Pulse::default();
        assert_eq!(pulse.stuck(), None);
        let (lively, hanging) = (pulse.part("lively"), pulse.part("hanging"));
        tokio::time::advance(STUCK_AFTER).await;
        lively.turn();
        assert_eq!(pulse.stuck(), None);
        tokio::time::advance(IDLE_TURN).await;
        assert_eq!(pulse.stuck(), Some("hanging"));
        drop(hanging);
        assert_eq!(pulse.stuck(), None);
    }
}
