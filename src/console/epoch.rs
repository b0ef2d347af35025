//! The epoch of an account as one of its own sessions knows it.
//!
//! Always holds: a change that ends an account's other sessions, made in this session, does not end
//! this one; any other change still does, also one at the same moment.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use crate::audit::Refusal;

/// See above. An account's epoch only grows.
#[derive(Debug)]
pub struct OwnEpoch {
    newest: AtomicI64,
    changing: AtomicBool,
    turn: tokio::sync::Mutex<()>,
}

impl Default for OwnEpoch {
    fn default() -> Self {
        let (newest, changing) = (AtomicI64::new(i64::MIN), AtomicBool::new(false));
        Self { newest, changing, turn: tokio::sync::Mutex::default() }
    }
}

impl OwnEpoch {
    /// The epoch of this session, which began with `signed_in`.
    pub fn since(&self, signed_in: i64) -> i64 {
        self.newest.load(SeqCst).max(signed_in)
    }

    /// Whether a change is under way: what the store says now cannot be judged until it is done.
    pub fn is_changing(&self) -> bool {
        self.changing.load(SeqCst)
    }

    /// Changes the account by `work`, which is given the present epoch and gives the new one with what
    /// else came of it.
    ///
    /// # Errors
    /// What `work` failed with.
    pub async fn change<T, E>(
        &self,
        signed_in: i64,
        work: impl AsyncFnOnce(i64) -> Result<Result<(i64, T), Refusal>, E>,
    ) -> Result<Result<T, Refusal>, E> {
        let _turn = self.turn.lock().await;
        let _over = Changing::begin(&self.changing);
        Ok(work(self.since(signed_in)).await?.map(|(epoch, made)| {
            self.newest.fetch_max(epoch, SeqCst);
            made
        }))
    }
}

/// A change under way; over when dropped, however it ended.
struct Changing<'a>(&'a AtomicBool);

impl<'a> Changing<'a> {
    fn begin(changing: &'a AtomicBool) -> Self {
        changing.store(true, SeqCst);
        Self(changing)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_came_of_a_change_is_known_before_it_is_over() {
        let own = OwnEpoch::default();
        assert_eq!((own.since(3), own.is_changing()), (3, false));
        let made = own.change(3, async |epoch| {
            assert!(own.is_changing());
            Ok::<_, ()>(Ok((epoch + 1, "made")))
        });
        assert_eq!(made.await, Ok(Ok("made")));
        assert_eq!((own.since(3), own.is_changing()), (4, false));
        let refused = own.change(3, async |epoch| {
            assert_eq!(epoch, 4);
            Ok::<Result<(i64, ()), _>, ()>(Err(Refusal::AccountChanged))
        });
        assert_eq!(refused.await, Ok(Err(Refusal::AccountChanged)));
        assert!(own.change(3, async |_| Err::<Result<(i64, ()), _>, _>(())).await.is_err());
        assert_eq!((own.since(3), own.is_changing()), (4, false));
    }
}
