//! The host keys that the bastion shows under `ssh -J` in a target's place.
//!
//! Always holds: a target's key is the same at every connection and on every node that has the
//! host CA, without being stored anywhere: it is derived from the CA's secret and the target's id.
//! The certificate over it is made for the name that the client asked for.

use std::time::Duration;

use hkdf::Hkdf;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Certificate, PrivateKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::domain::{Target, UnixTime};
use crate::keys;

/// How long a certificate is good for: longer than any client looks at it, which is once.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The key and certificate that stand for `target` when somebody asks for `name`.
///
/// # Errors
/// When the CA is no Ed25519 key, or the certificate cannot be made.
pub(super) fn stand_in(
    ca: &PrivateKey,
    target: &Target,
    name: &str,
    now: UnixTime,
) -> Result<(PrivateKey, Certificate), keys::Error> {
    let key = derive(ca, target)?;
    let mut names = vec![name.to_owned(), target.name.to_string()];
    names.push(target.address.host.to_string());
    names.sort();
    names.dedup();
    let certificate = keys::host_certificate(ca, key.public_key(), &names, now, VALIDITY)?;
    Ok((key, certificate))
}

/// RFC 5869, with the target's id as what the key is for.
fn derive(ca: &PrivateKey, target: &Target) -> Result<PrivateKey, keys::Error> {
    let KeypairData::Ed25519(pair) = ca.key_data() else {
        return Err(keys::Error::Certificate("the host CA is no Ed25519 key".to_owned()));
    };
    let secret = Zeroizing::new(pair.private.to_bytes());
    let hkdf = Hkdf::<Sha256>::new(Some(b"sallyport stand-in host key 1"), &*secret);
    let mut seed = Zeroizing::new([0; 32]);
    hkdf.expand(target.id.as_str().as_bytes(), &mut *seed)
        .map_err(|error| keys::Error::Certificate(error.to_string()))?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    PrivateKey::new(pair, format!("{} by sallyport", target.name))
        .map_err(|error| keys::Error::Certificate(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Id, Mode};

    fn target(id: &str) -> Target {
        Target {
            id: id.parse::<Id>().unwrap(),
            name: "db1".parse().unwrap(),
            address: "10.0.0.5".parse().unwrap(),
            mode: Mode::Record,
            sign_in: None,
            labels: Vec::new(),
            created_at: UnixTime(0),
        }
    }

    #[test]
    fn a_target_has_one_key_and_a_certificate_for_the_name_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = keys::load_or_create(&dir.path().join("ca"), "ca").unwrap();
        let now = UnixTime(1_795_508_403_000);
        let (key, certificate) = stand_in(&ca, &target("aaaaaaaaaaaa"), "db1.local", now).unwrap();
        let (again, _) = stand_in(&ca, &target("aaaaaaaaaaaa"), "db1", now).unwrap();
        let (other, _) = stand_in(&ca, &target("bbbbbbbbbbbb"), "db1", now).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert_ne!(key.public_key(), other.public_key());
        assert_ne!(key.public_key(), ca.public_key());
        assert_eq!(certificate.valid_principals(), ["10.0.0.5", "db1", "db1.local"]);
        assert_eq!(certificate.signature_key(), ca.public_key().key_data());
    }
}
