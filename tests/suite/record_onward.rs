//! What goes beside the sessions on a target in record mode, through each entrance and with each
//! client: forwards both ways, the agent, X11.

use sallyport::audit::Context;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::support::hop::{Agent, Hop};
use crate::support::ways::{ENTRANCES, Program, Reach, Way};
use crate::support::{
    PATIENCE, command, ended, eventually, eventually_or, free_port, listening, tool,
};

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

/// A grant of these rights alone, on a target with X11.
async fn granting(rights: &str) -> Hop {
    let rights = rights.split(' ').map(|word| word.parse().unwrap()).collect();
    Hop::roomy("X11Forwarding yes", |grant| grant.allow = rights).await
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

/// Forwards from this side on to a service of the target's.
async fn forwards(reach: &Reach<'_>, service: &TcpListener) {
    let port = service.local_addr().unwrap().port();
    let (local, socks) = (free_port(), free_port());
    let (here, proxy) = (format!("{local}:localhost:{port}"), socks.to_string());
    let mut client = reach.start(&["-N", "-L", &here, "-D", &proxy, "HOST"]).await;
    listening(socks).await;
    for _ in 0..2 {
        let here = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        carries(here, accepted(service).await).await;
        let (here, there) = tokio::join!(by_socks(socks, port), accepted(service));
        carries(here, there).await;
    }
    client.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_lead_to_what_the_target_reaches() {
    let hop = Hop::roomy("", |_| {}).await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for reach in hop.all_reaches() {
        forwards(&reach, &service).await;
    }
    let opened = hop.bastion.kinds("onward-opened").await;
    assert_eq!(opened.len(), hop.reaches().count() * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_lead_to_socket_files_of_the_target() {
    let hop = Hop::roomy("", |_| {}).await;
    let file = hop.client.path("service.sock");
    let socket = UnixListener::bind(&file).unwrap();
    // PuTTY knows no socket files.
    for way in [Way::Direct, Way::Jump, Way::Selector] {
        let (port, here) = (free_port(), hop.client.path(way.host()));
        let (by_port, by_file) = (
            format!("{port}:{}", file.display()),
            format!("{}:{}", here.display(), file.display()),
        );
        let reach = hop.reach(Program::OpenSsh, way);
        let mut client = reach.start(&["-N", "-L", &by_port, "-L", &by_file, "HOST"]).await;
        let here = eventually("the socket file is there", async || {
            tokio::net::UnixStream::connect(&here).await.ok()
        });
        let here = here.await;
        let there = tokio::time::timeout(PATIENCE, socket.accept()).await.unwrap().unwrap().0;
        carries(here, there).await;
        let here = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let there = tokio::time::timeout(PATIENCE, socket.accept()).await.unwrap().unwrap().0;
        carries(here, there).await;
        client.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_on_to_another_destination_ends_with_its_grant() {
    let hop = Hop::roomy("", |_| {}).await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    hop.bastion.target("plain", &format!("127.0.0.1:{port}")).await;
    let (store, context) = (hop.bastion.store(), Context::default());
    let why = format!("plain:{port} is not granted to you");
    for (before, way) in ENTRANCES.into_iter().enumerate() {
        let grant = hop.bastion.add_grant("alice", "plain", |_| {}).await;
        let (local, itself) = (free_port(), free_port());
        let on = format!("{local}:plain:{port}");
        let here = format!("{itself}:localhost:{port}");
        let mut ssh =
            hop.reach(Program::OpenSsh, way).start(&["-N", "-L", &on, "-L", &here, "HOST"]).await;
        let connected = async |port| {
            eventually("ssh listens", async || TcpStream::connect(("127.0.0.1", port)).await.ok())
                .await
        };
        let mut stream = connected(local).await;
        let mut there = accepted(&service).await;
        let mut other = connected(itself).await;
        let mut other_there = accepted(&service).await;
        stream.write_all(b"question").await.unwrap();
        assert_eq!(taken(&mut there, 8).await, b"question");

        store.remove_grant(grant.as_str(), &context, hop.bastion.now()).await.unwrap();
        for end in [&mut stream, &mut there] {
            let read = tokio::time::timeout(PATIENCE, end.read(&mut [0])).await;
            assert_eq!(read.expect("it outlives its grant").unwrap_or(0), 0, "{way:?}");
        }
        eventually_or("its end is written down", async || {
            let closed = hop.bastion.kinds("onward-closed").await;
            let lapsed = closed.iter().filter(|event| event["reason"] == why.as_str());
            let ended = lapsed.filter(|event| event["up"] == 8).count();
            (ended == before + 1).then_some(()).ok_or(closed)
        })
        .await;
        // What leads to the target itself needs no other grant, and goes on.
        other.write_all(b"question").await.unwrap();
        assert_eq!(taken(&mut other_there, 8).await, b"question");
        ssh.kill().await.unwrap();
    }
}

/// Waits until this was refused `times` times.
async fn refused(hop: &Hop, what: &str, times: usize) {
    eventually_or("each refusal is written down", async || {
        let events = hop.bastion.kinds("use-refused").await;
        let here = events.iter().filter(|event| event["what"] == what).count();
        (here == times).then_some(()).ok_or(events)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_to_what_is_not_granted_are_refused_with_the_reason() {
    let hop = Hop::roomy("", |_| {}).await;
    for (before, reach) in hop.reaches().enumerate() {
        let away = free_port();
        let forward = format!("{away}:192.0.2.1:22");
        let mut client = reach.start(&["-v", "-N", "-L", &forward, "HOST"]).await;
        let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
        // Held: a client that sees nobody there any more may not ask at all.
        let _here = eventually("the client listens", async || {
            TcpStream::connect(("127.0.0.1", away)).await.ok()
        })
        .await;
        let why = "192.0.2.1 is not granted to you";
        let told = async { while !lines.next_line().await.unwrap().unwrap().contains(why) {} };
        tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{reach:?}"));
        client.kill().await.unwrap();
        refused(&hop, "direct-tcpip 192.0.2.1:22", before + 1).await;
    }
    let hop = granting("shell exec").await;
    for (before, way) in ENTRANCES.into_iter().enumerate() {
        let local = free_port();
        let forward = format!("{local}:/run/some.sock");
        let mut client =
            hop.reach(Program::OpenSsh, way).start(&["-N", "-L", &forward, "HOST"]).await;
        let mut here = eventually("the client listens", async || {
            TcpStream::connect(("127.0.0.1", local)).await.ok()
        })
        .await;
        let read = tokio::time::timeout(PATIENCE, here.read(&mut [0])).await;
        assert_eq!(read.unwrap().unwrap(), 0);
        refused(&hop, "direct-streamlocal /run/some.sock", before + 1).await;
        client.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_target_lead_back_where_that_is_granted() {
    let hop = granting("shell exec remote-forward").await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    for reach in hop.all_reaches() {
        let far = free_port();
        let forward = format!("{far}:127.0.0.1:{port}");
        // Beside a session, which goes on as without it.
        let mut client = reach.start(&["-R", &forward, "HOST", "echo up; cat"]).await;
        let mut up = [0; 3];
        let read = client.stdout.as_mut().unwrap().read_exact(&mut up);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        for _ in 0..2 {
            let what = format!("{reach:?} has the port");
            let far = eventually(&what, async || TcpStream::connect(("127.0.0.1", far)).await.ok());
            let far = far.await;
            carries(far, accepted(&service).await).await;
        }
        let done = tokio::time::timeout(PATIENCE, client.wait_with_output()).await;
        assert!(done.unwrap().unwrap().status.success(), "{reach:?}");
        eventually("the port is closed with the connection", async || {
            TcpStream::connect(("127.0.0.1", far)).await.is_err().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_target_may_be_any_and_are_given_back() {
    let hop = granting("shell exec remote-forward").await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    for way in ENTRANCES {
        let forward = format!("0:127.0.0.1:{port}");
        let mut ssh = hop.reach(Program::OpenSsh, way).start(&["-N", "-R", &forward, "HOST"]).await;
        let mut lines = BufReader::new(ssh.stderr.take().unwrap()).lines();
        let far: u16 = loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
            let line = line.expect("no port was allocated");
            if let Some(rest) = line.strip_prefix("Allocated port ") {
                break rest.split(' ').next().unwrap().parse().unwrap();
            }
        };
        let far = TcpStream::connect(("127.0.0.1", far)).await.unwrap();
        carries(far, accepted(&service).await).await;
        ssh.kill().await.unwrap();

        // Asked for later, beside a session, and taken back.
        let host = way.host();
        let (mut master, path) = hop.shared_on(way, &[]).await;
        let far = free_port();
        let forward = format!("{far}:127.0.0.1:{port}");
        let held = hop.running(&["-S", &path, host, "echo up; cat"]).await;
        hop.ssh(&["-O", "forward", "-R", &forward, "-S", &path, host]).await.ok();
        let stream = TcpStream::connect(("127.0.0.1", far)).await.unwrap();
        carries(stream, accepted(&service).await).await;
        hop.ssh(&["-O", "cancel", "-R", &forward, "-S", &path, host]).await.ok();
        eventually("the port is closed when it is taken back", async || {
            TcpStream::connect(("127.0.0.1", far)).await.is_err().then_some(())
        })
        .await;
        let done = tokio::time::timeout(PATIENCE, held.wait_with_output()).await.unwrap().unwrap();
        assert!(done.status.success());
        hop.ssh(&["-O", "exit", "-S", &path, host]).await.ok();
        ended(&mut master).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_files_of_the_target_lead_back_where_that_is_granted() {
    let hop = granting("exec remote-forward").await;
    let here = hop.client.path("here.sock");
    let service = UnixListener::bind(&here).unwrap();
    // PuTTY knows no socket files.
    for way in [Way::Direct, Way::Jump, Way::Selector] {
        let there = hop.client.path(way.host());
        let forward = format!("{}:{}", there.display(), here.display());
        let reach = hop.reach(Program::OpenSsh, way);
        let mut ssh = reach.start(&["-N", "-R", &forward, "HOST"]).await;
        for _ in 0..2 {
            let far = eventually("the socket file is there", async || {
                tokio::net::UnixStream::connect(&there).await.ok()
            });
            let far = far.await;
            let near = tokio::time::timeout(PATIENCE, service.accept()).await.unwrap().unwrap().0;
            carries(far, near).await;
        }
        ssh.kill().await.unwrap();
        eventually("nobody listens there when the connection is over", async || {
            tokio::net::UnixStream::connect(&there).await.is_err().then_some(())
        })
        .await;

        // Asked for later, and taken back.
        if way != Way::Direct {
            let (host, again) = (way.host(), hop.client.path("again"));
            let (mut master, path) = hop.shared_on(way, &[]).await;
            let forward = format!("{}:{}", again.display(), here.display());
            hop.ssh(&["-O", "forward", "-R", &forward, "-S", &path, host]).await.ok();
            let far = tokio::net::UnixStream::connect(&again).await.unwrap();
            let near = tokio::time::timeout(PATIENCE, service.accept()).await.unwrap().unwrap().0;
            carries(far, near).await;
            hop.ssh(&["-O", "cancel", "-R", &forward, "-S", &path, host]).await.ok();
            eventually("nobody listens there when it was taken back", async || {
                tokio::net::UnixStream::connect(&again).await.is_err().then_some(())
            })
            .await;
            hop.ssh(&["-O", "exit", "-S", &path, host]).await.ok();
            ended(&mut master).await;
            std::fs::remove_file(&again).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_target_are_refused_where_nobody_granted_them() {
    let hop = Hop::roomy("", |_| {}).await;
    for (before, way) in ENTRANCES.into_iter().enumerate() {
        let ask = async |forward: &str| {
            let args = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", forward, "HOST"];
            hop.reach(Program::OpenSsh, way).run(&args, b"").await.failed().err
        };
        let err = ask("0:127.0.0.1:1").await;
        assert!(err.contains("remote port forwarding failed for listen port 0"), "{err}");
        refused(&hop, "tcpip-forward localhost:0", before + 1).await;
        let err = ask("/tmp/never.sock:127.0.0.1:1").await;
        assert!(err.contains("remote port forwarding failed for listen path"), "{err}");
        refused(&hop, "streamlocal-forward /tmp/never.sock", before + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_forwarded_where_that_is_granted() {
    let look = "ssh-add -l";
    let hop = granting("exec agent").await;
    let mut agent = Agent::start(&hop).await;
    let option = agent.option();
    let with = |reach: &Reach<'_>| match reach.program {
        Program::OpenSsh => vec!["-A", "-o", &option, "HOST", look],
        Program::Plink => vec!["-A", "HOST", look],
    };
    for reach in hop.all_reaches().map(|reach| reach.with("SSH_AUTH_SOCK", agent.socket())) {
        let ran = reach.run(&with(&reach), b"").await.ok();
        assert!(ran.text().starts_with("256 SHA256:"), "{reach:?} {ran:?}");
        let without = reach.run(&["HOST", look], b"").await;
        assert_eq!(without.code, Some(2), "{reach:?} {without:?}");
    }
    let hop = granting("exec").await;
    for (before, reach) in hop.reaches().enumerate() {
        let reach = reach.with("SSH_AUTH_SOCK", agent.socket());
        let ran = reach.run(&with(&reach), b"").await;
        assert_eq!(ran.code, Some(2), "{reach:?} {ran:?}");
        refused(&hop, "auth-agent-req", before + 1).await;
    }
    agent.process.kill().await.unwrap();
}

/// A display that lets nobody in, and says so to whoever knows its cookie (X11's protocol, chapter
/// 8, "Connection Setup").
struct Display {
    listener: TcpListener,
    cookie: [u8; 16],
    cookies: std::path::PathBuf,
}

impl Display {
    /// A client that shows things on it.
    fn shown_by<'a>(&self, reach: Reach<'a>) -> Reach<'a> {
        let cookies = self.cookies.display().to_string();
        reach.with("DISPLAY", self.name()).with("XAUTHORITY", cookies)
    }

    async fn start(hop: &Hop) -> Self {
        // Displays are ports from 6000 on.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (cookie, cookies) = (*b"a cookie of 16 b", hop.client.path("cookies"));
        let display = Self { listener, cookie, cookies };
        let hex: String = cookie.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut xauth = command(tool("xauth"));
        xauth.arg("-q").arg("-f").arg(&display.cookies).args(["add", &display.name(), ".", &hex]);
        assert!(ended(&mut xauth.spawn().unwrap()).await.success());
        display
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.listener.local_addr().unwrap().port() - 6000)
    }

    /// Answers one program.
    async fn answer(&self) {
        let mut stream = accepted(&self.listener).await;
        let greeting = taken(&mut stream, 12 + 20 + 16).await;
        assert_eq!(&greeting[12..30], b"MIT-MAGIC-COOKIE-1");
        assert_eq!(greeting[32..], self.cookie);
        let reason = b"seen by the test";
        let head = [0, 16, 11, 0, 0, 0, 4, 0];
        stream.write_all(&[&head[..], reason].concat()).await.unwrap();
    }
}

/// A program that asks the display for a connection, and prints what it answers.
const PROGRAM: &str = r#"
use IO::Socket::INET;
my ($number) = ($ENV{DISPLAY} // "") =~ /:(\d+)/ or die "no display
";
my ($cookie) = `xauth list $ENV{DISPLAY}` =~ /MIT-MAGIC-COOKIE-1\s+(\w+)/ or die "no cookie
";
my $display = IO::Socket::INET->new("127.0.0.1:" . (6000 + $number)) or die "no connection
";
$display->autoflush(1);
print $display pack("a1 x v4 x2 a20 H32", "l", 11, 0, 18, 16, "MIT-MAGIC-COOKIE-1", $cookie);
read $display, my $answer, 24 or die "no answer
";
print substr($answer, 8), "
";
"#;

#[tokio::test(flavor = "multi_thread")]
async fn x11_is_forwarded_where_that_is_granted() {
    let hop = granting("exec x11").await;
    let display = Display::start(&hop).await;
    let program = hop.client.path("program");
    std::fs::write(&program, PROGRAM).unwrap();
    let line = format!("perl {0} && perl {0}", program.display());
    let flag = |reach: &Reach<'_>| if reach.program == Program::OpenSsh { "-Y" } else { "-X" };
    for reach in hop.all_reaches().map(|reach| display.shown_by(reach)) {
        let args = [flag(&reach), "HOST", &line];
        let answers = async {
            display.answer().await;
            display.answer().await;
        };
        let (ran, ()) = tokio::join!(reach.run(&args, b""), answers);
        assert_eq!(
            ran.ok().text(),
            "seen by the test
"
            .repeat(2),
            "{reach:?}"
        );
        let without = reach.run(&["HOST", &line], b"").await.failed();
        assert_eq!(
            without.err,
            "no display
",
            "{reach:?}"
        );
    }
    let hop = granting("exec").await;
    for (before, reach) in hop.reaches().map(|reach| display.shown_by(reach)).enumerate() {
        let ran = reach.run(&[flag(&reach), "HOST", &line], b"").await.failed();
        assert!(
            ran.err.contains(
                "no display
"
            ),
            "{reach:?} {ran:?}"
        );
        refused(&hop, "x11-req", before + 1).await;
    }
}
