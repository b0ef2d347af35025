//! File events on their way into the audit log: in groups, in order, and before the end is told.

use std::path::Path;
use std::process::Stdio;

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use crate::support::hop::{Hop, feed};
use crate::support::raw::{Packet, take};
use crate::support::ways::{Program, Way};
use crate::support::{PATIENCE, ended, eventually};

/// An `sftp` that takes its commands as they come, and has got through.
async fn sftp(hop: &Hop) -> Child {
    let reach = hop.reach(Program::OpenSsh, Way::Jump);
    let args = ["-o", "BatchMode=no", "-b", "-", "HOST"];
    let mut child = reach.start_tool("sftp", &args).await;
    child.stdin.as_mut().unwrap().write_all(b"pwd\n").await.unwrap();
    let mut said = String::new();
    while !said.contains("Remote working directory: ") {
        let mut buffer = [0; 512];
        let read = child.stdout.as_mut().unwrap().read(&mut buffer);
        let read = tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        assert!(read > 0, "{said}");
        said += &String::from_utf8_lossy(&buffer[..read]);
    }
    child
}

async fn type_line(child: &mut Child, line: &str) {
    child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_do_not_wait_for_the_audit_log_and_their_end_does() {
    let hop = Hop::start().await;
    let file = hop.client.path("file");
    std::fs::write(&file, "content").unwrap();
    let copies: Vec<_> = (0..10).map(|n| hop.client.path(&format!("copy-{n}"))).collect();
    let mut child = sftp(&hop).await;
    // Somebody else writes to the store.
    let path = hop.bastion.path("data/sallyport.db");
    let mut other = SqliteConnection::establish(text(&path)).unwrap();
    other.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").unwrap();
    for copy in &copies {
        type_line(&mut child, &format!("put {} {}", text(&file), text(copy))).await;
    }
    let last = copies.last().unwrap();
    eventually("everything is copied", async || {
        std::fs::read(last).ok().filter(|copied| copied == b"content").map(|_| ())
    })
    .await;
    assert!(hop.bastion.kinds("file-accessed").await.is_empty());
    type_line(&mut child, "bye").await;
    assert!(child.try_wait().unwrap().is_none());
    other.batch_execute("COMMIT").unwrap();
    feed(child, b"", "sftp").await.ok();
    // Whoever sees the end finds all of it, in the order of what was done.
    let events = hop.bastion.kinds("file-accessed").await;
    let paths: Vec<&str> = events.iter().map(|event| event["path"].as_str().unwrap()).collect();
    assert_eq!(paths, copies.iter().map(|copy| text(copy)).collect::<Vec<_>>());
    assert!(events.iter().all(|event| event["outcome"] == "ok" && event["written"] == 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_whose_file_events_cannot_be_written() {
    let hop = Hop::start().await;
    let mut child = subsystem(&hop).await;
    hop.bastion.tamper("ALTER TABLE audit_events RENAME TO gone").await;
    send(&mut child, Packet::new(14).number(7).text(text(&hop.client.path("dir"))).number(0)).await;
    assert_eq!(reply(&mut child).await[0], STATUS);
    // It ends by itself: nothing more is asked of it, and its input goes on.
    let stdin = child.stdin.take();
    assert_eq!(ended(&mut child).await.code(), Some(255));
    drop(stdin);
    let mut err = String::new();
    child.stderr.as_mut().unwrap().read_to_string(&mut err).await.unwrap();
    let why = "this session ends, since the audit log cannot be written";
    assert!(err.contains(&format!("sallyport: {why}")), "{err}");
    hop.bastion.tamper("ALTER TABLE gone RENAME TO audit_events").await;
    hop.ssh(&["via", "true"]).await.ok();
}

/// SSH_FXP_STATUS and SSH_FXP_HANDLE.
const STATUS: u8 = 101;
const HANDLE: u8 = 102;

/// The sftp subsystem, for a client that does everything by itself.
async fn subsystem(hop: &Hop) -> Child {
    let mut ssh = hop.command(&["-s", "via", "sftp"]);
    let mut child = ssh.stdin(Stdio::piped()).spawn().unwrap();
    send(&mut child, Packet::new(1).number(3)).await;
    assert_eq!(reply(&mut child).await[0], 2);
    child
}

async fn send(child: &mut Child, packet: Packet) {
    let framed = Packet::default().text(packet.0).0;
    child.stdin.as_mut().unwrap().write_all(&framed).await.unwrap();
}

async fn reply(child: &mut Child) -> Vec<u8> {
    let stdout = child.stdout.as_mut().unwrap();
    let read = async {
        let mut packet = vec![0; stdout.read_u32().await.unwrap() as usize];
        stdout.read_exact(&mut packet).await.unwrap();
        packet
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_told_that_was_open_when_the_user_left() {
    let hop = Hop::start().await;
    let copy = hop.client.path("copy");
    let mut child = subsystem(&hop).await;
    // SSH_FXP_OPEN to write and create, SSH_FXP_WRITE, and no SSH_FXP_CLOSE.
    let open = Packet::new(3).number(7).text(text(&copy)).number(2 | 8).number(0);
    send(&mut child, open).await;
    let opened = reply(&mut child).await;
    assert_eq!(opened[0], HANDLE, "{opened:?}");
    let handle = take(&mut &opened[5..]).to_vec();
    let write = Packet::new(6).number(8).text(&handle).number(0).number(0).text("content");
    send(&mut child, write).await;
    assert_eq!(reply(&mut child).await[0], STATUS);
    child.kill().await.unwrap();
    let fields = [("operation", "upload"), ("outcome", "interrupted"), ("path", text(&copy))];
    let event = hop.bastion.event("file-accessed", &fields).await;
    assert_eq!(event["written"], 7);
    let recording = event["recording"].as_str().unwrap();
    let end = hop.bastion.event("recording-ended", &[("recording", recording)]).await;
    assert!(end["seq"].as_i64() > event["seq"].as_i64());
}
