//! Caps and penalties for who is not signed in yet, as OpenSSH's MaxStartups and
//! PerSourcePenalties do it.
//!
//! Always holds: a place that was given is given back when its [`Admission`] is dropped, whatever
//! happened in between; every table is bounded; a source is an IPv4 address or the /64 of an IPv6
//! one. No lock is held across a wait.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use ipnet::IpNet;

use crate::domain::Source;

/// The most sources that penalties and reports are remembered of.
const MAX_SOURCES: usize = 65_536;
/// A penalty below this is remembered and not yet enforced.
const ENFORCED_FROM: Duration = Duration::from_secs(15);
/// The longest penalty.
const LONGEST: Duration = Duration::from_secs(600);
/// Reports a second, and at once: many sources must not fill the audit log, nor its line.
const REPORTS: (u32, u32) = (2, 20);
/// Events a second, and at once, of connections that were let in and whose sign-in was refused.
const REFUSALS: (u32, u32) = (50, 500);
/// How often one source's refusals are reported.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// The caps in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All connections.
    pub connections: usize,
    /// Connections that nobody has signed in on.
    pub unauthenticated: usize,
    /// The same, from one source.
    pub unauthenticated_per_source: usize,
    /// Login attempts a minute from one source.
    pub attempts_per_minute: NonZeroU32,
    /// Login attempts at once from one source.
    pub attempts_burst: NonZeroU32,
    /// Networks that are neither penalized nor counted by source.
    pub exempt: Vec<IpNet>,
}

/// What a source did that counts against it, and how heavily (OpenSSH's defaults).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// A login failed.
    AuthFailed,
    /// It left without trying to sign in.
    NoAuth,
    /// It did not sign in within the grace time.
    GraceExceeded,
    /// It broke the protocol before signing in.
    ProtocolError,
}

impl Offence {
    fn penalty(self) -> Duration {
        match self {
            Self::AuthFailed => Duration::from_secs(5),
            Self::NoAuth | Self::ProtocolError => Duration::from_secs(1),
            Self::GraceExceeded => Duration::from_secs(10),
        }
    }
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The cap on all connections.
    #[error("too many connections")]
    Full,
    /// The cap on those not signed in.
    #[error("too many connections that nobody signed in on")]
    TooManyUnauthenticated,
    /// The cap on those of one source.
    #[error("too many connections from this source that nobody signed in on")]
    TooManyFromSource,
    /// A penalty.
    #[error("a penalty of {0:?} is in force")]
    Penalized(Duration),
}

/// The guard of all listeners.
pub struct Guard {
    state: Mutex<State>,
    attempts: Mutex<Arc<DefaultKeyedRateLimiter<IpNet>>>,
    reports: DefaultDirectRateLimiter,
    refusals: DefaultDirectRateLimiter,
    /// Refusals that were not written down one by one since that was last said.
    suppressed: AtomicU64,
}

struct State {
    limits: Limits,
    connections: usize,
    unauthenticated: usize,
    by_source: HashMap<IpNet, usize>,
    /// Until when each source's penalty lasts.
    penalties: HashMap<IpNet, Instant>,
    reported: HashMap<IpNet, Instant>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("limits", &self.state().limits).finish_non_exhaustive()
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Admission {
    guard: Arc<Guard>,
    /// Until somebody signs in.
    unauthenticated: bool,
    /// The source it counts for, until then.
    by_source: Option<IpNet>,
}

impl Guard {
    /// A guard with these limits and an empty record.
    pub fn new(limits: Limits) -> Arc<Self> {
        let attempts = Mutex::new(limiter(&limits));
        Arc::new(Self {
            attempts,
            reports: direct(REPORTS),
            refusals: direct(REFUSALS),
            suppressed: AtomicU64::new(0),
            state: Mutex::new(State {
                limits,
                connections: 0,
                unauthenticated: 0,
                by_source: HashMap::new(),
                penalties: HashMap::new(),
                reported: HashMap::new(),
            }),
        })
    }

    /// Puts other limits in force, for connections to come. Attempts are counted anew only if their
    /// limit is another one.
    pub fn set_limits(&self, limits: Limits) {
        let rate = |limits: &Limits| (limits.attempts_per_minute, limits.attempts_burst);
        let mut state = self.state();
        if rate(&state.limits) != rate(&limits) {
            *self.attempts.lock().unwrap_or_else(PoisonError::into_inner) = limiter(&limits);
        }
        state.limits = limits;
    }

    /// Gives a new connection a place, whoever it is from, or says why not.
    ///
    /// # Errors
    /// The cap in the way.
    pub fn enter(self: &Arc<Self>) -> Result<Admission, Denied> {
        let mut state = self.state();
        if state.connections >= state.limits.connections {
            return Err(Denied::Full);
        }
        if state.unauthenticated >= state.limits.unauthenticated {
            return Err(Denied::TooManyUnauthenticated);
        }
        state.connections += 1;
        state.unauthenticated += 1;
        drop(state);
        Ok(Admission { guard: Arc::clone(self), unauthenticated: true, by_source: None })
    }

    /// Gives a new connection from `source` a place, or says why not.
    ///
    /// # Errors
    /// The first cap or penalty in the way.
    #[cfg(test)]
    fn admit(self: &Arc<Self>, source: &Source, now: Instant) -> Result<Admission, Denied> {
        let mut admission = self.enter()?;
        admission.identify(source, now).map(|()| admission)
    }

    /// Whether a source may try to sign in once more right now.
    pub fn attempt(&self, source: &Source) -> bool {
        let attempts = Arc::clone(&self.attempts.lock().unwrap_or_else(PoisonError::into_inner));
        let exempt = self.state().counted(source).is_none();
        exempt || attempts.check_key(&source.network()).is_ok()
    }

    /// Counts an offence; gives the penalty's length when it begins to be enforced by this.
    pub fn penalize(&self, source: &Source, offence: Offence, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        let network = state.counted(source)?;
        let before = state.penalty(&network, now).unwrap_or_default();
        let after = (before + offence.penalty()).min(LONGEST);
        if state.penalties.len() >= MAX_SOURCES && !state.penalties.contains_key(&network) {
            state.evict(now);
        }
        state.penalties.insert(network, now + after);
        (before < ENFORCED_FROM && after >= ENFORCED_FROM).then_some(after)
    }

    /// Whether a refusal of this source is worth an audit event: once a minute.
    pub fn should_report(&self, source: &Source, now: Instant) -> bool {
        let mut state = self.state();
        let network = source.network();
        let due = state.reported.get(&network).is_none_or(|last| now >= *last + REPORT_EVERY);
        if due && (state.reported.len() < MAX_SOURCES || state.reported.contains_key(&network)) {
            state.reported.insert(network, now);
            return self.reports.check().is_ok();
        }
        false
    }

    /// Whether one more refusal of somebody who is not signed in is written down by itself: many sources
    /// together must not keep the store's one writer from everybody else. It is counted if not.
    pub fn may_record(&self) -> bool {
        let within = self.refusals.check().is_ok();
        if !within {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        within
    }

    /// How many refusals were only counted since the last call.
    pub fn take_suppressed(&self) -> u64 {
        self.suppressed.swap(0, Ordering::Relaxed)
    }

    /// Forgets what no longer matters.
    pub fn prune(&self, now: Instant) {
        let attempts = Arc::clone(&self.attempts.lock().unwrap_or_else(PoisonError::into_inner));
        attempts.retain_recent();
        attempts.shrink_to_fit();
        let mut state = self.state();
        state.penalties.retain(|_, until| *until > now);
        state.penalties.shrink_to_fit();
        state.reported.retain(|_, last| now < *last + REPORT_EVERY);
        state.reported.shrink_to_fit();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many a second, and so many at once.
pub(super) fn direct((per_second, at_once): (u32, u32)) -> DefaultDirectRateLimiter {
    let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(at_once));
    RateLimiter::direct(quota)
}

fn limiter(limits: &Limits) -> Arc<DefaultKeyedRateLimiter<IpNet>> {
    let quota = Quota::per_minute(limits.attempts_per_minute).allow_burst(limits.attempts_burst);
    Arc::new(RateLimiter::keyed(quota))
}

impl State {
    /// The network that a source is counted by; `None` if it is exempt.
    fn counted(&self, source: &Source) -> Option<IpNet> {
        let exempt = self.limits.exempt.iter().any(|net| net.contains(&source.ip()));
        (!exempt).then(|| source.network())
    }

    fn penalty(&self, network: &IpNet, now: Instant) -> Option<Duration> {
        let until = self.penalties.get(network)?;
        Some(until.saturating_duration_since(now))
    }

    /// Makes room by forgetting the source whose penalty ends first.
    fn evict(&mut self, now: Instant) {
        self.penalties.retain(|_, until| *until > now);
        if self.penalties.len() >= MAX_SOURCES {
            let first = self.penalties.iter().min_by_key(|(_, until)| **until).map(|(net, _)| *net);
            if let Some(first) = first {
                self.penalties.remove(&first);
            }
        }
    }
}

impl Admission {
    /// Counts it for the source that it turned out to be from, or says why it cannot stay.
    ///
    /// # Errors
    /// The cap or penalty in the way.
    pub fn identify(&mut self, source: &Source, now: Instant) -> Result<(), Denied> {
        let mut state = self.guard.state();
        let Some(network) = state.counted(source) else { return Ok(()) };
        if let Some(left) = state.penalty(&network, now).filter(|left| *left >= ENFORCED_FROM) {
            return Err(Denied::Penalized(left));
        }
        let most = state.limits.unauthenticated_per_source;
        let count = state.by_source.entry(network).or_default();
        if *count >= most {
            return Err(Denied::TooManyFromSource);
        }
        *count += 1;
        drop(state);
        self.by_source = Some(network);
        Ok(())
    }

    /// Somebody signed in: from now on only the cap on all connections counts it.
    pub fn authenticated(&mut self) {
        if std::mem::take(&mut self.unauthenticated) {
            let mut state = self.guard.state();
            state.unauthenticated = state.unauthenticated.saturating_sub(1);
            leave_source(&mut state, self.by_source.take());
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.authenticated();
        let mut state = self.guard.state();
        state.connections = state.connections.saturating_sub(1);
    }
}

fn leave_source(state: &mut State, network: Option<IpNet>) {
    let Some(network) = network else { return };
    if let Some(count) = state.by_source.get_mut(&network) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            state.by_source.remove(&network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits {
            connections: 8,
            unauthenticated: 5,
            unauthenticated_per_source: 3,
            attempts_per_minute: NonZeroU32::new(60).unwrap(),
            attempts_burst: NonZeroU32::new(4).unwrap(),
            exempt: vec!["203.0.113.0/24".parse().unwrap()],
        }
    }

    fn source(n: u8) -> Source {
        Source(format!("192.0.2.{n}:1").parse().unwrap())
    }

    #[test]
    fn caps_hold_and_places_come_back() {
        let (guard, now) = (Guard::new(limits()), Instant::now());
        let mut held: Vec<_> = (0..3).map(|_| guard.admit(&source(1), now).unwrap()).collect();
        assert_eq!(guard.admit(&source(1), now).unwrap_err(), Denied::TooManyFromSource);
        held.extend((0..2).map(|_| guard.admit(&source(2), now).unwrap()));
        assert_eq!(guard.admit(&source(3), now).unwrap_err(), Denied::TooManyUnauthenticated);
        held.iter_mut().for_each(Admission::authenticated);
        held.extend((0..3).map(|_| guard.admit(&source(1), now).unwrap()));
        assert_eq!(guard.admit(&source(4), now).unwrap_err(), Denied::Full);
        drop(held);
        assert!(guard.admit(&source(4), now).is_ok());
    }

    #[test]
    fn penalties_add_up_and_run_out() {
        let (guard, now) = (Guard::new(limits()), Instant::now());
        let penalize = |offence| guard.penalize(&source(1), offence, now);
        assert_eq!(penalize(Offence::AuthFailed), None);
        assert_eq!(penalize(Offence::AuthFailed), None);
        assert!(guard.admit(&source(1), now).is_ok());
        assert_eq!(penalize(Offence::AuthFailed), Some(Duration::from_secs(15)));
        assert!(matches!(guard.admit(&source(1), now), Err(Denied::Penalized(_))));
        assert!(guard.admit(&source(2), now).is_ok());
        assert!(guard.admit(&source(1), now + Duration::from_secs(16)).is_ok());
        for _ in 0..200 {
            guard.penalize(&source(1), Offence::GraceExceeded, now);
        }
        assert!(guard.admit(&source(1), now + LONGEST + Duration::from_secs(1)).is_ok());
        let exempt = Source("203.0.113.9:1".parse().unwrap());
        for _ in 0..9 {
            assert_eq!(guard.penalize(&exempt, Offence::GraceExceeded, now), None);
        }
    }

    #[test]
    fn attempts_are_limited_by_source() {
        let guard = Guard::new(limits());
        assert_eq!((0..9).filter(|_| guard.attempt(&source(1))).count(), 4);
        assert!(guard.attempt(&source(2)));
        // A reload that leaves the limit alone does not begin to count anew.
        guard.set_limits(Limits { connections: 9, ..limits() });
        assert!(!guard.attempt(&source(1)));
        guard.set_limits(Limits { attempts_burst: NonZeroU32::new(5).unwrap(), ..limits() });
        assert!(guard.attempt(&source(1)));
    }

    #[test]
    fn a_source_is_reported_once_a_minute() {
        let (guard, now) = (Guard::new(limits()), Instant::now());
        assert!(guard.should_report(&source(1), now));
        assert!(!guard.should_report(&source(1), now + Duration::from_secs(59)));
        assert!(guard.should_report(&source(1), now + Duration::from_secs(60)));
    }

    #[test]
    fn refusals_past_the_budget_are_counted() {
        let guard = Guard::new(limits());
        let written = (0..2000).filter(|_| guard.may_record()).count();
        assert!((500..700).contains(&written), "{written}");
        assert_eq!(guard.take_suppressed(), 2000 - written as u64);
        assert_eq!(guard.take_suppressed(), 0);
    }

    #[test]
    fn the_table_of_penalties_is_bounded() {
        let (guard, now) = (Guard::new(limits()), Instant::now());
        for n in 0..70_000_u32 {
            let source =
                Source(format!("[2001:db8:{:x}:{:x}::1]:1", n >> 16, n & 0xffff).parse().unwrap());
            guard.penalize(&source, Offence::NoAuth, now + Duration::from_micros(u64::from(n)));
        }
        assert!(guard.state().penalties.len() <= MAX_SOURCES);
        guard.prune(now + LONGEST);
        assert_eq!(guard.state().penalties.len(), 0);
    }

    proptest! {
        #[test]
        fn no_place_is_ever_lost(moves in proptest::collection::vec((0..3_u8, 0..4_u8, 0..8_usize), 0..60)) {
            let (guard, now) = (Guard::new(limits()), Instant::now());
            let mut held: Vec<Admission> = Vec::new();
            for (what, from, which) in moves {
                match what {
                    0 => held.extend(guard.admit(&source(from), now)),
                    1 => if let Some(one) = held.get_mut(which) { one.authenticated() },
                    _ => if which < held.len() { drop(held.swap_remove(which)) },
                }
                let state = guard.state();
                prop_assert_eq!(state.connections, held.len());
                prop_assert!(state.unauthenticated <= 5 && state.by_source.values().all(|n| *n <= 3));
            }
            drop(held);
            let state = guard.state();
            prop_assert_eq!((state.connections, state.unauthenticated, state.by_source.len()), (0, 0, 0));
        }
    }
}
