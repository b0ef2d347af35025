//! User certificates that clients sign in with (OpenSSH PROTOCOL.certkeys): which ones are taken, and
//! those that the login CA gives.
//!
//! Always holds: a certificate stands for somebody only if an authority signed it that is listed, with
//! an algorithm that can be trusted; it is a user's, names them, holds now and from where they are; and
//! has no critical option that is not understood. What a client offers and cannot prove is not looked
//! at here: its signature was checked before.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use russh::keys::ssh_key::certificate::{Builder, CertType, Certificate};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};

use super::{Error, is_strong};
use crate::audit::{CertificateFault, Event};
use crate::auth::machine::Certified;
use crate::domain::{UnixTime, network, noted};

/// The longest file of authorities, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The authorities whose certificates users may sign in with.
#[derive(Debug, Clone, Default)]
pub struct Authorities {
    /// SHA-256 fingerprints.
    listed: Vec<String>,
    /// The login CA's, if it gives certificates.
    login: Option<String>,
}

impl Authorities {
    /// Reads files with authorities; `login` is the login CA, if it gives certificates.
    /// They are files with an authority's public key in each line, as sshd's `TrustedUserCAKeys`.
    ///
    /// # Errors
    /// When a file cannot be read, has no key in it, or a weak one.
    pub fn load(files: &[PathBuf], login: Option<&LoginCa>) -> Result<Self, Error> {
        let mut listed = Vec::new();
        for path in files {
            listed.extend(authorities_in(path)?);
        }
        Ok(Self { listed, login: login.map(LoginCa::fingerprint) })
    }

    /// Whether certificates come for keys that nobody told us of before.
    pub fn has_listed(&self) -> bool {
        !self.listed.is_empty()
    }

    /// What a certificate that a client proved to hold says of `user`; or why it says nothing.
    ///
    /// # Errors
    /// The event to write down.
    pub fn check(
        &self,
        certificate: &Certificate,
        user: &str,
        source: IpAddr,
        now: UnixTime,
    ) -> Result<Certified, Box<Event>> {
        let authority = PublicKey::from(certificate.signature_key().clone());
        let fingerprint = authority.fingerprint(HashAlg::Sha256).to_string();
        let shown = Certified {
            key: certificate.public_key().fingerprint(HashAlg::Sha256).to_string(),
            id: noted(certificate.key_id()),
            serial: certificate.serial(),
            by_login_ca: self.login.as_ref() == Some(&fingerprint),
            authority: fingerprint,
        };
        match self.fault(certificate, (&authority, &shown), user, source, now) {
            None => Ok(shown),
            Some(reason) => {
                let Certified { id, serial, authority, .. } = shown;
                Err(Box::new(Event::CertificateRefused { id, serial, authority, reason }))
            }
        }
    }

    fn fault(
        &self,
        certificate: &Certificate,
        (authority, shown): (&PublicKey, &Certified),
        user: &str,
        source: IpAddr,
        now: UnixTime,
    ) -> Option<CertificateFault> {
        let now = now.seconds();
        let weak_signature = matches!(
            certificate.signature().algorithm(),
            Algorithm::Dsa | Algorithm::Rsa { hash: None }
        );
        let key = PublicKey::from(certificate.public_key().clone());
        Some(if !shown.by_login_ca && !self.listed.contains(&shown.authority) {
            CertificateFault::UnknownAuthority
        } else if weak_signature || !is_strong(authority) || !is_strong(&key) {
            CertificateFault::Weak
        } else if certificate.verify_signature().is_err() {
            CertificateFault::BadSignature
        } else if certificate.cert_type() != CertType::User {
            CertificateFault::NotAUsers
        } else if !certificate.valid_principals().iter().any(|name| name == user) {
            CertificateFault::OtherPrincipal
        } else if now < certificate.valid_after() {
            CertificateFault::NotYetValid
        } else if now >= certificate.valid_before() {
            CertificateFault::Expired
        } else {
            return certificate.critical_options().iter().find_map(|(name, value)| {
                match name.as_str() {
                    "source-address" if is_from(value, source) => None,
                    "source-address" => Some(CertificateFault::WrongSource),
                    _ => Some(CertificateFault::CriticalOption),
                }
            });
        })
    }
}

/// The authority that gives users certificates to sign in with.
#[derive(Debug)]
pub struct LoginCa(PrivateKey);

/// What a certificate of the login CA says.
#[derive(Debug)]
pub struct LoginCertificate<'a> {
    /// Whom it lets in.
    pub user: &'a str,
    /// The public key that it is for, as a line.
    pub key: &'a str,
    /// What logs show of it.
    pub id: &'a str,
    /// Its serial number.
    pub serial: u64,
    /// The one address that it holds from.
    pub source: Option<&'a str>,
}

/// A new serial number. Positive, and no larger than a JSON number can be exactly.
///
/// # Errors
/// When the system has no randomness.
pub fn random_serial() -> Result<i64, Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok((i64::from_le_bytes(bytes) & 0x001f_ffff_ffff_ffff) | 1)
}

impl LoginCa {
    /// Wraps the key read from its file.
    pub fn new(key: PrivateKey) -> Self {
        Self(key)
    }

    fn fingerprint(&self) -> String {
        self.0.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    /// Makes a certificate, good from a minute before `now` for `life` from then, as a line.
    ///
    /// # Errors
    /// When the key is none, or the system has no randomness.
    pub fn issue(
        &self,
        asked: &LoginCertificate<'_>,
        now: UnixTime,
        life: Duration,
    ) -> Result<String, Error> {
        let fail = |e: russh::keys::ssh_key::Error| Error::Certificate(e.to_string());
        let key = PublicKey::from_openssh(asked.key.trim()).map_err(fail)?;
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)?;
        let (from, until) = (now.seconds().saturating_sub(60), now.plus(life).seconds());
        let mut builder = Builder::new(nonce, key.key_data().clone(), from, until).map_err(fail)?;
        builder.serial(asked.serial).map_err(fail)?;
        builder.cert_type(CertType::User).map_err(fail)?;
        builder.key_id(asked.id).map_err(fail)?;
        builder.valid_principal(asked.user).map_err(fail)?;
        if let Some(source) = asked.source {
            builder.critical_option("source-address", source).map_err(fail)?;
        }
        for extension in ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty"] {
            builder.extension(extension, "").map_err(fail)?;
        }
        builder.comment("sallyport").map_err(fail)?;
        builder.sign(&self.0).map_err(fail)?.to_openssh().map_err(fail)
    }
}

/// Whether `source` is in a comma-separated list of addresses and networks.
fn is_from(list: &str, source: IpAddr) -> bool {
    list.split(',').any(|part| network(part.trim()).is_ok_and(|net| net.contains(&source)))
}

fn authorities_in(path: &Path) -> Result<Vec<String>, Error> {
    use std::io::Read as _;
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut text = String::new();
    fs::File::open(path).map_err(io)?.take(MAX_FILE).read_to_string(&mut text).map_err(io)?;
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let key = |(number, line): (usize, &str)| {
        let read = super::public_key(line).map(|(fingerprint, _)| fingerprint);
        let reason = |error| format!("line {number}: {error}");
        read.map_err(|error| Error::Format { path: path.to_owned(), reason: reason(error) })
    };
    let keys = lines.map(key).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        let reason = "there is no authority's public key in it".to_owned();
        return Err(Error::Format { path: path.to_owned(), reason });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_addresses_and_networks() {
        let here = "192.0.2.7".parse().unwrap();
        for (list, there) in [
            ("192.0.2.7", true),
            ("192.0.2.0/24", true),
            ("10.0.0.0/8, 192.0.2.0/24", true),
            ("10.0.0.0/8", false),
            ("", false),
            ("!192.0.2.7", false),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(is_from(list, here), there, "{list}");
        }
    }

    #[test]
    fn a_host_certificate_stands_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str| super::super::load_or_create(&dir.path().join(name), name).unwrap();
        let (ca, key, now) = (key("ca"), key("key"), UnixTime(1_795_508_403_000));
        let listed = vec![ca.public_key().fingerprint(HashAlg::Sha256).to_string()];
        let authorities = Authorities { listed, login: None };
        let hour = std::time::Duration::from_secs(3600);
        let (public, source) = (key.public_key(), "192.0.2.7".parse().unwrap());
        let host =
            super::super::host_certificate(&ca, public, &["alice".into()], now, hour).unwrap();
        let user = super::super::user_certificate(&ca, public, "alice", "x", now, hour).unwrap();
        let check = |certificate, user, now| authorities.check(certificate, user, source, now);
        assert_eq!(check(&user, "alice", now).unwrap().id, "x");
        for (certificate, user, now, reason) in [
            (&host, "alice", now, CertificateFault::NotAUsers),
            (&user, "bob", now, CertificateFault::OtherPrincipal),
            (&user, "alice", now.plus(hour), CertificateFault::Expired),
            (&user, "alice", UnixTime(now.0 - 61_000), CertificateFault::NotYetValid),
        ] {
            let refused = check(certificate, user, now).unwrap_err();
            let Event::CertificateRefused { reason: told, .. } = *refused else { panic!() };
            assert_eq!(told, reason);
        }
        let none = Authorities::default().check(&user, "alice", source, now).unwrap_err();
        let reason = CertificateFault::UnknownAuthority;
        assert!(matches!(*none, Event::CertificateRefused { reason: told, .. } if told == reason));
    }

    #[test]
    fn files_without_a_strong_key_are_refused_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pub");
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            Authorities::load(std::slice::from_ref(&path), None).map_err(|error| error.to_string())
        };
        let key = super::super::load_or_create(&dir.path().join("key"), "ca").unwrap();
        let line = key.public_key().to_openssh().unwrap();
        assert_eq!(load(&format!("# ours\n\n{line}\n")).unwrap().listed.len(), 1);
        assert!(load("# none\n").unwrap_err().contains("no authority's public key"));
        assert!(load(&format!("{line}\nnonsense\n")).unwrap_err().contains("line 2"));
        let error = load("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDU x").unwrap_err();
        assert!(error.contains("line 1"), "{error}");
        assert!(Authorities::load(&[dir.path().join("absent")], None).is_err());
        assert!(!Authorities::load(&[], None).unwrap().has_listed());
    }
}
