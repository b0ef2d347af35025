//! Key files (host key, certificate authorities, audit key) and other secret files; the certificates
//! that the authorities give; the public keys of others.
//!
//! Always holds: every key of the bastion's own is an unencrypted Ed25519 key in OpenSSH's format,
//! readable by its owner only; a secret file that others can read is refused, not repaired. The audit
//! key and the login CA's key do not leave their types; those of the host, the host CA and the user CA
//! go on to `server`, for russh and for making certificates.

mod certificate;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use russh::keys::signature::{Signer as _, Verifier as _};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{LineEnding, Signature};
use russh::keys::{Algorithm, Certificate, PrivateKey, PublicKey};

pub use certificate::{Authorities, LoginCa, LoginCertificate, random_serial};

use crate::audit::chain::Signatures;
use crate::domain::UnixTime;

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or made.
    #[error("failed to read or write the key file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may read the file.
    #[error("the key file {0} can be read by others: run chmod 600 {0}")]
    Permissions(PathBuf),
    /// The file holds no usable key.
    #[error("failed to read {path} as an unencrypted Ed25519 key in OpenSSH's format: {reason}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("failed to make a certificate: {0}")]
    Certificate(String),
    /// The system has no randomness to give.
    #[error("failed to get randomness from the system: {0}")]
    Random(#[from] getrandom::Error),
}

/// Reads the secret file at `path`, refusing one that others can read.
///
/// # Errors
/// When it cannot be read, or its mode lets group or others in.
pub fn read_secret(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(io)?.permissions().mode();
    // systemd shows credentials as 0440 to root's group, in a folder only the service can enter.
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
    if mode & 0o077 != 0 && !folder.is_some_and(|folder| is_credential(path, Path::new(&folder))) {
        return Err(Error::Permissions(path.to_owned()));
    }
    fs::read(path).map(zeroize::Zeroizing::new).map_err(io)
}

/// Whether a file is in the folder of credentials. An empty or relative one is no such folder: every path
/// begins with an empty one.
fn is_credential(path: &Path, folder: &Path) -> bool {
    folder.is_absolute() && path.starts_with(folder)
}

/// Writes a new secret file with mode 0600, whole or not at all.
///
/// # Errors
/// When it exists already or cannot be written.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<(), Error> {
    replace_file(path, content, false)
}

/// Puts `content` in the place of the secret file at `path`, whole or not at all; it stays its
/// owner's.
///
/// # Errors
/// When it cannot be written.
pub fn replace_secret(path: &Path, content: &[u8]) -> Result<(), Error> {
    replace_file(path, content, true)
}

fn replace_file(path: &Path, content: &[u8], overwrite: bool) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        // A root that replaces the service's key must leave it to the service.
        if let (true, Ok(old)) = (overwrite, fs::metadata(path)) {
            let new = file.metadata()?;
            if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        file.write_all(content)?;
        file.sync_all()?;
        // A hard link fails where the name exists: nobody's key is ever overwritten by a race.
        if overwrite {
            fs::rename(&new, path)?
        } else {
            fs::hard_link(&new, path)?
        }
        // The name, too, has to outlive a machine that dies: what the file is for is committed next.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        OpenOptions::new().read(true).open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    let result = write().map_err(io);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => result.and(Err(io(error))),
        _ => result,
    }
}

/// Reads the Ed25519 key at `path`.
///
/// # Errors
/// When it is missing, open to others, or no such key.
pub fn load(path: &Path) -> Result<PrivateKey, Error> {
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let key =
        PrivateKey::from_openssh(&read_secret(path)?[..]).map_err(|e| format(e.to_string()))?;
    match key.algorithm() {
        _ if key.is_encrypted() => Err(format("it is encrypted".into())),
        Algorithm::Ed25519 => Ok(key),
        other => Err(format(format!("it is an {other} key"))),
    }
}

/// Reads the Ed25519 key at `path`, making it first if there is none.
///
/// # Errors
/// As [`load`] and [`write_secret`].
pub fn load_or_create(path: &Path, comment: &str) -> Result<PrivateKey, Error> {
    if path.try_exists().map_err(|source| Error::Io { path: path.to_owned(), source })? {
        return load(path);
    }
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut seed[..])?;
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let key = PrivateKey::new(pair, comment).map_err(|e| format(e.to_string()))?;
    let pem = key.to_openssh(LineEnding::LF).map_err(|e| format(e.to_string()))?;
    write_secret(path, pem.as_bytes())?;
    load(path)
}

/// A public key that is no use.
#[derive(Debug, thiserror::Error)]
pub enum PublicKeyError {
    /// It cannot be read.
    #[error(
        "failed to read a public key: {0}; give a line such as \"ssh-ed25519 AAAA... comment\""
    )]
    Format(String),
    /// It is weak.
    #[error("the key is too weak ({0}): use ed25519, or RSA of 2048 bits at least")]
    Weak(String),
}

/// Reads a user's public key from a line of an authorized_keys file without options; gives its
/// SHA-256 fingerprint and the key without its comment's control characters.
///
/// # Errors
/// When it is no public key, or a weak one.
pub fn public_key(line: &str) -> Result<(String, String), PublicKeyError> {
    let fail = |e: russh::keys::ssh_key::Error| PublicKeyError::Format(e.to_string());
    let mut key = PublicKey::from_openssh(line).map_err(fail)?;
    if !is_strong(&key) {
        let bits = key.key_data().rsa().map(|rsa| format!(" of {} bits", rsa.key_size()));
        let kind = if bits.is_some() { "RSA".to_owned() } else { key.algorithm().to_string() };
        return Err(PublicKeyError::Weak(kind + &bits.unwrap_or_default()));
    }
    let comment = crate::domain::printable(key.comment().as_str_lossy());
    key.set_comment(comment);
    let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256).to_string();
    Ok((fingerprint, key.to_openssh().map_err(fail)?))
}

/// Whether a key is of a kind and size that can be trusted: no DSA, no RSA below 2048 bits.
pub fn is_strong(key: &PublicKey) -> bool {
    match key.algorithm() {
        Algorithm::Dsa => false,
        Algorithm::Rsa { .. } => key.key_data().rsa().is_some_and(|rsa| rsa.key_size() >= 2048),
        _ => true,
    }
}

/// Makes the host certificate for `host_key`, signed by the host CA `ca`, good for `names`
/// from five minutes before `now` for `validity` (OpenSSH PROTOCOL.certkeys).
///
/// # Errors
/// When the system has no randomness, or a name cannot stand in a certificate.
pub fn host_certificate(
    ca: &PrivateKey,
    host_key: &PublicKey,
    names: &[String],
    now: UnixTime,
    validity: Duration,
) -> Result<Certificate, Error> {
    let fail = |e: russh::keys::ssh_key::Error| Error::Certificate(e.to_string());
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    let from = now.seconds().saturating_sub(300);
    let until = now.plus(validity).seconds();
    let mut builder =
        Builder::new(nonce, host_key.key_data().clone(), from, until).map_err(fail)?;
    builder.cert_type(CertType::Host).map_err(fail)?;
    builder.key_id("sallyport host key").map_err(fail)?;
    for name in names {
        builder.valid_principal(name.clone()).map_err(fail)?;
    }
    builder.sign(ca).map_err(fail)
}

/// Makes a user certificate for `key`, signed by the user CA `ca`, good for `account` from a minute
/// before `now` for `validity`; `id` is what the target's log shows (OpenSSH PROTOCOL.certkeys).
///
/// # Errors
/// When the system has no randomness, or a name cannot stand in a certificate.
pub fn user_certificate(
    ca: &PrivateKey,
    key: &PublicKey,
    account: &str,
    id: &str,
    now: UnixTime,
    validity: Duration,
) -> Result<Certificate, Error> {
    let fail = |e: russh::keys::ssh_key::Error| Error::Certificate(e.to_string());
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    let from = now.seconds().saturating_sub(60);
    let until = now.plus(validity).seconds();
    let mut builder = Builder::new(nonce, key.key_data().clone(), from, until).map_err(fail)?;
    builder.cert_type(CertType::User).map_err(fail)?;
    builder.key_id(id).map_err(fail)?;
    builder.valid_principal(account).map_err(fail)?;
    for extension in [
        "permit-X11-forwarding",
        "permit-agent-forwarding",
        "permit-port-forwarding",
        "permit-pty",
        "permit-user-rc",
    ] {
        builder.extension(extension, "").map_err(fail)?;
    }
    builder.sign(ca).map_err(fail)
}

/// A public key as "ALGORITHM BASE64", without a comment, and its fingerprint.
///
/// # Errors
/// When it cannot be encoded.
pub fn public_key_line(key: &PublicKey) -> Result<(String, String), PublicKeyError> {
    let mut bare = key.clone();
    bare.set_comment("");
    let line = bare.to_openssh().map_err(|error| PublicKeyError::Format(error.to_string()))?;
    Ok((line.trim_end().to_owned(), key.fingerprint(russh::keys::HashAlg::Sha256).to_string()))
}

/// The first key of a text of public keys, as [`public_key_line`].
///
/// # Errors
/// When there is none.
pub fn host_key_line(text: &str) -> Result<(String, String), PublicKeyError> {
    let line = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let line = line.ok_or_else(|| PublicKeyError::Format("there is none".to_owned()))?;
    let key = PublicKey::from_openssh(line.trim())
        .map_err(|error| PublicKeyError::Format(error.to_string()))?;
    public_key_line(&key)
}

/// The fingerprint of a public key's line.
pub fn fingerprint(line: &str) -> Option<String> {
    let key = PublicKey::from_openssh(line).ok()?;
    Some(key.fingerprint(russh::keys::HashAlg::Sha256).to_string())
}

/// A private key in OpenSSH's format, without a passphrase.
///
/// # Errors
/// When it is none, or has one.
pub fn private_key(text: &[u8]) -> Result<PrivateKey, PublicKeyError> {
    let format = |reason: &str| PublicKeyError::Format(reason.to_owned());
    let key = PrivateKey::from_openssh(text)
        .map_err(|_| format("it is no private key in OpenSSH's format"))?;
    if key.is_encrypted() {
        return Err(format("it has a passphrase: take it off with 'ssh-keygen -p'"));
    }
    Ok(key)
}

/// The key that signs the audit log.
#[derive(Debug, Clone)]
pub struct AuditKey(PrivateKey);

impl AuditKey {
    /// Wraps the key read from its file.
    pub fn new(key: PrivateKey) -> Self {
        Self(key)
    }

    /// The signature on `text`, in base64.
    ///
    /// # Errors
    /// When the key cannot sign, which an Ed25519 key in memory always can.
    pub fn sign(&self, text: &str) -> Result<String, russh::keys::signature::Error> {
        let signature: Signature = self.0.try_sign(text.as_bytes())?;
        Ok(BASE64.encode(signature.as_bytes()))
    }

    /// A secret of this store's for one purpose, the same on every node.
    ///
    /// # Errors
    /// When the key is no Ed25519 key, which one from its file always is.
    pub fn derive(&self, purpose: &str) -> Result<zeroize::Zeroizing<[u8; 32]>, Error> {
        let KeypairData::Ed25519(pair) = self.0.key_data() else {
            let reason = "it is of another kind".to_owned();
            return Err(Error::Format { path: "audit_key".into(), reason });
        };
        let mut derived = zeroize::Zeroizing::new([0; 32]);
        let seed = zeroize::Zeroizing::new(pair.private.to_bytes());
        hkdf::Hkdf::<sha2::Sha256>::new(None, &seed[..])
            .expand(purpose.as_bytes(), &mut derived[..])
            .map_err(|error| Error::Certificate(error.to_string()))?;
        Ok(derived)
    }

    /// What checks its signatures.
    pub fn public(&self) -> AuditPublicKey {
        AuditPublicKey(self.0.public_key().clone())
    }
}

/// The public half of the audit key, which is all that checking a log takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPublicKey(PublicKey);

impl AuditPublicKey {
    /// Parses the key from OpenSSH's one-line format.
    ///
    /// # Errors
    /// When it is no Ed25519 public key.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains("PRIVATE KEY") {
            let public = "give its public half, which 'sallyport audit key' prints";
            return Err(format!("that is the audit key itself, which is secret: {public}"));
        }
        match PublicKey::from_openssh(text) {
            Ok(key) if key.algorithm() == Algorithm::Ed25519 => Ok(Self(key)),
            Ok(key) => {
                Err(format!("the audit key is an {} key, not an Ed25519 one", key.algorithm()))
            }
            Err(error) => Err(format!("failed to read the audit key: {error}")),
        }
    }

    /// The key in OpenSSH's one-line format.
    pub fn to_line(&self) -> String {
        self.0.to_openssh().unwrap_or_default()
    }

    /// The key's SHA-256 fingerprint as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(russh::keys::HashAlg::Sha256).to_string()
    }
}

impl Signatures for AuditPublicKey {
    fn verify(&self, text: &str, signature: &str) -> bool {
        let Ok(bytes) = BASE64.decode(signature) else { return false };
        let Ok(signature) = Signature::new(Algorithm::Ed25519, bytes) else { return false };
        self.0.key_data().verify(text.as_bytes(), &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_folder_holds_credentials() {
        let key = Path::new("/run/credentials/sallyport.service/host_key");
        for (folder, is) in [
            ("/run/credentials/sallyport.service", true),
            ("/run/credentials/sally", false),
            ("", false),
            (".", false),
            ("run/credentials", false),
        ] {
            assert_eq!(is_credential(key, Path::new(folder)), is, "{folder:?}");
        }
        assert!(!is_credential(Path::new("data/host_key"), Path::new("data")));
    }

    #[test]
    fn keys_are_made_once_and_guarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = load_or_create(&path, "test").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&path, "test").unwrap().public_key(), made.public_key());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(write_secret(&path, b"x"), Err(Error::Io { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&path), Err(Error::Permissions(_))));
    }

    /// Only root can give a file away, and only then is there a difference.
    #[test]
    fn a_replaced_file_stays_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_secret(&path, b"old").unwrap();
        let own = rustix::process::getuid();
        let owner = if own.is_root() { 65534 } else { own.as_raw() };
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        replace_secret(&path, b"new").unwrap();
        let replaced = fs::metadata(&path).unwrap();
        assert_eq!((replaced.uid(), replaced.mode() & 0o777), (owner, 0o600));
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn audit_signatures_check_out_only_for_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let key = AuditKey::new(load_or_create(&dir.path().join("key"), "audit").unwrap());
        let signature = key.sign("one").unwrap();
        let public = AuditPublicKey::parse(&key.public().to_line()).unwrap();
        assert!(public.verify("one", &signature));
        assert!(!public.verify("two", &signature));
        assert!(!public.verify("one", "????"));
        let private = fs::read_to_string(dir.path().join("key")).unwrap();
        assert!(AuditPublicKey::parse(&private).unwrap_err().contains("'sallyport audit key'"));
    }
}
