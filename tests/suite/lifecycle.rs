//! The real binary: first start, commands, `kill -9`, draining.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::support::ssh::{Run, run};
use crate::support::{command, ended, eventually, free_port, speaks_ssh};

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
    speaks_ssh(port).await;
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
    let checked = cli(dir.path(), &["check", "--json"]).await.ok().out;
    let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
    assert!(said.contains(checked["host_key"].as_str().unwrap()), "{said}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_cannot_listen_makes_no_administrator() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut start = command(env!("CARGO_BIN_EXE_sallyport"));
    start.arg("serve").current_dir(dir.path());
    start.env("SALLYPORT_SERVER__LISTEN", format!("[\"127.0.0.1:{port}\"]"));
    let refused = run(&mut start).await.failed();
    assert!(refused.err.contains(&format!("failed to listen on 127.0.0.1:{port}")), "{refused:?}");
    assert!(refused.err.contains("choose another port with [server] listen"), "{refused:?}");
    drop(taken);
    // So that the next one tells the password.
    let mut child = serve(dir.path(), port).await;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains("authenticator app") {
        said.push_str(&lines.next_line().await.unwrap().unwrap());
    }
    assert!(said.contains("one-time password"), "{said}");
    terminate(&mut child).await;
}

/// What people type is not where it listens: systemd or a load balancer stands in between.
#[tokio::test]
async fn the_port_that_people_type_can_be_set() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[server]\npublic_host = \"bastion.example.org\"\npublic_port = 22\n";
    std::fs::write(dir.path().join("sallyport.toml"), config).unwrap();
    let ran = cli(dir.path(), &["init"]).await.ok();
    assert!(ran.out.contains("ssh -p 22 admin@bastion.example.org"), "{ran:?}");
}

#[tokio::test]
async fn an_error_names_its_cause_once() {
    let dir = tempfile::tempdir().unwrap();
    let ran = cli(dir.path(), &["--config", "nofile", "check"]).await.failed();
    assert_eq!(ran.err.matches("No such file").count(), 1, "{ran:?}");
    let ran = cli(dir.path(), &["ca", "show", "none"]).await.failed();
    assert!(!ran.err.contains("For more information"), "{ran:?}");
    assert!(ran.err.contains("host, user") && ran.err.ends_with("(see --help)\n"), "{ran:?}");
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
    let why = cli(dir.path(), &["explain", "alice", "db1", "--from", "192.0.2.7"]).await.failed();
    assert!(why.out.contains("refused: the address 192.0.2.7"), "{why:?}");
    let why = cli(dir.path(), &["explain", "alice", "db1"]).await.ok();
    assert!(why.out.contains("permitted, from 10.0.0.0/8 only: db1"), "{why:?}");
    assert!(why.out.contains("alice has to bind an authenticator first"), "{why:?}");
    cli(dir.path(), &["user", "disable", "alice"]).await.ok();
    let why = cli(dir.path(), &["explain", "alice", "db1", "--json"]).await.failed();
    let why: serde_json::Value = serde_json::from_str(&why.out).unwrap();
    assert_eq!(why["permitted"], false, "{why}");
    let said = why["decision"].as_str().unwrap();
    assert!(said.starts_with("refused: alice is disabled; otherwise permitted"), "{why}");
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
async fn explain_answers_for_an_account_at_a_time_and_tells_its_rights() {
    let dir = tempfile::tempdir().unwrap();
    cli(dir.path(), &["init"]).await.ok();
    let week = "Mon-Fri 08:00-18:00 Europe/Berlin";
    let to = ["grant", "add", "--user", "alice", "--target", "db1", "--account"];
    for args in [
        &["user", "add", "alice"][..],
        &["target", "add", "db1", "10.0.0.5"],
        &["target", "account", "add", "db1", "root", "--auth", "ca"],
        &[&to[..], &["root", "--allow", "shell,sftp-read", "--hours", week]].concat(),
        &[&to[..], &["app", "--allow", "exec"]].concat(),
    ] {
        cli(dir.path(), args).await.ok();
    }
    let accounts = cli(dir.path(), &["target", "account", "list", "db1", "--json"]).await.ok().out;
    let accounts: serde_json::Value = serde_json::from_str(&accounts).unwrap();
    let root = &accounts[0];
    assert_eq!(accounts.as_array().unwrap().len(), 1, "{accounts}");
    assert_eq!((&root["account"], &root["auth"]), (&"root".into(), &"ca".into()));
    assert_eq!(root["secret"], false, "{root}");

    // A Tuesday and a Sunday.
    let (open, closed) = ("2024-11-26T09:20+01:00", "2024-11-24T09:20+01:00");
    for (account, at, permitted, says, rights) in [
        ("root", open, true, "permitted: root on db1 at 10.0.0.5:22", &["shell", "sftp-read"][..]),
        ("root", closed, false, "refused: outside granted hours", &[]),
        ("app", closed, true, "permitted: app on db1 at 10.0.0.5:22, for exec", &["exec"]),
        ("bin", open, false, "refused: bin on db1 is not granted to alice, but app, root", &[]),
    ] {
        let args = ["explain", "alice", "db1", "--account", account, "--at", at, "--json"];
        let ran = cli(dir.path(), &args).await;
        assert_eq!(ran.code, Some(i32::from(!permitted)), "{ran:?}");
        let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(told["permitted"], permitted, "{told}");
        assert!(told["decision"].as_str().unwrap().starts_with(says), "{told}");
        let none = vec![];
        let found = told["rights"].as_array().unwrap_or(&none);
        assert_eq!(found, rights, "{told}");
    }
    let args = ["explain", "alice", "db1", "--account", "root", "--at", "at noon"];
    assert_eq!(cli(dir.path(), &args).await.code, Some(64));
}

/// A command on the host that does not see the service's credentials.
#[tokio::test]
async fn keys_of_another_store_are_refused_and_none_are_made_for_a_store_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("sallyport-data");
    let config = "[server]\nlisten = [\"127.0.0.1:0\"]\n";
    std::fs::write(dir.path().join("sallyport.toml"), config).unwrap();
    cli(dir.path(), &["init"]).await.ok();
    cli(dir.path(), &["user", "add", "alice"]).await.ok();
    let aside = dir.path().join("aside");
    std::fs::create_dir(&aside).unwrap();
    for key in ["audit_key", "sealing_key"] {
        std::fs::rename(data.join(key), aside.join(key)).unwrap();
    }
    for command in ["init", "serve"] {
        let ran = cli(dir.path(), &[command]).await.failed();
        assert!(ran.err.contains("no sealing key at") && ran.err.contains("has users"), "{ran:?}");
    }
    assert!(!data.join("audit_key").exists() && !data.join("sealing_key").exists());
    // The keys of another store, as an older "init" made them.
    let other = tempfile::tempdir().unwrap();
    cli(other.path(), &["init"]).await.ok();
    for key in ["audit_key", "sealing_key"] {
        for name in ["audit_key", "sealing_key"] {
            std::fs::copy(aside.join(name), data.join(name)).unwrap();
        }
        std::fs::copy(other.path().join("sallyport-data").join(key), data.join(key)).unwrap();
        for command in [&["user", "add", "bob"][..], &["check"], &["init"], &["serve"]] {
            let ran = cli(dir.path(), command).await.failed();
            let said = format!("the {} key here is", key.trim_end_matches("_key"));
            assert!(ran.err.contains(&said) && ran.err.contains("belongs to"), "{ran:?}");
        }
    }
    for name in ["audit_key", "sealing_key"] {
        std::fs::copy(aside.join(name), data.join(name)).unwrap();
    }
    cli(dir.path(), &["audit", "verify"]).await.ok();
    // A rotated key file is the store's, the one before it no longer is.
    cli(dir.path(), &["key", "rotate"]).await.ok();
    cli(dir.path(), &["check"]).await.ok();
    std::fs::copy(aside.join("sealing_key"), data.join("sealing_key")).unwrap();
    let ran = cli(dir.path(), &["check"]).await.failed();
    assert!(ran.err.contains("the sealing key here is"), "{ran:?}");
}

/// A server that was given its keys at its start cannot open what is sealed under a later one.
#[tokio::test]
async fn no_key_seals_that_a_running_server_does_not_hold() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut child = serve(dir.path(), port).await;
    // One that reads the file holds what is added to it.
    let rotated = cli(dir.path(), &["key", "rotate"]).await.ok();
    assert!(rotated.out.contains("0 secrets were sealed anew"), "{rotated:?}");
    terminate(&mut child).await;

    let credentials = dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let data = dir.path().join("sallyport-data");
    std::fs::copy(data.join("sealing_key"), credentials.join("sealing_key")).unwrap();
    let mut start = command(BINARY);
    start.arg("serve").current_dir(dir.path()).env("CREDENTIALS_DIRECTORY", &credentials);
    start.env("SALLYPORT_SERVER__LISTEN", format!("[\"127.0.0.1:{port}\"]"));
    start.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = start.spawn().unwrap();
    speaks_ssh(port).await;
    let refused = cli(dir.path(), &["key", "rotate"]).await.failed();
    assert!(refused.err.contains("does not hold the key"), "{refused:?}");
    // Once it is stopped, nothing of it is in the way.
    terminate(&mut child).await;
    cli(dir.path(), &["key", "rotate"]).await.ok();
}

#[tokio::test]
async fn only_serve_and_init_make_a_store_or_change_its_schema() {
    let dir = tempfile::tempdir().unwrap();
    cli(dir.path(), &["init"]).await.ok();
    for args in [&["check"][..], &["user", "list"]] {
        let mut command = command(BINARY);
        command.args(args).current_dir(dir.path()).env("SALLYPORT_STORE__URL", "sqlite:typo.db");
        let ran = run(&mut command).await.failed();
        assert!(ran.err.contains("there is no store at typo.db"), "{ran:?}");
        assert!(!dir.path().join("typo.db").exists());
    }
    let older = dir.path().join("older.db");
    std::fs::write(&older, "").unwrap();
    for args in [&["check"][..], &["user", "list"]] {
        let mut command = command(BINARY);
        command.args(args).current_dir(dir.path()).env("SALLYPORT_STORE__URL", "sqlite:older.db");
        let ran = run(&mut command).await.failed();
        assert!(ran.err.contains("older sallyport"), "{ran:?}");
    }
    // Opening made it a database, without a table.
    let bytes = std::fs::read(&older).unwrap();
    assert!(!bytes.windows(12).any(|part| part == b"CREATE TABLE"), "a table was made");
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
    // With the key's public half, which is printed for that; the key itself is refused.
    let key = cli(dir.path(), &["audit", "key"]).await.ok().out;
    std::fs::write(dir.path().join("audit_key.pub"), key).unwrap();
    let with_key = ["audit", "verify", "a.jsonl", "--key-file", "audit_key.pub"];
    let ran = cli(dir.path(), &with_key).await.ok();
    assert!(ran.out.contains("as given"), "{ran:?}");
    let private = ["audit", "verify", "a.jsonl", "--key-file", "sallyport-data/audit_key"];
    let ran = cli(dir.path(), &private).await.failed();
    assert!(ran.err.contains("'sallyport audit key' prints"), "{ran:?}");
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
        (swapped, "event 5 stands where event 4 should"),
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

#[tokio::test]
async fn as_many_files_are_opened_as_the_system_allows() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // As a shell starts it.
    let mut child = command("/bin/sh")
        .args(["-c", "ulimit -Sn 256; exec \"$0\" serve", BINARY])
        .current_dir(dir.path())
        .env("SALLYPORT_SERVER__LISTEN", format!("[\"127.0.0.1:{port}\"]"))
        .env("SALLYPORT_SERVER__DRAIN", "\"1s\"")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    speaks_ssh(port).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id().unwrap())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let limits: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert!(limits[0] == limits[1] && limits[0] != "256", "{line}");
    terminate(&mut child).await;
}
