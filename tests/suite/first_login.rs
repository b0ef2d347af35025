//! The first login: a new password, the QR code on a terminal, recovery codes; also under `-J`.

use crate::support::bastion::{Engine, TestBastion, code_of, secret_of};
use crate::support::on_both_engines;
use crate::support::screen::Screen;
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;
use sallyport::audit::Context;
use sallyport::store::BindingPassword;
use secrecy::ExposeSecret as _;

on_both_engines!(a_newcomer_binds_a_phone_under_j);

const NEW: &str = "an unusual teapot 7";

/// A terminal without prepared answers.
fn terminal(client: &Client, args: &[&str]) -> Screen {
    let mut ssh = crate::support::command(crate::support::tool("ssh"));
    ssh.arg("-F").arg(client.path("config")).args(args);
    Screen::run(&ssh)
}

async fn a_newcomer_binds_a_phone_under_j(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let sshd = Sshd::start().await;
    let one_time = bastion.newcomer("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    let mut screen = terminal(&client, &["-J", "bastion", "db1", "echo through as $USER"]);

    screen.expect("(alice@127.0.0.1) Password: ").await;
    screen.type_line(one_time.expose_secret()).await;
    screen.expect("Choose a new password: ").await;
    screen.type_line("short").await;
    screen.expect("too short").await;
    screen.expect("Choose a new password: ").await;
    screen.type_line("password1234").await;
    screen.expect("too easy to guess").await;
    screen.expect("Choose a new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("Repeat the new password: ").await;
    screen.type_line("something else entirely").await;
    screen.expect("do not match").await;
    screen.expect("Choose a new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("Repeat the new password: ").await;
    screen.type_line(NEW).await;

    screen.expect("makes a new one): ").await;
    screen.settle().await;
    let first = screen.qr().unwrap_or_else(|| panic!("no QR code on:\n{}", screen.text()));
    assert!(first.starts_with("otpauth://totp/Sallyport:alice?secret="), "{first}");
    screen.type_line("i").await;
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    assert_eq!(screen.qr().as_ref(), Some(&first), "{}", screen.text());
    screen.type_line("a").await;
    screen.expect("####").await;
    screen.expect("makes a new one): ").await;
    screen.type_line("r").await;
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    let uri = screen.qr().unwrap();
    assert_ne!(uri, first);
    // Nothing is bound by a wrong code, or by one of the secret that was thrown away.
    screen.type_line(&code_of(&secret_of(&first), bastion.now())).await;
    screen.expect("That code is wrong").await;
    screen.expect("makes a new one): ").await;
    let later = sallyport::domain::UnixTime(bastion.now().0 + 300_000);
    screen.type_line(&code_of(&secret_of(&uri), later)).await;
    screen.expect("clock is 300 s fast").await;
    screen.expect("makes a new one): ").await;
    // Whoever helps on the telephone sees it at once.
    let drift = bastion.event("clock-drift", &[("user", "alice")]).await;
    assert_eq!(drift["seconds"], 300);
    let seen = bastion.store().user(&"alice".parse().unwrap()).await.unwrap();
    assert_eq!(seen.user.otp_drift_seconds, Some(300));
    assert!(bastion.kinds("authenticator-bound").await.is_empty());
    screen.type_line(&code_of(&secret_of(&uri), bastion.now())).await;
    screen.expect("Press Enter to continue: ").await;
    let text = screen.text();
    let is_code = |word: &&str| word.len() == 29 && word.matches('-').count() == 5;
    assert_eq!(text.split_whitespace().filter(is_code).count(), 10, "{text}");
    bastion.event("authenticator-bound", &[("user", "alice")]).await;
    assert!(bastion.kinds("signed-in").await.is_empty());
    screen.type_line("").await;
    screen.expect("through as").await;
    assert_eq!(screen.end().await.0, Some(0));

    // The code that bound it is used up; the one-time password is no more.
    let once = ["-o", "NumberOfPasswordPrompts=1", "bastion", "targets"];
    client.answers(&[NEW, &code_of(&secret_of(&uri), bastion.now())]);
    client.ssh(&once).await.failed();
    bastion.clock.advance(std::time::Duration::from_secs(30));
    client.answers(&[one_time.expose_secret(), &code_of(&secret_of(&uri), bastion.now())]);
    client.ssh(&once).await.failed();
    client.answers(&[NEW, &code_of(&secret_of(&uri), bastion.now())]);
    client.ssh(&once).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_phones_at_once_bind_one() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let (store, context) = (bastion.store(), Context::default());
    let until = bastion.now().plus(std::time::Duration::from_secs(3600));
    store
        .reset_otp(&alice.name, until, BindingPassword::Kept, &context, bastion.now())
        .await
        .unwrap();
    let client = Client::new(&bastion, "alice");
    let mut screens = Vec::new();
    for _ in 0..2 {
        let mut screen = terminal(&client, &["bastion"]);
        screen.expect("Password: ").await;
        screen.type_line(crate::support::bastion::PASSWORD).await;
        screen.expect("makes a new one): ").await;
        screen.settle().await;
        screens.push((screen.qr().unwrap(), screen));
    }
    let mut bound = 0;
    for (uri, mut screen) in screens {
        screen.type_line(&code_of(&secret_of(&uri), bastion.now())).await;
        if bound == 0 {
            screen.expect("Press Enter to continue: ").await;
            screen.type_line("").await;
            screen.shows("Authenticator bound").await;
            bound += 1;
        } else {
            screen.expect("Password: ").await;
        }
    }
    assert_eq!(bastion.kinds("authenticator-bound").await.len(), 2); // One of them at the set-up.
    bastion.event("sign-in-refused", &[("reason", "already-bound")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_binds_nothing() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let one_time = bastion.newcomer("alice").await;
    bastion.clock.advance(std::time::Duration::from_secs(25 * 3600));
    let client = Client::new(&bastion, "alice");
    client.answers(&[one_time.expose_secret(), "123456"]);
    let only = "PreferredAuthentications=keyboard-interactive";
    client.ssh(&["-o", only, "-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    assert_eq!(client.asked().len(), 2, "{:?}", client.asked());
    bastion.event("sign-in-refused", &[("reason", "binding-closed")]).await;

    let until = bastion.now().plus(std::time::Duration::from_secs(3600));
    let name = "alice".parse().unwrap();
    bastion
        .store()
        .reset_otp(&name, until, BindingPassword::Kept, &Context::default(), bastion.now())
        .await
        .unwrap();
    let mut screen = terminal(&client, &["bastion"]);
    screen.expect("Password: ").await;
    screen.type_line(one_time.expose_secret()).await;
    screen.expect("Choose a new password: ").await;
}
