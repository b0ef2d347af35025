//! Looking after one's own authenticator, password and keys by `ssh alice@bastion VERB`, with the
//! real client: on a terminal and without one.

use std::process::Stdio;
use std::time::Duration;

use sallyport::domain::Role;
use sallyport::store::BindingPassword;
use tokio::process::Child;

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion, code_at, code_of, secret_of};
use crate::support::hop::{Ran, fed};
use crate::support::screen::Screen;
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;
use crate::support::{command, eventually, on_both_engines, present_user, tool};

const NEW: &str = "an unusual teapot 7";

/// Somebody who has signed in twice: the connection that commands are typed over, and another.
struct Own {
    person: Person,
    client: Client,
    other: Client,
    _masters: [Child; 2],
}

impl Own {
    async fn open(bastion: &TestBastion, name: &str) -> Self {
        let person = bastion.person_as(name, Role::User).await;
        let (client, master) = Self::sign_in(bastion, &person).await;
        let (other, also) = Self::sign_in(bastion, &person).await;
        Self { person, client, other, _masters: [master, also] }
    }

    async fn sign_in(bastion: &TestBastion, person: &Person) -> (Client, Child) {
        let client = Client::new(bastion, person.name.as_str());
        let control = client.path("control");
        let client = client.host("bastion", &format!("ControlPath {}", control.display()));
        client.answers(&[PASSWORD, &bastion.code(person)]);
        let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
        let master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the master is up", async || control.exists().then_some(())).await;
        (client, master)
    }

    /// Types a command without a terminal, with these lines on standard input.
    async fn pipes(&self, words: &str, lines: &[&str]) -> Ran {
        let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fed(&mut self.client.command("ssh", &["bastion", words]), input.as_bytes()).await
    }

    /// Types a command in a terminal.
    fn terminal(&self, words: &str) -> Screen {
        Screen::run(&self.client.command("ssh", &["-tt", "bastion", words]))
    }

    /// Waits until the other session ended; this one did not.
    async fn only_the_other_ended(&self, bastion: &TestBastion) {
        let control = self.other.path("control");
        eventually("the other session ended", async || (!control.exists()).then_some(())).await;
        let name = self.person.name.as_str();
        bastion.event("session-ended", &[("user", name), ("reason", "revoked")]).await;
        assert!(self.pipes("otp", &[]).await.ok().text().contains(name));
    }
}

/// Signs in with a new connection of its own; whether that went well.
async fn can_sign_in(bastion: &TestBastion, name: &str, password: &str, code: &str) -> bool {
    let client = Client::new(bastion, name);
    client.answers(&[password, code]);
    let ran = client.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion", "targets"]).await;
    ran.code == Some(0)
}

on_both_engines!(
    new_recovery_codes_take_a_code_that_works_once,
    another_phone_takes_the_place_of_the_old_one,
    who_unbinds_binds_again_at_the_next_login,
);

/// The recovery codes in a text.
fn codes_in(text: &str) -> Vec<String> {
    let is_code = |word: &&str| word.len() == 29 && word.matches('-').count() == 5;
    text.split_whitespace().filter(is_code).map(str::to_owned).collect()
}

async fn new_recovery_codes_take_a_code_that_works_once(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = Own::open(&bastion, "alice").await;
    // The code of the login is used up.
    let used = code_at(&alice.person, bastion.now());
    let ran = alice.pipes("otp codes", &[&used, "123"]).await.failed();
    assert!(ran.err.contains("That code was used already"), "{}", ran.err);
    assert!(ran.err.contains("That code is wrong."), "{}", ran.err);
    assert!(ran.err.contains("the input ended before"), "{}", ran.err);
    assert_eq!(ran.text(), "");
    for reason in ["replayed-code", "wrong-code"] {
        let fields = [("user", "alice"), ("command", "otp codes"), ("reason", reason)];
        bastion.event("command-refused", &fields).await;
    }

    let code = bastion.code(&alice.person);
    let ran = alice.pipes("otp codes", &[&code]).await.ok();
    let codes = codes_in(&ran.text());
    // Nothing but the codes is on standard output.
    assert_eq!((codes.len(), ran.text().split_whitespace().count()), (10, 10), "{}", ran.text());
    assert!(ran.err.contains("the old ones are void"), "{}", ran.err);
    let event = bastion.event("recovery-codes-renewed", &[("user", "alice")]).await;
    assert_eq!(event["actor"], serde_json::json!({ "user": "alice" }));
    alice.pipes("otp codes", &[&code]).await.failed();

    let old = alice.person.recovery_code(0);
    assert!(!can_sign_in(&bastion, "alice", PASSWORD, &old).await);
    assert!(can_sign_in(&bastion, "alice", PASSWORD, &codes[3]).await);
    assert!(!can_sign_in(&bastion, "alice", PASSWORD, &codes[3]).await);
    // A recovery code is no way to more of them, and is not used up by trying.
    let ran = alice.pipes("otp codes", &[&codes[4]]).await.failed();
    assert!(ran.err.contains("'otp rebind' takes one"), "{}", ran.err);
    assert!(can_sign_in(&bastion, "alice", PASSWORD, &codes[4]).await);
    // No session ended by any of that.
    assert!(alice.other.path("control").exists());

    // In a terminal: three tries, then it is over.
    let mut screen = alice.terminal("otp codes");
    for _ in 0..3 {
        screen.expect("6-digit code: ").await;
        screen.type_line("000x000").await;
        screen.expect("That code is wrong.").await;
    }
    screen.expect("too many wrong answers: nothing was changed").await;
    assert_eq!(screen.ended().await, Some(1));
    assert!(!screen.text().contains("000x000"), "{}", screen.text());
    // Or given up.
    let mut screen = alice.terminal("otp codes");
    screen.expect("6-digit code: ").await;
    screen.raw().await;
    screen.press("12\u{3}").await;
    screen.expect("given up").await;
    assert_eq!(screen.ended().await, Some(1));
    let mut screen = alice.terminal("otp codes");
    screen.expect("6-digit code: ").await;
    let code = bastion.code(&alice.person);
    screen.type_line(&format!("9\u{7f}{code}")).await;
    screen.expect("They are not shown again.").await;
    assert_eq!(screen.ended().await, Some(0));
    assert_eq!(codes_in(&screen.text()).len(), 10, "{}", screen.text());
}

async fn another_phone_takes_the_place_of_the_old_one(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = Own::open(&bastion, "alice").await;
    let mut screen = alice.terminal("otp rebind");
    screen.expect("or a recovery code: ").await;
    screen.type_line(&alice.person.recovery_code(0)).await;
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    let first = screen.qr().unwrap_or_else(|| panic!("no QR code on:\n{}", screen.text()));
    screen.type_line("i").await;
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    assert_eq!(screen.qr().as_ref(), Some(&first), "{}", screen.text());
    screen.type_line("a").await;
    screen.expect("####").await;
    screen.expect("makes a new one): ").await;
    screen.type_line("r").await;
    screen.expect("makes a new one): ").await;
    screen.type_line("i").await;
    screen.expect("makes a new one): ").await;
    screen.type_line("i").await;
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    let uri = screen.qr().unwrap();
    assert_ne!(uri, first);
    screen.type_line(&code_of(&secret_of(&first), bastion.now())).await;
    screen.expect("That code is wrong").await;
    screen.expect("makes a new one): ").await;
    // The old one works until the new one has shown a code.
    assert!(can_sign_in(&bastion, "alice", PASSWORD, &bastion.code(&alice.person)).await);
    let code = code_of(&secret_of(&uri), bastion.now());
    screen.type_line(&code).await;
    screen.expect("the old authenticator is void").await;
    screen.expect("Your other sessions end; this one goes on.").await;
    assert_eq!(screen.ended().await, Some(0));
    let codes = codes_in(&screen.text());
    assert_eq!(codes.len(), 10, "{}", screen.text());
    bastion.event("recovery-code-used", &[("user", "alice")]).await;
    for kind in ["authenticator-unbound", "authenticator-bound"] {
        eventually(kind, async || {
            let events = bastion.kinds(kind).await;
            events.into_iter().find(|event| event["actor"]["user"] == "alice")
        })
        .await;
    }
    alice.only_the_other_ended(&bastion).await;

    bastion.clock.advance(Duration::from_secs(60));
    let now = bastion.now();
    assert!(!can_sign_in(&bastion, "alice", PASSWORD, &code_at(&alice.person, now)).await);
    assert!(!can_sign_in(&bastion, "alice", PASSWORD, &alice.person.recovery_code(1)).await);
    assert!(can_sign_in(&bastion, "alice", PASSWORD, &code_of(&secret_of(&uri), now)).await);
    assert!(can_sign_in(&bastion, "alice", PASSWORD, &codes[0]).await);
    // What happens to the account from elsewhere still ends this session.
    let until = now.plus(Duration::from_secs(3600));
    let context = sallyport::audit::Context::default();
    bastion
        .store()
        .reset_otp(&alice.person.name, until, BindingPassword::Kept, &context, now)
        .await
        .unwrap();
    let control = alice.client.path("control");
    eventually("this session ended too", async || (!control.exists()).then_some(())).await;
}

async fn who_unbinds_binds_again_at_the_next_login(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let alice = Own::open(&bastion, "alice").await;
    alice.pipes("otp unbind", &["000000"]).await.failed();
    assert!(bastion.kinds("authenticator-unbound").await.is_empty());
    let ran = alice.pipes("otp unbind", &[&bastion.code(&alice.person)]).await.ok();
    // Nothing but the one-time password is on standard output, and it is nowhere in the log.
    let one_time = ran.text().trim().to_owned();
    assert_eq!(one_time.len(), 12, "{one_time}");
    let events = bastion.store().events(&Default::default(), 1000).await.unwrap();
    assert!(events.iter().all(|event| !event.body.contains(&one_time)));
    bastion.event("password-set", &[("name", "alice")]).await;
    let until = bastion.now().plus(Duration::from_secs(24 * 3600));
    assert!(ran.err.contains(&format!("until {until}")), "{}", ran.err);
    let unbound = bastion.event("authenticator-unbound", &[("user", "alice")]).await;
    assert_eq!(unbound["actor"], serde_json::json!({ "user": "alice" }));
    bastion.event("binding-window-opened", &[("user", "alice")]).await;
    alice.only_the_other_ended(&bastion).await;
    // Without an authenticator there is nothing to prove oneself with.
    for words in ["otp codes", "otp rebind", "otp unbind", "passwd"] {
        let ran = alice.pipes(words, &["000000"]).await.failed();
        assert!(ran.err.contains("sign in again to bind one"), "{words}: {}", ran.err);
    }
    let recovery = alice.person.recovery_code(0);
    assert!(!can_sign_in(&bastion, "alice", &one_time, &recovery).await);
    // The password that somebody else may know binds nothing: it is asked for a code, and refused.
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, "123456"]);
    let only = "PreferredAuthentications=keyboard-interactive";
    client.ssh(&["-o", only, "-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    assert_eq!(client.asked().len(), 2, "{:?}", client.asked());
    let client = Client::new(&bastion, "alice");
    let mut ssh = command(tool("ssh"));
    let mut screen = Screen::run(ssh.arg("-F").arg(client.path("config")).arg("bastion"));
    screen.expect("Password: ").await;
    screen.type_line(&one_time).await;
    screen.expect("Choose a new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("Repeat the new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("makes a new one): ").await;
    // Whoever is cut off here goes on with the password that they chose.
    drop(screen);
    let mut ssh = command(tool("ssh"));
    let mut screen = Screen::run(ssh.arg("-F").arg(client.path("config")).arg("bastion"));
    screen.expect("Password: ").await;
    screen.type_line(NEW).await;
    screen.expect("makes a new one): ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_password_takes_a_code_and_the_old_one() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = Own::open(&bastion, "alice").await;
    let mut screen = alice.terminal("passwd");
    screen.expect("6-digit code: ").await;
    screen.type_line(&bastion.code(&alice.person)).await;
    screen.expect("The password you have now: ").await;
    screen.type_line("not that").await;
    screen.expect("That password is wrong.").await;
    screen.expect("The password you have now: ").await;
    screen.type_line(PASSWORD).await;
    for (new, said) in [
        ("short", "too short"),
        ("password1234", "too easy to guess"),
        (PASSWORD, "That is the password you have now"),
    ] {
        screen.expect("Choose a new password: ").await;
        screen.type_line(new).await;
        screen.expect(said).await;
    }
    screen.expect("Choose a new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("Repeat the new password: ").await;
    screen.type_line("something else").await;
    screen.expect("do not match").await;
    screen.expect("Choose a new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("Repeat the new password: ").await;
    screen.type_line(NEW).await;
    screen.expect("Your password is changed. Your other sessions end; this one goes on.").await;
    assert_eq!(screen.ended().await, Some(0));
    for secret in [PASSWORD, NEW, "not that"] {
        assert!(!screen.text().contains(secret), "{}", screen.text());
    }
    alice.only_the_other_ended(&bastion).await;
    let event = bastion.event("password-set", &[("user", "alice"), ("name", "alice")]).await;
    assert_eq!(event["actor"], serde_json::json!({ "user": "alice" }));
    bastion.event("command-refused", &[("command", "passwd"), ("reason", "wrong-password")]).await;
    assert!(!can_sign_in(&bastion, "alice", PASSWORD, &bastion.code(&alice.person)).await);
    assert!(can_sign_in(&bastion, "alice", NEW, &bastion.code(&alice.person)).await);
    // Without a terminal, as lines.
    let code = bastion.code(&alice.person);
    let ran = alice.pipes("passwd", &[&code, NEW, PASSWORD, PASSWORD]).await.ok();
    assert!(ran.err.contains("Your password is changed"), "{}", ran.err);
    assert!(can_sign_in(&bastion, "alice", PASSWORD, &bastion.code(&alice.person)).await);
    let log = serde_json::to_string(&bastion.events().await).unwrap();
    assert!(!log.contains(NEW) && !log.contains(PASSWORD) && !log.contains("not that"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_lock_as_those_of_a_login_do() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[login]\nlock_after = 4\n").await;
    let alice = Own::open(&bastion, "alice").await;
    let ran = alice.pipes("otp unbind", &["000000", "000001", "000002"]).await.failed();
    assert!(ran.err.contains("too many wrong answers: nothing was changed"), "{}", ran.err);
    let ran = alice.pipes("otp codes", &["000003", "000004"]).await.failed();
    assert!(ran.err.contains("too many wrong answers: try again after"), "{}", ran.err);
    bastion.event("source-locked", &[("user", "alice")]).await;
    bastion.event("command-refused", &[("command", "otp codes"), ("reason", "locked")]).await;
    // A right code is of no use then, here and at the door.
    let code = bastion.code(&alice.person);
    let ran = alice.pipes("otp codes", &[&code]).await.failed();
    assert!(ran.err.contains("try again after"), "{}", ran.err);
    assert!(!can_sign_in(&bastion, "alice", PASSWORD, &code).await);
    bastion.clock.advance(Duration::from_secs(31 * 60));
    alice.pipes("otp codes", &[&bastion.code(&alice.person)]).await.ok();
    // A phone whose clock is off is named.
    let early = sallyport::domain::UnixTime(bastion.now().0 + 240_000);
    let ran = alice.pipes("otp codes", &[&code_at(&alice.person, early)]).await.failed();
    assert!(ran.err.contains("Your phone's clock is about 4 minutes fast"), "{}", ran.err);
    bastion.event("clock-drift", &[("user", "alice")]).await;
    let shown = alice.pipes("otp", &[]).await.ok();
    assert!(shown.text().contains("240 s ahead"), "{}", shown.text());
}

/// Makes a key pair; gives the public key's line and fingerprint.
async fn key_pair(client: &Client, name: &str, kind: &[&str]) -> (String, String) {
    let path = client.path(name);
    let mut keygen = command(tool("ssh-keygen"));
    keygen.args(["-q", "-N", "", "-C", name]).args(kind).arg("-f").arg(&path);
    crate::support::ssh::run(&mut keygen).await.ok();
    let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    let mut list = command(tool("ssh-keygen"));
    let listed = crate::support::ssh::run(list.arg("-lf").arg(&path)).await.ok().out;
    (public.trim().to_owned(), listed.split(' ').nth(1).unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_added_and_removed() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = Own::open(&bastion, "alice").await;
    let (public, fingerprint) = key_pair(&alice.client, "mine", &["-t", "ed25519"]).await;
    let (weak, _) = key_pair(&alice.client, "weak", &["-t", "rsa", "-b", "1024"]).await;
    let code = |code: &str| format!("code {code}");

    // The connection is shared, and this is not the first thing on it.
    alice.pipes("otp", &[]).await.ok();
    let ran = alice.pipes("keys add", &[&public]).await.failed();
    assert!(ran.err.contains("end the input with a line such as \"code 492039\""), "{}", ran.err);
    let anew = format!("ssh -S none -p {} alice@", bastion.port);
    assert!(
        ran.err.contains(&anew) && ran.err.contains("keys add < id_ed25519.pub'"),
        "{}",
        ran.err
    );
    let fields = [("user", "alice"), ("command", "keys add"), ("reason", "wrong-code")];
    bastion.event("command-refused", &fields).await;
    let ran = alice.pipes("keys add", &["no key", &code("123456")]).await.failed();
    assert!(ran.err.contains("failed to read a public key"), "{}", ran.err);
    let fresh = bastion.code(&alice.person);
    let ran = alice.pipes("keys add", &[&weak, &code(&fresh)]).await.failed();
    assert!(ran.err.contains("too weak"), "{}", ran.err);
    let ran = alice.pipes("keys add", &[&public, &code("000000")]).await.failed();
    assert!(ran.err.contains("That code is wrong."), "{}", ran.err);
    assert!(bastion.kinds("key-added").await.is_empty());
    // None of that used the code up.
    let ran = alice.pipes("keys add", &[&public, &code(&fresh)]).await.ok();
    assert!(ran.err.contains(&fingerprint), "{}", ran.err);
    let fields = [("user", "alice"), ("name", "alice"), ("key", fingerprint.as_str())];
    let event = bastion.event("key-added", &fields).await;
    assert_eq!(event["actor"], serde_json::json!({ "user": "alice" }));
    let listed = alice.pipes("keys", &[]).await.ok().text();
    assert!(listed.contains(&fingerprint), "{listed}");
    let listed = alice.pipes("keys --json", &[]).await.ok().text();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["fingerprint"], fingerprint.as_str());

    let with_key = Client::new(&bastion, "alice");
    let identity = format!("IdentityFile {}", alice.client.path("mine").display());
    let with_key = with_key.host("bastion", &identity);
    with_key.answers(&[&bastion.code(&alice.person)]);
    with_key.ssh(&["bastion", "targets"]).await.ok();

    // Without a code nothing is removed.
    let remove = format!("keys remove {fingerprint}");
    let ran = alice.pipes(&remove, &[]).await.failed();
    assert!(ran.err.contains("the input ended before"), "{}", ran.err);
    alice.pipes(&remove, &["000000", "000001"]).await.failed();
    assert!(bastion.kinds("key-removed").await.is_empty());
    let code = bastion.code(&alice.person);
    let ran = alice.pipes("keys remove SHA256:nothing", &[&code]).await.failed();
    assert!(ran.err.contains("you have no key with that fingerprint"), "{}", ran.err);
    alice.pipes(&remove, &[&bastion.code(&alice.person)]).await.ok();
    let event = bastion.event("key-removed", &fields).await;
    assert_eq!(event["actor"], serde_json::json!({ "user": "alice" }));
    alice.only_the_other_ended(&bastion).await;

    // Pasted into a terminal.
    let (second, second_print) = key_pair(&alice.client, "second", &["-t", "ecdsa"]).await;
    let mut screen = alice.terminal("keys add");
    screen.expect("Public key: ").await;
    screen.type_line(&second).await;
    screen.expect("6-digit code: ").await;
    screen.type_line(&bastion.code(&alice.person)).await;
    screen.expect(&second_print[..40]).await;
    assert_eq!(screen.ended().await, Some(0));
    let detail = bastion.store().user(&alice.person.name).await.unwrap();
    assert_eq!(detail.keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_file_goes_by_the_code_that_was_just_signed_in_with() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    let (first, print) = key_pair(&client, "first", &["-t", "ed25519"]).await;
    let (second, _) = key_pair(&client, "second", &["-t", "ed25519"]).await;
    let add = async |code: &str, key: &str, wait: Duration| {
        client.answers(&[PASSWORD, code]);
        let mut ssh = client.command("ssh", &["bastion", "keys", "add"]);
        let mut child = ssh.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let ran = bastion.kinds("command-run").await.len() + 1;
        eventually("the command runs", async || {
            (bastion.kinds("command-run").await.len() == ran).then_some(())
        })
        .await;
        bastion.clock.advance(wait);
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, key.as_bytes()).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (added, said) = add(&bastion.code(&alice), &first, Duration::from_secs(59)).await;
    assert!(added && said.contains(&print), "{said}");
    bastion.event("key-added", &[("user", "alice"), ("key", &print)]).await;
    // Too late, and with a recovery code, which is no way to a key.
    let (added, said) = add(&bastion.code(&alice), &second, Duration::from_secs(60)).await;
    assert!(!added && said.contains("opened over a minute ago"), "{said}");
    let (added, said) = add(&alice.recovery_code(0), &second, Duration::ZERO).await;
    assert!(!added && said.contains("your sign-in took none that counts here"), "{said}");
    assert_eq!(bastion.kinds("key-added").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_has_help() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let alice = Own::open(&bastion, "alice").await;
    let help = alice.pipes("help", &[]).await.ok().text();
    for verb in [
        "otp",
        "otp unbind",
        "otp rebind",
        "otp codes",
        "otp remembered",
        "otp forget",
        "passwd",
        "keys",
        "keys add",
        "keys remove",
        "certificate",
        "certificate list",
        "certificate revoke",
        "sessions",
        "targets",
        "ssh-config",
        "known-hosts",
    ] {
        let first = verb.split(' ').next().unwrap();
        assert!(help.contains(first), "{verb}: {help}");
        let help = alice.pipes(&format!("{verb} --help"), &[]).await.ok().text();
        assert!(help.contains("Usage"), "{help}");
    }
    for (words, said) in [
        ("otp --help", "rebind"),
        ("otp codes --help", "echo 492039"),
        ("keys add --help", "echo code 492039"),
    ] {
        let help = alice.pipes(words, &[]).await.ok().text();
        assert!(help.contains(said), "{help}");
    }
    for incomplete in ["keys remove", "certificate revoke", "otp something"] {
        let ran = alice.pipes(incomplete, &[]).await;
        assert_eq!(ran.code, Some(64), "{incomplete}: {}", ran.err);
        bastion.event("command-refused", &[("command", incomplete)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_block_for_ssh_config_leads_through() {
    let config = "[server]\npublic_host = \"127.0.0.1\"\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, config).await;
    let sshd = Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    bastion.target("web1", "10.0.0.9").await;
    bastion.target("pg1", "10.0.0.9:5432").await;
    bastion.target("never", "10.0.0.9").await;
    let user = present_user();
    let account = user.parse().unwrap();
    let alice = Own::open(&bastion, "alice").await;
    bastion.add_grant("alice", "db1", |grant| grant.accounts = vec![account]).await;
    for target in ["web1", "pg1"] {
        bastion.add_grant("alice", target, |_| {}).await;
    }
    let block = alice.pipes("ssh-config", &[]).await.ok().text();
    let port = bastion.port;
    for line in [
        "Host sallyport",
        "    HostName 127.0.0.1",
        &format!("    Port {port}"),
        "    User alice",
        "    ControlMaster auto",
        "Host db1",
        "    ProxyJump sallyport",
        &format!("    User {user}"),
        "Host web1",
        "# pg1: ssh -N -L 5432:pg1:5432 sallyport",
    ] {
        assert!(block.lines().any(|found| found == line), "{line}: {block}");
    }
    assert!(!block.contains("never") && !block.contains("Host pg1"), "{block}");

    // It works as it is, but for where control sockets go.
    let control = alice.client.path("sallyport-%C").display().to_string();
    let known = alice.pipes("known-hosts", &[]).await.ok().text();
    let (block, file) =
        (block.replace("~/.ssh/sallyport-%C", &control), alice.client.path("block"));
    let known_hosts = alice.client.path("their_known_hosts");
    std::fs::write(&known_hosts, known).unwrap();
    let strict = format!(
        "\nHost *\n    UserKnownHostsFile {}\n    StrictHostKeyChecking yes\n    IdentityFile none\n    \
         IdentityAgent none\n    NumberOfPasswordPrompts 1\n",
        known_hosts.display()
    );
    std::fs::write(&file, format!("{block}{strict}")).unwrap();
    alice.client.answers(&[PASSWORD, &bastion.code(&alice.person)]);
    for _ in 0..2 {
        // The second time nothing is asked.
        let mut ssh = command(tool("ssh"));
        ssh.arg("-F").arg(&file).args(["db1", "echo through as $USER"]);
        ssh.env("SSH_ASKPASS", alice.client.path("ask")).env("SSH_ASKPASS_REQUIRE", "force");
        let ran = fed(&mut ssh, b"").await.ok();
        assert!(ran.text().contains("through as"), "{}", ran.err);
    }
    assert_eq!(alice.client.asked().len(), 2, "{:?}", alice.client.asked());
    let mut exit = command(tool("ssh"));
    exit.arg("-F").arg(&file).args(["-O", "exit", "sallyport"]);
    fed(&mut exit, b"").await.ok();
}
