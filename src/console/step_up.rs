//! The fresh code that a grant may ask for before a target is reached (`grant add --step-up`).
//!
//! Always holds: a code is taken by the same compare-and-set as in a login, and once; no recovery code
//! is taken; wrong ones count towards the same lock; each outcome is audited with target and account.

use secrecy::SecretString;

use super::Caller;
use super::own::{Own, Proof, Purpose};
use crate::domain::{AccountName, TargetName};
use crate::store::Store;

/// Wrong codes after which somebody has to connect again.
pub const STEP_UP_TRIES: u32 = super::own::TRIES;

/// Somebody who has to give a fresh code to be an account of a target.
pub struct StepUp<'a>(Own<'a>);

impl std::fmt::Debug for StepUp<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepUp").finish_non_exhaustive()
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

    /// Whether they can be asked at all.
    ///
    /// # Errors
    /// What keeps them from it (a lock, codes that RADIUS checks), or what the store says.
    pub async fn may_ask(&self) -> anyhow::Result<()> {
        self.0.bound().await.map(drop)
    }

    /// Tries what was typed; what is wrong with it, if it is.
    ///
    /// # Errors
    /// Why no further try can help, or what the store says.
    pub async fn try_code(&self, typed: &SecretString) -> anyhow::Result<Result<(), String>> {
        self.0.may_try().await?;
        match self.0.try_code(typed, Proof::Code).await? {
            Ok(()) => Ok(Ok(())),
            Err(wrong) => {
                let said = wrong.said();
                self.0.failed(wrong).await?;
                self.0.bound().await?; // Unless that was the one that locks.
                Ok(Err(said))
            }
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
