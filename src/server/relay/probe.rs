//! Asks a target for its host key, and nothing else: for `sallyport target pin` and `doctor`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use russh::client;
use russh::keys::PublicKeyOrCertificate;
use tokio::time::timeout;

use super::callbacks::{HostKeys, fingerprint};
use super::target;
use crate::domain::{Target, TargetAddress, UnixTime};
use crate::keys;
use crate::server::forward::dial;
use crate::server::ssh;
use crate::server::stream::GuardedStream;
use crate::store::TrustedKey;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(10);

/// A window that is never filled.
const WINDOW: u32 = 64 * 1024;

/// The host key that `address` shows: its line and its fingerprint.
///
/// # Errors
/// When it cannot be reached, or is no SSH server.
pub async fn host_key(address: &TargetAddress) -> anyhow::Result<(String, String)> {
    let config = client::Config { preferred: ssh::target_preferred(), ..client::Config::default() };
    let read = |shown: &PublicKeyOrCertificate| match shown {
        PublicKeyOrCertificate::PublicKey { key, .. } => Some(keys::public_key_line(key)),
        PublicKeyOrCertificate::Certificate(_) => None,
    };
    match show(address, config, read).await? {
        Some(line) => line.context("failed to read the host key"),
        None => bail!("{address} shows a certificate and no key"),
    }
}

/// What `target` shows, "SHA256:..." or the authority of its certificate, and whether that is trusted.
///
/// # Errors
/// As [`host_key`].
pub async fn look(
    target: &Target,
    trusted: &[TrustedKey],
    now: UnixTime,
) -> anyhow::Result<(String, bool)> {
    let (host_keys, expected) = (HostKeys::parse(trusted), target.clone());
    let read = move |shown: &PublicKeyOrCertificate| {
        (fingerprint(shown), host_keys.trusts(shown, &expected, now))
    };
    show(&target.address, target::config(trusted, WINDOW), read).await
}

/// What `read` makes of the host key that `address` shows.
async fn show<T: Send + 'static>(
    address: &TargetAddress,
    config: client::Config,
    read: impl Fn(&PublicKeyOrCertificate) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let name = address.to_string();
    let ips = dial::Resolver::system().resolve(&address.host, address.port, STEP).await;
    let ips = ips.map_err(|error| anyhow::anyhow!(error.for_target(&name)))?;
    let addresses: Vec<_> = ips.into_iter().map(|ip| (ip, address.port).into()).collect();
    let (_, socket) = dial::dial(&addresses, STEP)
        .await
        .map_err(|error| anyhow::anyhow!(error.for_target(&name)))?;
    let (stream, control) = GuardedStream::new(socket, STEP);
    let seen = Arc::new(Mutex::new(None));
    let connecting =
        client::connect_stream(Arc::new(config), stream, Look { read, seen: Arc::clone(&seen) });
    let outcome = timeout(STEP, connecting).await;
    control.kill();
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (seen, outcome) {
        (Some(shown), _) => Ok(shown),
        (None, Ok(Err(error))) => Err(error).context(format!("{name} speaks no SSH that fits")),
        (None, _) => bail!("{name} did not show a host key within {} s", STEP.as_secs()),
    }
}

/// Reads the key that it sees, and goes no further.
struct Look<T, F> {
    read: F,
    seen: Arc<Mutex<Option<T>>>,
}

impl<T, F> client::Handler for Look<T, F>
where
    T: Send + 'static,
    F: Fn(&PublicKeyOrCertificate) -> T + Send + 'static,
{
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.read)(shown));
        Ok(false)
    }
}
