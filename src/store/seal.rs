//! Secrets at rest: sealed with XChaCha20-Poly1305 under a key that is not in the store.
//!
//! Always holds: a sealed text opens only under the key that its id names *and* for the row and
//! column it was sealed for, so neither a copied database nor two swapped rows give a secret away.
//! The keyring file holds one key a line (`ID BASE64`), the first of which seals; the others open
//! what was sealed before a rotation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

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
    primary: String,
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
            keys::write_secret(path, new_line()?.as_bytes())?;
        }
        Self::load(path)
    }

    /// Puts a new key in front of the others in the file; what is sealed from now on uses it.
    ///
    /// # Errors
    /// When the file cannot be read or replaced.
    pub fn add_key(&self) -> Result<(), Error> {
        let old = keys::read_secret(&self.path)?;
        let mut new = Zeroizing::new(new_line()?.as_bytes().to_vec());
        new.extend_from_slice(&old);
        keys::replace_secret(&self.path, &new)?;
        self.reload()
    }

    /// The id of the key that seals now.
    pub fn primary(&self) -> String {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).primary.clone()
    }

    /// Whether the file holds the key `id`, as it was read last.
    pub fn holds(&self, id: &str) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).by_id.contains_key(id)
    }

    /// Whether `sealed` is under the key that seals now.
    pub fn is_current(&self, sealed: &str) -> bool {
        sealed.split('.').nth(1) == Some(self.primary().as_str())
    }

    /// Seals `secret` for `place`, under the key that is the first of the file now: another process
    /// may have rotated it, and the old one may be removed as soon as that is done.
    ///
    /// # Errors
    /// When the file cannot be read, or the system has no randomness.
    pub fn seal(&self, place: Place<'_>, secret: &[u8]) -> Result<String, Error> {
        self.reload()?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)?;
        let id = self.primary();
        let damaged = |_| Error::Damaged(place.column.to_owned());
        let aad = associated(&id, place);
        let payload = Payload { msg: secret, aad: aad.as_bytes() };
        let nonce = XNonce::from(nonce);
        let text = self.cipher(&id)?.encrypt(&nonce, payload).map_err(damaged)?;
        let mut whole = nonce.to_vec();
        whole.extend_from_slice(&text);
        Ok(format!("{FORMAT}.{id}.{}", BASE64.encode(whole)))
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
        let cipher = match self.cipher(id) {
            Err(Error::UnknownKey(_)) => {
                self.reload()?; // Rotated by another process since.
                self.cipher(id)?
            }
            other => other?,
        };
        let aad = associated(id, place);
        let payload = Payload { msg: text, aad: aad.as_bytes() };
        let secret = cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| damaged())?;
        Ok(Zeroizing::new(secret))
    }

    /// Takes the time that [`Self::open`] takes for a secret of `length` bytes, where there is none.
    pub fn open_decoy(&self, place: Place<'_>, length: usize) {
        let text = BASE64.encode(vec![0; NONCE_LEN + length + TAG_LEN]);
        // Nothing was ever sealed as zeros: it fails, after all the work.
        let _nothing = self.open(place, &format!("{FORMAT}.{}.{text}", self.primary()));
    }

    fn cipher(&self, id: &str) -> Result<XChaCha20Poly1305, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.by_id.get(id).ok_or_else(|| {
            let known = id.len() <= 16 && id.bytes().all(|b| b.is_ascii_alphanumeric());
            Error::UnknownKey(if known { id.to_owned() } else { "?".to_owned() })
        })?;
        Ok(XChaCha20Poly1305::new(&(**key).into()))
    }

    fn reload(&self) -> Result<(), Error> {
        let keys = read(&self.path)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

fn associated(id: &str, place: Place<'_>) -> String {
    format!("sallyport-seal-1 {id} {} {}", place.column, place.row)
}

fn new_line() -> Result<Zeroizing<String>, Error> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut key[..])?;
    let id = crate::domain::Id::random()?;
    Ok(Zeroizing::new(format!("{id} {}\n", &*Zeroizing::new(BASE64.encode(&key[..])))))
}

fn read(path: &Path) -> Result<Keys, Error> {
    let format = || Error::Format(path.to_owned());
    let bytes = keys::read_secret(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format())?;
    let mut primary = None;
    let mut by_id = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (id, key) = line.split_once(' ').ok_or_else(format)?;
        let key = Zeroizing::new(BASE64.decode(key.trim()).map_err(|_| format())?);
        let key: [u8; 32] = key[..].try_into().map_err(|_| format())?;
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format());
        }
        primary.get_or_insert_with(|| id.to_owned());
        by_id.insert(id.to_owned(), Zeroizing::new(key));
    }
    Ok(Keys { primary: primary.ok_or_else(format)?, by_id })
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
        let sealed = ring.seal(PLACE, b"secret").unwrap();
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
    fn a_rotation_in_another_process_is_picked_up() {
        let (dir, ring) = keyring();
        let other = Keyring::load(&dir.path().join("sealing_key")).unwrap();
        let old = ring.seal(PLACE, b"old").unwrap();
        ring.add_key().unwrap();
        let new = ring.seal(PLACE, b"new").unwrap();
        assert!(ring.is_current(&new) && !ring.is_current(&old));
        assert_eq!(&other.open(PLACE, &new).unwrap()[..], b"new");
        assert_eq!(&other.open(PLACE, &old).unwrap()[..], b"old");
        assert!(matches!(other.open(PLACE, "s1.nokey.AAAA"), Err(Error::Damaged(_))));
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
