//! The ways to a target and the clients that go them, so that one test compares them all.
//!
//! Always holds: a way is a host in the client's `ssh_config` and a saved session of PuTTY's, by
//! the same name; what is run on it is what would be run on any other.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::bastion::{PASSWORD, TestBastion};
use super::hop::{Hop, NOTICE, Ran, fed, feed};
use super::screen::Screen;
use super::ssh::Client;
use super::sshd::Sshd;
use super::{PATIENCE, command, ended, eventually, present_user, tool};

/// A way to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To its sshd itself.
    Direct,
    /// `ssh -J bastion db1`
    Jump,
    /// `ssh alice+root@db1@bastion`
    Selector,
}

/// The ways through the bastion.
pub const ENTRANCES: [Way; 2] = [Way::Jump, Way::Selector];

impl Way {
    /// The host, or the saved session, that leads there.
    pub fn host(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Jump => "via",
            Self::Selector => "chosen",
        }
    }
}

/// An SSH client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    OpenSsh,
    Plink,
}

/// The clients.
pub const PROGRAMS: [Program; 2] = [Program::OpenSsh, Program::Plink];

/// A client of alice's on a way to the target.
#[derive(Clone)]
pub struct Reach<'a> {
    pub hop: &'a Hop,
    pub program: Program,
    pub way: Way,
    /// What it finds in its environment.
    env: Vec<(&'static str, String)>,
}

impl std::fmt::Debug for Reach<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} by {:?}", self.program, self.way)
    }
}

/// What PuTTY says of its own, and around what a server says before somebody is in.
const FRAMES: [&str; 2] = [
    "-- Pre-authentication banner message from server: ----------------------------\r\n\
     | This session is recorded.\n\
     -- End of banner message from server -----------------------------------------\r\n",
    "\n-- End of keyboard-interactive prompts from server ---------------------------\r\n",
];

impl Hop {
    pub fn reach(&self, program: Program, way: Way) -> Reach<'_> {
        Reach { hop: self, program, way, env: Vec::new() }
    }

    /// Every client on every way through the bastion.
    pub fn reaches(&self) -> impl Iterator<Item = Reach<'_>> {
        let programs = PROGRAMS.into_iter();
        programs.flat_map(|program| ENTRANCES.map(|way| self.reach(program, way)))
    }

    /// Every client on every way, the direct one first.
    pub fn all_reaches(&self) -> impl Iterator<Item = Reach<'_>> {
        PROGRAMS.into_iter().map(|program| self.reach(program, Way::Direct)).chain(self.reaches())
    }

    /// Prepares alice's answers for a program that signs in on this way.
    pub fn sign_in_on(&self, way: Way) {
        if way == Way::Selector {
            self.client.answers(&[PASSWORD, &self.bastion.code(&self.alice)]);
        }
    }
}

impl Reach<'_> {
    /// With something in its environment.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// The client itself.
    fn shell(&self) -> &'static str {
        match self.program {
            Program::OpenSsh => "ssh",
            Program::Plink => "plink",
        }
    }

    /// A tool of the client's with these arguments, `HOST` at their beginning being the target.
    pub fn command(&self, tool_name: &str, args: &[&str]) -> Command {
        let args: Vec<String> = args
            .iter()
            .map(|arg| match arg.strip_prefix("HOST") {
                Some(rest) if rest.is_empty() || rest.starts_with(':') => {
                    format!("{}{rest}", self.way.host())
                }
                _ => (*arg).to_owned(),
            })
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = match self.program {
            Program::OpenSsh => self.hop.client.command(tool_name, &args),
            Program::Plink => {
                let mut env = command(tool("env"));
                let home = format!("HOME={}", self.hop.client.path("").display());
                env.arg(home).arg(tool(tool_name)).arg("-noagent");
                if tool_name == "plink" {
                    env.arg("-no-antispoof");
                }
                env.args(args);
                env
            }
        };
        command.env("TERM", "xterm-256color");
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        command
    }

    /// Starts it, signed in; its standard input is the session's.
    pub async fn start(&self, args: &[&str]) -> Child {
        self.start_tool(self.shell(), args).await
    }

    /// The same with `scp` or whatever else signs in as the client does.
    pub async fn start_tool(&self, tool_name: &str, args: &[&str]) -> Child {
        let mut command = self.command(tool_name, args);
        if self.program == Program::OpenSsh || self.way != Way::Selector {
            self.hop.sign_in_on(self.way);
            return piped(&mut command).spawn().unwrap();
        }
        // Without a terminal PuTTY asks on its standard input, and takes in all that is there.
        let mut apart = super::command(tool("setsid"));
        apart.arg("--wait").arg(command.as_std().get_program()).args(command.as_std().get_args());
        apart.envs(self.env.iter().map(|(name, value)| (*name, value)));
        let mut child = piped(&mut apart).spawn().unwrap();
        let before = self.hop.bastion.kinds("signed-in").await.len();
        for (prompt, answer) in
            [("Password: ", PASSWORD), ("6-digit code: ", &self.hop.bastion.code(&self.hop.alice))]
        {
            said(child.stderr.as_mut().unwrap(), prompt).await;
            let line = format!("{answer}\n");
            child.stdin.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
        }
        eventually("alice is in", async || {
            (self.hop.bastion.kinds("signed-in").await.len() > before).then_some(())
        })
        .await;
        child
    }

    /// Runs it to its end. The notice is left out of what it says, and PuTTY's frame around it.
    pub async fn run(&self, args: &[&str], input: &[u8]) -> Ran {
        self.run_tool(self.shell(), args, input).await
    }

    /// The same with another tool.
    pub async fn run_tool(&self, tool_name: &str, args: &[&str], input: &[u8]) -> Ran {
        let child = self.start_tool(tool_name, args).await;
        let mut ran = feed(child, input, &format!("{self:?} {args:?}")).await;
        if let Some(rest) = ran.out.strip_prefix(NOTICE.as_bytes()) {
            assert_eq!(self.way, Way::Selector, "{args:?}");
            ran.out = rest.to_vec();
        }
        for frame in FRAMES {
            ran.err = ran.err.replace(frame, "");
        }
        let lines = ran.err.split_inclusive('\n');
        ran.err = lines.filter(|line| !line.starts_with("Using username ")).collect();
        ran
    }

    /// Runs it in a terminal, signed in.
    pub async fn screen(&self, args: &[&str]) -> Screen {
        let mut screen = Screen::run(&self.command(self.shell(), args));
        if self.way == Way::Selector {
            screen.expect("Password: ").await;
            screen.type_line(PASSWORD).await;
            screen.expect("6-digit code: ").await;
            screen.type_line(&self.hop.bastion.code(&self.hop.alice)).await;
        }
        screen
    }
}

fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Waits until a program says `text`, which is the last that it says for now.
async fn said(stream: &mut (impl AsyncRead + Unpin), text: &str) {
    let (mut seen, mut buffer) = (String::new(), [0; 256]);
    while !seen.ends_with(text) {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let read = read.unwrap_or_else(|_| panic!("no {text:?} came, but {seen:?}")).unwrap();
        assert!(read > 0, "no {text:?} came, but {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

/// Writes PuTTY's saved sessions, the same ways as in the client's `ssh_config`.
pub async fn save_sessions(client: &Client, bastion: &TestBastion, sshd: &Sshd) {
    let folder = client.path(".putty/sessions");
    std::fs::create_dir_all(&folder).unwrap();
    let ppk = client.path("id.ppk");
    let mut puttygen = command(tool("puttygen"));
    puttygen.arg(sshd.identity()).args(["-O", "private", "-o"]).arg(&ppk);
    assert!(ended(&mut puttygen.spawn().unwrap()).await.success());
    let user = present_user();
    let common = "Protocol=ssh\nTerminalType=xterm-256color\nTryAgent=0\n\
                  Environment=LC_X=one:two\nRekeyBytes=1M\n";
    let save = |way: Way, lines: String| {
        std::fs::write(folder.join(way.host()), format!("{common}{lines}\n")).unwrap();
    };
    let direct = fingerprint(&sshd.path("host.pub")).await;
    save(
        Way::Direct,
        format!(
            "HostName=127.0.0.1\nPortNumber={}\nUserName={user}\nPublicKeyFile={}\n\
             SSHManualHostKeys={direct}",
            sshd.port,
            ppk.display(),
        ),
    );
    let proxy = format!("ssh -F {} -W %host:%port bastion", client.path("config").display());
    save(
        Way::Jump,
        format!(
            "HostName=db1\nPortNumber=22\nUserName={user}\nProxyMethod=5\nProxyTelnetCommand={proxy}"
        ),
    );
    let ours = fingerprint(&bastion.path("data/host_key")).await;
    save(
        Way::Selector,
        format!(
            "HostName=127.0.0.1\nPortNumber={}\nUserName=alice+{user}@db1\nSSHManualHostKeys={ours}",
            bastion.port,
        ),
    );
    // The authority that vouches for the keys that the bastion shows in a target's place.
    let authorities = client.path(".putty/sshhostcas");
    std::fs::create_dir_all(&authorities).unwrap();
    let ca = bastion.bastion.relay.host_ca.public_key().to_openssh().unwrap();
    let blob = ca.split(' ').nth(1).unwrap();
    let lines = format!("PublicKey={blob}\nValidity=db*\n");
    std::fs::write(authorities.join("bastion"), lines).unwrap();
}

/// "SHA256:..." of a key in a file.
async fn fingerprint(key: &Path) -> String {
    let mut keygen = command(tool("ssh-keygen"));
    let ran = fed(keygen.arg("-l").arg("-f").arg(PathBuf::from(key)), b"").await.ok();
    ran.text().split(' ').nth(1).unwrap().to_owned()
}
