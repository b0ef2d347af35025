//! A private PostgreSQL on loopback. `initdb` is run once and its result copied, since it takes
//! longer than most tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::{certificate, command, ended, eventually, free_port};

pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    child: Child,
}

/// The password of its user `postgres`.
pub const PASSWORD: &str = "a-password-of-tests";

impl Postgres {
    pub async fn start() -> Self {
        Self::launch(false).await
    }

    /// Starts one that speaks TLS, with a certificate for `localhost` by an authority of its own.
    pub async fn with_tls() -> Self {
        Self::launch(true).await
    }

    /// The authority of its certificate, and one that it has nothing to do with.
    pub fn authorities(&self) -> [PathBuf; 2] {
        ["authority.pem", "stranger.pem"].map(|name| self.dir.path().join(name))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    async fn launch(tls: bool) -> Self {
        let bin = bin();
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        let template = template(&bin).await;
        run(command("/bin/cp").arg("-a").arg(&template).arg(dir.path().join("data"))).await;
        let mut settings = Vec::new();
        if tls {
            for (name, by) in
                [("authority", None), ("stranger", None), ("server", Some("authority"))]
            {
                certificate(dir.path(), name, by, "DNS:localhost").await;
            }
            let at = |name: &str| dir.path().join(name).display().to_string();
            let (cert, key) = (at("server.pem"), at("server.key"));
            let set = [("ssl", "on"), ("ssl_cert_file", &cert), ("ssl_key_file", &key)];
            settings.extend(set.map(|(name, value)| format!("--{name}={value}")));
        }
        own(dir.path()).await;
        let port = free_port();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = as_owner(bin.join("postgres"))
            .arg("-D")
            .arg(dir.path().join("data"))
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=60"])
            .args(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let server = Self { dir, bin, port, child };
        eventually("PostgreSQL answers", async || {
            let mut psql = server.psql("SELECT 1");
            psql.stdout(Stdio::null()).stderr(Stdio::null());
            psql.status().await.unwrap().success().then_some(())
        })
        .await;
        server
    }

    /// Its URL, without the password.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn psql(&self, sql: &str) -> Command {
        let mut psql = command(self.bin.join("psql"));
        psql.arg("-X").arg("-q").arg("-c").arg(sql).arg(self.url()).env("PGPASSWORD", PASSWORD);
        psql
    }

    /// Runs SQL as the database's owner, as somebody who tampers would.
    pub async fn execute(&self, sql: &str) {
        run(&mut self.psql(sql)).await;
    }
}

impl Drop for Postgres {
    /// Ends it at once and lets it take its children along, which a kill would not.
    fn drop(&mut self) {
        let Some(pid) = self.child.id() else { return };
        let data = self.dir.path().join("data");
        let mut stop = std::process::Command::new(self.bin.join("pg_ctl"));
        stop.args(["-s", "-w", "-m", "immediate", "stop"]).arg("-D").arg(&data);
        if is_root() {
            let mut by_owner = std::process::Command::new("runuser");
            by_owner.args(["-u", "postgres", "--"]).arg(self.bin.join("pg_ctl"));
            by_owner.args(["-s", "-w", "-m", "immediate", "stop"]).arg("-D").arg(&data);
            stop = by_owner;
        }
        let stopped = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(
            stopped.is_ok_and(|s| s.success()) || std::thread::panicking(),
            "postgres {pid} goes on"
        );
    }
}

fn bin() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is not installed: run tests/run, which installs it")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL's server is not installed: run tests/run, which installs it")
}

/// The cluster that all are copied from, made once for each version.
async fn template(bin: &Path) -> PathBuf {
    let version = bin.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let done = base.join(format!("postgres-{version}"));
    let lock = std::fs::File::create(base.join("postgres.lock")).unwrap();
    lock.lock().unwrap();
    if !done.exists() {
        let work = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        let password = work.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        own(work.path()).await;
        run(as_owner(bin.join("initdb"))
            .arg("-D")
            .arg(work.path().join("data"))
            .args(["-U", "postgres", "-A", "scram-sha-256", "-N", "-E", "UTF8", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", password.display()))
            .stdout(Stdio::null()))
        .await;
        run(command("/bin/cp").arg("-a").arg(work.path().join("data")).arg(&done)).await;
    }
    lock.unlock().unwrap();
    done
}

/// Whether root runs the tests.
pub fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// PostgreSQL does not run as root.
fn as_owner(program: PathBuf) -> Command {
    if !is_root() {
        return command(program);
    }
    let mut by_owner = command("/sbin/runuser");
    by_owner.args(["-u", "postgres", "--"]).arg(program).current_dir("/tmp");
    by_owner
}

/// Gives a folder to the user `postgres`, if root runs the tests.
pub async fn own(dir: &Path) {
    if is_root() {
        run(command("/bin/chown").arg("-R").arg("postgres").arg(dir)).await;
    }
}

async fn run(command: &mut Command) {
    let status = ended(&mut command.spawn().unwrap()).await;
    assert!(status.success(), "{command:?}: {status}");
}
