//! What leads to an SSH server whose sessions are recorded, and would pass the recording by.
//!
//! Always holds: the addresses that are dialled are compared, whatever the names: two targets may
//! lead to one server, and what is recorded under one name does not go unseen under the other.

use std::net::IpAddr;
use std::pin::pin;

use futures_util::StreamExt as _;

use super::connection::Connection;
use super::direct::{NotOpened, refused};
use crate::audit::Refusal;
use crate::domain::TargetName;
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
    let (timeout, resolver) = (conn.settings.dial_timeout, &conn.bastion.resolver);
    let is_same = &is_same;
    let found = recorded.into_iter().map(|(name, host)| async move {
        // What does not resolve is reached by nobody, under that name.
        let found = resolver.resolve(&host, port, timeout).await;
        let here = |ip: &IpAddr| addresses.iter().any(|address| is_same(*ip, *address));
        found.unwrap_or_default().iter().any(here).then_some(name)
    });
    let found = futures_util::stream::iter(found).buffer_unordered(LOOKUPS);
    match pin!(found.filter_map(std::future::ready)).next().await {
        Some(name) => Err(refuse(&name)),
        None => Ok(()),
    }
}
