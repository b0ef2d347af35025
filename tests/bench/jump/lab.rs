//! The servers and the client: an sshd as the target, another as the jump host, and Sallyport.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;

use sallyport::clock::Clock;
use sallyport::domain::{TimeStep, UnixTime};
use tokio::process::{Child, Command};

use crate::support::people::{PASSWORD, Person, code_at};
use crate::support::server::Server;
use crate::support::sshd::Sshd;
use crate::support::{command, eventually, present_user, tool};
use crate::{Options, storm};

/// Attempts and connections are not held back; hashes cost what they do by default.
const CONFIG: &str = "[server]\npublic_host = \"localhost\"\npenalty_exempt = [\"127.0.0.0/8\"]\n\
    max_unauthenticated = 1000\nmax_connections = 20000\nmax_sessions_per_account = 20000\n[login]\nargon2_memory = \"19 MiB\"\n\
    argon2_passes = 2\nhash_queue = 1000\nattempts_per_minute = 1000000\nattempts_burst = 1000000\n";

/// A way to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Over sshd.
    Sshd,
    /// Over Sallyport, which passes the inner connection through.
    Tunnel,
    /// Over Sallyport, which records it.
    Record,
}

impl Way {
    /// The target's name in the client's configuration.
    pub fn target(self) -> &'static str {
        match self {
            Self::Sshd => "via-sshd",
            Self::Tunnel => "via-tunnel",
            Self::Record => "via-record",
        }
    }

    /// The jump host's.
    pub fn jump(self) -> &'static str {
        match self {
            Self::Sshd => "jump-sshd",
            Self::Tunnel | Self::Record => "jump-sallyport",
        }
    }
}

pub struct Lab {
    dir: tempfile::TempDir,
    pub target: Sshd,
    pub jump: Sshd,
    pub server: Server,
    /// Where [`crate::tunnel::serve`] listens.
    pub sink: u16,
    people: Vec<Person>,
    /// The step of the last code that each of them used.
    used: Mutex<HashMap<usize, TimeStep>>,
}

impl Lab {
    pub async fn start(options: &Options) -> Self {
        // At an address of its own for each mode: nobody may pass a recording by.
        let target = Sshd::start_with("MaxStartups 1000\nListenAddress 127.0.0.2").await;
        let jump = Sshd::start_with("MaxStartups 1000").await;
        let count = options.connections.iter().copied().max().unwrap_or(0).max(1000);
        let count = if options.wants("storm") { count.max(storm::CROWD + 20) } else { count };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let sink = listener.local_addr().unwrap().port();
        #[allow(clippy::disallowed_methods)] // It ends with the benchmark.
        tokio::spawn(crate::tunnel::serve(listener));
        let key = std::fs::read_to_string(target.path("id.pub")).unwrap();
        let mut people = Vec::new();
        let address = format!("127.0.0.1:{}", target.port);
        let server = Server::prepared(
            CONFIG,
            async |registry| {
                registry.target("tunnel", &address).await;
                registry.target("sink", &format!("127.0.0.1:{sink}")).await;
                for n in 0..count {
                    let name = format!("u{n}");
                    people.push(registry.person(&name).await);
                    registry.add_grant(&name, "tunnel", |_| {}).await;
                    registry.add_grant(&name, "sink", |_| {}).await;
                    // One key for everybody, as one machine has.
                    registry.key(&name, &key).await;
                }
            },
            |_| {},
        )
        .await;
        let dir = tempfile::tempdir().unwrap();
        let lab = Self { dir, target, jump, server, sink, people, used: Mutex::default() };
        lab.configure().await;
        lab
    }

    async fn configure(&self) {
        let user = present_user();
        for args in [
            &["target", "add", "record", &format!("127.0.0.2:{}", self.target.port)][..],
            &["target", "pin", "record"],
            &["grant", "add", "--user", "u0", "--target", "record"],
        ] {
            self.server.run(args).await.ok();
        }
        let args = ["target", "account", "add", "record", &user, "--auth", "key", "--secret-stdin"];
        let mut add = self.server.cli(&args);
        add.stdin(Stdio::from(std::fs::File::open(self.target.identity()).unwrap()));
        assert!(add.status().await.unwrap().success());
        let ask = self.path("ask");
        let script = "#!/bin/sh\ncase \"$1\" in *assword*) echo \"$BENCH_PASSWORD\";; *) echo \"$BENCH_CODE\";; esac\n";
        std::fs::write(&ask, script).unwrap();
        std::fs::set_permissions(&ask, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (key, jump_key) = (self.target.identity(), self.jump.identity());
        let (key, jump_key) = (key.display(), jump_key.display());
        let (direct, sshd, ours) = (self.target.port, self.jump.port, self.server.port);
        let config = format!(
            "Host direct\n HostName 127.0.0.1\n Port {direct}\n User {user}\n IdentityFile {key}\n\
             Host jump-sshd\n HostName 127.0.0.1\n Port {sshd}\n User {user}\n IdentityFile {jump_key}\n ControlPath {sockets}/%n.sock\n\
             Host jump-sallyport\n HostName 127.0.0.1\n Port {ours}\n User u0\n IdentityFile {key}\n ControlPath {sockets}/%n.sock\n\
             Host via-sshd\n HostName 127.0.0.1\n Port {direct}\n User {user}\n IdentityFile {key}\n ProxyJump jump-sshd\n\
             Host via-tunnel\n HostName tunnel\n User {user}\n IdentityFile {key}\n ProxyJump jump-sallyport\n\
             Host via-record\n HostName record\n User {user}\n IdentityFile none\n ProxyJump jump-sallyport\n\
             Host *\n UserKnownHostsFile {known}\n StrictHostKeyChecking no\n LogLevel ERROR\n IdentityAgent none\n \
             IdentitiesOnly yes\n GlobalKnownHostsFile none\n Include {extra}\n",
            sockets = self.dir.path().display(),
            known = self.path("known_hosts").display(),
            extra = self.path("extra").display(),
        );
        std::fs::write(self.path("config"), config).unwrap();
        self.prefer("aes128-gcm@openssh.com");
    }

    /// The cipher of all connections from now on.
    pub fn prefer(&self, cipher: &str) {
        let line = if cipher == "default" { String::new() } else { format!("Ciphers {cipher}\n") };
        std::fs::write(self.path("extra"), line).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ssh` with nothing to ask anybody.
    pub fn ssh(&self, args: &[&str]) -> Command {
        let mut ssh = command(tool("ssh"));
        ssh.arg("-F").arg(self.path("config")).args(args);
        ssh.env("SSH_ASKPASS", self.path("ask")).env("SSH_ASKPASS_REQUIRE", "force");
        ssh
    }

    /// `ssh` that signs in on Sallyport: as whom, and with which code.
    pub async fn ssh_as(&self, args: &[&str]) -> Command {
        let (user, code) = self.code().await;
        let mut ssh = self.ssh(&[&["-l", &user][..], args].concat());
        ssh.env("BENCH_PASSWORD", PASSWORD).env("BENCH_CODE", code);
        ssh
    }

    /// A connection to the jump host of `way`, which those to the target share from now on.
    pub async fn master(&self, way: Way) -> Child {
        let path = self.path(&format!("{}.sock", way.jump()));
        let mut ssh = self.ssh(&["-M", "-N", way.jump()]);
        self.sign_in(&mut ssh, way).await;
        let child = ssh.spawn().unwrap();
        eventually("the jump is up", async || path.exists().then_some(())).await;
        child
    }

    /// Lets `ssh` sign in on the jump host of `way`, as the one who is granted everything.
    pub async fn sign_in(&self, ssh: &mut Command, way: Way) {
        if way != Way::Sshd {
            ssh.env("BENCH_PASSWORD", PASSWORD).env("BENCH_CODE", self.code_of(0).await);
        }
    }

    /// Ends such a connection; its socket goes with it.
    pub async fn end(&self, mut master: Child) {
        crate::support::signal(&master, rustix::process::Signal::TERM);
        crate::support::ended(&mut master).await;
    }

    /// A command that leads `ssh` to `to` over a connection of its own to the jump host of `way`.
    pub async fn proxy(&self, way: Way, to: &str) -> String {
        let ssh = format!("{} -F {}", tool("ssh").display(), self.path("config").display());
        if way == Way::Sshd {
            return format!("{ssh} -S none -W {to} jump-sshd");
        }
        let (user, code) = self.code().await;
        let env = format!("env BENCH_PASSWORD='{PASSWORD}' BENCH_CODE={code}");
        format!("{env} {ssh} -S none -l {user} -W {to} jump-sallyport")
    }

    /// Whose code can be used now, and the code. Waits until there is one.
    pub async fn code(&self) -> (String, String) {
        loop {
            for n in 1..self.people.len() {
                if let Some(code) = self.try_code(n) {
                    return (format!("u{n}"), code);
                }
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }

    pub async fn code_of(&self, n: usize) -> String {
        loop {
            if let Some(code) = self.try_code(n) {
                return code;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }

    /// A code works once, and for one step longer than it is shown: time enough to use it.
    fn try_code(&self, n: usize) -> Option<String> {
        let step = TimeStep(Clock::System.now().0 / 30_000);
        let mut used = self.used.lock().unwrap();
        if used.get(&n).is_some_and(|last| *last >= step) {
            return None;
        }
        used.insert(n, step);
        Some(code_at(&self.people[n], UnixTime(step.0 * 30_000)))
    }

    /// The jump host's process.
    pub fn pid(&self, way: Way) -> u32 {
        match way {
            Way::Sshd => self.jump.pid(),
            Way::Tunnel | Way::Record => self.server.child.id().unwrap(),
        }
    }

    pub async fn stop(mut self) {
        self.server.signal(rustix::process::Signal::TERM);
        self.server.ends_well().await;
    }
}
