//! How the user of the outer connection is let in on the inner one: as the account that they ask for,
//! without a question of the bastion's but for a fresh code, where a grant asks for one.
//!
//! Always holds: nobody is in before policy and target agree; once somebody is refused, on this
//! connection nobody is let in any more; the reason is told, and told once.

use std::borrow::Cow;
use std::sync::Arc;

use russh::server::Auth;
use russh::{MethodKind, MethodSet};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Relay;
use super::door::Handler;
use super::target_auth::{Asking, Questions, Stage};
use crate::console::CodeQuestion;
use crate::policy::Refused;
use crate::server::direct::NotOpened;

/// Where letting somebody in has come to.
pub(super) enum State {
    New,
    /// The bastion asks for a fresh code.
    Proving(Arc<Relay>, Box<CodeQuestion>),
    /// The target asks.
    Asking(Arc<Relay>, Box<Asking>),
    /// Nobody is let in; the reason is told once.
    Refused(String),
    In,
}

/// Nothing but questions is left.
pub(super) fn questions_only() -> Auth {
    Auth::Reject {
        proceed_with_methods: Some(MethodSet::from(&[MethodKind::KeyboardInteractive][..])),
        partial_success: false,
    }
}

/// No client has what is left. Of an empty list OpenSSH thinks that it may try everything, and
/// would show the reason again and again.
pub(super) fn nothing_left() -> Auth {
    let left = MethodSet::from(&[MethodKind::HostBased][..]);
    Auth::Reject { proceed_with_methods: Some(left), partial_success: false }
}

fn ask(questions: &Questions) -> Auth {
    let prompts = questions.prompts.iter().map(|(text, echo)| (Cow::Owned(text.clone()), *echo));
    Auth::Partial {
        name: Cow::Borrowed(""),
        instructions: Cow::Owned(questions.instruction.clone()),
        prompts: Cow::Owned(prompts.collect()),
    }
}

/// The question for a fresh code, after what is wrong with the last.
fn ask_code(question: &CodeQuestion) -> Auth {
    let instruction = question.said().unwrap_or_default().to_owned();
    ask(&Questions { instruction, prompts: vec![(question.text().to_owned(), false)] })
}

impl Handler {
    /// Lets the user of the outer connection in as `account`, if policy and target agree.
    pub(super) async fn enter(&mut self, account: &str) -> Auth {
        if !matches!(self.state, State::New) {
            return self.answer_again();
        }
        let door = &self.door;
        let relay = Relay::authorize(
            &door.conn,
            &door.target,
            account,
            door.addresses.clone(),
            (Arc::clone(&door.user), Arc::clone(&door.flow)),
            door.cancel.clone(),
        );
        let relay = match relay.await {
            Ok(relay) => relay,
            Err(NotOpened::Refused(Refused { message, .. }) | NotOpened::Failed(message)) => {
                return self.refuse(message);
            }
        };
        if relay.asks_code() {
            let asked = relay.ask_code(None).await;
            return self.prove(relay, asked).await;
        }
        self.reach(relay).await
    }

    /// Reaches the target, unless that has to wait for the agent that a channel will forward.
    async fn reach(&mut self, relay: Arc<Relay>) -> Auth {
        let stage = match relay.needs_agent().await {
            Ok(true) => return self.let_in(relay),
            Ok(false) => relay.connection().await,
            Err(message) => Err(message),
        };
        self.take(relay, stage, false).await
    }

    /// Waits for the answer to a question for a fresh code; goes on to the target once the code is given.
    async fn prove(
        &mut self,
        relay: Arc<Relay>,
        asked: Result<Option<CodeQuestion>, String>,
    ) -> Auth {
        match asked {
            Ok(Some(question)) => {
                self.door.control.extend(super::target::ANSWER);
                self.state = State::Proving(relay, Box::new(question));
                questions_only()
            }
            // The user took their time.
            Ok(None) => match relay.look_again().await {
                Ok(_) => self.reach(relay).await,
                Err(NotOpened::Refused(Refused { message, .. }) | NotOpened::Failed(message)) => {
                    self.refuse(message)
                }
            },
            Err(message) => self.refuse(message),
        }
    }

    /// What a client that tries another method hears.
    fn answer_again(&self) -> Auth {
        match &self.state {
            State::In => Auth::Accept,
            State::Proving(..) | State::Asking(..) | State::Refused(_) => questions_only(),
            State::New => nothing_left(),
        }
    }

    /// Takes in where signing in on the target has come to; `asked` whether the target has asked.
    async fn take(&mut self, relay: Arc<Relay>, stage: Result<Stage, String>, asked: bool) -> Auth {
        match stage {
            Ok(Stage::In(connection)) => {
                relay.keep(connection, asked).await;
                self.let_in(relay)
            }
            Ok(Stage::Asking(asking)) => {
                self.door.control.extend(super::target::ANSWER);
                self.state = State::Asking(relay, asking);
                questions_only()
            }
            Err(message) => self.refuse(message),
        }
    }

    fn let_in(&mut self, relay: Arc<Relay>) -> Auth {
        self.state = State::In;
        if self.door.relay.set(relay).is_err() {
            return nothing_left(); // Cannot be: only a new one comes here.
        }
        self.door.entered.notify_one();
        self.door.control.disarm();
        Auth::Accept
    }

    fn refuse(&mut self, message: String) -> Auth {
        self.state = State::Refused(message);
        questions_only()
    }

    /// Does `work` for a callback, unless the channel ends meanwhile: a dial must not go on alone.
    pub(super) async fn unless_cut(
        cancel: CancellationToken,
        work: impl Future<Output = Auth>,
    ) -> Auth {
        tokio::select! {
            auth = work => auth,
            () = cancel.cancelled() => nothing_left(),
        }
    }

    /// A round of keyboard-interactive (RFC 4256): the target's questions, or why not.
    pub(super) async fn interact(
        &mut self,
        account: &str,
        answers: Option<Vec<Zeroizing<String>>>,
    ) -> Auth {
        if matches!(self.state, State::New) {
            let first = self.enter(account).await;
            if matches!(first, Auth::Accept) {
                return first;
            }
        }
        match (std::mem::replace(&mut self.state, State::New), answers) {
            (State::Asking(relay, asking), Some(answers)) => {
                let stage = asking.answer(&relay, answers).await;
                let auth = self.take(relay, stage, true).await;
                self.in_round(auth)
            }
            (State::Proving(relay, question), Some(answers)) => {
                let typed = answers.into_iter().next().unwrap_or_default();
                let asked = relay.ask_code(Some((*question, typed))).await;
                let auth = self.prove(relay, asked).await;
                self.in_round(auth)
            }
            (State::Proving(relay, question), None) => {
                self.door.control.extend(super::target::ANSWER);
                let auth = ask_code(&question);
                self.state = State::Proving(relay, question);
                auth
            }
            (State::Asking(relay, asking), None) => {
                let questions = asking.questions().clone();
                self.state = State::Asking(relay, asking);
                ask(&questions)
            }
            (State::Refused(message), None) => {
                self.state = State::Refused(message);
                self.tell()
            }
            (State::Refused(message), Some(_)) => {
                self.state = State::Refused(message);
                nothing_left()
            }
            (state, _) => {
                self.state = state;
                self.answer_again()
            }
        }
    }

    /// The answer in a round of keyboard-interactive: what else would be told in the next.
    fn in_round(&self, auth: Auth) -> Auth {
        match (auth, &self.state) {
            (Auth::Reject { .. }, State::Asking(_, asking)) => ask(asking.questions()),
            (Auth::Reject { .. }, State::Proving(_, question)) => ask_code(question),
            (Auth::Reject { .. }, _) => self.tell(),
            (other, _) => other,
        }
    }

    /// The reason, as a message without a question.
    fn tell(&self) -> Auth {
        let State::Refused(message) = &self.state else { return nothing_left() };
        let instruction = format!("sallyport: {message}");
        ask(&Questions { instruction, prompts: Vec::new() })
    }
}
