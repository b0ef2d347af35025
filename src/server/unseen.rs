//! What leads to an SSH server whose sessions are recorded, and would pass the recording by.
//!
//! Always holds: the addresses that are dialled are compared, whatever the names: two targets may
//! lead to one server, and what is recorded under one name does not go unseen under the other. Where a
//! recorded target's name leads is asked for once in a while, not for each tunnel, and what it led to
//! last holds while no name server answers; what was never known lets nobody through.

use std::net::IpAddr;
use std::pin::pin;

use futures_util::StreamExt as _;

use super::connection::Connection;
use super::direct::{NotOpened, refused};
use super::forward::dial::DialError;
use crate::audit::Refusal;
use crate::domain::{Host, TargetName};
use crate::policy;

/// Names that are looked up at a time.
const LOOKUPS: usize = 8;

/// Whether two addresses are one.
pub(super) fn is_same(a: IpAddr, b: IpAddr) -> bool {
    policy::plain(a) == policy::plain(b)
}

/// Refuses what leads to the target `name`.
pub(super) fn refuse(name: &TargetName) -> NotOpened {
    let message =
        format!("sessions on {name} are recorded: go there with ssh -J through the bastion");
    refused(Refusal::NotGranted, &message)
}

/// Refuses what leads to `port` of one of these addresses, if a target in record mode does so, too.
pub(super) async fn check(
    conn: &Connection,
    addresses: &[IpAddr],
    port: u16,
    is_same: impl Fn(IpAddr, IpAddr) -> bool,
) -> Result<(), NotOpened> {
    let recorded = conn.bastion.store.recorded_at(port).await.map_err(|error| {
        tracing::error!(%error, "failed to read targets");
        NotOpened::Failed("the bastion cannot read its targets: try again".to_owned())
    })?;
    let (timeout, known) = (conn.settings.dial_timeout, &conn.bastion.recorded);
    let is_same = &is_same;
    let leads_there = |name: TargetName, host: Host| async move {
        let found = known.of(&host, port, timeout).await.map_err(|error| unknown(&error, &name))?;
        let here = |ip: &IpAddr| addresses.iter().any(|address| is_same(*ip, *address));
        Ok(found.iter().any(here).then_some(name))
    };
    // What is an address is compared first: that waits for nobody.
    let (plain, named): (Vec<_>, Vec<_>) =
        recorded.into_iter().partition(|(_, host)| host.ip().is_some());
    let all = plain.into_iter().chain(named).map(|(name, host)| leads_there(name, host));
    let mut all = pin!(futures_util::stream::iter(all).buffer_unordered(LOOKUPS));
    let mut clear = Ok(());
    while let Some(leads_there) = all.next().await {
        match leads_there {
            Ok(None) => {}
            Ok(Some(name)) => return Err(refuse(&name)),
            Err(unknown) => clear = Err(unknown), // A target that it does lead to says more.
        }
    }
    clear
}

/// The same, for what is open already: a name that cannot be looked up now ends nothing. It was found
/// out when that was opened.
pub(super) async fn check_again(
    conn: &Connection,
    addresses: &[IpAddr],
    port: u16,
    is_same: impl Fn(IpAddr, IpAddr) -> bool,
) -> Result<(), NotOpened> {
    match check(conn, addresses, port, is_same).await {
        Err(NotOpened::Refused(refused)) if refused.reason == Refusal::RecordedElsewhere => Ok(()),
        other => other,
    }
}

/// Refuses what may lead to the target `name`: nobody can say.
fn unknown(error: &DialError, name: &TargetName) -> NotOpened {
    let why = error.for_target(name.as_str());
    let message = format!(
        "sessions on {name} are recorded, and whether this leads there cannot be found out ({why}): try \
         again, or ask an administrator to mend or remove that target"
    );
    refused(Refusal::RecordedElsewhere, &message)
}
