//! The SFTP filter: forwards what the rights allow, answers the rest, and tells what happened.
//!
//! Always holds: a request is forwarded whole or not at all; no answer of ours lies within a
//! packet of the server's; every handle a forwarded request uses is one whose opening was seen;
//! what is audited is told before the answer is passed on.

use bytes::{BufMut, Bytes, BytesMut};

use super::event::{FileEvent, Operation, Outcome, RemotePath};
use super::files::{Files, MAX_FILES};
use super::packet::{self, Answer, Ask, Error, Reply, Request, Side, Step, flag, kind, status};
use super::requests::{MAX_WAITING, Pending, Requests};
use super::rights::{Refusal, Rights};
use super::stream::{Head, Run, Stream};

/// The version that is spoken. With a later one packets would mean something else.
const VERSION: u32 = 3;
/// How many bytes of paths are remembered, of open files and waiting requests together.
const MAX_PATH_BYTES: usize = 1024 * 1024;

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send these bytes to the target's server.
    ToServer(Bytes),
    /// Send these bytes to the client.
    ToClient(Bytes),
    /// Record this.
    Event(FileEvent),
}

/// The filter of one channel that runs the `sftp` subsystem (draft-ietf-secsh-filexfer-02).
///
/// Feed it what each side sends, and do what it says in the order in which it says it. After an
/// error, and in any case when the channel ends, call [`Filter::finish`].
#[derive(Debug)]
pub struct Filter {
    rights: Rights,
    client: Stream,
    server: Stream,
    handshake: Handshake,
    requests: Requests,
    files: Files,
    /// The request at hand, if it is not forwarded.
    refusing: Option<(u32, Refusal)>,
    /// The file that the data packet at hand comes from, and how much data is still to come.
    counting: Option<(u64, u64)>,
    broken: Option<Error>,
}

/// Section 4: the client names its version, the server answers with the one to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Nothing,
    Asked,
    Done,
}

impl Filter {
    /// A filter for a channel on which nothing was sent yet.
    pub fn new(rights: Rights) -> Self {
        Self {
            rights,
            client: Stream::default(),
            server: Stream::default(),
            handshake: Handshake::Nothing,
            requests: Requests::default(),
            files: Files::default(),
            refusing: None,
            counting: None,
            broken: None,
        }
    }

    /// Takes what the client sent.
    ///
    /// # Errors
    /// When it is not SFTP or beyond all limits. What `out` says is still to be done; then the
    /// channel has to end. Every later call fails alike.
    pub fn from_client(&mut self, chunk: Bytes, out: &mut Vec<Action>) -> Result<(), Error> {
        let mut run = Run::new(chunk, out, Action::ToServer);
        let done = self.take_requests(&mut run);
        run.flush();
        self.broken = done.err();
        done
    }

    /// Takes what the target's server sent.
    ///
    /// # Errors
    /// As for [`Filter::from_client`].
    pub fn from_server(&mut self, chunk: Bytes, out: &mut Vec<Action>) -> Result<(), Error> {
        let mut run = Run::new(chunk, out, Action::ToClient);
        let done = self.take_replies(&mut run);
        run.flush();
        self.broken = done.err();
        done
    }

    /// Tells what was still going on when the channel ended.
    pub fn finish(&mut self, out: &mut Vec<Action>) {
        out.extend(self.files.finish().map(Action::Event));
        out.extend(self.requests.finish().map(Action::Event));
    }

    /// How many bytes are held, and how many files and requests are remembered.
    #[cfg(test)]
    pub(super) fn weight(&self) -> (usize, usize) {
        let paths = self.files.path_bytes() + self.requests.path_bytes();
        let held = self.client.held() + self.server.held();
        (held + paths, self.files.len() + self.requests.len())
    }

    fn take_requests(&mut self, run: &mut Run<'_>) -> Result<(), Error> {
        self.broken.map_or(Ok(()), Err)?;
        while !run.rest().is_empty() {
            if self.client.between_packets() {
                let measure = |seen: &[u8]| packet::request(seen).map(Step::measure);
                let Some(head) = self.client.head(run, measure)? else { break };
                self.take_request(&head, run)?;
            } else {
                self.client.body(run, self.refusing.is_none());
            }
            if self.client.between_packets()
                && let Some((id, refusal)) = self.refusing.take()
            {
                self.requests.insert(id, Pending::Refused(refusal));
                self.answer_refused(run);
            }
        }
        Ok(())
    }

    fn take_request(&mut self, head: &Head, run: &mut Run<'_>) -> Result<(), Error> {
        let Step::Head { value: request, body, .. } = packet::request(&head.bytes)? else {
            return Err(Error::Malformed(Side::Client));
        };
        match (self.handshake, request) {
            (Handshake::Nothing, Request::Init(version)) => {
                self.handshake = Handshake::Asked;
                pass_init(version, head, body, run);
                Ok(())
            }
            (Handshake::Done, Request::Ask(id, ask)) => self.take_ask(id, &ask, head, run),
            _ => Err(Error::Handshake(Side::Client)),
        }
    }

    fn take_ask(
        &mut self,
        id: u32,
        ask: &Ask<'_>,
        head: &Head,
        run: &mut Run<'_>,
    ) -> Result<(), Error> {
        if self.requests.contains(id) {
            return Err(Error::ReusedId(id));
        }
        match self.admit(ask) {
            Ok(pending) => {
                self.requests.insert(id, pending);
                run.pass_head(head);
            }
            Err(_) if self.requests.is_flooded() => return Err(Error::Flooded),
            Err(refusal) => {
                self.tell_refused(ask, refusal, run);
                run.skip_head(head);
                self.refusing = Some((id, refusal));
            }
        }
        Ok(())
    }

    /// The decision about one request: what to remember when it is forwarded, or why it is not.
    fn admit(&mut self, ask: &Ask<'_>) -> Result<Pending, Refusal> {
        self.rights.check(ask)?;
        if self.requests.len() >= MAX_WAITING {
            return Err(Refusal::TOO_MANY_REQUESTS);
        }
        let file = |handle| self.files.find(handle).ok_or(Refusal::NO_HANDLE);
        Ok(match *ask {
            Ask::Open { path, .. } | Ask::List(path) => {
                if self.files.len() + self.requests.opening() >= MAX_FILES {
                    return Err(Refusal::TOO_MANY_FILES);
                }
                Pending::Open { path: self.remember(path)?, operation: operation_of(ask) }
            }
            Ask::Read(handle) => Pending::Read { file: file(handle)? },
            Ask::Write { handle, len } => Pending::Write { file: file(handle)?, len },
            Ask::Close(handle) => {
                Pending::Close { file: self.files.close(handle).ok_or(Refusal::NO_HANDLE)? }
            }
            Ask::Change { path, second, operation } => Pending::Change {
                operation,
                path: self.remember(path)?,
                second: second.map(|path| self.remember(path)).transpose()?,
            },
            Ask::ChangeOpen { handle } => Pending::Change {
                operation: Operation::Setstat,
                path: self.files.path(handle).ok_or(Refusal::NO_HANDLE)?.clone(),
                second: None,
            },
            Ask::Copy { from, to } => Pending::Change {
                operation: Operation::Copy,
                path: self.files.path(from).ok_or(Refusal::NO_HANDLE)?.clone(),
                second: Some(self.files.path(to).ok_or(Refusal::NO_HANDLE)?.clone()),
            },
            _ => Pending::Look,
        })
    }

    fn remember(&self, path: &[u8]) -> Result<RemotePath, Refusal> {
        if self.files.path_bytes() + self.requests.path_bytes() + path.len() > MAX_PATH_BYTES {
            return Err(Refusal::TOO_MANY_REQUESTS);
        }
        Ok(RemotePath::new(path))
    }

    /// Tells of a request that is not forwarded, as far as it names something.
    fn tell_refused(&mut self, ask: &Ask<'_>, refusal: Refusal, run: &mut Run<'_>) {
        let outcome = match refusal.code {
            status::PERMISSION_DENIED => Outcome::Refused,
            code => Outcome::failed(code, refusal.message.as_bytes()),
        };
        let (path, second) = match *ask {
            Ask::Open { path, .. } | Ask::List(path) => (RemotePath::new(path), None),
            Ask::Change { path, second, .. } => {
                (RemotePath::new(path), second.map(RemotePath::new))
            }
            Ask::ChangeOpen { handle } => match self.files.path(handle) {
                Some(path) => (path.clone(), None),
                None => return,
            },
            Ask::Copy { from, to } => match (self.files.path(from), self.files.path(to)) {
                (Some(from), Some(to)) => (from.clone(), Some(to.clone())),
                _ => return,
            },
            Ask::Read(handle) | Ask::Write { handle, .. } => {
                if let Some(file) = self.files.find(handle).and_then(|file| self.files.get(file)) {
                    file.note(outcome);
                }
                return;
            }
            _ => return,
        };
        let event = FileEvent::new(operation_of(ask), path, outcome);
        run.emit(Action::Event(FileEvent { second, ..event }));
    }

    /// Answers what was refused and whose turn it is, unless the server is in mid-packet.
    fn answer_refused(&mut self, run: &mut Run<'_>) {
        while self.server.between_packets()
            && let Some(status) = self.requests.next_refusal()
        {
            run.emit(Action::ToClient(status));
        }
    }

    fn take_replies(&mut self, run: &mut Run<'_>) -> Result<(), Error> {
        self.broken.map_or(Ok(()), Err)?;
        while !run.rest().is_empty() {
            if self.server.between_packets() {
                let measure = |seen: &[u8]| packet::reply(seen).map(Step::measure);
                let Some(head) = self.server.head(run, measure)? else { break };
                self.take_reply(&head, run)?;
                run.pass_head(&head);
            } else {
                let len = self.server.body(run, true);
                self.count(len);
            }
            self.answer_refused(run);
        }
        Ok(())
    }

    fn take_reply(&mut self, head: &Head, run: &mut Run<'_>) -> Result<(), Error> {
        let Step::Head { value: reply, .. } = packet::reply(&head.bytes)? else {
            return Err(Error::Malformed(Side::Server));
        };
        match (self.handshake, reply) {
            (Handshake::Asked, Reply::Version(version)) if version <= VERSION => {
                self.handshake = Handshake::Done;
            }
            (Handshake::Asked, Reply::Version(version)) => return Err(Error::Version(version)),
            (Handshake::Done, Reply::Answer(id, answer)) => {
                self.counting = None;
                if let Some(event) = self.take_answer(id, &answer) {
                    run.emit(Action::Event(event));
                }
            }
            _ => return Err(Error::Handshake(Side::Server)),
        }
        Ok(())
    }

    /// Notes the answer to a request. One to nothing that was asked passes, and means nothing.
    fn take_answer(&mut self, id: u32, answer: &Answer<'_>) -> Option<FileEvent> {
        match (self.requests.answered(id)?, answer) {
            (Pending::Open { path, operation }, Answer::Handle(handle)) => {
                self.files.open(handle, path, operation)
            }
            (Pending::Open { path, operation }, answer) => {
                let failed = failure(answer).unwrap_or_else(unexpected);
                Some(FileEvent::new(operation, path, failed))
            }
            (Pending::Read { file }, Answer::Data(len)) => {
                self.counting = Some((file, u64::from(*len)));
                None
            }
            (Pending::Read { file }, Answer::Status { code, message }) => {
                self.files.get(file)?.note_status(*code, message);
                None
            }
            (Pending::Write { file, len }, Answer::Status { code, message }) => {
                let file = self.files.get(file)?;
                file.note_status(*code, message);
                if *code == status::OK {
                    file.add_written(u64::from(len));
                }
                None
            }
            (Pending::Close { file }, answer) => {
                if let Answer::Status { code, message } = answer {
                    self.files.get(file)?.note_status(*code, message);
                }
                self.files.end(file, Outcome::Ok)
            }
            (Pending::Change { operation, path, second }, answer) => {
                let outcome = match answer {
                    Answer::Status { code: status::OK, .. } => Outcome::Ok,
                    answer => failure(answer).unwrap_or_else(unexpected),
                };
                Some(FileEvent { second, ..FileEvent::new(operation, path, outcome) })
            }
            _ => None,
        }
    }

    /// Counts bytes of a data packet that were passed on.
    fn count(&mut self, len: usize) {
        if let Some((file, left)) = &mut self.counting {
            let data = u64::try_from(len).unwrap_or(u64::MAX).min(*left);
            *left -= data;
            if let Some(file) = self.files.get(*file) {
                file.add_read(data);
            }
        }
    }
}

/// Forwards SSH_FXP_INIT (section 4), asking for version 3 where the client offers a later one.
fn pass_init(version: u32, head: &Head, body: usize, run: &mut Run<'_>) {
    if version <= VERSION {
        return run.pass_head(head);
    }
    run.skip_head(head);
    let mut init = BytesMut::with_capacity(head.bytes.len());
    // Type and version, and what follows: the length was read from 32 bits.
    init.put_u32(u32::try_from(5 + body).unwrap_or_default());
    init.put_u8(kind::INIT);
    init.put_u32(VERSION);
    run.emit(Action::ToServer(init.freeze()));
}

/// What the events about a request call it.
fn operation_of(ask: &Ask<'_>) -> Operation {
    match *ask {
        Ask::Change { operation, .. } => operation,
        Ask::ChangeOpen { .. } => Operation::Setstat,
        Ask::Copy { .. } => Operation::Copy,
        Ask::Open { flags, .. } => match (flags & flag::READ != 0, flags & !flag::READ != 0) {
            (true, true) => Operation::Both,
            (false, true) => Operation::Upload,
            (_, false) => Operation::Download,
        },
        _ => Operation::List,
    }
}

fn failure(answer: &Answer<'_>) -> Option<Outcome> {
    match answer {
        Answer::Status { code, message } if *code != status::OK => {
            Some(Outcome::failed(*code, message))
        }
        _ => None,
    }
}

fn unexpected() -> Outcome {
    Outcome::failed(status::BAD_MESSAGE, b"the target's answer does not fit the request")
}
