//! Message by message, what no client at hand can be made to send: signals, breaks, requests that
//! want a reply, in any order; through each entrance as without the bastion.

use sallyport::domain::{AccountAuth, Mode};

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::hop::{Hop, NOTICE};
use crate::support::raw::{Packet, RawClient, USERAUTH_SUCCESS};
use crate::support::sshd::Sshd;
use crate::support::ways::{ENTRANCES, Program, Way};
use crate::support::wire::{Said, Wire};
use crate::support::{free_port, listening};

/// The ways, for a client that does everything by itself.
struct Ways {
    hop: Hop,
    /// Leads to the target through alice's connection.
    jump: u16,
}

impl Ways {
    async fn start() -> Self {
        Self::to(Sshd::start().await).await
    }

    async fn to(sshd: Sshd) -> Self {
        let bastion = TestBastion::start(Engine::Sqlite).await;
        bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", sshd.port)).await;
        bastion.pin("db1", &sshd.host_key(), false).await;
        let key = std::fs::read(sshd.identity()).unwrap();
        bastion.account("db1", &sshd.user, AccountAuth::Key, Some(&key)).await;
        let hop = Hop::around(bastion, sshd, |_| {}).await;
        let jump = free_port();
        hop.ssh(&["-O", "forward", "-L", &format!("{jump}:db1:22"), "bastion"]).await.ok();
        listening(jump).await;
        Self { hop, jump }
    }

    /// A session on a connection of its own.
    async fn open(&self, way: Way) -> Wire {
        let (hop, user) = (&self.hop, &self.hop.sshd.user);
        let (client, reply) = match way {
            Way::Direct => {
                let mut client = RawClient::connect(hop.sshd.port).await;
                let reply = client.sign_in_by_key(user, &hop.sshd.identity()).await;
                (client, reply)
            }
            Way::Jump => {
                let mut client = RawClient::connect(self.jump).await;
                let reply = client.sign_in_by_none(user).await;
                (client, reply)
            }
            Way::Selector => {
                let mut client = RawClient::connect(hop.bastion.port).await;
                let (name, code) = (format!("alice+{user}@db1"), hop.bastion.code(&hop.alice));
                let reply = client.log_in(&name, PASSWORD, &code).await;
                (client, reply)
            }
        };
        assert_eq!(reply, USERAUTH_SUCCESS, "{way:?}");
        Wire::open(client).await
    }

    /// `script` on all three ways: it has to say the same on each.
    async fn compare(&self, what: &str, script: impl AsyncFn(Wire) -> Said) -> Said {
        let direct = script(self.open(Way::Direct).await).await;
        for way in ENTRANCES {
            let mut said = script(self.open(way).await).await;
            (said.out, said.err) = (said.out.replace(NOTICE, ""), said.err.replace(NOTICE, ""));
            assert_eq!(said, direct, "{what} by {way:?}");
        }
        direct
    }
}

fn terminal() -> Packet {
    Packet::default().text("vt100").number(80).number(24).number(0).number(0).text([0])
}

fn exit_status(said: &Said) -> u32 {
    let (kind, content) = &said.requests[0];
    assert_eq!((kind.as_str(), said.requests.len()), ("exit-status", 1), "{said:?}");
    u32::from_be_bytes(content[..].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_program() {
    let ways = Ways::to(Sshd::unprivileged().await).await;
    for signal in ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"] {
        let line = format!(
            "exec perl -e '$| = 1; $SIG{{{signal}}} = sub {{ print \"got {signal}\\n\"; exit 4 }}; \
             print \"ready\\n\"; sleep 600'"
        );
        let line = &line;
        let said = ways
            .compare(signal, async |mut wire| {
                assert!(wire.ask("exec", Packet::default().text(line)).await);
                wire.until("ready\n").await;
                wire.tell("signal", Packet::default().text(signal)).await;
                wire.end().await
            })
            .await;
        assert_eq!(said.out, format!("ready\ngot {signal}\n"));
        assert_eq!(exit_status(&said), 4);
    }
    // One that nobody knows changes nothing; one that the program does not catch ends it.
    let said = ways
        .compare("KILL", async |mut wire| {
            assert!(wire.ask("exec", Packet::default().text("echo ready; exec sleep 600")).await);
            wire.until("ready\n").await;
            wire.tell("signal", Packet::default().text("WINK@example.org")).await;
            wire.tell("signal", Packet::default().text("KILL")).await;
            wire.end().await
        })
        .await;
    // RFC 4254 section 6.10: name, whether a core was dumped, message, language.
    let content = Packet::default().text("KILL").bytes(&[0]).text("").text("").0;
    assert_eq!(said.requests, [("exit-signal".to_owned(), content)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_that_wants_a_reply_gets_one() {
    let ways = Ways::start().await;
    let said = ways
        .compare("requests", async |mut wire| {
            assert!(!wire.ask("nonsense@example.org", Packet::default().text("?")).await);
            assert!(wire.ask("env", Packet::default().text("LC_X").text("y")).await);
            assert!(wire.ask("pty-req", terminal()).await);
            assert!(!wire.ask_globally("keepalive@openssh.com").await);
            // An echo is what the terminal does.
            let line = Packet::default().text("stty -echo; echo $LC_X; read z; exit $z");
            assert!(wire.ask("exec", line).await);
            wire.until("y\r\n").await;
            // What comes too late, twice or never was.
            assert!(!wire.ask("exec", Packet::default().text("echo again")).await);
            assert!(!wire.ask("shell", Packet::default()).await);
            assert!(!wire.ask("subsystem", Packet::default().text("sftp")).await);
            assert!(!wire.ask("pty-req", terminal()).await);
            assert!(!wire.ask("env", Packet::default().text("LC_Y").text("z")).await);
            assert!(!wire.ask("auth-agent-req@openssh.com", Packet::default()).await);
            assert!(!wire.ask("nonsense@example.org", Packet::default()).await);
            assert!(!wire.ask_globally("nonsense@example.org").await);
            wire.write("5\n").await;
            wire.end().await
        })
        .await;
    assert_eq!(exit_status(&said), 5);
    assert_eq!(said.out, "y\r\n");

    // All at once, as PuTTY asks.
    let said = ways
        .compare("requests at once", async |mut wire| {
            let line = Packet::default().text("echo $LC_X; cat; echo err >&2");
            let requests = vec![
                ("simple@putty.projects.tartarus.org", Packet::default()),
                ("env", Packet::default().text("LC_X").text("y")),
                ("exec", line),
            ];
            assert_eq!(wire.ask_all(requests).await, [false, true, true]);
            wire.write("typed\n").await;
            wire.finish().await;
            wire.end().await
        })
        .await;
    assert_eq!((said.out.as_str(), said.err.as_str()), ("y\ntyped\n", "err\n"));
    assert!(said.eof && exit_status(&said) == 0);
}

/// How a session ends on a way: `input` is sent before the end of input, which is not told if there is
/// none. The notice, which comes before anything of the target's, is no part of it.
async fn order(ways: &Ways, way: Way, line: &str, input: Option<&str>) -> Vec<String> {
    let mut wire = ways.open(way).await;
    assert!(wire.ask("exec", Packet::default().text(line)).await);
    if let Some(input) = input {
        wire.write(input).await;
        wire.finish().await;
    }
    let (said, mut order) = wire.end_in_order().await;
    if said.err.starts_with(NOTICE) {
        assert_eq!(order.remove(0), "err");
    }
    order.dedup(); // Pieces of output that follow each other are one.
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_comes_in_the_order_of_the_targets() {
    let ways = Ways::start().await;
    for (line, input, expected) in [
        ("exit 3", None, "status eof close"),
        ("echo out; exit 3", None, "out status eof close"),
        ("echo out", Some("unread"), "out status eof close"),
        // The user has no more to say, and the target has.
        ("cat; sleep 0.3; echo out; exit 4", Some("in\n"), "out status eof close"),
        ("cat >/dev/null; sleep 0.3; echo err >&2", Some("in\n"), "err status eof close"),
        // The target says that it ended, and something of it goes on.
        ("(sleep 0.3; echo late) & echo early; exit 5", None, "out status out eof close"),
        ("(sleep 0.3; echo late >&2) & echo early", Some(""), "out status err eof close"),
        ("echo out; kill -TERM $$", None, "out signal eof close"),
        ("echo out; kill -TERM $$", Some("in\n"), "out signal eof close"),
    ] {
        for way in [Way::Direct, Way::Jump, Way::Selector] {
            // sshd tells status and end of output as it learns of them; where both come at once,
            // either may be first.
            let told = order(&ways, way, line, input).await.join(" ");
            let told = told.replace("eof exit-status", "exit-status eof");
            let told = told.replace("eof exit-signal", "exit-signal eof").replace("exit-", "");
            assert_eq!(told, expected, "{line} by {way:?}");
        }
    }
    // The target has no more to say, long before its end. russh answers a client's close at once, and
    // a client that is done, too, closes as soon as it hears that: the bastion keeps that back until it
    // has told the status, which would be lost.
    let line = "echo out; exec >&- 2>&-; sleep 0.3; exit 6";
    for input in [None, Some("in\n")] {
        for (way, expected) in [
            (Way::Direct, ["out", "eof", "exit-status", "close"]),
            (Way::Jump, ["out", "exit-status", "eof", "close"]),
            (Way::Selector, ["out", "exit-status", "eof", "close"]),
        ] {
            assert_eq!(order(&ways, way, line, input).await, expected, "{way:?} {input:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_is_answered_and_the_session_goes_on() {
    let ways = Ways::start().await;
    for way in [Way::Direct, Way::Jump, Way::Selector] {
        let mut wire = ways.open(way).await;
        assert!(wire.ask("pty-req", terminal()).await);
        let line = Packet::default().text("stty -echo; echo ready; read z; exit $z");
        assert!(wire.ask("exec", line).await);
        wire.until("ready").await;
        wire.tell("break", Packet::default().number(500)).await;
        // RFC 4335 section 3: whoever cannot do it says so. russh shows no such request to its
        // handlers, and answers it by itself.
        let done = wire.ask("break", Packet::default().number(500)).await;
        assert_eq!(done, way == Way::Direct, "{way:?}");
        wire.write("6\n").await;
        assert_eq!(exit_status(&wire.end().await), 6, "{way:?}");
    }
    // As people send it.
    for way in [Way::Direct, Way::Jump, Way::Selector] {
        let reach = ways.hop.reach(Program::OpenSsh, way);
        let line = "read first; read second; echo $first-${second}-$((40 + 2))";
        let mut screen = reach.screen(&["-t", "HOST", &format!("echo ready; {line}")]).await;
        screen.expect("ready").await;
        screen.type_line("still").await;
        screen.type_line("~B").await;
        screen.expect("still--42").await;
        assert_eq!(screen.end().await.0, Some(0), "{way:?}");
    }
}
