//! A fresh code before a target is reached, where a grant asks for one.
//!
//! Always holds: [`Relay::connection`] reaches no target before the code is taken; it is asked for once
//! for each relay: by the inner SSH's questions under `-J`, else in the terminal of the first channel. A
//! try that began goes on when its channel ends: nobody guesses without being counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use secrecy::SecretString;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Relay;
use super::session::Carried;
use super::target::{ANSWER, Failed};
use crate::audit::{Event, Refusal};
use crate::auth::prompt;
use crate::console::{STEP_UP_TRIES, StepUp};
use crate::domain::printable;
use crate::server::shell;

/// Whether the code was given.
#[derive(Default)]
pub(super) struct Given {
    given: AtomicBool,
    /// Held while somebody is asked: other channels wait for the answer.
    asking: tokio::sync::Mutex<()>,
}

impl Relay {
    /// Whether a fresh code has to be given before the target is reached.
    pub(super) fn asks_code(&self) -> bool {
        self.permit.step_up() && !self.code.given.load(SeqCst)
    }

    /// The question for it.
    pub(super) fn code_question(&self) -> String {
        prompt::step_up(&self.name())
    }

    /// Whether its user can be asked for one.
    pub(super) async fn may_ask_code(&self) -> Result<(), Failed> {
        self.step_up(false, async |step_up| step_up.may_ask().await).await
    }

    /// Tries what was typed; what is wrong with it, if it is. Fails if no further try can help.
    pub(super) async fn try_code(
        self: &Arc<Self>,
        typed: Zeroizing<String>,
    ) -> Result<Result<(), String>, Failed> {
        let (relay, typed) = (Arc::clone(self), SecretString::from(typed.as_str()));
        // Not ended with the channel that it was typed in.
        let tried = self.conn.tasks.spawn(async move {
            let tried = relay.step_up(false, async |step_up| step_up.try_code(&typed).await).await;
            if let Ok(Ok(())) = tried {
                relay.code.given.store(true, SeqCst);
            }
            tried
        });
        tried.await.unwrap_or_else(|_| Err(CANNOT.to_owned()))
    }

    /// What is said once that was tried too often.
    pub(super) fn too_many_codes(&self) -> Failed {
        format!("too many wrong codes for {}: connect again", self.name())
    }

    /// Writes down that somebody came where they cannot be asked; gives what to do.
    pub(super) fn refuse_unasked(&self) -> Failed {
        self.conn.record_refusal(Event::AccountRefused {
            target: self.target().name.clone(),
            account: self.account().to_string(),
            reason: Refusal::StepUp,
        });
        format!(
            "{} asks for a fresh code, and you cannot be asked here: connect with ssh -J, or open a \
             terminal there first and share its connection (ControlMaster)",
            self.name()
        )
    }

    async fn step_up<T>(
        &self,
        is_first: bool,
        work: impl AsyncFnOnce(&StepUp<'_>) -> anyhow::Result<T>,
    ) -> Result<T, Failed> {
        let conn = &self.conn;
        let Some(who) = conn.who() else { return Err("sign in first".to_owned()) };
        let mut caller = shell::caller(conn, who);
        caller.service.code_at = who.code_at().filter(|_| is_first);
        let (target, account) = (&self.target().name, self.account());
        let step_up = StepUp::new(&caller, &conn.bastion.store, target, account);
        work(&step_up).await.map_err(|error| {
            let text = printable(&crate::logging::whole(&error));
            if shell::is_fault(&error) {
                tracing::error!(error = text, session = %conn.id, "failed to check a code");
                return CANNOT.to_owned();
            }
            text
        })
    }
}

const CANNOT: &str = "the bastion cannot check your code now: try again";

impl Carried<'_> {
    /// Asks for the fresh code that a grant may ask for, in the terminal of this channel. Where there is
    /// none, as with `scp`, the code of the sign-in does, if this is the first channel of a connection
    /// that was signed in on just now: it named the target.
    pub(super) async fn prove(&self) -> Result<(), Failed> {
        let relay = self.relay;
        if !relay.asks_code() {
            return Ok(());
        }
        let _asking = relay.code.asking.lock().await;
        if !relay.asks_code() {
            return Ok(()); // Given in another channel meanwhile.
        }
        if self.setup.terminal.is_none() {
            let taken = relay.step_up(self.is_first, async |step_up| step_up.take_sign_in().await);
            if taken.await? {
                relay.code.given.store(true, SeqCst);
                return Ok(());
            }
            return Err(relay.refuse_unasked());
        }
        relay.may_ask_code().await?;
        let (out, gone) = (&self.user.out, |_| "you left".to_owned());
        for _ in 0..STEP_UP_TRIES {
            out.data_bytes(relay.code_question()).await.map_err(gone)?;
            let typed = timeout(ANSWER, self.read_line(false)).await;
            let typed = typed.map_err(|_| "nobody answered".to_owned())??;
            out.data_bytes("\r\n").await.map_err(gone)?;
            match relay.try_code(typed).await? {
                Ok(()) => return Ok(()),
                Err(said) => out.data_bytes(format!("{said}\r\n")).await.map_err(gone)?,
            }
        }
        Err(relay.too_many_codes())
    }
}
