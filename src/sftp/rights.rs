//! Which SFTP request needs which right: the whole policy, in one table.

use super::packet::{Ask, flag, status};

/// What a session may do with the target's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Read the content of files.
    pub read: bool,
    /// Change files and directories.
    pub write: bool,
}

/// Why a request is not forwarded, as it is told to the client in an SSH_FXP_STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The status code.
    pub(super) code: u32,
    /// The sentence.
    pub(super) message: &'static str,
}

impl Refusal {
    pub(super) const NO_READ: Self = Self::denied("reading files is not granted to you here");
    pub(super) const NO_WRITE: Self = Self::denied("changing files is not granted to you here");
    pub(super) const NO_FILES: Self = Self::denied("file access is not granted to you here");
    pub(super) const UNKNOWN_EXTENSION: Self =
        Self::denied("an unknown extension needs the right to read and to change files");
    pub(super) const UNKNOWN_TYPE: Self =
        Self::new(status::OP_UNSUPPORTED, "the bastion knows no request of this type");
    pub(super) const VERSION: Self =
        Self::new(status::OP_UNSUPPORTED, "the bastion speaks SFTP version 3 only");
    pub(super) const MALFORMED: Self =
        Self::new(status::BAD_MESSAGE, "the request is not well formed");
    pub(super) const TOO_LONG: Self =
        Self::new(status::FAILURE, "a path or name in the request is too long");
    pub(super) const NO_HANDLE: Self = Self::new(status::FAILURE, "no such handle is open");
    pub(super) const TOO_MANY_FILES: Self =
        Self::new(status::FAILURE, "too many files are open in this session");
    pub(super) const TOO_MANY_REQUESTS: Self =
        Self::new(status::FAILURE, "too many requests are waiting for an answer");

    const fn denied(message: &'static str) -> Self {
        Self::new(status::PERMISSION_DENIED, message)
    }

    const fn new(code: u32, message: &'static str) -> Self {
        Self { code, message }
    }
}

impl Rights {
    /// Whether `ask` may be forwarded.
    pub(super) fn check(self, ask: &Ask<'_>) -> Result<(), Refusal> {
        match ask {
            Ask::Close(_) => Ok(()),
            Ask::Look | Ask::List(_) => need(self.read || self.write, Refusal::NO_FILES),
            Ask::Open { flags, .. } => self.check_open(*flags),
            Ask::Read { .. } => need(self.read, Refusal::NO_READ),
            Ask::Write { .. } | Ask::Sync | Ask::Change { .. } | Ask::ChangeOpen { .. } => {
                need(self.write, Refusal::NO_WRITE)
            }
            // The same as reading from one and writing to the other.
            Ask::Copy { .. } => {
                need(self.read, Refusal::NO_READ)?;
                need(self.write, Refusal::NO_WRITE)
            }
            Ask::UnknownExtension => need(self.read && self.write, Refusal::UNKNOWN_EXTENSION),
            Ask::OtherVersion => Err(Refusal::VERSION),
            Ask::UnknownType => Err(Refusal::UNKNOWN_TYPE),
            Ask::Malformed => Err(Refusal::MALFORMED),
            Ask::TooLong => Err(Refusal::TOO_LONG),
        }
    }

    /// SSH_FXP_OPEN, section 6.3. Every flag but READ changes something; no flag at all opens
    /// for reading with OpenSSH.
    fn check_open(self, flags: u32) -> Result<(), Refusal> {
        if flags & flag::READ != 0 || flags == 0 {
            need(self.read, Refusal::NO_READ)?;
        }
        if flags & !flag::READ != 0 {
            need(self.write, Refusal::NO_WRITE)?;
        }
        Ok(())
    }
}

fn need(right: bool, otherwise: Refusal) -> Result<(), Refusal> {
    if right { Ok(()) } else { Err(otherwise) }
}
