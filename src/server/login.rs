//! Drives the login state machine: does what its effects say, and brings back what came of it.
//!
//! Always holds: a failure's answer is held back for its back-off and never comes sooner than
//! [`LEAST_WAIT`] after the question (or, where RADIUS servers are asked, than what is set), so that
//! neither their speed nor the store's tells accounts apart; and nobody is let in whose session the
//! store did not write down.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::Instant;

use super::connection::Connection;
use super::hashing;
use super::radius;
use crate::audit::{Context, Event, Note, Refusal};
use crate::auth::machine::{Attempt, Effect, Input, Machine, Opened, Reply, Request};
use crate::auth::password::Verified;
use crate::auth::totp;
use crate::domain::{Id, UserName};
use crate::store::{FailureNote, NewAuthenticator, SignIn, Throttled};

/// The least time from a question to its refusal.
const LEAST_WAIT: Duration = Duration::from_millis(400);

/// One connection's login.
pub(super) struct Login {
    machine: Option<Machine>,
    /// The password whose hash is to be made anew at the present cost, after the login succeeds.
    rehash: Option<(SecretString, String)>,
    radius: radius::Dialog,
    conn: Arc<Connection>,
}

impl Login {
    pub(super) fn new(conn: Arc<Connection>) -> Self {
        let rules = Arc::clone(&conn.settings.rules);
        let source = conn.source.ip();
        Self {
            machine: Some(Machine::new(rules, source)),
            rehash: None,
            radius: radius::Dialog::default(),
            conn,
        }
    }

    /// Takes one request of the client's in, and says what to answer.
    pub(super) async fn request(&mut self, user: &str, request: Request) -> Reply {
        let asked = Instant::now();
        let mut input = Input::Client(user.to_owned(), request);
        loop {
            // Lost only if an earlier request was cut off in the middle: the connection is over.
            let Some(machine) = self.machine.take() else {
                return Reply::Disconnect(Refusal::TooManyAttempts);
            };
            let (machine, effect) = machine.step(input, self.conn.bastion.clock.now());
            self.machine = Some(machine);
            self.conn.note_user(self.typed());
            // These write down themselves what came of the sign-in.
            if matches!(effect, Effect::Fail { .. } | Effect::SignIn(_)) {
                self.conn.may_give_up(None);
            } else {
                self.note_given_up();
            }
            input = match self.perform(effect, asked).await {
                Ok(input) => input,
                Err(reply) => return reply,
            };
        }
    }

    /// Says what is to be written down if the client goes now.
    fn note_given_up(&self) {
        let given_up = self.machine.as_ref().and_then(Machine::given_up);
        self.conn.may_give_up(given_up.map(|given_up| (self.whose(), given_up)));
    }

    async fn perform(&mut self, effect: Effect, asked: Instant) -> Result<Input, Reply> {
        let store = &self.conn.bastion.store;
        let now = self.conn.bastion.clock.now();
        let context = self.context();
        Ok(match effect {
            Effect::Reply(reply) => return Err(self.reply(reply, context).await),
            Effect::LookUp(name) => self.look_up(name).await?,
            Effect::CheckPassword(password, hash) => self.check_password(password, hash).await?,
            Effect::AskRadius { user, password, round } => {
                Input::Radius(self.radius.ask(&self.conn, &user, &password, round).await)
            }
            Effect::MakeSecret => Input::Secret(make_secret()?),
            Effect::SetPassword { account, epoch, password, notes } => {
                Input::PasswordSet(self.set_password(&account, epoch, password, notes).await)
            }
            Effect::Bind { account, epoch, secret, step, notes } => {
                let new = NewAuthenticator { account: &account, epoch, secret: &secret, step };
                let bound = store.bind(&new, notes, &context, now).await;
                Input::Bound(bound.unwrap_or_else(|error| Err(failed(&error))))
            }
            Effect::Claim(attempt) => {
                let (whose, rules) = (self.whose(), &self.conn.settings.throttle);
                let claimed = store.claim(attempt, &whose, rules, &context, now).await;
                Input::Claimed(claimed.unwrap_or_else(|error| Err(failed(&error))))
            }
            Effect::SignIn(attempt) => Input::SignedIn(self.sign_in(attempt).await),
            Effect::Note { drift, account, notes, then } => {
                let noted = store.note(&account, drift, notes, &context, now).await;
                noted.map_err(|error| store_failed(&error))?;
                return Err(self.reply(*then, context).await);
            }
            Effect::Fail { reason, counts, code, locked, drift, account, notes } => {
                let failure = FailureNote { account, reason, counts, code, drift };
                self.fail(failure, locked, notes, asked).await?
            }
        })
    }

    /// Reads the account, unless its source asks for accounts too fast.
    async fn look_up(&mut self, name: Option<UserName>) -> Result<Input, Reply> {
        let conn = &self.conn;
        if !conn.bastion.guard.attempt(&conn.source) {
            return Err(self.refuse(Refusal::RateLimited, self.context()).await);
        }
        let (store, now) = (&conn.bastion.store, conn.bastion.clock.now());
        let (whose, rules) = (self.whose(), &conn.settings.throttle);
        let found = store.account(name.as_ref(), &whose, rules, now).await;
        let (account, throttle) = found.map_err(|error| store_failed(&error))?;
        Ok(Input::Found(account, throttle))
    }

    /// Writes a failure down, and holds the answer to what was `asked` back.
    async fn fail(
        &self,
        failure: FailureNote,
        locked: bool,
        notes: Vec<Note>,
        asked: Instant,
    ) -> Result<Input, Reply> {
        let conn = &self.conn;
        conn.note_failure();
        let (store, now, counts) = (&conn.bastion.store, conn.bastion.clock.now(), failure.counts);
        let (whose, rules, context) = (self.whose(), &conn.settings.throttle, self.context());
        let failures = if conn.is_worth_writing(locked, &notes) {
            store.fail(failure, notes, &whose, rules, &context, now).await
        } else {
            store.failures(&whose, rules, now).await
        };
        let failures = failures.map_err(|error| store_failed(&error))?;
        // As long as if it counted: the wait must not tell which kind of failure it was.
        let failures = if counts { failures } else { failures.saturating_add(1) };
        let least = LEAST_WAIT.max(conn.settings.radius.refusal_wait);
        let wait = rules.backoff(failures).max(least);
        tokio::time::sleep_until(asked + wait).await;
        Ok(Input::FailureRecorded)
    }

    async fn check_password(
        &mut self,
        password: SecretString,
        hash: Option<String>,
    ) -> Result<Input, Reply> {
        let verified = self.conn.bastion.hashing.verify(password.clone(), hash.clone()).await;
        match verified {
            Ok(Verified::Match { rehash }) => {
                self.rehash = if rehash { hash.map(|hash| (password, hash)) } else { None };
                Ok(Input::PasswordChecked(true))
            }
            Ok(Verified::Mismatch) => Ok(Input::PasswordChecked(false)),
            Err(hashing::Error::Busy) => Err(self.refuse(Refusal::Busy, self.context()).await),
            Err(error) => {
                tracing::error!(%error, "failed to check a password");
                Ok(Input::PasswordChecked(false))
            }
        }
    }

    async fn set_password(
        &self,
        account: &Id,
        epoch: i64,
        password: SecretString,
        notes: Vec<Note>,
    ) -> Result<i64, Refusal> {
        let bastion = &self.conn.bastion;
        let hash = bastion.hashing.hash(password).await.map_err(|error| {
            tracing::error!(%error, "failed to hash a new password");
            Refusal::Busy
        })?;
        let (context, now) = (self.context(), bastion.clock.now());
        let set = bastion.store.choose_password(account, epoch, &hash, notes, &context, now).await;
        set.unwrap_or_else(|error| Err(failed(&error)))
    }

    async fn sign_in(&mut self, attempt: Attempt) -> Result<Opened, Refusal> {
        let conn = &self.conn;
        let (context, now) = (self.context(), conn.bastion.clock.now());
        let client = context.client.clone().unwrap_or_default();
        let sign_in = SignIn { session: &conn.id, source: &conn.source, client: &client };
        let (whose, rules) = (self.whose(), &conn.settings.throttle);
        let store = &conn.bastion.store;
        let account = attempt.account.clone();
        conn.session_may_be_open(&account, attempt.epoch, attempt.given);
        let signed_in = store.sign_in(attempt, &sign_in, &whose, rules, &context, now).await;
        if let (Ok(Ok(_)), Some((password, old))) = (&signed_in, self.rehash.take()) {
            self.conn.spawn_rehash(account, password, old);
        }
        signed_in.unwrap_or_else(|error| Err(failed(&error)))
    }

    /// Takes note of what a reply means for the connection.
    async fn reply(&mut self, reply: Reply, context: Context) -> Reply {
        match reply {
            Reply::Disconnect(reason) => self.refuse(reason, context).await,
            Reply::Ask(question) => {
                if question.slow {
                    self.conn.allow_binding_grace();
                }
                Reply::Ask(question)
            }
            other => other,
        }
    }

    /// Writes down that the login ends here, and ends it.
    async fn refuse(&mut self, reason: Refusal, context: Context) -> Reply {
        self.conn.note_failure();
        let event = Event::SignInRefused { reason };
        let event = self.conn.bastion.guard.may_record().then_some(event);
        self.write_notes(event, &context).await;
        self.note_given_up(); // Without what was just written.
        Reply::Disconnect(reason)
    }

    /// Writes down what happened on the way of a login that came to no end of its own.
    pub(super) async fn write_notes(&mut self, last: Option<Event>, context: &Context) {
        let notes = self.machine.as_mut().map(Machine::take_notes).unwrap_or_default();
        let (store, now) = (&self.conn.bastion.store, self.conn.bastion.clock.now());
        let last = last.map(|event| Note { at: now, event });
        let notes = notes.into_iter().chain(last).collect();
        if let Err(error) = store.record_all(context, notes).await {
            tracing::error!(%error, "failed to write audit events of a refused login");
        }
    }

    fn typed(&self) -> &str {
        self.machine.as_ref().and_then(Machine::user).unwrap_or_default()
    }

    fn whose(&self) -> Throttled {
        Throttled::new(self.typed(), &self.conn.source)
    }

    /// Where this login's events belong.
    pub(super) fn context(&self) -> Context {
        self.conn.context()
    }
}

fn make_secret() -> Result<totp::Secret, Reply> {
    totp::Secret::generate().map_err(|error| {
        tracing::error!(%error, "failed to make a secret");
        Reply::Disconnect(Refusal::StoreFailed)
    })
}

fn failed(error: &crate::store::Error) -> Refusal {
    tracing::error!(%error, "the store failed during a login");
    Refusal::StoreFailed
}

fn store_failed(error: &crate::store::Error) -> Reply {
    Reply::Disconnect(failed(error))
}
