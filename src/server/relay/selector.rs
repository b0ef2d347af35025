//! The selector: `ssh alice+root@db1@bastion` goes straight to a target, with any client.
//!
//! Always holds: what stands before the first `+` signs in; what stands behind it only chooses,
//! and is decided by the policy like any destination.

use std::sync::{Arc, OnceLock};

use tokio::sync::OnceCell;

use super::Relay;
use crate::audit::{Event, Refusal};
use crate::domain::{AccountName, Destination, Mode, noted};
use crate::policy::{self, Subject};
use crate::server::connection::Connection;
use crate::server::direct::NotOpened;

/// What a user name chooses behind its `+`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct Selector {
    /// The account on the target, if it was said.
    pub(in crate::server) account: Option<String>,
    /// The target.
    pub(in crate::server) target: String,
}

/// The login name in `user`, and what it chooses.
pub(in crate::server) fn parse(user: &str) -> (&str, Option<Selector>) {
    let Some((login, chosen)) = user.split_once('+') else { return (user, None) };
    let (account, target) = match chosen.rsplit_once('@') {
        Some((account, target)) => (Some(account.to_owned()), target),
        None => (None, chosen),
    };
    (login, Some(Selector { account, target: target.to_owned() }))
}

/// The way from a signed-in connection to the target that it chose.
pub(in crate::server) struct Entrance {
    selector: Selector,
    user: Arc<OnceLock<russh::server::Handle>>,
    relay: OnceCell<Result<Arc<Relay>, String>>,
}

impl Entrance {
    pub(in crate::server) fn new(selector: Selector) -> Self {
        Self { selector, user: Arc::default(), relay: OnceCell::new() }
    }

    /// The relay, once the first channel needed it.
    pub(in crate::server) fn known(&self) -> Option<&Arc<Relay>> {
        self.relay.get()?.as_ref().ok()
    }

    /// The relay, or a sentence that says why there is none.
    pub(in crate::server) async fn relay(
        &self,
        conn: &Arc<Connection>,
        handle: russh::server::Handle,
    ) -> Result<Arc<Relay>, String> {
        self.user.get_or_init(|| handle);
        self.relay.get_or_init(|| self.find(conn)).await.clone()
    }

    async fn find(&self, conn: &Arc<Connection>) -> Result<Arc<Relay>, String> {
        let relay = self.selector.find(conn, &self.user).await?;
        conn.tasks.spawn(end_with_permit(Arc::clone(&relay)));
        Ok(relay)
    }
}

impl Selector {
    /// The relay to what it chooses, or a sentence that says why there is none; `user` becomes the
    /// handle of the connection that its channels are on.
    pub(super) async fn find(
        &self,
        conn: &Arc<Connection>,
        user: &Arc<OnceLock<russh::server::Handle>>,
    ) -> Result<Arc<Relay>, String> {
        let found = self.try_find(conn, Arc::clone(user)).await;
        found.map_err(|error| match error {
            NotOpened::Refused(refused) => refused.message,
            NotOpened::Failed(message) => message,
        })
    }

    async fn try_find(
        &self,
        conn: &Arc<Connection>,
        user: Arc<OnceLock<russh::server::Handle>>,
    ) -> Result<Arc<Relay>, NotOpened> {
        let name = &self.target;
        let refuse = |refused: policy::Refused| {
            let (destination, target) = (noted(name), refused.target.clone());
            let reason = refused.reason;
            conn.record_refusal(Event::ForwardRefused { destination, target, reason });
            NotOpened::Refused(refused)
        };
        let not_granted = || {
            let message = format!("{} is not granted to you", noted(name));
            refuse(policy::Refused { reason: Refusal::NotGranted, message, target: None })
        };
        let destination = Destination::parse(name, 22).map_err(|_| not_granted())?;
        let who = conn.who().ok_or_else(not_granted)?;
        let permit = match super::super::direct::decide(conn, who, &destination).await {
            Err(NotOpened::Refused(refused)) => return Err(refuse(refused)),
            other => other?,
        };
        let target = permit.target();
        if target.mode != Mode::Record {
            let message = format!("{} is in tunnel mode: connect with ssh -J", target.name);
            let target = Some(target.name.clone());
            return Err(refuse(policy::Refused { reason: Refusal::NotOffered, message, target }));
        }
        let (address, timeout) = (&target.address, conn.settings.dial_timeout);
        let ips = conn.bastion.resolver.resolve(&address.host, address.port, timeout).await;
        let ips = ips.map_err(|e| NotOpened::Failed(e.for_target(target.name.as_str())))?;
        let checked = permit.check_addresses(&ips, &conn.bastion.own_addresses(&ips));
        let checked = checked.map_err(refuse)?;
        let account = match &self.account {
            Some(account) => account.clone(),
            None => the_account(conn, target).await?,
        };
        let user = (user, Arc::clone(&conn.flow));
        let cancel = conn.cancel.child_token();
        Relay::authorize(conn, target, &account, checked, user, cancel).await
    }
}

/// Ends the connection when its permit stops to hold.
async fn end_with_permit(relay: Arc<Relay>) {
    let why = tokio::select! {
        why = relay.watch() => why,
        () = relay.cancel.cancelled() => return,
    };
    relay.conn.end(crate::audit::EndReason::Revoked, &why);
}

/// The account that is meant when nobody said one: the only one that is granted, the only one that
/// the target has, or else the user's own name, as `ssh` takes it.
async fn the_account(
    conn: &Connection,
    target: &crate::domain::Target,
) -> Result<String, NotOpened> {
    let failed = |error: crate::store::Error| {
        tracing::error!(%error, "failed to read accounts");
        NotOpened::Failed("the bastion cannot read its accounts: try again".to_owned())
    };
    let Some(who) = conn.who() else { return Ok(String::new()) };
    let access = conn.bastion.store.access_of(who.account()).await.map_err(failed)?;
    let subject = Subject::of(who, &access.groups, conn.source.ip());
    let granted = policy::granted_accounts(&subject, target, &access.grants);
    if let [only] = &granted[..] {
        return Ok(only.to_string());
    }
    let rows = conn.bastion.store.accounts(&target.name).await.map_err(failed)?;
    let known: Vec<AccountName> = rows.iter().filter_map(|row| row.account.parse().ok()).collect();
    match &known[..] {
        [only] if granted.is_empty() || granted.contains(only) => Ok(only.to_string()),
        _ => Ok(who.user().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_may_choose_a_target() {
        let chosen = |account: Option<&str>, target: &str| {
            Some(Selector { account: account.map(str::to_owned), target: target.to_owned() })
        };
        for (user, login, selector) in [
            ("alice", "alice", None),
            ("alice+db1", "alice", chosen(None, "db1")),
            ("alice+root@db1", "alice", chosen(Some("root"), "db1")),
            ("alice+a@b@db1", "alice", chosen(Some("a@b"), "db1")),
            ("alice+", "alice", chosen(None, "")),
            ("+db1", "", chosen(None, "db1")),
        ] {
            assert_eq!(parse(user), (login, selector), "{user}");
        }
    }
}
