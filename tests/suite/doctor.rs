//! `sallyport doctor`, by the real binary, beside real targets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::support::ssh::{Run, run};
use crate::support::sshd::Sshd;
use crate::support::{command, eventually};

/// Runs the binary in `dir`.
pub async fn sallyport(dir: &Path, args: &[&str]) -> Run {
    let mut command = command(env!("CARGO_BIN_EXE_sallyport"));
    command.args(args).current_dir(dir).env("SALLYPORT_RECORD__MIN_FREE", "\"1 MiB\"");
    run(&mut command).await
}

/// What it finds, and whether it says that all is well.
pub async fn doctor(dir: &Path) -> (bool, Vec<Value>) {
    let ran = sallyport(dir, &["doctor", "--json"]).await;
    assert_eq!(ran.err, "", "{ran:?}");
    (ran.code == Some(0), serde_json::from_str(&ran.out).unwrap())
}

/// The finding of `check` whose text has `said`.
#[track_caller]
pub fn finding(findings: &[Value], check: &str, grade: &str, said: &str) {
    let fits = |finding: &Value| {
        (&finding["check"], &finding["grade"]) == (&check.into(), &grade.into())
            && finding["text"].as_str().unwrap().contains(said)
    };
    assert!(findings.iter().any(fits), "{check} {grade} {said}: {findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_names_what_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    // Before anything was made, it says so and goes on.
    let (well, findings) = doctor(dir).await;
    assert!(!well);
    finding(&findings, "store", "FAIL", "there is no sealing key");
    finding(&findings, "keys", "FAIL", "data folder");

    sallyport(dir, &["init"]).await.ok();
    let sshd = Sshd::start().await;
    let address = format!("127.0.0.1:{}", sshd.port);
    sallyport(dir, &["target", "add", "db1", &address]).await.ok();
    let (well, findings) = doctor(dir).await;
    assert!(!well);
    finding(&findings, "target", "FAIL", "run 'sallyport target pin db1'");
    sallyport(dir, &["target", "pin", "db1"]).await.ok();
    let (well, findings) = doctor(dir).await;
    assert!(well, "{findings:#?}");
    finding(&findings, "target", "OK", "as pinned");
    finding(&findings, "store", "OK", "sallyport.db");
    finding(&findings, "clock", "OK", "it is 20");
    finding(&findings, "certificate", "WARN", "public_host");
    for key in ["sealing key", "audit key", "host key", "host CA", "user CA"] {
        finding(&findings, "keys", "OK", key);
    }
    // A table says the same, a line each.
    let table = sallyport(dir, &["doctor"]).await.ok().out;
    assert_eq!(table.lines().count(), findings.len() + 1, "{table}");

    // Another host answers in its place.
    let other = Sshd::start().await;
    std::fs::write(dir.join("other.pub"), other.host_key()).unwrap();
    sallyport(dir, &["target", "pin", "db1", "--key-file", "other.pub", "--replace"]).await.ok();
    let (well, findings) = doctor(dir).await;
    assert!(!well);
    finding(&findings, "target", "FAIL", "which is not what is pinned");
    drop(sshd);
    eventually("the target is gone", async || {
        std::net::TcpStream::connect(&address).is_err().then_some(())
    })
    .await;
    let (well, findings) = doctor(dir).await;
    assert!(!well);
    finding(&findings, "target", "FAIL", "refused the connection");

    let key = dir.join("sallyport-data/host_ca");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    finding(&doctor(dir).await.1, "keys", "FAIL", "can be read by others");
    let mut command = command(env!("CARGO_BIN_EXE_sallyport"));
    command.args(["doctor", "--json"]).current_dir(dir);
    let ran = run(command.env("SALLYPORT_RECORD__MIN_FREE", "\"900000 GiB\"")).await;
    let findings: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    finding(&findings, "space", "FAIL", "recorded sessions end");
}
