//! Caps and penalties for who is not signed in yet, as OpenSSH's MaxStartups and
//! PerSourcePenalties do it.
//!
//! Always holds: a place that was given is given back when its [`Admission`] is dropped, whatever
//! happened in between; every table is bounded; a source is an IPv4 address or the /64 of an IPv6
//! one, and counts for its /56 and its /48, too, which one customer may hold all of. Beside the places
//! of those not signed in are a quarter as many for sources that somebody signed in from lately, and of
//! those only their own connections count: strangers, however many, and neighbours in their site do not
//! shut them out. No lock is held across a wait.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use ipnet::{IpNet, Ipv6Net};

use crate::domain::Source;

/// The most sources that penalties, reports and sign-ins are remembered of.
pub const MAX_SOURCES: usize = 65_536;
/// For how long it is known that somebody signed in from a source.
pub const KNOWN_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
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

/// What is reported of a source now and then, and counted in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Report {
    /// Connections that were not let in.
    TurnedAway,
    /// Sign-ins for an account that is locked for it.
    Locked,
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
    reported: HashMap<(IpNet, Report), Instant>,
    /// Until when each source is known that somebody signed in from.
    known: HashMap<IpNet, Instant>,
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
    /// The networks it counts for, until then: its source, and what that is part of.
    by_source: Vec<IpNet>,
    /// Where it is from, once that is known.
    source: Option<IpNet>,
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
                known: HashMap::new(),
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
        // Whether it may have one of the last of these is asked once it is known where it is from.
        if state.unauthenticated >= state.limits.unauthenticated + state.reserved() {
            return Err(Denied::TooManyUnauthenticated);
        }
        state.connections += 1;
        state.unauthenticated += 1;
        drop(state);
        let (guard, by_source) = (Arc::clone(self), Vec::new());
        Ok(Admission { guard, unauthenticated: true, by_source, source: None })
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

    /// Takes note of sources that somebody signed in from before this process began, each with how long ago
    /// that was. What this process knows itself stays, also where there is no more room.
    pub fn recall(&self, sources: impl IntoIterator<Item = (IpNet, Duration)>, now: Instant) {
        let mut state = self.state();
        for (network, ago) in sources {
            let has_room = state.known.len() < MAX_SOURCES || state.known.contains_key(&network);
            if ago < KNOWN_FOR && has_room {
                let until = now + (KNOWN_FOR - ago);
                let known = state.known.entry(network).or_insert(until);
                *known = until.max(*known);
            }
        }
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

    /// Whether turning this source away is worth an audit event: once a minute.
    pub fn should_report(&self, source: &Source, now: Instant) -> bool {
        self.is_due((source.network(), Report::TurnedAway), now)
    }

    /// Whether one more refusal is written down of a sign-in for which this source is locked: once a
    /// minute. It was written down what led to the lock, and nothing that is typed meanwhile is judged. It
    /// is counted if not.
    pub fn may_record_locked(&self, source: &Source, now: Instant) -> bool {
        let due = self.is_due((source.network(), Report::Locked), now);
        if !due {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        due
    }

    fn is_due(&self, what: (IpNet, Report), now: Instant) -> bool {
        let mut state = self.state();
        let due = state.reported.get(&what).is_none_or(|last| now >= *last + REPORT_EVERY);
        if due && (state.reported.len() < MAX_SOURCES || state.reported.contains_key(&what)) {
            state.reported.insert(what, now);
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
        state.known.retain(|_, until| now < *until);
        state.known.shrink_to_fit();
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

    /// Places for sources that are known, beside those of everybody.
    fn reserved(&self) -> usize {
        (self.limits.unauthenticated / 4).max(1)
    }

    fn is_known(&self, network: &IpNet, now: Instant) -> bool {
        self.known.get(network).is_some_and(|until| now < *until)
    }

    /// Takes note that somebody signed in from a source; the one that was heard of longest ago makes
    /// room for it.
    fn note_known(&mut self, network: IpNet, now: Instant) {
        if self.known.len() >= MAX_SOURCES && !self.known.contains_key(&network) {
            let oldest = self.known.iter().min_by_key(|(_, until)| **until).map(|(net, _)| *net);
            oldest.and_then(|oldest| self.known.remove(&oldest));
        }
        self.known.insert(network, now + KNOWN_FOR);
    }

    /// The networks that a source counts for, each with the most connections from it that nobody has
    /// signed in on: twice a source's for a site of IPv6 sources, and something between for a part.
    fn counts_for(&self, source: IpNet) -> Vec<(IpNet, usize)> {
        let most = self.limits.unauthenticated_per_source;
        let mut counts = vec![(source, most)];
        if let IpNet::V6(network) = source {
            let wider = [(56, most.saturating_mul(3) / 2), (48, most.saturating_mul(2))];
            counts.extend(wider.into_iter().filter_map(|(prefix, most)| {
                let wider = Ipv6Net::new(network.addr(), prefix).ok()?.trunc();
                Some((IpNet::V6(wider), most))
            }));
        }
        counts
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
        let network = source.network();
        self.source = Some(network);
        if state.unauthenticated > state.limits.unauthenticated && !state.is_known(&network, now) {
            return Err(Denied::TooManyUnauthenticated);
        }
        let Some(network) = state.counted(source) else { return Ok(()) };
        if let Some(left) = state.penalty(&network, now).filter(|left| *left >= ENFORCED_FROM) {
            return Err(Denied::Penalized(left));
        }
        let mut counts = state.counts_for(network);
        if state.is_known(&network, now) {
            counts.truncate(1); // Its own, which comes first.
        }
        let count = |net: &IpNet| state.by_source.get(net).copied().unwrap_or_default();
        if counts.iter().any(|(net, most)| count(net) >= *most) {
            return Err(Denied::TooManyFromSource);
        }
        for (net, _) in counts {
            *state.by_source.entry(net).or_default() += 1;
            self.by_source.push(net);
        }
        Ok(())
    }

    /// Somebody signed in: from now on only the cap on all connections counts it.
    pub fn authenticated(&mut self, now: Instant) {
        self.leave();
        if let Some(source) = self.source {
            self.guard.state().note_known(source, now);
        }
    }

    /// Gives the place among those back that nobody has signed in on.
    fn leave(&mut self) {
        if std::mem::take(&mut self.unauthenticated) {
            let mut state = self.guard.state();
            state.unauthenticated = state.unauthenticated.saturating_sub(1);
            for network in self.by_source.drain(..) {
                leave_source(&mut state, network);
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.leave();
        let mut state = self.guard.state();
        state.connections = state.connections.saturating_sub(1);
    }
}

fn leave_source(state: &mut State, network: IpNet) {
    if let Some(count) = state.by_source.get_mut(&network) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            state.by_source.remove(&network);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

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
        held.iter_mut().for_each(|one| one.authenticated(now));
        held.extend((0..3).map(|_| guard.admit(&source(1), now).unwrap()));
        assert_eq!(guard.admit(&source(4), now).unwrap_err(), Denied::Full);
        drop(held);
        assert!(guard.admit(&source(4), now).is_ok());
    }

    /// One customer's networks, and a handful of addresses.
    #[test]
    fn neither_a_site_nor_many_sources_shut_out_who_is_known() {
        let many = Limits {
            connections: 1000,
            unauthenticated: 100,
            unauthenticated_per_source: 20,
            ..limits()
        };
        let (guard, now) = (Guard::new(many), Instant::now());
        let six = |network: u16| Source(format!("[2001:db8:0:{network:x}::1]:1").parse().unwrap());
        let mut held: Vec<Admission> = Vec::new();
        let mut hold = |sources: &mut dyn Iterator<Item = Source>| {
            let before = held.len();
            for source in sources {
                held.extend((0..30).map_while(|_| guard.admit(&source, now).ok()));
            }
            held.len() - before
        };
        guard.admit(&source(200), now).unwrap().authenticated(now);
        // A /60 is part of one /56; then the rest of the /48.
        assert_eq!(hold(&mut (0..16).map(six)), 30);
        assert_eq!(hold(&mut (0x100..0x1000).map(six)), 10);
        // Addresses have nothing in common: they take all that is left, and no more.
        assert_eq!(hold(&mut (1..16).map(source)), 60);
        assert_eq!(guard.admit(&source(16), now).unwrap_err(), Denied::TooManyUnauthenticated);
        // Who signed in lately is let in, also many times.
        assert_eq!(hold(&mut [source(200)].into_iter()), 20);
        let later = now + KNOWN_FOR;
        assert_eq!(guard.admit(&source(200), later).unwrap_err(), Denied::TooManyUnauthenticated);
    }

    /// Neighbours in one site must not take the places of who signed in from there lately.
    #[test]
    fn a_full_site_does_not_shut_out_who_is_known_in_it() {
        let many = Limits { unauthenticated: 100, unauthenticated_per_source: 20, ..limits() };
        let (guard, now) = (Guard::new(Limits { connections: 1000, ..many }), Instant::now());
        let six = |network: u16| Source(format!("[2001:db8:0:{network:x}::1]:1").parse().unwrap());
        guard.admit(&six(200), now).unwrap().authenticated(now);
        let mut held: Vec<Admission> = Vec::new();
        for network in (0..0x1000).map(six).filter(|source| *source != six(200)) {
            held.extend(guard.admit(&network, now).ok());
        }
        assert_eq!(held.len(), 40);
        let full = Denied::TooManyFromSource;
        assert_eq!(guard.admit(&six(0x2000), now).unwrap_err(), full);
        // So many of its own, as anybody else.
        let own: Vec<_> = (0..30).map_while(|_| guard.admit(&six(200), now).ok()).collect();
        assert_eq!(own.len(), 20);
        assert_eq!(guard.admit(&six(200), now).unwrap_err(), full);
        drop(own);
        assert_eq!(guard.admit(&six(200), now + KNOWN_FOR).unwrap_err(), full);
    }

    #[test]
    fn what_was_known_before_the_start_is_for_as_long_as_it_would_have_been() {
        let (guard, now) = (Guard::new(limits()), Instant::now());
        let day = Duration::from_secs(24 * 3600);
        let ago = |n: u8, days: u32| (source(n).network(), day * days);
        guard.admit(&source(1), now).unwrap().authenticated(now);
        // Of two users of one source the later one counts; what is over does not, nor does it for others.
        guard.recall([ago(1, 5), ago(2, 6), ago(2, 1), ago(2, 3), ago(3, 7)], now);
        let known = |n: u8, at: Instant| guard.state().is_known(&source(n).network(), at);
        assert_eq!([1, 2, 3, 4].map(|n| known(n, now)), [true, true, false, false]);
        let later = now + 6 * day;
        assert_eq!([1, 2].map(|n| known(n, later - Duration::from_secs(1))), [true, true]);
        assert_eq!([1, 2].map(|n| known(n, later)), [true, false]);
        // They fill what room there is, and take it from nobody.
        let six = |n: u32| Source(SocketAddr::new(Ipv6Addr::from(u128::from(n) << 64).into(), 1));
        guard.recall((1..70_000).map(|n| (six(n).network(), Duration::ZERO)), now);
        assert_eq!(guard.state().known.len(), MAX_SOURCES);
        assert!(known(1, now));
        guard.prune(now + KNOWN_FOR);
        assert!(guard.state().known.is_empty());
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
    fn who_is_locked_is_written_down_once_a_minute_and_counted_in_between() {
        let (guard, now) = (Guard::new(limits()), Instant::now());
        assert!(guard.should_report(&source(1), now)); // Of another kind.
        let written = (0..100).filter(|_| guard.may_record_locked(&source(1), now)).count();
        assert_eq!((written, guard.take_suppressed()), (1, 99));
        assert!(guard.may_record_locked(&source(2), now));
        assert!(guard.may_record_locked(&source(1), now + REPORT_EVERY));
        assert_eq!(guard.take_suppressed(), 0);
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
                    1 => if let Some(one) = held.get_mut(which) { one.authenticated(now) },
                    _ => if which < held.len() { drop(held.swap_remove(which)) },
                }
                let state = guard.state();
                prop_assert_eq!(state.connections, held.len());
                // Five of anybody's, and one more of who is known.
                prop_assert!(state.unauthenticated <= 6 && state.by_source.values().all(|n| *n <= 3));
            }
            drop(held);
            let state = guard.state();
            prop_assert_eq!((state.connections, state.unauthenticated, state.by_source.len()), (0, 0, 0));
        }
    }
}
