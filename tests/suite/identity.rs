//! Who is who: one name to a connection, nothing before a sign-in, and the bastion's own name.

use std::time::Duration;

use sallyport::clock::Clock;
use sallyport::domain::UnixTime;

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::raw::{
    CHANNEL_OPEN, CHANNEL_OPEN_CONFIRMATION, DISCONNECT, INFO_REQUEST, Packet, RawClient,
    USERAUTH_FAILURE, USERAUTH_SUCCESS,
};
use crate::support::server::{BINARY, config_path};
use crate::support::ssh::{Client, run};
use crate::support::{command, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_name_on_a_connection_is_refused_whatever_was_passed_before() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let bob = bastion.person("bob").await;
    // After alice's password, bob's code; after her failure, bob's whole login.
    let cases = [(PASSWORD, &bob), (PASSWORD, &alice), ("wrong", &bob)];
    for (before, (first, code_of)) in cases.into_iter().enumerate() {
        let mut client = RawClient::connect(bastion.port).await;
        client.send_password("alice", first).await;
        assert_eq!(client.reply().await, USERAUTH_FAILURE);
        client.start_interactive("bob", "").await;
        let reply = client.reply().await;
        assert_eq!(reply, USERAUTH_FAILURE);
        // Whatever comes now: nothing is left on this connection, for neither.
        client.answer(&bastion.code(code_of)).await;
        client.start_interactive("alice", "").await;
        for _ in 0..3 {
            let reply = client.reply().await;
            if reply == DISCONNECT {
                break;
            }
            assert_eq!(reply, USERAUTH_FAILURE);
        }
        assert_eq!(client.reply().await, DISCONNECT);
        eventually("it is written down", async || {
            let refused = bastion.kinds("sign-in-refused").await;
            let changed = refused.iter().filter(|event| event["reason"] == "user-changed");
            (changed.count() > before).then_some(())
        })
        .await;
    }
    // In the middle of a dialog.
    let mut client = RawClient::connect(bastion.port).await;
    client.start_interactive("alice", "").await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    client.answer(PASSWORD).await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    client.send_password("bob", PASSWORD).await;
    assert_eq!(client.reply().await, USERAUTH_FAILURE);
    client.answer(&bastion.code(&alice)).await;
    assert_ne!(client.reply().await, USERAUTH_SUCCESS);
    assert!(bastion.kinds("signed-in").await.is_empty());
    // Each by themselves get in.
    for person in [&alice, &bob] {
        let mut client = RawClient::connect(bastion.port).await;
        let code = bastion.code(person);
        let reply = client.log_in(person.name.as_str(), PASSWORD, &code).await;
        assert_eq!(reply, USERAUTH_SUCCESS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_devices_are_no_more_tries() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[login]\nlock_after = 100\n").await;
    bastion.person("alice").await;
    // The real client, which tries a password for each device.
    let devices = format!("KbdInteractiveDevices={}", vec!["pam"; 10_000].join(","));
    let client = Client::new(&bastion, "alice");
    client.answers(&["wrong"; 40]);
    let args = ["-o", &devices, "-o", "NumberOfPasswordPrompts=1000", "bastion"];
    client.ssh(&args).await.failed();
    let asked = client.asked().len();
    assert!((6..=7).contains(&asked), "{asked} questions"); // The seventh answer is not looked at.
    // And a raw one, which begins anew after each.
    let mut client = RawClient::connect(bastion.port).await;
    let devices = vec!["pam"; 5000].join(",");
    let mut answers = 0;
    for _ in 0..100 {
        client.start_interactive("alice", &devices).await;
        if client.reply().await != INFO_REQUEST {
            break;
        }
        client.answer("wrong").await;
        answers += 1;
    }
    assert!(answers <= 7, "{answers}");
    let failed = bastion.kinds("step-failed").await;
    let tried = |step: &str| failed.iter().filter(|event| event["step"] == step).count();
    assert!(tried("password") > 0 && tried("password") + tried("code") <= 12, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_a_sign_in_opens_anything() {
    // Gone clients count until their ends are written down, which takes a while on a busy machine.
    let roomy = "[server]\nmax_unauthenticated = 2000\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, roomy).await;
    let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    bastion.person("alice").await;
    bastion.grant("alice", "db1", &address.to_string()).await;
    let open = |kind: &str| Packet::new(CHANNEL_OPEN).text(kind).number(0).number(1 << 20);
    let session = open("session").number(1 << 15);
    let direct = open("direct-tcpip").number(1 << 15).text("db1").number(address.port().into());
    let direct = direct.text("127.0.0.1").number(1);
    let exec = Packet::new(98).number(0).text("exec").bytes(&[1]).text("targets");
    let global = Packet::new(80).text("tcpip-forward").bytes(&[1]).text("").number(0);
    let mut sent: Vec<Vec<u8>> = vec![session.0.clone(), direct.0, exec.0, global.0];
    sent.extend((1..=255).map(|message| Packet::new(message).0));
    sent.extend((1..=255).map(|message| Packet::new(message).number(0).number(0).0));
    let (mut closed, mut answered) = (0, 0);
    for after_password in [false, true] {
        for packet in &sent {
            let mut client = RawClient::connect(bastion.port).await;
            if after_password {
                client.start_interactive("alice", "").await;
                assert_eq!(client.reply().await, INFO_REQUEST);
                client.answer(PASSWORD).await;
                assert_eq!(client.reply().await, INFO_REQUEST);
            }
            client.send(packet).await;
            client.send(&session.0).await;
            // Behind it a request that is answered, if the connection is still there.
            client.start_interactive("alice", "").await;
            match client.reply().await {
                DISCONNECT => closed += 1,
                INFO_REQUEST | USERAUTH_FAILURE => answered += 1,
                other => panic!("{packet:?} was answered by message {other}"),
            }
        }
    }
    assert!(closed > 0 && answered > 0, "{closed} {answered}");
    for kind in ["signed-in", "forward-opened", "forward-refused", "request-refused", "command-run"]
    {
        assert_eq!(bastion.kinds(kind).await, Vec::<serde_json::Value>::new());
    }
    // Nobody came to the target, and the bastion serves.
    let (came, ()) = tokio::join!(target.accept(), async {
        drop(tokio::net::TcpStream::connect(address).await.unwrap());
    });
    drop(came.unwrap());
    let carol = bastion.person("carol").await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&carol);
    assert_eq!(client.log_in("carol", PASSWORD, &code).await, USERAUTH_SUCCESS);
    client.send(&session.0).await;
    assert_eq!(client.reply().await, CHANNEL_OPEN_CONFIRMATION);
}

/// A `known_hosts` line for the bastion's authority, as its manual tells to make one.
async fn authority(bastion: &TestBastion, hosts: &str) -> String {
    let mut show = command(BINARY);
    show.arg("--config").arg(config_path(bastion.dir.path())).args(["ca", "show", "host"]);
    let shown = run(&mut show).await.ok().out;
    assert!(shown.starts_with("ssh-ed25519 "), "{shown}");
    format!("@cert-authority {hosts} {shown}")
}

/// Whether a client that knows only this line would speak to the bastion under the name.
async fn trusts(bastion: &TestBastion, line: &str, name: &str) -> bool {
    let client = Client::new(bastion, "alice");
    std::fs::write(client.path("known_hosts"), line).unwrap();
    let alias = format!("HostKeyAlias={name}");
    client.answers(&[]);
    let strict = ["-o", "StrictHostKeyChecking=yes", "-o", &alias, "-o", "BatchMode=yes"];
    let ran = client.ssh(&[&strict[..], &["-v", "bastion"]].concat()).await.failed();
    let refused = ran.err.contains("Host key verification failed");
    let reached = ran.err.contains("Permission denied");
    assert!(refused != reached, "{ran:?}");
    // Nothing was learnt on the way.
    assert_eq!(std::fs::read_to_string(client.path("known_hosts")).unwrap(), line);
    reached
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_the_authority_needs_no_host_key() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let line = authority(&bastion, "*").await;
    assert!(trusts(&bastion, &line, "bastion").await);
    // Not for another name than the certificate's, nor for hosts that the line does not name.
    assert!(!trusts(&bastion, &line, "elsewhere").await);
    assert!(!trusts(&bastion, &authority(&bastion, "elsewhere").await, "bastion").await);
    assert!(!trusts(&bastion, "", "bastion").await);
    // The whole way in.
    let client = Client::new(&bastion, "alice")
        .host("bastion", "HostKeyAlias bastion\nStrictHostKeyChecking yes");
    std::fs::write(client.path("known_hosts"), &line).unwrap();
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&["bastion", "targets"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_or_expired_certificate_is_not_accepted() {
    let now = Clock::System.now();
    let ours = TestBastion::start(Engine::Sqlite).await;
    let other = TestBastion::start(Engine::Sqlite).await;
    let foreign = authority(&other, "*").await;
    assert!(!trusts(&ours, &foreign, "bastion").await);
    assert!(trusts(&other, &foreign, "bastion").await);
    // Certificates are good for a day, and made for each connection.
    for (hours, good) in [(23, true), (25, false)] {
        let then = UnixTime(now.0 - hours * 3_600_000);
        let old = TestBastion::start_at(then, Engine::Sqlite, "").await;
        assert_eq!(trusts(&old, &authority(&old, "*").await, "bastion").await, good, "{hours}");
        assert!(old.now().since(then) < Duration::from_secs(1));
    }
}
