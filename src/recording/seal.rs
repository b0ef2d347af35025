//! Turns a recording that nothing writes any more into its final form: compressed, and hashed.
//!
//! Always holds: at every moment the plain or the compressed file is there, whole; the compressed
//! one appears under its name only when all of it is on the disk; doing it again, after a crash in
//! the middle, has the same result. Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::asciicast::{Error, Reader};

/// Terminal output packs well at any level; this one is about as fast as a disk.
const LEVEL: i32 = 3;

/// A recording in its final form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Compresses the recording at `plain`; keeps it as it is when that fails.
pub(super) fn seal(plain: &Path) -> io::Result<Sealed> {
    let packed = packed_path(plain);
    if !plain.exists() && packed.exists() {
        return measure(packed); // A crash came after all was done and before anybody noted it.
    }
    match pack(plain, &packed) {
        Ok(sealed) => Ok(sealed),
        Err(error) => {
            let sealed = measure(plain.to_owned())?;
            tracing::warn!(%error, path = %plain.display(), "a recording stays uncompressed");
            Ok(sealed)
        }
    }
}

/// `x.cast` -> `x.cast.zst`.
fn packed_path(plain: &Path) -> PathBuf {
    with_suffix(plain, ".zst")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn pack(plain: &Path, packed: &Path) -> io::Result<Sealed> {
    let temporary = with_suffix(packed, ".part");
    let written = pack_into(plain, &temporary).and_then(|sealed| {
        fs::rename(&temporary, packed)?;
        sync_folder_of(packed)?;
        Ok(sealed)
    });
    let (bytes, sha256) =
        written.inspect_err(|_| fs::remove_file(&temporary).unwrap_or_default())?;
    fs::remove_file(plain)?;
    sync_folder_of(packed)?;
    Ok(Sealed { path: packed.to_owned(), bytes, sha256 })
}

fn pack_into(plain: &Path, temporary: &Path) -> io::Result<(u64, String)> {
    let mut from = File::open(plain)?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    let mut encoder = zstd::Encoder::new(Hashing::new(file), LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut from, &mut encoder)?;
    let hashing = encoder.finish()?;
    hashing.to.sync_all()?;
    Ok(hashing.result())
}

fn measure(path: PathBuf) -> io::Result<Sealed> {
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut File::open(&path)?, &mut hashing)?;
    let (bytes, sha256) = hashing.result();
    Ok(Sealed { path, bytes, sha256 })
}

/// Counts and hashes what is written through it.
struct Hashing<W> {
    to: W,
    bytes: u64,
    hash: Sha256,
}

impl<W> Hashing<W> {
    fn new(to: W) -> Self {
        Self { to, bytes: 0, hash: Sha256::new() }
    }

    fn result(self) -> (u64, String) {
        let hex = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (self.bytes, hex)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hash.update(bytes.get(..n).unwrap_or_default());
        self.bytes += u64::try_from(n).unwrap_or(0);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What a recording that a crash left holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mended {
    pub(super) events: u64,
    pub(super) duration: Duration,
}

/// Cuts off the last line of the recording at `plain` if it is not whole, and counts the others.
pub(super) fn mend(plain: &Path) -> io::Result<Mended> {
    let there = if plain.exists() { plain.to_owned() } else { packed_path(plain) };
    let mut mended = Mended { events: 0, duration: Duration::ZERO };
    let mut reader = match Reader::open(&there) {
        Ok(reader) => reader,
        Err(Error::Io(error)) => return Err(error),
        // Not even its header was written. It is kept as it is, for whoever wants to know.
        Err(_) => return Ok(mended),
    };
    loop {
        match reader.next_event() {
            Ok(Some(event)) => {
                mended.events += 1;
                mended.duration = event.time;
            }
            Ok(None) => break,
            Err(Error::Io(error)) => return Err(error),
            // A damaged middle is not ours to mend: every byte is kept.
            Err(_) => return Ok(mended),
        }
    }
    if reader.truncated() && there == plain {
        let file = OpenOptions::new().write(true).open(plain)?;
        file.set_len(reader.whole_bytes())?;
        file.sync_all()?;
    }
    Ok(mended)
}

/// Asks the folder that `path` is in onto the disk, so that names made or removed in it last.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::asciicast::tests::outputs;
    use super::*;

    fn sha256_of(path: &Path) -> String {
        Sha256::digest(fs::read(path).unwrap()).iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn sealing_leaves_one_compressed_file_and_can_be_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("a.cast");
        let cast = outputs(&[(0, "one\r\n"), (10, "two\r\n")]);
        fs::write(&plain, &cast).unwrap();
        // What a crash in the middle of an earlier try left.
        fs::write(folder.path().join("a.cast.zst.part"), "half").unwrap();
        let sealed = seal(&plain).unwrap();
        assert_eq!(sealed.path, folder.path().join("a.cast.zst"));
        assert_eq!(sealed.bytes, fs::metadata(&sealed.path).unwrap().len());
        assert_eq!(sealed.sha256, sha256_of(&sealed.path));
        assert_eq!(zstd::decode_all(File::open(&sealed.path).unwrap()).unwrap(), cast);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(seal(&plain).unwrap(), sealed);
    }

    #[test]
    fn a_recording_that_cannot_be_compressed_stays_plain() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("a.cast");
        fs::write(&plain, outputs(&[(0, "one")])).unwrap();
        fs::create_dir(folder.path().join("a.cast.zst.part")).unwrap();
        let sealed = seal(&plain).unwrap();
        assert_eq!(sealed.path, plain);
        assert_eq!(sealed.sha256, sha256_of(&plain));
    }

    #[test]
    fn mending_cuts_off_what_is_not_whole_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("a.cast");
        let cast = outputs(&[(0, "one\r\n"), (1500, "two\r\n")]);
        let one_second_and_a_half = Duration::from_millis(1500);
        for tail in ["", "[1.6,\"o\",\"thr", "\0\0\0"] {
            fs::write(&plain, [&cast[..], tail.as_bytes()].concat()).unwrap();
            let expected = Mended { events: 2, duration: one_second_and_a_half };
            assert_eq!(mend(&plain).unwrap(), expected);
            assert_eq!(fs::read(&plain).unwrap(), cast, "{tail:?}");
        }
        for unreadable in
            [Vec::new(), b"{\"ver".to_vec(), [&cast[..], b"bad\n[2,\"o\",\"\"]\n"].concat()]
        {
            fs::write(&plain, &unreadable).unwrap();
            mend(&plain).unwrap();
            assert_eq!(fs::read(&plain).unwrap(), unreadable);
        }
    }
}
