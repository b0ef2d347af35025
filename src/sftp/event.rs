//! What happened to a file, as the audit log and an auditor want to know it.
//!
//! Always holds: a path is kept as the bytes that were sent; only its printable form is shown.

use std::fmt;
use std::sync::Arc;

use crate::domain::{printable, words};

words! {
    /// What was done, or tried.
    Operation, "file operation" {
        /// A file was read.
        Download = "download",
        /// A file was written.
        Upload = "upload",
        /// A file was opened for both, and read and written (or neither).
        Both = "both",
        /// A directory was listed.
        List = "list",
        /// A file was removed.
        Remove = "remove",
        /// Something was renamed; the second path is the new name.
        Rename = "rename",
        /// A directory was made.
        Mkdir = "mkdir",
        /// A directory was removed.
        Rmdir = "rmdir",
        /// Size, owner, permissions or times were set.
        Setstat = "setstat",
        /// A symbolic link was made; the second path is what it points to.
        Symlink = "symlink",
        /// A hard link was made; the second path is the file that got another name.
        Link = "link",
        /// Data was copied on the target; the second path is the file it was written to.
        Copy = "copy",
    }
}

/// A path on the target, as the bytes that the client sent.
///
/// Shown, it has no character that a terminal acts on, and bytes that are not UTF-8 as `\xNN`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePath(Arc<[u8]>);

impl RemotePath {
    /// A path of these bytes, which are copied.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes as they were sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(&printable(chunk.valid()))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Ok,
    /// The rights of the session do not cover it; the target never heard of it.
    Refused,
    /// The target could not do it, or it was not asked to because of a limit.
    Failed {
        /// The status code (draft-ietf-secsh-filexfer-02 section 7); 4, a failure, for scp.
        code: u32,
        /// What the target said, made printable and cut.
        message: String,
    },
    /// The channel ended before it did.
    Interrupted,
}

/// The longest message of a target that is kept, in bytes.
pub(super) const MAX_MESSAGE: usize = 512;

impl Outcome {
    /// A failure with what the target said about it.
    pub(super) fn failed(code: u32, message: &[u8]) -> Self {
        let message = message.get(..MAX_MESSAGE).unwrap_or(message);
        Self::Failed { code, message: RemotePath::new(message).to_string() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Refused => f.write_str("refused by policy"),
            Self::Failed { code, message } if message.is_empty() => write!(f, "failed ({code})"),
            Self::Failed { code, message } => write!(f, "failed ({code}): {message}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// Something that was done to a file, or tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEvent {
    /// What was done.
    pub operation: Operation,
    /// To what.
    pub path: RemotePath,
    /// The other path, where the operation has two.
    pub second: Option<RemotePath>,
    /// Bytes of the file that went to the client.
    pub bytes_read: u64,
    /// Bytes that the target wrote.
    pub bytes_written: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl FileEvent {
    /// An event about one path, with no bytes moved.
    pub(super) fn new(operation: Operation, path: RemotePath, outcome: Outcome) -> Self {
        Self { operation, path, second: None, bytes_read: 0, bytes_written: 0, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_shows_no_byte_that_a_terminal_acts_on() {
        let path = RemotePath::new(b"/a\x1b[2J\xff\xc3\xa4\n");
        assert_eq!(path.to_string(), "/a\\u{1b}[2J\\xff\u{e4}\\u{a}");
        assert_eq!(path.as_bytes(), b"/a\x1b[2J\xff\xc3\xa4\n");
    }
}
