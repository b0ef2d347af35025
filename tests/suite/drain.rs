//! SIGTERM: what goes on, what is refused, who is told; a kill is told in the same way. SIGHUP: what is
//! in force for new connections (`reload` has the settings).

use std::process::Stdio;

use rustix::process::Signal;
use sallyport::audit::Context;
use sallyport::clock::Clock;
use sallyport::store::SessionFilter;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion, code_at};
use crate::support::hop::Hop;
use crate::support::raw::{self, RawClient};
use crate::support::server::Server;
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;
use crate::support::ways::{Program, Way};
use crate::support::{PATIENCE, ended, eventually, on_both_engines};

on_both_engines!(
    a_session_that_outlasts_the_drain_is_told_and_closed,
    sessions_go_on_without_new_channels_and_the_last_one_ends_the_server,
    the_binary_tells_closes_and_exits,
);

/// A server with `drain`, a target, and somebody who may go there.
async fn setting(engine: Engine, drain: &str) -> (Server, Sshd, Person, Client) {
    let server = Server::on(engine, &format!("[server]\ndrain = \"{drain}\"\n")).await;
    let sshd = Sshd::start().await;
    let alice = server.registry().person("alice").await;
    server.registry().grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::on_port(server.port, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &code_at(&alice, Clock::System.now())]);
    (server, sshd, alice, client)
}

async fn refuses_connections(port: u16) {
    eventually("connections are refused", async || {
        let error = TcpStream::connect(("127.0.0.1", port)).await.err()?;
        (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
    })
    .await;
}

async fn sessions_go_on_without_new_channels_and_the_last_one_ends_the_server(engine: Engine) {
    let (mut server, _sshd, alice, client) = setting(engine, "600s").await;
    // One connection that could open more channels, and one hop.
    let (control, log) = (client.path("control"), client.path("log"));
    let master = ["-M", "-N", "-v", "-E", log.to_str().unwrap(), "-S", control.to_str().unwrap()];
    let mut master = client.command("ssh", &[&master[..], &["bastion"]].concat()).spawn().unwrap();
    eventually("the master is up", async || control.exists().then_some(())).await;
    let through = ["-S", control.to_str().unwrap(), "-W", "db1:22", "bastion"];
    let mut kept = client.echo(&through);
    assert!(kept.greets().await);
    client.answers(&[PASSWORD, &alice.recovery_code(0)]);
    let mut hop = client.echo(&["-J", "bastion", "db1", "cat"]);
    hop.say("before").await;

    server.signal(Signal::TERM);
    refuses_connections(server.port).await;
    server.logged("message", "draining").await;
    hop.say("while it drains").await;
    client.ssh(&through).await.failed();
    eventually("the refusal is told", async || {
        let said = std::fs::read_to_string(&log).unwrap();
        let refused = "administratively prohibited: the bastion is stopping: connect again";
        said.contains(refused).then_some(())
    })
    .await;
    server.event("forward-refused", &[("reason", "draining"), ("user", "alice")]).await;
    hop.say("and goes on").await;

    client.ssh(&["-S", control.to_str().unwrap(), "-O", "exit", "bastion"]).await.ok();
    ended(&mut master).await;
    hop.say("alone").await;
    assert!(server.child.try_wait().unwrap().is_none());
    hop.hang_up();
    hop.end().await.ok();
    server.ends_well().await;
    let ended = server.kinds("session-ended").await;
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|event| event["reason"] == "client-closed"), "{ended:?}");
    server.nothing_is_open().await;
    server.event("server-stopped", &[]).await;
    server.run(&["audit", "verify"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_goes_on_is_told_and_ended_at_once() {
    let (mut server, _sshd, _alice, client) = setting(Engine::Sqlite, "600s").await;
    let (control, log) = (client.path("control"), client.path("log"));
    let mut master =
        client.command("ssh", &["-M", "-N", "-S", control.to_str().unwrap(), "bastion"]);
    let mut master = master.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    eventually("the master is up", async || control.exists().then_some(())).await;
    server.signal(Signal::TERM);
    ended(&mut master).await;
    let said = std::fs::read_to_string(log).unwrap();
    assert!(said.contains("the bastion is stopping"), "{said}");
    server.ends_well().await;
    server.event("session-ended", &[("user", "alice"), ("reason", "server-stopped")]).await;
}

/// A recorded shell in a terminal, and what it is told when `happens`.
async fn told(happens: impl AsyncFnOnce(&mut TestBastion)) -> String {
    let mut hop = Hop::start().await;
    let mut child = hop.command(&["-tt", "via", "echo up; exec cat"]);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    let _open = child.stdin.take();
    let mut up = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut up).await.unwrap();
    happens(&mut hop.bastion).await;
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let done = done.expect("it lives on").unwrap();
    assert!(!done.status.success());
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_session_is_told_at_the_drains_beginning_and_end() {
    let said = told(async |bastion| bastion.stop().await).await;
    let before = said.find("sallyport: the bastion is stopping: this ends within 1 s");
    let after = said.find(":11: the bastion is stopping");
    assert!(before.is_some() && before < after, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_session_that_is_killed_is_told() {
    let said = told(async |bastion| {
        let live = SessionFilter { live: true, user: None, account: None };
        let id = bastion.store().sessions(&live, 1).await.unwrap()[0].id.parse().unwrap();
        let (now, context) = (bastion.now(), Context::default());
        bastion.store().request_kill(&id, &context, now).await.unwrap();
    })
    .await;
    assert!(said.contains(":11: an administrator ended this session"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_by_selector_that_is_killed_is_told_each_time() {
    let hop = Hop::roomy("", |_| {}).await;
    for n in 0..10 {
        let terminal = if n % 2 == 0 { "-T" } else { "-tt" };
        let reach = hop.reach(Program::OpenSsh, Way::Selector);
        let mut child = reach.start(&[terminal, "HOST", "echo up; exec cat"]).await;
        let _open = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next_line().await.unwrap().unwrap().ends_with("up") {}
        let (store, context) = (hop.bastion.store(), Context::default());
        let live = store
            .sessions(&SessionFilter { live: true, user: None, account: None }, 5)
            .await
            .unwrap();
        let id = live[0].id.parse().unwrap(); // The newest.
        store.request_kill(&id, &context, hop.bastion.now()).await.unwrap();
        let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let done = done.expect("it lives on").unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        let why = "sallyport: an administrator ended this session\r\n";
        assert!(said.contains(why), "{n}: {said}");
        assert_eq!(done.status.code(), Some(255), "{n}: {said}");
        let fields = [("session", id.as_str()), ("reason", "killed")];
        hop.bastion.event("session-ended", &fields).await;
    }
}

async fn the_binary_tells_closes_and_exits(engine: Engine) {
    let (mut server, _sshd, _alice, client) = setting(engine, "1s").await;
    let mut hop = client.echo(&["-J", "bastion", "db1", "cat"]);
    hop.say("before").await;
    server.signal(Signal::TERM);
    let ran = hop.end().await.failed();
    assert!(ran.err.contains("the bastion is stopping"), "{ran:?}");
    server.ends_well().await;
    server.event("session-ended", &[("user", "alice"), ("reason", "server-stopped")]).await;
    server.nothing_is_open().await;
    server.run(&["audit", "verify"]).await.ok();
}

async fn a_session_that_outlasts_the_drain_is_told_and_closed(engine: Engine) {
    let mut bastion = TestBastion::start(engine).await;
    let sshd = Sshd::start().await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut hop = client.echo(&["-J", "bastion", "db1", "cat"]);
    hop.say("before").await;
    bastion.stop().await;
    let ran = hop.end().await.failed();
    assert!(ran.err.contains("the bastion is stopping"), "{ran:?}");
    bastion.event("session-ended", &[("user", "alice"), ("reason", "server-stopped")]).await;
    bastion.event("forward-closed", &[("user", "alice")]).await;
    let sessions = bastion.store().sessions(&Default::default(), 10).await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].end_reason.as_deref(), Some("server-stopped"));
    let forwards = bastion.store().forwards_of(&sessions[0].id).await.unwrap();
    assert_eq!(forwards.len(), 1);
    assert!(forwards[0].closed_at.is_some() && forwards[0].bytes_up > 0, "{forwards:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_through_yet_is_sent_away_at_once() {
    let mut server = Server::start("[server]\ndrain = \"600s\"\n").await;
    server.registry().person("alice").await;
    let mut client = RawClient::connect(server.port).await;
    client.start_interactive("alice", "").await;
    assert_eq!(client.receive().await.unwrap()[0], raw::INFO_REQUEST);
    server.signal(Signal::TERM);
    let packet = client.receive().await.unwrap();
    assert_eq!(packet[0], raw::DISCONNECT);
    let said = String::from_utf8_lossy(&packet);
    assert!(said.contains("the bastion is stopping: connect again in a moment"), "{said:?}");
    server.ends_well().await;
    assert!(server.kinds("signed-in").await.is_empty());
}

/// What a new connection is sent first, after `says`; nothing if it is closed.
async fn greeting(port: u16, says: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(says).await.unwrap();
    let mut bytes = [0; 7];
    match tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await.unwrap() {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_for_new_connections() {
    let mut server = Server::start("[server]\nbanner = \"first banner\"\n").await;
    let sshd = Sshd::start().await;
    let alice = server.registry().person("alice").await;
    server.registry().grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let signed_in = async |n: usize| {
        let client = Client::on_port(server.port, "alice");
        let (control, log) = (client.path("control"), client.path("log"));
        client.answers(&[PASSWORD, &alice.recovery_code(n)]);
        let mut master =
            client.command("ssh", &["-M", "-N", "-S", control.to_str().unwrap(), "bastion"]);
        let master = master.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        eventually("the master is up", async || control.exists().then_some(())).await;
        let through =
            ["-S", control.to_str().unwrap(), "-W", "db1:22", "bastion"].map(str::to_owned);
        (client, through, master, std::fs::read_to_string(log).unwrap())
    };
    let banner = |log: &str, text: &str| log.lines().any(|line| line == text);
    // Two channels on one connection; whether the second is let through.
    let two = async |client: &Client, through: &[String; 5]| {
        let through = through.each_ref().map(String::as_str);
        let mut first = client.echo(&through);
        assert!(first.greets().await);
        let mut second = client.echo(&through);
        let let_through = second.greets().await;
        for mut echo in [first, second] {
            echo.hang_up();
            echo.child.kill().await.unwrap();
        }
        let_through
    };
    let (old, through_old, old_master, log) = signed_in(0).await;
    assert!(banner(&log, "first banner"), "{log}");
    assert!(two(&old, &through_old).await);

    // A broken file leaves everything as it was.
    std::fs::write(server.dir.path().join("sallyport.toml"), "[server]\nlisten = 5\n").unwrap();
    server.signal(Signal::HUP);
    let line = server.logged("message", "failed to reload: the old configuration stays").await;
    assert_eq!(line["level"], "ERROR");
    assert!(line["error"].as_str().unwrap().contains("sallyport.toml:2:10"), "{line}");
    let (_client, _through, mut master, log) = signed_in(1).await;
    assert!(banner(&log, "first banner"), "{log}");
    master.kill().await.unwrap();

    server.configure(
        "node = \"elsewhere\"\n[server]\nbanner = \"second banner\"\nmax_channels = 1\n",
    );
    server.signal(Signal::HUP);
    server.logged("message", "the configuration is in force").await;
    let applied = server.logged("key", "server.max_channels").await;
    assert_eq!(applied["level"], "INFO", "{applied}");
    let warned = server.logged("key", "node").await;
    assert!(warned["message"].as_str().unwrap().contains("takes a restart"), "{warned}");
    let restarts = |line: &serde_json::Value| line["message"] == warned["message"];
    assert_eq!(server.log().into_iter().filter(restarts).count(), 1);
    assert!(two(&old, &through_old).await);
    let (new, through_new, new_master, log) = signed_in(2).await;
    assert!(banner(&log, "second banner") && !banner(&log, "first banner"), "{log}");
    assert!(!two(&new, &through_new).await);
    server.event("forward-refused", &[("reason", "too-many-channels")]).await;

    // Who may, and must, say where a connection comes from.
    assert_eq!(greeting(server.port, b"").await, "SSH-2.0");
    server.configure("node = \"elsewhere\"\n[server]\nproxy_from = [\"127.0.0.0/8\"]\n");
    server.signal(Signal::HUP);
    eventually("a PROXY header is wanted", async || {
        greeting(server.port, b"SSH-2.0-x\r\n").await.is_empty().then_some(())
    })
    .await;
    server.event("sign-in-refused", &[("reason", "proxy-header")]).await;
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5 22\r\n";
    assert_eq!(greeting(server.port, header).await, "SSH-2.0");
    assert!(two(&old, &through_old).await);

    for mut master in [old_master, new_master] {
        master.kill().await.unwrap();
    }
    server.signal(Signal::TERM);
    server.ends_well().await;
    server.nothing_is_open().await;
}
