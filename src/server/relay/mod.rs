//! Record mode: the bastion ends the user's SSH, records it, and opens its own to the target.
//!
//! Always holds: nothing reaches a target without an [`AccountPermit`], and nothing of a session
//! channel before its recording is in the store and its file is open; every task belongs to the
//! user's connection; one target connection serves one channel, because a russh client that waits
//! for one reader stops all its channels (accounts that ask the user share one: nobody wants to be
//! asked per channel).
//!
//! Three entrances, one relay: `door` (`ssh -J`), the selector (`ssh alice+root@db1@bastion`) and the
//! menu (`ssh alice@bastion`).
//! Reading order: [`Relay`], `door` (with `admit`), `target` (with `target_auth`, `step_up`, `callbacks` and
//! `asked`), `session` (with `requests` and `dialog`), `carry` (with `files`), then `onward` (with
//! `destination`) and `bridge` for what is beside the sessions.

mod admit;
mod asked;
mod bridge;
mod callbacks;
mod carry;
mod destination;
mod dialog;
mod door;
mod files;
mod host_key;
mod journal;
pub(super) mod keep;
pub(super) mod menu;
mod onward;
pub mod probe;
mod recorder;
mod requests;
pub(super) mod selector;
mod session;
mod step_up;
mod stream;
mod target;
mod target_auth;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use russh::keys::PrivateKey;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use asked::Listen;
pub(super) use bridge::{Piece, Uplink};
pub(super) use door::serve as serve_door;
pub(super) use onward::{Onward, listen, serve_onward, unlisten};
pub(super) use requests::{Controls, Setup, Start, User, gather, intake};
pub(super) use session::serve as serve_session;
pub(super) use session::tell_of_stopping;

use super::connection::Connection;
use super::direct::{NotOpened, refused, until_refused};
use super::forward::ConnectionFlow;
use super::traffic::Meter;
use crate::audit::{Event, Refusal};
use crate::domain::{AccountName, Capability, Destination, Target, UnixTime, noted};
use crate::policy::{AccountDecision, AccountPermit, Checked, Refused, Subject, authorize_account};
use crate::recording::Writer;
use crate::store::Carrier;

/// Sentences for the user that may wait for a session.
const UNTOLD: usize = 16;

/// What all relays of a process share.
pub struct Shared {
    /// Signs the certificates of stand-in host keys.
    pub host_ca: PrivateKey,
    /// Signs the certificates that the bastion signs in on targets with.
    pub user_ca: PrivateKey,
    /// Writes the recordings.
    pub writer: Writer,
    /// Recordings that are being finished: compressed and hashed, after their channels closed.
    pub(super) finishing: TaskTracker,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// The host CA's public key, as in `authorized_keys`.
    pub(super) fn host_ca_line(&self) -> String {
        let line = crate::keys::public_key_line(self.host_ca.public_key());
        line.map(|(line, _)| format!("{line} sallyport-host-ca")).unwrap_or_default()
    }

    /// The keys and the writer of this process.
    pub fn new(host_ca: PrivateKey, user_ca: PrivateKey, writer: Writer) -> Self {
        Self { host_ca, user_ca, writer, finishing: TaskTracker::new() }
    }
}

/// One person on one target as one account. Its connections to the target are in `target`, where it
/// leads on in `destination`.
pub(super) struct Relay {
    pub(super) conn: Arc<Connection>,
    pub(super) permit: AccountPermit,
    addresses: Checked,
    /// The SSH connection that the user's channels are on: the outer one, or the one in it.
    user: Arc<OnceLock<russh::server::Handle>>,
    /// Its channels' flow.
    flow: Arc<ConnectionFlow>,
    /// Ends with that connection, and with the permit.
    pub(super) cancel: CancellationToken,
    /// The target connection that was made while signing in, or that all channels share.
    home: tokio::sync::Mutex<Option<target::Home>>,
    /// Whether the fresh code was given that the permit may ask for.
    code: step_up::Given,
    /// Whether the user's client offered its agent.
    agent: AtomicBool,
    /// Whether it was said outside a terminal that this is recorded.
    told: AtomicBool,
    /// Sentences for the user that the next session begins with.
    untold: Mutex<Vec<String>>,
    /// Why it was ended from here.
    lapsed: OnceLock<String>,
}

impl Relay {
    /// Decides whether the user of `conn` may be `account` on `target`, at addresses that were
    /// checked for it.
    pub(super) async fn authorize(
        conn: &Arc<Connection>,
        target: &Target,
        account: &str,
        addresses: Checked,
        (user, flow): (Arc<OnceLock<russh::server::Handle>>, Arc<ConnectionFlow>),
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, NotOpened> {
        let refuse = |refused: Refused| {
            conn.record_refusal(Event::AccountRefused {
                target: target.name.clone(),
                account: noted(account),
                reason: refused.reason,
            });
            NotOpened::Refused(refused)
        };
        let account: AccountName = account.parse().map_err(|_| {
            let message = format!("there can be no such account on {}", target.name);
            let target = Some(target.name.clone());
            refuse(Refused { reason: Refusal::NotGranted, message, target })
        })?;
        let permit = match decide(conn, target, &account).await {
            Err(NotOpened::Refused(refused)) => return Err(refuse(refused)),
            other => other?,
        };
        let home = tokio::sync::Mutex::new(None);
        let conn = Arc::clone(conn);
        let (code, agent, told, untold, lapsed) = Default::default();
        Ok(Arc::new(Self {
            conn,
            permit,
            addresses,
            user,
            flow,
            cancel,
            home,
            code,
            agent,
            told,
            untold,
            lapsed,
        }))
    }

    /// Begins to count what a channel carries. It adds to the session's sums, unless the channel that
    /// the inner SSH comes in does already.
    fn meter(&self, carrier: Option<Carrier>) -> Meter {
        self.conn.traffic.meter(carrier, self.is_on_outer())
    }

    /// Whether the user's channels are on the connection that they signed in on, not on one in it.
    fn is_on_outer(&self) -> bool {
        Arc::ptr_eq(&self.flow, &self.conn.flow)
    }

    pub(super) fn target(&self) -> &Target {
        self.permit.target()
    }

    pub(super) fn account(&self) -> &AccountName {
        self.permit.account()
    }

    /// `root@db1`
    pub(super) fn name(&self) -> String {
        format!("{}@{}", self.account(), self.target().name)
    }

    /// Whether `what` is allowed; if not, that is audited, and the sentence for the user given.
    pub(super) fn check(&self, right: Capability, what: &str) -> Result<(), String> {
        if self.permit.allows(right) {
            return Ok(());
        }
        self.refuse_use(what, Refusal::NotGranted);
        Err(format!(
            "{right} is not granted to you on {} as {}",
            self.target().name,
            self.account()
        ))
    }

    /// Has the next session begin with a sentence for the user.
    fn tell_later(&self, text: String) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() < UNTOLD {
            untold.push(text);
        }
    }

    /// What it begins with.
    fn untold(&self) -> Vec<String> {
        std::mem::take(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse_use(&self, what: &str, reason: Refusal) {
        self.conn.record_refusal(Event::UseRefused {
            target: self.target().name.clone(),
            account: self.account().clone(),
            what: noted(what),
            reason,
        });
    }

    /// Writes down that a connection beside the sessions is opened; false if that failed, and it must
    /// not be.
    pub(super) async fn opened_onward(&self, to: &str) -> bool {
        let (target, account) = (self.target().name.clone(), self.account().clone());
        let event = Event::OnwardOpened { target, account, to: to.to_owned() };
        let (store, now) = (&self.conn.bastion.store, self.conn.bastion.clock.now());
        let written = store.record(now, &self.conn.context(), event).await;
        if let Err(error) = &written {
            tracing::error!(%error, "failed to write an audit event of a connection");
        }
        written.is_ok()
    }

    /// Writes down that such a connection closed, and why, if neither side closed it.
    pub(super) fn closed_onward(&self, to: String, (up, down): (u64, u64), reason: Option<String>) {
        let (target, account) = (self.target().name.clone(), self.account().clone());
        self.conn.record(Event::OnwardClosed { target, account, to, up, down, reason });
    }

    /// Waits until the permit no longer holds, or holds for less; gives why.
    pub(super) async fn watch(&self) -> String {
        let why = self.lapse().await;
        self.lapsed.get_or_init(|| why).clone()
    }

    /// Why it ended, if that was not the user's doing.
    fn ended(&self) -> Option<String> {
        let cut = || self.conn.ended_by_us().map(|_| "it was ended".to_owned());
        self.lapsed.get().cloned().or_else(cut)
    }

    async fn lapse(&self) -> String {
        let ask = || self.look_again();
        until_refused(&self.conn, self.permit.until(), &self.cancel, ask).await
    }

    /// Until when the permit holds at least, by what the store holds now; or why it no longer does.
    async fn look_again(&self) -> Result<Option<UnixTime>, NotOpened> {
        let permit = decide(&self.conn, self.target(), self.account()).await?;
        let name = &self.target().name;
        if permit.target().address != self.target().address {
            return Err(refused(Refusal::NotGranted, &format!("{name} was moved")));
        }
        if permit.step_up() && !self.permit.step_up() {
            let message = format!("{name} asks for a fresh code now: connect again");
            return Err(refused(Refusal::StepUp, &message));
        }
        if !permit.covers(&self.permit) {
            let message = format!("less is granted to you on {name} now");
            return Err(refused(Refusal::NotGranted, &message));
        }
        Ok(permit.until())
    }
}

/// Asks the policy, with what the store holds now.
async fn decide(
    conn: &Connection,
    target: &Target,
    account: &AccountName,
) -> Result<AccountPermit, NotOpened> {
    let who = conn.who().ok_or_else(|| refused(Refusal::NotOffered, "sign in first"))?;
    let destination = Destination { host: target.address.host.clone(), port: target.address.port };
    let access = conn.bastion.store.access_to(who.account(), &destination).await;
    let access = access.map_err(|error| {
        tracing::error!(%error, "failed to read grants");
        NotOpened::Failed("the bastion cannot read its grants: try again".to_owned())
    })?;
    let Some(target) = access.targets.iter().find(|found| found.id == target.id) else {
        let message = format!("{} is no longer a target", target.name);
        return Err(refused(Refusal::NotGranted, &message));
    };
    let subject = Subject::of(who, &access.groups, conn.source.ip());
    let now = conn.bastion.clock.now();
    match authorize_account(&subject, target, &access.grants, account, now) {
        AccountDecision::Permit(permit) => Ok(permit),
        AccountDecision::Refuse(refused) => Err(refused.into()),
    }
}
