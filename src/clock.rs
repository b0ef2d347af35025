//! The only place that asks what time it is, so that tests can decide it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::domain::UnixTime;

/// A source of the current time.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The system's clock.
    System,
    /// A time that stands still until a test moves it.
    Test(TestClock),
}

/// The hands of a [`Clock::Test`].
#[derive(Debug, Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    /// A clock that stands at `now`.
    pub fn at(now: UnixTime) -> Self {
        Self(Arc::new(AtomicI64::new(now.0)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock {
    /// Milliseconds since the epoch; 0 on a system whose clock stands before 1970.
    #[allow(clippy::disallowed_methods)] // The one place that may.
    pub fn now(&self) -> UnixTime {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                UnixTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            Self::Test(clock) => UnixTime(clock.0.load(Ordering::SeqCst)),
        }
    }
}
