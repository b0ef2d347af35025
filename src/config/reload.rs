//! What a reload (SIGHUP) can put in force.
//!
//! Always holds: what is read once, at the start, stays as it was then, whatever the new file says.

use super::Config;
use super::names::{dotted, lookup, names};

/// What comes of a new configuration without a restart.
#[derive(Debug)]
pub struct Reloaded {
    /// The configuration that can be in force: the new one, but for what is read at the start.
    pub config: Config,
    /// The keys that changed, such as `server.max_channels`.
    pub in_force: Vec<String>,
    /// The keys whose new values wait for a restart.
    pub restart: Vec<String>,
}

/// A new configuration that cannot do without a restart.
#[derive(Debug, thiserror::Error)]
#[error("failed to put the configuration in force without a restart: {0}")]
pub struct NeedsRestart(String);

impl Config {
    /// What of `new` can follow this configuration without a restart.
    ///
    /// # Errors
    /// When a new value breaks a rule together with one that only a restart changes.
    pub fn reloaded(&self, new: Self) -> Result<Reloaded, NeedsRestart> {
        let wanted = new.table();
        let config = self.keeping_what_is_read_at_start(new);
        config.check().map_err(|fault| NeedsRestart(fault.message))?;
        let table = config.table();
        let in_force = differences(&self.table(), &table);
        let restart = differences(&table, &wanted);
        Ok(Reloaded { config, in_force, restart })
    }

    /// `new` with the present values of what is read once.
    fn keeping_what_is_read_at_start(&self, mut new: Self) -> Self {
        let old = self.clone();
        (new.data_dir, new.node, new.store, new.keys) =
            (old.data_dir, old.node, old.store, old.keys);
        new.server.listen = old.server.listen;
        new.login.argon2_memory = old.login.argon2_memory;
        new.login.argon2_passes = old.login.argon2_passes;
        new.login.hash_concurrency = old.login.hash_concurrency;
        new.login.hash_queue = old.login.hash_queue;
        new.forward.total_budget = old.forward.total_budget;
        new.record.folder = old.record.folder;
        new.log.format = old.log.format;
        new
    }
}

/// The keys whose values differ.
fn differences(one: &toml::Table, other: &toml::Table) -> Vec<String> {
    let differs =
        |(section, key): &(&str, &str)| lookup(one, section, key) != lookup(other, section, key);
    names(other).into_iter().filter(differs).map(|(section, key)| dotted(section, key)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Size, Span};
    use super::*;

    #[test]
    fn differences_are_told_by_what_they_need() {
        let old = Config::default();
        let same = old.reloaded(old.clone()).unwrap();
        assert_eq!((same.in_force, same.restart), (vec![], vec![]));
        let mut new = old.clone();
        new.node = "b2".into();
        new.server.max_channels = 8;
        new.server.listen.clear();
        new.login.lock_for = Span::seconds(60);
        new.login.argon2_passes = 3;
        new.store.url = "sqlite:x".into();
        let restart = ["login.argon2_passes", "node", "server.listen", "store.url"];
        let reloaded = old.reloaded(new.clone()).unwrap();
        assert_eq!(reloaded.in_force, ["login.lock_for", "server.max_channels"]);
        assert_eq!(reloaded.restart, restart);
        // They wait still when it is read once more.
        let again = reloaded.config.reloaded(new).unwrap();
        assert_eq!((again.in_force, again.restart), (vec![], restart.map(str::to_owned).to_vec()));
    }

    #[test]
    fn what_breaks_a_rule_only_without_a_restart_is_refused() {
        let old = Config::default();
        let mut new = old.clone();
        new.forward.channel_budget = Size::mib(300);
        new.forward.total_budget = Size::mib(512);
        let refused = old.reloaded(new).unwrap_err().to_string();
        assert!(refused.contains("without a restart: forward.total_budget and"), "{refused}");
    }
}
