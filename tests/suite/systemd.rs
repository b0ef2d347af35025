//! What systemd and the program agree on, with systemd's own tool for sockets: notifications, the
//! watchdog, passed sockets, credentials of the first start under the journal.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use crate::support::server::{BINARY, Server};
use crate::support::ssh::{Client, Run, run};
use crate::support::{
    PATIENCE, command, ended, eventually, free_port, listening, signal, speaks_ssh, tool,
};

/// The other end of `$NOTIFY_SOCKET`.
struct Manager {
    _dir: tempfile::TempDir,
    path: PathBuf,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { _dir: dir, path, socket }
    }

    /// The next message.
    async fn told(&self) -> String {
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, self.socket.recv(&mut bytes)).await.expect("it said nothing");
        String::from_utf8_lossy(&bytes[..read.unwrap()]).into_owned()
    }

    /// The next message but for the watchdog's.
    async fn told_besides_beats(&self) -> String {
        loop {
            let said = self.told().await;
            if said.trim_end() != "WATCHDOG=1" {
                return said;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_of_start_beats_reload_and_end() {
    let manager = Manager::new();
    let mut server = Server::prepared(
        "",
        async |_| {},
        |serve| {
            serve.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "2000000");
        },
    )
    .await;
    assert_eq!(manager.told_besides_beats().await.trim_end(), "READY=1");

    // Twice in the interval, and not much sooner.
    let mut last: Option<Instant> = None;
    for _ in 0..3 {
        assert_eq!(manager.told().await.trim_end(), "WATCHDOG=1");
        let now = Instant::now();
        if let Some(last) = last {
            let gap = now - last;
            assert!(gap < Duration::from_secs(2), "{gap:?}");
        }
        last = Some(now);
    }
    let three = Instant::now();
    for _ in 0..3 {
        manager.told().await;
    }
    assert!(three.elapsed() > Duration::from_millis(1500), "{:?}", three.elapsed());

    for good in [true, false] {
        if !good {
            std::fs::write(server.dir.path().join("sallyport.toml"), "[server\n").unwrap();
        }
        server.signal(Signal::HUP);
        let said = manager.told_besides_beats().await;
        assert!(said.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said:?}");
        assert_eq!(manager.told_besides_beats().await.trim_end(), "READY=1", "{good}");
    }
    server.signal(Signal::TERM);
    assert_eq!(manager.told_besides_beats().await.trim_end(), "STOPPING=1");
    server.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_when_clients_are_greeted_and_not_before() {
    let (manager, dir, port) = (Manager::new(), tempfile::tempdir().unwrap(), free_port());
    let mut serve = serve_in(command(BINARY), dir.path());
    serve.env("NOTIFY_SOCKET", &manager.path).env("SALLYPORT_SERVER__LISTEN", listen(port));
    let mut child = serve.spawn().unwrap();
    assert_eq!(manager.told().await.trim_end(), "READY=1");
    let mut greeting = [0; 4];
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    timeout(PATIENCE, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"SSH-");
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).await.success());
}

/// `sallyport serve` in a folder of its own, by `program`.
fn serve_in(mut program: Command, dir: &Path) -> Command {
    program.arg("serve").current_dir(dir).env("SALLYPORT_SERVER__DRAIN", "\"1s\"");
    program.stdout(Stdio::null()).stderr(Stdio::null());
    program
}

fn listen(port: u16) -> String {
    format!("[\"127.0.0.1:{port}\"]")
}

/// systemd's tool, which opens sockets and starts the program at the first who comes.
fn activated(options: &[&str], dir: &Path) -> Command {
    let mut activate = command(tool("systemd-socket-activate"));
    activate.args(["-E", "SALLYPORT_SERVER__DRAIN", "-E", "SALLYPORT_SERVER__LISTEN"]);
    activate.args(options).arg(BINARY);
    let mut activate = serve_in(activate, dir);
    activate.env("SALLYPORT_SERVER__LISTEN", listen(1));
    activate
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_sockets_are_listened_on_in_place_of_the_configured_ones() {
    let (dir, taken) = (tempfile::tempdir().unwrap(), std::net::TcpListener::bind("127.0.0.1:0"));
    let taken = taken.unwrap().local_addr().unwrap().port();
    let ports = [free_port(), free_port()];
    let [one, two] = ports.map(|port| format!("--listen=127.0.0.1:{port}"));
    let mut activate = activated(&[&one, &two], dir.path());
    let mut child = activate.env("SALLYPORT_SERVER__LISTEN", listen(taken)).spawn().unwrap();
    for port in ports {
        speaks_ssh(port).await;
    }
    assert!(TcpStream::connect(("127.0.0.1", taken)).await.is_err());
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).await.success());
}

/// What it says that was started with sockets that are of no use, once `come` did.
async fn refused(options: &[&str], dir: &Path, come: impl AsyncFn() -> bool) -> Run {
    let mut activate = activated(options, dir);
    activate.stdout(Stdio::piped()).stderr(Stdio::piped());
    let comes = eventually("somebody came", async || come().await.then_some(()));
    tokio::join!(run(&mut activate), comes).0.failed()
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_cannot_be_served_are_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let options = format!("--listen={}", path.display());
    let come = async || UnixStream::connect(&path).await.is_ok();
    let ran = refused(&[&options], dir.path(), come).await;
    assert!(ran.err.contains("number 1 is no TCP socket; in the socket unit"), "{ran:?}");

    // One that is, and one that is not.
    let (port, other) = (free_port(), dir.path().join("other"));
    let options = [format!("--listen=127.0.0.1:{port}"), format!("--listen={}", other.display())];
    let come = async || UnixStream::connect(&other).await.is_ok();
    let ran = refused(&[&options[0], &options[1]], dir.path(), come).await;
    assert!(ran.err.contains("number 2 is no TCP socket"), "{ran:?}");
    assert!(!dir.path().join("sallyport-data/sallyport.db").exists(), "nothing was made");

    // Accept=yes: each connection for itself. The tool lives on, as it starts one for each.
    let port = free_port();
    let mut activate = activated(&["--accept", &format!("--listen=127.0.0.1:{port}")], dir.path());
    let log = dir.path().join("log");
    let mut tool = activate.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    listening(port).await;
    eventually("it says so", async || {
        let said = std::fs::read_to_string(&log).unwrap();
        said.contains("number 1 does not listen").then_some(())
    })
    .await;
    signal(&tool, Signal::TERM);
    ended(&mut tool).await;
}

/// A log is kept, and read by more people than may know the first password: the journal's, a container's.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_terminal_is_the_first_password_is_in_a_file_until_it_is_used() {
    for journal in [true, false] {
        is_in_a_file_until_it_is_used(journal).await;
    }
}

async fn is_in_a_file_until_it_is_used(journal: bool) {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let log = dir.path().join("log");
    let output = std::fs::File::create(&log).unwrap();
    let meta = output.metadata().unwrap();
    let start = || {
        let mut serve = serve_in(command(BINARY), dir.path());
        if journal {
            serve.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
        }
        serve.env("SALLYPORT_SERVER__LISTEN", listen(port));
        serve.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
        serve.spawn().unwrap()
    };
    let mut child = start();
    speaks_ssh(port).await;
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).await.success());

    let path = dir.path().join("sallyport-data/first-password");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let password = std::fs::read_to_string(&path).unwrap();
    assert_eq!(password.len(), 12);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("in the file sallyport-data/first-password"), "{said}");
    assert!(!said.contains(&password), "{said}");

    // It outlives a restart, and goes when the administrator chose another.
    let mut child = start();
    speaks_ssh(port).await;
    assert!(path.exists());
    let client = Client::on_port(port, "admin");
    let mut ssh = client.command("ssh", &["bastion"]);
    client.answers(&[&password, "an unusual teapot 7", "an unusual teapot 7"]);
    let mut ssh = ssh.spawn().unwrap();
    eventually("the first password's file is deleted", async || (!path.exists()).then_some(()))
        .await;
    ssh.kill().await.unwrap();
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).await.success());
}
