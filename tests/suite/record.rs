//! Sessions on a target in record mode that share a connection, do not read, or lead further.

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::process::Child;

use crate::record_table::noise;
use crate::support::bastion::PASSWORD;
use crate::support::hop::{Agent, Hop, NOTICE, Ran, fed};
use crate::support::{PATIENCE, command, ended, eventually, free_port, listening, tool};

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_on_after_the_end_of_the_output() {
    let hop = Hop::start().await;
    let input = noise(4_000_000);
    let file = hop.client.path("copy");
    let line = format!("exec >&- 2>&-; cat > {}", file.display());
    let ran = fed(&mut hop.command(&["via", &line]), &input).await.ok();
    assert_eq!(ran.out, b"");
    assert!(std::fs::read(&file).unwrap() == input);
    assert_eq!(hop.bastion.bastion.budget.held(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn zcat_of_a_small_file_that_becomes_large() {
    let hop = Hop::start().await;
    let packed = |bytes: usize| {
        let text = "all work and no play\n".repeat(bytes / 21);
        let mut gzip = command(tool("gzip"));
        gzip.arg("-c");
        async move { fed(&mut gzip, text.as_bytes()).await.ok().out }
    };
    let small = packed(21_000_000).await;
    assert!(small.len() < 200_000, "{}", small.len());
    let ran = fed(&mut hop.command(&["via", "zcat"]), &small).await.ok();
    assert_eq!(ran.out.len(), 21_000_000);
    let small = packed(210_000_000).await;
    let ran = fed(&mut hop.command(&["via", "zcat | wc -c"]), &small).await.ok();
    assert_eq!(ran.text(), "210000000\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sessions_share_one_connection() {
    let hop = Hop::start().await;
    let (mut master, path) = hop.shared(&[]).await;
    let lines: Vec<String> = (0..10).map(|n| format!("echo {n}; cat; exit {n}")).collect();
    let inputs: Vec<Vec<u8>> = (0..10).map(|n| noise(50_000 + n)).collect();
    let runs = lines.iter().zip(&inputs).map(|(line, input)| {
        let mut ssh = hop.command(&["-S", &path, "via", line]);
        async move { fed(&mut ssh, input).await }
    });
    for (n, ran) in futures_util::future::join_all(runs).await.into_iter().enumerate() {
        let out = [format!("{n}\n").as_bytes(), &inputs[n]].concat();
        assert_eq!(ran.code, Some(n as i32), "{}", ran.err);
        assert!(ran.out == out, "{n}");
    }
    assert_eq!(hop.bastion.kinds("forward-opened").await.len(), 1);
    for line in &lines {
        hop.recorded(line).await;
    }
    assert_eq!(hop.recordings().await.len(), 10);
    hop.ssh(&["-O", "exit", "-S", &path, "via"]).await.ok();
    ended(&mut master).await;
    hop.bastion.event("forward-closed", &[("reason", "the client closed it")]).await;
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pauses_leaves_its_neighbours_alone() {
    let hop = Hop::start().await;
    let numbers: String = (1..=2_500_000).map(|n| format!("{n}\n")).collect();
    let (mut master, path) = hop.shared(&[]).await;
    // One on a connection of its own, whose client is stopped; one whose output nobody reads, on
    // the connection that the neighbours use, too.
    let start = |args: &[&str]| {
        let mut ssh = hop.command(&[args, &["echo up; seq 1 2500000"]].concat());
        ssh.spawn().unwrap()
    };
    let mut alone = start(&["via"]);
    let mut shared = start(&["-S", &path, "via"]);
    for child in [&mut alone, &mut shared] {
        let mut up = [0; 3];
        let read = child.stdout.as_mut().unwrap().read_exact(&mut up);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    }
    signal(&alone, rustix::process::Signal::STOP);
    for n in 0..10 {
        let text = format!("echo {n}");
        for args in [vec!["-S", &path, "via", &text], vec!["via", &text]] {
            assert_eq!(hop.ssh(&args).await.ok().text(), format!("{n}\n"));
        }
    }
    let held = hop.bastion.bastion.budget.held();
    assert!(held < 8 << 20, "{held}");
    signal(&alone, rustix::process::Signal::CONT);
    for child in [alone, shared] {
        let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        assert!(done.status.success() && done.stdout == numbers.as_bytes(), "{}", done.status);
    }
    hop.ssh(&["-O", "exit", "-S", &path, "via"]).await.ok();
    ended(&mut master).await;
}

/// Everything that a stream brings until `len` bytes are there.
async fn taken(stream: &mut (impl tokio::io::AsyncRead + Unpin), len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let read = stream.read_exact(&mut bytes);
    tokio::time::timeout(PATIENCE, read).await.expect("nothing came").unwrap();
    bytes
}

/// Both sides of a connection carry bytes, and its end.
async fn carries(
    mut here: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    mut there: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) {
    here.write_all(b"question").await.unwrap();
    assert_eq!(taken(&mut there, 8).await, b"question");
    here.shutdown().await.unwrap();
    there.write_all(b"answer").await.unwrap();
    there.shutdown().await.unwrap();
    let mut rest = String::new();
    let read = here.read_to_string(&mut rest);
    tokio::time::timeout(PATIENCE, read).await.expect("it does not end").unwrap();
    assert_eq!(rest, "answer");
    let read = there.read_to_string(&mut rest);
    tokio::time::timeout(PATIENCE, read).await.expect("it does not end").unwrap();
}

async fn accepted(listener: &TcpListener) -> TcpStream {
    tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0
}

/// Connects through a SOCKS proxy (RFC 1928) to `port` on the far side's loopback.
pub async fn by_socks(proxy: u16, port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy)).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    assert_eq!(taken(&mut stream, 2).await, [5, 0]);
    let [high, low] = port.to_be_bytes();
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).await.unwrap();
    assert_eq!(taken(&mut stream, 10).await[..2], [5, 0]);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_lead_to_what_the_target_reaches() {
    let hop = Hop::start().await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let file = hop.client.path("service.sock");
    let socket = UnixListener::bind(&file).unwrap();
    let (local, local_socket, socks, away) = (free_port(), free_port(), free_port(), free_port());
    let log = hop.client.path("log");
    let mut ssh = hop.command(&[
        "-N",
        "-v",
        "-E",
        log.to_str().unwrap(),
        "-L",
        &format!("{local}:localhost:{port}"),
        "-L",
        &format!("{local_socket}:{}", file.display()),
        "-L",
        &format!("{away}:192.0.2.1:22"),
        "-D",
        &socks.to_string(),
        "via",
    ]);
    let mut ssh = ssh.spawn().unwrap();
    listening(socks).await;
    let here = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    carries(here, accepted(&service).await).await;
    let here = TcpStream::connect(("127.0.0.1", local_socket)).await.unwrap();
    let there = tokio::time::timeout(PATIENCE, socket.accept()).await.unwrap().unwrap().0;
    carries(here, there).await;
    let (here, there) = tokio::join!(by_socks(socks, port), accepted(&service));
    carries(here, there).await;

    // Where the target would reach something that is not granted.
    let mut here = TcpStream::connect(("127.0.0.1", away)).await.unwrap();
    assert_eq!(here.read(&mut [0]).await.unwrap(), 0);
    hop.refused("direct-tcpip 192.0.2.1:22").await;
    eventually("the client is told why", async || {
        let said = "administratively prohibited: 192.0.2.1 is not granted to you";
        std::fs::read_to_string(&log).unwrap().contains(said).then_some(())
    })
    .await;
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_target_lead_back_where_that_is_granted() {
    let all = "shell exec forward remote-forward".split(' ').map(|word| word.parse().unwrap());
    let hop = Hop::granting(|grant| grant.allow = all.collect()).await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let forward = format!("0:127.0.0.1:{port}");
    let mut ssh = hop.command(&["-N", "-R", &forward, "via"]).spawn().unwrap();
    let mut lines = BufReader::new(ssh.stderr.take().unwrap()).lines();
    let far: u16 = loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let line = line.expect("no port was allocated");
        if let Some(rest) = line.strip_prefix("Allocated port ") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    for _ in 0..2 {
        let far = TcpStream::connect(("127.0.0.1", far)).await.unwrap();
        carries(far, accepted(&service).await).await;
    }
    ssh.kill().await.unwrap();
    eventually("the port is closed with the connection", async || {
        TcpStream::connect(("127.0.0.1", far)).await.is_err().then_some(())
    })
    .await;

    // Asked for later, beside a session, and taken back.
    let (mut master, path) = hop.shared(&[]).await;
    let far = free_port();
    let forward = format!("{far}:127.0.0.1:{port}");
    let held = hop.running(&["-S", &path, "via", "echo up; cat"]).await;
    hop.ssh(&["-O", "forward", "-R", &forward, "-S", &path, "via"]).await.ok();
    let stream = TcpStream::connect(("127.0.0.1", far)).await.unwrap();
    carries(stream, accepted(&service).await).await;
    hop.ssh(&["-O", "cancel", "-R", &forward, "-S", &path, "via"]).await.ok();
    eventually("the port is closed when it is taken back", async || {
        TcpStream::connect(("127.0.0.1", far)).await.is_err().then_some(())
    })
    .await;
    let done = tokio::time::timeout(PATIENCE, held.wait_with_output()).await.unwrap().unwrap();
    assert!(done.status.success());
    hop.ssh(&["-O", "exit", "-S", &path, "via"]).await.ok();
    ended(&mut master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_target_are_refused_where_nobody_granted_them() {
    let hop = Hop::start().await;
    let ask = async |forward: &str| {
        let args = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", forward, "via"];
        hop.ssh(&args).await.failed().err
    };
    let err = ask("0:127.0.0.1:1").await;
    assert!(err.contains("remote port forwarding failed for listen port 0"), "{err}");
    hop.refused("tcpip-forward localhost:0").await;
    let err = ask("/tmp/never.sock:127.0.0.1:1").await;
    assert!(err.contains("remote port forwarding failed for listen path"), "{err}");
    hop.refused("streamlocal-forward /tmp/never.sock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_forwarded_where_that_is_granted() {
    let hop = Hop::start().await;
    let mut agent = Agent::start(&hop).await;
    let option = agent.option();
    let args = ["-A", "-o", &option, "HOST", "ssh-add -l"];
    let (via, direct): (Ran, Ran) = hop.both(&args, b"").await;
    assert!(direct.text().contains("SHA256:"), "{direct:?}");
    assert_eq!(via, direct);
    let without = hop.both(&["HOST", "ssh-add -l"], b"").await;
    assert_eq!((without.1.code, &without.0), (Some(2), &without.1));
    agent.process.kill().await.unwrap();

    let allow = vec!["exec".parse().unwrap()];
    let hop = Hop::granting(|grant| grant.allow = allow).await;
    let mut agent = Agent::start(&hop).await;
    let ran = hop.ssh(&["-A", "-o", &agent.option(), "via", "ssh-add -l"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    hop.refused("auth-agent-req").await;
    agent.process.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_signs_in_and_hops() {
    let hop = Hop::start().await;
    hop.client.answers(&[PASSWORD, &hop.bastion.code(&hop.alice)]);
    let args = ["-o", "ControlPath=none", "-J", "alone", "via", "echo hopped"];
    let alone = format!("HostName 127.0.0.1\nPort {}\nUser alice", hop.bastion.port);
    let Hop { client, .. } = hop;
    let client = client.host("alone", &alone);
    let ran = client.ssh(&args).await.ok();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("hopped\n", NOTICE));
    let asked = client.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    hop.bastion.event("target-signed-in", &[("account", &crate::support::present_user())]).await;
    for kind in ["signed-in", "forward-opened"] {
        hop.bastion.event(kind, &[("user", "alice")]).await;
    }
}
