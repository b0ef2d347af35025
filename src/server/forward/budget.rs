//! What the channels of all clients hold together, and which account has to wait, or to go, for it.
//!
//! Always holds: accounts are judged, not connections, so nobody gets more by opening more of them.
//! An account may hold as much as is free, and an equal share in any case; past that its own windows
//! close, and nobody else's. What is too much for the process is made up for by the account that
//! holds the most. A packet costs a few atomic additions and no lock.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

use super::flow::FlowLimits;
use crate::domain::Id;

/// Whether an account's windows close that holds `mine` of `all` bytes, which `holders` accounts hold
/// together, it among them.
///
/// Whoever may hold as much as is free leaves as much to the next one: one account ends up with half
/// of `limit`, two with a third each. The equal share is the same amount, and is there even if others
/// hold more than they should, as those do for a while who had a window when theirs closed.
fn is_over_share(mine: usize, all: usize, holders: usize, limit: usize) -> bool {
    let free = limit.saturating_sub(all);
    mine > free && mine > limit / holders.saturating_add(1)
}

/// Which connection of which account is to go: the one that holds the most of the account that holds
/// the most. `None` while all hold no more than `limit` together.
fn heaviest(accounts: &[Vec<usize>], limit: usize) -> Option<(usize, usize)> {
    let sum = |connections: &Vec<usize>| connections.iter().sum::<usize>();
    if accounts.iter().map(sum).sum::<usize>() <= limit {
        return None;
    }
    let (account, connections) = accounts.iter().enumerate().max_by_key(|(_, held)| sum(held))?;
    let (connection, _) = connections.iter().enumerate().max_by_key(|(_, held)| **held)?;
    Some((account, connection))
}

/// What all channels of the process hold.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    /// How many accounts hold something. For a moment it may be one off either way.
    holders: AtomicIsize,
    limit: usize,
    accounts: Mutex<Vec<Weak<Account>>>,
}

/// What one account's channels hold, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// `None` for a connection that nobody signed in on.
    id: Option<Id>,
    held: AtomicUsize,
    connections: Mutex<Vec<Weak<Holder>>>,
}

/// What one connection's channels hold, those in an inner SSH included.
#[derive(Debug)]
pub(super) struct Holder {
    budget: Arc<Budget>,
    held: AtomicUsize,
    account: OnceLock<Arc<Account>>,
    /// Cancelled once it is to be cut off.
    pub(super) over: CancellationToken,
}

impl Budget {
    /// An empty budget.
    pub fn new(limits: FlowLimits) -> Self {
        let (held, holders, accounts) = Default::default();
        Self { held, holders, limit: limits.total, accounts }
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// The account of this id, which `holder` is a connection of from now on.
    fn enter(&self, id: Option<&Id>, holder: &Arc<Holder>) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|account| account.strong_count() > 0);
        let mut known = accounts.iter().filter_map(Weak::upgrade);
        let account = match known.find(|account| id.is_some() && account.id.as_ref() == id) {
            Some(account) => account,
            None => {
                let account = Arc::new(Account { id: id.cloned(), ..Account::default() });
                accounts.push(Arc::downgrade(&account));
                account
            }
        };
        let mut connections = account.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(holder));
        drop(connections);
        account
    }

    /// Cuts a connection off, unless what those hold that are cut off already is enough.
    fn relieve(&self) {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let accounts = accounts.iter().filter_map(Weak::upgrade);
        let staying: Vec<_> = accounts.map(|account| account.staying()).collect();
        let held: Vec<Vec<usize>> = staying
            .iter()
            .map(|holders| holders.iter().map(|holder| holder.held()).collect())
            .collect();
        let heaviest = heaviest(&held, self.limit);
        let holder =
            heaviest.and_then(|(account, connection)| staying.get(account)?.get(connection));
        if let Some(holder) = holder {
            holder.over.cancel();
        }
    }
}

impl Account {
    /// Its connections that are not cut off.
    fn staying(&self) -> Vec<Arc<Holder>> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let there = connections.iter().filter_map(Weak::upgrade);
        there.filter(|holder| !holder.over.is_cancelled()).collect()
    }
}

impl Holder {
    /// A connection that holds nothing, and is nobody's yet.
    pub(super) fn new(budget: Arc<Budget>) -> Arc<Self> {
        let (held, account, over) = Default::default();
        Arc::new(Self { budget, held, account, over })
    }

    /// Takes note of whose it is: before its first channel, or it is taken for an account of its own.
    pub(super) fn belongs_to(self: &Arc<Self>, id: &Id) {
        self.account.get_or_init(|| self.budget.enter(Some(id), self));
    }

    /// Its account.
    pub(super) fn account(self: &Arc<Self>) -> Arc<Account> {
        Arc::clone(self.account.get_or_init(|| self.budget.enter(None, self)))
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Whether its account holds more than it may while others want to, too.
    pub(super) fn is_over_share(&self) -> bool {
        let Some(account) = self.account.get() else { return false };
        let Budget { held, holders, limit, .. } = &*self.budget;
        let holders = usize::try_from(holders.load(Relaxed)).unwrap_or(0).max(1);
        is_over_share(account.held.load(Relaxed), held.load(Relaxed), holders, *limit)
    }

    /// Counts bytes that a channel of this connection, and of this account, took in; gives what the
    /// connection holds.
    pub(super) fn take(&self, account: &Account, bytes: usize) -> usize {
        let budget = &self.budget;
        if bytes > 0 && account.held.fetch_add(bytes, Relaxed) == 0 {
            budget.holders.fetch_add(1, Relaxed);
        }
        let held = self.held.fetch_add(bytes, Relaxed).saturating_add(bytes);
        let all = budget.held.fetch_add(bytes, Relaxed).saturating_add(bytes);
        if all > budget.limit {
            budget.relieve();
        }
        held
    }

    /// Counts bytes that a channel no longer holds.
    pub(super) fn give(&self, account: &Account, bytes: usize) {
        if bytes > 0 && account.held.fetch_sub(bytes, Relaxed) == bytes {
            self.budget.holders.fetch_sub(1, Relaxed);
        }
        self.held.fetch_sub(bytes, Relaxed);
        self.budget.held.fetch_sub(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_account_may_hold_what_is_free_and_its_share_in_any_case() {
        for (mine, all, holders, over) in [
            (50, 50, 1, false), // Alone: half of it.
            (51, 51, 1, true),
            (33, 66, 2, false),
            (40, 80, 2, true),
            (1, 100, 2, false), // Another one holds all of it.
            (33, 180, 2, false),
            (34, 180, 2, true),
            (99, 180, 2, true),
            (30, 60, 20, false), // Many that hold little take nothing from the large one.
            (9, 100, 9, false),
            (11, 100, 9, true),
        ] {
            assert_eq!(is_over_share(mine, all, holders, 100), over, "{mine} {all} {holders}");
        }
    }

    #[test]
    fn the_account_that_holds_the_most_makes_room_with_its_largest_connection() {
        for (accounts, gone) in [
            (vec![vec![60, 40]], None),
            (vec![vec![60, 41]], Some((0, 0))),
            // Many small connections of one account, and one of another that is larger than each.
            (vec![vec![9; 10], vec![11]], Some((0, 9))),
            (vec![vec![11], vec![9, 8, 70]], None),
            (vec![vec![30], vec![30, 10, 31]], Some((1, 2))),
            (vec![], None),
            (vec![vec![], vec![101]], Some((1, 0))),
        ] {
            assert_eq!(heaviest(&accounts, 100), gone, "{accounts:?}");
        }
    }

    proptest! {
        /// However little is free, who holds no more than an equal share is neither slowed nor cut off.
        #[test]
        fn nobody_within_a_share_pays_for_others(
            accounts in proptest::collection::vec(proptest::collection::vec(0_usize..400, 0..6), 1..8),
        ) {
            let limit = 1000;
            let sums: Vec<usize> = accounts.iter().map(|held| held.iter().sum()).collect();
            let holders = sums.iter().filter(|sum| **sum > 0).count().max(1);
            let (all, share) = (sums.iter().sum::<usize>(), limit / (holders + 1));
            for sum in &sums {
                let over = is_over_share(*sum, all, holders, limit);
                prop_assert!(!(over && *sum <= share));
                // While nobody is over, there is room for one more share.
                if all + share > limit {
                    prop_assert!(over || *sum <= share);
                }
            }
            match heaviest(&accounts, limit) {
                None => prop_assert!(all <= limit),
                Some((account, connection)) => {
                    prop_assert!(all > limit && sums[account] > share);
                    prop_assert_eq!(sums[account], *sums.iter().max().unwrap());
                    let most = accounts[account].iter().max().unwrap();
                    prop_assert_eq!(accounts[account][connection], *most);
                }
            }
        }

        /// What is counted comes back to nothing, and with it who holds something.
        #[test]
        fn what_is_taken_and_given_back_is_counted_once(
            steps in proptest::collection::vec((0_usize..3, 0_usize..50, any::<bool>()), 0..60),
        ) {
            let budget = Arc::new(Budget::new(super::super::flow::FlowLimits {
                window: 1, channel: 1, connection: 1, total: usize::MAX,
            }));
            // Two connections of one account, one of another.
            let ids = [Id::random().unwrap(), Id::random().unwrap()];
            let holders = [0, 0, 1].map(|n| {
                let holder = Holder::new(Arc::clone(&budget));
                holder.belongs_to(&ids[n]);
                holder
            });
            let mut held = [0; 3];
            for (n, bytes, take) in steps {
                let account = holders[n].account();
                if take {
                    holders[n].take(&account, bytes);
                    held[n] += bytes;
                } else {
                    let bytes = bytes.min(held[n]);
                    holders[n].give(&account, bytes);
                    held[n] -= bytes;
                }
                let some = [held[0] + held[1], held[2]].into_iter().filter(|sum| *sum > 0).count();
                prop_assert_eq!(budget.held(), held.iter().sum::<usize>());
                prop_assert_eq!(budget.holders.load(Relaxed), isize::try_from(some).unwrap());
            }
        }
    }
}
