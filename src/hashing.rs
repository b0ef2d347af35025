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
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(free) => free,
            Err(_) => {
                let _waiting = Waiting::enter(&self.waiting, self.queue)?;
                Arc::clone(&self.places).acquire_owned().await.map_err(|_| Error::Busy)?
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const COST: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    /// What a PHC string says of its cost, in front of salt and hash.
    fn parameters(phc: &str) -> Vec<&str> {
        phc.split('$').take(4).collect()
    }

    /// Work that tells when it began, and ends when it is told to.
    fn held() -> (impl FnOnce() -> Result<(), password::Error>, mpsc::Receiver<()>, mpsc::Sender<()>)
    {
        let (begin, began) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let work = move || {
            begin.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        };
        (work, began, release)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn so_many_run_so_many_wait_and_the_next_is_told() {
        let hashing = Hashing::new(2, 3, COST).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        let mut holding = Vec::new();
        let mut jobs = Vec::new();
        for _ in 0..5 {
            let (work, began, release) = held();
            holding.push((began, release));
            jobs.push(work);
        }
        let mut jobs = jobs.into_iter();
        for job in jobs.by_ref().take(2) {
            let hashing = hashing.clone();
            tasks.spawn(async move { hashing.run(job).await });
        }
        for (began, _) in &holding[..2] {
            began.recv_timeout(Duration::from_secs(40)).unwrap();
        }
        for job in jobs {
            let hashing = hashing.clone();
            tasks.spawn(async move { hashing.run(job).await });
        }
        while hashing.waiting.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        assert!(holding[2..].iter().all(|(began, _)| began.try_recv().is_err()), "a third runs");
        assert!(matches!(hashing.hash("x".into()).await, Err(Error::Busy)));
        assert!(matches!(hashing.verify("x".into(), None).await, Err(Error::Busy)));
        holding.iter().for_each(|(_, release)| release.send(()).unwrap());
        while let Some(done) = tasks.join_next().await {
            done.unwrap().unwrap();
        }
        assert_eq!(hashing.waiting.load(Ordering::SeqCst), 0);
        hashing.hash("x".into()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_leaves_the_queue_makes_room_and_a_hash_keeps_its_place_to_the_end() {
        let hashing = Hashing::new(1, 1, COST).unwrap();
        let (work, began, release) = held();
        let mut running = Box::pin(hashing.run(work));
        assert!(futures_util::poll!(running.as_mut()).is_pending());
        began.recv_timeout(Duration::from_secs(40)).unwrap();
        drop(running); // Its client left; the hash goes on.
        let mut waits = Box::pin(hashing.hash("x".into()));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        assert!(matches!(hashing.hash("x".into()).await, Err(Error::Busy)));
        drop(waits);
        let next = hashing.hash("x".into());
        release.send(()).unwrap();
        next.await.unwrap();
    }

    #[tokio::test]
    async fn nobodys_password_is_compared_at_the_cost_of_anybodys() {
        let cost = Cost { memory_kib: 16, passes: 3, lanes: 1 };
        let hashing = Hashing::new(1, 1, cost).unwrap();
        let hash = hashing.hash("gleaming cactus 91".into()).await.unwrap();
        assert_eq!(parameters(&hashing.decoy), parameters(&hash));
        assert_eq!(parameters(&hash), ["", "argon2id", "v=19", "m=16,t=3,p=1"]);
        assert_eq!(hashing.decoy.len(), hash.len());
        let verified = hashing.verify("gleaming cactus 91".into(), Some(hash)).await.unwrap();
        assert_eq!(verified, Verified::Match { rehash: false });
        // Not even whoever knew what the decoy was made from would get in.
        let known = Hashing { decoy: password::hash(&"x".into(), cost).unwrap().into(), ..hashing };
        assert_eq!(known.verify("x".into(), None).await.unwrap(), Verified::Mismatch);
    }

    #[tokio::test]
    async fn a_hash_of_another_cost_is_to_be_made_anew() {
        let old = password::hash(&"x".into(), COST).unwrap();
        let hashing = Hashing::new(1, 1, Cost { passes: 2, ..COST }).unwrap();
        let verified = hashing.verify("x".into(), Some(old)).await.unwrap();
        assert_eq!(verified, Verified::Match { rehash: true });
    }
}
