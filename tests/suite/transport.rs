//! What the bastion offers, takes and refuses, packet by packet.

use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use russh::keys::PublicKey;
use sallyport::audit::Context;
use sallyport::domain::{Capability, Mode};
use tokio::io::AsyncWriteExt as _;

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::raw::{
    GLOBAL_REQUEST, INFO_REQUEST, Packet, REQUEST_FAILURE, RawClient, USERAUTH_FAILURE,
    USERAUTH_SUCCESS,
};
use crate::support::ssh::run;
use crate::support::wire::Wire;
use crate::support::{command, tool};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_offered_is_this_and_nothing_else() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let offered = RawClient::connect(bastion.port).await.offered();
    let lists: Vec<Vec<&str>> =
        offered.iter().map(|list| list.iter().map(String::as_str).collect()).collect();
    let [kex, keys, ciphers @ .., _, _, _, _, _, _] = &lists[..] else { panic!("{lists:?}") };
    assert_eq!(
        *kex,
        [
            "mlkem768x25519-sha256",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "ext-info-s",
            "kex-strict-s-v00@openssh.com",
        ]
    );
    assert_eq!(*keys, ["ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519"]);
    // Only a processor without AES is better off with ChaCha20.
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has_aes = processor.split_whitespace().any(|flag| flag == "aes");
    let mut expected = vec!["aes256-gcm@openssh.com", "aes128-gcm@openssh.com"];
    expected.extend(["aes256-ctr", "aes128-ctr"]);
    if !has_aes {
        expected.insert(0, "chacha20-poly1305@openssh.com");
    }
    assert_eq!(*ciphers, [expected.clone(), expected]);
    for macs in &lists[4..6] {
        assert_eq!(*macs, ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"]);
    }
    for compression in &lists[6..8] {
        assert_eq!(*compression, ["none"]);
    }
}

/// Whether a key's signature was taken as the first factor.
async fn is_taken(client: &mut RawClient) -> bool {
    let packet = client.receive().await.expect("the connection ended");
    assert_eq!(packet[0], USERAUTH_FAILURE, "{packet:?}"); // With partial success, or without.
    packet.last() == Some(&1)
}

async fn add_key(bastion: &TestBastion, person: &Person, public: &str) -> String {
    let (fingerprint, line) = sallyport::keys::public_key(public).unwrap();
    let (store, context) = (bastion.store(), Context::default());
    store.add_key(&person.name, &fingerprint, &line, &context, bastion.now()).await.unwrap();
    fingerprint
}

/// An RSA signature of `data`, as RFC 8332 encodes it.
async fn sign_with_rsa(key: &Path, hash: &str, data: &[u8]) -> Vec<u8> {
    let mut openssl = command(tool("openssl"));
    openssl.args(["dgst", hash, "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut openssl = openssl.spawn().unwrap();
    openssl.stdin.take().unwrap().write_all(data).await.unwrap();
    let out = openssl.wait_with_output().await.unwrap();
    assert!(out.status.success());
    Packet::default().text(out.stdout).0
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_key_signs_with_sha2_only() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let key = bastion.path("rsa");
    let mut keygen = command(tool("ssh-keygen"));
    keygen.args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f"]).arg(&key);
    run(&mut keygen).await.ok();
    let public = std::fs::read_to_string(bastion.path("rsa.pub")).unwrap();
    add_key(&bastion, &alice, &public).await;
    let blob = PublicKey::from_openssh(&public).unwrap().to_bytes().unwrap();
    for (algorithm, hash, taken) in [
        ("rsa-sha2-256", "-sha256", true),
        ("rsa-sha2-512", "-sha512", true),
        ("ssh-rsa", "-sha1", false),
        // A SHA-1 signature by a better name.
        ("rsa-sha2-256", "-sha1", false),
    ] {
        let mut client = RawClient::connect(bastion.port).await;
        let sign = async |signed: &[u8]| sign_with_rsa(&key, hash, signed).await;
        client.send_key("alice", algorithm, &blob, sign).await;
        assert_eq!(is_taken(&mut client).await, taken, "{algorithm} {hash}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_security_key_signs_in() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let kind = "sk-ssh-ed25519@openssh.com";
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let blob = Packet::default().text(kind).text(pair.public_key()).text("ssh:").0;
    let public = format!("{kind} {} token", base64::prelude::BASE64_STANDARD.encode(&blob));
    let fingerprint = add_key(&bastion, &alice, &public).await;
    // As the token signs (OpenSSH PROTOCOL.u2f): what it is for, whether it was touched, how often it
    // signed, and what was asked for.
    let sign = |application: &'static str| {
        async move |signed: &[u8]| {
            let (flags, counter) = (1, 41);
            let whole = Packet::default()
                .bytes(digest(&SHA256, application.as_bytes()).as_ref())
                .bytes(&[flags])
                .number(counter)
                .bytes(digest(&SHA256, signed).as_ref());
            let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
            Packet::default().text(pair.sign(&whole.0)).bytes(&[flags]).number(counter).0
        }
    };
    let mut client = RawClient::connect(bastion.port).await;
    client.send_key("alice", kind, &blob, sign("another:")).await;
    assert!(!is_taken(&mut client).await);

    let mut client = RawClient::connect(bastion.port).await;
    client.send_key("alice", kind, &blob, sign("ssh:")).await;
    assert!(is_taken(&mut client).await);
    client.start_interactive("alice", "").await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    client.answer(&bastion.code(&alice)).await;
    assert_eq!(client.reply().await, USERAUTH_SUCCESS);
    bastion.event("step-passed", &[("step", "key"), ("key", &fingerprint)]).await;
}

async fn signed_in(bastion: &TestBastion, person: &Person) -> RawClient {
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(person);
    assert_eq!(client.log_in(person.name.as_str(), PASSWORD, &code).await, USERAUTH_SUCCESS);
    client
}

fn x11_request() -> Packet {
    Packet::default().bytes(&[0]).text("MIT-MAGIC-COOKIE-1").text("00").number(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_answered_and_the_connection_goes_on() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "played", "192.0.2.1:22").await;
    let mut client = signed_in(&bastion, &alice).await;
    let address = || Packet::default().text("127.0.0.1").number(6000);
    for (n, (kind, content, written)) in [
        ("tun@openssh.com", Packet::default().number(1).number(0x7fff_ffff), None),
        ("auth-agent@openssh.com", Packet::default(), None),
        ("nonsense@example.org", Packet::default(), None),
        ("x11", address(), Some("x11")),
        ("forwarded-tcpip", address().text("127.0.0.1").number(1), Some("forwarded-tcpip")),
        (
            "direct-streamlocal@openssh.com",
            Packet::default().text("/tmp/no.sock").text("").number(0),
            Some("direct-streamlocal"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let ours = 7 + u32::try_from(n).unwrap();
        client.ask_channel(kind, ours, content).await;
        // "Administratively prohibited", or "unknown channel type" (RFC 4254 section 5.1).
        let (code, _) = client.opened(ours).await.unwrap_err();
        assert!(code == 1 || code == 3, "{kind}: {code}");
        if let Some(request) = written {
            bastion.event("request-refused", &[("user", "alice"), ("request", request)]).await;
        }
    }
    for (kind, content, written) in [
        ("tcpip-forward", Packet::default().text("").number(0), Some("tcpip-forward :0")),
        ("cancel-tcpip-forward", Packet::default().text("").number(1), None),
        (
            "streamlocal-forward@openssh.com",
            Packet::default().text("/tmp/no.sock"),
            Some("streamlocal-forward /tmp/no.sock"),
        ),
        ("nonsense@example.org", Packet::default().text("x"), None),
    ] {
        let request = Packet::new(GLOBAL_REQUEST).text(kind).bytes(&[1]).bytes(&content.0);
        client.send(&request.0).await;
        assert_eq!(client.next().await[0], REQUEST_FAILURE, "{kind}");
        if let Some(request) = written {
            bastion.event("request-refused", &[("user", "alice"), ("request", request)]).await;
        }
    }
    let mut wire = Wire::open(client).await;
    assert!(!wire.ask("x11-req", x11_request()).await);
    assert!(!wire.ask("auth-agent-req@openssh.com", Packet::default()).await);
    assert!(!wire.ask("nonsense@example.org", Packet::default()).await);
    for request in ["x11-req", "auth-agent-req"] {
        bastion.event("request-refused", &[("user", "alice"), ("request", request)]).await;
    }
    assert!(wire.ask("exec", Packet::default().text("targets")).await);
    let said = wire.end().await;
    assert!(said.out.contains("played"), "{said:?}");
}

/// For the menu, which may lead to a target where it can be used.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_taken_where_some_grant_has_that_right_and_the_log_agrees() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let agent = |mode, name: &'static str, address: &'static str| {
        let bastion = &bastion;
        async move {
            bastion.target_in(mode, name, address).await;
            let allow = vec![Capability::Shell, Capability::Forward, Capability::Agent];
            bastion.add_grant("alice", name, |grant| grant.allow = allow).await;
        }
    };
    let ask = "auth-agent-req@openssh.com";
    // In tunnel mode it goes past the bastion.
    agent(Mode::Tunnel, "unseen", "192.0.2.1:22").await;
    let mut wire = Wire::open(signed_in(&bastion, &alice).await).await;
    assert!(!wire.ask(ask, Packet::default()).await);
    bastion.event("request-refused", &[("request", "auth-agent-req")]).await;

    agent(Mode::Record, "db1", "192.0.2.2:22").await;
    let mut wire = Wire::open(signed_in(&bastion, &alice).await).await;
    assert!(wire.ask(ask, Packet::default()).await);
    assert!(!wire.ask("x11-req", x11_request()).await);
    bastion.event("request-refused", &[("request", "x11-req")]).await;
    assert!(wire.ask("exec", Packet::default().text("help")).await);
    wire.end().await;
    assert_eq!(bastion.kinds("request-refused").await.len(), 2);
}
