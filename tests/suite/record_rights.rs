//! What is refused on a target in record mode, what ends a session there, and how people are told.

use std::time::Duration;

use sallyport::audit::Context;
use sallyport::domain::Capability;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin};

use crate::support::hop::{Hop, Ran, fed};
use crate::support::sshd::Sshd;
use crate::support::{PATIENCE, ended, free_port, listening, present_user};

/// A grant of these rights alone.
async fn hop(rights: &str) -> Hop {
    let rights: Vec<Capability> = rights.split(' ').map(|word| word.parse().unwrap()).collect();
    Hop::granting(|grant| grant.allow = rights).await
}

fn said(right: &str) -> String {
    format!("sallyport: {right} is not granted to you on db1 as {}\r\n", present_user())
}

/// Refused with the reason, and nothing else.
fn refused(ran: &Ran, right: &str) {
    assert_eq!((ran.code, ran.out.as_slice()), (Some(255), &b""[..]), "{}", ran.err);
    assert_eq!(ran.err, said(right));
}

/// Whether `-L` to a port of the target's own loopback leads there.
async fn forwards(hop: &Hop, port: u16) -> bool {
    let local = free_port();
    let forward = format!("{local}:127.0.0.1:{port}");
    let mut ssh = hop.command(&["-N", "-L", &forward, "via"]).spawn().unwrap();
    listening(local).await;
    let mut stream = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    let mut banner = [0; 8];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut banner)).await.unwrap();
    ssh.kill().await.unwrap();
    read.is_ok() && &banner == b"SSH-2.0-"
}

async fn file_event(hop: &Hop, operation: &str, path: &str) -> Value {
    let fields = [("operation", operation), ("path", path), ("outcome", "refused by policy")];
    hop.bastion.event("file-accessed", &fields).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_allows_what_it_says_and_nothing_else() {
    for right in ["shell", "exec", "sftp-read", "sftp-write", "forward"] {
        let hop = hop(right).await;
        let (here, there) = (hop.client.path("here"), hop.client.path("there"));
        std::fs::write(&here, "content").unwrap();
        let copy = |from: String, to: String, options: &'static [&'static str]| {
            let mut scp = hop.client.command("scp", &[options, &[&from, &to]].concat());
            async move { fed(&mut scp, b"").await }
        };
        let (local, remote) = (here.display().to_string(), format!("via:{}", there.display()));

        let ran = fed(&mut hop.command(&["-T", "via"]), b"echo in a shell\n").await;
        if right == "shell" {
            assert_eq!(ran.ok().text(), "in a shell\n");
        } else {
            refused(&ran, "shell");
            hop.refused("shell").await;
        }

        let ran = hop.ssh(&["via", "echo a command"]).await;
        if right == "exec" {
            assert_eq!(ran.ok().text(), "a command\n");
            let ran = hop.ssh(&["-s", "via", "nonsense"]).await.failed();
            assert!(ran.err.contains("the target refused the nonsense request"), "{ran:?}");
        } else {
            refused(&ran, "exec");
            hop.refused("exec echo a command").await;
            refused(&hop.ssh(&["-s", "via", "nonsense"]).await, "exec");
            hop.refused("subsystem nonsense").await;
        }

        // A command that begins like a copy is a command.
        let line = format!("scp -t {}; echo smuggled", there.display());
        let ran = fed(&mut hop.command(&["-tt", "via", &line]), b"\x04").await;
        let old = copy(local.clone(), remote.clone(), &["-O"]).await;
        if right == "exec" {
            assert!(ran.text().contains("smuggled"), "{ran:?}");
            old.ok();
            assert_eq!(std::fs::read(&there).unwrap(), b"content");
            std::fs::remove_file(&there).unwrap();
        } else {
            assert!(ran.err.starts_with(&said("exec")), "{ran:?}");
            hop.refused(&format!("exec {line}")).await;
            old.failed();
            hop.refused(&format!("exec scp -t {}", there.display())).await;
            assert!(!there.exists());
        }

        let put = copy(local.clone(), remote.clone(), &[]).await;
        let written = std::fs::read(&there).unwrap_or_default();
        match right {
            "sftp-write" => assert_eq!((put.ok().code, &*written), (Some(0), &b"content"[..])),
            "sftp-read" => {
                assert!(put.failed().err.contains("Permission denied") && written.is_empty());
                file_event(&hop, "upload", &there.display().to_string()).await;
            }
            _ => {
                assert!(put.failed().err.starts_with(&said("sftp-read")) && written.is_empty());
                hop.refused("subsystem sftp").await;
            }
        }

        std::fs::write(&there, "from there").unwrap();
        let got = hop.client.path("got");
        let get = copy(remote.clone(), got.display().to_string(), &[]).await;
        let taken = std::fs::read(&got).unwrap_or_default();
        if right == "sftp-read" {
            assert_eq!((get.ok().code, &*taken), (Some(0), &b"from there"[..]));
        } else {
            assert!(taken.is_empty(), "{:?}", get.failed());
        }
        if right == "sftp-write" {
            file_event(&hop, "download", &there.display().to_string()).await;
        }

        // Some other service of the target; that it greets like sshd only helps to know it.
        let service = Sshd::start().await;
        assert_eq!(forwards(&hop, service.port).await, right == "forward");
        if right != "forward" {
            hop.refused(&format!("direct-tcpip 127.0.0.1:{}", service.port)).await;
        }
        // Sessions on the target are recorded: its own sshd is reached in no other way.
        assert!(!forwards(&hop, hop.sshd.port).await);
        hop.refused(&format!("direct-tcpip 127.0.0.1:{}", hop.sshd.port)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_files_changes_none() {
    let hop = hop("sftp-read").await;
    let dir = hop.client.path("dir");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("file");
    std::fs::write(&file, "content").unwrap();
    let (name, new) = (file.display().to_string(), dir.join("new").display().to_string());
    let batch = hop.client.path("batch");
    for (line, operation, path) in [
        (format!("rm {name}"), "remove", &name),
        (format!("rename {name} {new}"), "rename", &name),
        (format!("mkdir {new}"), "mkdir", &new),
        (format!("chmod 777 {name}"), "setstat", &name),
        (format!("ln -s {name} {new}"), "symlink", &new),
        (format!("ln {name} {new}"), "link", &new),
    ] {
        std::fs::write(&batch, &line).unwrap();
        let mut sftp = hop.client.command("sftp", &["-b", batch.to_str().unwrap(), "via"]);
        let ran = fed(&mut sftp, b"").await;
        assert!(ran.failed().err.contains("Permission denied"), "{line}");
        file_event(&hop, operation, path).await;
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"content");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_account_is_refused_with_the_reason() {
    let me = present_user();
    let hop = Hop::granting(|grant| grant.accounts = vec![me.parse().unwrap()]).await;
    hop.ssh(&["via", "true"]).await.ok();
    for (account, why) in [
        ("postgres", format!("postgres on db1 is not granted to you, but {me}")),
        ("no such", "there can be no such account on db1".to_owned()),
    ] {
        let ran = hop.ssh(&["-l", account, "via", "true"]).await;
        assert_eq!(ran.code, Some(255));
        assert_eq!(ran.err.matches(&format!("sallyport: {why}")).count(), 1, "{ran:?}");
        let fields = [("account", account), ("reason", "not-granted"), ("target", "db1")];
        hop.bastion.event("account-refused", &fields).await;
    }
    assert_eq!(hop.recordings().await.len(), 1);
    assert_eq!(hop.bastion.kinds("target-signed-in").await.len(), 1);
}

/// A session that goes on for as long as its input is held.
async fn running(hop: &Hop) -> (Child, Option<ChildStdin>) {
    let mut child = hop.running(&["via", "echo up; cat"]).await;
    let stdin = child.stdin.take();
    (child, stdin)
}

/// What the client says when its session is ended.
async fn told(child: Child) -> String {
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let done = done.expect("the session goes on").unwrap();
    assert_eq!(done.status.code(), Some(255));
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// The recording was finished, and says that it was cut off.
async fn cut(hop: &Hop, why: &str) {
    let cast = hop.recorded("echo up; cat").await;
    assert_eq!(cast.row.outcome.as_deref(), Some(why));
    assert_eq!(cast.output(), "up\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_grant_ends_what_runs_with_the_reason() {
    let hop = Hop::start().await;
    let (store, context) = (hop.bastion.store(), Context::default());
    let (child, _stdin) = running(&hop).await;
    let (mut idle, _) = hop.shared(&[]).await;
    let grants = store.grants().await.unwrap();
    store.remove_grant(grants[0].id.as_str(), &context, hop.bastion.now()).await.unwrap();
    let err = told(child).await;
    assert!(err.contains("db1 is not granted to you"), "{err}");
    assert!(!ended(&mut idle).await.success());
    let fields = [("reason", "db1 is not granted to you")];
    hop.bastion.event("forward-closed", &fields).await;
    cut(&hop, "db1 is not granted to you").await;
    hop.ssh(&["via", "true"]).await.failed();
    hop.bastion.event("forward-refused", &[("reason", "not-granted")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_rights_end_what_runs_and_more_do_not() {
    let hop = Hop::start().await;
    let (store, context) = (hop.bastion.store(), Context::default());
    let all = store.grants().await.unwrap()[0].id.clone();
    let (child, _stdin) = running(&hop).await;
    let exec = vec!["exec".parse().unwrap()];
    hop.bastion.add_grant("alice", "db1", |grant| grant.allow = exec).await;
    hop.ssh(&["via", "true"]).await.ok();
    store.remove_grant(all.as_str(), &context, hop.bastion.now()).await.unwrap();
    let err = told(child).await;
    assert!(err.contains("less is granted to you on db1 now"), "{err}");
    cut(&hop, "less is granted to you on db1 now").await;
    hop.ssh(&["via", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_granted_hours_ends_what_runs() {
    let hours = "Mon-Sun 00:00-23:58 UTC";
    let hop = Hop::granting(|grant| grant.hours = Some(hours.parse().unwrap())).await;
    let day = 24 * 3600;
    let of_day = |hop: &Hop| hop.bastion.now().seconds() % day;
    if of_day(&hop) >= day - 180 {
        hop.bastion.clock.advance(Duration::from_secs(600));
    }
    let (child, _stdin) = running(&hop).await;
    hop.bastion.clock.advance(Duration::from_secs(day - 60 - of_day(&hop)));
    let group = "look".parse().unwrap();
    hop.bastion.store().add_group(&group, &Context::default(), hop.bastion.now()).await.unwrap();
    let err = told(child).await;
    assert!(err.contains(&format!("outside granted hours ({hours})")), "{err}");
    cut(&hop, &format!("outside granted hours ({hours})")).await;
    hop.ssh(&["via", "true"]).await.failed();
    hop.bastion.event("forward-refused", &[("reason", "outside-hours")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_user_and_a_kill_end_what_runs() {
    let hop = Hop::start().await;
    let (store, context) = (hop.bastion.store(), Context::default());
    let (child, _stdin) = running(&hop).await;
    store.set_disabled(&hop.alice.name, true, &context, hop.bastion.now()).await.unwrap();
    told(child).await;
    hop.bastion.event("session-ended", &[("reason", "revoked")]).await;
    cut(&hop, "it was ended").await;

    let hop = Hop::start().await;
    let store = hop.bastion.store();
    let (child, _stdin) = running(&hop).await;
    let sessions = store.sessions(&Default::default(), 10).await.unwrap();
    assert!(
        store
            .request_kill(&sessions[0].id.parse().unwrap(), &context, hop.bastion.now())
            .await
            .unwrap()
    );
    told(child).await;
    hop.bastion.event("session-ended", &[("reason", "killed")]).await;
    cut(&hop, "it was ended").await;
}
