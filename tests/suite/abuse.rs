//! Ways round the counting of failures, and round being ended, that must lead nowhere.

use std::time::{Duration, Instant};

use sallyport::audit::Context;

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::raw::{
    CHANNEL_OPEN_CONFIRMATION, CHANNEL_OPEN_FAILURE, CLOSE, DISCONNECT, INFO_REQUEST, Packet,
    RawClient, USERAUTH_FAILURE, USERAUTH_SUCCESS,
};
use crate::support::ssh::Client;
use crate::support::{eventually, on_both_engines};

on_both_engines!(
    a_password_without_a_code_counts_as_a_failure,
    an_end_that_could_not_be_written_is_written_later,
);

async fn a_password_without_a_code_counts_as_a_failure(engine: Engine) {
    let bastion = TestBastion::start_with(engine, "[login]\nlock_after = 4\n").await;
    bastion.newcomer("alice").await;
    for tries in 1..=4 {
        let mut client = RawClient::connect(bastion.port).await;
        client.send_password("alice", "a guess").await;
        assert_eq!(client.reply().await, USERAUTH_FAILURE);
        if tries == 2 {
            client.start_interactive("alice", "").await; // Sees the question, and leaves.
            assert_eq!(client.reply().await, INFO_REQUEST);
        }
        drop(client);
        eventually("the failure is written down", async || {
            let given_up = bastion.kinds("sign-in-refused").await;
            let of = |event: &&serde_json::Value| {
                event["reason"] == "given-up" && event["user"] == "alice"
            };
            (given_up.iter().filter(of).count() == tries).then_some(())
        })
        .await;
    }
    bastion.event("source-locked", &[("user", "alice")]).await;
}

/// Each step of a login is written down with the time that it was passed at, not with its end's.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_has_a_time_of_its_own() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    client.send_password("alice", PASSWORD).await;
    assert_eq!(client.reply().await, USERAUTH_FAILURE);
    let at = bastion.now().0;
    client.start_interactive("alice", "").await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    bastion.clock.advance(std::time::Duration::from_secs(60));
    let (code, later) = (bastion.code(&alice), bastion.now().0);
    client.answer(&code).await;
    assert_eq!(client.reply().await, USERAUTH_SUCCESS);
    let password = bastion.event("step-passed", &[("step", "password")]).await;
    let code = bastion.event("step-passed", &[("step", "code")]).await;
    assert_eq!(password["at"], at);
    assert_eq!(code["at"], later);
    assert!(later >= at + 60_000);
}

/// Ways to have the connection ended with a password given and nothing after it.
#[tokio::test(flavor = "multi_thread")]
async fn being_thrown_out_does_not_undo_a_guess() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[login]\nlock_after = 3\n").await;
    bastion.person("alice").await;
    for way in 0..3 {
        let mut client = RawClient::connect(bastion.port).await;
        client.send_password("alice", "a guess").await;
        assert_eq!(client.reply().await, USERAUTH_FAILURE);
        for _ in 0..66 {
            match way {
                0 => client.send_password("bob", "another").await,
                1 => client.offer_key("alice").await,
                _ => client.start_interactive("alice", "").await,
            }
            if client.reply().await == DISCONNECT {
                break;
            }
        }
        let reason = if way == 0 { "user-changed" } else { "too-many-attempts" };
        bastion.event("sign-in-refused", &[("user", "alice"), ("reason", reason)]).await;
        eventually("the guess is counted", async || {
            let refused = bastion.kinds("sign-in-refused").await;
            let given_up = refused.iter().filter(|event| event["reason"] == "given-up");
            (given_up.count() == way + 1).then_some(())
        })
        .await;
    }
    bastion.event("source-locked", &[("user", "alice")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_password_without_a_code_is_not_even_looked_at() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    bastion.person("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    for password in ["a guess", PASSWORD] {
        client.send_password("alice", password).await;
        assert_eq!(client.reply().await, USERAUTH_FAILURE);
    }
    bastion.event("sign-in-refused", &[("user", "alice"), ("reason", "given-up")]).await;
    assert!(bastion.kinds("step-passed").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_a_notice_is_ended_as_if_let_in_already() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    client.send_password("alice", PASSWORD).await;
    assert_eq!(client.reply().await, USERAUTH_FAILURE);
    client.start_interactive("alice", "").await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    client.answer(&alice.recovery_code(0)).await;
    // How many recovery codes are left: the session is open, and nobody is let in yet.
    assert_eq!(client.reply().await, INFO_REQUEST);
    bastion.event("signed-in", &[("user", "alice")]).await;
    let context = Context::default();
    bastion.store().set_disabled(&alice.name, true, &context, bastion.now()).await.unwrap();
    assert_eq!(client.reply().await, DISCONNECT);
    bastion.event("session-ended", &[("user", "alice"), ("reason", "revoked")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_requests_ends_its_connection_and_no_other() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let (alice, bob) = (bastion.person("alice").await, bastion.person("bob").await);
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let forwards: Vec<String> = (1..400).map(|port| format!("-R{port}:localhost:1")).collect();
    let mut args: Vec<&str> = forwards.iter().map(String::as_str).collect();
    args.extend(["-N", "bastion"]);
    client.ssh(&args).await.failed();
    bastion.event("session-ended", &[("user", "alice"), ("reason", "protocol-error")]).await;
    assert!(bastion.kinds("request-refused").await.len() < 200);

    let other = Client::new(&bastion, "bob");
    other.answers(&[PASSWORD, &bastion.code(&bob)]);
    other.ssh(&["bastion", "help"]).await.ok();
}

/// How many refusals of somebody's there are in the log, by themselves or counted.
async fn refusals(bastion: &TestBastion, kinds: &[&str], user: &str) -> u64 {
    let of = |event: &&serde_json::Value| event["user"] == user;
    let mut all = 0;
    for kind in kinds {
        all += bastion.kinds(kind).await.iter().filter(of).count() as u64;
    }
    let suppressed = bastion.kinds("refusals-suppressed").await;
    all + suppressed.iter().filter(of).map(|event| event["count"].as_u64().unwrap()).sum::<u64>()
}

/// As a browser does with `ssh -D`: hundreds of channels at once, to what is granted and what is not.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_channels_at_once_are_all_answered_and_end_nothing() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "played", &format!("127.0.0.1:{port}")).await;
    let code = bastion.code(&alice);
    let mut client = RawClient::connect(bastion.port).await;
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let (granted, elsewhere, kinds) = (0..200_u32, 200..400_u32, 400..600_u32);
    for ours in granted.chain(elsewhere).chain(kinds) {
        match ours {
            0..200 => client.ask_direct(ours, "played", port).await,
            200..400 => client.ask_direct(ours, "elsewhere", 443).await,
            _ => client.ask_channel("x11", ours, Packet::default().text("a").number(1)).await,
        }
    }
    let mut answers = std::collections::HashMap::new();
    while answers.len() < 600 {
        let packet = client.next().await;
        let number = u32::from_be_bytes(packet[1..5].try_into().unwrap());
        if [CHANNEL_OPEN_CONFIRMATION, CHANNEL_OPEN_FAILURE].contains(&packet[0]) {
            answers.insert(number, packet[0]);
        }
    }
    let opened = |from: u32, to: u32| {
        (from..to).filter(|ours| answers[ours] == CHANNEL_OPEN_CONFIRMATION).count()
    };
    assert!(opened(0, 200) > 0 && opened(0, 200) <= 64, "{}", opened(0, 200));
    assert_eq!(opened(200, 600), 0);
    client.ask_direct(600, "elsewhere", 443).await;
    assert!(client.opened(600).await.is_err());
    drop(client);
    bastion.event("session-ended", &[("user", "alice"), ("reason", "client-closed")]).await;
    let refused = (601 - opened(0, 200)) as u64;
    let written = refusals(&bastion, &["forward-refused", "request-refused"], "alice").await;
    assert_eq!(written, refused);
}

async fn an_end_that_could_not_be_written_is_written_later(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = bastion.person("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let signed_in = bastion.event("signed-in", &[("user", "alice")]).await;
    bastion.tamper("ALTER TABLE audit_events RENAME TO audit_events_away").await;
    drop(client);
    eventually("it is over here", async || (bastion.bastion.failed_ends() == 1).then_some(()))
        .await;
    bastion.tamper("ALTER TABLE audit_events_away RENAME TO audit_events").await;
    let ended = bastion.event("session-ended", &[("user", "alice")]).await;
    assert_eq!(ended["session"], signed_in["session"]);
    let rows = bastion.store().sessions(&Default::default(), 5).await.unwrap();
    assert!(rows[0].ended_at.is_some());
    assert_eq!(bastion.kinds("session-ended").await.len(), 1);
}

/// Somebody who changes their own account all the time is not ended for that, but is for what others
/// change.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_outlasts_a_new_password_by_changing_the_account_without_end() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let mut channels = 0;
    let mut reset = None;
    loop {
        // Each asks for a change as soon as it is there; and each that ends makes room for another.
        if channels < 60 {
            client.ask_channel("session", channels, Packet::default()).await;
            channels += 1;
        }
        let Some(packet) = client.receive().await else { break };
        let number = u32::from_be_bytes(packet[1..5].try_into().unwrap());
        match packet[0] {
            DISCONNECT => break,
            CHANNEL_OPEN_CONFIRMATION => {
                let id = u32::from_be_bytes(packet[5..9].try_into().unwrap());
                let exec = Packet::new(98).number(id).text("exec").bytes(&[1]);
                client.send(&exec.text("keys remove SHA256:x").0).await;
            }
            CLOSE => {
                client.send(&Packet::new(CLOSE).number(number).0).await;
                client.ask_channel("session", number, Packet::default()).await;
            }
            _ => {}
        }
        if channels == 60 && reset.is_none() {
            let hash = bastion.bastion.hashing.hash("another teapot 77".into()).await.unwrap();
            let context = Context::default();
            let changed =
                bastion.store().set_password(&alice.name, &hash, false, &context, bastion.now());
            changed.await.unwrap();
            reset = Some(Instant::now());
        }
        assert!(reset.is_none_or(|at| at.elapsed() < Duration::from_secs(10)), "it is not ended");
    }
    assert!(reset.is_some());
    bastion.event("session-ended", &[("user", "alice"), ("reason", "revoked")]).await;
}

/// A session on the bastion keeps its place until it ends.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_take_their_places_and_give_them_back() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[server]\nmax_channels = 2\n").await;
    let alice = bastion.person("alice").await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let first = open_session(&mut client).await.unwrap();
    open_session(&mut client).await.unwrap();
    assert_eq!(open_session(&mut client).await, None);
    client.send(&Packet::new(97).number(first).0).await;
    while client.receive().await.unwrap()[0] != 97 {}
    // It has its place back when the one that served it is through, a moment later.
    let mut tries = 0..50;
    while open_session(&mut client).await.is_none() {
        assert!(tries.next().is_some(), "its place is not free");
    }
}

/// The channel's number, if it was opened.
async fn open_session(client: &mut RawClient) -> Option<u32> {
    let open = Packet::new(90).text("session").number(0).number(1 << 20).number(32_768);
    client.send(&open.0).await;
    loop {
        let packet = client.receive().await.unwrap();
        match packet[0] {
            91 => return Some(u32::from_be_bytes(packet[5..9].try_into().unwrap())),
            92 => return None,
            _ => {}
        }
    }
}

/// Opens a session with this window and asks for a shell in a terminal; gives the channel's number.
async fn terminal_with(client: &mut RawClient, window: u32) -> u32 {
    let open = Packet::new(90).text("session").number(0).number(window).number(32_768);
    client.send(&open.0).await;
    let id = loop {
        let packet = client.receive().await.unwrap();
        if packet[0] == 91 {
            break u32::from_be_bytes(packet[5..9].try_into().unwrap());
        }
    };
    let pty = Packet::new(98).number(id).text("pty-req").bytes(&[1]).text("xterm");
    let pty = pty.number(80).number(24).number(0).number(0).text("");
    client.send(&pty.0).await;
    client.send(&Packet::new(98).number(id).text("shell").bytes(&[1]).0).await;
    id
}

/// A client whose window is full when it chooses a target, and that leaves then: russh never wakes
/// who waits for such a window.
#[tokio::test(flavor = "multi_thread")]
async fn a_menu_whose_client_left_with_a_full_window_holds_nothing() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let sshd = crate::support::sshd::Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    let alice = bastion.person("alice").await;
    let account = crate::support::present_user().parse().unwrap();
    bastion.add_grant("alice", "db1", |grant| grant.accounts = vec![account]).await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    // The first picture fills the window of the second.
    terminal_with(&mut client, 1 << 20).await;
    let picture = loop {
        let packet = client.receive().await.unwrap();
        if packet[0] == 94 {
            break u32::from_be_bytes(packet[5..9].try_into().unwrap());
        }
    };
    let id = terminal_with(&mut client, picture).await;
    let typed = Packet::new(94).number(id).text("\r".to_owned() + &"x".repeat(30_000));
    for _ in 0..10 {
        client.send(&typed.0).await;
    }
    eventually("it is held for the menu", async || {
        (bastion.bastion.budget.held() > 0).then_some(())
    })
    .await;
    drop(client);
    eventually("nothing is held", async || (bastion.bastion.budget.held() == 0).then_some(()))
        .await;
    bastion.event("session-ended", &[("user", "alice")]).await;
}
