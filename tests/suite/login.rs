//! Signing in with the real `ssh`: every order of methods, one code once, and refusals that tell
//! nothing.

use std::time::Duration;

use sallyport::audit::Context;
use sallyport::domain::UnixTime;
use sallyport::store::BindingPassword;

use crate::support::bastion::{Engine, PASSWORD, TestBastion, code_at};
use crate::support::on_both_engines;
use crate::support::screen::Screen;
use crate::support::ssh::{Client, run};
use crate::support::{command, ended, tool};

on_both_engines!(
    password_then_code,
    fifty_logins_with_one_code_let_one_in,
    failures_lock_one_source_and_say_so_only_in_the_audit_log,
    too_many_wrong_codes_leave_the_sources_that_signed_in_before,
    a_recovery_code_works_once,
);

async fn password_then_code(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let ran = client
        .ssh(&["-o", "PreferredAuthentications=password,keyboard-interactive", "bastion"])
        .await
        .ok();
    assert!(ran.out.contains("Hello alice"), "{ran:?}");
    assert!(ran.out.contains("10 recovery codes are left"), "{ran:?}");
    let asked = client.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].contains("password:") && asked[1].ends_with("6-digit code: "), "{asked:?}");

    // Both inside keyboard-interactive.
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&["-o", "PreferredAuthentications=keyboard-interactive", "bastion"]).await.ok();
    let asked = client.asked();
    assert_eq!(asked[0], "(alice@127.0.0.1) Password: ");
    assert_eq!(asked[1], "(alice@127.0.0.1) 6-digit code: ");
    bastion.event("signed-in", &[("user", "alice")]).await;
    bastion.event("session-ended", &[("user", "alice"), ("reason", "client-closed")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_then_a_code() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    for (kind, bits) in [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("rsa", "2048")] {
        let client = Client::new(&bastion, "alice");
        let key = client.path("key");
        let mut keygen = command(tool("ssh-keygen"));
        keygen.args(["-q", "-t", kind, "-b", bits, "-N", "", "-C", "x", "-f"]).arg(&key);
        assert!(ended(&mut keygen.spawn().unwrap()).await.success());
        let public = std::fs::read_to_string(client.path("key.pub")).unwrap();
        let (fingerprint, line) = sallyport::keys::public_key(&public).unwrap();
        let identity = format!("IdentityFile={}", key.display());

        // Not one of hers yet: the client falls back to other methods.
        client.answers(&["wrong", "wrong"]);
        client
            .ssh(&["-o", &identity, "-o", "PreferredAuthentications=publickey", "bastion"])
            .await
            .failed();

        let store = bastion.store();
        store
            .add_key(&alice.name, &fingerprint, &line, &Context::default(), bastion.now())
            .await
            .unwrap();
        client.answers(&[&bastion.code(&alice)]);
        let ran = client.ssh(&["-o", &identity, "bastion"]).await.ok();
        assert!(ran.out.contains("Hello alice"), "{kind} {bits}: {ran:?}");
        assert_eq!(client.asked(), ["(alice@127.0.0.1) 6-digit code: "]);
        bastion.event("step-passed", &[("step", "key"), ("key", &fingerprint)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_alone_is_not_a_login() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    let mut keygen = command(tool("ssh-keygen"));
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(client.path("key"));
    assert!(ended(&mut keygen.spawn().unwrap()).await.success());
    let public = std::fs::read_to_string(client.path("key.pub")).unwrap();
    let (fingerprint, line) = sallyport::keys::public_key(&public).unwrap();
    bastion
        .store()
        .add_key(&alice.name, &fingerprint, &line, &Context::default(), bastion.now())
        .await
        .unwrap();
    let identity = format!("IdentityFile={}", client.path("key").display());
    let ran = client
        .ssh(&["-o", &identity, "-o", "PreferredAuthentications=publickey", "bastion"])
        .await
        .failed();
    assert!(ran.err.contains("Permission denied"), "{ran:?}");
    // Somebody has her key: that is written down, and is no guess that would lock her out.
    let passed = bastion.event("step-passed", &[("user", "alice"), ("key", &fingerprint)]).await;
    let refused = bastion.event("sign-in-refused", &[("reason", "given-up")]).await;
    assert_eq!((&passed["session"], &refused["user"]), (&refused["session"], &passed["user"]));
    client.answers(&["000000"]);
    client.ssh(&["-o", &identity, "-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    bastion.event("sign-in-refused", &[("user", "alice"), ("reason", "wrong-code")]).await;
    assert!(bastion.kinds("signed-in").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_signs_in() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let mut keygen = command(tool("ssh-keygen"));
    let listed = run(keygen.arg("-l").arg("-f").arg(bastion.path("data/host_key"))).await.ok().out;
    let fingerprint = listed.split(' ').nth(1).unwrap().to_owned();
    let mut plink = command(tool("plink"));
    plink
        .args(["-ssh", "-no-antispoof", "-hostkey", &fingerprint, "-P", &bastion.port.to_string()])
        .args(["alice@127.0.0.1", "targets"]);
    let mut screen = Screen::run(&plink);
    screen.expect("Password: ").await;
    screen.type_line(PASSWORD).await;
    screen.expect("6-digit code: ").await;
    screen.type_line(&bastion.code(&alice)).await;
    screen.expect("TARGET").await;
    assert_eq!(screen.end().await.0, Some(0));
}

async fn fifty_logins_with_one_code_let_one_in(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = bastion.person("alice").await;
    let code = bastion.code(&alice);
    let clients: Vec<Client> = (0..50).map(|_| Client::new(&bastion, "alice")).collect();
    let options = [
        "-o",
        "NumberOfPasswordPrompts=1",
        "-o",
        "PreferredAuthentications=keyboard-interactive",
        "bastion",
    ];
    let logins = clients.iter().map(|client| client.answers(&[PASSWORD, &code]).ssh(&options));
    let runs = futures_util::future::join_all(logins).await;
    let let_in = runs.iter().filter(|run| run.code == Some(0)).count();
    assert_eq!(let_in, 1, "{:?}", runs.iter().map(|r| (r.code, &r.err)).collect::<Vec<_>>());
    assert_eq!(bastion.kinds("signed-in").await.len(), 1);
    let refused = bastion.kinds("sign-in-refused").await;
    assert_eq!(refused.len(), 49);
    assert!(refused.iter().all(|event| event["reason"] == "replayed-code"));
    // Nobody was locked out by it.
    let again = Client::new(&bastion, "alice");
    again.answers(&[PASSWORD, &bastion.code(&alice)]);
    again.ssh(&["bastion"]).await.ok();
}

async fn failures_lock_one_source_and_say_so_only_in_the_audit_log(engine: Engine) {
    let bastion =
        TestBastion::start_with(engine, "[login]\nlock_after = 4\nlock_for = \"10m\"\n").await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    let once = ["-o", "NumberOfPasswordPrompts=1", "bastion"];
    for _ in 0..4 {
        client.answers(&[PASSWORD, "000000"]);
        client.ssh(&once).await.failed();
    }
    bastion.event("source-locked", &[("user", "alice")]).await;
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&once).await.failed();
    bastion.event("sign-in-refused", &[("reason", "locked")]).await;
    // From elsewhere she gets in.
    let elsewhere = Client::new(&bastion, "alice").host("bastion", "BindAddress 127.0.0.2");
    elsewhere.answers(&[PASSWORD, &bastion.code(&alice)]);
    elsewhere.ssh(&once).await.ok();
    // And from here, once the lock has run out.
    bastion.clock.advance(Duration::from_secs(601));
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&once).await.ok();
    // Or an administrator lifts it.
    for _ in 0..4 {
        client.answers(&["wrong password", "000000"]);
        client.ssh(&once).await.failed();
    }
    assert_eq!(
        bastion.store().unlock(&alice.name, &Context::default(), bastion.now()).await.unwrap(),
        1
    );
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&once).await.ok();
}

/// A wrong password in front of a code is no guess of the code, and who signs in first is not let in by
/// it alone.
async fn too_many_wrong_codes_leave_the_sources_that_signed_in_before(engine: Engine) {
    let bastion = TestBastion::start_with(engine, "[login]\ncode_failures_max = 3\n").await;
    let alice = bastion.person("alice").await;
    let once = ["-o", "NumberOfPasswordPrompts=1", "bastion"];
    let from = |n: u8| {
        let bind = format!("BindAddress 127.0.0.{n}");
        Client::new(&bastion, "alice").host("bastion", &bind)
    };
    let home = from(1);
    home.answers(&[PASSWORD, &bastion.code(&alice)]).ssh(&once).await.ok();
    for n in 2..5 {
        from(n).answers(&["no password of hers", "000000"]).ssh(&once).await.failed();
    }
    assert!(bastion.kinds("code-limit-reached").await.is_empty());
    for n in 2..5 {
        from(n).answers(&[PASSWORD, "000000"]).ssh(&once).await.failed();
    }
    let reached = bastion.event("code-limit-reached", &[("user", "alice")]).await;
    assert_eq!(reached["failures"], 3);
    let code = bastion.code(&alice);
    let refused = from(5).answers(&[PASSWORD, &code]).ssh(&once).await.failed();
    let wrong = from(6).answers(&[PASSWORD, "000000"]).ssh(&once).await.failed();
    assert_eq!(refused.err, wrong.err);
    bastion.event("sign-in-refused", &[("user", "alice"), ("reason", "code-limit")]).await;
    // She is not locked out where she was before, nor with a recovery code elsewhere.
    from(7).answers(&[PASSWORD, &alice.recovery_code(0)]).ssh(&once).await.ok();
    home.answers(&[PASSWORD, &code]).ssh(&once).await.ok();
    from(8).answers(&[PASSWORD, &bastion.code(&alice)]).ssh(&once).await.ok();
}

async fn a_recovery_code_works_once(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    bastion.clock.advance(std::time::Duration::from_secs(60));
    let signing_in = bastion.now();
    client.answers(&[PASSWORD, &alice.recovery_code(3)]);
    let ran = client.ssh(&["bastion"]).await.ok();
    assert!(ran.err.contains("9 recovery codes are left"), "{ran:?}");
    client.answers(&[PASSWORD, &alice.recovery_code(3)]);
    client.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    bastion.event("recovery-code-used", &[("user", "alice")]).await;
    let used = bastion.store().user(&alice.name).await.unwrap().user.otp_last_used_at;
    assert!(used.unwrap() < signing_in.0, "a recovery code is no use of the authenticator");
    bastion.event("sign-in-refused", &[("reason", "wrong-recovery-code")]).await;
    client.answers(&[PASSWORD, &alice.recovery_code(4).to_uppercase().replace('-', " ")]);
    client.ssh(&["bastion"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_for_its_step_and_the_two_beside_it() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    let shifted = |seconds: i64| code_at(&alice, UnixTime(bastion.now().0 + seconds * 1000));
    for (shift, let_in) in [(-60, false), (60, false), (-30, true), (0, true), (30, true)] {
        client.answers(&[PASSWORD, &shifted(shift)]);
        let ran = client.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await;
        assert_eq!(ran.code == Some(0), let_in, "{shift}: {ran:?}");
    }
    // Every code up to the newest is used up now.
    client.answers(&[PASSWORD, &shifted(0)]);
    client.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_told_to_administrators_at_once_and_to_the_user_later() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &code_at(&alice, UnixTime(bastion.now().0 + 240_000))]);
    let ran = client.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    assert!(!ran.err.contains("clock"), "{ran:?}");
    let event = bastion.event("clock-drift", &[("user", "alice")]).await;
    assert_eq!(event["seconds"], 240);
    let detail = bastion.store().user(&alice.name).await.unwrap();
    assert_eq!(detail.user.otp_drift_seconds, Some(240));

    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let ran = client.ssh(&["bastion"]).await.ok();
    assert!(ran.err.contains("clock is about 4 minutes fast"), "{ran:?}");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let ran = client.ssh(&["bastion"]).await.ok();
    assert!(!ran.err.contains("clock"), "{ran:?}");
}

/// What a client sees of a login, packet by packet, without its own name and times.
async fn transcript(
    bastion: &TestBastion,
    user: &str,
    password: &str,
    code: &str,
    methods: &str,
) -> String {
    let client = Client::new(bastion, user);
    client.answers(&[password, code]);
    let preferred = format!("PreferredAuthentications={methods}");
    let ran = client
        .ssh(&["-vvv", "-o", &preferred, "-o", "NumberOfPasswordPrompts=1", "bastion"])
        .await
        .failed();
    let seen = |line: &&str| {
        [
            "receive packet",
            "Authentications that can continue",
            "Permission denied",
            "info_req",
            "partial",
            "banner",
        ]
        .iter()
        .any(|mark| line.contains(mark))
    };
    let lines: Vec<&str> = ran.err.lines().filter(seen).collect();
    let text = format!("{}\n{:?}", lines.join("\n"), client.asked());
    text.replace(user, "USER")
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_wrong_locked_disabled_and_unbound_look_alike() {
    let limits = "[login]\nlock_after = 2\ncode_failures_max = 2\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, limits).await;
    let now = bastion.now();
    let store = bastion.store();
    let context = Context::default();
    for name in ["wrongpw", "wrongcode", "locked", "disabled"] {
        bastion.person(name).await;
    }
    let limited = bastion.person("limited").await;
    for bind in ["BindAddress 127.0.0.2", "BindAddress 127.0.0.3"] {
        let elsewhere = Client::new(&bastion, "limited").host("bastion", bind);
        elsewhere.answers(&[PASSWORD, "000000"]);
        elsewhere.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    }
    let unbound = bastion.person("unbound").await;
    store
        .reset_otp(&unbound.name, UnixTime(now.0 - 1), BindingPassword::Kept, &context, now)
        .await
        .unwrap();
    store.set_disabled(&"disabled".parse().unwrap(), true, &context, now).await.unwrap();
    let locked = Client::new(&bastion, "locked");
    for _ in 0..2 {
        locked.answers(&["wrong", "000000"]);
        locked.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    }
    for methods in ["password,keyboard-interactive", "keyboard-interactive"] {
        let reference = transcript(&bastion, "nobody", "whatever", "123456", methods).await;
        assert!(reference.contains("6-digit code"), "{reference}");
        for (user, password) in [
            ("wrongpw", "not the password"),
            ("wrongcode", PASSWORD),
            ("locked", PASSWORD),
            ("disabled", PASSWORD),
            ("unbound", PASSWORD),
        ] {
            assert_eq!(
                transcript(&bastion, user, password, "123456", methods).await,
                reference,
                "{user}"
            );
        }
        let right = bastion.code(&limited);
        let seen = transcript(&bastion, "limited", PASSWORD, &right, methods).await;
        assert_eq!(seen, reference);
    }
    for (user, reason) in [
        ("nobody", "unknown-user"),
        ("wrongpw", "wrong-password"),
        ("wrongcode", "wrong-code"),
        ("locked", "locked"),
        ("disabled", "disabled"),
        ("unbound", "binding-closed"),
        ("limited", "code-limit"),
    ] {
        bastion.event("sign-in-refused", &[("user", user), ("reason", reason)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_typist_is_waited_for() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[server]\nkeepalive = \"1s\"\n").await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    // The answer takes longer than several keepalives; the client must not be sent anything.
    let ask = std::fs::read_to_string(client.path("ask")).unwrap();
    std::fs::write(client.path("ask"), ask.replace("head -n 1", "sleep 4; head -n 1")).unwrap();
    client.ssh(&["-o", "PreferredAuthentications=keyboard-interactive", "bastion"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_leave_no_raw_byte_in_the_audit_log() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let client = Client::new(&bastion, "x");
    for name in ["a\x1b[2Jb", "a\u{202e}b", "a b", "alice'; DROP TABLE users; --"] {
        client.answers(&["x", "y"]);
        client
            .ssh(&[
                "-l",
                name,
                "-o",
                "NumberOfPasswordPrompts=1",
                "127.0.0.1",
                "-p",
                &bastion.port.to_string(),
            ])
            .await
            .failed();
    }
    let rows = bastion.store().events(&Default::default(), 1000).await.unwrap();
    assert!(rows.iter().any(|row| row.body.contains("unknown-user")));
    for row in rows {
        assert!(!row.body.chars().any(|c| c.is_control() || c == '\u{202e}'), "{}", row.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_left_open_by_a_crash_is_closed_as_interrupted() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut ssh = client.command("ssh", &["-N", "bastion"]).spawn().unwrap();
    bastion.event("signed-in", &[("user", "alice")]).await;
    // What the next start does with what the last one left open.
    assert_eq!(bastion.store().close_interrupted(bastion.now()).await.unwrap(), 1);
    bastion.event("session-ended", &[("user", "alice"), ("reason", "interrupted")]).await;
    ssh.kill().await.unwrap();
}
