//! Reads and writes asciicast v2 (<https://docs.asciinema.org/manual/asciicast/v2/>): a JSON
//! header line, then one JSON line an event.
//!
//! Always holds: a written line is valid UTF-8 and holds no byte that a terminal acts on; time
//! never runs backwards in it; both ends bound how long a line gets. A file that a crash cut off
//! reads up to its last whole line and says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::domain::{is_unsafe, printable_json};

/// The most bytes of terminal data that go into one event: a line is at most six times that.
const PIECE: usize = 32 * 1024;
/// The longest line that is read; nothing that [`Encoder`] wrote comes near it.
pub const MAX_LINE: usize = 4 * 1024 * 1024;
/// What a zstd frame begins with (RFC 8878 section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// The first line of a recording.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The terminal's columns at the beginning.
    pub width: u16,
    /// The terminal's rows at the beginning.
    pub height: u16,
    /// When the recording began, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// What a player may show as its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The command that ran, if it was not a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Environment variables of note, such as `TERM`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// [`Header`] with the number that says how to read the rest.
#[derive(Serialize, Deserialize)]
struct VersionedHeader<H> {
    version: u32,
    #[serde(flatten)]
    header: H,
}

impl Header {
    /// The header as a line, its line break included.
    pub fn to_line(&self) -> Vec<u8> {
        let versioned = VersionedHeader { version: 2, header: self };
        // A struct of numbers and strings always serializes.
        let json = serde_json::to_string(&versioned).unwrap_or_default();
        let mut line = printable_json(&json).into_bytes();
        line.push(b'\n');
        line
    }
}

/// What happened at a moment of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The terminal was sent this (`o`).
    Output(String),
    /// The user typed this (`i`).
    Input(String),
    /// The terminal changed its size (`r`).
    Resize {
        /// Columns from now on.
        columns: u16,
        /// Rows from now on.
        rows: u16,
    },
    /// A place of note, by its label (`m`).
    Marker(String),
}

/// One line of a recording after its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Since the beginning of the recording.
    pub time: Duration,
    /// What happened.
    pub kind: Kind,
}

/// Turns what passes on a session's channel into lines of a recording.
///
/// A character that came in two chunks is written once it is whole, with the time of the second.
#[derive(Debug, Default)]
pub struct Encoder {
    output: Utf8,
    input: Utf8,
    last: Duration,
    events: u64,
}

impl Encoder {
    /// An encoder at the beginning of a recording.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many lines were written.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The time of the last line.
    pub fn last(&self) -> Duration {
        self.last
    }

    /// Appends what the terminal was sent.
    pub fn output(&mut self, at: Duration, bytes: &[u8], to: &mut Vec<u8>) {
        let mut decoder = std::mem::take(&mut self.output);
        for piece in bytes.chunks(PIECE) {
            self.line(at, 'o', to, |text| decoder.decode(piece, text));
        }
        self.output = decoder;
    }

    /// Appends what the user typed.
    pub fn input(&mut self, at: Duration, bytes: &[u8], to: &mut Vec<u8>) {
        let mut decoder = std::mem::take(&mut self.input);
        for piece in bytes.chunks(PIECE) {
            self.line(at, 'i', to, |text| decoder.decode(piece, text));
        }
        self.input = decoder;
    }

    /// Appends a new size of the terminal.
    pub fn resize(&mut self, at: Duration, columns: u16, rows: u16, to: &mut Vec<u8>) {
        self.line(at, 'r', to, |text| text(&format!("{columns}x{rows}")));
    }

    /// Appends a marker; a label is cut at 32 KiB.
    pub fn marker(&mut self, at: Duration, label: &str, to: &mut Vec<u8>) {
        let end = label.floor_char_boundary(PIECE);
        self.line(at, 'm', to, |text| text(label.get(..end).unwrap_or_default()));
        if label.is_empty() {
            self.line(at, 'm', to, |text| text("-"));
        }
    }

    /// Appends what is left of characters that never became whole.
    pub fn finish(&mut self, at: Duration, to: &mut Vec<u8>) {
        let (mut output, mut input) =
            (std::mem::take(&mut self.output), std::mem::take(&mut self.input));
        self.line(at, 'o', to, |text| output.finish(text));
        self.line(at, 'i', to, |text| input.finish(text));
    }

    /// One line with the text that `fill` gives in pieces; no line if it gives none.
    fn line(
        &mut self,
        at: Duration,
        code: char,
        to: &mut Vec<u8>,
        fill: impl FnOnce(&mut dyn FnMut(&str)),
    ) {
        let at = at.max(self.last);
        let mut begun = false;
        fill(&mut |text| {
            if !begun && !text.is_empty() {
                begun = true;
                let (seconds, micros) = (at.as_secs(), at.subsec_micros());
                // Writing to a Vec cannot fail.
                write!(to, "[{seconds}.{micros:06},\"{code}\",\"").unwrap_or_default();
            }
            escape(text, to);
        });
        if begun {
            to.extend_from_slice(b"\"]\n");
            self.last = at;
            self.events += 1;
        }
    }
}

/// `text` as the inside of a JSON string (RFC 8259 section 7), with everything that a terminal
/// could act on escaped too.
fn escape(text: &str, to: &mut Vec<u8>) {
    let escaped = |c: char| match c {
        '"' | '\\' => true,
        ' '..='~' => false,
        _ => is_unsafe(c),
    };
    let mut rest = text;
    while let Some((plain, tail)) = rest.find(escaped).and_then(|at| rest.split_at_checked(at)) {
        to.extend_from_slice(plain.as_bytes());
        let mut tail = tail.chars();
        match tail.next() {
            Some('\n') => to.extend_from_slice(b"\\n"),
            Some('\r') => to.extend_from_slice(b"\\r"),
            Some('"') => to.extend_from_slice(b"\\\""),
            Some('\\') => to.extend_from_slice(b"\\\\"),
            Some(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    to.extend_from_slice(&escaped_unit(*unit));
                }
            }
            None => {}
        }
        rest = tail.as_str();
    }
    to.extend_from_slice(rest.as_bytes());
}

/// `\uXXXX`. A command's output may be nothing else, byte for byte: formatting is too slow for that.
fn escaped_unit(unit: u16) -> [u8; 6] {
    let digit = |shift: u16| match (unit >> shift) & 0xf {
        digit @ 0..=9 => b'0' + digit as u8,
        digit => b'a' - 10 + digit as u8,
    };
    [b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]
}

/// Decodes UTF-8 that comes in chunks; what is none becomes U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose end is yet to come: at most three bytes.
    carried: Vec<u8>,
}

impl Utf8 {
    /// Gives the text of `bytes`, and of what was carried before them.
    pub(super) fn decode(&mut self, bytes: &[u8], text: &mut dyn FnMut(&str)) {
        let mut bytes = bytes;
        while !self.carried.is_empty() {
            let Some((first, rest)) = bytes.split_first() else { return };
            self.carried.push(*first);
            match std::str::from_utf8(&self.carried) {
                Ok(whole) => text(whole),
                Err(error) if error.error_len().is_none() => {
                    bytes = rest;
                    continue;
                }
                Err(_) => {
                    // `first` does not go on with what was carried, so it is looked at again.
                    self.finish(text);
                    continue;
                }
            }
            self.carried.clear();
            bytes = rest;
        }
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text(chunk.valid());
            let cut_off = |bad| std::str::from_utf8(bad).is_err_and(|e| e.error_len().is_none());
            match chunk.invalid() {
                [] => {}
                bad if chunks.peek().is_none() && cut_off(bad) => self.carried.extend(bad),
                _ => text("\u{FFFD}"),
            }
        }
    }

    fn finish(&mut self, text: &mut dyn FnMut(&str)) {
        if !self.carried.is_empty() {
            self.carried.clear();
            text("\u{FFFD}");
        }
    }
}

/// Why a recording cannot be read (any further).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read, or its compressed data is damaged.
    #[error("the recording cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The first line is no asciicast header.
    #[error("not an asciicast v2 recording: its first line is no header")]
    NoHeader,
    /// An asciicast of another version.
    #[error("an asciicast of version {0}: only version 2 can be read")]
    Version(u32),
    /// A line in the middle is no event.
    #[error("line {0} of the recording is not an event")]
    BadLine(u64),
    /// A line is longer than [`MAX_LINE`].
    #[error("line {0} of the recording is longer than {MAX_LINE} bytes")]
    LongLine(u64),
}

/// Gives a recording's bytes from the beginning, as often as it is asked.
type Source = Box<dyn FnMut() -> io::Result<Box<dyn BufRead + Send>> + Send>;

/// Reads a recording event by event, plain or compressed with zstd.
pub struct Reader {
    source: Source,
    input: Box<dyn BufRead + Send>,
    header: Header,
    line: Vec<u8>,
    number: u64,
    last: Duration,
    whole: u64,
    truncated: bool,
    ended: bool,
}

impl Reader {
    /// Opens the recording at `path`. It stays readable when the file is renamed or removed.
    ///
    /// # Errors
    /// When the file cannot be read or does not begin with a header.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path)?;
        Self::new(Box::new(move || {
            let mut file = file.try_clone()?;
            file.rewind()?;
            unpacked(file)
        }))
    }

    /// Reads a recording that is in memory.
    ///
    /// # Errors
    /// When it does not begin with a header.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Error> {
        Self::new(Box::new(move || unpacked(Cursor::new(bytes.clone()))))
    }

    fn new(mut source: Source) -> Result<Self, Error> {
        let input = source()?;
        let header = Header::default();
        let (line, last) = (Vec::new(), Duration::ZERO);
        let mut reader = Self {
            source,
            input,
            header,
            line,
            number: 0,
            last,
            whole: 0,
            truncated: false,
            ended: false,
        };
        reader.read_header()?;
        Ok(reader)
    }

    /// Goes back to the beginning.
    ///
    /// # Errors
    /// When the file cannot be read again.
    pub fn rewind(&mut self) -> Result<(), Error> {
        self.input = (self.source)()?;
        (self.number, self.last, self.whole) = (0, Duration::ZERO, 0);
        (self.truncated, self.ended) = (false, false);
        self.read_header()
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the recording's end, once it was reached, proved to be cut off.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// How many bytes (of the unpacked recording) the lines read so far take up.
    pub(super) fn whole_bytes(&self) -> u64 {
        self.whole
    }

    fn read_header(&mut self) -> Result<(), Error> {
        if !self.read_line()? {
            return Err(Error::NoHeader);
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version: Version = serde_json::from_slice(&self.line).map_err(|_| Error::NoHeader)?;
        if version.version != 2 {
            return Err(Error::Version(version.version));
        }
        let versioned: VersionedHeader<Header> =
            serde_json::from_slice(&self.line).map_err(|_| Error::NoHeader)?;
        self.header = versioned.header;
        Ok(())
    }

    /// Reads one line, without its break, and says whether there was one.
    fn read_line(&mut self) -> Result<bool, Error> {
        self.line.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let mut limited = (&mut self.input).take(limit + 1);
        match limited.read_until(b'\n', &mut self.line) {
            // A zstd frame without its end. What was unpacked of it is good.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.truncated = true,
            result => _ = result?,
        }
        self.number += 1;
        let length = u64::try_from(self.line.len()).unwrap_or(u64::MAX);
        if self.line.pop_if(|last| *last == b'\n').is_none() {
            if self.line.len() > MAX_LINE {
                return Err(Error::LongLine(self.number));
            }
            if self.line.is_empty() {
                return Ok(false);
            }
            // The last line of a file that a crash cut off, unless it turns out to be whole.
            self.ended = true;
        }
        self.whole += length;
        Ok(true)
    }

    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// When the file is damaged before its last line. Nothing more can be read then.
    pub fn next_event(&mut self) -> Result<Option<Event>, Error> {
        while !self.ended {
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.ended = true;
                    return Err(error);
                }
            }
            if self.line.trim_ascii().is_empty() {
                continue;
            }
            match parse_event(&self.line) {
                Some(Ok(mut event)) => {
                    event.time = event.time.max(self.last);
                    self.last = event.time;
                    return Ok(Some(event));
                }
                Some(Err(UnknownCode)) => {}
                // Some file systems leave a hole of zeros where a crash lost data.
                None if self.ended || self.line.first() == Some(&0) => {
                    self.truncated = true;
                    let length = u64::try_from(self.line.len()).unwrap_or(u64::MAX);
                    self.whole = self.whole.saturating_sub(length);
                    break;
                }
                None => {
                    self.ended = true;
                    return Err(Error::BadLine(self.number));
                }
            }
        }
        self.ended = true;
        Ok(None)
    }
}

impl Iterator for Reader {
    type Item = Result<Event, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        self.next_event().transpose()
    }
}

/// An event of a kind that readers are told to pass over.
pub(super) struct UnknownCode;

pub(super) fn parse_event(line: &[u8]) -> Option<Result<Event, UnknownCode>> {
    let (seconds, code, data): (f64, String, String) = serde_json::from_slice(line).ok()?;
    let micros = Duration::try_from_secs_f64(seconds).ok()?.as_nanos().saturating_add(500) / 1000;
    let time = Duration::from_micros(u64::try_from(micros).ok()?);
    let kind = match code.as_str() {
        "o" => Kind::Output(data),
        "i" => Kind::Input(data),
        "m" => Kind::Marker(data),
        "r" => {
            let (columns, rows) = data.split_once('x')?;
            Kind::Resize { columns: columns.parse().ok()?, rows: rows.parse().ok()? }
        }
        _ => return Some(Err(UnknownCode)),
    };
    Some(Ok(Event { time, kind }))
}

/// The recording at `path` as plain asciicast, byte for byte.
///
/// # Errors
/// When it cannot be read.
pub fn plain(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    unpacked(File::open(path)?)
}

/// What `source` holds, unpacked if it begins like a zstd frame.
fn unpacked(source: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let mut source = BufReader::with_capacity(64 * 1024, source);
    let packed = source.fill_buf()?.starts_with(&ZSTD_MAGIC);
    if packed {
        let decoder = zstd::stream::read::Decoder::with_buffer(source)?;
        return Ok(Box::new(BufReader::with_capacity(64 * 1024, decoder)));
    }
    Ok(Box::new(source))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn header() -> Header {
        Header { width: 80, height: 24, timestamp: Some(1_795_508_403), ..Header::default() }
    }

    /// A recording of these events, `(milliseconds, kind)`.
    pub(crate) fn cast(events: &[(u64, Kind)]) -> Bytes {
        let (mut encoder, mut bytes) = (Encoder::new(), header().to_line());
        for (ms, kind) in events {
            let at = Duration::from_millis(*ms);
            match kind {
                Kind::Output(text) => encoder.output(at, text.as_bytes(), &mut bytes),
                Kind::Input(text) => encoder.input(at, text.as_bytes(), &mut bytes),
                Kind::Resize { columns, rows } => encoder.resize(at, *columns, *rows, &mut bytes),
                Kind::Marker(label) => encoder.marker(at, label, &mut bytes),
            }
        }
        bytes.into()
    }

    /// A recording of these outputs, `(milliseconds, text)`.
    pub(crate) fn outputs(events: &[(u64, &str)]) -> Bytes {
        let events: Vec<_> =
            events.iter().map(|(at, text)| (*at, Kind::Output((*text).to_owned()))).collect();
        cast(&events)
    }

    fn encoded(chunks: &[&[u8]]) -> String {
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        for chunk in chunks {
            encoder.output(Duration::from_micros(1_500_000), chunk, &mut out);
        }
        encoder.finish(Duration::from_secs(2), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn terminal_bytes_become_lines() {
        let cases: &[(&[&[u8]], &str)] = &[
            (&[b"ls\r\n"], "[1.500000,\"o\",\"ls\\r\\n\"]\n"),
            (&[b"\x1b[1m\x07\"\\\x7f"], "[1.500000,\"o\",\"\\u001b[1m\\u0007\\\"\\\\\\u007f\"]\n"),
            (&["größe 日本".as_bytes()], "[1.500000,\"o\",\"größe 日本\"]\n"),
            (
                &["\u{9b}\u{202e}\u{e0041}".as_bytes()],
                "[1.500000,\"o\",\"\\u009b\\u202e\\udb40\\udc41\"]\n",
            ),
            (&[b"\xe2", b"\x82", b"\xac!"], "[1.500000,\"o\",\"\u{20ac}!\"]\n"),
            (&[b"a\xe2\x82", b"b"], "[1.500000,\"o\",\"a\"]\n[1.500000,\"o\",\"\u{fffd}b\"]\n"),
            (&[b"\xf0", b"\x80"], "[1.500000,\"o\",\"\u{fffd}\u{fffd}\"]\n"),
            (&[b"\xff\xfea"], "[1.500000,\"o\",\"\u{fffd}\u{fffd}a\"]\n"),
            (&[b"\xe2\x82"], "[2.000000,\"o\",\"\u{fffd}\"]\n"),
            (&[b""], ""),
        ];
        for (chunks, expected) in cases {
            assert_eq!(encoded(chunks), *expected, "{chunks:?}");
        }
    }

    #[test]
    fn every_kind_of_event_reads_back() {
        let events = vec![
            (0, Kind::Output("$ ".into())),
            (1200, Kind::Input("ls\r".into())),
            (1300, Kind::Resize { columns: 132, rows: 43 }),
            (1300, Kind::Marker("sftp: get /etc/motd".into())),
        ];
        let bytes = cast(&events);
        let mut reader = Reader::from_bytes(bytes.clone()).unwrap();
        for _ in 0..2 {
            let read: Vec<_> = reader
                .by_ref()
                .map(|e| e.map(|e| (u64::try_from(e.time.as_millis()).unwrap(), e.kind)).unwrap())
                .collect();
            assert_eq!(read, events);
            assert_eq!(*reader.header(), header());
            assert!(!reader.truncated());
            assert_eq!(reader.whole_bytes(), u64::try_from(bytes.len()).unwrap());
            reader.rewind().unwrap();
        }
    }

    #[test]
    fn time_does_not_run_backwards() {
        let bytes = outputs(&[(500, "a"), (400, "b")]);
        let times: Vec<_> =
            Reader::from_bytes(bytes).unwrap().map(|e| e.unwrap().time.as_millis()).collect();
        assert_eq!(times, [500, 500]);
        let foreign =
            "{\"version\":2,\"width\":1,\"height\":1}\n[2,\"o\",\"a\"]\n[1e0,\"o\",\"b\"]\n";
        let times: Vec<_> = Reader::from_bytes(foreign.into())
            .unwrap()
            .map(|e| e.unwrap().time.as_millis())
            .collect();
        assert_eq!(times, [2000, 2000]);
    }

    #[test]
    fn a_recording_cut_off_anywhere_reads_up_to_there() {
        let whole = outputs(&[(0, "one\r\n"), (10, "two\r\n"), (20, "three\r\n")]);
        let ends: Vec<_> =
            whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
        for cut in ends[0]..whole.len() {
            let mut reader = Reader::from_bytes(whole.slice(..cut)).unwrap();
            let events = reader.by_ref().map(Result::unwrap).count();
            // A line without its break is whole all the same.
            let expected = ends[1..].iter().filter(|end| **end <= cut + 1).count();
            assert_eq!(events, expected, "{cut}");
            let mid_line = !ends.contains(&cut) && !ends.contains(&(cut + 1));
            assert_eq!(reader.truncated(), mid_line, "{cut}");
        }
    }

    #[test]
    fn a_compressed_recording_reads_like_a_plain_one_and_survives_a_cut() {
        let events: Vec<_> =
            (0..5000).map(|n| (n, Kind::Output(format!("{}\r\n", n * n)))).collect();
        let plain = cast(&events);
        let packed = Bytes::from(zstd::encode_all(&plain[..], 3).unwrap());
        let mut reader = Reader::from_bytes(packed.clone()).unwrap();
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 5000);
        assert!(!reader.truncated());

        let mut reader = Reader::from_bytes(packed.slice(..packed.len() - 2)).unwrap();
        let read = reader.by_ref().map(Result::unwrap).count();
        assert!(read > 0 && reader.truncated(), "{read}");
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let head = "{\"version\":2,\"width\":80,\"height\":24}\n";
        let error = |text: String| {
            let reader = Reader::from_bytes(text.into());
            reader.and_then(|r| r.collect::<Result<Vec<_>, _>>()).unwrap_err().to_string()
        };
        assert!(error(String::new()).contains("no header"));
        assert!(error("hello\n".into()).contains("no header"));
        assert!(error("{\"version\":3}\n".into()).contains("version 3"));
        assert!(error(format!("{head}x\n[0,\"o\",\"\"]\n")).contains("line 2"));
        assert!(error(format!("{head}[-1,\"o\",\"\"]\n")).contains("line 2"));
        assert!(
            error(format!("{head}[0,\"o\",\"{}\"]\n", "x".repeat(MAX_LINE))).contains("longer")
        );
        let hole = format!("{head}[0,\"o\",\"a\"]\n\0\0\0\0");
        let mut reader = Reader::from_bytes(hole.into()).unwrap();
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 1);
        assert!(reader.truncated());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_read_back_as_their_text(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
        ) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let lines = encoded(&chunks);
            prop_assert!(!lines.chars().any(|c| c != '\n' && is_unsafe(c)));
            let bytes = [header().to_line(), lines.into_bytes()].concat();
            let read: String = Reader::from_bytes(bytes.into()).unwrap().map(|e| match e.unwrap().kind {
                Kind::Output(text) => text,
                other => format!("{other:?}"),
            }).collect();
            prop_assert_eq!(read, String::from_utf8_lossy(&chunks.concat()).into_owned());
        }
    }
}
