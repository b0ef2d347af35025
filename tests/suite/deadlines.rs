//! What ends by itself: a dial that nobody answers, a forward whose grant runs out, a connection whose
//! client is gone.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sallyport::clock::Clock;
use sallyport::domain::UnixTime;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::bastion::{Engine, PASSWORD, TestBastion, code_at};
use crate::support::raw::{CHANNEL_OPEN_FAILURE, CLOSE, DATA, Packet, RawClient, USERAUTH_SUCCESS};
use crate::support::server::Server;
use crate::support::ssh::{Client, Echo, run};
use crate::support::{PATIENCE, SOON, eventually};

/// A port on which the kernel drops whoever wants to connect: its queue is full, and stays so.
struct Hole {
    port: u16,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl Hole {
    async fn dig() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        let mut queued = Vec::new();
        let try_to = || TcpStream::connect(("127.0.0.1", port));
        // The first that gets no answer shows that there is no room.
        while let Ok(room) = tokio::time::timeout(Duration::from_millis(500), try_to()).await {
            queued.push(room.unwrap());
        }
        Self { port, _listener: listener, _queued: queued }
    }
}

/// A signed-in client with an open forward to a target that the test plays.
struct Ticking {
    client: RawClient,
    /// The forward's number on the server's side.
    forward: u32,
    there: TcpStream,
}

impl Ticking {
    async fn start(mut client: RawClient, target: &TcpListener) -> Self {
        client.ask_direct(0, "played", target.local_addr().unwrap().port()).await;
        let there = tokio::time::timeout(PATIENCE, target.accept()).await.unwrap().unwrap().0;
        let forward = client.opened(0).await.unwrap();
        Self { client, forward, there }
    }

    /// Sends a byte there and back; the packet that came here.
    async fn tick(&mut self) -> Vec<u8> {
        self.client.send(&Packet::new(DATA).number(self.forward).text("x").0).await;
        let mut byte = [0];
        let read = self.there.read_exact(&mut byte);
        tokio::time::timeout(PATIENCE, read).await.expect("nothing gets through").unwrap();
        self.there.write_all(&byte).await.unwrap();
        self.client.next().await
    }

    /// Waits until the server closes the forward.
    async fn closed(&mut self) {
        while self.client.next().await[0] != CLOSE {}
    }
}

/// A bastion with a dial timeout, a played target, a hole, and a forward of alice's to the first.
async fn setting(timeout: &str) -> (TestBastion, Hole, Ticking) {
    let extra = format!("[forward]\ndial_timeout = \"{timeout}\"\n");
    let bastion = TestBastion::start_with(Engine::Sqlite, &extra).await;
    let alice = bastion.person("alice").await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bastion.grant("alice", "played", &target.local_addr().unwrap().to_string()).await;
    let hole = Hole::dig().await;
    bastion.grant("alice", "hole", &format!("127.0.0.1:{}", hole.port)).await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let ticking = Ticking::start(client, &target).await;
    (bastion, hole, ticking)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_answer_is_given_up_and_holds_up_no_other() {
    let (bastion, hole, mut ticking) = setting("2s").await;
    let asked = Instant::now();
    ticking.client.ask_direct(1, "hole", hole.port).await;
    let mut ticks = 0;
    let failure = loop {
        let packet = ticking.tick().await;
        match packet[0] {
            DATA => ticks += 1,
            CHANNEL_OPEN_FAILURE => break packet,
            other => panic!("message {other} came"),
        }
    };
    assert!(asked.elapsed() >= Duration::from_secs(2), "after {:?}", asked.elapsed());
    assert!(ticks >= 3, "only {ticks} ticks got through meanwhile");
    let said = String::from_utf8_lossy(&failure[13..]).into_owned();
    assert!(said.starts_with("hole did not answer within 2 s"), "{said}");
    let failed = bastion.event("forward-failed", &[("user", "alice")]).await;
    assert_eq!(failed["error"], "hole did not answer within 2 s", "{failed}");
    assert_eq!(ticking.tick().await[0], DATA);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_client_had_is_over_soon_after_it_is_gone() {
    let (bastion, hole, mut ticking) = setting("60s").await;
    ticking.client.ask_direct(1, "hole", hole.port).await;
    let Ticking { client, mut there, .. } = ticking;
    // It is being dialled once that is written down.
    let dialling = async || bastion.kinds("forward-opened").await.len() == 2;
    eventually("it dials", async || dialling().await.then_some(())).await;
    drop(client);
    let over = async {
        let mut rest = Vec::new();
        let _ended_or_reset = there.read_to_end(&mut rest).await;
        let left = "the client left before hole answered";
        bastion.event("forward-failed", &[("error", left)]).await;
        bastion.event("forward-closed", &[("user", "alice")]).await;
        // Written down after all tasks of the connection are over.
        bastion.event("session-ended", &[("user", "alice")]).await;
    };
    tokio::time::timeout(SOON, over).await.expect("something outlives the client");
    assert_eq!(bastion.bastion.budget.held(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_forward_ends_with_its_grant_and_nobody_has_to_say_so() {
    let server = Server::start("").await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    let alice = server.registry().person("alice").await;
    server.registry().target("played", &address.to_string()).await;
    let mut client = RawClient::connect(server.port).await;
    let code = code_at(&alice, Clock::System.now());
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    // A machine that is too busy may let the grant run out before it is used: another one, then.
    let (mut tries, mut until) = (0, UnixTime(0));
    let forward = loop {
        until = Clock::System.now().plus(Duration::from_secs(2)).max(until);
        server.registry().add_grant("alice", "played", |grant| grant.until = Some(until)).await;
        client.ask_direct(0, "played", address.port()).await;
        match client.opened(0).await {
            Ok(forward) => break forward,
            Err((1, said)) if said.contains("ended on") && tries < 20 => tries += 1,
            Err(refused) => panic!("{refused:?}"),
        }
    };
    let revision = server.store().revision().await.unwrap();
    let there = target.accept().await.unwrap().0;
    let mut open = Ticking { client, forward, there };
    open.closed().await;
    assert!(Clock::System.now() >= until, "it ended early");
    assert_eq!(server.store().revision().await.unwrap(), revision, "somebody said so");
    let closed = server.event("forward-closed", &[("user", "alice")]).await;
    let reason = closed["reason"].as_str().unwrap();
    assert!(reason.starts_with("your grant for played ended on "), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_forward_ends_with_its_hours_and_nobody_has_to_say_so() {
    // A Tuesday, 16:59 in Berlin.
    let start = UnixTime(1_795_535_940_000);
    let bastion = TestBastion::start_at(start, Engine::Sqlite, "").await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let alice = bastion.person("alice").await;
    bastion.target("played", &target.local_addr().unwrap().to_string()).await;
    let hours = "Mon-Fri 08:00-17:00 Europe/Berlin";
    bastion.add_grant("alice", "played", |grant| grant.hours = Some(hours.parse().unwrap())).await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice); // 30 s later.
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    bastion.clock.advance(Duration::from_secs(28));
    let mut open = Ticking::start(client, &target).await;
    assert_eq!(open.tick().await[0], DATA);
    let revision = bastion.store().revision().await.unwrap();
    // From here on the bastion's clock goes.
    let ticks = async {
        loop {
            let before = Instant::now();
            tokio::time::sleep(Duration::from_millis(10)).await;
            bastion.clock.advance(before.elapsed());
        }
    };
    tokio::select! {
        () = open.closed() => {}
        () = ticks => {}
    }
    assert!(bastion.now() >= UnixTime(start.0 + 60_000), "it ended early");
    assert_eq!(bastion.store().revision().await.unwrap(), revision, "somebody said so");
    let reason = format!("outside granted hours ({hours})");
    bastion.event("forward-closed", &[("user", "alice"), ("reason", &reason)]).await;
}

/// Nothing comes from its network any more, not even that it went: no FIN, no RST.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_network_is_gone_is_ended_by_keepalives() {
    let server = Server::alone("[server]\nkeepalive = \"1s\"\n", "true").await;
    let alice = server.registry().person("alice").await;
    let client = Client::on_port(server.port, "alice");
    client.answers(&[PASSWORD, &code_at(&alice, Clock::System.now())]);
    let mut ssh = server.inside("ssh");
    ssh.arg("-F").arg(client.path("config")).args(["-N", "bastion"]);
    client.answer_for(&mut ssh);
    let mut ssh = ssh.spawn().unwrap();
    server.event("signed-in", &[("user", "alice")]).await;
    run(server.inside("ip").args(["link", "set", "lo", "down"])).await.ok();
    let ended = [("user", "alice"), ("reason", "connection-lost")];
    server.event("session-ended", &ended).await;
    assert!(ssh.try_wait().unwrap().is_none(), "its client said that it goes");
    ssh.kill().await.unwrap();
}

/// Sends back each line, on port 7.
const ECHO: &str = r#"
    my $server = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1:7") or die;
    while (my $client = $server->accept) { while (<$client>) { syswrite $client, $_ } }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_in_time_is_given_up_and_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let resolver = dir.path().join("resolv.conf");
    std::fs::write(&resolver, "nameserver 192.0.2.53\n").unwrap();
    // Questions get there, and no answer comes.
    let silent = format!(
        "ip route add 192.0.2.53 dev lo && mount --bind {} /etc/resolv.conf",
        resolver.display()
    );
    let server = Server::alone("[forward]\ndial_timeout = \"3s\"\n", &silent).await;
    let mut echo = server.inside("perl").args(["-MIO::Socket::INET", "-e", ECHO]).spawn().unwrap();
    let alice = server.registry().person("alice").await;
    server.registry().grant("alice", "played", "127.0.0.1:7").await;
    server.registry().grant("alice", "hang", "hang.example:22").await;
    let client = Client::on_port(server.port, "alice");
    let (control, log) = (client.path("control"), client.path("log"));
    let ssh = |args: &[&str]| {
        let mut ssh = server.inside("ssh");
        ssh.arg("-F").arg(client.path("config")).arg("-S").arg(&control).args(args).arg("bastion");
        ssh.stdout(Stdio::piped()).stderr(Stdio::null());
        client.answer_for(&mut ssh);
        ssh
    };
    client.answers(&[PASSWORD, &code_at(&alice, Clock::System.now())]);
    let mut master = ssh(&["-M", "-N", "-v", "-E", log.to_str().unwrap()]).spawn().unwrap();
    eventually("the master is up", async || control.exists().then_some(())).await;
    let mut beside = eventually("the target listens", async || {
        let mut beside = Echo::by(&mut ssh(&["-W", "played:7"]));
        beside.try_say("up").await.then_some(beside)
    })
    .await;
    let asked = Instant::now();
    let mut hanging = ssh(&["-W", "hang:22"]).spawn().unwrap();
    let mut said = 0;
    while hanging.try_wait().unwrap().is_none() {
        beside.say("still here").await;
        said += 1;
    }
    assert!(asked.elapsed() >= Duration::from_secs(3), "after {:?}", asked.elapsed());
    assert!(said >= 3, "only {said} lines got through meanwhile");
    let error = "the address of hang did not resolve within 3 s";
    server.event("forward-failed", &[("user", "alice"), ("error", error)]).await;
    eventually("it is told", async || {
        std::fs::read_to_string(&log).unwrap().contains(error).then_some(())
    })
    .await;
    for child in [&mut master, &mut echo] {
        child.kill().await.unwrap();
    }
}
