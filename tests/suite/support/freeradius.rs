//! A private FreeRADIUS on loopback, configured by `tests/freeradius`, and the phones of its users.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use sallyport::radius::{Server, Tls};
use tokio::process::Child;

use super::{command, ended, eventually, free_port, signal, tool};

/// The secret that it shares over UDP.
pub const SECRET: &str = "testing-123";

/// Its users: name, password and the secret of the authenticator app, as in `tests/freeradius/users`.
pub const GINA: [&str; 3] = ["gina", "pw of gina", "JBSWY3DPEHPK3PXP"];
pub const ALICE: [&str; 3] = ["alice", "pw of alice", "MFWGSY3FMFWGSY3F"];
pub const FRED: [&str; 3] = ["fred", "pw of fred", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"];

/// Its virtual servers, one file each in `tests/freeradius`.
const VARIANTS: [&str; 6] = ["ASKS", "BASTION", "CODE", "OLD", "ROUNDS", "RADSEC"];

pub struct FreeRadius {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    child: Child,
}

impl FreeRadius {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certify(dir.path()).await;
        // Somebody may take a port between its choice and its use.
        for _ in 0..5 {
            let ports: Vec<u16> = VARIANTS.iter().map(|_| free_udp_port()).collect();
            if let Some(child) = launch(dir.path(), &ports).await {
                return Self { dir, ports, child };
            }
        }
        panic!("{}", log(dir.path()));
    }

    /// Ends it and starts it again, on the same ports.
    pub async fn restart(&mut self) {
        signal(&self.child, Signal::KILL);
        ended(&mut self.child).await;
        let started = launch(self.dir.path(), &self.ports).await;
        self.child = started.unwrap_or_else(|| panic!("{}", log(self.dir.path())));
    }

    /// Stops it where it stands: it hears no more, but its ports stay open.
    pub fn freeze(&self) {
        signal(&self.child, Signal::STOP);
    }

    pub fn thaw(&self) {
        signal(&self.child, Signal::CONT);
    }

    pub fn port(&self, variant: &str) -> u16 {
        self.ports[VARIANTS.iter().position(|known| *known == variant).unwrap()]
    }

    /// One of its virtual servers, as the client knows it.
    pub fn server(&self, name: &str, variant: &str) -> Server {
        let address = format!("127.0.0.1:{}", self.port(variant));
        // Long enough for a busy machine, and nothing waits for it where there is an answer.
        Server { timeout: Duration::from_secs(20), ..Server::udp(name, &address, SECRET.into()) }
    }

    /// Its virtual server over TLS.
    pub fn tls_server(&self, name: &str) -> Server {
        let tls = Tls {
            ca_file: self.file("ca.pem"),
            certificate_file: self.file("client.pem"),
            key_file: self.file("client.key"),
            server_name: None,
        };
        let address = format!("localhost:{}", self.port("RADSEC"));
        Server { timeout: Duration::from_secs(20), ..Server::tls(name, &address, tls) }
    }

    /// One of its virtual servers, as a bastion's configuration names it.
    pub fn configured(&self, name: &str, variant: &str) -> String {
        configured(name, self.port(variant), &self.file("secret"))
    }

    /// Its virtual server over TLS, as a bastion's configuration names it, with this client's certificate.
    pub fn configured_tls(&self, name: &str, client: &str) -> String {
        let (port, dir) = (self.port("RADSEC"), self.dir.path().display());
        format!(
            "[[radius.server]]\nname = \"{name}\"\naddress = \"localhost:{port}\"\n\
             transport = \"tls\"\nca_file = \"{dir}/ca.pem\"\ntimeout = \"15s\"\n\
             certificate_file = \"{dir}/{client}.pem\"\nkey_file = \"{dir}/{client}.key\"\n"
        )
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has written since it was started last.
    pub fn log(&self) -> String {
        log(self.dir.path())
    }
}

/// Starts it and waits until it is ready; nothing if it ended before that.
async fn launch(dir: &Path, ports: &[u16]) -> Option<Child> {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freeradius");
    let mut freeradius = command(tool("freeradius"));
    for (variant, port) in VARIANTS.iter().zip(ports) {
        freeradius.env(variant, port.to_string());
    }
    let out = std::fs::File::create(dir.join("log")).unwrap();
    let mut child = freeradius
        .env("LAB", dir)
        .env("CONF", &config)
        .env("SECRET", SECRET)
        .arg("-fxx")
        .args(["-l", "stdout", "-d"])
        .arg(&config)
        .stderr(Stdio::from(out.try_clone().unwrap()))
        .stdout(Stdio::from(out))
        .spawn()
        .unwrap();
    let ready = eventually("FreeRADIUS is ready", async || {
        if child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        log(dir).contains("Ready to process requests").then_some(true)
    })
    .await;
    ready.then_some(child)
}

fn log(dir: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(dir.join("log")).unwrap()).into_owned()
}

/// A port that is free for UDP and for TCP.
fn free_udp_port() -> u16 {
    loop {
        let port = free_port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// An authority, a server's and a client's certificate, and a client's by another authority.
async fn certify(dir: &Path) {
    for (name, by) in [
        ("ca", None),
        ("server", Some("ca")),
        ("client", Some("ca")),
        ("other-ca", None),
        ("stranger", Some("other-ca")),
    ] {
        super::certificate(dir, name, by, "DNS:localhost,DNS:radius.example").await;
    }
}

/// A server in a bastion's configuration, with its secret written to a file.
pub fn configured(name: &str, port: u16, secret: &Path) -> String {
    sallyport::keys::replace_secret(secret, SECRET.as_bytes()).unwrap();
    let secret = secret.display();
    format!(
        "[[radius.server]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n\
         secret_file = \"{secret}\"\ntimeout = \"15s\"\n"
    )
}

/// The same, with time left to type it: FreeRADIUS knows only the present one.
pub async fn fresh_code(secret: &str) -> String {
    use sallyport::clock::Clock;
    // Not in its first second: what `time()` tells oathtool lags by a tick of the kernel behind the
    // clock that is read here, so that it could still show the code before.
    super::eventually("a code is young", async || {
        (1..6).contains(&(Clock::System.now().seconds() % 30)).then_some(())
    })
    .await;
    code(secret).await
}

/// A fresh code other than this one.
pub async fn next_code(secret: &str, used: &str) -> String {
    super::eventually("there is another code", async || {
        let code = code(secret).await;
        (code != used).then_some(())
    })
    .await;
    fresh_code(secret).await
}

/// What an authenticator app with this secret shows now.
pub async fn code(secret: &str) -> String {
    let shown = command(tool("oathtool")).args(["--totp", "-b", secret]).output().await.unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    String::from_utf8(shown.stdout).unwrap().trim().to_owned()
}
