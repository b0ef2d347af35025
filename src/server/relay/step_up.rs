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
use crate::console::{CodeQuestion, StepUp};
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

    /// What is asked first, or after an answer; `None` once the code is given. Fails if no answer can help.
    pub(super) async fn ask_code(
        self: &Arc<Self>,
        answered: Option<(CodeQuestion, Zeroizing<String>)>,
    ) -> Result<Option<CodeQuestion>, Failed> {
        let relay = Arc::clone(self);
        // Not ended with the channel that it was typed in.
        let asked = self.conn.tasks.spawn(async move {
            let ask = async |step_up: &StepUp<'_>| match answered {
                None => step_up.begin().await,
                Some((question, typed)) => {
                    step_up.answer(question, &SecretString::from(typed.as_str())).await
                }
            };
            let asked = relay.step_up(false, ask).await;
            if let Ok(None) = asked {
                relay.code.given.store(true, SeqCst);
            }
            asked
        });
        asked.await.unwrap_or_else(|_| Err(CANNOT.to_owned()))
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
        let (out, gone) = (&self.user.out, |_| "you left".to_owned());
        let mut next = relay.ask_code(None).await?;
        while let Some(question) = next {
            let lines = question.said().into_iter().chain([question.text()]);
            let text = lines.collect::<Vec<_>>().join("\n").replace('\n', "\r\n");
            out.data_bytes(text).await.map_err(gone)?;
            let typed = timeout(ANSWER, self.read_line(false)).await;
            let typed = typed.map_err(|_| "nobody answered".to_owned())??;
            out.data_bytes("\r\n").await.map_err(gone)?;
            next = relay.ask_code(Some((question, typed))).await?;
        }
        Ok(())
    }
}
