//! Caps and penalties against who is not signed in, as they are met over the network.

use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::on_both_engines;
use crate::support::raw::{
    self, DISCONNECT, INFO_REQUEST, RawClient, USERAUTH_FAILURE, USERAUTH_SUCCESS,
};
use crate::support::{PATIENCE, eventually};

on_both_engines!(who_signed_in_before_a_restart_keeps_their_places,);

/// The server's first bytes on a new connection from an address of loopback; `None` if it is closed.
async fn greeted(from: &str, port: u16) -> Option<TcpStream> {
    greeted_after(from, port, b"").await
}

/// The same, after `says` was sent.
async fn greeted_after(from: &str, port: u16, says: &[u8]) -> Option<TcpStream> {
    let mut stream = RawClient::socket_from(from, port).await;
    stream.write_all(says).await.ok()?;
    let mut bytes = [0; 8];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await;
    read.expect("neither greeted nor closed").ok().map(|_| {
        assert_eq!(&bytes, b"SSH-2.0-");
        stream
    })
}

/// Holds `count` connections from an address, of which none signs in.
async fn held(from: &str, port: u16, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(greeted(from, port).await.expect("refused below the cap"));
    }
    held
}

/// The sources in events of a kind with a reason, without their ports, each once.
async fn sources(bastion: &TestBastion, kind: &str, reason: &str) -> Vec<String> {
    let of = |event: serde_json::Value| {
        let source: std::net::SocketAddr = event["source"].as_str().unwrap().parse().unwrap();
        (event["reason"] == reason).then(|| source.ip().to_string())
    };
    let mut all: Vec<String> = bastion.kinds(kind).await.into_iter().filter_map(of).collect();
    all.sort();
    all.dedup();
    all
}

async fn logged_in(bastion: &TestBastion, from: &str, user: &str, code: &str) -> RawClient {
    let stream = RawClient::socket_from(from, bastion.port).await;
    let mut client = RawClient::over(stream).await.expect("refused");
    assert_eq!(client.log_in(user, PASSWORD, code).await, USERAUTH_SUCCESS);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_past_the_budget_are_one_event() {
    let mut bastion = TestBastion::start(Engine::Sqlite).await;
    bastion.person("alice").await;
    let before = bastion.kinds("sign-in-refused").await.len();
    let attack = async {
        for _ in 0..10 {
            let mut client = RawClient::connect(bastion.port).await;
            client.send_password("alice", "a guess").await;
            client.reply().await;
            client.send_password("bob", "another").await; // Another name ends it.
            while client.reply().await != DISCONNECT {}
        }
    };
    let others = async {
        loop {
            while bastion.bastion.guard.may_record() {}
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = attack => {}
        () = others => {}
    }
    bastion.stop().await;
    let summed = bastion.kinds("refusals-suppressed").await;
    assert!(!summed.is_empty() && summed.iter().all(|event| event["count"].as_u64() > Some(0)));
    let changed = bastion.kinds("sign-in-refused").await.split_off(before);
    let changed = changed.iter().filter(|event| event["reason"] == "user-changed").count();
    assert!(changed < 5, "{changed} were written");
}

/// Whoever goes on guessing while nothing they type is judged must not fill the audit log.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_during_a_lock_are_counted_and_the_first_is_written() {
    let mut bastion = TestBastion::start_with(Engine::Sqlite, "[login]\nlock_after = 3\n").await;
    bastion.person("alice").await;
    for user in ["alice", "nobody"] {
        // Ours or not: three that lock, then seven more, of which one is in the log for both.
        for guess in 0..10 {
            let mut client = RawClient::connect(bastion.port).await;
            if guess % 2 == 0 {
                assert_eq!(client.log_in(user, "a guess", "000000").await, USERAUTH_FAILURE);
            } else {
                // One that leaves before the code is one as well.
                client.send_password(user, "a guess").await;
                assert_eq!(client.reply().await, USERAUTH_FAILURE);
            }
            drop(client);
            if guess < 3 {
                eventually("it is counted", async || {
                    let refused = bastion.kinds("sign-in-refused").await;
                    let of = refused.iter().filter(|event| event["user"] == user);
                    (of.count() == guess + 1).then_some(())
                })
                .await;
            }
        }
    }
    // The right password is written down, also now: somebody knows it.
    let mut client = RawClient::connect(bastion.port).await;
    assert_eq!(client.log_in("alice", PASSWORD, "000000").await, USERAUTH_FAILURE);
    bastion.event("step-passed", &[("step", "password"), ("user", "alice")]).await;
    drop(client);
    bastion.stop().await;
    let refused = bastion.kinds("sign-in-refused").await;
    let written = refused.len() as u64;
    // How often there is one depends on how long it takes: one a minute.
    assert!((3 + 1 + 1 + 3..15).contains(&written), "{refused:?}");
    assert_eq!(bastion.kinds("source-locked").await.len(), 2);
    let counted = bastion.kinds("refusals-suppressed").await;
    let counted: u64 = counted.iter().map(|event| event["count"].as_u64().unwrap()).sum();
    assert_eq!(written + counted, 2 * 10 + 1, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_so_many_sessions_and_no_more() {
    let bastion =
        TestBastion::start_with(Engine::Sqlite, "[server]\nmax_sessions_per_account = 2\n").await;
    let (alice, bob) = (bastion.person("alice").await, bastion.person("bob").await);
    let mut first = logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await;
    let _second = logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await;
    let mut third = logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await;
    let told = third.receive_disconnect().await;
    assert!(told.contains("you have 2 sessions here already"), "{told}");
    bastion.event("sign-in-refused", &[("user", "alice"), ("reason", "too-many-sessions")]).await;
    bastion.event("session-ended", &[("user", "alice"), ("reason", "too-many-sessions")]).await;
    // Those before are as they were, and others have their own number.
    first.ask_channel("session", 0, raw::Packet::default()).await;
    first.opened(0).await.unwrap();
    let _other = logged_in(&bastion, "127.0.0.1", "bob", &bastion.code(&bob)).await;
    // One that ended makes room.
    drop(first);
    bastion.event("session-ended", &[("user", "alice"), ("reason", "client-closed")]).await;
    let mut fourth = logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await;
    fourth.ask_channel("session", 0, raw::Packet::default()).await;
    fourth.opened(0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_opened_faster_than_anybody_needs_are_refused() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let mut client = logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await;
    let (mut opened, began) = (0_u64, Instant::now());
    for ours in 0..2000 {
        client.ask_channel("session", ours, raw::Packet::default()).await;
        match client.opened(ours).await {
            Ok(id) => {
                opened += 1;
                client.send(&raw::Packet::new(raw::CLOSE).number(id).0).await;
                while client.next().await[0] != raw::CLOSE {}
            }
            Err((code, why)) => {
                assert_eq!((code, why.contains("or wait")), (1, true), "{why}");
                break;
            }
        }
    }
    let allowed = 500..=501 + 20 * (began.elapsed().as_secs() + 1);
    assert!(allowed.contains(&opened), "{opened} were opened");
    let refused = [("request", "session"), ("reason", "too-many-channels")];
    bastion.event("request-refused", &refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_may_hold_so_many_connections_that_nobody_signed_in_on() {
    let caps =
        "[server]\npenalty_exempt = [\"127.0.0.9/32\"]\nmax_unauthenticated_per_source = 2\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, caps).await;
    let alice = bastion.person("alice").await;
    let mut two = held("127.0.0.1", bastion.port, 2).await;
    assert!(greeted("127.0.0.1", bastion.port).await.is_none());
    bastion.event("sign-in-refused", &[("reason", "guarded")]).await;
    // Others are not concerned, and exempt ones not at all.
    let _other = held("127.0.0.2", bastion.port, 1).await;
    let _exempt = held("127.0.0.9", bastion.port, 5).await;
    // Whoever signs in makes room.
    two.pop();
    let mut client = eventually("there is room", async || {
        RawClient::over(RawClient::socket_from("127.0.0.1", bastion.port).await).await
    })
    .await;
    assert!(greeted("127.0.0.1", bastion.port).await.is_none());
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let _third = held("127.0.0.1", bastion.port, 1).await;
    assert_eq!(sources(&bastion, "sign-in-refused", "guarded").await, ["127.0.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sources_together_have_caps_of_their_own() {
    let caps = "[server]\nmax_unauthenticated = 3\nmax_connections = 4\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, caps).await;
    let alice = bastion.person("alice").await;
    let signed_in = logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await;
    let mut three = Vec::new();
    for from in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        three.extend(held(from, bastion.port, 1).await);
    }
    // Exempt from what is counted by source, not from these: all of loopback is exempt here.
    assert!(greeted("127.0.0.5", bastion.port).await.is_none());
    three.pop();
    let mut second = eventually("there is room", async || {
        RawClient::over(RawClient::socket_from("127.0.0.1", bastion.port).await).await
    })
    .await;
    let code = bastion.code(&alice);
    assert_eq!(second.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    // Two are signed in and two are not: the cap on all is reached.
    assert!(greeted("127.0.0.6", bastion.port).await.is_none());
    // Written down after the socket is closed, which is not held open for that.
    eventually("both are written down", async || {
        let guarded = sources(&bastion, "sign-in-refused", "guarded").await;
        let told = |from: &str| guarded.iter().any(|source| source == from);
        (told("127.0.0.5") && told("127.0.0.6")).then_some(())
    })
    .await;
    drop(signed_in);
    eventually("there is room", async || greeted("127.0.0.6", bastion.port).await).await;
}

/// A restart under an attack must not shut out who keeps a way in.
async fn who_signed_in_before_a_restart_keeps_their_places(engine: Engine) {
    let caps = "[server]\nmax_unauthenticated = 3\n";
    let mut bastion = TestBastion::start_with(engine, caps).await;
    let alice = bastion.person("alice").await;
    drop(logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await);
    bastion.restart().await;
    let _strangers = held("127.0.0.2", bastion.port, 3).await;
    assert!(greeted("127.0.0.3", bastion.port).await.is_none());
    eventually("known", async || greeted("127.0.0.1", bastion.port).await).await;
    assert!(greeted("127.0.0.3", bastion.port).await.is_none());
}

/// Fails once to sign in; false if it is not even let in.
async fn fail(bastion: &TestBastion, from: &str) -> bool {
    let stream = RawClient::socket_from(from, bastion.port).await;
    let Some(mut client) = RawClient::over(stream).await else { return false };
    assert_eq!(client.log_in("alice", "wrong", "000000").await, USERAUTH_FAILURE);
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_bring_a_penalty_on_a_source_that_is_not_exempt() {
    let exempt = "[server]\npenalty_exempt = [\"127.0.0.9/32\"]\n[login]\nlock_after = 100\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, exempt).await;
    let alice = bastion.person("alice").await;
    // Each counts five seconds, and it is enforced from fifteen. How fast they come is the
    // machine's: what is left of the first must not have run out.
    let mut failures = 0;
    while fail(&bastion, "127.0.0.1").await {
        failures += 1;
        assert!(failures < 40, "no penalty after {failures} failures");
    }
    assert!(failures >= 3, "{failures}");
    let penalized = bastion.event("source-penalized", &[("after", "too-many-attempts")]).await;
    assert!((15..=600).contains(&penalized["seconds"].as_u64().unwrap()), "{penalized}");
    assert!(penalized["source"].as_str().unwrap().starts_with("127.0.0.1:"), "{penalized}");
    assert_eq!(penalized["user"], "alice", "{penalized}");
    bastion.event("sign-in-refused", &[("reason", "guarded")]).await;
    // A right login does not even get as far as its password.
    assert!(greeted("127.0.0.1", bastion.port).await.is_none());
    drop(logged_in(&bastion, "127.0.0.2", "alice", &bastion.code(&alice)).await);
    // An exempt source is let in, however often it failed.
    for _ in 0..failures + 1 {
        assert!(fail(&bastion, "127.0.0.9").await);
    }
    drop(logged_in(&bastion, "127.0.0.9", "alice", &bastion.code(&alice)).await);
    assert_eq!(bastion.kinds("source-penalized").await.len(), 1);
    assert_eq!(sources(&bastion, "sign-in-refused", "guarded").await, ["127.0.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_time_ends_who_says_nothing_little_or_anything_but_who_they_are() {
    let grace = "[server]\nlogin_grace = \"2s\"\nbinding_grace = \"600s\"\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, grace).await;
    bastion.person("alice").await;
    let ends = async |mut stream: TcpStream| {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        drop(read.expect("it is still connected")); // Closed or reset.
    };
    ends(greeted("127.0.0.2", bastion.port).await.unwrap()).await;
    ends(greeted_after("127.0.0.3", bastion.port, b"SSH-2.0-x\r\n").await.unwrap()).await;
    // Who waits at a prompt.
    let stream = RawClient::socket_from("127.0.0.4", bastion.port).await;
    let mut waiting = RawClient::over(stream).await.unwrap();
    waiting.start_interactive("alice", "").await;
    assert_eq!(waiting.reply().await, INFO_REQUEST);
    assert_eq!(waiting.receive().await, None);
    bastion.event("sign-in-refused", &[("reason", "grace-expired"), ("user", "alice")]).await;
    // Who sends IGNORE all the time, encrypted.
    let stream = RawClient::socket_from("127.0.0.5", bastion.port).await;
    let mut dripping = RawClient::over(stream).await.unwrap();
    let ignore = raw::Packet::new(raw::IGNORE).text("drip").0;
    let drip = async {
        let mut byte = [0];
        loop {
            dripping.send(&ignore).await;
            let wait = Duration::from_millis(100);
            if let Ok(read) = tokio::time::timeout(wait, dripping.stream.read(&mut byte)).await {
                return read;
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, drip).await.expect("it is still connected");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    for from in ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"] {
        eventually(&format!("the end of {from} is written down"), async || {
            let written = sources(&bastion, "sign-in-refused", "grace-expired").await;
            written.iter().any(|source| source == from).then_some(())
        })
        .await;
    }
    assert!(bastion.kinds("signed-in").await.is_empty());
}

/// Whoever has a one-time password must not hold a place of those not signed in for hours.
#[tokio::test(flavor = "multi_thread")]
async fn binding_outlives_the_login_grace_and_ends_in_its_own_whatever_is_typed() {
    let grace = "[server]\nlogin_grace = \"2s\"\nbinding_grace = \"5s\"\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, grace).await;
    let one_time = bastion.newcomer("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    client.start_interactive("alice", "").await;
    let new = "an unusual teapot 7";
    for answer in [one_time.expose_secret(), new, new] {
        assert_eq!(client.reply().await, INFO_REQUEST);
        client.answer(answer).await;
    }
    assert_eq!(client.reply().await, INFO_REQUEST);
    let first_sight = Instant::now();
    // As fast as somebody types.
    let mut typing = tokio::time::interval(Duration::from_millis(400));
    for answer in ["r", "i", "a", "000000"].iter().cycle() {
        typing.tick().await;
        client.answer(answer).await;
        if client.reply().await != INFO_REQUEST {
            break;
        }
    }
    let held = first_sight.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&held), "{held:?}");
    // The password was right, and what belongs behind it did not come.
    bastion.event("sign-in-refused", &[("reason", "given-up"), ("user", "alice")]).await;
    assert!(bastion.kinds("authenticator-bound").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn six_answers_by_any_mix_of_methods_and_no_more() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[login]\nlock_after = 100\n").await;
    let alice = bastion.person("alice").await;
    // p: a password by itself; i: questions, until there are no more.
    for pattern in ["p", "i", "pi", "ppi"] {
        for (wrong, let_in) in [(4, true), (5, false)] {
            let mut client = RawClient::connect(bastion.port).await;
            let mut answers = 0;
            for step in pattern.chars().cycle().take(20) {
                if answers == wrong {
                    break;
                }
                if step == 'p' {
                    client.send_password("alice", "wrong").await;
                    answers += 1;
                    assert_eq!(client.reply().await, USERAUTH_FAILURE);
                    continue;
                }
                client.start_interactive("alice", "").await;
                while client.reply().await == INFO_REQUEST && answers < wrong {
                    client.answer("000000").await;
                    answers += 1;
                }
            }
            assert_eq!(answers, wrong, "{pattern}");
            // Two right answers more.
            client.send_password("alice", PASSWORD).await;
            assert_eq!(client.reply().await, USERAUTH_FAILURE); // With partial success, maybe.
            client.start_interactive("alice", "").await;
            if client.reply().await == INFO_REQUEST {
                client.answer(&bastion.code(&alice)).await;
                let reply = client.reply().await;
                assert_eq!(reply == USERAUTH_SUCCESS, let_in, "{pattern} {wrong}: {reply}");
            } else {
                assert!(!let_in, "{pattern} {wrong}");
            }
            if !let_in {
                client.send_password("alice", PASSWORD).await;
                assert_eq!(client.reply().await, DISCONNECT, "{pattern}");
            }
        }
    }
    bastion.event("sign-in-refused", &[("reason", "too-many-attempts")]).await;
    assert_eq!(bastion.kinds("signed-in").await.len(), 4);
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 12345 22\r\n";

/// A version 2 header of a TCP connection over IPv4.
fn v2(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&source);
    header.extend_from_slice(&[127, 0, 0, 1, 0x30, 0x39, 0, 22]);
    header
}

/// One of a TCP connection over IPv6.
fn v2_tcp6() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    for address in ["2001:db8::7", "2001:db8::1"] {
        header.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    header.extend_from_slice(&[0x30, 0x39, 0, 22]);
    header
}

/// One with something behind the addresses.
fn v2_with_tlv(source: [u8; 4]) -> Vec<u8> {
    let mut header = v2(source);
    header[15] += 7;
    header.extend_from_slice(b"\x05\0\x04once");
    header
}

async fn proxied(bastion: &TestBastion, header: &[u8]) -> Option<RawClient> {
    let mut stream = RawClient::socket_from("127.0.0.2", bastion.port).await;
    stream.write_all(header).await.unwrap();
    RawClient::over(stream).await
}

const PROXY: &str = "[server]\nproxy_from = [\"127.0.0.2/32\"]\npenalty_exempt = []\n\
                     max_unauthenticated_per_source = 2\n[login]\nlock_after = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_proxy_names_the_source_that_is_audited_and_counted() {
    let bastion = TestBastion::start_with(Engine::Sqlite, PROXY).await;
    let alice = bastion.person("alice").await;
    for (header, source) in [
        (V1.to_vec(), "192.0.2.7:12345"),
        (v2([192, 0, 2, 8]), "192.0.2.8:12345"),
        (v2_tcp6(), "[2001:db8::7]:12345"),
        (v2_with_tlv([192, 0, 2, 12]), "192.0.2.12:12345"),
    ] {
        let mut client = proxied(&bastion, &header).await.unwrap();
        let code = bastion.code(&alice);
        assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
        bastion.event("signed-in", &[("source", source)]).await;
    }
    // Failures lock the account for who made them, not for others behind the proxy.
    let mut client = proxied(&bastion, V1).await.unwrap();
    for _ in 0..2 {
        assert_eq!(client.log_in("alice", "wrong", "000000").await, USERAUTH_FAILURE);
    }
    let locked = bastion.event("source-locked", &[("user", "alice")]).await;
    assert_eq!(locked["source"], "192.0.2.7:12345");
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_FAILURE);
    bastion.event("sign-in-refused", &[("reason", "locked"), ("source", "192.0.2.7:12345")]).await;
    drop(client);
    let mut other = proxied(&bastion, &v2([192, 0, 2, 9])).await.unwrap();
    let code = bastion.code(&alice);
    assert_eq!(other.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    // The caps count whoever is behind the proxy, too.
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(proxied(&bastion, &v2([192, 0, 2, 10])).await.unwrap());
    }
    assert!(proxied(&bastion, &v2([192, 0, 2, 10])).await.is_none());
    assert!(proxied(&bastion, &v2([192, 0, 2, 11])).await.is_some());
    eventually("it is written down, and no other", async || {
        let guarded = sources(&bastion, "sign-in-refused", "guarded").await;
        (guarded == ["192.0.2.10"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_is_taken_from_listed_networks_only_and_wanted_from_them() {
    let bastion = TestBastion::start_with(Engine::Sqlite, PROXY).await;
    let alice = bastion.person("alice").await;
    for header in [V1.to_vec(), v2([192, 0, 2, 7])] {
        let mut stream = RawClient::socket_from("127.0.0.1", bastion.port).await;
        stream.write_all(&header).await.unwrap();
        assert!(RawClient::over(stream).await.is_none());
    }
    for wrong in [&b"SSH-2.0-x\r\n"[..], b"PROXY TCP4 192.0.2.7\r\n", b"PROXY SCTP 1 2 3 4\r\n"] {
        assert!(greeted_after("127.0.0.2", bastion.port, wrong).await.is_none());
    }
    let refused = bastion.event("sign-in-refused", &[("reason", "proxy-header")]).await;
    assert!(refused["source"].as_str().unwrap().starts_with("127.0.0.2:"), "{refused}");
    // An ordinary connection beside it is served.
    drop(logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&alice)).await);
    let events = serde_json::to_string(&bastion.events().await).unwrap();
    assert!(events.contains("127.0.0.1:") && !events.contains("192.0.2.7"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxys_own_address_signs_nobody_in() {
    let bastion = TestBastion::start_with(Engine::Sqlite, PROXY).await;
    bastion.person("alice").await;
    // A health check (LOCAL) is greeted, whether it says something or not, and the connection ends.
    for says in [&b""[..], b"SSH-2.0-x\r\n"] {
        let mut stream = RawClient::socket_from("127.0.0.2", bastion.port).await;
        let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..], says].concat();
        stream.write_all(&local).await.unwrap();
        let mut said = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut said)).await;
        read.expect("it is still connected").unwrap();
        assert_eq!(said, concat!("SSH-2.0-Sallyport_", env!("CARGO_PKG_VERSION"), "\r\n"));
    }
    assert!(bastion.kinds("sign-in-refused").await.is_empty());
    // Whose client is not named is let in nowhere.
    for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"] {
        assert!(proxied(&bastion, unknown).await.is_none());
    }
    let refused = bastion.event("sign-in-refused", &[("reason", "proxy-unknown")]).await;
    assert!(refused["source"].as_str().unwrap().starts_with("127.0.0.2:"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_proxy_headers_are_written_down_once_a_minute() {
    let bastion = TestBastion::start_with(Engine::Sqlite, PROXY).await;
    for _ in 0..5 {
        assert!(greeted_after("127.0.0.2", bastion.port, b"SSH-2.0-x\r\n").await.is_none());
    }
    bastion.event("sign-in-refused", &[("reason", "proxy-header")]).await;
    // A proxy that looks whether somebody listens is nothing to write down; others are told apart.
    let other = bastion.person("alice").await;
    drop(logged_in(&bastion, "127.0.0.1", "alice", &bastion.code(&other)).await);
    assert_eq!(bastion.kinds("sign-in-refused").await.len(), 1);
}

/// They are nobody's as long as they say nothing, and take places of everybody's.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_proxy_count_before_their_header_came() {
    let few = "[server]\nproxy_from = [\"127.0.0.2/32\"]\nmax_unauthenticated = 2\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, few).await;
    let mut silent = Vec::new();
    // Which of them come in before the one that looks is the machine's matter: more each time.
    eventually("there is no place left", async || {
        silent.push(RawClient::socket_from("127.0.0.2", bastion.port).await);
        greeted("127.0.0.1", bastion.port).await.is_none().then_some(())
    })
    .await;
    bastion.event("sign-in-refused", &[("reason", "guarded")]).await;
    drop(silent);
    eventually("there is room", async || greeted("127.0.0.1", bastion.port).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_tries_too_often_is_refused_and_no_other() {
    let few =
        "[server]\npenalty_exempt = []\n[login]\nattempts_per_minute = 1\nattempts_burst = 2\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, few).await;
    let alice = bastion.person("alice").await;
    let asks = async |from: &str| {
        let stream = RawClient::socket_from(from, bastion.port).await;
        let mut client = RawClient::over(stream).await.expect("refused");
        client.start_interactive("alice", "").await;
        client.reply().await
    };
    assert_eq!(asks("127.0.0.1").await, INFO_REQUEST);
    assert_eq!(asks("127.0.0.1").await, INFO_REQUEST);
    assert_eq!(asks("127.0.0.1").await, USERAUTH_FAILURE);
    let limited = [("user", "alice"), ("reason", "rate-limited")];
    let refused = bastion.event("sign-in-refused", &limited).await;
    assert!(refused["source"].as_str().unwrap().starts_with("127.0.0.1:"), "{refused}");
    drop(logged_in(&bastion, "127.0.0.2", "alice", &bastion.code(&alice)).await);
}
