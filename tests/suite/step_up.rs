//! A fresh code before a target is reached: on each way, with the real client.

use std::time::Duration;

use sallyport::audit::Context;
use sallyport::clock::Clock;
use sallyport::domain::{Grant, Remember, UnixTime};

use crate::support::bastion::{Engine, PASSWORD, TestBastion, code_at};
use crate::support::hop::{Hop, NOTICE, fed};
use crate::support::keypair::KeyPair;
use crate::support::screen::Screen;
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;
use crate::support::ways::Way;
use crate::support::{PATIENCE, ended, eventually, on_both_engines, present_user};

on_both_engines!(
    the_inner_ssh_asks_for_a_code_that_works_once,
    wrong_codes_end_it_and_lock_the_account,
);

/// With a grant that asks for a code, and room for many codes.
async fn hop(engine: Engine, change: impl FnOnce(&mut Grant)) -> Hop {
    let start = UnixTime(Clock::System.now().0 - 12 * 3600 * 1000);
    let bastion = TestBastion::start_at(start, engine, "").await;
    let sshd = Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    Hop::around(bastion, sshd, change).await
}

fn asks(grant: &mut Grant) {
    grant.step_up = true;
}

fn question() -> String {
    format!("6-digit code for {}@db1: ", present_user())
}

/// The bastion went to the target so many times.
async fn reached(hop: &Hop) -> usize {
    hop.bastion.kinds("target-signed-in").await.len()
}

async fn the_inner_ssh_asks_for_a_code_that_works_once(engine: Engine) {
    let hop = hop(engine, asks).await;
    // The code of the login is used up, and stands for nothing here.
    let used = code_at(&hop.alice, hop.bastion.now());
    hop.client.answers(&[&used, "12345", &hop.bastion.code(&hop.alice)]);
    let ran = hop.ssh(&["via", "echo in"]).await.ok();
    assert_eq!(ran.text(), "in\n");
    let asked = hop.client.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|asked| asked.ends_with(&question())), "{asked:?}");
    assert!(ran.err.contains("That code was used already: wait for the next one."), "{ran:?}");
    assert!(ran.err.contains("That code is wrong."), "{ran:?}");
    for reason in ["replayed-code", "wrong-code"] {
        hop.bastion.event("step-failed", &[("user", "alice"), ("reason", reason)]).await;
    }
    let user = present_user();
    let at = [("user", "alice"), ("target", "db1"), ("account", user.as_str())];
    hop.bastion.event("account-refused", &[&at[..], &[("reason", "step-up")]].concat()).await;
    hop.bastion.event("step-up-passed", &at).await;

    // Each connection is asked anew, and a used code opens none of them.
    let used = code_at(&hop.alice, hop.bastion.now());
    let before = reached(&hop).await;
    hop.client.answers(&[&used, &used, &used]);
    let ran = hop.ssh(&["via", "echo in"]).await.failed();
    assert!(ran.err.contains(&format!("too many wrong codes for {user}@db1")), "{ran:?}");
    assert_eq!(reached(&hop).await, before);

    // One that many sessions share is asked once.
    hop.client.answers(&[&hop.bastion.code(&hop.alice)]);
    let (mut master, path) = hop.shared(&[]).await;
    for _ in 0..3 {
        assert_eq!(hop.ssh(&["-S", &path, "via", "echo in"]).await.ok().text(), "in\n");
    }
    assert_eq!(hop.client.asked().len(), 1);
    hop.ssh(&["-O", "exit", "-S", &path, "via"]).await.ok();
    ended(&mut master).await;
}

async fn wrong_codes_end_it_and_lock_the_account(engine: Engine) {
    let hop = hop(engine, asks).await;
    for _ in 0..3 {
        hop.client.answers(&["1", "12345", "recovery"]);
        let ran = hop.ssh(&["via", "true"]).await.failed();
        assert!(ran.err.contains("too many wrong codes"), "{ran:?}");
        assert_eq!(hop.client.asked().len(), 3);
    }
    // The tenth wrong answer in a row locks, as in a login; a right code is not even asked for.
    hop.client.answers(&["1", "1"]);
    let ran = hop.ssh(&["via", "true"]).await.failed();
    assert!(ran.err.contains("too many wrong answers: try again after"), "{ran:?}");
    assert_eq!(hop.client.asked().len(), 1);
    hop.bastion.event("source-locked", &[("user", "alice")]).await;
    hop.client.answers(&[&hop.bastion.code(&hop.alice)]);
    let ran = hop.ssh(&["via", "true"]).await.failed();
    assert!(ran.err.contains("too many wrong answers: try again after"), "{ran:?}");
    assert_eq!(hop.client.asked().len(), 0);
    hop.bastion.event("account-refused", &[("target", "db1"), ("reason", "locked")]).await;
    assert_eq!(reached(&hop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_code_does_not_do() {
    let hop = hop(Engine::Sqlite, asks).await;
    hop.client.answers(&[&hop.alice.recovery_code(0)]);
    let ran = hop.ssh(&["via", "true"]).await.failed();
    assert!(ran.err.contains("a recovery code does not do here"), "{ran:?}");
    hop.bastion.event("account-refused", &[("target", "db1"), ("reason", "not-offered")]).await;
    assert_eq!(reached(&hop).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_selector_a_terminal_asks_before_the_target_is_reached() {
    let hop = hop(Engine::Sqlite, asks).await;
    let mut screen = Screen::run(&hop.command(&["-tt", "chosen"]));
    screen.expect("Password: ").await;
    screen.type_line(PASSWORD).await;
    screen.expect("6-digit code: ").await;
    screen.type_line(&hop.bastion.code(&hop.alice)).await;
    screen.expect(&question()).await;
    assert_eq!(reached(&hop).await, 0);
    assert!(hop.recordings().await.is_empty());
    screen.type_line("12345").await;
    screen.expect("That code is wrong.").await;
    screen.expect(&question()).await;
    let code = hop.bastion.code(&hop.alice);
    screen.type_line(&code).await;
    screen.expect(NOTICE.trim()).await;
    screen.type_line("echo $((6 * 7))-there; exit").await;
    screen.expect("42-there").await;
    screen.ended().await;
    let row = eventually("the recording ended", async || {
        hop.recordings().await.into_iter().find(|row| row.ended_at.is_some())
    });
    let cast = hop.cast(row.await);
    assert!(!cast.input().contains(&code) && !cast.output().contains(&question()));
    hop.bastion.event("step-up-passed", &[("user", "alice"), ("target", "db1")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_only_the_code_of_this_sign_in_does() {
    let hop = hop(Engine::Sqlite, asks).await;
    hop.sign_in_on(Way::Selector);
    assert_eq!(hop.ssh(&["chosen", "echo in"]).await.ok().text(), "in\n");
    hop.bastion.event("step-up-passed", &[("user", "alice"), ("target", "db1")]).await;

    // Not once a minute passed.
    let (mut master, path) = hop.shared_on(Way::Selector, &[]).await;
    hop.bastion.clock.advance(Duration::from_secs(61));
    let ran = hop.ssh(&["-S", &path, "chosen", "echo in"]).await.failed();
    let why = format!("{}@db1 asks for a fresh code, and you cannot be asked here", present_user());
    assert!(ran.err.contains(&why), "{ran:?}");
    hop.bastion.event("account-refused", &[("target", "db1"), ("reason", "step-up")]).await;
    assert_eq!(reached(&hop).await, 1);
    // A terminal on the same connection is asked; then all of it is through.
    let mut screen = Screen::run(&hop.command(&["-S", &path, "-tt", "chosen", "echo $((6 * 7))"]));
    screen.expect(&question()).await;
    screen.type_line(&hop.bastion.code(&hop.alice)).await;
    screen.expect("42").await;
    screen.ended().await;
    assert_eq!(hop.ssh(&["-S", &path, "chosen", "echo in"]).await.ok().text(), "in\n");
    hop.ssh(&["-O", "exit", "-S", &path, "chosen"]).await.ok();
    ended(&mut master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_session_reaches_no_target_without_a_code() {
    let hop = hop(Engine::Sqlite, asks).await;
    let (mut master, path) = hop.shared_on(Way::Selector, &[]).await;
    let ran = hop.ssh(&["-S", &path, "-W", "127.0.0.1:9", "chosen"]).await.failed();
    hop.bastion.event("account-refused", &[("target", "db1"), ("reason", "step-up")]).await;
    assert_eq!(reached(&hop).await, 0, "{ran:?}");
    hop.ssh(&["-O", "exit", "-S", &path, "chosen"]).await.ok();
    ended(&mut master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_menu_asks_at_each_visit() {
    let hop = hop(Engine::Sqlite, asks).await;
    let mut screen = Screen::run(&hop.command(&["-t", "bastion"]));
    for right in [false, true, true] {
        screen.shows("Type to filter").await;
        screen.press(&format!("db1\r\u{15}{}\r", present_user())).await;
        screen.shows(question().trim()).await;
        if !right {
            screen.raw().await; // ^C is the bastion's to read.
            screen.press("\u{3}").await;
            screen.shows("you left").await;
            continue;
        }
        screen.type_line(&hop.bastion.code(&hop.alice)).await;
        screen.shows(NOTICE.trim()).await;
        screen.press("exit\r").await;
        screen.shows("exit status 0").await;
    }
    assert_eq!(reached(&hop).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_begins_to_ask_ends_what_was_open_without() {
    let hop = hop(Engine::Sqlite, |_| {}).await;
    let mut running = hop.running(&["via", "echo up; cat"]).await;
    let _input = running.stdin.take();
    hop.bastion.add_grant("alice", "db1", asks).await;
    let ran = tokio::time::timeout(PATIENCE, running.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("db1 asks for a fresh code now: connect again"), "{said}");
    // One grant that asks is enough.
    hop.client.answers(&["12345", "12345", "12345"]);
    hop.ssh(&["via", "true"]).await.failed();
    assert_eq!(hop.client.asked().len(), 3);
}

/// Signs in by what these lines of configuration name, without a code, and is asked for one all the same.
async fn is_asked(hop: &Hop, lines: &str) {
    let (user, known) = (present_user(), hop.client.path("known_targets"));
    let known = format!("UserKnownHostsFile {}\nStrictHostKeyChecking yes", known.display());
    let port = hop.bastion.port;
    let client = Client::new(&hop.bastion, "alice")
        .host("bastion", lines)
        .host("via", &format!("HostName db1\nProxyJump bastion\nUser {user}\n{known}"))
        .host(
            "chosen",
            &format!(
                "HostName 127.0.0.1\nPort {port}\nUser alice+{user}@db1\nHostKeyAlias bastion\n\
                 {known}\n{lines}"
            ),
        );
    let before = reached(hop).await;
    client.answers(&["1", "1", "1"]);
    client.ssh(&["via", "true"]).await.failed();
    let asked = client.asked();
    assert!(
        asked.len() == 3 && asked.iter().all(|asked| asked.ends_with(&question())),
        "{asked:?}"
    );
    // Where nobody can be asked, the sign-in has no code to give.
    let ran = client.ssh(&["-o", "BatchMode=yes", "chosen", "true"]).await.failed();
    assert!(ran.err.contains("asks for a fresh code, and you cannot be asked here"), "{ran:?}");
    assert_eq!(reached(hop).await, before);
    client.answers(&[&hop.bastion.code(&hop.alice)]);
    client.ssh(&["via", "true"]).await.ok();
    assert_eq!((client.asked().len(), reached(hop).await), (1, before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_certificate_nor_a_remembered_login_stands_for_it() {
    // Behind the clocks of client and host, so that certificates hold by those too as it moves on.
    let start = UnixTime(Clock::System.now().0 - 3600 * 1000);
    let on = "[login]\ncertificate_life = \"8h\"\n";
    let bastion = TestBastion::start_at(start, Engine::Sqlite, on).await;
    let sshd = Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    let hop = Hop::around(bastion, sshd, asks).await;
    let by_code = Client::new(&hop.bastion, "alice");

    let key = KeyPair::new().await;
    by_code.answers(&[PASSWORD, &hop.bastion.code(&hop.alice)]);
    let mut ask = by_code.command("ssh", &["bastion", "certificate"]);
    let given = fed(&mut ask, key.line().as_bytes()).await.ok();
    let certificate = key.path("given-cert.pub");
    std::fs::write(&certificate, given.out).unwrap();
    let lines = format!("{}\nCertificateFile {}", key.identity(), certificate.display());
    is_asked(&hop, &lines).await;

    let (store, context, now) = (hop.bastion.store(), Context::default(), hop.bastion.now());
    let group = "staff".parse().unwrap();
    store.add_group(&group, &context, now).await.unwrap();
    store.join_group(&group, &hop.alice.name, &context, now).await.unwrap();
    let hours = Remember::For(Duration::from_secs(8 * 3600));
    store.set_group_remember(&group, hours, &context, now).await.unwrap();
    let key = KeyPair::new().await;
    key.add_to(&hop.bastion, &hop.alice).await;
    let by_code = by_code.host("bastion", &key.identity());
    by_code.answers(&[&hop.bastion.code(&hop.alice)]);
    by_code.ssh(&["bastion", "targets"]).await.ok();
    is_asked(&hop, &key.identity()).await;
    let steps = hop.bastion.kinds("signed-in").await.pop().unwrap()["steps"].clone();
    assert_eq!(steps, serde_json::json!(["key", "remembered"]));
}
