//! What each role can do by `ssh USER@bastion ...`, with the real client.

use std::process::Stdio;

use sallyport::audit::{Context, Event};
use sallyport::domain::{Mode, Role, UnixTime};
use sallyport::store::SessionFilter;
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::eventually;
use crate::support::ssh::{Client, Run};
use crate::support::sshd::Sshd;

/// Somebody who has signed in once, and types many commands over that.
struct Console {
    name: String,
    client: Client,
    _master: Child,
}

impl Console {
    async fn open(bastion: &TestBastion, name: &str, role: Role) -> Self {
        let person = bastion.person_as(name, role).await;
        let client = Client::new(bastion, name);
        let control = client.path("control");
        let client = client.host("bastion", &format!("ControlPath {}", control.display()));
        client.answers(&[PASSWORD, &bastion.code(&person)]);
        let master = client.command("ssh", &["-M", "-N", "bastion"]).spawn().unwrap();
        eventually("the master is up", async || control.exists().then_some(())).await;
        Self { name: name.to_owned(), client, _master: master }
    }

    async fn types(&self, words: &str) -> Run {
        self.client.ssh(&["bastion", words]).await
    }

    /// Types what is allowed: it works, and is written down.
    async fn may(&self, bastion: &TestBastion, words: &str) -> String {
        let ran = self.types(words).await.ok();
        bastion.event("command-run", &[("user", &self.name), ("command", words)]).await;
        assert!(!ran.out.is_empty() && ran.err.is_empty(), "{words}: {ran:?}");
        printable(&ran.out);
        ran.out
    }

    /// Types what is refused: nothing is shown but why, and it is written down.
    async fn may_not(&self, bastion: &TestBastion, words: &str, code: i32, said: &str) {
        let ran = self.types(words).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{words}: {ran:?}");
        assert!(ran.err.contains(said), "{words}: {ran:?}");
        printable(&ran.err);
        let reason = if code == 64 { "not-offered" } else { "role-too-low" };
        let refused = bastion.kinds("command-refused").await;
        let last = refused.last().unwrap();
        assert_eq!((&last["user"], &last["reason"]), (&self.name.as_str().into(), &reason.into()));
    }
}

#[track_caller]
fn printable(text: &str) {
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_an_end_is_refused() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let otto = Console::open(&bastion, "otto", Role::Auditor).await;
    for words in [
        "audit list --limit 4294967295",
        "session list --limit 2001",
        "session search text --limit 4294967295",
    ] {
        let ran = otto.types(words).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
        assert!(ran.err.contains("--limit can be 2000 at most"), "{ran:?}");
        bastion.event("command-refused", &[("command", words), ("reason", "not-offered")]).await;
    }
    otto.may(&bastion, "audit list --limit 2000").await;
}

/// What takes much work is done one after the other, and holds up nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_commands_wait_for_each_other_and_nobody_for_them() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let otto = Console::open(&bastion, "otto", Role::Auditor).await;
    let turn = sallyport::admin::turn().await;
    let heavy = ["audit verify", "audit export", "audit list", "session list"];
    let start = |words: &&str| otto.client.command("ssh", &["bastion", words]).spawn().unwrap();
    let mut children: Vec<Child> = heavy.iter().map(start).collect();
    for words in heavy {
        bastion.event("command-run", &[("user", "otto"), ("command", words)]).await;
    }
    otto.may(&bastion, "help").await;
    for child in &mut children {
        assert!(child.try_wait().unwrap().is_none());
    }
    drop(turn);
    for (child, words) in children.into_iter().zip(heavy) {
        let out = tokio::time::timeout(crate::support::PATIENCE, child.wait_with_output()).await;
        assert!(out.expect("it did not end").unwrap().status.success(), "{words}");
    }
}

async fn live_session(bastion: &TestBastion, user: &str) -> String {
    let filter = SessionFilter { live: true, user: Some(user.to_owned()), account: None };
    let rows = bastion.store().sessions(&filter, 9).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].id.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_is_its_own() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let ursula = Console::open(&bastion, "ursula", Role::User).await;
    let otto = Console::open(&bastion, "otto", Role::Auditor).await;
    let anna = Console::open(&bastion, "anna", Role::Admin).await;
    let victim = Console::open(&bastion, "victim", Role::User).await;
    bastion.grant("ursula", "db1", "10.0.0.5:2222").await;
    let id = live_session(&bastion, "victim").await;

    for who in [&ursula, &otto, &anna] {
        let help = who.may(&bastion, "help").await;
        assert!(help.contains("targets") && help.contains("session") && help.contains("otp"));
        let otp = who.may(&bastion, "otp").await;
        assert!(otp.contains(&who.name) && otp.contains("10 left"), "{otp}");
        let otp: serde_json::Value =
            serde_json::from_str(&who.may(&bastion, "otp --json").await).unwrap();
        assert_eq!(
            (&otp["name"], &otp["recovery_codes_left"]),
            (&who.name.as_str().into(), &10.into())
        );
        let targets: serde_json::Value =
            serde_json::from_str(&who.may(&bastion, "targets --json").await).unwrap();
        let granted: Vec<&str> =
            targets.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert_eq!(granted, if who.name == "ursula" { vec!["db1"] } else { vec![] });
    }
    let targets = ursula.may(&bastion, "targets").await;
    let jump = format!("ssh -J ursula@bastion:{} db1", bastion.port);
    assert!(targets.contains(&jump), "{targets}");
    // For programs: each of the lines by itself, and none that the bastion would refuse.
    bastion.target_in(Mode::Record, "rec1", "10.0.0.6").await;
    let never = UnixTime(1);
    bastion.add_grant("ursula", "rec1", |grant| grant.until = Some(never)).await;
    let targets: serde_json::Value =
        serde_json::from_str(&ursula.may(&bastion, "targets --json").await).unwrap();
    let (port, rec1) = (bastion.port, jump.replace("db1", "rec1"));
    let forward = format!("ssh -p {port} -L 2222:db1:2222 -N ursula@bastion");
    let expected = serde_json::json!([
        {
            "name": "db1", "address": "10.0.0.5:2222", "mode": "tunnel", "holds_now": true,
            "ssh": format!("{jump}   or   {forward}"), "jump": jump, "selector": null,
            "forward": forward,
        },
        {
            "name": "rec1", "address": "10.0.0.6:22", "mode": "record", "holds_now": false,
            "ssh": rec1, "jump": rec1, "selector": format!("ssh -p {port} ursula+rec1@bastion"),
            "forward": null,
        },
    ]);
    assert_eq!(targets, expected);

    // A user sees neither sessions nor events, not even their own: they are for auditors.
    let no = "your role, user, does not allow that command";
    let mine = live_session(&bastion, "ursula").await;
    for words in [
        "session list",
        "session list --json",
        "session list --user ursula",
        "audit list",
        "audit verify",
        "audit export",
    ] {
        ursula.may_not(&bastion, words, 1, no).await;
    }
    for id in [&id, &mine] {
        for verb in ["show", "kill"] {
            ursula.may_not(&bastion, &format!("session {verb} {id}"), 1, no).await;
        }
    }

    // An auditor reads all of it.
    for who in [&otto, &anna] {
        let list = who.may(&bastion, "session list").await;
        assert!(["ursula", "otto", "anna", "victim"].iter().all(|name| list.contains(name)));
        let list: serde_json::Value = serde_json::from_str(
            &who.may(&bastion, "session list --live --user victim --json").await,
        )
        .unwrap();
        assert_eq!((list.as_array().unwrap().len(), &list[0]["id"]), (1, &id.as_str().into()));
        let shown = who.may(&bastion, &format!("session show {}", &id[..8])).await;
        assert!(shown.contains("victim") && shown.contains("SSH-2.0-OpenSSH"), "{shown}");
        let shown: serde_json::Value =
            serde_json::from_str(&who.may(&bastion, &format!("session show {id} --json")).await)
                .unwrap();
        assert_eq!(shown["user"], "victim");
        let list = who.may(&bastion, "audit list --kind signed-in --user victim").await;
        assert_eq!(list.lines().count(), 2, "{list}"); // With the headings.
        let words = format!("audit list --session {} --since -1h --until +1h", &id[..6]);
        let list = who.may(&bastion, &words).await;
        assert!(list.contains("signed-in") && !list.contains("otto"), "{list}");
        let list: serde_json::Value =
            serde_json::from_str(&who.may(&bastion, "audit list --limit 3 --json").await).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 3);
        assert!(who.may(&bastion, "audit verify").await.contains("the audit log is whole"));
        let anchor: serde_json::Value =
            serde_json::from_str(&who.may(&bastion, "audit verify --json").await).unwrap();
        assert!(anchor["seq"].as_i64().unwrap() > 10);
        let export = who.may(&bastion, "audit export").await;
        let key = bastion.store().audit_key().public();
        let anchor = format!("{}:{}", anchor["seq"], anchor["hash"].as_str().unwrap());
        let anchors = vec![anchor.parse().unwrap()];
        sallyport::admin::verify_file(export.as_bytes(), Some(&key), anchors).unwrap();
        // A note that was kept elsewhere, and one that the log does not bear out.
        let verify =
            async |anchor: &str| who.types(&format!("audit verify --anchor {anchor}")).await;
        assert!(verify(&anchor).await.ok().out.contains("the audit log is whole"));
        let (seq, _) = anchor.split_once(':').unwrap();
        let ran = verify(&format!("{seq}:{}", "0".repeat(64))).await.failed();
        assert!(ran.err.contains(&format!("event {seq} ")), "{ran:?}");
        assert!(verify("nonsense").await.failed().err.contains("an anchor is SEQ:HASH"));
    }
    // And changes nothing.
    let no = "your role, auditor, does not allow that command";
    otto.may_not(&bastion, &format!("session kill {id}"), 1, no).await;
    assert!(bastion.kinds("kill-requested").await.is_empty());
    assert_eq!(live_session(&bastion, "victim").await, id);

    // An administrator ends sessions; what cannot be is told.
    let nobodys = sallyport::domain::Id::random().unwrap();
    let ran = anna.types(&format!("session kill {nobodys}")).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains(&format!("there is no session {nobodys}")), "{ran:?}");
    let said = anna.may(&bastion, &format!("session kill {id}")).await;
    assert_eq!(said, format!("session {id} of victim ends\n"));
    let event = bastion.event("kill-requested", &[("target_session", &id)]).await;
    assert_eq!(event["actor"], serde_json::json!({ "user": "anna" }));
    bastion.event("session-ended", &[("user", "victim"), ("reason", "killed")]).await;
    let again = anna.types(&format!("session kill {id}")).await;
    assert_eq!(again.code, Some(1));
    assert_eq!(again.err, format!("sallyport: session {id} has ended already\n"));
    drop(victim);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_refused_and_written_down() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let long = format!("session show {}", "x".repeat(50_000));
    for (name, role) in [("ursula", Role::User), ("anna", Role::Admin)] {
        let who = Console::open(&bastion, name, role).await;
        for (words, said) in [
            ("nonsense", "unrecognized subcommand 'nonsense'"),
            ("user add mallory", "unrecognized subcommand 'user'"),
            ("grant add --user ursula --target db1", "unrecognized subcommand 'grant'"),
            ("otp reset ursula", "unrecognized subcommand 'reset'"),
            ("session", "Usage"),
            ("session kill", "required"),
            ("session kill %", "is not an id"),
            ("session show ../../etc/passwd", "is not an id"),
            ("session list; cat /etc/passwd", "unrecognized subcommand 'list;'"),
            ("session list $(reboot)", "unexpected argument"),
            ("audit export --output /tmp/x", "unexpected argument '--output'"),
            ("audit verify /etc/passwd", "unexpected argument"),
            ("audit list --limit -1", "unexpected argument '-1'"),
            ("targets 'open", "a quote is not closed"),
            ("targets --config /etc/shadow", "unexpected argument '--config'"),
            ("\x1b[2J\x1b]0;owned\x07", "unrecognized subcommand"),
            ("session show \u{202e}\u{9b}31m", "is not an id"),
            (&long, "is not an id"),
        ] {
            who.may_not(&bastion, words, 64, said).await;
            if said != "Usage" {
                let err = who.types(words).await.err;
                assert!(err.starts_with("sallyport: ") && err.lines().count() == 1, "{err}");
            }
        }
    }
    // What was typed is in the log, printable and not longer than it is worth.
    let refused = bastion.kinds("command-refused").await;
    assert_eq!(refused.len(), 2 * (18 + 17));
    for event in refused {
        let command = event["command"].as_str().unwrap();
        printable(command);
        assert!(!command.contains('\u{202e}') && command.len() <= 1000, "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_hop_ends_and_its_user_sees_why() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let sshd = Sshd::start().await;
    let anna = Console::open(&bastion, "anna", Role::Admin).await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut ssh = client.command("ssh", &["-J", "bastion", "db1", "echo up; exec cat"]);
    let mut child = ssh.stdin(Stdio::piped()).spawn().unwrap();
    let _open = child.stdin.take(); // `cat` ends with it: nothing outlives the session.
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).await.unwrap();
    let id = live_session(&bastion, "alice").await;
    let shown = anna.may(&bastion, &format!("session show {id}")).await;
    assert!(shown.contains("db1 for db1:22") && shown.contains("open"), "{shown}");
    anna.may(&bastion, &format!("session kill {id}")).await;
    let output = tokio::time::timeout(crate::support::PATIENCE, child.wait_with_output());
    let output = output.await.expect("it lives on").unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("an administrator ended this session"), "{said}");
    bastion.event("forward-closed", &[("user", "alice"), ("session", &id)]).await;
    bastion.event("session-ended", &[("session", &id), ("reason", "killed")]).await;
    // The administrator's own session goes on, and so does the user's account.
    anna.may(&bastion, "targets").await;
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&["-J", "bastion", "db1", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_terminal_acts_on_is_shown() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let anna = Console::open(&bastion, "anna", Role::Admin).await;
    let id = live_session(&bastion, "anna").await;
    let hostile = "\x1b[2J\x1b]0;owned\x07\r\n\u{9b}31m\u{202e}\u{0}";
    let context = Context {
        user: Some(format!("mallory{hostile}")),
        client: Some(format!("SSH-2.0-{hostile}")),
        ..Context::default()
    };
    let event = Event::RequestRefused {
        request: hostile.into(),
        reason: sallyport::audit::Refusal::NotOffered,
    };
    bastion.store().record(bastion.now(), &context, event).await.unwrap();
    let client = "'SSH-2.0-' || char(27) || '[2J' || char(7) || char(13) || char(10)";
    bastion.tamper(&format!("UPDATE sessions SET client = {client} WHERE id = '{id}'")).await;
    anna.types("\x1b[31m nonsense").await.failed();
    for words in
        ["session list", "session list --json", "audit list", "audit list --json", "audit export"]
    {
        let out = anna.may(&bastion, words).await;
        if words.starts_with("audit") {
            assert!(out.contains("mallory") && out.contains("nonsense"), "{out}");
            assert!(!out.contains('\u{202e}'), "{out}");
        }
        let on_terminal = anna.client.ssh(&["-tt", "bastion", words]).await.ok().out;
        // A terminal in raw mode needs the carriage to be returned; nothing else is added.
        assert_eq!(on_terminal.matches('\r').count(), on_terminal.matches("\r\n").count());
        printable(&on_terminal.replace("\r\n", "\n"));
    }
    let shown = anna.may(&bastion, &format!("session show {id}")).await;
    assert!(shown.contains("SSH-2.0-\\u{1b}[2J"), "{shown}");
    let shown = anna.may(&bastion, &format!("session show {id} --json")).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["client"], "SSH-2.0-\x1b[2J\x07\r\n"); // JSON tells it escaped.
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_nobody_reads_holds_nothing_else_up() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let sshd = Sshd::start().await;
    let anna = Console::open(&bastion, "anna", Role::Admin).await;
    bastion.grant("anna", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    // More than every window and buffer on the way can hold.
    for _ in 0..80 {
        let event = Event::ServerStarted { version: "x".repeat(100_000) };
        bastion.store().record(bastion.now(), &Context::default(), event).await.unwrap();
    }
    let mut export = anna.client.command("ssh", &["bastion", "audit export"]).spawn().unwrap();
    let mut begun = vec![0; 10];
    export.stdout.as_mut().unwrap().read_exact(&mut begun).await.unwrap();
    // Now it is not read; other channels of the same connection are served all the same.
    let out = anna.may(&bastion, "targets").await;
    assert!(out.contains("db1"), "{out}");
    let to = format!("db1:{}", sshd.port);
    let forward = anna.client.ssh(&["-W", &to, "bastion"]).await;
    assert!(forward.out.starts_with("SSH-2.0-OpenSSH"), "{forward:?}");
    anna.may(&bastion, "audit verify").await;
    assert!(export.try_wait().unwrap().is_none(), "the export ended unread");
    // When it is read again, nothing is missing.
    let rest = tokio::time::timeout(crate::support::PATIENCE, export.wait_with_output());
    let rest = rest.await.expect("it does not go on").unwrap();
    assert!(rest.status.success());
    begun.extend(rest.stdout);
    let key = bastion.store().audit_key().public();
    let (_, end) = sallyport::admin::verify_file(&begun[..], Some(&key), Vec::new()).unwrap();
    assert!(end.unwrap().seq > 80);
    // One that is never read ends with its connection.
    let mut export = anna.client.command("ssh", &["bastion", "audit export"]).spawn().unwrap();
    export.stdout.as_mut().unwrap().read_exact(&mut [0; 10]).await.unwrap();
    let id = live_session(&bastion, "anna").await;
    let berta = Console::open(&bastion, "berta", Role::Admin).await;
    berta.may(&bastion, &format!("session kill {id}")).await;
    bastion.event("session-ended", &[("session", &id), ("reason", "killed")]).await;
}
