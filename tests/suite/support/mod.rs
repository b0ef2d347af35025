//! What the tests are made of: sandboxes, servers, clients, people.
//!
//! Always holds: every process that a test starts is ended by it, by its pid; a tool that is
//! missing is a failure, never a skipped test.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

pub mod bastion;
pub mod dialog;
pub mod filled;
pub mod freeradius;
pub mod hop;
pub mod journal;
pub mod keypair;
pub mod people;
pub mod played;
pub mod postgres;
pub mod radius_peer;
pub mod raw;
pub mod screen;
pub mod server;
pub mod ssh;
pub mod sshd;
pub mod ways;
pub mod wire;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

/// Runs each test once on SQLite and once on PostgreSQL.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::support::bastion::Engine::Sqlite).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::support::bastion::Engine::Postgres).await;
            })+
        }
    };
}
pub(crate) use on_both_engines;

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// How long what ends by itself may take to end.
pub const SOON: Duration = Duration::from_secs(5);

/// Where a tool is.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is not installed: run tests/run, which installs it"))
}

/// A command for `program` with nothing of the caller's terminal or agent.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LANG", "C.UTF-8")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Who runs the tests: the one account that an sshd of theirs lets in.
pub fn present_user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".into())
}

/// A free port on loopback.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `check` gives something; what it waits for has no event of its own.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_or(what, async || check().await.ok_or("nothing else is known")).await
}

/// As [`eventually`]; what `check` sees instead is told if it was in vain.
pub async fn eventually_or<T, E: std::fmt::Debug>(
    what: &str,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = match check().await {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        assert!(Instant::now() < deadline, "waited in vain until {what}; there is {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until something listens on `port`.
pub async fn listening(port: u16) {
    eventually("a port is listened on", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
}

/// Waits until an SSH server speaks on `port`: a bastion listens before it has made its store.
pub async fn speaks_ssh(port: u16) {
    use tokio::io::AsyncReadExt as _;
    eventually("an SSH server speaks", async || {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.ok().filter(|_| said == *b"SSH-").map(|_| ())
    })
    .await;
}

/// Waits for a child's end.
pub async fn ended(child: &mut Child) -> std::process::ExitStatus {
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("a process did not end").unwrap()
}

/// Sends a signal to a child.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(child.id().expect("it has ended")).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Makes `name.key` and `name.pem`: an authority, or a certificate for `names` that `by` signed.
pub async fn certificate(dir: &Path, name: &str, by: Option<&str>, names: &str) {
    let mut openssl = command(tool("openssl"));
    openssl.current_dir(dir).args("req -x509 -newkey ec -nodes -days 2".split(' '));
    openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", &format!("/CN={name}")]);
    openssl.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
    if let Some(by) = by {
        openssl.args(["-CA", &format!("{by}.pem"), "-CAkey", &format!("{by}.key")]);
        openssl.args(["-addext", "basicConstraints=CA:FALSE"]);
        openssl.args(["-addext", &format!("subjectAltName={names}")]);
    }
    let out = openssl.output().await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
