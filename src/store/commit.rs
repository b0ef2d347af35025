//! Transactions of SQLite that share one wait for the disk.
//!
//! SQLite has one writer at a time, and each commit waits until the disk has written. Who is done
//! while others stand in line leaves its changes in the open transaction, lets them go on in it, and
//! waits for the commit behind them, which is one for all.
//!
//! Always holds: nobody is told that its changes last, nor what it read of others' changes, before
//! those last; a transaction that fails undoes its own changes only, back to its savepoint; where the
//! common commit fails, everybody in it is told so.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tracing::instrument::WithSubscriber as _;

use super::Error;
use super::pool::{Engine, Shared};

/// What is done and not yet committed; whoever writes holds its lock.
#[derive(Default)]
pub(super) struct Waiting(Option<Group>);

/// A connection in the writer's transaction, and who waits for its commit.
struct Group {
    engine: Engine,
    permit: OwnedSemaphorePermit,
    told: watch::Sender<Outcome>,
    then: Vec<Then>,
}

/// What is done once changes last, whether or not somebody still waits for that.
pub(super) type Then = Box<dyn FnOnce() + Send + Sync>;

/// What came of a commit, once it is known.
type Outcome = Option<Result<(), Arc<str>>>;

/// A transaction's place in a group.
pub(super) struct Seat {
    pub(super) engine: Engine,
    permit: OwnedSemaphorePermit,
    /// Those before it, whose changes must outlive a failure of its own.
    before: Option<(watch::Sender<Outcome>, Vec<Then>)>,
}

/// The commit to come.
pub(super) struct Commit(watch::Receiver<Outcome>);

impl Seat {
    /// The place of whoever began a transaction.
    pub(super) fn first(mut engine: Engine, permit: OwnedSemaphorePermit) -> Result<Self, Error> {
        engine.run_now("SAVEPOINT seat")?;
        Ok(Self { engine, permit, before: None })
    }
}

impl Waiting {
    /// Goes on in the transaction that is open, if one is.
    pub(super) fn join(&mut self) -> Option<Seat> {
        let Group { mut engine, permit, told, then } = self.0.take()?;
        match engine.run_now("SAVEPOINT seat") {
            Ok(()) => Some(Seat { engine, permit, before: Some((told, then)) }),
            Err(error) => {
                tell(&told, Err(error));
                None
            }
        }
    }

    /// Leaves what was done to the commit to come, and `after` to be done behind it.
    pub(super) fn leave(
        &mut self,
        seat: Seat,
        after: Then,
        pool: &Arc<Shared>,
    ) -> Result<Commit, Error> {
        let Seat { mut engine, permit, before } = seat;
        // Fails where SQLite has undone everything by itself, as when the disk is full.
        if let Err(error) = engine.run_now("RELEASE seat") {
            if let Some((told, _)) = &before {
                tell(told, Err(Error::Commit(error.to_string().into())));
            }
            return Err(error);
        }
        let (told, mut then) = before.unwrap_or_else(|| {
            commit_behind_those_in_line(pool);
            Default::default()
        });
        then.push(after);
        let commit = Commit(told.subscribe());
        self.0 = Some(Group { engine, permit, told, then });
        Ok(commit)
    }

    /// Commits what is open, if anything is. It goes on to the end also where nobody waits for it any
    /// more: those whose changes it makes last must hear of it.
    pub(super) async fn commit(&mut self, pool: &Arc<Shared>) {
        let Some(Group { mut engine, permit, told, then }) = self.0.take() else { return };
        let pool = Arc::clone(pool);
        #[allow(clippy::disallowed_methods)]
        // It ends by itself, and must not end with whoever asked.
        let committing = async move {
            engine.run_here(false);
            let outcome = engine.run("COMMIT").await;
            if outcome.is_ok() {
                pool.take_back(engine);
                then.into_iter().for_each(|then| then());
            }
            drop(permit);
            tell(&told, outcome);
        };
        #[allow(clippy::disallowed_methods)]
        // It ends by itself, and must not end with whoever asked.
        let committing = tokio::spawn(committing.with_current_subscriber());
        if let Err(error) = committing.await {
            tracing::error!(%error, "a commit was cut off"); // The runtime ends.
        }
    }

    /// Undoes what was done in `seat`, and nothing else; gives the commit of what it may have seen.
    pub(super) fn undo(&mut self, seat: Seat, pool: &Shared) -> Option<Commit> {
        let Seat { mut engine, permit, before } = seat;
        let Some((told, then)) = before else {
            if engine.run_now("ROLLBACK").is_ok() {
                pool.take_back(engine);
            }
            return None;
        };
        let seen = Commit(told.subscribe());
        match engine.run_now("ROLLBACK TO seat; RELEASE seat") {
            Ok(()) => self.0 = Some(Group { engine, permit, told, then }),
            // SQLite undid everything, as when the disk is full.
            Err(error) => tell(&told, Err(error)),
        }
        Some(seen)
    }
}

/// Commits as soon as everybody who stands in line by now has had their turn.
fn commit_behind_those_in_line(pool: &Arc<Shared>) {
    let pool = Arc::clone(pool);
    let commit = async move { pool.writer.lock().await.commit(&pool).await };
    // It ends by itself, and must not end with whoever waits for it.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(commit.with_current_subscriber());
}

fn tell(told: &watch::Sender<Outcome>, outcome: Result<(), Error>) {
    if let Err(error) = &outcome {
        tracing::error!(%error, "failed to commit");
    }
    told.send_replace(Some(outcome.map_err(|error| error.to_string().into())));
}

impl Commit {
    /// Waits until the changes last.
    pub(super) async fn lasts(mut self) -> Result<(), Error> {
        let told = self.0.wait_for(Option::is_some).await;
        match told.as_deref() {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(why))) => Err(Error::Commit(Arc::clone(why))),
            Ok(None) | Err(_) => Err(Error::Commit("the server is stopping".into())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Every task is awaited.
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::audit::{Context, Event};
    use crate::domain::UnixTime;
    use crate::store::{Store, Tx};

    /// A constraint that is looked at when it is committed.
    const BREAKS: &str = "PRAGMA defer_foreign_keys = ON; INSERT INTO user_keys (user_id, fingerprint, \
                          public_key, added_at) VALUES ('nobody', 'f', 'k', 0)";

    /// On one thread, so that whoever was spawned stands in line after a yield.
    fn with_store(test: impl AsyncFnOnce(Store)) {
        let dir = tempfile::tempdir().unwrap();
        // Migrations want more than one.
        let setup = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let store = setup.block_on(Store::for_test(dir.path()));
        let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        one.block_on(test(store));
    }

    async fn append(tx: &mut Tx<'_>) {
        tx.append(UnixTime(0), &Context::default(), Event::ClockDrift { seconds: 1 })
            .await
            .unwrap();
    }

    async fn count(store: &Store) -> usize {
        let events = store.events_after(0, 1000).await.unwrap();
        let head = store.audit_head().await.unwrap();
        assert_eq!(head.seq, events.last().map_or(0, |event| event.seq));
        assert_eq!(usize::try_from(head.seq).unwrap(), events.len(), "a number is missing");
        events.len()
    }

    /// Begins `n` transactions, each behind the one before; the first one holds the others up.
    fn line(store: &Store, n: usize) -> Vec<tokio::task::JoinHandle<Result<(), Error>>> {
        (0..n)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut tx = store.begin_short().await?;
                    append(&mut tx).await;
                    match n % 3 {
                        0 => tx.commit().await,
                        1 => tx.roll_back().await,
                        _ => {
                            drop(tx);
                            Ok(())
                        }
                    }
                })
            })
            .collect()
    }

    #[test]
    fn each_lasts_or_is_undone_by_itself() {
        with_store(async |store| {
            let mut first = store.begin_short().await.unwrap();
            append(&mut first).await;
            let others = line(&store, 9);
            tokio::task::yield_now().await; // They stand in line.
            first.commit().await.unwrap();
            for other in others {
                other.await.unwrap().unwrap();
            }
            assert_eq!(count(&store).await, 1 + 3);
        });
    }

    #[test]
    fn whoever_is_first_may_be_undone_alone() {
        with_store(async |store| {
            let mut first = store.begin_short().await.unwrap();
            append(&mut first).await;
            let others = line(&store, 4);
            tokio::task::yield_now().await;
            drop(first);
            for other in others {
                other.await.unwrap().unwrap();
            }
            assert_eq!(count(&store).await, 2);
        });
    }

    #[test]
    fn nobody_is_told_that_it_lasts_before_it_does() {
        with_store(async |store| {
            let mut first = store.begin_short().await.unwrap();
            append(&mut first).await;
            let (holds, hold) = tokio::sync::oneshot::channel();
            let (end, ends) = tokio::sync::oneshot::channel();
            let second = tokio::spawn({
                let store = store.clone();
                async move {
                    let mut tx = store.begin_short().await.unwrap();
                    append(&mut tx).await;
                    holds.send(()).unwrap();
                    ends.await.unwrap();
                    tx.commit().await
                }
            });
            tokio::task::yield_now().await; // The second stands in line.
            let mut first = Box::pin(first.commit());
            let early = tokio::time::timeout(Duration::from_millis(50), &mut first).await;
            assert!(early.is_err(), "it was told too soon");
            hold.await.unwrap();
            assert_eq!(count(&store).await, 0);
            end.send(()).unwrap();
            second.await.unwrap().unwrap();
            first.await.unwrap();
            assert_eq!(count(&store).await, 2);
        });
    }

    #[test]
    fn a_common_commit_that_fails_is_told_to_everybody() {
        with_store(async |store| {
            let mut first = store.begin_short().await.unwrap();
            append(&mut first).await;
            let others = line(&store, 4);
            tokio::task::yield_now().await;
            first.engine().run(BREAKS).await.unwrap();
            let told = first.commit().await;
            assert!(matches!(&told, Err(Error::Commit(_))), "{told:?}");
            for (n, other) in others.into_iter().enumerate() {
                assert_eq!(other.await.unwrap().is_err(), n % 3 != 2, "{n}");
            }
            assert_eq!(count(&store).await, 0);
            // The next one begins anew.
            let mut tx = store.begin_short().await.unwrap();
            append(&mut tx).await;
            tx.commit().await.unwrap();
            assert_eq!(count(&store).await, 1);
        });
    }

    #[test]
    fn what_was_seen_of_others_is_told_once_it_lasts() {
        with_store(async |store| {
            for breaks in [false, true] {
                let mut first = store.begin_short().await.unwrap();
                append(&mut first).await;
                let looks = tokio::spawn({
                    let store = store.clone();
                    async move {
                        let tx = store.begin_short().await?;
                        tx.roll_back().await // It has seen what the first one did.
                    }
                });
                tokio::task::yield_now().await;
                if breaks {
                    first.engine().run(BREAKS).await.unwrap();
                }
                assert_eq!(first.commit().await.is_err(), breaks);
                assert_eq!(looks.await.unwrap().is_err(), breaks);
            }
        });
    }

    #[test]
    fn an_event_that_could_not_be_written_lets_nothing_last() {
        with_store(async |store| {
            let mut tx = store.begin_short().await.unwrap();
            tx.engine().run("DROP TABLE audit_events").await.unwrap();
            let event = Event::ClockDrift { seconds: 1 };
            tx.append(UnixTime(0), &Context::default(), event).await.unwrap_err();
            tx.commit().await.unwrap_err();
            assert_eq!(count(&store).await, 0);
        });
    }

    #[test]
    fn what_is_long_stands_alone_behind_what_was_done() {
        with_store(async |store| {
            let mut first = store.begin_short().await.unwrap();
            append(&mut first).await;
            let long = tokio::spawn({
                let store = store.clone();
                async move {
                    let mut tx = store.begin().await?;
                    append(&mut tx).await;
                    tx.roll_back().await
                }
            });
            tokio::task::yield_now().await;
            first.commit().await.unwrap();
            long.await.unwrap().unwrap();
            assert_eq!(count(&store).await, 1);
        });
    }
}
