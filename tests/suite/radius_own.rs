//! Users whose codes FreeRADIUS checks look after their own password and keys.

use std::process::Stdio;

use sallyport::domain::RadiusMode;
use tokio::process::Child;

use crate::radius_login::{member, radius, sign_in};
use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::freeradius::{FRED, FreeRadius, GINA, fresh_code, next_code};
use crate::support::hop::{Ran, fed};
use crate::support::on_both_engines;
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
    assert!(ran.err.contains("connect with a terminal: 'ssh -t "), "{}", ran.err);

    let code = next_code(GINA[2], &used).await;
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
