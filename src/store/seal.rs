//! Secrets at rest: sealed with XChaCha20-Poly1305 under a key that is not in the store.
//!
//! Always holds: a sealed text opens only under the key that its id names *and* for the row and
//! column it was sealed for, so neither a copied database nor two swapped rows give a secret away.
//! The keyring file holds one key a line (`ID BASE64`), in no order. Which of them seals is said by
//! the store (`store_keys`), so that all nodes agree on it in every transaction; the others open what
//! was sealed before a rotation, or wait for theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::keys;

/// A secret that cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keyring file cannot be read or written.
    #[error(transparent)]
    File(#[from] keys::Error),
    /// The keyring file is not in its format.
    #[error(
        "failed to read the sealing key file {0}: every line is an id and a base64 key of 32 bytes"
    )]
    Format(PathBuf),
    /// The secret was sealed under a key that the file does not hold.
    #[error("a secret is sealed under key {0}, which is not in the sealing key file")]
    UnknownKey(String),
    /// The sealed text was changed, or belongs to another row.
    #[error("a sealed secret was changed or belongs to another row ({0})")]
    Damaged(String),
    /// The system has no randomness to give.
    #[error("failed to get randomness from the system: {0}")]
    Random(#[from] getrandom::Error),
}

/// Where a secret lives, bound to it as associated data.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// `table.column`.
    pub column: &'a str,
    /// The row's id.
    pub row: &'a str,
}

/// The sealing keys, read from their file, and again to seal or to open what names an unknown key.
pub struct Keyring {
    path: PathBuf,
    keys: RwLock<Keys>,
}

struct Keys {
    first: String,
    by_id: BTreeMap<String, Zeroizing<[u8; 32]>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("path", &self.path).finish_non_exhaustive()
    }
}

const FORMAT: &str = "s1";
/// Bytes of XChaCha20-Poly1305's nonce, and of its tag.
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

impl Keyring {
    /// Reads the keyring at `path`.
    ///
    /// # Errors
    /// When the file is missing, open to others, or not in its format.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), keys: RwLock::new(read(path)?) })
    }

    /// Reads the keyring at `path`, making one with a single new key if there is none.
    ///
    /// # Errors
    /// As [`Self::load`], and when it cannot be written.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        let exists = path
            .try_exists()
            .map_err(|source| keys::Error::Io { path: path.to_owned(), source })?;
        if !exists {
            keys::write_secret(path, new_line()?.1.as_bytes())?;
        }
        Self::load(path)
    }

    /// Adds a new key to the file, which seals nothing yet; gives its id.
    ///
    /// # Errors
    /// When the file cannot be read or replaced.
    pub fn add_key(&self) -> Result<String, Error> {
        let mut keys = Zeroizing::new(keys::read_secret(&self.path)?.to_vec());
        if !keys.ends_with(b"\n") {
            keys.push(b'\n');
        }
        let (id, line) = new_line()?;
        keys.extend_from_slice(line.as_bytes());
        keys::replace_secret(&self.path, &keys)?;
        self.reload()?;
        Ok(id)
    }

    /// The id of the key that seals in a store that knows of none yet: the file's first.
    pub fn first(&self) -> String {
        self.read().first.clone()
    }

    /// The ids of the keys that are in the file now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, Error> {
        self.reload()?;
        Ok(self.read().by_id.keys().cloned().collect())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Seals `secret` for `place` under the key `id`.
    ///
    /// # Errors
    /// When the file does not hold that key, or the system has no randomness.
    pub fn seal(&self, id: &str, place: Place<'_>, secret: &[u8]) -> Result<String, Error> {
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce)?;
        let damaged = |_| Error::Damaged(place.column.to_owned());
        let aad = associated(id, place);
        let payload = Payload { msg: secret, aad: aad.as_bytes() };
        let nonce = XNonce::from(nonce);
        let text = self.cipher(id)?.encrypt(&nonce, payload).map_err(damaged)?;
        let mut whole = nonce.to_vec();
        whole.extend_from_slice(&text);
        Ok(format!("{}{}", under(id), BASE64.encode(whole)))
    }

    /// Opens what was sealed for `place`.
    ///
    /// # Errors
    /// When the key is not in the file, or the text is not what was sealed for this place.
    pub fn open(&self, place: Place<'_>, sealed: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let damaged = || Error::Damaged(place.column.to_owned());
        let mut parts = sealed.splitn(3, '.');
        let (Some(FORMAT), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(damaged());
        };
        let whole = BASE64.decode(text).map_err(|_| damaged())?;
        let (nonce, text) = whole.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let cipher = self.cipher(id)?;
        let aad = associated(id, place);
        let payload = Payload { msg: text, aad: aad.as_bytes() };
        let secret = cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| damaged())?;
        Ok(Zeroizing::new(secret))
    }

    /// Takes the time that [`Self::open`] takes for a secret of `length` bytes, where there is none.
    pub fn open_decoy(&self, place: Place<'_>, length: usize) {
        let text = BASE64.encode(vec![0; NONCE_LEN + length + TAG_LEN]);
        // Nothing was ever sealed as zeros: it fails, after all the work.
        let _nothing = self.open(place, &format!("{FORMAT}.{}.{text}", self.first()));
    }

    /// The cipher of the key `id`, looked for once more in the file if it is not known.
    fn cipher(&self, id: &str) -> Result<XChaCha20Poly1305, Error> {
        if !self.read().by_id.contains_key(id) {
            self.reload()?; // Added by another process since.
        }
        let keys = self.read();
        let key = keys.by_id.get(id).ok_or_else(|| {
            let known = id.len() <= 16 && id.bytes().all(|b| b.is_ascii_alphanumeric());
            Error::UnknownKey(if known { id.to_owned() } else { "?".to_owned() })
        })?;
        Ok(XChaCha20Poly1305::new(&(**key).into()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self) -> Result<(), Error> {
        let keys = read(&self.path)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// How everything begins that is sealed under the key `id`.
pub fn under(id: &str) -> String {
    format!("{FORMAT}.{id}.")
}

fn associated(id: &str, place: Place<'_>) -> String {
    format!("sallyport-seal-1 {id} {} {}", place.column, place.row)
}

/// A new key's id and line.
fn new_line() -> Result<(String, Zeroizing<String>), Error> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut key[..])?;
    let id = crate::domain::Id::random()?;
    let line = format!("{id} {}\n", &*Zeroizing::new(BASE64.encode(&key[..])));
    Ok((id.to_string(), Zeroizing::new(line)))
}

fn read(path: &Path) -> Result<Keys, Error> {
    let format = || Error::Format(path.to_owned());
    let bytes = keys::read_secret(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format())?;
    let mut first = None;
    let mut by_id = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (id, key) = line.split_once(' ').ok_or_else(format)?;
        let key = Zeroizing::new(BASE64.decode(key.trim()).map_err(|_| format())?);
        let key: [u8; 32] = key[..].try_into().map_err(|_| format())?;
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format());
        }
        first.get_or_insert_with(|| id.to_owned());
        by_id.insert(id.to_owned(), Zeroizing::new(key));
    }
    Ok(Keys { first: first.ok_or_else(format)?, by_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'_> = Place { column: "users.otp_secret", row: "a" };

    fn keyring() -> (tempfile::TempDir, Keyring) {
        let dir = tempfile::tempdir().unwrap();
        let ring = Keyring::load_or_create(&dir.path().join("sealing_key")).unwrap();
        (dir, ring)
    }

    #[test]
    fn opens_only_in_its_place_and_unchanged() {
        let (_dir, ring) = keyring();
        let sealed = ring.seal(&ring.first(), PLACE, b"secret").unwrap();
        assert!(!sealed.contains("secret"));
        assert_eq!(&ring.open(PLACE, &sealed).unwrap()[..], b"secret");
        for place in [Place { row: "b", ..PLACE }, Place { column: "users.name", ..PLACE }] {
            assert!(matches!(ring.open(place, &sealed), Err(Error::Damaged(_))));
        }
        let tail = sealed.len() - 6;
        let flipped = format!("{}AAAA{}", &sealed[..tail], &sealed[tail + 4..]);
        assert!(matches!(ring.open(PLACE, &flipped), Err(Error::Damaged(_))));
        assert!(matches!(ring.open(PLACE, "plain"), Err(Error::Damaged(_))));
    }

    #[test]
    fn a_key_that_another_process_added_is_picked_up() {
        let (dir, ring) = keyring();
        let other = Keyring::load(&dir.path().join("sealing_key")).unwrap();
        let old = ring.seal(&ring.first(), PLACE, b"old").unwrap();
        let id = ring.add_key().unwrap();
        assert_ne!(id, ring.first());
        assert_eq!(ring.ids().unwrap().len(), 2);
        let new = ring.seal(&id, PLACE, b"new").unwrap();
        assert!(new.starts_with(&under(&id)) && old.starts_with(&under(&ring.first())));
        assert_eq!(&other.open(PLACE, &new).unwrap()[..], b"new");
        assert_eq!(&other.open(PLACE, &old).unwrap()[..], b"old");
        let late = ring.add_key().unwrap();
        other.seal(&late, PLACE, b"late").unwrap();
        assert!(matches!(other.open(PLACE, "s1.nokey.AAAA"), Err(Error::Damaged(_))));
        assert!(
            matches!(other.seal("nokey", PLACE, b""), Err(Error::UnknownKey(id)) if id == "nokey")
        );
        assert!(!format!("{ring:?}").contains("by_id"));
    }

    #[test]
    fn a_keyring_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        for bad in ["", "id short", "id AAAA", "i/d AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
            keys::replace_secret(&path, bad.as_bytes()).unwrap();
            assert!(matches!(Keyring::load(&path), Err(Error::Format(_))), "{bad}");
        }
    }
}
