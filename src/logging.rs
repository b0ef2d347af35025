//! Where the log goes, and in what form.
//!
//! Always holds: an event is one line, and nothing in it but its last byte is a
//! control character (a terminal's colours aside, which no value can carry), whatever
//! a message or a field contains.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Debug, Write as _};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::domain::{printable, printable_json, words};

words! {
    /// In what form the log is written to standard error.
    LogFormat, "log format" {
        /// `Journald` where standard error is the journal, else `Human`.
        Auto = "auto",
        /// Lines for people, in colour on a terminal.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
        /// Lines for people with the priority in front that the journal takes off (sd-daemon(3)).
        Journald = "journald",
    }
}

/// The log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be read.
    #[error(
        "{given:?} is not a log filter ({reason}): use error, warn, info, debug or trace, or for \
         single modules something like info,sallyport::server=debug"
    )]
    Filter {
        /// What was given, made printable.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something in this process logs already.
    #[error("the log was started twice in one process")]
    AlreadyStarted,
    /// It cannot be changed any more.
    #[error("failed to change what is logged: {0}")]
    Change(#[from] reload::Error),
}

/// What writes lines, before anything filters them.
type Lines = Layered<Box<dyn Layer<Registry> + Send + Sync>, Registry>;

/// What the log that runs lets through; it can be changed.
#[derive(Clone)]
pub struct Filter(reload::Handle<EnvFilter, Lines>);

impl Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

impl Filter {
    /// Lets through what `filter` says, from now on.
    ///
    /// # Errors
    /// When `filter` cannot be read; nothing is changed then.
    pub fn set(&self, filter: &str) -> Result<(), LoggingError> {
        self.0.reload(parse_filter(filter)?)?;
        // What logs by the "log" crate (russh does) asks its own level first.
        log::set_max_level(match LevelFilter::current().into_level() {
            None => log::LevelFilter::Off,
            Some(Level::ERROR) => log::LevelFilter::Error,
            Some(Level::WARN) => log::LevelFilter::Warn,
            Some(Level::INFO) => log::LevelFilter::Info,
            Some(Level::DEBUG) => log::LevelFilter::Debug,
            Some(Level::TRACE) => log::LevelFilter::Trace,
        });
        Ok(())
    }
}

/// Starts the log on standard error, and logs panics there too.
///
/// `filter` is a level or a list of directives as `tracing-subscriber`'s `EnvFilter` reads them; what
/// this gives can change it.
///
/// # Errors
/// When `filter` cannot be read, or the log was started before.
pub fn init(format: LogFormat, filter: &str) -> Result<Filter, LoggingError> {
    let stderr = io::stderr();
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let format = match format {
        LogFormat::Auto if is_journal(stream.as_deref(), &stderr) => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Human,
        chosen => chosen,
    };
    // https://no-color.org: set and not empty means no colour.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let colour = stderr.is_terminal() && !plain;
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    tracing_subscriber::registry()
        .with(lines(format, colour, io::stderr))
        .with(filter)
        .try_init()
        .map_err(|_| LoggingError::AlreadyStarted)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(Filter(handle))
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder().parse(filter).map_err(|e| LoggingError::Filter {
        given: printable(filter),
        reason: printable(&e.to_string()),
    })
}

/// A panic ends one connection and not the process, so it must be found in the log.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let payload = panic.payload();
    let formatted = payload.downcast_ref::<String>().map(String::as_str);
    let text = formatted.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
    // There is one only where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = captured.then(|| tracing::field::display(backtrace));
    tracing::error!(location, backtrace, "panicked: {text}");
}

/// Whether `stream` is the journal, whose device and inode `$JOURNAL_STREAM` names
/// (systemd.exec(5)).
fn is_journal(named: Option<&str>, stream: &impl AsFd) -> bool {
    let stat = rustix::fs::fstat(stream);
    stat.is_ok_and(|stat| named == Some(&format!("{}:{}", stat.st_dev, stat.st_ino)))
}

/// An error with its causes, on one line. Many errors name their cause in their own text: what was
/// said already is not said again.
pub fn whole(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The layer that writes events to `writer`, one line each.
fn lines<W>(
    format: LogFormat,
    colour: bool,
    writer: W,
) -> Box<dyn Layer<Registry> + Send + Sync + 'static>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer();
    match format {
        LogFormat::Json => {
            layer.json().flatten_event(true).with_writer(PrintableJson(writer)).boxed()
        }
        LogFormat::Journald => layer
            .event_format(WithPriority(Format::default().without_time()))
            .fmt_fields(PrintableFields)
            .with_ansi(false)
            .with_writer(writer)
            .boxed(),
        LogFormat::Auto | LogFormat::Human => {
            layer.fmt_fields(PrintableFields).with_ansi(colour).with_writer(writer).boxed()
        }
    }
}

/// Lines with a syslog priority in front, such as `<6>` (sd-daemon(3)).
struct WithPriority(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for WithPriority
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// Fields as `message key=value key="a value"`, all printable.
///
/// The library's own escapes ESC but no line break, and quotes only what was logged as a
/// string, so that a `Display` value could look like further fields.
struct PrintableFields;

impl<'w> FormatFields<'w> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Fields { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Fields<'w> {
    writer: Writer<'w>,
    first: bool,
    result: fmt::Result,
}

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: &str) {
        // Where a library that logs by the log crate stood: of no use, and a path of the build's.
        if field.name().starts_with("log.") {
            return;
        }
        let gap = if std::mem::take(&mut self.first) { "" } else { " " };
        let value = printable(value);
        self.result = self.result.and_then(|()| match field.name() {
            "message" => write!(self.writer, "{gap}{value}"),
            name if is_one_word(&value) => write!(self.writer, "{gap}{name}={value}"),
            name => {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"");
                write!(self.writer, "{gap}{name}=\"{value}\"")
            }
        });
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            // Writing to a String cannot fail.
            write!(text, ": {cause}").ok();
            source = cause.source();
        }
        self.put(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

fn is_one_word(value: &str) -> bool {
    !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '='))
}

/// Writes JSON with what JSON itself leaves alone escaped too: DEL, C1 and the like.
struct PrintableJson<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for PrintableJson<W> {
    type Writer = PrintableJson<W::Writer>;
    fn make_writer(&'a self) -> Self::Writer {
        PrintableJson(self.0.make_writer())
    }
}

/// Each `write` is a whole event: the layer formats into a buffer and writes that once.
impl<W: Write> Write for PrintableJson<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable_json(&String::from_utf8_lossy(buf)).as_bytes())?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written while `log` runs.
    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        logged_in(format, false, log)
    }

    fn logged_in(format: LogFormat, colour: bool, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber =
            tracing_subscriber::registry().with(lines(format, colour, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str = "a\x1b[2J\r\nb\x07\x7f\u{9b}\u{202e}c\td";

    fn log_hostile_text() {
        let span = tracing::info_span!("session", user = %HOSTILE);
        let _entered = span.enter();
        let error = io::Error::other(HOSTILE);
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, client = HOSTILE, shown = %HOSTILE, debug = ?HOSTILE, "hello {HOSTILE}");
    }

    #[test]
    fn an_event_is_one_line_without_control_characters() {
        for format in LogFormat::ALL {
            let line = logged(*format, log_hostile_text);
            let text = line.strip_suffix('\n').unwrap();
            assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
            let escaped =
                if *format == LogFormat::Json { "a\\u001b[2J\\r\\n" } else { "a\\u{1b}[2J" };
            assert!(text.matches(escaped).count() >= 5, "{line:?}");
        }
    }

    #[test]
    fn colours_come_from_the_bastion_alone() {
        let line = logged_in(LogFormat::Human, true, log_hostile_text);
        let colour = |rest: &str| {
            rest.starts_with('[') && {
                let end = rest.find(|c: char| !matches!(c, '[' | ';' | '0'..='9'));
                end.is_some_and(|at| rest[at..].starts_with('m'))
            }
        };
        let mut escapes = line.split('\x1b').skip(1).peekable();
        assert!(escapes.peek().is_some(), "{line:?}");
        assert!(escapes.all(colour), "{line:?}");
    }

    #[test]
    fn json_reads_back_as_what_was_logged() {
        let line = logged(LogFormat::Json, log_hostile_text);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["client"], HOSTILE);
        assert_eq!(read["message"], format!("hello {HOSTILE}"));
        assert_eq!(read["level"], "WARN");
    }

    #[test]
    fn a_value_cannot_pass_for_another_field() {
        let line = logged(LogFormat::Journald, || {
            tracing::info!(client = %"x user=root", version = 3, name = "db1", odd = "\"\\", "seen");
        });
        let shown = r#"seen client="x user=root" version=3 name=db1 odd="\"\\""#;
        assert!(line.trim_end().ends_with(shown), "{line}");
    }

    #[test]
    fn where_a_library_stood_is_left_out() {
        for format in [LogFormat::Human, LogFormat::Journald] {
            let line = logged(format, || tracing::info!(log.file = "/build/error.rs", "seen"));
            assert!(line.contains("seen") && !line.contains("build"), "{line}");
        }
    }

    #[test]
    fn the_journal_is_told_the_priority() {
        for (log, start) in [
            ((|| tracing::error!("x")) as fn(), "<3>"),
            (|| tracing::warn!("x"), "<4>"),
            (|| tracing::info!("x"), "<6>"),
            (|| tracing::debug!("x"), "<7>"),
        ] {
            let line = logged(LogFormat::Journald, log);
            assert!(line.starts_with(start), "{line}");
        }
        assert!(!logged(LogFormat::Human, || tracing::error!("x")).starts_with('<'));
    }

    #[test]
    fn a_panic_is_logged() {
        let line = logged(LogFormat::Human, || {
            std::panic::set_hook(Box::new(log_panic));
            let caught = std::panic::catch_unwind(|| panic!("a\nb"));
            drop(std::panic::take_hook());
            assert!(caught.is_err());
        });
        assert!(line.contains(r"panicked: a\u{a}b location=src/logging.rs:"), "{line}");
    }

    #[test]
    fn the_journal_is_told_from_a_file() {
        use std::os::unix::fs::MetadataExt as _;
        let (journal, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let meta = journal.metadata().unwrap();
        let named = format!("{}:{}", meta.dev(), meta.ino());
        assert!(is_journal(Some(&named), &journal));
        assert!(!is_journal(Some(&named), &other));
        assert!(!is_journal(None, &journal));
    }

    #[test]
    fn filters_are_checked() {
        for good in ["info", "warn,sallyport::server=debug", "off"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        let error = parse_filter("info,x=lou\x1bd").unwrap_err().to_string();
        assert!(error.contains("use error, warn, info"), "{error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}
