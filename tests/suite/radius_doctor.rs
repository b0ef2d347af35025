//! What `sallyport doctor` says of RADIUS servers: FreeRADIUS in order and set wrongly, and forgers.

use std::path::Path;

use serde_json::Value;

use crate::doctor::{doctor, finding, sallyport};
use crate::support::freeradius::{FreeRadius, configured};
use crate::support::radius_peer::{ACCEPT, Asked, CHALLENGE, Forgery, Mac, Peer, REJECT};

/// What it finds with these servers.
async fn examined(dir: &Path, servers: &[String]) -> Vec<Value> {
    std::fs::write(dir.join("sallyport.toml"), servers.concat()).unwrap();
    doctor(dir).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_what_is_wrong_with_a_server_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    sallyport(dir, &["init"]).await.ok();
    let radius = FreeRadius::start().await;
    let secret = dir.join("another");
    let quick = |server: String| server.replace("15s", "5s");
    let other = quick(configured("other", radius.port("CODE"), &secret));
    sallyport::keys::replace_secret(&secret, b"not the server's").unwrap();
    let tls = |name: &str, client: &str| quick(radius.configured_tls(name, client));
    let port = format!("localhost:{}", radius.port("RADSEC"));
    let findings = examined(
        dir,
        &[
            quick(radius.configured("good", "BASTION")),
            quick(radius.configured("strict", "OLD")),
            quick(radius.configured("lax", "OLD")) + "require_message_authenticator = false\n",
            quick(radius.configured("signs", "CODE")) + "require_message_authenticator = false\n",
            other,
            quick(configured("closed", 9, &radius.file("secret"))),
            "[[radius.server]]\nname = \"bare\"\naddress = \"127.0.0.1:9\"\n".to_owned(),
            tls("sec", "client"),
            tls("ca", "client").replace("/ca.pem", "/other-ca.pem"),
            tls("name", "client").replace("localhost", "127.0.0.1"),
            tls("cert", "stranger"),
            tls("file", "client").replace("/ca.pem", "/none.pem"),
            tls("port", "client").replace(&port, "127.0.0.1:9"),
        ],
    )
    .await;
    let told: Vec<_> = findings.iter().filter(|finding| finding["check"] == "radius").collect();
    assert_eq!(told.len(), 13, "{findings:#?}");
    let secret = format!("the secret in {} is what it has for it", secret.display());
    for (grade, begin, says) in [
        ("OK", "good (127.0.0.1:", "rejects a user who does not exist"),
        ("FAIL", "strict (127.0.0.1:", "have it send Message-Authenticator in every answer"),
        ("WARN", "lax (127.0.0.1:", "whoever is on the way can let anybody in"),
        (
            "WARN",
            "signs (127.0.0.1:",
            "with a Message-Authenticator: remove require_message_authenticator = false",
        ),
        ("FAIL", "other (127.0.0.1:", &secret),
        ("FAIL", "closed (127.0.0.1:9)", "start it, or correct its address"),
        ("FAIL", "the RADIUS server bare", "has no secret"),
        ("OK", "sec (localhost:", "answers (Status-Server)"),
        ("FAIL", "ca (localhost:", "UnknownIssuer"),
        ("FAIL", "name (127.0.0.1:", "or for server_name"),
        ("FAIL", "cert (localhost:", "by an authority that the server trusts for clients"),
        ("FAIL", "RADIUS server \"file\"", "none.pem"),
        ("FAIL", "port (127.0.0.1:9)", "it cannot be reached"),
    ] {
        let of = |finding: &Value| finding["text"].as_str().unwrap().starts_with(begin);
        let this: Vec<Value> = findings.iter().filter(|finding| of(finding)).cloned().collect();
        finding(&this, "radius", grade, says);
    }
    let asked = radius.log();
    assert!(asked.contains("User-Name = \"radius-probe-no-such-user-"), "{asked}");
    for secret in ["not the server's", crate::support::freeradius::SECRET] {
        assert!(!format!("{findings:?}").contains(secret), "{findings:#?}");
    }
}

/// Answers Access-Requests, and nothing else, as `forge` says.
async fn answers(peer: Peer, forge: fn(&Asked) -> Forgery) {
    const ACCESS_REQUEST: u8 = 1;
    loop {
        let asked = peer.asked().await;
        if asked.bytes.first() == Some(&ACCESS_REQUEST) {
            peer.send(&asked, &forge(&asked).bytes()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_who_lets_everybody_in_and_whose_answers_are_false() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    sallyport(dir, &["init"]).await.ok();
    let secret = dir.join("peer");
    type Case = (&'static str, fn(&Asked) -> Forgery, &'static str, &'static str);
    let cases: [Case; 6] = [
        ("rejects", |asked| asked.reply(REJECT), "OK", "rejects a user who does not exist"),
        ("asks", |asked| asked.reply(CHALLENGE), "OK", "asks even a user who does not exist"),
        ("all", |asked| asked.reply(ACCEPT), "FAIL", "accepts a user who does not exist"),
        (
            "secret",
            |asked| Forgery { secret: "guessed", ..asked.reply(ACCEPT) },
            "FAIL",
            "is not what the server has for this host",
        ),
        (
            "mac",
            |asked| Forgery { mac: Mac::Wrong, ..asked.reply(ACCEPT) },
            "FAIL",
            "wrong Message-Authenticator: forged",
        ),
        (
            "bare",
            |asked| Forgery { mac: Mac::Missing, ..asked.reply(ACCEPT) },
            "FAIL",
            "have it send Message-Authenticator in every answer",
        ),
    ];
    let mut peers = tokio::task::JoinSet::new();
    let mut servers = Vec::new();
    for (name, forge, ..) in cases {
        let peer = Peer::start().await;
        let port = peer.socket.local_addr().unwrap().port();
        servers.push(configured(name, port, &secret).replace("15s", "2s"));
        peers.spawn(answers(peer, forge));
    }
    let by_peers = crate::support::radius_peer::SECRET;
    sallyport::keys::replace_secret(&secret, by_peers.as_bytes()).unwrap();
    let findings = examined(dir, &servers).await;
    for (name, _, grade, says) in cases {
        let of = |finding: &Value| finding["text"].as_str().unwrap().starts_with(name);
        let this: Vec<Value> = findings.iter().filter(|finding| of(finding)).cloned().collect();
        finding(&this, "radius", grade, says);
    }
}
