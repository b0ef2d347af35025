//! The old scp protocol, watched and never touched: `scp -t` and `scp -f` on the target.
//!
//! There is no standard; OpenSSH's scp.c is one. The *source* sends lines (`T` times, `C` file,
//! `D` enters and `E` leaves a directory) and data, the *sink* answers each with a byte: 0 is
//! yes, 1 an error and 2 the end, both with a line of text.
//!
//! Always holds: a transfer is told as done only when every byte of it has passed, the source has
//! said that it was good, and the sink has said so after that. What does not follow the protocol
//! is told once as [`Seen::NotScp`]; nothing after it is looked at.

mod line;

use std::collections::VecDeque;

use self::line::{Control, Line, take_line};
use super::event::{FileEvent, Operation, Outcome, RemotePath};
use super::packet::status;

/// The longest path of a directory that is remembered.
const MAX_PATH: usize = 8192;
/// How many answers the sink may owe; OpenSSH's source waits for each.
const MAX_EXPECTED: usize = 32;

/// Which way files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// To the target: `scp -t` runs there.
    Upload,
    /// From the target: `scp -f` runs there.
    Download,
}

impl Transfer {
    /// What a command is about to do, by its words: `scp`, options with a `t` or an `f` among
    /// them, and a path. A shell may do otherwise, which the [`Observer`] notices.
    pub fn of_command(command: &[u8]) -> Option<Self> {
        let mut words = command.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let program = words.next()?.rsplit(|b| *b == b'/').next()?;
        let options: Vec<u8> = words
            .take_while(|word| word.starts_with(b"-") && *word != b"--")
            .flatten()
            .copied()
            .collect();
        match (program == b"scp", options.contains(&b't'), options.contains(&b'f')) {
            (true, true, false) => Some(Self::Upload),
            (true, false, true) => Some(Self::Download),
            _ => None,
        }
    }

    fn operation(self) -> Operation {
        match self {
            Self::Upload => Operation::Upload,
            Self::Download => Operation::Download,
        }
    }
}

/// What an observer noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A file was transferred, or was not.
    Event(FileEvent),
    /// This is not the scp protocol, or no longer. Said once, and the last thing said.
    NotScp,
}

/// The observer of one channel.
///
/// Show it what each side sent before passing that on: the answer to a line has to come after
/// the line.
#[derive(Debug)]
pub struct Observer {
    transfer: Transfer,
    source: Source,
    /// A line that the source has not finished.
    line: Vec<u8>,
    /// Whether the source has sent anything since its last complete line.
    moved: bool,
    sink: Sink,
    report: Vec<u8>,
    /// What the sink has still to answer.
    expected: VecDeque<Expected>,
    /// The file whose data the source is sending, or about to.
    file: Option<File>,
    /// The directory that the source is in, and how long its path was before each name.
    folder: Vec<u8>,
    folders: Vec<usize>,
    /// The end that said it gives up. It has nothing more to say.
    gone: Option<End>,
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Sink,
}

/// What the source says next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Line,
    /// This many bytes of a file.
    Data(u64),
    /// Whether the data was good.
    Verdict,
    /// Why it was not.
    Report,
}

/// What the sink says next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Answer,
    Report { fatal: bool },
}

/// What the sink answers.
#[derive(Debug)]
enum Expected {
    /// That it is ready, before anything is sent; to times; and to leaving a directory.
    Plain,
    Enter,
    Open,
    /// To a file whose data has all passed.
    Done(File),
}

#[derive(Debug)]
struct File {
    path: RemotePath,
    passed: u64,
    /// What went wrong, as either side said first.
    failure: Option<Outcome>,
    /// Whether the sink has complained before it was asked.
    answered: bool,
}

/// What the sink answered.
enum Answer {
    Yes,
    No(Outcome),
}

impl Observer {
    /// An observer of a channel on which nothing was sent yet.
    pub fn new(transfer: Transfer) -> Self {
        Self {
            transfer,
            source: Source::Line,
            line: Vec::new(),
            moved: false,
            sink: Sink::Answer,
            report: Vec::new(),
            expected: VecDeque::from([Expected::Plain]),
            file: None,
            folder: Vec::new(),
            folders: Vec::new(),
            gone: None,
            over: false,
        }
    }

    /// Looks at what the client sent, before it is passed on.
    pub fn from_client(&mut self, bytes: &[u8], out: &mut Vec<Seen>) {
        match self.transfer {
            Transfer::Upload => self.take_source(bytes, out),
            Transfer::Download => self.take_sink(bytes, out),
        }
    }

    /// Looks at what the target's command sent on its standard output, before it is passed on.
    pub fn from_server(&mut self, bytes: &[u8], out: &mut Vec<Seen>) {
        match self.transfer {
            Transfer::Upload => self.take_sink(bytes, out),
            Transfer::Download => self.take_source(bytes, out),
        }
    }

    /// Tells what was still going on when the channel ended.
    pub fn finish(&mut self, out: &mut Vec<Seen>) {
        self.over = true;
        let done = self.expected.drain(..).filter_map(|expected| match expected {
            Expected::Done(file) => Some(file),
            _ => None,
        });
        for file in done.chain(self.file.take()) {
            out.push(told(self.transfer, file, Outcome::Interrupted));
        }
        (self.line, self.report, self.folder, self.folders) = Default::default();
    }

    fn not_scp(&mut self, out: &mut Vec<Seen>) {
        self.finish(out);
        out.push(Seen::NotScp);
    }

    fn take_source(&mut self, mut bytes: &[u8], out: &mut Vec<Seen>) {
        while !self.over && !bytes.is_empty() {
            if self.gone == Some(End::Source) {
                return self.not_scp(out);
            }
            self.moved = true;
            match self.source {
                Source::Data(left) => bytes = self.pass_data(left, bytes),
                Source::Verdict => {
                    let verdict = first(&mut bytes);
                    match verdict {
                        0 => self.sent(None, out),
                        1 | 2 => self.source = Source::Report,
                        _ => self.not_scp(out),
                    }
                }
                Source::Line | Source::Report => match take_line(&mut self.line, &mut bytes) {
                    Line::Begun => {}
                    Line::Complete(line) if self.source == Source::Report => {
                        self.sent(Some(failure(&line)), out);
                    }
                    Line::Complete(line) => self.take_control(&line, out),
                    Line::TooLong => self.not_scp(out),
                },
            }
        }
    }

    /// Passes over what `bytes` holds of a file's data: what comes after it.
    fn pass_data<'a>(&mut self, left: u64, bytes: &'a [u8]) -> &'a [u8] {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let passed = u64::try_from(len).unwrap_or(left);
        if let Some(file) = &mut self.file {
            file.passed += passed;
        }
        self.source = if passed == left { Source::Verdict } else { Source::Data(left - passed) };
        bytes.get(len..).unwrap_or_default()
    }

    /// The source is through with a file, well or not.
    fn sent(&mut self, failure: Option<Outcome>, out: &mut Vec<Seen>) {
        self.source = Source::Line;
        let Some(mut file) = self.file.take() else { return };
        file.failure = file.failure.or(failure);
        if file.answered {
            out.push(told(self.transfer, file, Outcome::Interrupted));
        } else {
            self.expect(Expected::Done(file), out);
        }
    }

    /// A line between files.
    fn take_control(&mut self, line: &[u8], out: &mut Vec<Seen>) {
        match Control::read(line) {
            Some(Control::Complaint { text, fatal }) => {
                self.gone = self.gone.or(fatal.then_some(End::Source));
                self.tell_failure(failure(text), out);
            }
            Some(Control::Times) => self.expect(Expected::Plain, out),
            Some(Control::File { size, name }) => {
                let path = RemotePath::new(&joined(&self.folder, name));
                self.file = Some(File { path, passed: 0, failure: None, answered: false });
                self.source = if size == 0 { Source::Verdict } else { Source::Data(size) };
                self.expect(Expected::Open, out);
            }
            Some(Control::Enter { name }) if self.folder.len() + name.len() < MAX_PATH => {
                self.folders.push(self.folder.len());
                self.folder = joined(&self.folder, name);
                self.expect(Expected::Enter, out);
            }
            Some(Control::Leave) if !self.folders.is_empty() => {
                self.leave();
                self.expect(Expected::Plain, out);
            }
            _ => self.not_scp(out),
        }
    }

    fn leave(&mut self) {
        self.folder.truncate(self.folders.pop().unwrap_or_default());
    }

    fn expect(&mut self, expected: Expected, out: &mut Vec<Seen>) {
        self.moved = false;
        self.expected.push_back(expected);
        if self.expected.len() > MAX_EXPECTED {
            self.not_scp(out);
        }
    }

    fn take_sink(&mut self, mut bytes: &[u8], out: &mut Vec<Seen>) {
        while !self.over && !bytes.is_empty() {
            if self.gone == Some(End::Sink) {
                return self.not_scp(out);
            }
            match self.sink {
                Sink::Answer => match first(&mut bytes) {
                    0 => self.answered(Answer::Yes, out),
                    kind @ (1 | 2) => self.sink = Sink::Report { fatal: kind == 2 },
                    _ => self.not_scp(out),
                },
                Sink::Report { fatal } => match take_line(&mut self.report, &mut bytes) {
                    Line::Begun => {}
                    Line::Complete(text) => {
                        self.sink = Sink::Answer;
                        self.gone = self.gone.or(fatal.then_some(End::Sink));
                        self.answered(Answer::No(failure(&text)), out);
                    }
                    Line::TooLong => self.not_scp(out),
                },
            }
        }
    }

    fn answered(&mut self, answer: Answer, out: &mut Vec<Seen>) {
        match (self.expected.pop_front(), answer) {
            (Some(Expected::Done(file)), Answer::Yes) => {
                out.push(told(self.transfer, file, Outcome::Ok));
            }
            (Some(Expected::Done(file)), Answer::No(failure)) => {
                let failure = file.failure.clone().unwrap_or(failure);
                out.push(told(self.transfer, File { failure: None, ..file }, failure));
            }
            // An answer to nothing.
            (None, Answer::Yes) => self.not_scp(out),
            (Some(_), Answer::Yes) => {}
            (Some(Expected::Plain), Answer::No(failure)) => self.tell_failure(failure, out),
            // Whether the source's next bytes are data or a line depends on an answer for which
            // it did not wait.
            (Some(Expected::Open | Expected::Enter), Answer::No(_))
                if self.moved || !self.expected.is_empty() =>
            {
                self.not_scp(out);
            }
            (Some(Expected::Open), Answer::No(failure)) => {
                self.source = Source::Line;
                if let Some(file) = self.file.take() {
                    out.push(told(self.transfer, file, failure));
                }
            }
            (Some(Expected::Enter), Answer::No(failure)) => {
                self.tell_failure(failure, out);
                self.leave();
            }
            // Old versions of OpenSSH complain about a file while they take it.
            (None, Answer::No(failure)) => match &mut self.file {
                Some(file) => {
                    file.answered = true;
                    file.failure.get_or_insert(failure);
                }
                None => self.tell_failure(failure, out),
            },
        }
    }

    /// A failure that belongs to no file of which more is known than its directory.
    fn tell_failure(&self, failure: Outcome, out: &mut Vec<Seen>) {
        let path = RemotePath::new(&self.folder);
        out.push(Seen::Event(FileEvent::new(self.transfer.operation(), path, failure)));
    }
}

/// The event about a file that has ended.
fn told(transfer: Transfer, file: File, otherwise: Outcome) -> Seen {
    let outcome = file.failure.unwrap_or(otherwise);
    let event = FileEvent::new(transfer.operation(), file.path, outcome);
    Seen::Event(match transfer {
        Transfer::Upload => FileEvent { bytes_written: file.passed, ..event },
        Transfer::Download => FileEvent { bytes_read: file.passed, ..event },
    })
}

fn failure(text: &[u8]) -> Outcome {
    Outcome::failed(status::FAILURE, text.strip_prefix(b"scp: ").unwrap_or(text))
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

fn first(bytes: &mut &[u8]) -> u8 {
    match bytes.split_first() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        // Asked for only where there is one; no such byte is part of the protocol.
        None => u8::MAX,
    }
}
