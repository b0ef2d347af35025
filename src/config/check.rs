//! What a configuration must keep to beyond the types of its values.

use std::ops::RangeInclusive;

use super::{Config, Method};
use crate::domain::{Host, printable};

/// A rule that is broken, and the keys whose values break it together.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) keys: Vec<&'static str>,
    pub(super) message: String,
}

fn fault(keys: &[&'static str], rule: impl Into<String>) -> Fault {
    Fault { keys: keys.to_vec(), message: format!("{} {}", keys.join(" and "), rule.into()) }
}

type Checked = Result<(), Fault>;

/// Passes if `holds`; else `key` breaks `rule`, which completes "KEY must ...".
fn must(holds: bool, key: &'static str, rule: &str) -> Checked {
    if holds { Ok(()) } else { Err(fault(&[key], format!("must {rule}"))) }
}

impl Config {
    /// Checks every rule.
    pub(super) fn check(&self) -> Checked {
        must(!self.data_dir.as_os_str().is_empty(), "data_dir", "name a folder")?;
        must(is_label(&self.node), "node", "be at most 64 printable characters")?;
        self.check_numbers()?;
        self.check_sizes()?;
        self.check_times()?;
        self.check_server()?;
        self.check_store()?;
        self.check_login()?;
        self.check_radius()?;
        self.check_log()
    }

    fn check_numbers(&self) -> Checked {
        const COUNT: RangeInclusive<usize> = 1..=10_000_000;
        let (server, login) = (&self.server, &self.login);
        let numbers = [
            ("server.max_connections", server.max_connections, COUNT),
            ("server.max_unauthenticated", server.max_unauthenticated, COUNT),
            ("server.max_unauthenticated_per_source", server.max_unauthenticated_per_source, COUNT),
            ("server.max_channels", server.max_channels, 1..=65_536),
            ("store.connections", self.store.connections, 1..=1000),
            // NIST 800-63B section 5.1.1.2 asks for 8 at least.
            ("login.password_min_length", login.password_min_length, 8..=128),
            ("login.password_min_score", login.password_min_score.into(), 0..=4),
            ("login.argon2_passes", login.argon2_passes as usize, 1..=100),
            ("login.hash_concurrency", login.hash_concurrency, 0..=1024),
            ("login.hash_queue", login.hash_queue, COUNT),
            // NIST 800-63B section 5.2.2 allows 100 failures in a row at most.
            ("login.lock_after", login.lock_after as usize, 1..=100),
            ("login.site_lock_after", login.site_lock_after as usize, COUNT),
            ("login.attack_after", login.attack_after as usize, COUNT),
            // The same limit, over all sources together.
            ("login.code_failures_max", login.code_failures_max as usize, 1..=100),
            ("login.attempts_per_minute", login.attempts_per_minute as usize, COUNT),
            ("login.attempts_burst", login.attempts_burst as usize, COUNT),
            // A first login gives a password, a new one, its repetition and a code.
            ("login.max_answers", login.max_answers as usize, 4..=100),
        ];
        let wrong = numbers.into_iter().find(|(_, value, range)| !range.contains(value));
        wrong.map_or(Ok(()), |(key, _, range)| {
            Err(fault(&[key], format!("must be from {} to {}", range.start(), range.end())))
        })
    }

    fn check_sizes(&self) -> Checked {
        let forward = &self.forward;
        let within = |size: super::Size, range: RangeInclusive<u64>| range.contains(&size.bytes());
        let memory = within(self.login.argon2_memory, 8 << 10..=4 << 30);
        must(memory, "login.argon2_memory", "be from 8 KiB to 4 GiB")?;
        must(within(forward.window, 64 << 10..=16 << 20), "forward.window", "be 64 KiB to 16 MiB")?;
        let channel = within(forward.channel_budget, 64 << 10..=1 << 30);
        must(channel, "forward.channel_budget", "be from 64 KiB to 1 GiB")?;
        let connection = within(forward.connection_budget, 1 << 20..=4 << 30);
        must(connection, "forward.connection_budget", "be from 1 MiB to 4 GiB")?;
        if forward.total_budget < forward.channel_budget {
            let keys = ["forward.total_budget", "forward.channel_budget"];
            return Err(fault(&keys, "contradict each other: the total is the smaller one"));
        }
        Ok(())
    }

    fn check_times(&self) -> Checked {
        let (server, login, forward) = (&self.server, &self.login, &self.forward);
        let needed = [
            ("server.login_grace", server.login_grace),
            ("server.binding_grace", server.binding_grace),
            ("login.binding_window", login.binding_window),
            ("login.lock_for", login.lock_for),
            ("login.backoff_first", login.backoff_first),
            ("forward.dial_timeout", forward.dial_timeout),
            ("forward.stall_timeout", forward.stall_timeout),
        ];
        for (key, time) in needed {
            must(time.limit().is_some(), key, "be longer than 0s")?;
        }
        let whole = server.keepalive.limit().is_none_or(|time| time.as_secs() >= 1);
        must(whole, "server.keepalive", "be 1s or longer, or 0s for none")?;
        if server.binding_grace < server.login_grace {
            let keys = ["server.binding_grace", "server.login_grace"];
            return Err(fault(&keys, "contradict each other: binding takes longer than a login"));
        }
        if login.site_lock_after < login.lock_after {
            let keys = ["login.site_lock_after", "login.lock_after"];
            return Err(fault(&keys, "contradict each other: a site has more than one network"));
        }
        if login.backoff_max < login.backoff_first {
            let keys = ["login.backoff_max", "login.backoff_first"];
            return Err(fault(&keys, "contradict each other: the longest wait is the shorter one"));
        }
        Ok(())
    }

    fn check_server(&self) -> Checked {
        let server = &self.server;
        must(!server.listen.is_empty(), "server.listen", "name an address")?;
        let host = server.public_host.is_empty() || server.public_host.parse::<Host>().is_ok();
        must(host, "server.public_host", "be a DNS name or an IP address")?;
        // The banner goes to terminals: its lines may break, and that is all they may do.
        let banner = server.banner.split('\n').all(|line| printable(line) == line);
        must(banner, "server.banner", "hold no control characters but line breaks")
    }

    fn check_store(&self) -> Checked {
        let url = self.store.url.as_str();
        let key = "store.url";
        if url.is_empty() {
            return Ok(());
        }
        if let Some(path) = url.strip_prefix("sqlite:") {
            return must(!path.is_empty(), key, "name a file after \"sqlite:\"");
        }
        let address = ["postgres://", "postgresql://"].iter().find_map(|s| url.strip_prefix(s));
        let address = address
            .ok_or_else(|| fault(&[key], "must begin with \"sqlite:\" or \"postgres://\""))?;
        // The URL stands in a file that many may read, and in error texts.
        must(
            !has_password(address),
            key,
            "hold no password: write it to a file and name that in store.password_file",
        )
    }

    fn check_login(&self) -> Checked {
        let login = &self.login;
        let issuer = !login.issuer.is_empty() && is_label(&login.issuer);
        // An otpauth URI parts the issuer from the account by a colon.
        let issuer = issuer && !login.issuer.contains(':');
        must(issuer, "login.issuer", "be 1 to 64 printable characters without a colon")?;
        must(
            login.methods.contains(&Method::KeyboardInteractive),
            "login.methods",
            "have keyboard-interactive: codes are asked for by it",
        )
    }

    fn check_radius(&self) -> Checked {
        let radius = &self.radius;
        let seconds = |span: super::Span| span.0.as_secs();
        let life = (30..=3600).contains(&seconds(radius.code_life));
        must(life, "radius.code_life", "be from 30s to 1h")?;
        must(seconds(radius.refusal_wait) <= 10, "radius.refusal_wait", "be at most 10s")?;
        must(seconds(radius.dead_time) <= 86_400, "radius.dead_time", "be at most 1d")?;
        let name = is_label(&radius.nas_identifier);
        must(name, "radius.nas_identifier", "be at most 64 printable characters")?;
        let request = is_label(&radius.challenge_request);
        must(request, "radius.challenge_request", "be at most 64 printable characters")?;
        match radius.fault(self.server.login_grace) {
            Some(rule) => Err(fault(&["radius.server"], rule)),
            None => Ok(()),
        }
    }

    fn check_log(&self) -> Checked {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        // The filter takes any word for a module: "inof" would turn everything else off.
        let plain = |part: &str| part.contains('=') || LEVELS.contains(&part.trim());
        let filter = tracing_subscriber::EnvFilter::builder().parse(&self.log.level);
        must(
            self.log.level.split(',').all(plain) && filter.is_ok(),
            "log.level",
            "be off, error, warn, info, debug or trace, or have directives such as \
             \"info,sallyport::server=debug\"",
        )
    }
}

fn is_label(text: &str) -> bool {
    text.chars().count() <= 64 && printable(text) == text
}

/// Whether what follows the scheme of a PostgreSQL URL gives a password, before the host or among
/// the parameters.
fn has_password(address: &str) -> bool {
    // As tokio-postgres splits it: whatever stands before the first @ is a user and a password.
    let user = address.split_once('@').map_or("", |(user, _)| user);
    let parameters = address.split_once('?').map_or("", |(_, parameters)| parameters);
    let password = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or(parameter);
        name.eq_ignore_ascii_case("password") || name.contains('%')
    };
    user.contains(':') || parameters.split('&').any(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass() {
        Config::default().check().unwrap();
    }

    #[test]
    fn a_password_in_a_url_is_seen() {
        for url in [
            "u:secret@h/d",
            "u:@h",
            "u:p/q@h",
            "u:p?q@h",
            "u@h/d?password=x",
            "h?sslmode=require&Password=x",
            "h?pass%77ord=x",
        ] {
            assert!(has_password(url), "{url}");
        }
        for url in ["u@h:5432/d", "h:5432", "/d?host=/run/postgresql", "u@h/d?sslmode=require"] {
            assert!(!has_password(url), "{url}");
        }
    }
}
