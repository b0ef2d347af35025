//! What a connection needs of the configuration, in the form it needs it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::forward::{FlowLimits, PumpLimits};
use super::radius::RadiusSettings;
use crate::auth::account::ThrottleRules;
use crate::auth::machine::Rules;
use crate::console::Certificates;
use crate::domain::RadiusMode;
use crate::keys::Authorities;
use crate::recording;

/// The settings in force for new connections; a reload replaces them as a whole.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How a login goes.
    pub rules: Arc<Rules>,
    /// Whose certificates users may sign in with.
    pub authorities: Arc<Authorities>,
    /// How certificates are given to users, if they are.
    pub certificates: Option<Certificates>,
    /// When failures slow down and lock out.
    pub throttle: ThrottleRules,
    /// From accepting a connection to its sign-in.
    pub login_grace: Duration,
    /// From the first sight of the QR code to its sign-in.
    pub binding_grace: Duration,
    /// How long an authenticator may be bound after its owner unbound it.
    pub binding_window: Duration,
    /// The most channels open at a time on one connection.
    pub max_channels: usize,
    /// The most sessions of one account at a time; 0: any number.
    pub max_sessions_per_account: usize,
    /// How long resolving, and how long dialling, a target may take.
    pub dial_timeout: Duration,
    /// How much one channel, and all together, may hold for slow targets.
    pub flow: FlowLimits,
    /// When a forward is given up.
    pub pump: PumpLimits,
    /// Which RADIUS servers are asked.
    pub radius: RadiusSettings,
    /// How sessions are recorded.
    pub record: RecordSettings,
    /// Shown before anything is asked.
    pub banner: String,
    /// Whether older clients find algorithms that they know.
    pub older_clients: bool,
    /// The bastion's name as people type it; empty if nobody configured one.
    pub public_host: String,
    /// The name that the host gives itself.
    pub host_name: String,
    /// The bastion's port as people type it; of a running bastion, never 0.
    pub public_port: u16,
    /// TCP keepalive's interval for clients.
    pub keepalive: Duration,
    /// How long sessions may go on after SIGTERM.
    pub drain: Duration,
    /// Who may send a PROXY header, and must.
    pub proxy_from: Vec<ipnet::IpNet>,
}

/// How sessions on targets in record mode are recorded.
#[derive(Debug, Clone)]
pub struct RecordSettings {
    /// Where the files are.
    pub folder: PathBuf,
    /// What people are told.
    pub notice: String,
    /// Whether what they type is recorded.
    pub input: bool,
    /// Whether a session that cannot be recorded ends.
    pub strict: bool,
    /// What one recording may hold in memory, and must leave free on the disk.
    pub limits: recording::Limits,
    /// Whether the first host key of a target is trusted.
    pub trust_first_use: bool,
    /// How long recordings are kept, if not for ever.
    pub keep_for: Option<Duration>,
    /// How much they may take, if not any amount.
    pub keep_bytes: Option<u64>,
}

impl Settings {
    /// How RADIUS servers are asked for whom nothing else is set; `None` if there are none.
    pub fn radius_mode(&self) -> Option<RadiusMode> {
        self.radius.client.as_ref().map(|_| self.rules.radius.mode)
    }

    /// The bastion's name as somebody at `source` would type it.
    pub fn name_for(&self, source: std::net::IpAddr) -> &str {
        match self.public_host.as_str() {
            "" if source.to_canonical().is_loopback() => "localhost",
            "" => &self.host_name,
            configured => configured,
        }
    }
}
