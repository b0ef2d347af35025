//! Password hashing off the connections' tasks, a bounded number at a time.
//!
//! Always holds: no more hashes run than there are places, no more wait than the queue holds, and
//! a password of nobody's is compared with a decoy at the same cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use secrecy::SecretString;
use tokio::sync::Semaphore;

use crate::auth::password::{self, Cost, Verified};

/// Hashing could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many logins wait already.
    #[error("password hashing is at its limit")]
    Busy,
    /// The hash in the store is damaged, or the parameters are out of range.
    #[error(transparent)]
    Password(#[from] password::Error),
    /// The blocking task died.
    #[error("a password hash did not finish: {0}")]
    Died(#[from] tokio::task::JoinError),
}

/// The places where passwords are hashed.
#[derive(Debug, Clone)]
pub struct Hashing {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    queue: usize,
    cost: Cost,
    decoy: Arc<str>,
}

impl Hashing {
    /// `places` hashes at a time, and `queue` more that wait.
    ///
    /// # Errors
    /// When `cost` is out of range.
    pub fn new(places: usize, queue: usize, cost: Cost) -> Result<Self, password::Error> {
        Ok(Self {
            places: Arc::new(Semaphore::new(places.max(1))),
            waiting: Arc::default(),
            queue,
            cost,
            decoy: password::decoy(cost)?.into(),
        })
    }

    /// Compares `password` with `hash`, or with the decoy if there is none.
    ///
    /// # Errors
    /// When too many wait, or the hash is damaged.
    pub async fn verify(
        &self,
        password: SecretString,
        hash: Option<String>,
    ) -> Result<Verified, Error> {
        let (cost, decoy) = (self.cost, Arc::clone(&self.decoy));
        let known = hash.is_some();
        let verified = self
            .run(move || password::verify(&password, hash.as_deref().unwrap_or(&decoy), cost))
            .await?;
        Ok(if known { verified } else { Verified::Mismatch })
    }

    /// Hashes `password`.
    ///
    /// # Errors
    /// When too many wait.
    pub async fn hash(&self, password: SecretString) -> Result<String, Error> {
        let cost = self.cost;
        self.run(move || password::hash(&password, cost)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, password::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _waiting = Waiting::enter(&self.waiting, self.queue)?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Error::Busy)?;
        let result = tokio::task::spawn_blocking(move || {
            let _place = place; // Held until the hash is done, even if nobody waits for it any more.
            work()
        });
        Ok(result.await??)
    }
}

/// One login in the queue; it leaves when this is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn enter(waiting: &Arc<AtomicUsize>, most: usize) -> Result<Self, Error> {
        let entered = waiting
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1));
        entered.map(|_| Self(Arc::clone(waiting))).map_err(|_| Error::Busy)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
