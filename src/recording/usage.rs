//! What the recordings take that are being written now, by account.
//!
//! Always holds: a recording counts from its header until its file is compressed, whatever became of
//! it; what it takes is counted for its account, and never twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::domain::Id;

/// Every account that has such a recording. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage(Arc<Mutex<HashMap<Id, Weak<AtomicU64>>>>);

/// What one recording takes; dropped, it takes nothing any more.
#[derive(Debug)]
pub(super) struct Part {
    account: Arc<AtomicU64>,
    bytes: u64,
}

impl Usage {
    /// A recording of the account, with nothing in it yet.
    pub(super) fn begin(&self, account: &Id) -> Part {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, account| account.strong_count() > 0);
        let known = accounts.get(account).and_then(Weak::upgrade);
        let known = known.unwrap_or_else(|| {
            let new = Arc::<AtomicU64>::default();
            accounts.insert(account.clone(), Arc::downgrade(&new));
            new
        });
        Part { account: known, bytes: 0 }
    }
}

impl Part {
    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of all files of its account, this one's among them.
    pub(super) fn of_account(&self) -> u64 {
        self.account.load(Relaxed)
    }

    /// Counts what is left of `max` bytes for the account as taken by this one: it is too little.
    pub(super) fn fill(&mut self, max: u64) {
        self.add(max.saturating_sub(self.of_account()));
    }

    /// Counts bytes that were written.
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.account.fetch_add(bytes, Relaxed);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.account.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_by_account_until_they_are_dropped() {
        let usage = Usage::default();
        let (alice, bob) = (Id::random().unwrap(), Id::random().unwrap());
        let (mut one, mut two, mut other) =
            (usage.begin(&alice), usage.clone().begin(&alice), usage.begin(&bob));
        one.add(10);
        two.add(5);
        other.add(3);
        one.add(1);
        one.fill(10);
        assert_eq!((one.bytes(), one.of_account(), two.of_account()), (11, 16, 16));
        assert_eq!(other.of_account(), 3);
        drop(one);
        assert_eq!(two.of_account(), 5);
        two.fill(9);
        assert_eq!((two.bytes(), two.of_account()), (9, 9));
        drop(two);
        let one = usage.begin(&alice);
        assert_eq!(one.of_account(), 0);
        // Nobody is remembered who has none.
        drop((one, other));
        usage.begin(&bob);
        assert_eq!(usage.0.lock().unwrap().len(), 1);
    }
}
