//! Signing in on a target as one of its accounts: a certificate, a stored secret, the user's agent,
//! or the target's own questions.
//!
//! Always holds: it is written down before the connection is used; each step has a deadline; what
//! the target says to the user has no control character left but line breaks.

use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::ssh_key::HashAlg;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg};
use russh::{MethodKind, MethodSet};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Relay;
use super::callbacks::Handler;
use super::target::{ANSWER, Failed, STEP, TargetConnection};
use crate::audit::Event;
use crate::domain::{AccountAuth, printable};
use crate::keys;
use crate::store::AccountSecret;

/// Rounds of questions that a target may ask.
const MAX_ROUNDS: usize = 16;
/// How long a certificate for a target is good.
const CERTIFICATE: Duration = Duration::from_secs(5 * 60);

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

/// Tries what needs no user; gives the questions if only they are left.
pub(super) async fn sign_in(
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
    let said = format!("{} did not let the bastion in ({})", relay.name(), tried.join(", "));
    Err(said + &advice(relay, &left))
}

/// What a target that let nobody in offers, and what can be done.
fn advice(relay: &Relay, offered: &MethodSet) -> String {
    let offered: Vec<&str> = offered.iter().map(Into::into).collect();
    let offered = match &offered[..] {
        [] => "nothing else".to_owned(),
        some => printable(&some.join(", ")),
    };
    let (target, account) = (&relay.target().name, relay.account());
    format!(
        "; {target} offers {offered}. Your administrator can say how to sign in there: 'sallyport \
         target account add {target} {account} --auth ca' (if it trusts the user CA), key or agent"
    )
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
            "{} takes a key of your agent: forward it with 'ssh -A' or 'ForwardAgent yes', \
             and with 'scp -A' or 'sftp -A', which else turn it off",
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
    let name = relay.name();
    let said = format!("{name} takes none of the ways to sign in that were tried (ca, ask)");
    Err(said + &advice(relay, methods))
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
                AuthResult::Failure { remaining_methods, .. } => {
                    Err(not_accepted(relay, &remaining_methods))
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
            KeyboardInteractiveAuthResponse::Failure { remaining_methods, .. } => {
                Err(not_accepted(relay, &remaining_methods))
            }
        }
    }
}

/// Many an sshd asks for a password that it takes of nobody.
fn not_accepted(relay: &Relay, offered: &MethodSet) -> Failed {
    format!("{} did not accept that answer", relay.name()) + &advice(relay, offered)
}

/// What a target says, made fit for the user's terminal; line breaks stay.
fn shown(text: &str) -> String {
    let text: String = text.chars().take(4096).collect();
    let lines = text.lines().map(|line| printable(line.trim_end_matches('\r')));
    lines.collect::<Vec<_>>().join("\n").trim_start_matches('\n').to_owned()
}
