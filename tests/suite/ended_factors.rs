//! Verb by verb: what ends the certificates and the remembered logins of a user, so that nobody comes in
//! without a code any more.

use sallyport::audit::Context;
use sallyport::clock::Clock;
use sallyport::domain::{GroupName, Remember, UnixTime};

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion, code_of, secret_of};
use crate::support::hop::fed;
use crate::support::keypair::KeyPair;
use crate::support::screen::Screen;
use crate::support::server::BINARY;
use crate::support::ssh::{Client, Run, run};
use crate::support::{command, on_both_engines};

on_both_engines!(each_verb_ends_both);

const NEW: &str = "an unusual teapot 7";
const HOURS_8: std::time::Duration = std::time::Duration::from_secs(8 * 3600);

/// Somebody with a key whose login is remembered, and a certificate for another key.
struct Holder {
    person: Person,
    remembered: KeyPair,
    certified: KeyPair,
}

impl Holder {
    async fn new(bastion: &TestBastion, name: &str, group: &GroupName) -> Self {
        let person = bastion.person(name).await;
        let (remembered, certified) = (KeyPair::new().await, KeyPair::new().await);
        remembered.add_to(bastion, &person).await;
        let (store, context) = (bastion.store(), Context::default());
        store.join_group(group, &person.name, &context, bastion.now()).await.unwrap();
        let holder = Self { person, remembered, certified };
        let client = holder.by_password(bastion);
        let mut ask = client.command("ssh", &["bastion", "certificate"]);
        let given = fed(&mut ask, holder.certified.line().as_bytes()).await.ok();
        std::fs::write(holder.certified.path("given-cert.pub"), given.out).unwrap();
        let client = Client::new(bastion, name).host("bastion", &holder.remembered.identity());
        client.answers(&[&bastion.code(&holder.person)]);
        client.ssh(&["bastion", "targets"]).await.ok();
        holder
    }

    /// A client with the answers to sign in by password and code.
    fn by_password(&self, bastion: &TestBastion) -> Client {
        let client = Client::new(bastion, self.person.name.as_str());
        client.answers(&[PASSWORD, &bastion.code(&self.person)]);
        client
    }

    /// Signs in without a code: by the remembered login, and by the certificate.
    async fn without_a_code(&self, bastion: &TestBastion) -> [Run; 2] {
        let certificate = self.certified.path("given-cert.pub");
        let certified =
            format!("{}\nCertificateFile {}", self.certified.identity(), certificate.display());
        let enter = async |lines: &str| {
            let client = Client::new(bastion, self.person.name.as_str()).host("bastion", lines);
            client.ssh(&["-o", "BatchMode=yes", "bastion", "targets"]).await
        };
        [enter(&self.remembered.identity()).await, enter(&certified).await]
    }

    /// Types a command of one's own after signing in.
    async fn types(&self, bastion: &TestBastion, words: &str) {
        let (first, code) = (bastion.code(&self.person), bastion.code(&self.person));
        let client = Client::new(bastion, self.person.name.as_str());
        client.answers(&[PASSWORD, &first]);
        if words == "otp rebind" {
            let mut screen = Screen::run(&client.command("ssh", &["-tt", "bastion", words]));
            for (question, answer) in [
                ("Password: ", PASSWORD),
                ("6-digit code: ", &first),
                ("or a recovery code: ", &code),
            ] {
                screen.expect(question).await;
                screen.type_line(answer).await;
            }
            screen.expect("makes a new one): ").await;
            screen.settle().await;
            let uri = screen.qr().unwrap_or_else(|| panic!("no QR code on:\n{}", screen.text()));
            screen.type_line(&code_of(&secret_of(&uri), bastion.now())).await;
            screen.expect("the old authenticator is void").await;
            assert_eq!(screen.ended().await, Some(0));
            return;
        }
        let lines = [&code, PASSWORD, NEW, NEW].join("\n") + "\n";
        let mut command = client.command("ssh", &["bastion", words]);
        fed(&mut command, lines.as_bytes()).await.ok();
    }
}

/// An administrator's command on the host.
async fn cli(bastion: &TestBastion, words: &str) {
    let mut cli = command(BINARY);
    cli.arg("--config").arg(bastion.path("sallyport.toml")).args(words.split(' '));
    run(&mut cli).await.ok();
}

async fn each_verb_ends_both(engine: Engine) {
    // Behind the clocks of client and host, so that certificates hold by those too as it moves on.
    let start = UnixTime(Clock::System.now().0 - 3600 * 1000);
    let on = "[login]\ncertificate_life = \"8h\"\n";
    let bastion = TestBastion::start_at(start, engine, on).await;
    let (store, context, group) = (bastion.store(), Context::default(), "staff".parse().unwrap());
    store.add_group(&group, &context, bastion.now()).await.unwrap();
    let remember = Remember::For(HOURS_8);
    store.set_group_remember(&group, remember, &context, bastion.now()).await.unwrap();
    for (name, verb) in [
        ("ann", "passwd"),
        ("ben", "otp unbind"),
        ("cas", "otp rebind"),
        ("dan", "otp reset dan"),
        ("eva", "user disable eva"),
        ("fay", "user remove fay"),
        ("guy", "user passwd guy"),
    ] {
        let holder = Holder::new(&bastion, name, &group).await;
        for ran in holder.without_a_code(&bastion).await {
            ran.ok();
        }
        match verb.ends_with(name) {
            true => cli(&bastion, verb).await,
            false => holder.types(&bastion, verb).await,
        }
        for ran in holder.without_a_code(&bastion).await {
            assert!(ran.err.contains("Permission denied"), "{verb}: {ran:?}");
        }
        if verb == "user disable eva" {
            // Nor does letting her in again bring them back.
            cli(&bastion, "user enable eva").await;
            for ran in holder.without_a_code(&bastion).await {
                assert!(ran.err.contains("Permission denied"), "{verb}: {ran:?}");
            }
        }
        let now = bastion.now();
        assert!(store.certificates(None, now).await.unwrap().is_empty(), "{verb}");
        assert!(store.remembered(None, now).await.unwrap().is_empty(), "{verb}");
    }
}
