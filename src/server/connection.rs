//! The owner of one connection: its deadlines, its tasks, its place in the audit log.
//!
//! Always holds: whatever belongs to a connection (forwards, commands, their sockets) runs in its
//! task set and under its token, and is over before [`serve`] returns; [`serve`] writes the end of
//! the session exactly once, however the connection ended, a panic in a callback included.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use governor::DefaultDirectRateLimiter;
use russh::server::run_stream;
use secrecy::SecretString;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Bastion;
use super::forward::flow::ConnectionFlow;
use super::guard::{Admission, Offence, direct};
use super::handler::{Ended, Handler, prohibited};
use super::live::SessionEnd;
use super::refusals::Refusals;
use super::settings::Settings;
use super::stream::{Cut, GuardedStream, StreamControl};
use super::traffic::Traffic;
use crate::audit::{Context, EndReason, Event, Note, Refusal};
use crate::auth::machine::{Authenticated, GivenUp};
use crate::console::OwnEpoch;
use crate::domain::{Capability, Factors, Id, Source, noted, printable};
use crate::store::{FailureNote, Throttled};

/// How long a client has to take a goodbye in before its socket is closed.
const GOODBYE: Duration = Duration::from_secs(2);
/// Channels that a connection may open: a second, and at once.
const OPENS: (u32, u32) = (20, 500);
/// Ports and socket files that targets may listen at for one connection at a time.
const LISTENERS: usize = 64;
/// How many of them a connection may ask for: a second, and at once.
const LISTENS: (u32, u32) = (5, 100);
/// Looks of the watch in a row that a connection may be changing its own account at, two a second.
const SPARED: usize = 5;
/// How long tasks have to write their ends down after the connection ended.
const WIND_UP: Duration = Duration::from_secs(10);

/// What everything on one connection shares.
pub(crate) struct Connection {
    pub(super) bastion: Arc<Bastion>,
    /// The settings that were in force when the connection was accepted.
    pub(super) settings: Arc<Settings>,
    /// The session's id; before somebody signed in, the one that it would get.
    pub(super) id: Id,
    pub(super) source: Source,
    /// The address of ours that the client reached, if the system can tell.
    pub(super) local: Option<IpAddr>,
    pub(super) control: StreamControl,
    /// Cancelled when the connection ends: every task of it listens.
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// What holds a user's terminal, and gives it back before the connection ends.
    pub(super) screens: TaskTracker,
    pub(super) flow: Arc<ConnectionFlow>,
    /// For how many looks in a row it was not ended, since it changed its own account just then.
    spared: AtomicUsize,
    admission: Mutex<Admission>,
    signed_in: OnceLock<Authenticated>,
    /// What became of its epoch by changes made in this session.
    pub(super) epoch: OwnEpoch,
    /// Set before the store opens the session, so that an end in the middle still closes it, and a
    /// change of the account that comes from then on still ends it: the account and its epoch.
    may_be_open: OnceLock<(Id, i64)>,
    /// The factors that it was, or is about to be, opened with.
    opened_with: Mutex<Factors>,
    /// The user name that the client gave first, which stays, printable.
    user: OnceLock<String>,
    /// The failure to write down if the client leaves before it signed in.
    given_up: Mutex<Option<(Throttled, GivenUp)>>,
    pub(super) refusals: Refusals,
    failed: AtomicBool,
    /// Set with the first sight of the QR code.
    is_binding: AtomicBool,
    end: OnceLock<(EndReason, String)>,
    /// Cancelled to end the connection from outside.
    stop: CancellationToken,
    /// What sessions on the bastion may ask for on behalf of targets that the menu leads to.
    for_menu: Mutex<Vec<Capability>>,
    channels: AtomicUsize,
    /// Whether a channel was opened already.
    had_channel: AtomicBool,
    /// Bytes of answers to file requests that targets owe its user, or that wait for them.
    pub(super) answers: AtomicUsize,
    /// How fast channels may be opened: each is an event or two, and may run a command, one more.
    opens: DefaultDirectRateLimiter,
    /// How many ports and socket files targets may still listen at for it.
    listeners: Arc<Semaphore>,
    /// How fast they may be asked for: each is an event or two, and the connection waits for it.
    listens: DefaultDirectRateLimiter,
    /// What it carried: a sum over everything on it.
    pub(super) traffic: Arc<Traffic>,
}

/// One of the channels that a connection may have open; given back when dropped.
pub(super) struct ChannelSlot {
    conn: Arc<Connection>,
    /// Whether it is the connection's first.
    pub(super) is_first: bool,
}

impl Drop for ChannelSlot {
    fn drop(&mut self) {
        self.conn.channels.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connection {
    /// Where this connection's events belong.
    pub(super) fn context(&self) -> Context {
        Context {
            actor: None,
            user: self.user.get().cloned(),
            source: Some(self.source),
            client: self.control.client_version(),
            session: Some(self.id.clone()),
        }
    }

    /// Who signed in, once somebody did.
    pub(super) fn who(&self) -> Option<&Authenticated> {
        self.signed_in.get()
    }

    /// Takes in that somebody signed in: the deadlines before that are over.
    pub(super) fn sign_in(self: &Arc<Self>, who: Authenticated) {
        self.control.disarm();
        let mut admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        admission.authenticated(std::time::Instant::now());
        drop(admission);
        self.flow.belongs_to(who.account());
        if self.signed_in.set(who).is_err() {
            self.end(EndReason::ProtocolError, "signed in twice");
        }
        let most = self.settings.max_sessions_per_account;
        if most > 0 && self.bastion.live.sessions_like(self) > most {
            let reason = Refusal::TooManySessions;
            self.record(Event::SignInRefused { reason });
            let message = format!("you have {most} sessions here already: end one of them first");
            self.end(EndReason::TooManySessions, &message);
        }
    }

    /// Gives a person the time that binding an authenticator takes: once, so that nobody who draws the
    /// QR code again and again holds a place of those not signed in for hours.
    pub(super) fn allow_binding_grace(&self) {
        if !self.is_binding.swap(true, Ordering::SeqCst) {
            self.control.extend(self.settings.binding_grace);
        }
    }

    /// Takes note of whom the client wants to sign in as.
    pub(super) fn note_user(&self, typed: &str) {
        if !typed.is_empty() {
            self.user.get_or_init(|| printable(&typed.chars().take(64).collect::<String>()));
        }
    }

    pub(super) fn session_may_be_open(&self, account: &Id, epoch: i64, given: Factors) {
        *self.opened_with.lock().unwrap_or_else(PoisonError::into_inner) = given;
        // A second attempt on one connection is of the same account: its name is fixed.
        let _first_stays = self.may_be_open.set((account.clone(), epoch));
    }

    /// The account whose session this is, or is about to be, and its epoch.
    pub(super) fn identity(&self) -> Option<(&Id, i64)> {
        let signed_in =
            self.signed_in.get().map(|who| (who.account(), self.epoch.since(who.epoch())));
        signed_in.or_else(|| self.may_be_open.get().map(|(account, epoch)| (account, *epoch)))
    }

    /// The account whose session this is, or is about to be (its client may still have a notice to read),
    /// and the factors that were given for it.
    pub(super) fn given(&self) -> Option<(&Id, Factors)> {
        let (account, _) = self.may_be_open.get()?;
        Some((account, *self.opened_with.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Whether a change of its account may still be its own, which it is about to take in. That takes
    /// a moment, and not many looks in a row: whoever changes it without end is ended nevertheless.
    pub(super) fn is_spared(&self) -> bool {
        self.epoch.is_changing() && self.spared.load(Ordering::SeqCst) < SPARED
    }

    /// Takes note of whether it was spared.
    pub(super) fn note_spared(&self, spared: bool) {
        if spared {
            self.spared.fetch_add(1, Ordering::SeqCst);
        } else {
            self.spared.store(0, Ordering::SeqCst);
        }
    }

    /// Takes note of what failed if the client leaves now.
    pub(super) fn may_give_up(&self, given_up: Option<(Throttled, GivenUp)>) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
    }

    /// Whether a failed sign-in is written down by itself: not each of who is `locked` and goes on guessing.
    /// What is right among the guesses is, since it tells that somebody knows it.
    pub(super) fn is_worth_writing(&self, locked: bool, notes: &[Note]) -> bool {
        let passed = |note: &Note| matches!(note.event, Event::StepPassed { .. });
        let guard = &self.bastion.guard;
        !locked
            || notes.iter().any(passed)
            || guard.may_record_locked(&self.source, std::time::Instant::now())
    }

    pub(super) fn note_failure(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Ends the connection, telling the client `message` if it listens.
    pub(super) fn end(&self, reason: EndReason, message: &str) {
        let _first_wins = self.end.set((reason, message.to_owned()));
        self.stop.cancel();
    }

    /// Waits until the login has no more time, or the connection is ended from here.
    pub(super) async fn login_is_over(&self) {
        let deadline = async {
            match self.control.deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = deadline => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Why the connection is being ended from here, if it is.
    pub(super) fn ended_by_us(&self) -> Option<String> {
        self.end.get().map(|(_, message)| message.clone())
    }

    /// Whether it has an open channel, or one that is being opened.
    pub(super) fn is_in_use(&self) -> bool {
        self.channels.load(Ordering::SeqCst) > 0
    }

    /// Waits until the bastion is stopping; gives what people are to know then.
    pub(super) async fn stopping(&self) -> String {
        self.bastion.draining.cancelled().await;
        match self.settings.drain.as_secs() {
            0 => std::future::pending().await, // It ends at once, and that is told.
            left => format!("the bastion is stopping: this ends within {left} s"),
        }
    }

    /// Takes note of what sessions may ask for that are about to be opened.
    pub(super) fn prepare_menu(&self, rights: &[Capability]) {
        *self.for_menu.lock().unwrap_or_else(PoisonError::into_inner) = rights.to_vec();
    }

    /// Whether a session on the bastion may ask for what only a target behind the menu can use.
    pub(super) fn menu_may_need(&self, right: Capability) -> bool {
        self.for_menu.lock().unwrap_or_else(PoisonError::into_inner).contains(&right)
    }

    /// A place for one more channel, if there is one, and it does not come too soon.
    pub(super) fn channel_slot(self: &Arc<Self>) -> Option<ChannelSlot> {
        if self.opens.check().is_err() {
            return None;
        }
        let most = self.settings.max_channels;
        let taken = self
            .channels
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1));
        taken.ok().map(|_| ChannelSlot {
            conn: Arc::clone(self),
            is_first: !self.had_channel.swap(true, Ordering::SeqCst),
        })
    }

    /// A place for a channel, to be taken before anything is waited for; if there is none, that is
    /// written down, and the answer given.
    pub(super) fn slot_for(
        self: &Arc<Self>,
        request: &str,
    ) -> Result<ChannelSlot, russh::ChannelOpenFailure> {
        self.channel_slot().ok_or_else(|| {
            let (request, reason) = (request.to_owned(), Refusal::TooManyChannels);
            self.record_refusal(Event::RequestRefused { request, reason });
            prohibited("too many channels on this connection: close some, or wait")
        })
    }

    /// A place for one more port or socket file that a target listens at, if there is one, and it is not
    /// asked for too soon; if there is none, that is written down.
    pub(super) fn listener_place(self: &Arc<Self>, request: &str) -> Option<OwnedSemaphorePermit> {
        let place = self.listens.check().ok();
        let place = place.and_then(|()| Arc::clone(&self.listeners).try_acquire_owned().ok());
        if place.is_none() {
            let (request, reason) = (noted(request), Refusal::TooManyListeners);
            self.record_refusal(Event::RequestRefused { request, reason });
        }
        place
    }

    /// Writes an event of this connection down on its task set; its failure ends the connection.
    pub(super) fn record(self: &Arc<Self>, event: Event) {
        let conn = Arc::clone(self);
        self.tasks.spawn(async move { conn.write(event).await });
    }

    pub(super) async fn write(&self, event: Event) {
        let now = self.bastion.clock.now();
        if let Err(error) = self.bastion.store.record(now, &self.context(), event).await {
            tracing::error!(%error, session = %self.id, "failed to write an audit event");
            self.end(EndReason::ServerStopped, "the audit log cannot be written");
        }
    }

    /// Hashes a password anew at the present cost, in the background.
    pub(super) fn spawn_rehash(self: &Arc<Self>, account: Id, password: SecretString, old: String) {
        let conn = Arc::clone(self);
        self.tasks.spawn(async move {
            let Ok(new) = conn.bastion.hashing.hash(password).await else { return };
            if let Err(error) = conn.bastion.store.rehash(&account, &old, &new).await {
                tracing::warn!(%error, "failed to store a password's hash at the present cost");
            }
        });
    }
}

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    bastion: Arc<Bastion>,
    settings: Arc<Settings>,
    stream: TcpStream,
    source: Source,
    admission: Admission,
) {
    let id = match Id::random() {
        Ok(id) => id,
        Err(error) => return tracing::error!(%error, "no connection without randomness"),
    };
    let local = stream.local_addr().ok().map(|address| address.ip());
    let (stream, control) = GuardedStream::new(stream, settings.login_grace);
    let stream = stream.reading_ahead();
    let conn = Arc::new(Connection {
        flow: Arc::new(ConnectionFlow::new(Arc::clone(&bastion.budget), settings.flow)),
        settings,
        id,
        source,
        local,
        control,
        cancel: CancellationToken::new(),
        tasks: TaskTracker::new(),
        screens: TaskTracker::new(),
        spared: AtomicUsize::new(0),
        admission: Mutex::new(admission),
        signed_in: OnceLock::new(),
        epoch: OwnEpoch::default(),
        may_be_open: OnceLock::new(),
        opened_with: Mutex::new(Factors::NONE),
        user: OnceLock::new(),
        given_up: Mutex::new(None),
        refusals: Refusals::default(),
        failed: AtomicBool::new(false),
        is_binding: AtomicBool::new(false),
        end: OnceLock::new(),
        stop: CancellationToken::new(),
        for_menu: Mutex::default(),
        channels: AtomicUsize::new(0),
        had_channel: AtomicBool::new(false),
        answers: AtomicUsize::new(0),
        opens: direct(OPENS),
        listeners: Arc::new(Semaphore::new(LISTENERS)),
        listens: direct(LISTENS),
        traffic: Arc::default(),
        bastion,
    });
    conn.bastion.live.enter(&conn);
    let outcome = run(&conn, stream).await;
    wind_up(&conn).await;
    close(&conn, outcome).await;
    conn.bastion.live.leave(&conn.id);
}

/// Runs SSH on the stream until either side ends it.
async fn run(conn: &Arc<Connection>, stream: GuardedStream<TcpStream>) -> Result<(), Ended> {
    let handler = Handler::new(Arc::clone(conn));
    let (bastion, now) = (&conn.bastion, conn.bastion.clock.now());
    let config = match bastion.front().config(&bastion.relay.host_ca, conn.local, now) {
        Ok(config) => Arc::new(config),
        Err(error) => {
            tracing::error!(%error, "failed to greet a client");
            return Ok(());
        }
    };
    let mut session = tokio::select! {
        session = run_stream(config, stream, handler) => session?,
        () = conn.stop.cancelled() => return Ok(()),
    };
    let handle = session.handle();
    tokio::select! {
        outcome = &mut session => return outcome,
        () = conn.stop.cancelled() => {}
        () = conn.flow.over() => {
            tracing::warn!(session = %conn.id, source = %conn.source, "a client sent more than is held for it");
            conn.end(EndReason::ProtocolError, "more was sent than is held for one connection");
        }
    }
    // Ended from outside: say so, give the client a moment to read it, then cut the stream.
    conn.cancel.cancel();
    let message = conn.end.get().map(|(_, message)| message.clone()).unwrap_or_default();
    let by = russh::Disconnect::ByApplication;
    let goodbye = async {
        conn.screens.close();
        conn.screens.wait().await;
        // An error here means that the session is gone already, which is what is wanted.
        if handle.disconnect(by, message, String::new()).await.is_err() {
            tracing::debug!(session = %conn.id, "the client left before it could be told");
        }
    };
    let deadline = Instant::now() + GOODBYE;
    if tokio::time::timeout_at(deadline, goodbye).await.is_err()
        || tokio::time::timeout_at(deadline, &mut session).await.is_err()
    {
        conn.control.kill();
        return session.await;
    }
    Ok(())
}

/// Ends the connection's tasks and waits for them.
async fn wind_up(conn: &Arc<Connection>) {
    conn.cancel.cancel();
    conn.control.kill();
    conn.tasks.close();
    if tokio::time::timeout(WIND_UP, conn.tasks.wait()).await.is_err() {
        tracing::error!(session = %conn.id, left = conn.tasks.len(), "tasks outlive their connection");
    }
}

/// Writes the end of the connection down.
async fn close(conn: &Arc<Connection>, outcome: Result<(), Ended>) {
    let now = conn.bastion.clock.now();
    let store = &conn.bastion.store;
    if conn.who().is_none() {
        write_given_up(conn).await;
    }
    conn.write_suppressed().await;
    if conn.may_be_open.get().is_some() {
        let reason = conn.end.get().map_or_else(|| outcome_reason(conn, &outcome), |(r, _)| *r);
        let (session, carried) = (conn.id.clone(), conn.traffic.sums());
        let end = SessionEnd { session, reason, carried, context: conn.context(), at: now };
        if let Err(error) = end.write(store).await {
            tracing::error!(%error, session = %conn.id, "failed to write the session's end: tried again");
            conn.bastion.live.keep(end);
        }
    }
    if conn.who().is_none() {
        penalize(conn, &outcome).await;
    }
    if let Err(error) = outcome {
        tracing::debug!(session = %conn.id, source = %conn.source, error = %error, "connection ended");
    }
}

/// Writes a first factor down that no second one came after; counts it if it was a password.
async fn write_given_up(conn: &Arc<Connection>) {
    let left = conn.given_up.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((whose, GivenUp { account, counts, locked, notes })) = left else { return };
    if counts {
        conn.note_failure();
    }
    if !conn.is_worth_writing(locked, &notes) {
        return;
    }
    let (bastion, now) = (&conn.bastion, conn.bastion.clock.now());
    let (reason, code, drift) = (Refusal::GivenUp, false, None);
    let failure = FailureNote { account, reason, counts, code, drift };
    let (rules, context) = (&conn.settings.throttle, conn.context());
    if let Err(error) = bastion.store.fail(failure, notes, &whose, rules, &context, now).await {
        tracing::error!(%error, "failed to write a sign-in down that was given up");
    }
}

fn outcome_reason(conn: &Connection, outcome: &Result<(), Ended>) -> EndReason {
    match outcome {
        _ if matches!(conn.control.cut(), Some(Cut::Deadline)) => EndReason::GraceExpired,
        Ok(()) => EndReason::ClientClosed,
        Err(ended) => ended.reason(),
    }
}

/// Counts a connection that nobody signed in on against its source.
async fn penalize(conn: &Connection, outcome: &Result<(), Ended>) {
    let offence = match outcome {
        _ if conn.failed.load(Ordering::SeqCst) => Offence::AuthFailed,
        _ if matches!(conn.control.cut(), Some(Cut::Deadline)) => Offence::GraceExceeded,
        Err(ended) if ended.reason() == EndReason::ProtocolError => Offence::ProtocolError,
        _ => Offence::NoAuth,
    };
    let (store, now) = (&conn.bastion.store, conn.bastion.clock.now());
    let after = match offence {
        Offence::GraceExceeded => Refusal::GraceExpired,
        Offence::AuthFailed | Offence::NoAuth | Offence::ProtocolError => Refusal::TooManyAttempts,
    };
    let mut events = Vec::new();
    if offence == Offence::GraceExceeded {
        events.push(Event::SignInRefused { reason: Refusal::GraceExpired });
    }
    if let Some(left) =
        conn.bastion.guard.penalize(&conn.source, offence, std::time::Instant::now())
    {
        events.push(Event::SourcePenalized { seconds: left.as_secs(), after });
    }
    for event in events.into_iter().filter(|_| conn.bastion.guard.may_record()) {
        if let Err(error) = store.record(now, &conn.context(), event).await {
            tracing::error!(%error, "failed to write an audit event of a refused connection");
        }
    }
}
