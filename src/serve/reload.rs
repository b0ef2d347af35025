//! SIGHUP: what of a new configuration can be put in force without a restart.
//!
//! Always holds: a reload that fails changes nothing; what the log says takes a restart stays as it
//! was at the start, the host key included.

use std::sync::Arc;

use super::{limits, settings, systemd};
use crate::config::{Config, Loaded, Reloaded};
use crate::logging;
use crate::server::guard::Limits;
use crate::server::{Bastion, Front, Settings};

/// On SIGHUP reads the configuration anew.
pub(super) async fn watch(
    bastion: Arc<Bastion>,
    mut config: Config,
    log: logging::Filter,
    mut hangup: tokio::signal::unix::Signal,
    load_again: impl Fn() -> anyhow::Result<Loaded> + Send + 'static,
) {
    while hangup.recv().await.is_some() {
        systemd::reloading();
        let loaded = load_again();
        match loaded.and_then(|loaded| reload(&bastion, Some(&log), &config, loaded.config)) {
            Ok(new) => config = new,
            Err(error) => {
                let error = logging::whole(&error);
                tracing::error!(error, "failed to reload: the old configuration stays in force");
            }
        }
        systemd::ready();
    }
}

/// Puts a configuration in force for new connections, with the files that it names as they are now;
/// gives what is in force then. Without `log`, its level stays.
///
/// # Errors
/// When a file cannot be used, or a value is out of range; nothing changed then.
pub fn reload(
    bastion: &Bastion,
    log: Option<&logging::Filter>,
    old: &Config,
    new: Config,
) -> anyhow::Result<Config> {
    let next = Next::of(old, new, &bastion.front())?;
    let Reloaded { config, in_force, restart } = next.reloaded;
    // The last that can fail.
    if let Some(log) = log {
        log.set(&config.log.level)?;
    }
    bastion.guard.set_limits(next.limits);
    bastion.reload(next.settings, next.front);
    for key in restart {
        tracing::warn!(key, "changed in the configuration: takes a restart");
    }
    for key in in_force {
        tracing::info!(key, "changed in the configuration");
    }
    tracing::info!("the configuration is in force for new connections");
    Ok(config)
}

/// What a reload puts in force.
struct Next {
    reloaded: Reloaded,
    settings: Settings,
    front: Front,
    limits: Limits,
}

impl Next {
    /// What of `new` can follow `old`, on a bastion that clients know as `known`.
    fn of(old: &Config, new: Config, known: &Front) -> anyhow::Result<Self> {
        let reloaded = old.reloaded(new)?;
        let settings = settings(&reloaded.config)?;
        let front = Front::new(known.host_key.clone(), &settings);
        let limits = limits(&reloaded.config);
        Ok(Self { reloaded, settings, front, limits })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A new value for every key, and whether a reload puts it in force.
    const CHANGES: &[(&str, &str, bool)] = &[
        ("data_dir", "\"/elsewhere\"", false),
        ("node", "\"b2\"", false),
        ("server.listen", "[\"127.0.0.1:1\"]", false),
        ("server.public_host", "\"gate.example.org\"", true),
        ("server.public_port", "443", true),
        ("server.banner", "\"Hello\"", true),
        ("server.older_clients", "true", true),
        ("server.max_connections", "7", true),
        ("server.max_unauthenticated", "6", true),
        ("server.max_unauthenticated_per_source", "5", true),
        ("server.max_channels", "4", true),
        ("server.max_sessions_per_account", "9", true),
        ("server.login_grace", "\"11s\"", true),
        ("server.binding_grace", "\"12m\"", true),
        ("server.keepalive", "\"13s\"", true),
        ("server.drain", "\"14s\"", true),
        ("server.proxy_from", "[\"10.0.0.0/8\"]", true),
        ("server.penalty_exempt", "[\"10.0.0.0/8\"]", true),
        ("store.url", "\"sqlite:/elsewhere.db\"", false),
        ("store.password_file", "\"/elsewhere\"", false),
        ("store.tls_ca_file", "\"/elsewhere\"", false),
        ("store.connections", "3", false),
        ("keys.host_key", "\"/elsewhere\"", false),
        ("keys.host_ca", "\"/elsewhere\"", false),
        ("keys.user_ca", "\"/elsewhere\"", false),
        ("keys.login_ca", "\"/elsewhere\"", false),
        ("keys.audit_key", "\"/elsewhere\"", false),
        ("keys.sealing_key", "\"/elsewhere\"", false),
        ("login.issuer", "\"Acme\"", true),
        ("login.methods", "[\"keyboard-interactive\"]", true),
        ("login.user_ca_files", "[]", true),
        ("login.certificate_life", "\"8h\"", true),
        ("login.certificate_bound_to_source", "false", true),
        ("login.password_min_length", "20", true),
        ("login.password_min_score", "2", true),
        ("login.argon2_memory", "\"20 MiB\"", false),
        ("login.argon2_passes", "3", false),
        ("login.hash_concurrency", "5", false),
        ("login.hash_queue", "6", false),
        ("login.binding_window", "\"3h\"", true),
        ("login.lock_after", "3", true),
        ("login.site_lock_after", "50", true),
        ("login.attack_after", "50", true),
        ("login.code_failures_max", "20", true),
        ("login.lock_for", "\"3m\"", true),
        ("login.backoff_first", "\"2s\"", true),
        ("login.backoff_max", "\"20s\"", true),
        ("login.attempts_per_minute", "9", true),
        ("login.attempts_burst", "8", true),
        ("login.max_answers", "5", true),
        ("radius.mode", "\"challenge\"", true),
        ("radius.both_in_one", "true", true),
        ("radius.challenge_request", "\"ask\"", true),
        ("radius.code_life", "\"30s\"", true),
        ("radius.refusal_wait", "\"5s\"", true),
        ("radius.nas_identifier", "\"nas\"", true),
        ("radius.dead_time", "\"5s\"", true),
        ("radius.server", "[]", true),
        ("forward.dial_timeout", "\"3s\"", true),
        ("forward.window", "\"2 MiB\"", true),
        ("forward.channel_budget", "\"2 MiB\"", true),
        ("forward.connection_budget", "\"64 MiB\"", true),
        ("forward.total_budget", "\"300 MiB\"", false),
        ("forward.stall_timeout", "\"3h\"", true),
        ("record.folder", "\"/elsewhere\"", false),
        ("record.notice", "\"Smile\"", true),
        ("record.input", "true", true),
        ("record.strict", "false", true),
        ("record.min_free", "\"7 MiB\"", true),
        ("record.max_bytes", "\"7 MiB\"", true),
        ("record.max_bytes_per_account", "\"7 MiB\"", true),
        ("record.keep_for", "\"7d\"", true),
        ("record.keep_bytes", "\"7 MiB\"", true),
        ("record.trust_first_use", "true", true),
        ("log.format", "\"json\"", false),
        ("log.level", "\"debug\"", true),
    ];

    fn load(dir: &Path, text: &str) -> Config {
        let path = dir.join("sallyport.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), std::iter::empty()).unwrap().config
    }

    /// The base with one key set to `value`.
    fn changed(base: &toml::Table, key: &str, value: &str) -> String {
        let value: toml::Table = format!("value = {value}").parse().unwrap();
        let mut text = base.clone();
        let place = match key.split_once('.') {
            Some((section, key)) => {
                let empty = || toml::Value::Table(toml::Table::new());
                let section = text.entry(section).or_insert_with(empty);
                section.as_table_mut().unwrap().insert(key.to_owned(), value["value"].clone())
            }
            None => text.insert(key.to_owned(), value["value"].clone()),
        };
        drop(place);
        text.to_string()
    }

    /// Everything that a reload puts in force, but for the log's level.
    fn in_force(next: &Next) -> String {
        format!("{:?} {:?} {:?}", next.settings, next.front, next.limits)
    }

    #[test]
    fn every_key_is_in_force_or_named_as_needing_a_restart_and_then_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        crate::keys::replace_secret(&secret, b"a RADIUS secret of some length").unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let ca = crate::keys::load_or_create(&data.join("login_ca"), "x").unwrap();
        let listed = dir.path().join("ca.pub");
        std::fs::write(&listed, ca.public_key().to_openssh().unwrap()).unwrap();
        let base = format!(
            "data_dir = {data:?}\n[login]\ncertificate_life = \"4h\"\n\
             user_ca_files = [{listed:?}]\n[radius]\nserver = [{{ name = \"n\", address = \"127.0.0.1:1\", \
             secret_file = {secret:?} }}]",
        );
        let base: toml::Table = base.parse().unwrap();
        let old = load(dir.path(), &base.to_string());
        let host_key = crate::keys::load_or_create(&dir.path().join("host_key"), "x").unwrap();
        let known = Front::new(host_key, &settings(&old).unwrap());
        let next = |new| Next::of(&old, new, &known).unwrap();
        let before = in_force(&next(old.clone()));
        for (key, value, reloads) in CHANGES {
            let next = next(load(dir.path(), &changed(&base, key, value)));
            let Reloaded { config, in_force: done, restart } = &next.reloaded;
            let named = if *reloads { (done, restart) } else { (restart, done) };
            assert_eq!(
                (named.0.as_slice(), named.1.as_slice()),
                (&[(*key).to_owned()][..], &[][..])
            );
            assert_eq!(*config == old, !reloads, "{key}");
            // The log's own test shows that its level changes.
            let shows = *reloads && *key != "log.level";
            assert_eq!(in_force(&next) != before, shows, "{key}");
        }
    }

    #[test]
    fn the_table_above_has_every_key() {
        let shown = toml::Table::try_from(Config::default()).unwrap();
        let of = |(name, value): (&String, &toml::Value)| match value.as_table() {
            Some(keys) => keys.keys().map(|key| format!("{name}.{key}")).collect(),
            None => vec![name.clone()],
        };
        let mut all: Vec<String> = shown.iter().flat_map(of).collect();
        let mut changes: Vec<&str> = CHANGES.iter().map(|(key, _, _)| *key).collect();
        all.sort();
        changes.sort_unstable();
        assert_eq!(all, changes);
    }
}
