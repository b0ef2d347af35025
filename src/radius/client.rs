//! Asks several servers in turn, and remembers which of them are dead.
//!
//! Always holds: a challenge is answered only to the server that asked, for the user it asked about;
//! a server that answers, whatever it says, has decided, and no other is asked; failures never
//! become an accept.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::failure::{Discards, Error, Failure, Failures, Reason};
use super::packet::{Access, Answer, Ask, Decision, SharedSecret};
use super::server::{Server, Settings, SetupError, Transport};
use super::{radsec, udp};

/// How the name begins of whom [`Client::probe`] asks about where a server does not know
/// Status-Server; the rest is random, so that nobody can have it.
const PROBE_USER: &str = "radius-probe-no-such-user-";

/// A client of one or more servers.
#[derive(Debug)]
pub struct Client {
    peers: Vec<Peer>,
    settings: Settings,
    free: Semaphore,
}

/// A server, the way to it, and whether it is dead.
#[derive(Debug)]
struct Peer {
    server: Server,
    secret: SharedSecret,
    tls: Option<radsec::Link>,
    dead_until: Mutex<Option<Instant>>,
}

/// One question about a user.
#[derive(Debug)]
pub struct Request<'a> {
    /// The user's name, as the servers know it.
    pub user: &'a str,
    /// A password, a one-time code, or the answer to a challenge.
    pub password: &'a SecretString,
    /// Where the user comes from: an address, or empty.
    pub calling_station: &'a str,
    /// What the challenge that this answers left.
    pub state: Option<State>,
}

/// What a server answered.
#[derive(Debug)]
#[must_use]
pub struct Reply {
    /// The server that did.
    pub server: String,
    /// What it decided.
    pub verdict: Verdict,
    /// Its text for the user; may be empty. Raw: it may hold control characters and line breaks,
    /// and what was not UTF-8 is replaced. Make it printable before anybody sees it.
    pub message: String,
    /// How long the session may last, or how long the answer to a challenge may take.
    pub session_timeout: Option<Duration>,
}

/// What a server decided.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// The user is who they say.
    Accept,
    /// The user is not.
    Reject,
    /// Something more is asked for: show the message, and ask again with the answer and this state.
    Challenge(State),
}

/// What a challenge leaves for its answer. It can be used once, for the same user.
pub struct State {
    server: String,
    user: String,
    value: Option<Zeroizing<Vec<u8>>>,
    round: u32,
}

impl State {
    /// The server that asked.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How many challenges in a row this makes, from 1 on: the caller is to bound them.
    pub fn round(&self) -> u32 {
        self.round
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("server", &self.server)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}

/// How a server answered a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What it answered to.
    pub answer: ProbeAnswer,
    /// How long that took; over TLS with the connection, if there was none.
    pub took: Duration,
    /// Whether the answer had a Message-Authenticator; see [`Server::require_message_authenticator`].
    pub signed: bool,
}

/// What a server answered to a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// It is there (Status-Server, RFC 5997).
    Status,
    /// It rejected a user who does not exist, as it should.
    Rejected,
    /// It asks even a user who does not exist for more.
    Challenged,
    /// It let in a user who does not exist, with a random password: nobody is safe behind it.
    Accepted,
}

impl Client {
    /// A client that asks these servers, the first that is alive first.
    ///
    /// # Errors
    /// When a setting cannot be used, or a file that TLS needs cannot be read.
    pub fn new(servers: Vec<Server>, settings: Settings) -> Result<Self, SetupError> {
        settings.check()?;
        if servers.is_empty() {
            return Err(SetupError::NoServers);
        }
        let mut names = HashSet::new();
        if let Some(twice) = servers.iter().find(|server| !names.insert(server.name.clone())) {
            return Err(SetupError::SameName(twice.name.clone()));
        }
        let peers = servers.into_iter().map(Peer::new).collect::<Result<_, _>>()?;
        let free = Semaphore::new(settings.concurrent);
        Ok(Self { peers, settings, free })
    }

    /// The servers' names, in the order in which they are asked.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.peers.iter().map(|peer| peer.server.name.as_str())
    }

    /// Asks whether a user is who they say.
    ///
    /// The servers that are alive are asked in their order, then those that are dead, until one
    /// answers; so it takes at most all their timeouts together, and as long again to begin where
    /// too many requests are under way. An answer to a challenge goes to the server that asked.
    ///
    /// # Errors
    /// When no server answered, or nothing could be asked. The user is not let in.
    pub async fn authenticate(&self, request: Request<'_>) -> Result<Reply, Error> {
        let state = request.state.as_ref();
        if state.is_some_and(|state| state.user != request.user) {
            return Err(Error::OtherUser);
        }
        let ask = Ask::Access(Access {
            user: request.user,
            password: request.password,
            nas_identifier: &self.settings.nas_identifier,
            calling_station: request.calling_station,
            state: state.and_then(|state| state.value.as_ref()).map(|value| value.as_slice()),
        });
        let _turn = self.turn().await?;
        match state {
            None => self.first_answer(&ask, request.user).await,
            Some(state) => {
                let peer = self.peer(&state.server)?;
                let answer = self.exchange(peer, &ask).await?.map_err(Error::ChallengeLost)?;
                Ok(peer.reply(answer, request.user, state.round))
            }
        }
    }

    /// Whether a server is there and can be believed: with Status-Server, and where that brings no
    /// answer that proves it, with a request for a user who does not exist. Some servers sign their
    /// answers to the latter only. The dead time plays no part.
    ///
    /// # Errors
    /// When there is no such server, or it did not answer.
    pub async fn probe(&self, server: &str) -> Result<Probe, Error> {
        let peer = self.peer(server)?;
        let _turn = self.turn().await?;
        let mut began = Instant::now();
        if let Ok(answer) = self.exchange(peer, &Ask::Status).await?
            && (answer.signed || peer.tls.is_some())
        {
            let answered = ProbeAnswer::Status;
            return Ok(Probe { answer: answered, took: began.elapsed(), signed: answer.signed });
        }
        began = Instant::now();
        let random = || {
            random_hex().map_err(|error| {
                Error::AllDead(Failures(vec![peer.failure(Reason::Random(error))]))
            })
        };
        let (user, password) = (format!("{PROBE_USER}{}", random()?), random()?.into());
        let ask = Ask::Access(Access {
            user: &user,
            password: &password,
            nas_identifier: &self.settings.nas_identifier,
            calling_station: "",
            state: None,
        });
        let answered = self.exchange(peer, &ask).await?;
        let answer = answered.map_err(|failure| Error::AllDead(Failures(vec![failure])))?;
        let answered = match answer.decision {
            Decision::Accept => ProbeAnswer::Accepted,
            Decision::Reject => ProbeAnswer::Rejected,
            Decision::Challenge => ProbeAnswer::Challenged,
        };
        Ok(Probe { answer: answered, took: began.elapsed(), signed: answer.signed })
    }

    /// Asks one server after the other.
    async fn first_answer(&self, ask: &Ask<'_>, user: &str) -> Result<Reply, Error> {
        let mut failures = Vec::new();
        for peer in self.in_turn() {
            match self.exchange(peer, ask).await? {
                Ok(answer) => return Ok(peer.reply(answer, user, 0)),
                Err(failure) => failures.push(failure),
            }
        }
        Err(Error::AllDead(Failures(failures)))
    }

    /// The servers that are alive, then those that are dead, each in the order of the settings.
    fn in_turn(&self) -> Vec<&Peer> {
        let mut peers: Vec<&Peer> = self.peers.iter().collect();
        peers.sort_by_key(|peer| peer.is_dead());
        peers
    }

    /// One exchange with one server, which is dead or alive afterwards. The outer error is ours.
    async fn exchange(&self, peer: &Peer, ask: &Ask<'_>) -> Result<Result<Answer, Failure>, Error> {
        let mut discards = Discards::default();
        let answered = peer.exchange(ask, &mut discards).await;
        let server = peer.server.name.as_str();
        for (reason, count) in &discards.0 {
            tracing::warn!(server, count, %reason, "RADIUS packets were discarded");
        }
        match answered {
            Err(Reason::Invalid(invalid)) => Err(invalid.into()),
            Ok(answer) => {
                peer.set_dead_until(None);
                Ok(Ok(answer))
            }
            Err(reason) => {
                peer.set_dead_until(Some(Instant::now() + self.settings.dead_time));
                let failure = peer.failure(reason);
                tracing::warn!(%failure, "a RADIUS server did not answer");
                Ok(Err(failure))
            }
        }
    }

    fn peer(&self, name: &str) -> Result<&Peer, Error> {
        let found = self.peers.iter().find(|peer| peer.server.name == name);
        found.ok_or_else(|| Error::UnknownServer(name.into()))
    }

    /// Waits until one more request may be under way.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        let patience = self.peers.iter().map(|peer| peer.server.timeout).sum();
        match timeout(patience, self.free.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            // It is never closed; if it were, nothing could be asked.
            Ok(Err(_)) | Err(_) => Err(Error::Busy),
        }
    }
}

impl Peer {
    fn new(server: Server) -> Result<Self, SetupError> {
        server.check()?;
        let name = || server.name.clone();
        let secret = SharedSecret::new(server.secret.clone())
            .map_err(|source| SetupError::Secret { server: name(), source })?;
        let tls = match &server.transport {
            Transport::Udp => None,
            Transport::Tls(tls) => Some(
                radsec::Link::new(tls, &server.address)
                    .map_err(|source| SetupError::Tls { server: name(), source })?,
            ),
        };
        if tls.is_none() && !server.require_message_authenticator {
            tracing::warn!(
                server = server.name,
                "this RADIUS server's replies are believed without Message-Authenticator: whoever is \
                 on the way can let anybody in (CVE-2024-3596)"
            );
        }
        Ok(Self { server, secret, tls, dead_until: Mutex::default() })
    }

    async fn exchange(&self, ask: &Ask<'_>, discards: &mut Discards) -> Result<Answer, Reason> {
        match &self.tls {
            None => udp::exchange(&self.server, &self.secret, ask, discards).await,
            Some(link) => link.exchange(&self.server, &self.secret, ask, discards).await,
        }
    }

    fn is_dead(&self) -> bool {
        let until = *self.dead_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn set_dead_until(&self, until: Option<Instant>) {
        *self.dead_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn failure(&self, reason: Reason) -> Failure {
        let Server { name, address, .. } = &self.server;
        Failure { server: name.clone(), address: address.clone(), reason }
    }

    /// The answer as a reply about `user`, after `round` challenges.
    fn reply(&self, answer: Answer, user: &str, round: u32) -> Reply {
        let verdict = match answer.decision {
            Decision::Accept => Verdict::Accept,
            Decision::Reject => Verdict::Reject,
            Decision::Challenge => Verdict::Challenge(State {
                server: self.server.name.clone(),
                user: user.into(),
                value: answer.state,
                round: round.saturating_add(1),
            }),
        };
        Reply {
            server: self.server.name.clone(),
            verdict,
            message: answer.message,
            session_timeout: answer.session_timeout,
        }
    }
}

/// A name or a password that nobody has.
fn random_hex() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::radius::Tls;

    fn client(servers: &[&str]) -> Client {
        let server = |name: &&str| Server::udp(name, "127.0.0.1:9", "s".into());
        let settings = Settings { concurrent: 1, ..Settings::new("n") };
        Client::new(servers.iter().map(server).collect(), settings).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_server_is_asked_last_until_its_time_is_over() {
        let client = client(&["a", "b", "c"]);
        let order =
            || client.in_turn().iter().map(|peer| peer.server.name.clone()).collect::<Vec<_>>();
        let dead = |name, ms| {
            let until = Instant::now() + Duration::from_millis(ms);
            client.peer(name).unwrap().set_dead_until(Some(until));
        };
        assert_eq!(order(), ["a", "b", "c"]);
        dead("a", 1000);
        assert_eq!(order(), ["b", "c", "a"]);
        dead("b", 2000);
        assert_eq!(order(), ["c", "a", "b"]);
        dead("c", 3000);
        assert_eq!(order(), ["a", "b", "c"]);
        tokio::time::advance(Duration::from_millis(1000)).await;
        assert_eq!(order(), ["a", "b", "c"]);
        tokio::time::advance(Duration::from_millis(1000)).await;
        assert_eq!(order(), ["a", "b", "c"]);
        dead("a", 5000);
        assert_eq!(order(), ["b", "a", "c"]);
        client.peer("a").unwrap().set_dead_until(None);
        assert_eq!(order(), ["a", "b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_in_vain_for_a_turn_is_told() {
        let client = client(&["a"]);
        let _turn = client.turn().await.unwrap();
        let password = "1".into();
        let request = Request { user: "u", password: &password, calling_station: "", state: None };
        assert!(matches!(client.authenticate(request).await, Err(Error::Busy)));
    }

    #[test]
    fn servers_that_cannot_be_used_are_refused() {
        let with = |servers| Client::new(servers, Settings::new("n")).unwrap_err().to_string();
        let udp = |name| Server::udp(name, "a:1", "s".into());
        assert_eq!(with(vec![]), "no RADIUS server is configured");
        assert_eq!(
            with(vec![udp("a"), udp("b"), udp("a")]),
            "two RADIUS servers are called \"a\": give each a name of its own"
        );
        assert_eq!(
            with(vec![Server { secret: "".into(), ..udp("a") }]),
            "RADIUS server \"a\": the shared secret is empty"
        );
        let tls = Tls {
            ca_file: "/nonexistent/ca.pem".into(),
            certificate_file: "/nonexistent/own.pem".into(),
            key_file: "/nonexistent/own.key".into(),
            server_name: None,
        };
        let refused = with(vec![Server::tls("a", "a:1", tls)]);
        assert!(
            refused.starts_with(
                "RADIUS server \"a\": failed to read the authorities from /nonexistent/ca.pem: "
            ),
            "{refused}"
        );
    }
}
