//! The first administrator's password, where it must not be shown: a log keeps what it is told for ever,
//! and more people read it than may sign in.
//!
//! Always holds: it is shown on a terminal only, but for `init --json`, which is asked for it. It is in a file
//! for the owner only from before there is an account with it: until it was shown, or else until it is good
//! for nothing any more. So nothing that fails in between leaves an account whose password nobody knows.

use std::fs;
use std::io::{ErrorKind, IsTerminal};
use std::path::PathBuf;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};

use super::FIRST_ADMIN;
use crate::config::Config;
use crate::domain::UserName;
use crate::keys;
use crate::server::Bastion;
use crate::store::{Error, Store};

/// Where it is, while it is in a file.
fn path(config: &Config) -> PathBuf {
    config.data_dir.join("first-password")
}

/// Writes it down, on the disk and not only on its way there.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn keep(config: &Config, one_time: &SecretString) -> anyhow::Result<()> {
    Ok(keys::replace_secret(&path(config), one_time.expose_secret().as_bytes())?)
}

/// What to say where the password belongs: itself on a terminal, else the file that it is in.
pub(super) fn told(config: &Config, one_time: &SecretString, output: &impl IsTerminal) -> String {
    if output.is_terminal() {
        return one_time.expose_secret().to_owned();
    }
    format!("in the file {}, until the first login", path(config).display())
}

/// Deletes the file, since whoever asked saw what is in it, or there is no account with it.
///
/// # Errors
/// When it cannot be deleted.
pub fn discard(config: &Config) -> anyhow::Result<()> {
    remove(&path(config))
}

/// Deletes the file once its password is used, changed, or its user removed.
pub async fn forget(config: Config, bastion: &Bastion) {
    let path = path(&config);
    if !path.exists() {
        return;
    }
    let mut revisions = bastion.revisions();
    let mut is_said = false;
    loop {
        match is_in_force(&bastion.store).await {
            Ok(true) if is_said => {}
            Ok(true) => {
                tracing::info!(file = %path.display(), "the first administrator's password is in a file");
                is_said = true;
            }
            Ok(false) => break,
            // It is tried again at the next change.
            Err(error) => {
                tracing::debug!(%error, "failed to see whether the first password is used")
            }
        }
        if revisions.changed().await.is_err() {
            return;
        }
    }
    match remove(&path) {
        Ok(()) => {
            tracing::info!(file = %path.display(), "deleted: the first password is used or void")
        }
        Err(error) => tracing::error!(%error, "delete it: the first password is used or void"),
    }
}

fn remove(path: &std::path::Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether the first administrator still has the password that they were made with.
async fn is_in_force(store: &Store) -> Result<bool, Error> {
    let Ok(name) = FIRST_ADMIN.parse::<UserName>() else { return Ok(false) };
    let user = match store.user(&name).await {
        Ok(detail) => detail.user,
        Err(Error::Conflict(_)) => return Ok(false), // There is none of that name any more.
        Err(error) => return Err(error),
    };
    Ok(user.password_one_time != 0 && user.password_set_at == user.created_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let log = fs::File::create(dir.path().join("log")).unwrap();
        keep(&config, &"hunter2hunter2".into()).unwrap();
        let said = told(&config, &"hunter2hunter2".into(), &log);
        assert!(said.starts_with("in the file ") && !said.contains("hunter2"), "{said}");
        assert_eq!(fs::read_to_string(path(&config)).unwrap(), "hunter2hunter2");
        // Whoever has to may do it twice.
        discard(&config).unwrap();
        discard(&config).unwrap();
        assert!(!path(&config).exists());
    }
}
