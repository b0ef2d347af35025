//! What is known about one SFTP channel: the decision about each request, and what its answer
//! means.
//!
//! Always holds: of what was forwarded nothing is forgotten before its answer; what is beyond the
//! bounds is refused.

use bytes::Bytes;

use super::event::{FileEvent, Operation, Outcome, RemotePath};
use super::files::{Files, MAX_FILES};
use super::packet::{Answer, Ask, Error, flag, status};
use super::requests::{MAX_WAITING, Pending, Requests};
use super::rights::{Refusal, Rights};

/// How many bytes of paths are remembered, of open files and waiting requests together.
const MAX_PATH_BYTES: usize = 1024 * 1024;

/// The rights, the requests and the files of one channel.
#[derive(Debug)]
pub(super) struct Ledger {
    rights: Rights,
    requests: Requests,
    files: Files,
    /// The file that the data packet at hand comes from, and how much data is still to come.
    counting: Option<(u64, u64)>,
}

impl Ledger {
    pub(super) fn new(rights: Rights) -> Self {
        Self { rights, requests: Requests::default(), files: Files::default(), counting: None }
    }

    /// Decides about a request, and remembers it if it is to be forwarded.
    ///
    /// # Errors
    /// When the channel has to end.
    pub(super) fn admit(&mut self, id: u32, ask: &Ask<'_>) -> Result<Result<(), Refusal>, Error> {
        if self.requests.contains(id) {
            return Err(Error::ReusedId(id));
        }
        match self.pending(ask) {
            Ok(pending) => {
                self.requests.insert(id, pending, ask.answer_size());
                Ok(Ok(()))
            }
            Err(_) if self.requests.is_flooded() => Err(Error::Flooded),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Lets a refusal wait for its turn.
    pub(super) fn refuse(&mut self, id: u32, refusal: Refusal) {
        self.requests.insert(id, Pending::Refused(refusal), 0);
    }

    /// The refusal whose turn it is, as a packet.
    pub(super) fn next_refusal(&mut self) -> Option<Bytes> {
        self.requests.next_refusal()
    }

    /// How many bytes of answers the server still owes, about.
    pub(super) fn expected(&self) -> usize {
        self.requests.expected()
    }

    /// What was still going on when the channel ended.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = FileEvent> {
        self.files.finish().chain(self.requests.finish())
    }

    /// How many bytes of paths, and how many files and requests are remembered.
    #[cfg(test)]
    pub(super) fn weight(&self) -> (usize, usize) {
        let paths = self.files.path_bytes() + self.requests.path_bytes();
        (paths, self.files.len() + self.requests.len())
    }

    /// What to remember of a request that is forwarded, or why it is not.
    fn pending(&mut self, ask: &Ask<'_>) -> Result<Pending, Refusal> {
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
            Ask::Read { handle, .. } => Pending::Read { file: file(handle)? },
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

    /// What there is to tell of a request that is not forwarded, if it names something.
    pub(super) fn refused(&mut self, ask: &Ask<'_>, refusal: Refusal) -> Option<FileEvent> {
        let outcome = match refusal.code {
            status::PERMISSION_DENIED => Outcome::Refused,
            code => Outcome::failed(code, refusal.message.as_bytes()),
        };
        let (path, second) = match *ask {
            Ask::Open { path, .. } | Ask::List(path) => (RemotePath::new(path), None),
            Ask::Change { path, second, .. } => {
                (RemotePath::new(path), second.map(RemotePath::new))
            }
            Ask::ChangeOpen { handle } => (self.files.path(handle)?.clone(), None),
            Ask::Copy { from, to } => {
                (self.files.path(from)?.clone(), Some(self.files.path(to)?.clone()))
            }
            Ask::Read { handle, .. } | Ask::Write { handle, .. } => {
                // Told when the file is closed.
                let file = self.files.find(handle)?;
                self.files.get(file)?.note(outcome);
                return None;
            }
            _ => return None,
        };
        Some(FileEvent { second, ..FileEvent::new(operation_of(ask), path, outcome) })
    }

    /// Notes the answer to a request. One to nothing that was asked passes, and means nothing.
    pub(super) fn answered(&mut self, id: u32, answer: &Answer<'_>) -> Option<FileEvent> {
        self.counting = None;
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
            (Pending::Close { file }, Answer::Status { code, message }) => {
                self.files.get(file)?.note_status(*code, message);
                self.files.end(file, Outcome::Ok)
            }
            (Pending::Close { file }, _) => self.files.end(file, unexpected()),
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
    pub(super) fn count(&mut self, len: usize) {
        if let Some((file, left)) = &mut self.counting {
            let data = u64::try_from(len).unwrap_or(u64::MAX).min(*left);
            *left -= data;
            if let Some(file) = self.files.get(*file) {
                file.add_read(data);
            }
        }
    }
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
