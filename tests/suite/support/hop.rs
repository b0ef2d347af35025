//! `ssh -J bastion db1` with db1 in record mode, and the same sshd reached directly.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use sallyport::clock::Clock;
use sallyport::domain::{Grant, UnixTime};
use sallyport::recording::Header;
use sallyport::recording::asciicast::{Kind, Reader};
use sallyport::store::RecordingRow;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::bastion::{Engine, PASSWORD, Person, TestBastion};
use super::ssh::Client;
use super::sshd::Sshd;
use super::ways::Way;
use super::{PATIENCE, command, ended, eventually, present_user, tool};

/// What people are told before a recorded session.
pub const NOTICE: &str = "This session is recorded.\r\n";

/// The cipher that costs least without the compiler's optimizations.
const QUICK: &str = "Ciphers ^aes128-gcm@openssh.com";

/// A bastion, an sshd as its target `db1` in record mode, and alice, signed in on the bastion.
/// To her `ssh`, `via` is the target through the bastion and `direct` the target itself.
pub struct Hop {
    pub client: Client,
    /// The connection that all hops go through; ends before the bastion does.
    master: Child,
    pub bastion: TestBastion,
    pub sshd: Sshd,
    pub alice: Person,
}

/// What a program did, byte for byte.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    /// Without the notice, and with one name for the target.
    pub err: String,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}: {}", self.text(), self.err);
        self
    }

    pub fn failed(self) -> Self {
        assert_ne!(self.code, Some(0), "{}: {}", self.text(), self.err);
        self
    }
}

impl Hop {
    pub async fn start() -> Self {
        Self::granting(|_| {}).await
    }

    /// With a grant as `change` makes it.
    pub async fn granting(change: impl FnOnce(&mut Grant)) -> Self {
        Self::start_with("", "", change).await
    }

    /// Where alice may sign in anew as often as she wants to: each time the bastion's clock moves
    /// on to the next code, and a client believes in the bastion's certificates only if that clock
    /// is not ahead of its own.
    pub async fn roomy(conf: &str, change: impl FnOnce(&mut Grant)) -> Self {
        let start = UnixTime(Clock::System.now().0 - 12 * 3600 * 1000);
        let bastion = TestBastion::start_at(start, Engine::Sqlite, "").await;
        let sshd = Sshd::start_with(conf).await;
        bastion.record_target("db1", &sshd).await;
        Self::around(bastion, sshd, change).await
    }

    /// With `config` in the bastion's configuration and `conf` in the sshd's.
    pub async fn start_with(config: &str, conf: &str, change: impl FnOnce(&mut Grant)) -> Self {
        let bastion = TestBastion::start_with(Engine::Sqlite, config).await;
        let sshd = Sshd::start_with(conf).await;
        bastion.record_target("db1", &sshd).await;
        Self::around(bastion, sshd, change).await
    }

    /// With a target `db1` that was registered by the caller.
    pub async fn around(bastion: TestBastion, sshd: Sshd, change: impl FnOnce(&mut Grant)) -> Self {
        let alice = bastion.person("alice").await;
        bastion.add_grant("alice", "db1", change).await;
        let client = Client::new(&bastion, "alice");
        let known = client.path("known_targets");
        let ca = bastion.bastion.relay.host_ca.public_key().to_openssh().unwrap();
        let direct = format!("[127.0.0.1]:{} {}", sshd.port, sshd.host_key());
        std::fs::write(&known, format!("@cert-authority * {ca}\n{direct}")).unwrap();
        let (user, known) = (present_user(), known.display().to_string());
        let strict = format!(
            "User {user}\nUserKnownHostsFile {known}\nStrictHostKeyChecking yes\nLogLevel INFO\n{QUICK}"
        );
        let chosen = format!(
            "HostName 127.0.0.1\nPort {}\nUser alice+{user}@db1\nHostKeyAlias bastion\n\
             UserKnownHostsFile {known}\nStrictHostKeyChecking yes\nLogLevel INFO\n{QUICK}",
            bastion.port
        );
        let control = client.path("control");
        let client = client
            .host("via", &format!("HostName db1\nProxyJump bastion\n{strict}"))
            .host(
                "direct",
                &format!(
                    "HostName 127.0.0.1\nPort {}\nIdentityFile {}\n{strict}",
                    sshd.port,
                    sshd.identity().display()
                ),
            )
            .host("chosen", &chosen)
            .host("bastion", &format!("{QUICK}\nControlPath {}", control.display()));
        client.answers(&[PASSWORD, &bastion.code(&alice)]);
        let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
        let master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        super::ways::save_sessions(&client, &bastion, &sshd).await;
        eventually("the outer connection is up", async || control.exists().then_some(())).await;
        Self { client, master, bastion, sshd, alice }
    }

    /// `ssh` with these arguments, `HOST` in them being the target: through the bastion and
    /// directly.
    pub async fn both(&self, args: &[&str], input: &[u8]) -> (Ran, Ran) {
        let at = |host: &'static str| {
            let word =
                move |arg: &&str| if *arg == "HOST" { host.to_owned() } else { (*arg).to_owned() };
            args.iter().map(word).collect::<Vec<String>>()
        };
        let run = async |args: Vec<String>| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            fed(&mut self.command(&args), input).await
        };
        (run(at("via")).await, run(at("direct")).await)
    }

    /// An `ssh` of alice's, in a terminal of the kind `xterm-256color`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.client.command("ssh", args);
        command.env("TERM", "xterm-256color");
        command
    }

    /// Runs `ssh` to its end.
    pub async fn ssh(&self, args: &[&str]) -> Ran {
        fed(&mut self.command(args), b"").await
    }

    /// Starts `ssh` and waits until it says the line `up`; hold its input to keep it.
    pub async fn running(&self, args: &[&str]) -> Child {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        let read = child.stdout.as_mut().unwrap().read_exact(&mut up);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        assert_eq!(&up, b"up\n");
        child
    }

    /// A connection to the target through the bastion that carries many sessions: `-S` its path.
    pub async fn shared(&self, options: &[&str]) -> (Child, String) {
        self.shared_on(Way::Jump, options).await
    }

    /// The same on another way.
    pub async fn shared_on(&self, way: Way, options: &[&str]) -> (Child, String) {
        let path = self.client.path("shared").display().to_string();
        let args = [options, &["-M", "-N", "-S", &path, way.host()]].concat();
        self.sign_in_on(way);
        let child = self.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let file = PathBuf::from(&path);
        eventually("the inner connection is up", async || file.exists().then_some(())).await;
        (child.unwrap(), path)
    }

    /// Every recording so far, oldest first.
    pub async fn recordings(&self) -> Vec<RecordingRow> {
        let mut rows = self.bastion.store().recordings().await.unwrap();
        rows.sort_by_key(|row| row.started_at);
        rows
    }

    /// The recording of the command `command`, once it ended.
    pub async fn recorded(&self, command: &str) -> Cast {
        let row = eventually(&format!("the recording of {command:?} ended"), async || {
            let rows = self.recordings().await;
            rows.into_iter()
                .find(|row| row.command.as_deref() == Some(command) && row.ended_at.is_some())
        })
        .await;
        self.cast(row)
    }

    pub fn cast(&self, row: RecordingRow) -> Cast {
        let path = self.bastion.path("data/recordings").join(&row.path);
        let (header, events) = read(&path);
        Cast { row, path, header, events }
    }

    /// Ends the outer connection.
    pub async fn leave(&mut self) {
        self.client.ssh(&["-O", "exit", "bastion"]).await.ok();
        ended(&mut self.master).await;
    }

    /// The event that tells that `what` was refused.
    pub async fn refused(&self, what: &str) -> Value {
        let fields = [("user", "alice"), ("what", what), ("reason", "not-granted")];
        self.bastion.event("use-refused", &fields).await
    }
}

/// A real agent with one key.
pub struct Agent {
    pub process: Child,
    socket: PathBuf,
}

impl Agent {
    pub async fn start(hop: &Hop) -> Self {
        let socket = hop.client.path("agent.sock");
        let mut process = command(tool("ssh-agent"));
        let process = process.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null());
        let process = process.spawn().unwrap();
        let listens = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        eventually("the agent listens", async || listens().then_some(())).await;
        let mut add = command(tool("ssh-add"));
        add.arg("-q").arg(hop.sshd.identity()).env("SSH_AUTH_SOCK", &socket);
        assert!(ended(&mut add.spawn().unwrap()).await.success());
        Self { process, socket }
    }

    pub fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    pub fn option(&self) -> String {
        format!("IdentityAgent={}", self.socket())
    }
}

/// A recording's row and content.
pub struct Cast {
    pub row: RecordingRow,
    pub path: PathBuf,
    pub header: Header,
    pub events: Vec<Kind>,
}

impl Cast {
    pub fn output(&self) -> String {
        self.text(|kind| match kind {
            Kind::Output(text) => Some(text),
            _ => None,
        })
    }

    pub fn input(&self) -> String {
        self.text(|kind| match kind {
            Kind::Input(text) => Some(text),
            _ => None,
        })
    }

    fn text(&self, of: impl Fn(&Kind) -> Option<&String>) -> String {
        self.events.iter().filter_map(of).map(String::as_str).collect()
    }
}

/// What a recording's file holds so far.
pub fn read(path: &Path) -> (Header, Vec<Kind>) {
    let mut reader = Reader::open(path).unwrap();
    let events = std::iter::from_fn(|| reader.next_event().unwrap()).map(|event| event.kind);
    let events = events.collect();
    (reader.header().clone(), events)
}

/// Runs a command with `input` on its standard input to its end.
pub async fn fed(command: &mut Command, input: &[u8]) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    feed(child, input, &format!("{command:?}")).await
}

/// The same with what runs already, as `what`.
pub async fn feed(mut child: Child, input: &[u8], what: &str) -> Ran {
    let mut stdin = child.stdin.take().unwrap();
    let feed = async move {
        // A program may end before it read everything.
        if stdin.write_all(input).await.is_ok() {
            stdin.shutdown().await.ok();
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let done = tokio::time::timeout(PATIENCE, both).await;
    let done = done.unwrap_or_else(|_| panic!("{what} did not end")).unwrap();
    let err = String::from_utf8_lossy(&done.stderr).replace(NOTICE, "");
    let err = err.replace("Connection to db1 ", "Connection to 127.0.0.1 ");
    Ran { code: done.status.code(), out: done.stdout, err }
}
