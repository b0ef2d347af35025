//! The files and directories that are open on the target, and what was done to each.
//!
//! Always holds: a handle is known from the server's answer until the client asks to close it; a
//! file is remembered until the server has answered that too, or the channel has ended.

use std::collections::BTreeMap;

use super::event::{FileEvent, Operation, Outcome, RemotePath};
use super::packet::status;

/// How many files and directories may be open, or being closed.
pub(super) const MAX_FILES: usize = 1024;

/// A file or directory that the server opened.
#[derive(Debug)]
pub(super) struct File {
    path: RemotePath,
    operation: Operation,
    read: u64,
    written: u64,
    /// The first thing about it that failed or was refused.
    trouble: Option<Outcome>,
}

impl File {
    /// Counts bytes that went to the client.
    pub(super) fn add_read(&mut self, bytes: u64) {
        self.read = self.read.saturating_add(bytes);
    }

    /// Counts bytes that the server says are written.
    pub(super) fn add_written(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Notes how a part of the work on it ended; the first that was not well stays.
    pub(super) fn note(&mut self, outcome: Outcome) {
        self.trouble.get_or_insert(outcome);
    }

    /// Notes what the server said to a read, a write or the closing.
    pub(super) fn note_status(&mut self, code: u32, message: &[u8]) {
        if !matches!(code, status::OK | status::EOF) {
            self.note(Outcome::failed(code, message));
        }
    }

    fn event(self, otherwise: Outcome) -> FileEvent {
        let operation = match self.operation {
            Operation::Both if self.written == 0 && self.read > 0 => Operation::Download,
            Operation::Both if self.written > 0 && self.read == 0 => Operation::Upload,
            as_opened => as_opened,
        };
        let outcome = self.trouble.unwrap_or(otherwise);
        FileEvent {
            bytes_read: self.read,
            bytes_written: self.written,
            ..FileEvent::new(operation, self.path, outcome)
        }
    }
}

/// The files and directories of one channel.
#[derive(Debug, Default)]
pub(super) struct Files {
    handles: BTreeMap<Box<[u8]>, u64>,
    files: BTreeMap<u64, File>,
    next: u64,
    path_bytes: usize,
}

impl Files {
    /// How many are open or being closed.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// How many bytes of paths they hold.
    pub(super) fn path_bytes(&self) -> usize {
        self.path_bytes
    }

    /// Remembers what the server opened. A handle that it has given already means the new file
    /// from now on; what became of the old one nobody can tell.
    pub(super) fn open(
        &mut self,
        handle: &[u8],
        path: RemotePath,
        operation: Operation,
    ) -> Option<FileEvent> {
        let before = self.handles.insert(handle.into(), self.next);
        self.path_bytes += path.as_bytes().len();
        let file = File { path, operation, read: 0, written: 0, trouble: None };
        self.files.insert(self.next, file);
        self.next += 1;
        before.and_then(|before| self.end(before, Outcome::Interrupted))
    }

    /// The file with this handle.
    pub(super) fn find(&self, handle: &[u8]) -> Option<u64> {
        self.handles.get(handle).copied()
    }

    /// The path of the file with this handle.
    pub(super) fn path(&self, handle: &[u8]) -> Option<&RemotePath> {
        self.files.get(&self.find(handle)?).map(|file| &file.path)
    }

    /// The file itself, until it has ended.
    pub(super) fn get(&mut self, file: u64) -> Option<&mut File> {
        self.files.get_mut(&file)
    }

    /// Forgets a handle that the client asks to close.
    pub(super) fn close(&mut self, handle: &[u8]) -> Option<u64> {
        self.handles.remove(handle)
    }

    /// Forgets a file, and tells what was done to it.
    pub(super) fn end(&mut self, file: u64, outcome: Outcome) -> Option<FileEvent> {
        let file = self.files.remove(&file)?;
        self.path_bytes -= file.path.as_bytes().len();
        Some(file.event(outcome))
    }

    /// What was done to everything that is open when the channel has ended.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = FileEvent> {
        let files = std::mem::take(self).files;
        files.into_values().map(|file| file.event(Outcome::Interrupted))
    }
}
