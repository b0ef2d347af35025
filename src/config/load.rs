//! From a file and the environment to a checked [`Config`].

use std::path::{Path, PathBuf};

use super::Config;
use crate::domain::printable;

/// Where a configuration is looked for when nobody named one.
const PLACES: [&str; 2] = ["sallyport.toml", "/etc/sallyport/sallyport.toml"];
/// What environment variables that override a key begin with.
const PREFIX: &str = "SALLYPORT_";

/// A configuration that cannot be used. Its text names the place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("failed to read the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that nobody knows.
    #[error("{path}:{line}:{column}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// An environment variable overrides nothing, or with a wrong value.
    #[error("the environment variable {name}: {message}")]
    Environment {
        /// Which variable.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A value is out of range.
    #[error("the configuration {place}: {message}")]
    Check {
        /// Which file, or that there is none.
        place: String,
        /// What is wrong.
        message: String,
    },
}

/// A configuration and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Its file; `None` for the built-in defaults.
    pub path: Option<PathBuf>,
}

/// Loads the configuration: `explicit`, else `$SALLYPORT_CONFIG`, else `./sallyport.toml`, else
/// `/etc/sallyport/sallyport.toml`, else the defaults; then `SALLYPORT_<SECTION>__<KEY>` from
/// `env` override single keys.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn load(
    explicit: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Error> {
    let env: Vec<(String, String)> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let named =
        env.iter().find(|(name, _)| name == "SALLYPORT_CONFIG").map(|(_, v)| PathBuf::from(v));
    let path = match explicit.map(Path::to_owned).or(named) {
        Some(path) => Some(path),
        None => PLACES.iter().map(PathBuf::from).find(|path| path.exists()),
    };
    let text = match &path {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.clone(), source })?,
        None => String::new(),
    };
    // First as it stands, for the sake of line and column; then with the overrides.
    let shown = path.clone().unwrap_or_default();
    let mut config: Config = toml::from_str(&text).map_err(|e| parse_error(&shown, &text, &e))?;
    for (name, value) in env.iter().filter(|(name, _)| name != "SALLYPORT_CONFIG") {
        config = overridden(&text, &env, name, value)?;
    }
    let place = path.as_ref().map_or_else(|| "(built in)".to_owned(), |p| p.display().to_string());
    config.check().map_err(|message| Error::Check { place, message })?;
    Ok(Loaded { config, path })
}

/// The configuration with every override up to and including `last`, whose faults it reports.
fn overridden(
    text: &str,
    env: &[(String, String)],
    last: &str,
    _value: &str,
) -> Result<Config, Error> {
    let fail = |message: String| Error::Environment { name: printable(last), message };
    let mut table: toml::Table = toml::from_str(text).map_err(|e| fail(one_line(e.message())))?;
    for (name, value) in env.iter().filter(|(name, _)| name != "SALLYPORT_CONFIG") {
        set(&mut table, name, value).map_err(fail)?;
        if name == last {
            break;
        }
    }
    table.try_into().map_err(|e: toml::de::Error| fail(one_line(e.message())))
}

fn set(table: &mut toml::Table, name: &str, value: &str) -> Result<(), String> {
    let key = name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_lowercase();
    let value = as_toml(value);
    match key.split_once("__") {
        None => {
            table.insert(key, value);
        }
        Some((section, key)) => {
            let section = table
                .entry(section.to_owned())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .ok_or_else(|| format!("{section} is not a section"))?;
            section.insert(key.to_owned(), value);
        }
    }
    Ok(())
}

/// The value as TOML, or, where it is none, as a string.
fn as_toml(value: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"));
    let parsed =
        parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()))
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Error::Parse { path: path.to_owned(), line, column, message: one_line(error.message()) }
}

fn one_line(message: &str) -> String {
    printable(&message.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let loaded = load(Some(&path), env);
        loaded
            .map(|l| l.config)
            .map_err(|e| e.to_string().replace(&path.display().to_string(), "c"))
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, error) in [
            ("[server]\nlisten = [\"x\"]", "c:2:"),
            ("[server]\n  lisen = []", "c:2:3: unknown field `lisen`"),
            ("[sever]", "c:1:2: unknown field `sever`"),
            ("[login]\nlock_for = \"soon\"", "\"soon\" is no length of time"),
            ("[login]\nlock_after = -1", "c:2:14: invalid value"),
            ("data_dir = ", "c:1:"),
            ("[server]\nmax_channels = 0", "server.max_channels must be 1 or more"),
            ("[store]\nurl = \"mysql://x\"", "store.url must begin with sqlite: or postgres://"),
            ("[login]\nmethods = [\"password\"]", "keyboard-interactive"),
        ] {
            let found = load_text(text, &[]).unwrap_err();
            assert!(found.contains(error) && !found.contains('\n'), "{text}: {found}");
        }
        let missing = load(Some(Path::new("/nonexistent/c.toml")), std::iter::empty());
        assert!(missing.unwrap_err().to_string().contains("/nonexistent/c.toml"));
    }

    #[test]
    fn the_environment_overrides_single_keys() {
        let env = [
            ("SALLYPORT_SERVER__LISTEN", "[\"127.0.0.1:0\"]"),
            ("SALLYPORT_LOGIN__ISSUER", "Acme"),
            ("SALLYPORT_LOGIN__LOCK_AFTER", "5"),
            ("SALLYPORT_DATA_DIR", "/tmp/x"),
            ("SALLYPORT_CONFIG", "not looked at"),
            ("OTHER", "x"),
        ];
        let config = load_text("[login]\nissuer = \"File\"\nlock_for = \"1m\"", &env).unwrap();
        assert_eq!(config.server.listen[0].to_string(), "127.0.0.1:0");
        assert_eq!((config.login.issuer.as_str(), config.login.lock_after), ("Acme", 5));
        assert_eq!(config.login.lock_for.0.as_secs(), 60);
        assert_eq!(config.data_dir, PathBuf::from("/tmp/x"));
        for (name, value, error) in [
            ("SALLYPORT_LOGIN__ISUER", "x", "unknown field `isuer`"),
            ("SALLYPORT_LOGIN__LOCK_AFTER", "many", "invalid type"),
            ("SALLYPORT_NOPE", "x", "unknown field `nope`"),
        ] {
            let found = load_text("", &[(name, value)]).unwrap_err();
            assert!(found.contains(name) && found.contains(error), "{found}");
        }
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        let shipped = include_str!("../../config/sallyport.toml");
        // "#key = value" is a default; "# text" is an explanation.
        let set: String = shipped
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|l| !l.starts_with([' ', '#'])).unwrap_or(line)
            })
            .filter(|line| !line.starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        let config: Config = toml::from_str(&set).unwrap();
        assert_eq!(config, Config::default());
        let keys = set.lines().filter(|line| line.contains(" = ")).count();
        // Every key of every section: counted on the type by what it debug-prints.
        let debug = format!("{:#?}", Config::default());
        let fields =
            debug.lines().filter(|l| l.contains(": ") && !l.trim_end().ends_with(" {")).count();
        assert_eq!(keys, fields, "config/sallyport.toml does not show every key");
    }
}
