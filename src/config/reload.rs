//! What a reload (SIGHUP) can put in force.

use super::Config;
use super::names::{dotted, lookup, names};

/// What is read once, at the start: whole sections, and single keys of the others.
const ONLY_AT_START: [&str; 12] = [
    "data_dir",
    "node",
    "server.listen",
    "store",
    "keys",
    "login.argon2_memory",
    "login.argon2_passes",
    "login.hash_concurrency",
    "login.hash_queue",
    "forward.total_budget",
    "record.folder",
    "log",
];

impl Config {
    /// The keys whose values differ, such as `server.max_channels`: first those that a reload puts
    /// in force for new connections, then those that need a restart.
    pub fn reloadable_differences(old: &Self, new: &Self) -> (Vec<String>, Vec<String>) {
        let (old, new) = (old.table(), new.table());
        let values = names(&new).into_iter();
        let changed = values
            .filter(|(section, key)| lookup(&old, section, key) != lookup(&new, section, key));
        changed.map(|(section, key)| dotted(section, key)).partition(|key| !read_at_start(key))
    }
}

fn read_at_start(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or(key);
    ONLY_AT_START.contains(&key) || ONLY_AT_START.contains(&section)
}

#[cfg(test)]
mod tests {
    use super::super::Span;
    use super::*;

    #[test]
    fn differences_are_told_by_what_they_need() {
        let old = Config::default();
        assert_eq!(Config::reloadable_differences(&old, &old), (vec![], vec![]));
        let mut new = old.clone();
        new.node = "b2".into();
        new.server.max_channels = 8;
        new.server.listen.clear();
        new.login.lock_for = Span::seconds(60);
        new.login.argon2_passes = 3;
        new.store.url = "sqlite:x".into();
        let (applied, restart) = Config::reloadable_differences(&old, &new);
        assert_eq!(applied, ["login.lock_for", "server.max_channels"]);
        assert_eq!(restart, ["login.argon2_passes", "node", "server.listen", "store.url"]);
    }

    #[test]
    fn every_name_in_the_list_is_a_key_or_a_section() {
        let table = Config::default().table();
        for name in ONLY_AT_START {
            let (section, key) = name.split_once('.').unwrap_or(("", name));
            assert!(lookup(&table, section, key).is_some(), "{name}");
        }
    }
}
