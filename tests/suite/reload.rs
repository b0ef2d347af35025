//! SIGHUP on the real binary: what the log says is in force is in force.

use rustix::process::Signal;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::bastion::PASSWORD;
use crate::support::screen::Screen;
use crate::support::server::Server;
use crate::support::ssh::{Client, Run};
use crate::support::{PATIENCE, command, tool};

/// Puts `extra` in force, and waits until the log names `key` among what is.
pub async fn reload(server: &Server, extra: &str, key: &str) {
    server.configure(extra);
    server.signal(Signal::HUP);
    assert_eq!(server.logged("key", key).await["level"], "INFO");
    // Said last, after everything is.
    server.logged("message", "the configuration is in force").await;
}

/// Signs in with a password that is wrong.
async fn guess(client: &Client) -> Run {
    client.answers(&["not the password", "000000"]);
    let once = ["-o", "PreferredAuthentications=keyboard-interactive"];
    client.ssh(&[&once[..], &["-o", "NumberOfPasswordPrompts=1", "bastion"]].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_lock_after_as_many_as_the_new_file_says() {
    let mut server = Server::start("").await;
    server.registry().person("alice").await;
    let client = Client::on_port(server.port, "alice");
    guess(&client).await.failed();
    server.event("sign-in-refused", &[("reason", "wrong-password")]).await;
    reload(&server, "[login]\nlock_after = 2\n", "login.lock_after").await;
    assert!(server.kinds("source-locked").await.is_empty());
    guess(&client).await.failed();
    let locked = server.event("source-locked", &[("user", "alice")]).await;
    assert_eq!(locked["failures"], 2, "{locked}");
    server.signal(Signal::TERM);
    server.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_and_issuer_are_those_of_the_new_file() {
    let mut server = Server::start("").await;
    let one_time = server.registry().newcomer("alice").await;
    let client = Client::on_port(server.port, "alice");
    let offered =
        async || client.ssh(&["-o", "PreferredAuthentications=none", "bastion"]).await.failed().err;
    let before = offered().await;
    assert!(before.contains("denied (publickey,password,keyboard-interactive)"), "{before}");
    let extra = "[login]\nmethods = [\"keyboard-interactive\"]\nissuer = \"Acme\"\n";
    reload(&server, extra, "login.methods").await;
    assert_eq!(server.logged("key", "login.issuer").await["level"], "INFO");
    let after = offered().await;
    assert!(after.contains("denied (keyboard-interactive)"), "{after}");

    let mut ssh = command(tool("ssh"));
    let mut screen = Screen::run(ssh.arg("-F").arg(client.path("config")).arg("bastion"));
    screen.expect("Password: ").await;
    screen.type_line(one_time.expose_secret()).await;
    for question in ["Choose a new password: ", "Repeat the new password: "] {
        screen.expect(question).await;
        screen.type_line(PASSWORD).await;
    }
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    let uri = screen.qr().unwrap_or_else(|| panic!("no QR code on:\n{}", screen.text()));
    assert!(uri.starts_with("otpauth://totp/Acme:alice?secret="), "{uri}");
    server.signal(Signal::TERM);
    server.ends_well().await;
}

/// A connection whose other side has greeted.
async fn greeted(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut bytes = [0; 7];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await.unwrap();
    read.ok().map(|_| stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_deadlines_and_the_logs_level_are_those_of_the_new_file() {
    let mut server = Server::start("").await;
    let first = greeted(server.port).await.unwrap();
    let second = greeted(server.port).await;
    assert!(second.is_some());
    drop(second);
    let extra = "[server]\nmax_unauthenticated = 1\n[log]\nlevel = \"debug\"\n";
    reload(&server, extra, "server.max_unauthenticated").await;
    assert_eq!(server.logged("key", "log.level").await["level"], "INFO");
    assert!(greeted(server.port).await.is_none());
    // Which is said at this level only.
    assert_eq!(server.logged("message", "a connection was refused").await["level"], "DEBUG");
    drop(first);

    let extra = "[server]\nlogin_grace = \"1s\"\n[log]\nlevel = \"warn\"\n";
    server.configure(extra);
    server.signal(Signal::HUP);
    // The level is such now that the log cannot say so.
    let mut stream = loop {
        let Some(mut stream) = greeted(server.port).await else { continue };
        stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        let mut rest = Vec::new();
        let closed = stream.read_to_end(&mut rest);
        match tokio::time::timeout(std::time::Duration::from_secs(5), closed).await {
            Ok(_) => break stream,
            Err(_) => drop(stream), // It was accepted before the reload.
        }
    };
    stream.shutdown().await.ok();
    server.event("sign-in-refused", &[("reason", "grace-expired")]).await;
    let said = server.log().len();
    server.run(&["audit", "verify"]).await.ok();
    drop(greeted(server.port).await);
    assert_eq!(server.log().len(), said, "nothing below warn is logged");
    server.signal(Signal::TERM);
    server.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_has_as_long_to_answer_as_the_new_file_says() {
    let mut server = Server::start("[forward]\ndial_timeout = \"600s\"\n").await;
    let alice = server.registry().person("alice").await;
    // With its backlog full, the system answers nobody.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    silent.listen(0).unwrap();
    let address = silent.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    server.registry().grant("alice", "db1", &address.to_string()).await;
    reload(&server, "[forward]\ndial_timeout = \"1s\"\n", "forward.dial_timeout").await;
    let client = Client::on_port(server.port, "alice");
    client.answers(&[PASSWORD, &alice.recovery_code(0)]);
    let to = format!("db1:{}", address.port());
    let ran = client.ssh(&["-W", &to, "bastion"]).await.failed();
    assert!(ran.err.contains("db1 did not answer within 1 s"), "{ran:?}");
    server.signal(Signal::TERM);
    server.ends_well().await;
}
