//! The real binary: first start, commands, `kill -9`, draining.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::support::ssh::{Run, run};
use crate::support::{command, ended, eventually, free_port, listening};

const BINARY: &str = env!("CARGO_BIN_EXE_sallyport");

async fn serve(dir: &Path, port: u16) -> Child {
    let child = command(BINARY)
        .arg("serve")
        .current_dir(dir)
        .env("SALLYPORT_SERVER__LISTEN", format!("[\"127.0.0.1:{port}\"]"))
        .env("SALLYPORT_SERVER__DRAIN", "\"1s\"")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    listening(port).await;
    child
}

async fn cli(dir: &Path, args: &[&str]) -> Run {
    run(command(BINARY).args(args).current_dir(dir)).await
}

async fn terminate(child: &mut Child) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(ended(child).await.success());
}

#[tokio::test]
async fn the_first_start_tells_the_password_once() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let refused = cli(dir.path(), &["user", "list"]).await.failed();
    assert!(refused.err.contains("run 'sallyport serve' or 'sallyport init' first"), "{refused:?}");
    let mut child = serve(dir.path(), port).await;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains("authenticator app") {
        said.push_str(&lines.next_line().await.unwrap().unwrap());
    }
    assert!(
        said.contains("one-time password")
            && said.contains(&format!("ssh -p {port} admin@localhost")),
        "{said}"
    );
    terminate(&mut child).await;
    let mut again = serve(dir.path(), port).await;
    let mut out = again.stdout.take().unwrap();
    terminate(&mut again).await;
    let mut rest = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut out, &mut rest).await.unwrap();
    assert_eq!(rest, "");
}

#[tokio::test]
async fn commands_change_list_and_explain() {
    let dir = tempfile::tempdir().unwrap();
    cli(dir.path(), &["init"]).await.ok();
    let added = cli(dir.path(), &["user", "add", "alice", "--json"]).await.ok();
    let added: serde_json::Value = serde_json::from_str(&added.out).unwrap();
    assert_eq!(added["one_time_password"].as_str().unwrap().len(), 12);
    for args in [
        &["group", "add", "dba"][..],
        &["group", "join", "dba", "alice"],
        &["target", "add", "db1", "10.0.0.5", "--label", "env=prod"],
        &[
            "grant",
            "add",
            "--group",
            "dba",
            "--label",
            "env=prod",
            "--from",
            "10.0.0.0/8",
            "--until",
            "+7d",
        ],
        &["check"],
        &["ca", "show", "host"],
        &["otp", "show", "alice"],
        &["otp", "reset", "alice"],
        &["completions", "bash"],
        &["key", "rotate"],
        &["user", "show", "alice"],
        &["target", "show", "db1"],
        &["session", "list"],
        &["audit", "list"],
        &["audit", "verify"],
        &["explain", "alice", "db1", "--from", "10.1.2.3"],
    ] {
        cli(dir.path(), args).await.ok();
    }
    let open = cli(dir.path(), &["explain", "alice", "db1"]).await.ok();
    assert!(open.out.contains("not looked at: give it with --from"), "{open:?}");
    let why = cli(dir.path(), &["explain", "alice", "db1", "--from", "192.0.2.7"]).await.failed();
    assert!(why.out.contains("refused: your address 192.0.2.7"), "{why:?}");
    for args in [
        &["user", "add", "alice"][..],
        &["user", "show", "nobody"],
        &["target", "pin", "nowhere"],
        &["grant", "add", "--user", "nobody", "--target", "db1"],
        &["session", "kill", "0123"],
    ] {
        let ran = cli(dir.path(), args).await.failed();
        assert_eq!((ran.code, ran.err.lines().count()), (Some(1), 1), "{ran:?}");
    }
    for (args, said) in [
        (&["nonsense"][..], "unrecognized subcommand 'nonsense'"),
        (&["user", "add", "Alice"], "\"Alice\" is not a user name"),
        (&["grant", "add", "--user", "alice"], "--target"),
    ] {
        let ran = cli(dir.path(), args).await;
        assert_eq!((ran.code, ran.err.lines().count()), (Some(64), 1), "{ran:?}");
        assert!(ran.err.contains(said), "{ran:?}");
    }
    std::fs::write(dir.path().join("sallyport.toml"), "[server]\nlisten = 5\n").unwrap();
    let ran = cli(dir.path(), &["check"]).await;
    assert_eq!(ran.code, Some(78));
    assert!(ran.err.contains("sallyport.toml:2:10"), "{ran:?}");
}

#[tokio::test]
async fn an_export_verifies_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    cli(dir.path(), &["init"]).await.ok();
    for name in ["alice", "bob", "carol"] {
        cli(dir.path(), &["user", "add", name]).await.ok();
    }
    cli(dir.path(), &["audit", "export", "--output", "a.jsonl"]).await.ok();
    cli(dir.path(), &["audit", "verify", "a.jsonl"]).await.ok();
    let text = std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let damaged = |lines: Vec<String>| {
        std::fs::write(dir.path().join("b.jsonl"), lines.join("\n") + "\n").unwrap()
    };
    let owned = || lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let mut edited = owned();
    edited[2] = edited[2].replace("alice", "mallory");
    let mut dropped = owned();
    dropped.remove(3);
    let mut swapped = owned();
    swapped.swap(3, 4);
    let mut cut = owned();
    cut.truncate(5);
    for (lines, said) in [
        (edited, "event 3 was edited"),
        (dropped, "event 4 was dropped"),
        (swapped, "event 4 was dropped"),
        (cut, "cut off"),
    ] {
        damaged(lines);
        let ran = cli(dir.path(), &["audit", "verify", "b.jsonl"]).await.failed();
        assert!(ran.err.contains(said), "{said}: {ran:?}");
    }
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = serve(dir.path(), free_port()).await;
    let second = run(command(BINARY)
        .arg("serve")
        .current_dir(dir.path())
        .env("SALLYPORT_SERVER__LISTEN", format!("[\"127.0.0.1:{}\"]", free_port())))
    .await;
    assert!(second.failed().err.contains("another sallyport serves"));
    terminate(&mut first).await;
}

#[tokio::test]
async fn a_killed_server_starts_again_with_a_whole_log() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut child = serve(dir.path(), port).await;
    // It listens a moment before it has written down that it serves.
    eventually("it serves", async || {
        let listed = cli(dir.path(), &["audit", "list", "--kind", "server-started"]).await.ok();
        listed.out.contains("version=").then_some(())
    })
    .await;
    child.kill().await.unwrap(); // SIGKILL
    let mut again = serve(dir.path(), port).await;
    cli(dir.path(), &["audit", "verify"]).await.ok();
    terminate(&mut again).await;
    let log = cli(dir.path(), &["audit", "list", "--json"]).await.ok();
    let events: serde_json::Value = serde_json::from_str(&log.out).unwrap();
    let kinds: Vec<&str> =
        events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    let count = |kind: &str| kinds.iter().filter(|k| **k == kind).count();
    assert_eq!((count("server-started"), count("server-stopped")), (2, 1), "{kinds:?}");
}
