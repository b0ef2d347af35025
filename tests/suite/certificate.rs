//! User certificates of authorities that the configuration lists, made by the real `ssh-keygen` and
//! shown by the real client.

use std::path::Path;
use std::time::Duration;

use crate::support::bastion::{Engine, Person, TestBastion};
use crate::support::keypair::KeyPair;
use crate::support::on_both_engines;
use crate::support::ssh::{Client, Run};

on_both_engines!(a_certificate_of_a_listed_authority_and_a_code_sign_in);

/// A bastion that knows one authority, alice, and a key of hers that it does not know.
struct Setting {
    bastion: TestBastion,
    alice: Person,
    authority: KeyPair,
    key: KeyPair,
}

impl Setting {
    async fn start(engine: Engine) -> Self {
        let (authority, key) = (KeyPair::new().await, KeyPair::new().await);
        let bastion = TestBastion::start_with(engine, &listing(&authority)).await;
        let alice = bastion.person("alice").await;
        Self { bastion, alice, authority, key }
    }

    /// Shows a certificate for `key`, and gives a code.
    async fn show(&self, key: &KeyPair, certificate: &Path, options: &[&str]) -> Run {
        let certificate = certificate.display();
        let lines = format!("{}\nCertificateFile {certificate}", key.identity());
        let client = Client::new(&self.bastion, "alice").host("bastion", &lines);
        client.answers(&[&self.bastion.code(&self.alice)]);
        let methods = "PreferredAuthentications=publickey,keyboard-interactive";
        let once = ["-o", methods, "-o", "NumberOfPasswordPrompts=1"];
        client.ssh(&[&once[..], options, &["bastion", "targets"]].concat()).await
    }
}

fn listing(authority: &KeyPair) -> String {
    format!("[login]\nuser_ca_files = [\"{}\"]\n", authority.public().display())
}

const NOW: [&str; 2] = ["-V", "-5m:+2h"];

async fn a_certificate_of_a_listed_authority_and_a_code_sign_in(engine: Engine) {
    let setting = Setting::start(engine).await;
    let Setting { bastion, authority, key, .. } = &setting;
    let options = [&["-I", "laptop", "-n", "bob,alice", "-z", "7"][..], &NOW].concat();
    let certificate = authority.sign(key, &options).await;
    setting.show(key, &certificate, &[]).await.ok();
    let event = bastion.event("signed-in", &[("user", "alice")]).await;
    assert_eq!(event["steps"], serde_json::json!(["certificate", "code"]));
    let shown = format!("laptop (serial 7) by {}", authority.fingerprint());
    bastion.event("step-passed", &[("step", "certificate"), ("key", &shown)]).await;

    // From where it says, and from elsewhere not.
    let bound = [&options[..], &["-O", "source-address=127.0.0.1/32,10.0.0.0/8"]].concat();
    let certificate = authority.sign(key, &bound).await;
    setting.show(key, &certificate, &[]).await.ok();
    let away = ["-o", "BindAddress=127.0.0.2"];
    setting.show(key, &certificate, &away).await.failed();
    bastion.event("certificate-refused", &[("id", "laptop"), ("reason", "wrong-source")]).await;

    // Its key alone, which is not one of hers, is nothing.
    let client = Client::new(bastion, "alice").host("bastion", &key.identity());
    client.answers(&["000000"]);
    client.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    let methods = bastion.kinds("signed-in").await;
    assert_eq!(methods.len(), 2, "{methods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_certificate_is_written_down_and_not_told() {
    let setting = Setting::start(Engine::Sqlite).await;
    let Setting { bastion, authority, key, .. } = &setting;
    let other = KeyPair::new().await;
    let for_alice = [&["-I", "x", "-n", "alice"][..], &NOW].concat();
    let with = |more: &[&'static str]| [&for_alice[..], more].concat();
    let mut told = Vec::new();
    for (signer, options, reason) in [
        (&other, for_alice.clone(), "unknown-authority"),
        (authority, [&["-I", "x", "-n", "bob"][..], &NOW].concat(), "other-principal"),
        (authority, [&["-I", "x"][..], &NOW].concat(), "other-principal"),
        (authority, with(&["-O", "source-address=10.0.0.0/8"]), "wrong-source"),
        (authority, with(&["-O", "force-command=id"]), "critical-option"),
        (authority, with(&["-O", "critical:x@example.org=1"]), "critical-option"),
        (authority, with(&["-O", "verify-required"]), "critical-option"),
    ] {
        let certificate = signer.sign(key, &options).await;
        let ran = setting.show(key, &certificate, &[]).await.failed();
        told.push(ran.err.lines().last().unwrap_or_default().to_owned());
        let authority = signer.fingerprint();
        let fields = [("reason", reason), ("authority", &*authority), ("user", "alice")];
        bastion.event("certificate-refused", &fields).await;
    }
    // A time that is over by the bastion's clock; the client's and russh's do not know yet.
    let certificate = authority.sign(key, &for_alice).await;
    bastion.clock.advance(Duration::from_secs(3 * 3600));
    told.push(
        setting.show(key, &certificate, &[]).await.failed().err.lines().last().unwrap().into(),
    );
    bastion.event("certificate-refused", &[("reason", "expired")]).await;
    // One that was over before, and one of tomorrow, are refused before we are asked.
    for validity in ["20200101:20200102", "+1d:+2d"] {
        let options = ["-I", "x", "-n", "alice", "-V", validity];
        let certificate = authority.sign(key, &options).await;
        let ran = setting.show(key, &certificate, &[]).await.failed();
        told.push(ran.err.lines().last().unwrap_or_default().to_owned());
    }
    assert!(
        told.iter().all(|line| *line == told[0] && line.contains("Permission denied")),
        "{told:?}"
    );
    assert!(bastion.kinds("signed-in").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_later_is_refused_until_then() {
    let (authority, key) = (KeyPair::new().await, KeyPair::new().await);
    let start = sallyport::clock::Clock::System.now().0 - 3 * 3600 * 1000;
    let start = sallyport::domain::UnixTime(start);
    let bastion = TestBastion::start_at(start, Engine::Sqlite, &listing(&authority)).await;
    let alice = bastion.person("alice").await;
    let setting = Setting { bastion, alice, authority, key };
    let Setting { bastion, authority, key, .. } = &setting;
    let options = [&["-I", "x", "-n", "alice"][..], &NOW].concat();
    let certificate = authority.sign(key, &options).await;
    setting.show(key, &certificate, &[]).await.failed();
    bastion.event("certificate-refused", &[("reason", "not-yet-valid")]).await;
    bastion.clock.advance(Duration::from_secs(3 * 3600));
    setting.show(key, &certificate, &[]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_keys_and_signatures_are_refused() {
    let rsa = KeyPair::of(&["-t", "rsa", "-b", "2048"]).await;
    let bastion = TestBastion::start_with(Engine::Sqlite, &listing(&rsa)).await;
    let alice = bastion.person("alice").await;
    let key = KeyPair::new().await;
    let setting = Setting { bastion, alice, authority: rsa, key };
    let Setting { bastion, authority, key, .. } = &setting;
    let options = [&["-I", "x", "-n", "alice"][..], &NOW].concat();
    let good = authority.sign(key, &options).await;
    setting.show(key, &good, &[]).await.ok();
    let sha1 = authority.sign(key, &[&options[..], &["-t", "ssh-rsa"]].concat()).await;
    let also = ["-o", "CASignatureAlgorithms=+ssh-rsa"];
    setting.show(key, &sha1, &also).await.failed();
    bastion.event("certificate-refused", &[("reason", "weak")]).await;
    // A key of 1024 bits: OpenSSH offers it only if it is told to.
    let small = KeyPair::of(&["-t", "rsa", "-b", "1024"]).await;
    let certified = authority.sign(&small, &options).await;
    setting.show(&small, &certified, &["-o", "RequiredRSASize=1024"]).await.failed();
    assert_eq!(bastion.kinds("signed-in").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_are_read_again_on_a_reload_and_weak_ones_refused() {
    let setting = Setting::start(Engine::Sqlite).await;
    let Setting { bastion, authority, key, .. } = &setting;
    let options = [&["-I", "x", "-n", "alice"][..], &NOW].concat();
    let certificate = authority.sign(key, &options).await;
    setting.show(key, &certificate, &[]).await.ok();
    let next = KeyPair::new().await;
    std::fs::copy(next.public(), authority.public()).unwrap();
    let config = &bastion.config;
    sallyport::serve::reload(&bastion.bastion, None, config, config.clone()).unwrap();
    setting.show(key, &certificate, &[]).await.failed();
    let certificate = next.sign(key, &options).await;
    setting.show(key, &certificate, &[]).await.ok();
    let small = KeyPair::of(&["-t", "rsa", "-b", "1024"]).await;
    std::fs::copy(small.public(), authority.public()).unwrap();
    let refused = sallyport::serve::reload(&bastion.bastion, None, config, config.clone());
    let error = format!("{:#}", refused.unwrap_err());
    setting.show(key, &certificate, &[]).await.ok();
    assert!(error.contains("user_ca_files") && error.contains("too weak"), "{error}");
}
