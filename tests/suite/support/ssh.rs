//! The real OpenSSH client, with a configuration of the test's own and prepared answers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::bastion::TestBastion;
use super::sshd::Sshd;
use super::{PATIENCE, command, present_user, tool};

/// One person's client: a folder with a configuration, answers and what was asked.
pub struct Client {
    dir: tempfile::TempDir,
    config: String,
}

impl Client {
    /// A client that reaches the bastion as `bastion`, signing in as `user`.
    pub fn new(bastion: &TestBastion, user: &str) -> Self {
        Self::on_port(bastion.port, user)
    }

    pub fn on_port(port: u16, user: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ask = dir.path().join("ask");
        // Each question takes the next line of the answers and is written down.
        let script = format!(
            "#!/bin/sh\ncd {dir} || exit 1\nprintf '%s\\n--\\n' \"$1\" >> asked\nhead -n 1 answers\nsed -i 1d answers\n",
            dir = dir.path().display(),
        );
        std::fs::write(&ask, script).unwrap();
        std::fs::set_permissions(&ask, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(dir.path().join("answers"), "").unwrap();
        let config = format!(
            "Host bastion\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n  IdentityFile none\n\
             Host *\n  UserKnownHostsFile {known}\n  StrictHostKeyChecking accept-new\n\
             IdentityAgent none\n  IdentitiesOnly yes\n  ConnectTimeout 20\n  GlobalKnownHostsFile none\n",
            known = dir.path().join("known_hosts").display(),
        );
        let client = Self { dir, config };
        client.write_config();
        client
    }

    fn write_config(&self) {
        std::fs::write(self.path("config"), &self.config).unwrap();
    }

    /// Lines of configuration for one host, before all others.
    pub fn host(mut self, name: &str, lines: &str) -> Self {
        self.config = format!("Host {name}\n  {}\n{}", lines.replace('\n', "\n  "), self.config);
        self.write_config();
        self
    }

    /// Knows how to sign in on a target.
    pub fn knows(self, target: &str, sshd: &Sshd) -> Self {
        let (user, identity) = (present_user(), sshd.identity());
        self.host(target, &format!("User {user}\nIdentityFile {}", identity.display()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What to answer to the next questions.
    pub fn answers(&self, answers: &[&str]) -> &Self {
        let text: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
        std::fs::write(self.path("answers"), text).unwrap();
        std::fs::write(self.path("asked"), "").unwrap();
        self
    }

    /// The questions that were asked since [`Self::answers`].
    pub fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("asked")).unwrap_or_default();
        text.split("\n--\n").filter(|q| !q.is_empty()).map(str::to_owned).collect()
    }

    /// `ssh` or a program that takes the same `-F`, with prepared answers.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = command(tool(program));
        command
            .arg("-F")
            .arg(self.path("config"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.answer_for(&mut command);
        command
    }

    /// Lets an `ssh` that a program starts take the prepared answers.
    pub fn answer_for(&self, command: &mut Command) {
        command.env("SSH_ASKPASS", self.path("ask")).env("SSH_ASKPASS_REQUIRE", "force");
    }

    /// Starts `ssh` with something at its other end that sends lines back.
    pub fn echo(&self, args: &[&str]) -> Echo {
        Echo::by(&mut self.command("ssh", args))
    }

    /// Runs `ssh` to its end.
    pub async fn ssh(&self, args: &[&str]) -> Run {
        run(&mut self.command("ssh", args)).await
    }

    pub async fn run(&self, program: &str, args: &[&str]) -> Run {
        run(&mut self.command(program, args)).await
    }
}

/// An `ssh` to something that sends back each line; that ends with its input.
pub struct Echo {
    pub child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Echo {
    /// By a command whose output is piped.
    pub fn by(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input: Some(input), output: BufReader::new(output) }
    }

    /// Sends a line; whether it came back.
    pub async fn try_say(&mut self, text: &str) -> bool {
        let sent = self.input.as_mut().unwrap().write_all(format!("{text}\n").as_bytes()).await;
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.output.read_line(&mut line)).await;
        read.expect("no line came back").unwrap();
        sent.is_ok() && line.trim_end() == text
    }

    /// Whether the other end is an SSH server, and says so.
    pub async fn greets(&mut self) -> bool {
        let mut bytes = [0; 8];
        let read = self.output.read_exact(&mut bytes);
        let read = tokio::time::timeout(PATIENCE, read).await.expect("nothing came");
        read.is_ok() && &bytes == b"SSH-2.0-"
    }

    pub async fn say(&mut self, text: &str) {
        assert!(self.try_say(text).await, "{text:?} did not come back");
    }

    /// Ends the input.
    pub fn hang_up(&mut self) {
        self.input = None;
    }

    /// Waits for its end.
    pub async fn end(mut self) -> Run {
        let (mut out, mut err) = (String::new(), String::new());
        let end = async {
            self.child.stderr.as_mut().unwrap().read_to_string(&mut err).await.unwrap();
            self.output.read_to_string(&mut out).await.unwrap();
            self.child.wait().await.unwrap()
        };
        let status = tokio::time::timeout(PATIENCE, end).await.expect("ssh did not end");
        Run { code: status.code(), out, err }
    }
}

/// What a program did.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    pub fn failed(self) -> Self {
        assert_ne!(self.code, Some(0), "{self:?}");
        self
    }
}

/// Runs a command to its end.
pub async fn run(command: &mut Command) -> Run {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let Output { status, stdout, stderr } = output.expect("a command did not end").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Run { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// SHA-256 of a file.
pub fn digest(path: &Path) -> String {
    sallyport::audit::chain::hex_sha256(&std::fs::read(path).unwrap())
}
