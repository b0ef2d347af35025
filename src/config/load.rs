//! From a file and the environment to a checked [`Config`].
//!
//! Always holds: an error names the one place to look at, and is one line.

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::Config;
use super::advice::advise;
use super::check::Fault;
use super::names::{dotted, lookup, unknown};
use crate::domain::printable;

/// Where a configuration is looked for when nobody named one.
const PLACES: [&str; 2] = ["sallyport.toml", "/etc/sallyport/sallyport.toml"];
/// What names the file, if not the command line.
const NAMES_FILE: &str = "SALLYPORT_CONFIG";
/// What environment variables that override a key begin with.
const PREFIX: &str = "SALLYPORT_";
/// Where systemd puts a service's credentials (systemd.exec(5)).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("failed to read the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was found, not named, and somebody else decides what stands in it.
    #[error(
        "the configuration {path} was found here but not taken: {reason}; if it is to be used, say \
         --config {path}"
    )]
    Untrusted {
        /// Which file.
        path: PathBuf,
        /// Who else can write it.
        reason: &'static str,
    },
    /// The file is not TOML, or has a key or a value that is none.
    #[error("failed to read the configuration {path}:{line}:{column}: {message}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted in characters from 1.
        column: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// An environment variable overrides no key, or with a value that is none.
    #[error("failed to read the environment variable {name}: {message}")]
    Environment {
        /// Which variable.
        name: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Error {
    /// What the process exits with: `EX_CONFIG` of sysexits(3).
    pub const EXIT_CODE: u8 = 78;
}

/// A configuration and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Its file; `None` for the built-in defaults.
    pub path: Option<PathBuf>,
}

/// The environment of this process for [`Config::load`]. Unlike [`std::env::vars`], it does not
/// panic over a variable that is no UTF-8.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    })
}

impl Config {
    /// Loads the configuration: `explicit`, else `$SALLYPORT_CONFIG`, else `./sallyport.toml`, else
    /// `/etc/sallyport/sallyport.toml`, else the defaults. Then `SALLYPORT_<SECTION>__<KEY>` from
    /// `env` override single keys, and `SALLYPORT_<KEY>` those that are in no section.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn load(
        explicit: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, Error> {
        let env: Vec<(String, String)> = env.collect();
        let variable = |name| env.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v);
        let named = explicit.or_else(|| variable(NAMES_FILE).map(Path::new));
        let source = Source::find(named, &PLACES)?;
        let overrides = Override::all(&env)?;

        let mut table = source.parse()?;
        for change in &overrides {
            change.apply(&mut table)?;
        }
        // Each part was read by itself before, so that its faults could be told by their places.
        let mut config: Config = table.try_into().map_err(|e| source.error(&e))?;
        config.keys.credentials = variable(CREDENTIALS).map(PathBuf::from);
        config.check().map_err(|fault| place(fault, &source, &overrides))?;
        Ok(Loaded { config, path: source.path })
    }

    /// The configuration as TOML.
    pub(super) fn table(&self) -> toml::Table {
        // Cannot fail: every value is text, a number within i64, or a list of text.
        toml::Table::try_from(self).unwrap_or_default()
    }
}

/// Puts a broken rule where its first key was set.
fn place(fault: Fault, source: &Source, overrides: &[Override]) -> Error {
    let message = fault.message;
    for key in fault.keys {
        if let Some(change) = overrides.iter().find(|change| change.key() == key) {
            return change.error(message);
        }
        if let Some(span) = source.span(key) {
            return source.error_at(span, message);
        }
    }
    source.error_at(0..0, message) // Not reached: the defaults by themselves pass every check.
}

/// A configuration file; empty when there is none.
struct Source {
    path: Option<PathBuf>,
    text: String,
}

impl Source {
    /// The file that was named, else the first of `places` that is there.
    fn find(named: Option<&Path>, places: &[impl AsRef<Path>]) -> Result<Self, Error> {
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(Self { path: Some(path.to_owned()), text })),
            // One that is there and cannot be read must not pass for none.
            Err(e) if named.is_none() && e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        };
        let places = places.iter().map(AsRef::as_ref).filter(|_| named.is_none());
        for path in named.into_iter().chain(places) {
            if let Some(source) = read(path)? {
                if named.is_none() {
                    trust(path)?;
                }
                return Ok(source);
            }
        }
        Ok(Self { path: None, text: String::new() })
    }

    /// The file as a table whose keys are all known and whose values all have the right type.
    fn parse(&self) -> Result<toml::Table, Error> {
        let document = DeTable::parse(&self.text).map_err(|e| self.error(&e))?;
        let known = Config::default().table();
        let mut wrong = Vec::new();
        for (name, value) in document.get_ref() {
            match (known.get(name.get_ref().as_ref()), value.get_ref()) {
                (None, DeValue::Table(_)) => {
                    wrong.push((name.span(), unknown(&known, name.get_ref(), "")));
                }
                (None, _) => wrong.push((name.span(), unknown(&known, "", name.get_ref()))),
                (Some(toml::Value::Table(_)), DeValue::Table(section)) => {
                    for key in section.keys() {
                        let (section, key_name) = (name.get_ref(), key.get_ref());
                        if lookup(&known, section, key_name).is_none() {
                            wrong.push((key.span(), unknown(&known, section, key_name)));
                        }
                    }
                }
                _ => {} // The types are told apart below.
            }
        }
        if let Some((span, message)) = wrong.into_iter().min_by_key(|(span, _)| span.start) {
            return Err(self.error_at(span, message));
        }
        toml::from_str::<Config>(&self.text).map_err(|e| self.error(&e))?;
        toml::from_str(&self.text).map_err(|e| self.error(&e))
    }

    /// Where the value of `key`, such as `server.listen`, stands.
    fn span(&self, key: &str) -> Option<Range<usize>> {
        let document = DeTable::parse(&self.text).ok()?;
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let table = match section {
            "" => document.get_ref(),
            section => document.get_ref().get(section)?.get_ref().as_table()?,
        };
        table.get(key).map(toml::Spanned::span)
    }

    fn error(&self, error: &toml::de::Error) -> Error {
        let (span, message) = (error.span().unwrap_or(0..0), one_line(error.message()));
        let message = match self.key_at(span.start) {
            Some((section, key)) => advise(&section, &key, &message, None),
            None => message,
        };
        self.error_at(span, message)
    }

    /// The section and key whose value stands at a place in the text, if that is TOML.
    fn key_at(&self, place: usize) -> Option<(String, String)> {
        let document = DeTable::parse(&self.text).ok()?;
        for (name, value) in document.get_ref() {
            let keys = value.get_ref().as_table().into_iter().flatten();
            for (key, value) in keys {
                if value.span().contains(&place) {
                    return Some((name.get_ref().to_string(), key.get_ref().to_string()));
                }
            }
            if value.span().contains(&place) {
                return Some((String::new(), name.get_ref().to_string()));
            }
        }
        None
    }

    fn error_at(&self, span: Range<usize>, message: String) -> Error {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Error::File {
            path: self.path.clone().unwrap_or_default(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            message,
        }
    }
}

/// Refuses a file that nobody named (it lies in whatever folder a command is run in, by root too) if
/// somebody else could have put it there or can change it.
fn trust(path: &Path) -> Result<(), Error> {
    let look = |at: &Path| {
        let found = std::fs::metadata(at);
        found.map_err(|source| Error::Read { path: path.to_owned(), source })
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let (file, folder) = (look(path)?, look(folder.unwrap_or(Path::new(".")))?);
    let caller = rustix::process::geteuid().as_raw();
    let owned = |found: &std::fs::Metadata| (found.uid(), found.gid(), found.mode());
    let reason = match (distrust(owned(&file), caller), distrust(owned(&folder), caller)) {
        (Some(Distrust::Owner), _) => "it belongs to another user",
        (Some(Distrust::Writable), _) => "others can write it (chmod go-w)",
        (None, Some(Distrust::Owner)) => "its folder belongs to another user",
        (None, Some(Distrust::Writable)) => "others can write its folder (chmod go-w)",
        (None, None) => return Ok(()),
    };
    Err(Error::Untrusted { path: path.to_owned(), reason })
}

/// Why a file or folder is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distrust {
    Owner,
    Writable,
}

/// Whether another than `caller` and root decides over what has this owner, group and mode. A user's own
/// group, which has their number, may write.
fn distrust((owner, group, mode): (u32, u32, u32), caller: u32) -> Option<Distrust> {
    let others = if group == owner { 0o002 } else { 0o022 };
    if owner != caller && owner != 0 {
        Some(Distrust::Owner)
    } else {
        (mode & others != 0).then_some(Distrust::Writable)
    }
}

/// An environment variable that overrides one key.
struct Override {
    name: String,
    section: String,
    key: String,
    value: toml::Value,
}

impl Override {
    /// All overrides of `env`.
    fn all(env: &[(String, String)]) -> Result<Vec<Self>, Error> {
        let known = Config::default().table();
        let named = env.iter().filter(|(name, _)| name != NAMES_FILE);
        named.filter_map(|(name, value)| Self::read(&known, name, value).transpose()).collect()
    }

    fn read(known: &toml::Table, name: &str, value: &str) -> Result<Option<Self>, Error> {
        let Some(key) = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else {
            return Ok(None);
        };
        let fail = |message| Error::Environment { name: printable(name), message };
        let (section, key) = match key.split_once("__") {
            Some((section, key)) => (section.to_owned(), key.to_owned()),
            None => (String::new(), key),
        };
        let default = match lookup(known, &section, &key) {
            Some(default) if !default.is_table() => default,
            // Kubernetes gives each container variables such as SALLYPORT_PORT and
            // SALLYPORT_SERVICE_HOST for a service of this name: those mean no key.
            _ if section.is_empty() => return Ok(None),
            _ => return Err(fail(unknown(known, &section, &key))),
        };
        // A text stays a text when it looks like a number: a node may be called "7".
        let value = match value.parse::<toml::Value>() {
            Ok(parsed) if parsed.is_str() || !default.is_str() => parsed,
            _ => toml::Value::String(value.to_owned()),
        };
        Ok(Some(Self { name: name.to_owned(), section, key, value }))
    }

    /// Sets the key in `table`, if its value has the right type.
    fn apply(&self, table: &mut toml::Table) -> Result<(), Error> {
        let mut alone = toml::Table::new();
        self.set(&mut alone);
        alone.try_into::<Config>().map_err(|e| {
            let message = one_line(e.message());
            self.error(advise(&self.section, &self.key, &message, Some(&self.name)))
        })?;
        self.set(table);
        Ok(())
    }

    fn set(&self, table: &mut toml::Table) {
        let value = self.value.clone();
        if self.section.is_empty() {
            table.insert(self.key.clone(), value);
            return;
        }
        let empty = || toml::Value::Table(toml::Table::new());
        let section = table.entry(self.section.clone()).or_insert_with(empty);
        // A section that is no table was refused when the file was read.
        if let Some(section) = section.as_table_mut() {
            section.insert(self.key.clone(), value);
        }
    }

    /// The key as rules name it, such as `server.listen`.
    fn key(&self) -> String {
        dotted(&self.section, &self.key)
    }

    fn error(&self, message: String) -> Error {
        Error::Environment { name: self.name.clone(), message }
    }
}

fn one_line(message: &str) -> String {
    printable(&message.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
