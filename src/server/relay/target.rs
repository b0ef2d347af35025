//! The bastion's own SSH connection to a target: dial, check the host key, sign in.
//!
//! Always holds: nothing is sent to a target whose host key is not trusted; dial, handshake and
//! each step of signing in have deadlines with reasons; what the target says to the user has no
//! control character left; the socket dies with the last handle on the connection.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use russh::client::{self, AuthResult, ChannelOpenHandle, KeyboardInteractiveAuthResponse, Msg};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{HashAlg, certificate::CertType};
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use russh::{Channel, MethodKind, MethodSet};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Relay;
use crate::audit::Event;
use crate::domain::{AccountAuth, Capability, Target, UnixTime, noted, printable};
use crate::keys;
use crate::server::forward::dial;
use crate::server::ssh;
use crate::server::stream::{GuardedStream, StreamControl};
use crate::store::{AccountSecret, Store, TrustedKey};

/// How long the handshake, and each step of signing in, may take.
const STEP: Duration = Duration::from_secs(15);
/// How long a user may think about a target's question.
pub(super) const ANSWER: Duration = Duration::from_secs(120);
/// Rounds of questions that a target may ask.
const MAX_ROUNDS: usize = 16;
/// How long a certificate for a target is good.
const CERTIFICATE: Duration = Duration::from_secs(5 * 60);

/// A signed-in connection to a target.
pub(super) struct TargetConnection {
    pub(super) handle: client::Handle<Handler>,
    control: StreamControl,
}

impl Drop for TargetConnection {
    fn drop(&mut self) {
        self.control.kill();
    }
}

/// The connection that was made while the user signed in.
pub(super) struct Home {
    connection: Arc<TargetConnection>,
    /// For all channels: the user was asked something on the way.
    shared: bool,
    used: bool,
}

/// Where signing in on a target has come to.
pub(super) enum Stage {
    In(Arc<TargetConnection>),
    Asking(Box<Asking>),
}

/// What a target asks the user.
#[derive(Debug, Clone, Default)]
pub(super) struct Questions {
    pub(super) instruction: String,
    /// Each with whether the answer may be shown.
    pub(super) prompts: Vec<(String, bool)>,
}

/// A sign-in that waits for the user's answers.
pub(super) struct Asking {
    connection: TargetConnection,
    account: String,
    questions: Questions,
    /// No keyboard-interactive there: the one answer is a password.
    password: bool,
    rounds: usize,
}

/// Why there is no connection; a sentence for the user.
pub(super) type Failed = String;

impl Relay {
    /// A connection to open one channel on; made anew unless there is one to use.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Stage, Failed> {
        {
            let mut home = self.home.lock().await;
            if let Some(home) = home.as_mut().filter(|home| home.shared || !home.used) {
                home.used = true;
                if !home.connection.handle.is_closed() {
                    return Ok(Stage::In(Arc::clone(&home.connection)));
                }
            }
        }
        connect(self).await
    }

    /// Keeps a connection for the first channel, or, if `shared`, for all.
    pub(super) async fn keep(&self, connection: Arc<TargetConnection>, shared: bool) {
        *self.home.lock().await = Some(Home { connection, shared, used: false });
    }

    /// The connection for what is not a channel of the user's: `-R`.
    pub(super) async fn home(&self) -> Option<Arc<TargetConnection>> {
        self.home.lock().await.as_ref().map(|home| Arc::clone(&home.connection))
    }

    /// Whether signing in has to wait for the agent that a channel will forward.
    pub(super) async fn needs_agent(&self) -> Result<bool, Failed> {
        Ok(self.secret().await?.is_some_and(|secret| secret.auth == AccountAuth::Agent))
    }

    async fn secret(&self) -> Result<Option<AccountSecret>, Failed> {
        let store = &self.conn.bastion.store;
        store.account_secret(&self.target().id, self.account()).await.map_err(|error| {
            tracing::error!(%error, "failed to read how to sign in on a target");
            "the bastion cannot read how to sign in there: ask your administrator".to_owned()
        })
    }
}

/// Connects and signs in, as far as that goes without the user.
async fn connect(relay: &Arc<Relay>) -> Result<Stage, Failed> {
    let outcome = try_connect(relay).await;
    if let Err(error) = &outcome {
        relay.conn.record(Event::TargetFailed {
            target: relay.target().name.clone(),
            account: relay.account().clone(),
            error: error.clone(),
        });
    }
    outcome
}

async fn try_connect(relay: &Arc<Relay>) -> Result<Stage, Failed> {
    let name = relay.target().name.as_str();
    let secret = relay.secret().await?;
    let dialled = dial::dial(relay.addresses.addresses(), relay.conn.settings.dial_timeout).await;
    let (address, socket) = dialled.map_err(|error| error.for_target(name))?;
    let connection = handshake(relay, socket).await?;
    tracing::debug!(target = name, %address, "connected to a target");
    sign_in(relay, connection, secret).await
}

async fn handshake(relay: &Arc<Relay>, socket: TcpStream) -> Result<TargetConnection, Failed> {
    let name = &relay.target().name;
    let store = &relay.conn.bastion.store;
    let trusted = store.trusted_keys(&relay.target().id).await.map_err(|error| {
        tracing::error!(%error, "failed to read a target's host keys");
        "the bastion cannot read the target's host keys: try again".to_owned()
    })?;
    let (stream, control) = GuardedStream::new(socket, STEP + ANSWER);
    let refused = Arc::new(Mutex::new(None));
    let config = config(&trusted, relay.conn.settings.flow.window);
    let handler = Handler {
        relay: Arc::downgrade(relay),
        host_keys: HostKeys::parse(&trusted),
        refused: Arc::clone(&refused),
    };
    let connecting = client::connect_stream(Arc::new(config), stream, handler);
    let result = timeout(STEP, connecting).await;
    let why = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (result, why) {
        (_, Some(why)) => {
            control.kill();
            Err(why)
        }
        (Ok(Ok(handle)), None) => Ok(TargetConnection { handle, control }),
        (Ok(Err(error)), None) => {
            control.kill();
            tracing::info!(target = %name, %error, "failed to speak SSH with a target");
            Err(format!(
                "{name} does not speak SSH as it should: {}",
                printable(&error.to_string())
            ))
        }
        (Err(_), None) => {
            control.kill();
            Err(format!("{name} did not finish the SSH handshake within {} s", STEP.as_secs()))
        }
    }
}

fn config(trusted: &[TrustedKey], window: u32) -> client::Config {
    let mut preferred = ssh::target_preferred();
    // A target with several host keys shall show one that we know.
    let known: Vec<Algorithm> = trusted
        .iter()
        .filter(|key| key.authority == 0)
        .filter_map(|key| PublicKey::from_openssh(&key.key).ok())
        .flat_map(|key| match key.algorithm() {
            Algorithm::Rsa { .. } => vec![
                Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
                Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
            ],
            other => vec![other],
        })
        .collect();
    // The others stay, so that a target with another key is known as that.
    let others = preferred.key.iter().filter(|other| !known.contains(other)).cloned();
    preferred.key = Cow::Owned(known.iter().cloned().chain(others).collect());
    if trusted.iter().any(|key| key.authority != 0) {
        preferred.host_key_certificates = preferred.key.clone();
    }
    client::Config {
        window_size: window,
        maximum_packet_size: 32 * 1024,
        channel_buffer_size: 16,
        preferred,
        // A target that is gone is found by TCP's keepalive; one that hangs, by the user.
        keepalive_interval: None,
        nodelay: true,
        ..client::Config::default()
    }
}

/// Tries what needs no user; gives the questions if only they are left.
async fn sign_in(
    relay: &Arc<Relay>,
    mut connection: TargetConnection,
    secret: Option<AccountSecret>,
) -> Result<Stage, Failed> {
    let account = relay.account().as_str();
    let ways: Vec<AccountAuth> = match &secret {
        Some(secret) => vec![secret.auth],
        None => vec![AccountAuth::Ca, AccountAuth::Ask],
    };
    let stored = secret.and_then(|secret| secret.secret);
    let mut left = ours();
    for way in &ways {
        let tried = match way {
            AccountAuth::Ca => certificate(relay, &mut connection.handle).await?,
            AccountAuth::Key => {
                stored_key(relay, &mut connection.handle, stored.as_deref()).await?
            }
            AccountAuth::Password => {
                password(account, &mut connection.handle, stored.as_deref()).await?
            }
            AccountAuth::Agent => agent(relay, &mut connection.handle).await?,
            AccountAuth::Ask => break,
        };
        match tried {
            AuthResult::Success => return signed_in(relay, connection, *way).await,
            // The target wants more, which only the user can know.
            AuthResult::Failure { remaining_methods, partial_success } => {
                left = remaining_methods;
                if partial_success {
                    return ask(relay, connection, &left).await;
                }
            }
        }
    }
    if ways.contains(&AccountAuth::Ask) {
        return ask(relay, connection, &left).await;
    }
    let tried: Vec<String> = ways.iter().map(ToString::to_string).collect();
    Err(format!("{} did not let the bastion in ({})", relay.name(), tried.join(", ")))
}

async fn signed_in(
    relay: &Arc<Relay>,
    connection: TargetConnection,
    auth: AccountAuth,
) -> Result<Stage, Failed> {
    connection.control.disarm();
    let event = Event::TargetSignedIn {
        target: relay.target().name.clone(),
        account: relay.account().clone(),
        auth,
    };
    let (store, now) = (&relay.conn.bastion.store, relay.conn.bastion.clock.now());
    store.record(now, &relay.conn.context(), event).await.map_err(|error| {
        tracing::error!(%error, "failed to write an audit event of a target");
        "the bastion cannot write its audit log: try again".to_owned()
    })?;
    Ok(Stage::In(Arc::new(connection)))
}

async fn step<T>(
    what: &str,
    future: impl Future<Output = Result<T, russh::Error>>,
) -> Result<T, Failed> {
    match timeout(STEP, future).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => {
            Err(format!("{what} ended the connection: {}", printable(&error.to_string())))
        }
        Err(_) => Err(format!("{what} did not answer within {} s", STEP.as_secs())),
    }
}

/// A certificate of the user CA over a key that nobody else ever sees, made for this connection.
async fn certificate(
    relay: &Relay,
    handle: &mut client::Handle<Handler>,
) -> Result<AuthResult, Failed> {
    let fail = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "failed to make a certificate for a target");
        "the bastion cannot make its certificate: ask your administrator".to_owned()
    };
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| fail(&error))?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, "").map_err(|error| fail(&error))?;
    let conn = &relay.conn;
    let user = conn.who().map(|who| who.user().to_string()).unwrap_or_default();
    let id = format!("sallyport user={user} source={} session={}", conn.source.ip(), conn.id);
    let made = keys::user_certificate(
        &conn.bastion.relay.user_ca,
        key.public_key(),
        relay.account().as_str(),
        &id,
        conn.bastion.clock.now(),
        CERTIFICATE,
    );
    let certificate = made.map_err(|error| fail(&error))?;
    let account = relay.account().as_str();
    let tried = handle.authenticate_openssh_cert(account, Arc::new(key), certificate);
    step(relay.target().name.as_str(), tried).await
}

async fn stored_key(
    relay: &Relay,
    handle: &mut client::Handle<Handler>,
    stored: Option<&Vec<u8>>,
) -> Result<AuthResult, Failed> {
    let name = relay.target().name.as_str();
    let key = stored.and_then(|bytes| PrivateKey::from_openssh(bytes).ok());
    let key = key.ok_or_else(|| format!("the key for {} is not usable", relay.name()))?;
    let hash = match key.algorithm() {
        Algorithm::Rsa { .. } => step(name, handle.best_supported_rsa_hash()).await?.flatten(),
        _ => None,
    };
    let hash = hash.or(Some(HashAlg::Sha512));
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    step(name, handle.authenticate_publickey(relay.account().as_str(), key)).await
}

/// The stored password, as itself or as the answer to the one question for it.
async fn password(
    account: &str,
    handle: &mut client::Handle<Handler>,
    stored: Option<&Vec<u8>>,
) -> Result<AuthResult, Failed> {
    let text = stored.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let first = step("the target", handle.authenticate_password(account, text)).await?;
    let AuthResult::Failure { remaining_methods, partial_success: false } = &first else {
        return Ok(first);
    };
    if !remaining_methods.contains(&MethodKind::KeyboardInteractive) {
        return Ok(first);
    }
    let start = handle.authenticate_keyboard_interactive_start(account, None);
    let mut answered = false;
    let mut response = step("the target", start).await?;
    for _ in 0..4 {
        let answers = match response {
            KeyboardInteractiveAuthResponse::Success => return Ok(AuthResult::Success),
            KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success } => {
                return Ok(AuthResult::Failure { remaining_methods, partial_success });
            }
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => match &prompts[..] {
                [] => Vec::new(),
                [only] if !only.echo && !answered => {
                    answered = true;
                    vec![text.to_owned()]
                }
                _ => return Ok(first),
            },
        };
        let respond = handle.authenticate_keyboard_interactive_respond(answers);
        response = step("the target", respond).await?;
    }
    Ok(first)
}

/// The agent that the user forwards.
async fn agent(relay: &Relay, handle: &mut client::Handle<Handler>) -> Result<AuthResult, Failed> {
    let none = || {
        format!(
            "{} takes a key of your agent: forward it with 'ssh -A' or 'ForwardAgent yes'",
            relay.name()
        )
    };
    // A client that did not offer it takes the question for an attack, and says so.
    if !relay.agent.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(none());
    }
    let user = relay.user.get().ok_or_else(none)?;
    let channel = timeout(STEP, user.channel_open_agent()).await;
    let channel = channel.ok().and_then(Result::ok).ok_or_else(none)?;
    let mut agent = russh::keys::agent::client::AgentClient::connect(channel.into_stream());
    let listed = timeout(STEP, agent.request_identities()).await;
    let identities = listed.ok().and_then(Result::ok).ok_or_else(none)?;
    let account = relay.account().as_str();
    let mut last = AuthResult::Failure { remaining_methods: ours(), partial_success: false };
    // As many as an sshd with default limits lets anybody try.
    for identity in identities.into_iter().take(5) {
        let key = identity.public_key().into_owned();
        let hash = matches!(key.algorithm(), Algorithm::Rsa { .. }).then_some(HashAlg::Sha512);
        // The user may have to confirm, or touch a token.
        let tried = handle.authenticate_publickey_with(account, key, hash, &mut agent);
        last = match timeout(ANSWER, tried).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                return Err(format!("your agent failed: {}", printable(&error.to_string())));
            }
            Err(_) => return Err("your agent did not answer".to_owned()),
        };
        if !matches!(last, AuthResult::Failure { partial_success: false, .. }) {
            break;
        }
    }
    Ok(last)
}

/// Every method that the bastion has: what a target did not say otherwise.
fn ours() -> MethodSet {
    let all = [MethodKind::PublicKey, MethodKind::Password, MethodKind::KeyboardInteractive];
    MethodSet::from(&all[..])
}

/// Finds out what the target asks.
async fn ask(
    relay: &Arc<Relay>,
    mut connection: TargetConnection,
    methods: &MethodSet,
) -> Result<Stage, Failed> {
    let account = relay.account().to_string();
    if methods.contains(&MethodKind::KeyboardInteractive) {
        let start = connection.handle.authenticate_keyboard_interactive_start(&account, None);
        let response = step(relay.target().name.as_str(), start).await?;
        let password = methods.contains(&MethodKind::Password);
        if !matches!(&response, KeyboardInteractiveAuthResponse::Failure { .. } if password) {
            let asking = Asking::new(connection, account, Questions::default(), false);
            return asking.take(relay, response).await;
        }
    }
    if methods.contains(&MethodKind::Password) {
        let prompt = format!("{}'s password: ", relay.name());
        let questions = Questions { instruction: String::new(), prompts: vec![(prompt, false)] };
        return Ok(Stage::Asking(Box::new(Asking::new(connection, account, questions, true))));
    }
    Err(format!("{} takes none of the ways to sign in that the bastion has", relay.name()))
}

impl Asking {
    /// With a new deadline: the user has to think.
    fn new(
        connection: TargetConnection,
        account: String,
        questions: Questions,
        password: bool,
    ) -> Self {
        connection.control.extend(STEP + ANSWER);
        Self { connection, account, questions, password, rounds: 0 }
    }

    pub(super) fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Brings the user's answers to the target.
    pub(super) async fn answer(
        mut self: Box<Self>,
        relay: &Arc<Relay>,
        answers: Vec<Zeroizing<String>>,
    ) -> Result<Stage, Failed> {
        self.rounds += 1;
        self.connection.control.extend(STEP + ANSWER);
        if self.rounds > MAX_ROUNDS {
            return Err(format!("{} asks without end", relay.target().name));
        }
        let name = relay.target().name.as_str();
        let mut plain: Vec<String> = answers.iter().map(|answer| answer.to_string()).collect();
        plain.resize(self.questions.prompts.len(), String::new());
        if self.password {
            let password = plain.pop().unwrap_or_default();
            let tried = self.connection.handle.authenticate_password(&self.account, password);
            return match step(name, tried).await? {
                AuthResult::Success => signed_in(relay, self.connection, AccountAuth::Ask).await,
                AuthResult::Failure { remaining_methods, .. }
                    if remaining_methods.contains(&MethodKind::Password) =>
                {
                    Ok(Stage::Asking(self))
                }
                AuthResult::Failure { .. } => {
                    Err(format!("{name} did not accept that as {}", self.account))
                }
            };
        }
        let respond = self.connection.handle.authenticate_keyboard_interactive_respond(plain);
        let response = step(name, respond).await?;
        self.take(relay, response).await
    }

    async fn take(
        mut self,
        relay: &Arc<Relay>,
        response: KeyboardInteractiveAuthResponse,
    ) -> Result<Stage, Failed> {
        match response {
            KeyboardInteractiveAuthResponse::Success => {
                signed_in(relay, self.connection, AccountAuth::Ask).await
            }
            KeyboardInteractiveAuthResponse::InfoRequest { name, instructions, prompts } => {
                self.questions = Questions {
                    instruction: shown(&format!("{name}\n{instructions}")),
                    prompts: prompts
                        .iter()
                        .take(8)
                        .map(|prompt| (shown(&prompt.prompt), prompt.echo))
                        .collect(),
                };
                Ok(Stage::Asking(Box::new(self)))
            }
            KeyboardInteractiveAuthResponse::Failure { remaining_methods, .. }
                if remaining_methods.contains(&MethodKind::KeyboardInteractive)
                    && self.rounds < 3 =>
            {
                self.rounds += 1;
                let start = self
                    .connection
                    .handle
                    .authenticate_keyboard_interactive_start(&self.account, None);
                let response = step(relay.target().name.as_str(), start).await?;
                Box::pin(self.take(relay, response)).await
            }
            KeyboardInteractiveAuthResponse::Failure { .. } => {
                Err(format!("{} did not accept that", relay.name()))
            }
        }
    }
}

/// What a target says, made fit for the user's terminal; line breaks stay.
fn shown(text: &str) -> String {
    let text: String = text.chars().take(4096).collect();
    let lines = text.lines().map(|line| printable(line.trim_end_matches('\r')));
    lines.collect::<Vec<_>>().join("\n").trim_start_matches('\n').to_owned()
}

/// The keys that are trusted for a target.
struct HostKeys {
    keys: Vec<PublicKey>,
    authorities: Vec<PublicKey>,
}

impl HostKeys {
    fn parse(trusted: &[TrustedKey]) -> Self {
        let of = |authority| {
            let mine = trusted.iter().filter(move |key| key.authority == authority);
            mine.filter_map(|key| PublicKey::from_openssh(&key.key).ok()).collect()
        };
        Self { keys: of(0), authorities: of(1) }
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.authorities.is_empty()
    }

    /// Whether what the target showed is trusted; russh has checked that it holds the key.
    fn trusts(&self, shown: &PublicKeyOrCertificate, target: &Target, now: UnixTime) -> bool {
        let certificate = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                return self.keys.iter().any(|known| known.key_data() == key.key_data());
            }
            PublicKeyOrCertificate::Certificate(certificate) => certificate,
        };
        let host = target.address.host.as_str();
        let named = certificate.valid_principals();
        let authorities: Vec<_> =
            self.authorities.iter().map(|key| key.fingerprint(HashAlg::Sha256)).collect();
        certificate.cert_type() == CertType::Host
            && named.iter().any(|name| name == host || name == target.name.as_str())
            && certificate.critical_options().is_empty()
            && certificate.validate_at(now.seconds(), &authorities).is_ok()
    }
}

/// "SHA256:..." of what a target showed.
fn fingerprint(shown: &PublicKeyOrCertificate) -> String {
    match shown {
        PublicKeyOrCertificate::PublicKey { key, .. } => {
            key.fingerprint(HashAlg::Sha256).to_string()
        }
        PublicKeyOrCertificate::Certificate(certificate) => {
            let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
            format!("a certificate by {authority}")
        }
    }
}

/// What a target may cause.
pub(super) struct Handler {
    /// Not held: the relay holds this connection, and both would stay for ever.
    relay: Weak<Relay>,
    host_keys: HostKeys,
    /// Why its host key was refused.
    refused: Arc<Mutex<Option<String>>>,
}

impl Handler {
    /// Trusts the first key that is seen, if the administrator chose that.
    async fn first_use(&self, relay: &Relay, shown: &PublicKeyOrCertificate) -> bool {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return false };
        if !relay.conn.settings.record.trust_first_use || !self.host_keys.is_empty() {
            return false;
        }
        pin(&relay.conn.bastion.store, relay, key).await
    }

    async fn refuse(&self, relay: &Relay, shown: &PublicKeyOrCertificate) {
        let name = &relay.target().name;
        let message = if self.host_keys.is_empty() {
            format!(
                "the host key of {name} is not known yet: ask your administrator to run 'sallyport target pin {name}'"
            )
        } else {
            format!(
                "the host key of {name} has changed: nothing was sent there. Ask your administrator, who can compare it and run 'sallyport target pin {name}'"
            )
        };
        let trusted = self.host_keys.keys.iter().chain(&self.host_keys.authorities);
        let event = Event::HostKeyRefused {
            target: name.clone(),
            offered: fingerprint(shown),
            trusted: trusted.map(|key| key.fingerprint(HashAlg::Sha256).to_string()).collect(),
        };
        let conn = &relay.conn;
        if let Err(error) =
            conn.bastion.store.record(conn.bastion.clock.now(), &conn.context(), event).await
        {
            tracing::error!(%error, "failed to write an audit event of a host key");
        }
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }

    /// Opens the channel to the user that a target asked for, and joins the two.
    fn join(&self, target: Channel<Msg>, reply: ChannelOpenHandle, wanted: Wanted) {
        let Some(relay) = self.relay.upgrade() else { return };
        if !relay.permit.allows(wanted.right()) {
            return;
        }
        let tasks = relay.conn.tasks.clone();
        tasks.spawn(async move {
            let (Some(user), Some(_slot)) = (relay.user.get(), relay.conn.channel_slot()) else {
                return;
            };
            let to = wanted.to_string();
            if !relay.opened_onward(&to).await {
                return;
            }
            let bytes = match timeout(STEP, wanted.open(user)).await {
                Ok(Ok(channel)) => {
                    reply.accept().await;
                    let flow = relay.flow.open(channel.id());
                    super::bridge::carry(channel, target, flow, &relay.cancel).await
                }
                _ => {
                    reply.reject(russh::ChannelOpenFailure::ConnectFailed).await;
                    (0, 0)
                }
            };
            relay.closed_onward(to, bytes);
        });
    }
}

/// A channel that a target asks the user for.
enum Wanted {
    Agent,
    X11(String, u32),
    Forwarded { address: String, port: u32, originator: String, originator_port: u32 },
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent => f.write_str("the user's agent"),
            Self::X11(..) => f.write_str("the user's X11 display"),
            Self::Forwarded { address, port, originator, originator_port } => {
                let (address, originator) = (noted(address), noted(originator));
                write!(f, "forwarded-tcpip {address}:{port} for {originator}:{originator_port}")
            }
        }
    }
}

impl Wanted {
    fn right(&self) -> Capability {
        match self {
            Self::Agent => Capability::Agent,
            Self::X11(..) => Capability::X11,
            Self::Forwarded { .. } => Capability::RemoteForward,
        }
    }

    async fn open(
        self,
        user: &russh::server::Handle,
    ) -> Result<Channel<russh::server::Msg>, russh::Error> {
        match self {
            Self::Agent => user.channel_open_agent().await,
            Self::X11(originator, port) => user.channel_open_x11(originator, port).await,
            Self::Forwarded { address, port, originator, originator_port } => {
                user.channel_open_forwarded_tcpip(address, port, originator, originator_port).await
            }
        }
    }
}

/// Pins a key that was seen for the first time.
async fn pin(store: &Store, relay: &Relay, key: &PublicKey) -> bool {
    let Ok((line, fingerprint)) = keys::public_key_line(key) else { return false };
    let conn = &relay.conn;
    let now = conn.bastion.clock.now();
    let pinned = store
        .pin_first_key(&relay.target().name, (&line, &fingerprint), &conn.context(), now)
        .await;
    match pinned {
        // Somebody else's first sight came first: this connection trusts what was pinned then.
        Ok(pinned) => pinned,
        Err(error) => {
            tracing::error!(%error, "failed to pin a host key");
            false
        }
    }
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let Some(relay) = self.relay.upgrade() else { return Ok(false) };
        let now = relay.conn.bastion.clock.now();
        let trusted = self.host_keys.trusts(shown, relay.target(), now);
        if trusted || self.first_use(&relay, shown).await {
            return Ok(true);
        }
        self.refuse(&relay, shown).await;
        Ok(false)
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.join(channel, reply, Wanted::Agent);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        channel: Channel<Msg>,
        originator: &str,
        port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.join(channel, reply, Wanted::X11(originator.to_owned(), port));
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        address: &str,
        port: u32,
        originator: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let (address, originator) = (address.to_owned(), originator.to_owned());
        self.join(channel, reply, Wanted::Forwarded { address, port, originator, originator_port });
        Ok(())
    }

    // What no sshd opens. Dropping the reply refuses it.

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _originator: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}
