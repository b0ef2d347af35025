//! The head of an SFTP packet: everything a decision needs, and none of the bulk after it.
//! Version 3, draft-ietf-secsh-filexfer-02, with the extensions in OpenSSH's PROTOCOL, section 4.
//!
//! Always holds: what is parsed, and how long the head is, depends on the packet alone and not on
//! how much of it has arrived; a head is at most [`MAX_PATH`] twice and a few hundred bytes.

use super::event::Operation;

/// The largest packet that is let through: 256 KiB of data, as in OpenSSH, and its header.
pub(super) const MAX_PACKET: usize = 256 * 1024 + 1024;
/// The longest path that is let through where a path is looked at (`PATH_MAX` on Linux).
pub(super) const MAX_PATH: usize = 4096;
/// The longest handle (section 6.3), and the longest name of an extension.
const MAX_NAME: usize = 256;

/// SSH_FXP_ packet types, section 3.
pub(super) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const REALPATH: u8 = 16;
    pub(crate) const STAT: u8 = 17;
    pub(crate) const RENAME: u8 = 18;
    pub(crate) const READLINK: u8 = 19;
    pub(crate) const SYMLINK: u8 = 20;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const EXTENDED: u8 = 200;
}

/// SSH_FXF_ flags of an open request, section 6.3.
pub(super) mod flag {
    pub(crate) const READ: u32 = 1;
}

/// SSH_FX_ status codes, section 7.
pub(super) mod status {
    pub(crate) const OK: u32 = 0;
    pub(crate) const EOF: u32 = 1;
    pub(crate) const PERMISSION_DENIED: u32 = 3;
    pub(crate) const FAILURE: u32 = 4;
    pub(crate) const BAD_MESSAGE: u32 = 5;
    pub(crate) const OP_UNSUPPORTED: u32 = 8;
}

/// One of the two ends of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever signed in to the bastion.
    Client,
    /// The target's SFTP server.
    Server,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "the client",
            Self::Server => "the target",
        })
    }
}

/// Why a channel has to end: what was sent is not SFTP, or beyond what can be filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length is beyond the limit. Text that a shell's start-up file printed looks like this.
    #[error(
        "{0} sent an SFTP packet of {1} bytes, more than {MAX_PACKET} \
         (does a start-up file of the account's shell print text?)"
    )]
    Oversized(Side, u32),
    /// Too short for its type, or a field reaches beyond its end.
    #[error("{0} sent an SFTP packet that is not well formed")]
    Malformed(Side),
    /// The handshake (section 4) is not what it should be.
    #[error("{0} did not begin with the SFTP handshake, or repeated it")]
    Handshake(Side),
    /// Another version than was asked for.
    #[error("the target answered with SFTP version {0}, and only version 3 was offered")]
    Version(u32),
    /// Two requests with one id would wait for an answer, and nobody could tell which is which.
    #[error("the client reused request id {0} before it was answered")]
    ReusedId(u32),
    /// Requests that are refused, far more than the client waits for.
    #[error("the client sent too many requests without waiting for an answer")]
    Flooded,
}

/// What has become clear about a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// Nothing, until this many bytes of it are here.
    More(usize),
    /// Its head is complete.
    Head {
        /// What it says.
        value: T,
        /// The length of the head.
        len: usize,
        /// How many bytes follow the head.
        body: usize,
    },
}

impl<T> Step<T> {
    /// The same without what the packet says.
    pub(super) fn measure(self) -> Step<()> {
        match self {
            Self::More(bytes) => Step::More(bytes),
            Self::Head { len, body, .. } => Step::Head { value: (), len, body },
        }
    }
}

/// A packet from the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// SSH_FXP_INIT, with the highest version that the client speaks.
    Init(u32),
    /// A request that gets an answer.
    Ask(u32, Ask<'a>),
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask<'a> {
    Open {
        path: &'a [u8],
        flags: u32,
    },
    Close(&'a [u8]),
    Read {
        handle: &'a [u8],
        len: u32,
    },
    Write {
        handle: &'a [u8],
        len: u32,
    },
    /// Opens a directory.
    List(&'a [u8]),
    /// Looks, and is not remembered: attributes, directory entries, link targets, limits.
    Look,
    /// Changes something by name.
    Change {
        operation: Operation,
        path: &'a [u8],
        second: Option<&'a [u8]>,
    },
    /// Changes the attributes of an open file.
    ChangeOpen {
        handle: &'a [u8],
    },
    /// fsync@openssh.com.
    Sync,
    /// copy-data.
    Copy {
        from: &'a [u8],
        to: &'a [u8],
    },
    UnknownExtension,
    /// version-select, after which packets would mean something else.
    OtherVersion,
    UnknownType,
    Malformed,
    TooLong,
}

impl Ask<'_> {
    /// How large its answer may well be, in bytes.
    pub(super) fn answer_size(&self) -> usize {
        match self {
            Self::Read { len, .. } => {
                usize::try_from(*len).map_or(MAX_PACKET, |n| n.min(MAX_PACKET))
            }
            // A directory's entries come a hundred at a time from OpenSSH's server.
            Self::Look => 16 * 1024,
            // A status with its text, or a handle.
            _ => 1024,
        }
    }
}

/// A packet from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    Version(u32),
    Answer(u32, Answer<'a>),
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    Status { code: u32, message: &'a [u8] },
    Handle(&'a [u8]),
    Data(u32),
    Other,
}

/// Why no more of a packet can be read.
enum Stop {
    More(usize),
    Malformed,
    TooLong,
    Oversized(u32),
}

/// Reads the head of a packet from the client.
pub(super) fn request(seen: &[u8]) -> Result<Step<Request<'_>>, Error> {
    let mut fields = Fields { seen, at: 0, end: 4 };
    let read = read_request(&mut fields);
    fields.finish(read, Side::Client)
}

/// Reads the head of a packet from the server.
pub(super) fn reply(seen: &[u8]) -> Result<Step<Reply<'_>>, Error> {
    let mut fields = Fields { seen, at: 0, end: 4 };
    let read = read_reply(&mut fields);
    fields.finish(read, Side::Server)
}

fn read_request<'a>(fields: &mut Fields<'a>) -> Result<Request<'a>, Stop> {
    let kind = fields.begin()?;
    let number = fields.u32()?;
    if kind == kind::INIT {
        return Ok(Request::Init(number));
    }
    let ask = match read_ask(kind, fields) {
        Err(Stop::Malformed) => Ask::Malformed,
        Err(Stop::TooLong) => Ask::TooLong,
        read => read?,
    };
    Ok(Request::Ask(number, ask))
}

fn read_ask<'a>(kind: u8, fields: &mut Fields<'a>) -> Result<Ask<'a>, Stop> {
    Ok(match kind {
        kind::OPEN => Ask::Open { path: fields.path()?, flags: fields.u32()? },
        kind::CLOSE => Ask::Close(fields.name()?),
        kind::READ => {
            let handle = fields.name()?;
            fields.u64()?;
            Ask::Read { handle, len: fields.u32()? }
        }
        kind::WRITE => {
            let handle = fields.name()?;
            fields.u64()?;
            Ask::Write { handle, len: fields.length()? }
        }
        kind::OPENDIR => Ask::List(fields.path()?),
        kind::LSTAT
        | kind::FSTAT
        | kind::READDIR
        | kind::REALPATH
        | kind::STAT
        | kind::READLINK => Ask::Look,
        kind::SETSTAT => fields.change(Operation::Setstat)?,
        kind::FSETSTAT => Ask::ChangeOpen { handle: fields.name()? },
        kind::REMOVE => fields.change(Operation::Remove)?,
        kind::MKDIR => fields.change(Operation::Mkdir)?,
        kind::RMDIR => fields.change(Operation::Rmdir)?,
        kind::RENAME => fields.rename()?,
        kind::SYMLINK => fields.link(Operation::Symlink)?,
        kind::EXTENDED => read_extended(fields)?,
        _ => Ask::UnknownType,
    })
}

/// SSH_FXP_EXTENDED, section 8, and OpenSSH's PROTOCOL, sections 4.3 to 4.12.
fn read_extended<'a>(fields: &mut Fields<'a>) -> Result<Ask<'a>, Stop> {
    Ok(match fields.name()? {
        b"posix-rename@openssh.com" => fields.rename()?,
        b"hardlink@openssh.com" => fields.link(Operation::Link)?,
        b"lsetstat@openssh.com" => fields.change(Operation::Setstat)?,
        b"fsync@openssh.com" => Ask::Sync,
        b"copy-data" => {
            let from = fields.name()?;
            fields.u64()?;
            fields.u64()?;
            Ask::Copy { from, to: fields.name()? }
        }
        b"statvfs@openssh.com"
        | b"fstatvfs@openssh.com"
        | b"limits@openssh.com"
        | b"expand-path@openssh.com"
        | b"home-directory"
        | b"users-groups-by-id@openssh.com" => Ask::Look,
        b"version-select" => Ask::OtherVersion,
        _ => Ask::UnknownExtension,
    })
}

fn read_reply<'a>(fields: &mut Fields<'a>) -> Result<Reply<'a>, Stop> {
    let kind = fields.begin()?;
    let number = fields.u32()?;
    let answer = match kind {
        kind::VERSION => return Ok(Reply::Version(number)),
        kind::STATUS => Answer::Status { code: fields.u32()?, message: fields.message()? },
        kind::HANDLE => Answer::Handle(fields.name()?),
        kind::DATA => Answer::Data(fields.length()?),
        _ => Answer::Other,
    };
    Ok(Reply::Answer(number, answer))
}

/// Reads the fields of one packet, as far as it has arrived.
struct Fields<'a> {
    seen: &'a [u8],
    at: usize,
    /// Where the packet ends.
    end: usize,
}

impl<'a> Fields<'a> {
    /// The length and the type that every packet begins with, section 3.
    fn begin(&mut self) -> Result<u8, Stop> {
        let length = self.u32()?;
        match usize::try_from(length) {
            Ok(length) if length <= MAX_PACKET => self.end += length,
            _ => return Err(Stop::Oversized(length)),
        }
        self.array::<1>().map(|[kind]| kind)
    }

    fn finish<T>(self, read: Result<T, Stop>, side: Side) -> Result<Step<T>, Error> {
        match read {
            Ok(value) => Ok(Step::Head { value, len: self.at, body: self.end - self.at }),
            Err(Stop::More(bytes)) => Ok(Step::More(bytes)),
            Err(Stop::Oversized(length)) => Err(Error::Oversized(side, length)),
            Err(Stop::Malformed | Stop::TooLong) => Err(Error::Malformed(side)),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let to = self.at + len;
        if to > self.end {
            return Err(Stop::Malformed);
        }
        let taken = self.seen.get(self.at..to).ok_or(Stop::More(to))?;
        self.at = to;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.take(N)?.try_into().map_err(|_| Stop::Malformed)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_be_bytes)
    }

    /// The length of a string that lies within the packet; the string itself is not read.
    fn length(&mut self) -> Result<u32, Stop> {
        let length = self.u32()?;
        let fits = usize::try_from(length).is_ok_and(|length| length <= self.end - self.at);
        if fits { Ok(length) } else { Err(Stop::Malformed) }
    }

    fn string(&mut self, max: usize) -> Result<&'a [u8], Stop> {
        let length = usize::try_from(self.length()?).map_err(|_| Stop::TooLong)?;
        if length > max {
            return Err(Stop::TooLong);
        }
        self.take(length)
    }

    /// A handle, or the name of an extension.
    fn name(&mut self) -> Result<&'a [u8], Stop> {
        self.string(MAX_NAME)
    }

    /// A path. A zero byte would end it for the target and not for who reads the audit log.
    fn path(&mut self) -> Result<&'a [u8], Stop> {
        let path = self.string(MAX_PATH)?;
        if path.contains(&0) { Err(Stop::Malformed) } else { Ok(path) }
    }

    fn change(&mut self, operation: Operation) -> Result<Ask<'a>, Stop> {
        Ok(Ask::Change { operation, path: self.path()?, second: None })
    }

    fn rename(&mut self) -> Result<Ask<'a>, Stop> {
        let operation = Operation::Rename;
        Ok(Ask::Change { operation, path: self.path()?, second: Some(self.path()?) })
    }

    /// What exists comes first, then the new name: so for hard links, and so does OpenSSH read
    /// a symbolic link (PROTOCOL, section 4.1).
    fn link(&mut self, operation: Operation) -> Result<Ask<'a>, Stop> {
        let existing = self.path()?;
        Ok(Ask::Change { operation, path: self.path()?, second: Some(existing) })
    }

    /// The message of a status, or its beginning. Before version 3 there was none.
    fn message(&mut self) -> Result<&'a [u8], Stop> {
        if self.end - self.at < 4 {
            return Ok(&[]);
        }
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        self.take(length.min(super::event::MAX_MESSAGE).min(self.end - self.at))
    }
}
