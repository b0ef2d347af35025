//! The fresh code that a grant may ask for before a target is reached (`grant add --step-up`).
//!
//! Always holds: a code is taken as in a login, and once, by whoever checks the user's codes: the bastion,
//! or RADIUS servers, without whose answer nothing is reached; no recovery code is taken; wrong ones count
//! towards the same lock; each outcome is audited with target and account.

use anyhow::bail;
use secrecy::SecretString;

use super::Caller;
use super::own::Own;
use super::proof::{Proof, Purpose, Question, TRIES, Tried};
use crate::domain::{AccountName, TargetName};
use crate::store::Store;

/// Somebody who has to give a fresh code to be an account of a target.
pub struct StepUp<'a>(Own<'a>);

impl std::fmt::Debug for StepUp<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepUp").finish_non_exhaustive()
    }
}

/// What they are asked next.
pub struct CodeQuestion {
    question: Question,
    /// What is wrong with the last answer.
    said: Option<String>,
    /// How many wrong answers end it.
    left: u32,
}

impl std::fmt::Debug for CodeQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodeQuestion").field("left", &self.left).finish_non_exhaustive()
    }
}

impl CodeQuestion {
    /// The question; what is typed must not be shown.
    pub fn text(&self) -> &str {
        &self.question.text
    }

    /// What is to be said before it of the last answer.
    pub fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }
}

impl<'a> StepUp<'a> {
    /// `caller` wants to be `account` on `target`.
    pub fn new(
        caller: &'a Caller<'a>,
        store: &'a Store,
        target: &TargetName,
        account: &AccountName,
    ) -> Self {
        let purpose = Purpose::Target(target.clone(), account.clone());
        Self(Own::new(caller, store, caller.context.clone(), purpose))
    }

    /// The first question; `None` if it is proven without one.
    ///
    /// # Errors
    /// Why they cannot be asked (a lock, RADIUS servers that do not answer), or what the store says.
    pub async fn begin(&self) -> anyhow::Result<Option<CodeQuestion>> {
        let tried = self.0.begin(Proof::Code).await?;
        self.follow(tried, TRIES).await
    }

    /// Takes what was typed; gives the next question, or `None` if it is proven.
    ///
    /// # Errors
    /// Why no further try can help, or what the store says.
    pub async fn answer(
        &self,
        asked: CodeQuestion,
        typed: &SecretString,
    ) -> anyhow::Result<Option<CodeQuestion>> {
        let tried = self.0.answer(asked.question, typed).await?;
        self.follow(tried, asked.left).await
    }

    async fn follow(
        &self,
        mut tried: Tried,
        mut left: u32,
    ) -> anyhow::Result<Option<CodeQuestion>> {
        let mut said = None;
        loop {
            match tried {
                Tried::Right => return Ok(None),
                Tried::Asks(question) => return Ok(Some(CodeQuestion { question, said, left })),
                Tried::Wrong(why) => said = Some(why),
            }
            left = left.saturating_sub(1);
            if left == 0 {
                bail!("too many wrong codes for {}: connect again", self.0.purpose);
            }
            tried = self.0.begin(Proof::Code).await?;
        }
    }

    /// Takes the code of the sign-in for a fresh one, if it is; see [`Own::is_fresh`].
    ///
    /// # Errors
    /// What the store says.
    pub async fn take_sign_in(&self) -> anyhow::Result<bool> {
        if !self.0.is_fresh() {
            return Ok(false);
        }
        let Some(passed) = self.0.purpose.passed() else { return Ok(false) };
        self.0.store.record(self.0.now(), &self.0.context, passed).await?;
        Ok(true)
    }
}
