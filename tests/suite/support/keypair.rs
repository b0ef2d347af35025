//! Keys and certificates by the real `ssh-keygen`.

use std::path::{Path, PathBuf};

use sallyport::audit::Context;

use super::bastion::{Person, TestBastion};
use super::ssh::run;
use super::{command, tool};

/// A key pair in a folder of its own.
pub struct KeyPair {
    dir: tempfile::TempDir,
}

impl KeyPair {
    /// A new Ed25519 key.
    pub async fn new() -> Self {
        Self::of(&["-t", "ed25519"]).await
    }

    /// A new key of the kind that these options of `ssh-keygen` make.
    pub async fn of(kind: &[&str]) -> Self {
        let pair = Self { dir: tempfile::tempdir().unwrap() };
        let mut keygen = command(tool("ssh-keygen"));
        keygen.args(["-q", "-N", "", "-C", "test", "-f"]).arg(pair.private()).args(kind);
        run(&mut keygen).await.ok();
        pair
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn private(&self) -> PathBuf {
        self.path("key")
    }

    pub fn public(&self) -> PathBuf {
        self.path("key.pub")
    }

    /// The line of the public key.
    pub fn line(&self) -> String {
        std::fs::read_to_string(self.public()).unwrap()
    }

    pub fn fingerprint(&self) -> String {
        sallyport::keys::fingerprint(&self.line()).unwrap()
    }

    /// The lines of ssh_config(5) that use it, and no certificate that lies beside it.
    pub fn identity(&self) -> String {
        format!("IdentityFile {}", self.private().display())
    }

    /// Adds it to somebody's keys.
    pub async fn add_to(&self, bastion: &TestBastion, person: &Person) {
        let (fingerprint, line) = sallyport::keys::public_key(&self.line()).unwrap();
        let (store, context) = (bastion.store(), Context::default());
        store.add_key(&person.name, &fingerprint, &line, &context, bastion.now()).await.unwrap();
    }

    /// Signs `key`, whose public half this is, with these options; where the certificate is.
    pub async fn sign(&self, key: &Self, options: &[&str]) -> PathBuf {
        let signed = key.path(&format!("signed{}.pub", options.join("").len()));
        std::fs::copy(key.public(), &signed).unwrap();
        let mut keygen = command(tool("ssh-keygen"));
        keygen.args(["-q", "-s"]).arg(self.private()).args(options).arg(&signed);
        run(&mut keygen).await.ok();
        certificate_of(&signed)
    }
}

/// Where `ssh-keygen -s` puts the certificate of a public key.
fn certificate_of(public: &Path) -> PathBuf {
    let name = public.to_str().unwrap().strip_suffix(".pub").unwrap();
    PathBuf::from(format!("{name}-cert.pub"))
}
