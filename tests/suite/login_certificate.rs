//! `ssh alice@bastion certificate`: after a code, a certificate that stands for one until it expires.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use sallyport::audit::Context;
use sallyport::auth::password;
use sallyport::domain::{UnixTime, UserName};

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::hop::{Ran, fed};
use crate::support::keypair::KeyPair;
use crate::support::ssh::{Client, Run};
use crate::support::{ended, eventually, on_both_engines};

on_both_engines!(
    a_certificate_stands_for_a_code_until_it_expires,
    what_changes_the_account_ends_its_certificates,
    a_revoked_certificate_ends_its_sessions,
    nobody_has_more_than_a_few_certificates,
);

const ON: &str = "[login]\ncertificate_life = \"8h\"\n";
const BATCH: [&str; 4] = ["-o", "BatchMode=yes", "-o", "PreferredAuthentications=publickey"];

/// A bastion whose clock is behind the client's and russh's, so that it may move on with each code and
/// a certificate of its holds by theirs.
async fn bastion(engine: Engine) -> TestBastion {
    let now = sallyport::clock::Clock::System.now();
    TestBastion::start_at(UnixTime(now.0 - 3600 * 1000), engine, ON).await
}

/// Alice, and a key of hers that the bastion does not know but by certificates.
struct Holder {
    alice: Person,
    key: KeyPair,
    certificate: PathBuf,
}

impl Holder {
    async fn new(bastion: &TestBastion) -> Self {
        let (alice, key) = (bastion.person("alice").await, KeyPair::new().await);
        let certificate = key.path("given-cert.pub");
        Self { alice, key, certificate }
    }

    /// Asks for a certificate with password and code.
    async fn ask(&self, bastion: &TestBastion) -> Ran {
        let client = Client::new(bastion, "alice");
        client.answers(&[PASSWORD, &bastion.code(&self.alice)]);
        let ran = fed(&mut client.command("ssh", &["bastion", "certificate"]), self.line()).await;
        std::fs::write(&self.certificate, &ran.out).unwrap();
        ran
    }

    fn line(&self) -> &'static [u8] {
        self.key.line().leak().as_bytes()
    }

    /// A client that shows the certificate and asks nothing.
    fn client(&self, bastion: &TestBastion) -> Client {
        let certificate = self.certificate.display();
        let lines = format!("{}\nCertificateFile {certificate}", self.key.identity());
        Client::new(bastion, "alice").host("bastion", &lines)
    }

    async fn enter(&self, bastion: &TestBastion, options: &[&str]) -> Run {
        let args = [&BATCH[..], options, &["bastion", "targets"]].concat();
        self.client(bastion).ssh(&args).await
    }

    async fn serial(&self, bastion: &TestBastion) -> i64 {
        let rows = bastion.store().certificates(Some(&self.alice.name), bastion.now()).await;
        rows.unwrap()[0].serial
    }
}

async fn a_certificate_stands_for_a_code_until_it_expires(engine: Engine) {
    let bastion = self::bastion(engine).await;
    let holder = Holder::new(&bastion).await;
    let ran = holder.ask(&bastion).await.ok();
    let serial = holder.serial(&bastion).await;
    assert!(ran.text().starts_with("ssh-ed25519-cert-v01@openssh.com "), "{}", ran.text());
    assert_eq!(ran.text().lines().count(), 1, "{}", ran.text());
    assert!(ran.err.contains(&format!("Certificate {serial} lets you in")), "{}", ran.err);
    let issued = bastion.event("certificate-issued", &[("user", "alice")]).await;
    assert_eq!((&issued["serial"], &issued["from"]), (&serial.into(), &"127.0.0.1".into()));
    // It names the session that it was given in, and its serial number.
    let session = issued["session"].as_str().unwrap();
    let listed = sallyport_keygen(&["-L", "-f", holder.certificate.to_str().unwrap()]).await.out;
    for said in [
        format!("alice session {session} serial {serial}"),
        format!("Serial: {serial}"),
        "source-address 127.0.0.1".to_owned(),
        "user certificate".to_owned(),
    ] {
        assert!(listed.contains(&said), "{said}: {listed}");
    }

    holder.enter(&bastion, &[]).await.ok();
    holder.enter(&bastion, &[]).await.ok();
    let fields = [("step", "certificate"), ("user", "alice")];
    let passed = bastion.event("step-passed", &fields).await;
    assert!(passed["key"].as_str().unwrap().contains(&format!("serial {serial}")), "{passed}");
    let steps: Vec<_> = bastion.kinds("signed-in").await;
    assert_eq!(steps.last().unwrap()["steps"], serde_json::json!(["certificate"]));

    // From elsewhere, as somebody else, with the key alone: nothing.
    holder.enter(&bastion, &["-o", "BindAddress=127.0.0.2"]).await.failed();
    bastion.event("certificate-refused", &[("reason", "wrong-source")]).await;
    bastion.person("bob").await;
    holder.enter(&bastion, &["-o", "User=bob"]).await.failed();
    let bare = Client::new(&bastion, "alice").host("bastion", &holder.key.identity());
    bare.ssh(&[&BATCH[..], &["bastion"]].concat()).await.failed();

    // It leads to no other, and is listed.
    let client = holder.client(&bastion);
    let mut command = client.command("ssh", &["bastion", "certificate"]);
    let ran = fed(&mut command, holder.line()).await.failed();
    assert!(ran.err.contains("only to who has just signed in with a code"), "{}", ran.err);
    let refused = [("command", "certificate"), ("reason", "sign-in-rule")];
    bastion.event("command-refused", &refused).await;
    let listed = holder.client(&bastion).ssh(&["bastion", "certificate", "list"]).await.ok().out;
    assert!(listed.contains(&serial.to_string()) && listed.contains("127.0.0.1"), "{listed}");
    // What the ssh-config of the bastion says leads here.
    let told = holder.client(&bastion).ssh(&["bastion", "ssh-config"]).await.ok().out;
    assert!(told.contains("CertificateFile ~/.ssh/sallyport-cert.pub"), "{told}");
    assert!(told.contains("certificate \\\n"), "{told}");

    bastion.clock.advance(Duration::from_secs(8 * 3600));
    holder.enter(&bastion, &[]).await.failed();
    assert!(bastion.store().certificates(None, bastion.now()).await.unwrap().is_empty());
}

/// Whoever finds a session of hers open must not get hours out of it for a key of their own.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_session_gives_no_certificate() {
    let bastion = self::bastion(Engine::Sqlite).await;
    let holder = Holder::new(&bastion).await;
    let client = Client::new(&bastion, "alice");
    let control = client.path("control");
    let client = client.host("bastion", &format!("ControlPath {}", control.display()));
    client.answers(&[PASSWORD, &bastion.code(&holder.alice)]);
    let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
    let mut master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the master is up", async || control.exists().then_some(())).await;
    client.ssh(&["bastion", "targets"]).await.ok();
    let mut command = client.command("ssh", &["bastion", "certificate"]);
    let ran = fed(&mut command, holder.line()).await.failed();
    assert!(ran.err.contains("only right after a code"), "{}", ran.err);
    let refused = [("command", "certificate"), ("reason", "sign-in-rule")];
    bastion.event("command-refused", &refused).await;
    client.ssh(&["-O", "exit", "bastion"]).await.ok();
    ended(&mut master).await;
}

async fn sallyport_keygen(args: &[&str]) -> Run {
    let mut keygen = crate::support::command(crate::support::tool("ssh-keygen"));
    crate::support::ssh::run(keygen.args(args)).await.ok()
}

async fn what_changes_the_account_ends_its_certificates(engine: Engine) {
    let bastion = self::bastion(engine).await;
    let holder = Holder::new(&bastion).await;
    let (store, context) = (bastion.store(), Context::default());
    let name: &UserName = &holder.alice.name;
    let cost = password::Cost { memory_kib: 8, passes: 1, lanes: 1 };
    let hash = password::hash(&PASSWORD.into(), cost).unwrap();
    for change in ["password", "disabled", "factor", "reset"] {
        holder.ask(&bastion).await.ok();
        holder.enter(&bastion, &[]).await.ok();
        let now = bastion.now();
        match change {
            "password" => store.set_password(name, &hash, false, &context, now).await.unwrap(),
            "disabled" => {
                store.set_disabled(name, true, &context, now).await.unwrap();
                holder.enter(&bastion, &[]).await.failed();
                store.set_disabled(name, false, &context, now).await.unwrap();
            }
            "factor" => store.set_user_factor(name, None, &context, now).await.unwrap(),
            _ => {
                let until = now.plus(Duration::from_secs(600));
                store
                    .reset_otp(name, until, sallyport::store::BindingPassword::Kept, &context, now)
                    .await
                    .unwrap();
            }
        }
        let ran = holder.enter(&bastion, &[]).await.failed();
        assert!(ran.err.contains("Permission denied"), "{change}: {ran:?}");
        let held = store.certificates(Some(name), bastion.now()).await.unwrap();
        assert!(held.is_empty(), "{change}: {held:?}");
    }
}

async fn a_revoked_certificate_ends_its_sessions(engine: Engine) {
    let bastion = self::bastion(engine).await;
    let holder = Holder::new(&bastion).await;
    let by_owner = async |serial: i64| {
        let client = Client::new(&bastion, "alice");
        client.answers(&[PASSWORD, &bastion.code(&holder.alice)]);
        let serial = serial.to_string();
        client.ssh(&["bastion", "certificate", "revoke", &serial]).await.ok();
        client.answers(&[PASSWORD, &bastion.code(&holder.alice)]);
        let ran = client.ssh(&["bastion", "certificate", "revoke", &serial]).await.failed();
        assert!(ran.err.contains("no certificate"), "{ran:?}");
    };
    let by_administrator = async |serial: i64| {
        let (store, context) = (bastion.store(), Context::default());
        store.revoke_certificate(None, serial, &context, bastion.now()).await.unwrap();
        // Not by somebody else.
        let bob: UserName = "bob".parse().unwrap();
        store.revoke_certificate(Some(&bob), serial, &context, bastion.now()).await.unwrap_err();
    };
    bastion.person("bob").await;
    for owner in [true, false] {
        holder.ask(&bastion).await.ok();
        let serial = holder.serial(&bastion).await;
        let client = holder.client(&bastion);
        let control = client.path("control");
        let client = client.host("bastion", &format!("ControlPath {}", control.display()));
        let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
        let mut master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the master is up", async || control.exists().then_some(())).await;
        if owner {
            by_owner(serial).await
        } else {
            by_administrator(serial).await
        }
        crate::support::ended(&mut master).await;
        bastion.event("session-ended", &[("reason", "revoked")]).await;
        holder.enter(&bastion, &[]).await.failed();
        let revoked = bastion.kinds("certificate-revoked").await;
        assert_eq!(revoked.last().unwrap()["serial"], serial);
    }
}

async fn nobody_has_more_than_a_few_certificates(engine: Engine) {
    let bastion = self::bastion(engine).await;
    let holder = Holder::new(&bastion).await;
    let store = bastion.store();
    let issue = async |serial: i64, until: UnixTime| {
        let session = sallyport::domain::Id::random().unwrap();
        let new = sallyport::store::NewCertificate {
            serial,
            account: &holder.alice.id,
            epoch: 2,
            key: "SHA256:x",
            source: None,
            session: &session,
            until,
        };
        store.issue_certificate(&new, &Context::default(), bastion.now()).await.unwrap()
    };
    let (soon, later) = (Duration::from_secs(3600), Duration::from_secs(8 * 3600));
    issue(1, bastion.now().plus(soon)).await.unwrap();
    for serial in 2..=50 {
        issue(serial, bastion.now().plus(later)).await.unwrap();
    }
    let many = Err(sallyport::audit::Refusal::TooManyCertificates);
    assert_eq!(issue(51, bastion.now().plus(later)).await, many);
    let ran = holder.ask(&bastion).await.failed();
    assert!(ran.err.contains("revoke one with 'certificate revoke SERIAL'"), "{}", ran.err);
    let refused = [("command", "certificate"), ("reason", "too-many-certificates")];
    bastion.event("command-refused", &refused).await;
    // One that is revoked, or over, makes room.
    let (context, now) = (Context::default(), bastion.now());
    store.revoke_certificate(Some(&holder.alice.name), 2, &context, now).await.unwrap();
    holder.ask(&bastion).await.ok();
    assert_eq!(issue(51, bastion.now().plus(later)).await, many);
    bastion.clock.advance(soon);
    issue(51, bastion.now().plus(later)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_they_are_off_none_is_given_and_the_answer_says_what_to_do() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let holder = Holder::new(&bastion).await;
    let ran = holder.ask(&bastion).await.failed();
    assert!(ran.err.contains("login.certificate_life"), "{}", ran.err);
    assert_eq!(ran.text(), "");
    let refused = [("command", "certificate"), ("reason", "not-offered")];
    bastion.event("command-refused", &refused).await;
    assert!(bastion.kinds("certificate-issued").await.is_empty());

    let bastion = self::bastion(Engine::Sqlite).await;
    let holder = Holder::new(&bastion).await;
    // Nonsense, a weak key, nothing at all, or a rule that takes no certificates.
    for (input, why) in [
        ("nonsense\n", "failed to read a public key"),
        ("# nothing\n", "there is no public key"),
        ("", "there is no public key"),
    ] {
        let client = Client::new(&bastion, "alice");
        client.answers(&[PASSWORD, &bastion.code(&holder.alice)]);
        let mut command = client.command("ssh", &["bastion", "certificate"]);
        let ran = fed(&mut command, input.as_bytes()).await.failed();
        assert!(ran.err.contains(why), "{input}: {}", ran.err);
    }
    let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
    let rule = "password+otp, key+otp".parse().unwrap();
    store.set_user_sign_in(&holder.alice.name, Some(&rule), &context, now).await.unwrap();
    let ran = holder.ask(&bastion).await.failed();
    assert!(ran.err.contains("a certificate would not let you in"), "{}", ran.err);
    assert!(bastion.kinds("certificate-issued").await.is_empty());
}
