//! Users whose codes FreeRADIUS checks look after their own password and keys.

use std::process::Stdio;

use sallyport::audit::Context;
use sallyport::domain::{RadiusMode, SecondFactor, Verifier};
use tokio::process::Child;

use crate::radius_login::{by_group, member, radius, sign_in};
use crate::support::bastion::{Engine, PASSWORD, TestBastion, code_at};
use crate::support::freeradius::{FRED, FreeRadius, GINA, fresh_code, next_code};
use crate::support::hop::{Ran, fed};
use crate::support::keypair::KeyPair;
use crate::support::on_both_engines;
use crate::support::radius_peer::{ACCEPT, Asked, CHALLENGE, Peer, REJECT, SECRET};
use crate::support::screen::Screen;
use crate::support::ssh::{Client, run};
use crate::support::{command, eventually, tool};

const NEW: &str = "an unusual teapot 7";

on_both_engines!(a_code_from_the_server_lets_its_user_change_things_once);

/// Somebody signed in, over whose connection commands are typed.
struct Own {
    client: Client,
    _master: Child,
}

impl Own {
    async fn open(bastion: &TestBastion, name: &str, answers: &[&str]) -> Self {
        let client = Client::new(bastion, name);
        let control = client.path("control");
        let client = client.host("bastion", &format!("ControlPath {}", control.display()));
        client.answers(answers);
        let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
        let master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the master is up", async || control.exists().then_some(())).await;
        Self { client, _master: master }
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

    /// A new public key of theirs.
    async fn key(&self) -> String {
        let path = self.client.path("new_key");
        let mut keygen = command(tool("ssh-keygen"));
        run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "x", "-f"]).arg(&path)).await.ok();
        let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        public.trim().to_owned()
    }
}

async fn a_code_from_the_server_lets_its_user_change_things_once(engine: Engine) {
    let server = FreeRadius::start().await;
    let config = radius("code", "", &[server.configured("main", "CODE").replace("15s", "5s")]);
    let bastion = TestBastion::start_with(engine, &config).await;
    for user in [GINA, FRED] {
        member(&bastion, user[0], None).await;
    }
    let (of_gina, of_fred) = (fresh_code(GINA[2]).await, fresh_code(FRED[2]).await);
    let gina = Own::open(&bastion, "gina", &[PASSWORD, &of_gina]).await;
    let fred = Own::open(&bastion, "fred", &[PASSWORD, &of_fred]).await;
    let key = gina.key().await;

    // What belongs to the phone is nobody's matter here.
    for command in ["otp codes", "otp rebind", "otp unbind"] {
        let ran = gina.pipes(command, &["123456"]).await.failed();
        assert!(ran.err.contains("looked after where that is"), "{}", ran.err);
        let fields = [("user", "gina"), ("command", command), ("reason", "not-offered")];
        bastion.event("command-refused", &fields).await;
    }
    // A wrong code, and the one of the login, which the server would take again.
    for (code, said, reason) in [
        ("000000", "The RADIUS server rejected that.", "radius-rejected"),
        (&*of_gina, "That code was used already", "replayed-code"),
    ] {
        let ran = gina.pipes("keys add", &[&key, &format!("code {code}")]).await.failed();
        if reason == "replayed-code" && ran.err.contains("rejected that") {
            continue; // Its time is over for the server, too.
        }
        assert!(ran.err.contains(said), "{}", ran.err);
        let fields = [("user", "gina"), ("command", "keys add"), ("reason", reason)];
        bastion.event("command-refused", &fields).await;
    }
    assert!(bastion.kinds("key-added").await.is_empty());

    let code = next_code(GINA[2], &of_gina).await;
    let of_fred = fresh_code(FRED[2]).await;
    let ran = gina.pipes("keys add", &[&key, &format!("code {code}")]).await.ok();
    assert!(ran.err.contains("You may sign in with SHA256:"), "{}", ran.err);
    bastion.event("key-added", &[("user", "gina")]).await;
    let ran = fred.pipes("passwd", &[&of_fred, PASSWORD, NEW, NEW]).await.ok();
    assert!(ran.err.contains("Your password is changed."), "{}", ran.err);
    // The code is used up for whatever is next, a login included.
    let ran = fred.pipes("passwd", &[&of_fred, NEW, PASSWORD, PASSWORD]).await.failed();
    assert!(ran.err.contains("That code was used already"), "{}", ran.err);
    sign_in(&bastion, "fred", &[NEW, &of_fred]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "fred"), ("reason", "replayed-code")]).await;

    let listed = gina.pipes("keys", &[]).await.ok().text();
    let fingerprint = listed.split_whitespace().find(|word| word.starts_with("SHA256:")).unwrap();
    let remove = format!("keys remove {fingerprint}");
    gina.pipes(&remove, &["000000"]).await.failed();
    assert!(bastion.kinds("key-removed").await.is_empty());
    gina.pipes(&remove, &[&next_code(GINA[2], &code).await]).await.ok();
    bastion.event("key-removed", &[("user", "gina")]).await;

    server.freeze();
    let ran = gina.pipes("keys add", &[&key, "code 123456"]).await.failed();
    assert!(ran.err.contains("the RADIUS servers, which check your codes, do not"), "{}", ran.err);
    server.thaw();
    let dead = [("user", "gina"), ("command", "keys add"), ("reason", "radius-unavailable")];
    bastion.event("command-refused", &dead).await;
    let why = bastion.event("radius-unanswered", &[("user", "gina")]).await;
    assert!(why["error"].as_str().unwrap().contains("no answer in 5.0 s"), "{why}");
    assert_eq!(bastion.kinds("key-added").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_asks_as_in_a_login_before_a_key_is_added() {
    let server = FreeRadius::start().await;
    let config = radius("challenge", "", &[server.configured("main", "ASKS")]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    let used = fresh_code(GINA[2]).await;
    let gina = Own::open(&bastion, "gina", &[PASSWORD, "1", &used]).await;
    let key = gina.key().await;
    let code = next_code(GINA[2], &used).await;
    let mut screen = gina.terminal("keys add");
    screen.expect("Public key: ").await;
    screen.type_line(&key).await;
    screen.expect("2 call: ").await;
    screen.type_line("2").await;
    screen.expect("The code of way 2: ").await;
    screen.type_line(&code).await;
    screen.expect("You may sign in with SHA256:").await;
    assert_eq!(screen.ended().await, Some(0));
    let text = screen.text();
    assert!(!text.contains(&code) && text.contains("\\u{1b}[2J1 app"), "{text}");
    let answers = bastion.kinds("radius-answered").await;
    let verdicts: Vec<_> = answers.iter().map(|event| event["verdict"].clone()).collect();
    assert_eq!(verdicts[verdicts.len() - 3..], ["challenge", "challenge", "accept"]);

    // Once more with the same code, then with a wrong one.
    let mut screen = gina.terminal("passwd");
    for (code, said) in [(&*code, "That code was used already"), ("000000", "rejected that.")] {
        screen.expect("2 call: ").await;
        screen.type_line("1").await;
        screen.expect("The code of way 1: ").await;
        screen.type_line(code).await;
        screen.expect(said).await;
    }
    screen.expect("2 call: ").await;
    screen.press("\u{3}").await;
    screen.expect("given up").await;
    assert_eq!(screen.ended().await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_the_servers_is_asked_for_with_the_code_and_not_changed_here() {
    let server = FreeRadius::start().await;
    let old = server.configured("old", "OLD") + "require_message_authenticator = false\n";
    let config = radius("both", "", &[server.configured("main", "BASTION"), old]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", Some(RadiusMode::Both)).await;
    let used = fresh_code(GINA[2]).await;
    let gina = Own::open(&bastion, "gina", &[GINA[1], &used]).await;
    let ran = gina.pipes("passwd", &[]).await.failed();
    assert!(ran.err.contains("it is changed where that is"), "{}", ran.err);
    bastion.event("command-refused", &[("command", "passwd"), ("reason", "not-offered")]).await;
    let key = gina.key().await;
    let ran = gina.pipes("keys add", &[&key, "code 123456"]).await.failed();
    let how =
        format!("connect with a terminal: 'ssh -t -p {} gina@bastion keys add'", bastion.port);
    assert!(ran.err.contains(&how), "{}", ran.err);
    let refused = [("command", "keys add"), ("reason", "not-offered")];
    bastion.event("command-refused", &refused).await;
    // On a connection that is shared there is no line with a code to be told of.
    let ran = gina.pipes("keys add", &[&key]).await.failed();
    assert!(ran.err.contains("ssh -S none") && !ran.err.contains("end the input"), "{}", ran.err);

    // Right after a sign-in the key alone is enough, as for everybody.
    let code = next_code(GINA[2], &used).await;
    let (client, first) = (Client::new(&bastion, "gina"), KeyPair::new().await);
    client.answers(&[GINA[1], &code]);
    let mut add = client.command("ssh", &["bastion", "keys add"]);
    let ran = fed(&mut add, first.line().as_bytes()).await.ok();
    assert!(ran.err.contains(&first.fingerprint()), "{}", ran.err);

    let code = next_code(GINA[2], &code).await;
    let mut screen = gina.terminal("keys add");
    screen.expect("Public key: ").await;
    screen.type_line(&key).await;
    for (question, answer) in [("Password: ", GINA[1]), ("6-digit code: ", &*code)] {
        screen.expect(question).await;
        screen.type_line(answer).await;
    }
    screen.expect("You may sign in with SHA256:").await;
    assert_eq!(screen.ended().await, Some(0));
    let text = screen.text();
    assert!(!text.contains(GINA[1]) && !text.contains(&code), "{text}");
}

/// A bastion whose server is played by a test, with more in its configuration, and gina, who signed in by
/// her own authenticator before that server came to check her codes.
async fn with_peer(more: &str) -> (Peer, TestBastion, Own) {
    let peer = Peer::start().await;
    let (secret, port) =
        (tempfile::NamedTempFile::new().unwrap(), peer.socket.local_addr().unwrap());
    sallyport::keys::replace_secret(secret.path(), SECRET.as_bytes()).unwrap();
    let server = format!(
        "[[radius.server]]\nname = \"peer\"\naddress = \"{port}\"\nsecret_file = \"{}\"\ntimeout = \"20s\"\n",
        secret.path().display()
    );
    let config = format!("{more}\n{}", radius("code", "", &[server]));
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    let person = bastion.person("gina").await;
    let gina = Own::open(&bastion, "gina", &[PASSWORD, &code_at(&person, bastion.now())]).await;
    by_group(&bastion, &person, None).await;
    (peer, bastion, gina)
}

/// Plays the server: answers requests, one that is sent again but once, by these codes in turn.
async fn plays(peer: &Peer, codes: &[u8]) {
    let mut last: Option<Asked> = None;
    for code in codes {
        let asked = loop {
            let asked = peer.asked().await;
            if last.as_ref() != Some(&asked) {
                break asked;
            }
        };
        let (state, message) = (24, 18);
        let reply = asked.reply(*code).with(message, b"Say: ");
        let reply = if *code == CHALLENGE { reply.with(state, b"state") } else { reply };
        peer.send(&asked, &reply.bytes()).await;
        last = Some(asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_is_told_and_written_down() {
    let (peer, bastion, gina) = with_peer("[login]\nlock_after = 100\n").await;
    let (long, rounds) = ("1".repeat(200), [CHALLENGE; 9]);
    let many = [&rounds[..], &[REJECT; 2]].concat();
    let (code, challenge) = (RadiusMode::Code, RadiusMode::Challenge);
    // What is typed, what the server says to it, what its user hears, and why.
    for (mode, typed, verdicts, said, reason) in [
        (code, &[""][..], &[][..], "That code is wrong.", "wrong-code"),
        (code, &[&*long], &[], "The RADIUS server rejected that.", "radius-rejected"),
        (code, &["123456"], &[REJECT], "The RADIUS server rejected that.", "radius-rejected"),
        (challenge, &[], &[ACCEPT; 3], "asked for no code", "radius-one-factor"),
        (challenge, &["1"; 8], &many, "asked too many questions", "too-many-attempts"),
        (RadiusMode::Both, &[], &[], "connect with a terminal: 'ssh -t ", "not-offered"),
    ] {
        set_mode(&bastion, mode).await;
        let before = bastion.kinds("command-refused").await.len();
        let (ran, ()) =
            tokio::join!(gina.pipes("keys remove SHA256:x", typed), plays(&peer, verdicts));
        let ran = ran.failed();
        assert!(ran.err.contains(said), "{mode} {typed:?}: {}", ran.err);
        let refused = bastion.kinds("command-refused").await.split_off(before);
        let first = refused.first().unwrap_or_else(|| panic!("{mode} {typed:?}: {ran:?}"));
        assert_eq!(
            (&first["command"], &first["reason"]),
            (&"keys remove SHA256:x".into(), &reason.into())
        );
    }
    // What cannot be asked is told to administrators.
    let why = bastion.event("radius-unanswered", &[("user", "gina")]).await;
    assert!(why["error"].as_str().unwrap().contains("cannot be asked of a RADIUS server"), "{why}");
    assert!(bastion.kinds("key-removed").await.is_empty());
}

async fn set_mode(bastion: &TestBastion, mode: RadiusMode) {
    let (store, context, group) = (bastion.store(), Context::default(), "phones".parse().unwrap());
    let second = SecondFactor { factor: Verifier::Radius, mode: Some(mode) };
    store.set_group_factor(&group, Some(second), &context, bastion.now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_lock_and_hurried_ones_are_refused_before_the_server_hears_them() {
    let (peer, bastion, gina) = with_peer("[login]\nlock_after = 2\n").await;
    let remove = "keys remove SHA256:x";
    let (ran, ()) =
        tokio::join!(gina.pipes(remove, &["1", "2", "123456"]), plays(&peer, &[REJECT; 2]));
    let ran = ran.failed();
    assert!(ran.err.contains("too many wrong answers: try again after"), "{}", ran.err);
    bastion.event("source-locked", &[("user", "gina")]).await;
    bastion.event("command-refused", &[("command", remove), ("reason", "locked")]).await;

    let few =
        "[server]\npenalty_exempt = []\n[login]\nattempts_per_minute = 1\nattempts_burst = 2\n";
    let (peer, bastion, gina) = with_peer(few).await;
    let (ran, ()) = tokio::join!(gina.pipes(remove, &["1", "123456"]), plays(&peer, &[REJECT]));
    let ran = ran.failed();
    assert!(ran.err.contains("too many attempts from your address"), "{}", ran.err);
    bastion.event("command-refused", &[("command", remove), ("reason", "rate-limited")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_without_servers_lets_nobody_prove_anything_by_one() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let person = bastion.person("gina").await;
    let gina = Own::open(&bastion, "gina", &[PASSWORD, &code_at(&person, bastion.now())]).await;
    by_group(&bastion, &person, None).await;
    let ran = gina.pipes("passwd", &["123456"]).await.failed();
    assert!(ran.err.contains("do not answer, so nothing was changed"), "{}", ran.err);
    let refused = [("command", "passwd"), ("reason", "radius-unavailable")];
    bastion.event("command-refused", &refused).await;
    let why = bastion.event("radius-unanswered", &[("user", "gina")]).await;
    assert_eq!(why["error"], "no RADIUS server is configured");
}
