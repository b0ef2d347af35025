//! Asks a target for its host key, and nothing else: for `sallyport target pin`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use russh::client;
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use tokio::time::timeout;

use crate::domain::TargetAddress;
use crate::keys;
use crate::server::forward::dial;
use crate::server::ssh;
use crate::server::stream::GuardedStream;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(10);

/// The host key that `address` shows: its line and its fingerprint.
///
/// # Errors
/// When it cannot be reached, or is no SSH server.
pub async fn host_key(address: &TargetAddress) -> anyhow::Result<(String, String)> {
    let name = address.to_string();
    let ips = dial::resolve(&address.host, address.port, STEP).await;
    let ips = ips.map_err(|error| anyhow::anyhow!(error.for_target(&name)))?;
    let addresses: Vec<_> = ips.into_iter().map(|ip| (ip, address.port).into()).collect();
    let (_, socket) = dial::dial(&addresses, STEP)
        .await
        .map_err(|error| anyhow::anyhow!(error.for_target(&name)))?;
    let (stream, control) = GuardedStream::new(socket, STEP);
    let config = client::Config { preferred: ssh::target_preferred(), ..client::Config::default() };
    let seen = Arc::new(Mutex::new(None));
    let connecting = client::connect_stream(Arc::new(config), stream, Look(Arc::clone(&seen)));
    let outcome = timeout(STEP, connecting).await;
    control.kill();
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (seen, outcome) {
        (Some(key), _) => keys::public_key_line(&key).context("failed to read the host key"),
        (None, Ok(Err(error))) => Err(error).context(format!("{name} speaks no SSH that fits")),
        (None, _) => bail!("{name} did not show a host key within {} s", STEP.as_secs()),
    }
}

/// Keeps the key that it sees, and goes no further.
struct Look(Arc<Mutex<Option<PublicKey>>>);

impl client::Handler for Look {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        if let PublicKeyOrCertificate::PublicKey { key, .. } = shown {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        }
        Ok(false)
    }
}
