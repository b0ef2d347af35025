//! One code for fifty hosts, as Ansible asks for them: by a certificate, a remembered login, and a shared
//! connection.

use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt as _;
use sallyport::audit::Context;
use sallyport::clock::Clock;
use sallyport::domain::{GroupName, Remember, UnixTime};

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::hop::fed;
use crate::support::keypair::KeyPair;
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;
use crate::support::{ended, eventually, present_user};

const HOSTS: usize = 50;
/// As many at once as Ansible takes where nothing else is said.
const FORKS: usize = 5;

/// A bastion with fifty recorded targets, which one sshd is, and alice, who may go to each.
struct Fleet {
    bastion: TestBastion,
    alice: Person,
    key: KeyPair,
    _sshd: Sshd,
}

impl Fleet {
    async fn new() -> Self {
        // Behind the clocks of client and host, so that certificates hold by those, too.
        let start = UnixTime(Clock::System.now().0 - 3600 * 1000);
        let on = "[login]\ncertificate_life = \"8h\"\n";
        let bastion = TestBastion::start_at(start, Engine::Sqlite, on).await;
        let (alice, key) = (bastion.person("alice").await, KeyPair::new().await);
        let sshd = Sshd::start().await;
        for host in hosts() {
            bastion.record_target(&host, &sshd).await;
            bastion.add_grant("alice", &host, |_| {}).await;
        }
        Self { bastion, alice, key, _sshd: sshd }
    }

    /// A client that reaches each through the bastion, with these lines for the bastion.
    fn client(&self, lines: &str) -> Client {
        let client = Client::new(&self.bastion, "alice").host("bastion", lines);
        let known = client.path("known_targets");
        let ca = self.bastion.bastion.relay.host_ca.public_key().to_openssh().unwrap();
        std::fs::write(&known, format!("@cert-authority * {ca}\n")).unwrap();
        let lines = format!(
            "ProxyJump bastion\nUser {}\nUserKnownHostsFile {}\nStrictHostKeyChecking yes",
            present_user(),
            known.display()
        );
        client.host("host*", &lines)
    }

    fn code(&self) -> String {
        self.bastion.code(&self.alice)
    }

    /// Runs something on every host, where nobody can be asked; then one code was given in all.
    async fn run_on_all(&self, client: &Client) {
        let run = async |host: String| {
            let args = ["-o", "BatchMode=yes", &host, &format!("echo on {host}")];
            assert_eq!(client.ssh(&args).await.ok().out.trim(), format!("on {host}"));
        };
        futures_util::stream::iter(hosts()).for_each_concurrent(FORKS, run).await;
        let passed = self.bastion.kinds("step-passed").await;
        assert_eq!(passed.iter().filter(|event| event["step"] == "code").count(), 1);
        assert_eq!(self.bastion.kinds("target-signed-in").await.len(), HOSTS);
    }
}

fn hosts() -> impl Iterator<Item = String> {
    (1..=HOSTS).map(|number| format!("host{number}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_certificate() {
    let fleet = Fleet::new().await;
    let by_code = fleet.client("");
    by_code.answers(&[PASSWORD, &fleet.code()]);
    let mut ask = by_code.command("ssh", &["bastion", "certificate"]);
    let given = fed(&mut ask, fleet.key.line().as_bytes()).await.ok();
    let file = fleet.key.path("given-cert.pub");
    std::fs::write(&file, given.out).unwrap();
    let lines = format!("{}\nCertificateFile {}", fleet.key.identity(), file.display());
    let client = fleet.client(&lines);
    fleet.run_on_all(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_remembered_login() {
    let fleet = Fleet::new().await;
    fleet.key.add_to(&fleet.bastion, &fleet.alice).await;
    let (store, context, now) = (fleet.bastion.store(), Context::default(), fleet.bastion.now());
    let group: GroupName = "staff".parse().unwrap();
    store.add_group(&group, &context, now).await.unwrap();
    store.join_group(&group, &fleet.alice.name, &context, now).await.unwrap();
    let hours = Remember::For(Duration::from_secs(8 * 3600));
    store.set_group_remember(&group, hours, &context, now).await.unwrap();
    let client = fleet.client(&fleet.key.identity());
    client.answers(&[&fleet.code()]);
    client.ssh(&["bastion", "targets"]).await.ok();
    fleet.run_on_all(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_shared_connection() {
    let fleet = Fleet::new().await;
    let control = fleet.key.path("control");
    let client = fleet.client(&format!("ControlPath {}", control.display()));
    client.answers(&[PASSWORD, &fleet.code()]);
    let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
    let mut master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the master is up", async || control.exists().then_some(())).await;
    fleet.run_on_all(&client).await;
    client.ssh(&["-O", "exit", "bastion"]).await.ok();
    ended(&mut master).await;
}
