//! Where names led the last time, for what must be known even while nothing can be looked up.
//!
//! Always holds: a name is looked up by one at a time, whose answer serves everybody; a failure is
//! never taken for "nowhere", unless the name server itself said that there is no such name.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::dial::{DialError, Resolver};
use crate::domain::Host;

/// How long an answer is taken for the present one.
const LIFE: Duration = Duration::from_secs(30);
/// How long after a failure nobody asks again.
const PAUSE: Duration = Duration::from_secs(5);
/// How many names are remembered; past it those that nobody asks for now are forgotten.
const MOST: usize = 10_000;

/// Names and where they led.
#[derive(Debug)]
pub struct KnownAddresses {
    resolver: Resolver,
    names: Mutex<HashMap<Host, Arc<Name>>>,
}

/// What is known of a name; whoever looks it up holds it.
type Name = tokio::sync::Mutex<Known>;

#[derive(Debug, Default)]
struct Known {
    addresses: Option<Vec<IpAddr>>,
    ask_again: Option<Instant>,
}

impl KnownAddresses {
    /// Knows nothing yet, and asks `resolver`, which should have nobody else to serve.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, names: Mutex::default() }
    }

    /// Where `host` leads, or led the last time that it could be found out; nowhere if there is no such
    /// name.
    ///
    /// # Errors
    /// When that cannot be found out now, and never could.
    pub async fn of(
        &self,
        host: &Host,
        port: u16,
        timeout: Duration,
    ) -> Result<Vec<IpAddr>, DialError> {
        if let Some(ip) = host.ip() {
            return Ok(vec![ip]);
        }
        let name = self.name(host);
        let timed_out = || DialError::ResolveTimedOut(timeout);
        let held = tokio::time::timeout(timeout, name.lock()).await;
        let mut known = held.map_err(|_| timed_out())?;
        if known.ask_again.is_some_and(|at| Instant::now() < at) {
            return known.addresses.clone().ok_or_else(timed_out);
        }
        let found = self.resolver.resolve(host, port, timeout).await;
        let (life, found) = match found {
            Ok(found) => (LIFE, Ok(found)),
            Err(DialError::Resolve(error)) if is_no_such_name(&error) => (LIFE, Ok(Vec::new())),
            Err(error) => (PAUSE, Err(error)),
        };
        known.ask_again = Some(Instant::now() + life);
        if let Ok(found) = &found {
            known.addresses = Some(found.clone());
        }
        match (found, &known.addresses) {
            (Err(_), Some(last)) => Ok(last.clone()),
            (found, _) => found,
        }
    }

    fn name(&self, host: &Host) -> Arc<Name> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MOST && !names.contains_key(host) {
            names.retain(|_, name| Arc::strong_count(name) > 1);
        }
        Arc::clone(names.entry(host.clone()).or_default())
    }
}

/// Whether a name server said that there is no such name, or none with an address. getaddrinfo(3) has
/// codes for that, of which the standard library keeps the words only: glibc's and musl's. Whatever
/// else they may be is a failure.
fn is_no_such_name(error: &io::Error) -> bool {
    let text = error.to_string();
    [
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
        "Name has no usable address",
    ]
    .iter()
    .any(|words| text.ends_with(words))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    /// What the name server says to each question in turn, the last one for ever; and how many there were.
    fn says(answers: Vec<Result<[u8; 4], &'static str>>) -> (KnownAddresses, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let resolver = Resolver::new(move |_, _| {
            let n = counted.fetch_add(1, SeqCst).min(answers.len() - 1);
            answers[n].map(|ip| vec![ip.into()]).map_err(io::Error::other)
        });
        (KnownAddresses::new(resolver), asked)
    }

    const FAILS: Result<[u8; 4], &str> = Err("failed: Temporary failure in name resolution");

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_nowhere() {
        let (known, asked) = says(vec![FAILS]);
        let host = "db.example".parse().unwrap();
        known.of(&host, 22, SOON).await.unwrap_err();
        known.of(&host, 22, SOON).await.unwrap_err();
        assert_eq!(asked.load(SeqCst), 1, "it was asked again at once");
        tokio::time::advance(PAUSE).await;
        known.of(&host, 22, SOON).await.unwrap_err();
        assert_eq!(asked.load(SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_holds_while_nothing_can_be_looked_up() {
        let first = Ok([192, 0, 2, 1]);
        let (known, asked) = says(vec![first, FAILS, Ok([192, 0, 2, 2])]);
        let host = "db.example".parse().unwrap();
        for (after, ip, questions) in
            [(0, 1, 1), (1, 1, 1), (30, 1, 2), (1, 1, 2), (5, 2, 3), (29, 2, 3)]
        {
            tokio::time::advance(Duration::from_secs(after)).await;
            let found = known.of(&host, 22, SOON).await.unwrap();
            assert_eq!(found, [IpAddr::from([192, 0, 2, ip])]);
            assert_eq!(asked.load(SeqCst), questions);
        }
    }

    #[tokio::test]
    async fn no_such_name_is_nowhere_in_the_words_of_both_libraries() {
        for words in [
            "failed to lookup address information: Name or service not known",
            "failed to lookup address information: No address associated with hostname",
            "failed to lookup address information: Name does not resolve",
        ] {
            let (known, _) = says(vec![Err(words)]);
            let host = "gone.example".parse().unwrap();
            assert!(known.of(&host, 22, SOON).await.unwrap().is_empty(), "{words}");
        }
        let (known, asked) = says(vec![FAILS]);
        let literal = known.of(&"192.0.2.7".parse().unwrap(), 22, SOON).await.unwrap();
        assert_eq!((literal, asked.load(SeqCst)), (vec![IpAddr::from([192, 0, 2, 7])], 0));
    }

    #[tokio::test]
    async fn one_question_serves_all_who_wait() {
        let (known, asked) = says(vec![Ok([192, 0, 2, 1])]);
        let host = "db.example".parse().unwrap();
        let many = (0..100).map(|_| known.of(&host, 22, SOON));
        for found in futures_util::future::join_all(many).await {
            assert_eq!(found.unwrap().len(), 1);
        }
        assert_eq!(asked.load(SeqCst), 1);
    }
}
