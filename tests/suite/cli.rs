//! The command line by the real binary: JSON, errors and exit codes, the environment, completions.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use sallyport::clock::Clock;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::ssh::{Run, run};
use crate::support::{command, ended, tool};

const BINARY: &str = env!("CARGO_BIN_EXE_sallyport");

/// The binary with cheap hashes, in `dir`.
fn sallyport(dir: &Path, args: &[&str]) -> Command {
    let mut command = command(BINARY);
    command
        .args(args)
        .current_dir(dir)
        .env("SALLYPORT_LOGIN__ARGON2_MEMORY", "\"8 KiB\"")
        .env("SALLYPORT_LOGIN__ARGON2_PASSES", "1");
    command
}

async fn cli(dir: &Path, args: &[&str]) -> Run {
    run(&mut sallyport(dir, args)).await
}

async fn with_input(dir: &Path, args: &[&str], input: &str) -> Run {
    let mut child = sallyport(dir, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

async fn json(dir: &Path, args: &[&str]) -> Value {
    let ran = cli(dir, &[args, &["--json"]].concat()).await.ok();
    assert_eq!(ran.err, "", "{args:?}");
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {ran:?}"))
}

/// It fails with `code` and one line that says `said`, and prints nothing else.
async fn fails(dir: &Path, args: &[&str], code: i32, said: &str) {
    told(&cli(dir, args).await, args, code, said);
}

#[track_caller]
fn told(ran: &Run, args: &[&str], code: i32, said: &str) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{args:?}: {ran:?}");
    assert!(ran.err.starts_with("sallyport: ") && ran.err.ends_with('\n'), "{args:?}: {ran:?}");
    assert_eq!(ran.err.lines().count(), 1, "{args:?}: {ran:?}");
    assert!(ran.err.contains(said), "{args:?} does not say {said:?}: {ran:?}");
    assert!(!ran.err.trim_end().contains(char::is_control), "{ran:?}");
}

/// A folder with users, groups, targets, grants and a session.
async fn setting() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["init"][..],
        &["user", "add", "alice"],
        &["user", "add", "otto", "--role", "auditor"],
        &["group", "add", "dba"],
        &["group", "join", "dba", "alice"],
        &["target", "add", "db1", "10.0.0.5", "--label", "env=prod", "--label", "tier=1"],
        &["target", "add", "web1", "web1.internal:8443"],
        &["grant", "add", "--user", "alice", "--target", "db1", "--account", "root"],
    ] {
        cli(dir.path(), args).await.ok();
    }
    let sql = "INSERT INTO sessions (id, user_id, user_name, node, source, client, started_at,
            bytes_up, bytes_down)
        VALUES ('0123456789ab', 'x', 'alice', 'other', '192.0.2.7:1', 'SSH-2.0-x', 5, 1, 2)";
    execute(dir.path(), sql);
    dir
}

fn execute(dir: &Path, sql: &str) {
    use diesel::Connection as _;
    use diesel::connection::SimpleConnection as _;
    let path = dir.join("sallyport-data/sallyport.db");
    diesel::SqliteConnection::establish(path.to_str().unwrap())
        .unwrap()
        .batch_execute(sql)
        .unwrap();
}

#[tokio::test]
async fn what_lists_or_shows_does_so_in_json() {
    let dir = setting().await;
    let dir = dir.path();
    let names = |list: &Value, field: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|row| row[field].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&json(dir, &["user", "list"]).await, "name"), ["admin", "alice", "otto"]);
    let user = json(dir, &["user", "show", "alice"]).await;
    assert_eq!((&user["role"], &user["groups"][0]), (&"user".into(), &"dba".into()));
    for secret in ["password_hash", "otp_secret", "password"] {
        assert!(user.get(secret).is_none(), "{user}");
    }
    assert_eq!(json(dir, &["user", "key", "list", "alice"]).await, serde_json::json!([]));
    let groups = json(dir, &["group", "list"]).await;
    assert_eq!((&groups[0]["group"], &groups[0]["members"][0]), (&"dba".into(), &"alice".into()));
    let otp = json(dir, &["otp", "show", "alice"]).await;
    assert_eq!((&otp["bound_at"], &otp["recovery_codes_left"]), (&Value::Null, &0.into()));
    assert_eq!(names(&json(dir, &["target", "list"]).await, "name"), ["db1", "web1"]);
    let target = json(dir, &["target", "show", "db1"]).await;
    assert!(target.to_string().contains("root"), "{target}");
    let grants = json(dir, &["grant", "list"]).await;
    assert_eq!(grants.as_array().unwrap().len(), 1);
    let added =
        json(dir, &["grant", "add", "--group", "dba", "--label", "env=prod", "--until", "+7d"])
            .await;
    assert_eq!(added["id"].as_str().unwrap().len(), 12);
    let explained = json(dir, &["explain", "alice", "db1"]).await;
    assert!(explained.is_object(), "{explained}");
    let refused = cli(dir, &["explain", "alice", "web1:8443", "--json"]).await;
    assert_eq!((refused.code, refused.err.as_str()), (Some(1), ""), "{refused:?}");
    assert!(serde_json::from_str::<Value>(&refused.out).unwrap().is_object());
    let sessions = json(dir, &["session", "list", "--live", "--user", "alice"]).await;
    assert_eq!(names(&sessions, "id"), ["0123456789ab"]);
    assert_eq!(json(dir, &["session", "show", "0123"]).await["client"], "SSH-2.0-x");
    let events = json(dir, &["audit", "list", "--kind", "user-added", "--since", "-1h"]).await;
    assert_eq!(names(&events, "name"), ["otto", "alice", "admin"]);
    let none = json(dir, &["audit", "list", "--until", "2020-01-01T00:00"]).await;
    assert_eq!(none, serde_json::json!([]));
    let anchor = json(dir, &["audit", "verify"]).await;
    cli(dir, &["audit", "export", "--output", "a.jsonl"]).await.ok();
    assert_eq!(json(dir, &["audit", "verify", "a.jsonl"]).await, anchor);
    for which in ["host", "user"] {
        let key = json(dir, &["ca", "show", which]).await;
        assert!(key["public_key"].as_str().unwrap().starts_with("ssh-ed25519 "), "{key}");
    }
    let added = json(dir, &["user", "add", "bob"]).await;
    assert_eq!(added["one_time_password"].as_str().unwrap().len(), 12);
    let set = json(dir, &["user", "passwd", "bob"]).await;
    assert_ne!(set["one_time_password"], added["one_time_password"]);
    let reset = json(dir, &["otp", "reset", "bob"]).await;
    assert!(reset["binding_until"].is_string() || reset["binding_until"].is_number(), "{reset}");
    assert_eq!(reset["one_time_password"].as_str().unwrap().len(), 12);
    assert_ne!(reset["one_time_password"], set["one_time_password"]);
    let kept = json(dir, &["otp", "reset", "bob", "--keep-password"]).await;
    assert_eq!((&kept["one_time_password"], &kept["name"]), (&Value::Null, &"bob".into()));
    assert!(!kept["binding_until"].is_null(), "{kept}");
    let key = json(dir, &["audit", "key"]).await;
    assert!(key["public_key"].as_str().unwrap().starts_with("ssh-ed25519 "), "{key}");
    assert_eq!(json(dir, &["key", "rotate"]).await["secrets"], 0);
    let checked = json(dir, &["check"]).await;
    assert_eq!(checked["configuration"], "built-in defaults");
    assert_eq!(checked["radius"], serde_json::json!({ "servers": 0, "mode": "code" }));
    // The fingerprint that ssh asks about, as its own tool tells it.
    let mut keygen = command(tool("ssh-keygen"));
    keygen.arg("-lf").arg(dir.join("sallyport-data/host_key"));
    let told = run(&mut keygen).await.ok().out;
    let shown = checked["host_key"].as_str().unwrap().strip_prefix("ED25519 ").unwrap().to_owned();
    assert!(shown.starts_with("SHA256:") && told.contains(&shown), "{told} {shown}");
    let made = json(dir, &["init"]).await;
    assert_eq!((&made["made"], &made["host_key"]), (&false.into(), &checked["host_key"]));
    let fresh = json(dir, &["init", "--data-dir", "other"]).await;
    assert_eq!((&fresh["made"], &fresh["administrator"]), (&true.into(), &"admin".into()));
    assert_eq!(fresh["one_time_password"].as_str().unwrap().len(), 12);
    assert!(!dir.join("other/first-password").exists(), "it was told");
    // An export is JSON whether asked for or not, and every line of it is a value.
    let export = cli(dir, &["audit", "export"]).await.ok().out;
    assert!(export.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[tokio::test]
async fn what_would_do_harm_or_nothing_is_refused_and_told() {
    let dir = setting().await;
    let dir = dir.path();
    for what in ["remove", "disable"] {
        fails(dir, &["user", what, "admin"], 1, "admin is the last administrator").await;
    }
    cli(dir, &["user", "add", "carol", "--role", "admin"]).await.ok();
    cli(dir, &["user", "disable", "carol"]).await.ok();
    fails(dir, &["user", "remove", "admin"], 1, "or say --force to remove").await;
    cli(dir, &["user", "enable", "carol"]).await.ok();
    cli(dir, &["user", "disable", "admin"]).await.ok();
    cli(dir, &["user", "remove", "carol", "--force"]).await.ok();

    let again = ["grant", "add", "--user", "alice", "--target", "db1", "--account", "root"];
    fails(dir, &again, 1, "there is this grant already: ").await;
    cli(dir, &["grant", "add", "--user", "alice", "--target", "db1"]).await.ok();

    cli(dir, &["target", "add", "pg1", "pg1.internal:5432", "--mode", "tunnel"]).await.ok();
    fails(dir, &["target", "account", "add", "pg1", "x"], 1, "pg1 is in tunnel mode").await;
    let asks = ["grant", "add", "--user", "alice", "--target", "pg1", "--step-up"];
    fails(dir, &asks, 1, "pg1 is in tunnel mode, where nobody can be asked for a code").await;
    let asks = ["grant", "add", "--user", "alice", "--target", "db1", "--step-up"];
    let added = cli(dir, &asks).await.ok();
    assert!(added.out.ends_with("user alice to target db1 step-up\n"), "{added:?}");
    let listed = json(dir, &["grant", "list"]).await;
    assert_eq!(listed.as_array().unwrap().last().unwrap()["step_up"], true);
    let told = json(dir, &["explain", "alice", "db1", "--account", "root"]).await;
    assert_eq!(told["step_up"], true, "{told}");
    cli(dir, &["target", "account", "add", "db1", "root"]).await.ok();
    let changed =
        cli(dir, &["target", "account", "add", "db1", "root", "--auth", "ask"]).await.ok();
    assert!(changed.out.contains("by: ask, no longer by: ca"), "{changed:?}");

    let added = cli(dir, &["target", "add", "here", "localhost:2022"]).await.ok();
    assert!(added.out.contains("warning: here is at localhost, which leads to"), "{added:?}");
    cli(dir, &["grant", "add", "--user", "alice", "--target", "here"]).await.ok();
    let explained = cli(dir, &["explain", "alice", "here"]).await.failed();
    assert!(explained.out.starts_with("refused: here is at localhost"), "{explained:?}");
}

#[tokio::test]
async fn explanations_name_every_reason_once_and_who_is_meant() {
    let dir = setting().await;
    let dir = dir.path();
    cli(dir, &["user", "disable", "alice"]).await.ok();
    let told = cli(dir, &["explain", "alice", "db1"]).await.failed().out;
    assert!(told.starts_with("refused: alice is disabled; otherwise permitted: db1"), "{told}");
    assert_eq!(told.matches("alice is disabled").count(), 1, "{told}");
    let told = cli(dir, &["explain", "alice", "web1"]).await.failed().out;
    assert!(
        told.starts_with("refused: alice is disabled; and web1 is not granted to alice"),
        "{told}"
    );
    assert!(told.contains("it does not cover web1\n"), "{told}");
}

#[tokio::test]
async fn who_is_locked_is_listed_so() {
    let dir = setting().await;
    let dir = dir.path();
    execute(
        dir,
        "INSERT INTO throttle (account, source, failures, last_failed_at, locked_until)
         VALUES ('alice', '192.0.2.0/24', 10, 1, 9999999999999), ('otto', '192.0.2.0/24', 10, 1, 2)",
    );
    let users = cli(dir, &["user", "list"]).await.ok().out;
    let row = |name: &str| users.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(row("alice").contains("locked") && row("otto").contains("enabled"), "{users}");
    assert_eq!(json(dir, &["user", "list"]).await[1]["locked"], true);
}

/// Whoever may not be told it at once finds it in a file: there must be no administrator without that.
#[tokio::test]
async fn no_administrator_is_made_whose_password_nobody_knows() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, file) = (dir.path(), dir.path().join("sallyport-data/first-password"));
    // It cannot be written.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(file.join("full")).unwrap();
    std::fs::set_permissions(dir.join("sallyport-data"), Permissions::from_mode(0o700)).unwrap();
    fails(dir, &["init"], 1, "failed to keep the first password: ").await;
    assert!(json(dir, &["user", "list"]).await.as_array().unwrap().is_empty());
    std::fs::remove_dir_all(&file).unwrap();

    // The account cannot be added: the file is of no use.
    execute(
        dir,
        "CREATE TRIGGER no_more BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, 'no more'); END",
    );
    fails(dir, &["init"], 1, "no more").await;
    assert!(!file.exists());
    execute(dir, "DROP TRIGGER no_more");

    // It cannot be told: standard output is full. It is there nevertheless.
    let mut init = sallyport(dir, &["init", "--json"]);
    init.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    assert!(!init.status().await.unwrap().success());
    assert_eq!(std::fs::read_to_string(&file).unwrap().len(), 12);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(json(dir, &["init"]).await["made"], false);
}

#[tokio::test]
async fn from_where_a_code_is_still_taken_is_told() {
    let dir = setting().await;
    let dir = dir.path();
    let day = 24 * 3600 * 1000;
    let now = Clock::System.now().0;
    let (since, until) = (now - day, now + 29 * day);
    execute(
        dir,
        &format!(
            "INSERT INTO code_failures SELECT id, 50, {since}, {until} FROM users WHERE name = 'alice';
             INSERT INTO known_sources SELECT id, '192.0.2.7/32', {since} FROM users
               WHERE name = 'alice';
             INSERT INTO known_sources SELECT id, '192.0.2.8/32', 1 FROM users WHERE name = 'alice'"
        ),
    );
    assert_eq!(json(dir, &["user", "list"]).await[1]["locked"], true);
    let shown = cli(dir, &["user", "show", "alice"]).await.ok().out;
    assert!(shown.contains("50 wrong codes, taken from known sources only until"), "{shown}");
    let shown = json(dir, &["user", "show", "alice"]).await;
    assert_eq!(shown["code_failures"]["failures"], 50, "{shown}");
    assert_eq!(shown["known_sources"][0]["source"], "192.0.2.7/32", "{shown}");
    let why =
        "a code is taken only from where they signed in before: see 'sallyport user unlock alice'";
    let explain =
        async |from: &[&str]| cli(dir, &[&["explain", "alice", "db1"][..], from].concat()).await;
    for from in ["192.0.2.8", "192.0.2.9"] {
        let told = explain(&["--from", from]).await.failed().out;
        assert!(told.starts_with("refused: alice: 50 wrong codes") && told.contains(why), "{told}");
    }
    let told = explain(&["--from", "192.0.2.7"]).await.out;
    assert!(!told.contains(why), "{told}");
    let told = explain(&[]).await.out;
    assert!(told.contains(why), "{told}");
    cli(dir, &["user", "unlock", "alice"]).await.ok();
    assert!(!explain(&[]).await.out.contains(why));
    assert_eq!(json(dir, &["user", "show", "alice"]).await["code_failures"], Value::Null);
}

#[tokio::test]
async fn every_change_is_made_and_can_be_taken_back() {
    let dir = setting().await;
    let dir = dir.path();
    let mut keygen = command(tool("ssh-keygen"));
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f"]).arg(dir.join("id"));
    assert!(ended(&mut keygen.spawn().unwrap()).await.success());
    let public = std::fs::read_to_string(dir.join("id.pub")).unwrap();
    cli(dir, &["user", "add", "carol", "--role", "admin", "--key", "id.pub"]).await.ok();
    with_input(dir, &["user", "key", "add", "alice"], &format!("# mine\n\n{public}")).await.ok();
    cli(dir, &["user", "key", "add", "otto", "id.pub"]).await.ok();
    let keys = json(dir, &["user", "key", "list", "alice"]).await;
    let fingerprint = keys[0]["fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("SHA256:"), "{keys}");
    assert!(keys[0]["public_key"].as_str().unwrap().ends_with(" laptop"), "{keys}");

    // A password that is given is permanent, and its line break is none of it.
    let strong = "gleaming cactus 91 violin\r\n";
    let added =
        with_input(dir, &["user", "add", "dora", "--password-stdin", "--json"], strong).await;
    let added: Value = serde_json::from_str(&added.ok().out).unwrap();
    assert_eq!(added["one_time_password"], Value::Null);
    with_input(dir, &["user", "passwd", "alice", "--password-stdin"], strong).await.ok();
    assert_eq!(json(dir, &["user", "show", "alice"]).await["password_one_time"], false);

    for (args, said) in [
        (&["user", "disable", "alice"][..], "alice is disabled; their sessions end"),
        (&["user", "enable", "alice"], "alice is enabled"),
        (&["user", "unlock", "alice"], "alice is unlocked"),
        (&["user", "key", "remove", "alice", fingerprint], "alice may no longer use SHA256:"),
        (
            &["otp", "reset", "alice", "--keep-password"],
            "alice may bind an authenticator at the next login with the password they have, until 20",
        ),
        (&["otp", "reset", "alice"], "one-time password for alice: "),
        (&["otp", "reset", "alice"], "they bind an authenticator at the next login, until 20"),
        (
            &["user", "factor", "alice", "radius", "--mode", "both"],
            "alice: radius both (no server is",
        ),
        (&["otp", "show", "alice"], "radius both"),
        (&["user", "show", "alice"], "radius both"),
        (
            &["user", "factor", "alice", "none"],
            "no factor is set here any more; their sessions end",
        ),
        (
            &["group", "factor", "dba", "radius"],
            "members of dba of whom nothing else is set: radius",
        ),
        (&["group", "list"], "radius"),
        (&["user", "show", "alice"], "radius, set for group dba"),
        (&["user", "list"], "by RADIUS"),
        (&["group", "factor", "dba", "none"], "no factor is set here any more"),
        (&["group", "leave", "dba", "alice"], "alice is no longer in dba"),
        (&["group", "remove", "dba"], "group dba is removed"),
        (&["session", "kill", "0123"], "its node other does not answer"),
        (&["key", "rotate"], "0 secrets were sealed anew, under the key "),
        (&["key", "add"], "it seals nothing yet"),
        (&["key", "add", "--file", "sallyport-data/sealing_key"], "it seals nothing yet"),
        (&["key", "list"], "SEALS  SECRETS  HERE"),
        (&["target", "remove", "db1"], "target db1 is removed"),
        (&["user", "remove", "alice"], "alice is removed"),
        (&["audit", "verify"], "the audit log is whole"),
        (&["init"], "nothing was made"),
        (&["check"], "keys           in order"),
    ] {
        let ran = cli(dir, args).await.ok();
        assert!(ran.out.contains(said) && ran.err.is_empty(), "{args:?}: {ran:?}");
    }
    // The grant went with its target; each change is in the log, with who made it.
    assert_eq!(json(dir, &["grant", "list"]).await, serde_json::json!([]));
    let events = json(dir, &["audit", "list", "--limit", "999"]).await;
    for kind in [
        "user-disabled",
        "user-enabled",
        "user-unlocked",
        "key-added",
        "key-removed",
        "group-left",
        "group-removed",
        "kill-requested",
        "key-rotated",
        "target-removed",
        "grant-removed",
        "user-removed",
        "password-set",
        "binding-window-opened",
    ] {
        let event = events.as_array().unwrap().iter().find(|event| event["kind"] == kind);
        let event = event.unwrap_or_else(|| panic!("no {kind}"));
        assert!(event["actor"]["host"].as_str().unwrap().contains("uid "), "{event}");
    }
}

#[tokio::test]
async fn failures_are_one_line_and_have_their_exit_code() {
    let dir = setting().await;
    let dir = dir.path();
    std::fs::write(dir.join("garbage"), "no export\n").unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    std::fs::write(dir.join("weak"), "ssh-dss AAAAB3NzaC1kc3MAAACBAP x\n").unwrap();
    for (args, said) in [
        (&["user", "add", "alice"][..], "there is a user alice already"),
        (&["user", "factor", "eve", "radius"], "there is no user eve"),
        (&["group", "factor", "none", "radius"], "there is no group none"),
        (&["user", "add", "eve", "--key", "none.pub"], "failed to read none.pub"),
        (&["user", "add", "eve", "--key", "weak"], "line 1"),
        (&["user", "add", "eve", "--key", "empty"], "there is no public key in it"),
        (&["user", "show", "eve"], "there is no user eve: see 'sallyport user list'"),
        (&["user", "passwd", "eve"], "there is no user eve"),
        (&["user", "remove", "eve"], "there is no user eve"),
        (&["user", "enable", "alice"], "alice is enabled already"),
        (&["user", "key", "remove", "alice", "SHA256:\x1b[2J"], "no key with that fingerprint"),
        (&["otp", "show", "eve"], "there is no user eve"),
        (&["otp", "reset", "eve"], "there is no user eve"),
        (&["group", "add", "dba"], "there is a group dba already"),
        (&["group", "join", "dba", "alice"], "alice is in the group dba already"),
        (&["group", "leave", "dba", "otto"], "otto is not in a group dba"),
        (&["target", "add", "db1", "10.0.0.6"], "there is a target db1 already"),
        (
            &["target", "add", "db2", "10.0.0.5", "--mode", "tunnel"],
            "10.0.0.5:22 is the target db1 already, which is not in tunnel mode",
        ),
        (&["target", "pin", "nowhere"], "there is no target nowhere"),
        (&["target", "account", "add", "db1", "root", "--auth", "key"], "takes a secret"),
        (&["target", "add", "db2", "h", "--label", "a=1", "--label", "a=2"], "every key once"),
        (&["target", "show", "db2"], "there is no target db2"),
        (&["target", "remove", "db2"], "there is no target db2"),
        (&["grant", "add", "--user", "eve", "--target", "db1"], "there is no user eve"),
        (&["grant", "add", "--user", "alice", "--target", "db2"], "there is no target db2"),
        (&["grant", "add", "--user", "alice", "--target", "db1", "--until", "-1h"], "in the past"),
        (&["grant", "remove", "zzzzzzzzzzzz"], "there is no grant zzzzzzzzzzzz"),
        (&["explain", "eve", "db1"], "there is no user eve"),
        (&["session", "show", "zzzz"], "there is no session zzzz"),
        (&["session", "kill", "zzzz"], "there is no session zzzz"),
        (&["audit", "verify", "none.jsonl"], "failed to read none.jsonl"),
        (&["audit", "verify", "garbage"], "the checkpoint, is missing"),
        (&["audit", "verify", "garbage", "--key-file", "none"], "failed to read none"),
        (&["audit", "verify", "garbage", "--key-file", "empty"], ""),
        (&["audit", "export", "--output", "garbage"], "failed to make garbage"),
        (&["audit", "export", "--output", "no/such/folder"], "failed to make no/such/folder"),
    ] {
        fails(dir, args, 1, said).await;
    }
    let anchor = format!("99:{}", "0".repeat(64));
    let args = ["audit", "verify", "--anchor", &anchor];
    fails(dir, &args, 1, "and what follows was cut off").await;
    for (input, said) in [
        ("short\n", "too short"),
        ("password1234\n", "too easy to guess"),
        ("", "too short"),
        (&"long ".repeat(2000), "too long"),
    ] {
        let args = ["user", "add", "eve", "--password-stdin"];
        told(&with_input(dir, &args, input).await, &args, 1, said);
    }
    for input in ["", "# none\n", "ssh-ed25519 nonsense\n"] {
        let args = ["user", "key", "add", "alice"];
        told(&with_input(dir, &args, input).await, &args, 1, "public key");
    }
    // None of it changed anything.
    let users = json(dir, &["user", "list"]).await;
    assert_eq!(users.as_array().unwrap().len(), 3);
    cli(dir, &["audit", "verify"]).await.ok();

    for (args, said) in [
        (&["nonsense"][..], "unrecognized subcommand 'nonsense'"),
        (&["--nonsense"], "unexpected argument '--nonsense'"),
        (&["user", "nonsense"], "unrecognized subcommand"),
        (&["user", "add"], "<NAME>"),
        (&["user", "add", "Alice"], "\"Alice\" is not a user name"),
        (&["user", "add", "eve", "--role", "root"], "use one of user, auditor, admin"),
        (&["user", "add", "a\x1b[2J"], "is not a user name"),
        (&["target", "add", "db2", "10.0.0.5:0"], "is not a target address"),
        (&["target", "add", "db2", "h", "--label", "nonsense"], "nonsense"),
        (&["grant", "add", "--user", "alice"], "--target"),
        (&["grant", "add", "--user", "a", "--group", "b", "--target", "c"], "cannot be used with"),
        (&["grant", "add", "--user", "a", "--target", "b", "--hours", "always"], "--hours"),
        (&["grant", "add", "--user", "a", "--target", "b", "--from", "here"], "is not a network"),
        (&["grant", "add", "--user", "a", "--target", "b", "--allow", "all"], "use one of shell"),
        (&["grant", "add", "--user", "a", "--target", "b", "--until", "soon"], "--until"),
        (&["grant", "remove", "%"], "is not an id"),
        (&["explain", "alice"], "<TARGET>"),
        (&["explain", "alice", "db1", "--from", "here"], "--from"),
        (&["session", "list", "--limit", "many"], "--limit"),
        (&["session", "kill"], "<IDS>"),
        (&["audit", "list", "--since", "then"], "--since"),
        (&["audit", "verify", "--key-file", "x"], "required"),
        (&["audit", "verify", "--anchor", "5:nonsense"], "an anchor is SEQ:HASH"),
        (&["ca", "show", "nobody"], "possible values: host, user"),
        (&["completions", "csh"], "possible values"),
    ] {
        fails(dir, args, 64, said).await;
    }
    // A word that needs another shows what there is.
    for args in [&[][..], &["user"], &["audit"]] {
        let ran = cli(dir, args).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("Usage: sallyport"), "{args:?}: {ran:?}");
    }
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_by_its_place() {
    let dir = setting().await;
    let dir = dir.path();
    let with = async |name: &str, value: &str, args: &[&str]| {
        run(sallyport(dir, args).env(name, value)).await
    };
    for (name, value, said) in [
        ("SALLYPORT_SERVER__NONSENSE", "1", "SALLYPORT_SERVER__NONSENSE"),
        ("SALLYPORT_NONSENSE__X", "1", "SALLYPORT_NONSENSE__X"),
        ("SALLYPORT_SERVER__LISTEN", "5", "SALLYPORT_SERVER__LISTEN"),
        ("SALLYPORT_LOGIN__MAX_ANSWERS", "\"x\"", "SALLYPORT_LOGIN__MAX_ANSWERS"),
        ("SALLYPORT_CONFIG", "none.toml", "none.toml"),
    ] {
        let args = ["check"];
        told(&with(name, value, &args).await, &args, 78, said);
        // Every command reads it first.
        let args = ["user", "list", "--json"];
        told(&with(name, value, &args).await, &args, 78, said);
    }
    fails(dir, &["--config", "none.toml", "check"], 78, "none.toml").await;
    for (text, place) in [
        ("[server]\nlisten = 5\n", ":2:10"),
        ("[server]\n\nlissten = []\n", ":3:1"),
        ("[servers]\n", ":1:2"),
        ("nonsense", ":1:"),
        ("[log]\nlevel = \"\x07\"\n", ":2:"),
    ] {
        std::fs::write(dir.join("bad.toml"), text).unwrap();
        fails(dir, &["--config", "bad.toml", "check"], 78, &format!("bad.toml{place}")).await;
    }
    // What needs no configuration works beside one that is wrong.
    std::fs::write(dir.join("sallyport.toml"), "nonsense").unwrap();
    fails(dir, &["user", "list"], 78, "sallyport.toml:1:").await;
    for args in
        [&["--help"][..], &["user", "add", "--help"], &["--version"], &["completions", "zsh"]]
    {
        let ran = cli(dir, args).await.ok();
        assert!(!ran.out.is_empty() && ran.err.is_empty(), "{args:?}: {ran:?}");
    }
    std::fs::remove_file(dir.join("sallyport.toml")).unwrap();

    // Files that others can read, or that are gone, are told by name.
    let key = dir.join("sallyport-data/sealing_key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    fails(dir, &["user", "list"], 1, "run chmod 600 ").await;
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let data = dir.join("sallyport-data");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o755)).unwrap();
    fails(dir, &["init"], 1, "run chmod 700 ").await;
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::write(data.join("audit_key"), "nonsense").unwrap();
    fails(dir, &["user", "list"], 1, "audit_key").await;
    std::fs::remove_file(&key).unwrap();
    fails(dir, &["user", "list"], 1, "run 'sallyport serve' or 'sallyport init' first").await;
}

#[tokio::test]
async fn the_environment_overrides_the_file_and_the_command_line_both() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a.toml"), "node = \"from-a\"\ndata_dir = \"a\"\n").unwrap();
    std::fs::write(dir.join("b.toml"), "node = \"from-b\"\ndata_dir = \"b\"\n").unwrap();
    let node = async |args: &[&str], env: &[(&str, &str)]| -> String {
        let ran = |args: &[&str]| {
            let mut command = sallyport(dir, args);
            command.envs(env.iter().copied());
            command
        };
        run(&mut ran(&[args, &["init"]].concat())).await.ok();
        run(&mut ran(&[args, &["group", "add", "dba"]].concat())).await.ok();
        let args = [args, &["audit", "list", "--json", "--kind", "group-added"]].concat();
        let listed = run(&mut ran(&args)).await.ok().out;
        let events: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(events.as_array().unwrap().len(), 1);
        events[0]["node"].as_str().unwrap().to_owned()
    };
    assert_eq!(node(&[], &[("SALLYPORT_CONFIG", "a.toml")]).await, "from-a");
    assert!(dir.join("a/sallyport.db").exists() && !dir.join("b").exists());
    let both = [("SALLYPORT_CONFIG", "a.toml"), ("SALLYPORT_DATA_DIR", "\"c\"")];
    assert_eq!(node(&["--config", "b.toml"], &both).await, "from-b");
    assert!(dir.join("c/sallyport.db").exists() && !dir.join("b").exists());
    let both = [("SALLYPORT_NODE", "\"from-env\""), ("SALLYPORT_DATA_DIR", "\"d\"")];
    assert_eq!(node(&["--config", "b.toml"], &both).await, "from-env");
    // `init --data-dir` wins over all of it.
    let args = ["--config", "b.toml", "init", "--data-dir", "e"];
    run(sallyport(dir, &args).env("SALLYPORT_DATA_DIR", "\"c\"")).await.ok();
    assert!(dir.join("e/sallyport.db").exists() && !dir.join("b").exists());
    // `check` says which file it was.
    let mut check = sallyport(dir, &["check"]);
    let ran = run(check.env("SALLYPORT_CONFIG", "a.toml")).await.ok();
    assert!(ran.out.contains("configuration  a.toml") && ran.out.contains("sqlite:a/"), "{ran:?}");
}

#[tokio::test]
async fn completions_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for (shell, marks) in [
        ("bash", &["_sallyport()", "complete -F _sallyport"][..]),
        ("zsh", &["#compdef sallyport", "_sallyport()"]),
        ("fish", &["complete -c sallyport"]),
    ] {
        let script = cli(dir.path(), &["completions", shell]).await.ok();
        assert_eq!(script.err, "");
        let words = [
            "serve",
            "init",
            "check",
            "user",
            "group",
            "otp",
            "target",
            "grant",
            "explain",
            "session",
            "audit",
            "ca",
            "key",
            "completions",
            "password-stdin",
            "json",
        ];
        for mark in marks.iter().chain(&words) {
            assert!(script.out.contains(mark), "{shell}: {mark}");
        }
        if shell == "bash" {
            std::fs::write(dir.path().join("script"), &script.out).unwrap();
            let asks = "source ./script && COMP_WORDS=(sallyport sess) COMP_CWORD=1 && \
                        _sallyport sallyport sess sallyport && echo \"${COMPREPLY[@]}\"";
            let ran = run(command(tool("bash")).args(["-c", asks]).current_dir(dir.path())).await;
            assert_eq!(ran.ok().out, "session\n");
        }
    }
}

#[tokio::test]
async fn an_export_is_checked_against_a_key_and_an_anchor_of_ones_own() {
    let dir = setting().await;
    let dir = dir.path();
    let public = async |private: &str, file: &str| {
        let mut keygen = command(tool("ssh-keygen"));
        let ran = run(keygen.args(["-y", "-f"]).arg(dir.join(private))).await.ok();
        std::fs::write(dir.join(file), ran.out).unwrap();
    };
    public("sallyport-data/audit_key", "right.pub").await;
    public("sallyport-data/host_key", "wrong.pub").await;
    cli(dir, &["audit", "export", "--output", "a.jsonl"]).await.ok();
    let anchor = json(dir, &["audit", "verify"]).await;
    let noted = format!("{}:{}", anchor["seq"], anchor["hash"].as_str().unwrap());
    let verify = ["audit", "verify", "a.jsonl", "--key-file"];
    let right = [&verify[..], &["right.pub", "--anchor", &noted]].concat();
    assert!(cli(dir, &right).await.ok().out.contains("(as given)"));
    let believed = cli(dir, &["audit", "verify", "a.jsonl"]).await.ok();
    assert!(believed.out.contains("as the export says"), "{believed:?}");
    let wrong = [&verify[..], &["wrong.pub"]].concat();
    fails(dir, &wrong, 1, "is not signed by the audit key").await;
    // It needs neither the store nor its folder.
    std::fs::rename(dir.join("sallyport-data"), dir.join("elsewhere")).unwrap();
    cli(dir, &right).await.ok();
    fails(dir, &["user", "list"], 1, "run 'sallyport serve'").await;
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_failure() {
    let dir = setting().await;
    for args in [&["audit", "export"][..], &["audit", "list", "--json"], &["user", "list"]] {
        let mut child = sallyport(dir.path(), args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[tokio::test]
async fn radius_servers_are_checked_before_anybody_needs_them() {
    let dir = setting().await;
    let dir = dir.path();
    cli(dir, &["user", "factor", "alice", "radius"]).await.ok();
    // Without servers she cannot sign in.
    let explained = cli(dir, &["explain", "alice", "db1"]).await;
    assert!(explained.out.contains("no server is configured"), "{explained:?}");
    let server = "[[radius.server]]\nname = \"north\"\naddress = \"127.0.0.1:1812\"\n";
    let write = |more: &str| std::fs::write(dir.join("sallyport.toml"), format!("{server}{more}"));
    for (more, code, said) in [
        ("", 1, "the RADIUS server north has no secret: write it to a file"),
        ("secret_file = \"none\"", 1, "none"),
        ("secret_file = \"open\"", 1, "can be read by others"),
        ("secret_file = \"empty\"", 1, "the shared secret is empty"),
        ("secret = \"x\"", 78, "sallyport.toml:4:1: unknown field `secret`"),
        ("transport = \"tcp\"", 78, "\"tcp\" is not a transport: use one of udp, tls"),
        ("tries = 11", 78, "radius.server \"north\" must have 1 to 10 tries"),
        ("timeout = \"1m\"\n[server]\nlogin_grace = \"50s\"", 78, "server.login_grace"),
    ] {
        write(more).unwrap();
        std::fs::write(dir.join("open"), "x").unwrap();
        if !dir.join("empty").exists() {
            sallyport::keys::write_secret(&dir.join("empty"), b"\n").unwrap();
            sallyport::keys::write_secret(&dir.join("secret"), b"x\n").unwrap();
        }
        let ran = cli(dir, &["check"]).await;
        assert!(ran.code == Some(code) && ran.err.contains(said), "{more:?}: {ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    }
    write("secret_file = \"secret\"").unwrap();
    let ran = cli(dir, &["check"]).await.ok();
    assert!(ran.out.contains("RADIUS         servers: 1; mode code"), "{ran:?}");
    let explained = cli(dir, &["explain", "alice", "db1"]).await.ok();
    assert!(explained.out.contains("alice signs in by radius code"), "{explained:?}");
    fails(dir, &["user", "factor", "alice", "totp", "--mode", "code"], 1, "with radius only").await;
    let added = json(dir, &["user", "add", "carol", "--factor", "radius"]).await;
    assert_eq!(added["binding_until"], Value::Null);
    assert_eq!(json(dir, &["otp", "show", "carol"]).await["radius_mode"], "code");
}

#[tokio::test]
async fn rules_for_signing_in_are_set_shown_and_explained() {
    let dir = setting().await;
    let dir = dir.path();
    let default = "password+otp, key+otp, certificate+otp (the default)";
    let shown = cli(dir, &["user", "show", "alice"]).await.ok().out;
    assert!(shown.contains(default), "{shown}");
    let set = cli(dir, &["group", "sign-in", "dba", "key+otp,  password+otp"]).await.ok().out;
    assert!(set.contains("members of dba without a rule of their own: key+otp, password+otp"));
    cli(dir, &["target", "sign-in", "db1", "key+otp"]).await.ok();
    let groups = json(dir, &["group", "list"]).await;
    assert_eq!(groups[0]["sign_in"], "key+otp, password+otp");
    assert_eq!(json(dir, &["target", "show", "db1"]).await["sign_in"], "key+otp");
    let shown = json(dir, &["user", "show", "alice"]).await;
    let of_group = serde_json::json!([
        { "rule": "key+otp, password+otp", "from": "the rule of group dba" }
    ]);
    assert_eq!(shown["sign_in"], of_group);
    let explained = cli(dir, &["explain", "alice", "db1"]).await.out;
    for told in
        ["alice has to give key+otp, password+otp (the rule of group dba)", "db1 asks for key+otp"]
    {
        assert!(explained.contains(told), "{explained}");
    }
    // What needs no code needs no authenticator.
    cli(dir, &["user", "sign-in", "alice", "key from 192.0.2.0/24"]).await.ok();
    cli(dir, &["target", "sign-in", "db1", "default"]).await.ok();
    for (from, told) in [
        ("192.0.2.7", "alice has to give key from 192.0.2.0/24 (the user's own rule)"),
        ("203.0.113.9", "refused: nothing lets alice in from 203.0.113.9"),
    ] {
        let explained = cli(dir, &["explain", "alice", "db1", "--from", from]).await;
        assert_eq!(explained.code, Some(i32::from(from != "192.0.2.7")), "{explained:?}");
        assert!(explained.out.contains(told), "{explained:?}");
        assert!(!explained.out.contains("authenticator"), "{explained:?}");
    }
    cli(dir, &["user", "sign-in", "alice", "default"]).await.ok();
    assert_eq!(json(dir, &["user", "show", "alice"]).await["sign_in"], of_group);
    for (args, why) in [
        (&["user", "sign-in", "alice", "key"][..], "only from networks that are named"),
        (&["user", "sign-in", "alice", "password from 10.0.0.0/8"], "never enough alone"),
        (&["user", "sign-in", "eve", "key+otp"], "there is no user eve"),
        (&["group", "sign-in", "ops", "key+otp"], "there is no group ops"),
        (&["target", "sign-in", "db9", "key+otp"], "there is no target db9"),
    ] {
        let ran = cli(dir, args).await.failed();
        assert!(ran.err.contains(why) && ran.err.lines().count() == 1, "{ran:?}");
    }
}
