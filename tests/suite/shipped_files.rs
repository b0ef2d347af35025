//! The files that are shipped beside the program: the systemd units and the scripts.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sallyport::config::{Config, Span};

use crate::support::ssh::run;
use crate::support::{command, tool};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// The values that the service gives to `key`.
fn service(key: &str) -> Vec<String> {
    let unit = text("systemd/sallyport.service");
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// The bar is 2.0 (`--threshold=20`), where 10 is the worst.
#[tokio::test]
async fn the_unit_is_sandboxed_tightly() {
    let mut analyze = command(tool("systemd-analyze"));
    analyze.args(["security", "--offline=true", "--threshold=20", "--no-pager"]);
    let ran = run(analyze.arg(path("systemd/sallyport.service"))).await.ok();
    assert!(ran.out.contains("Overall exposure level"), "{ran:?}");
}

/// systemd only warns of a setting that it does not know, and goes on without it.
#[tokio::test]
async fn systemd_has_nothing_to_say_against_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_sallyport");
    let mut analyze = command(tool("systemd-analyze"));
    analyze.args(["verify", "--man=no", "--recursive-errors=one"]);
    for name in ["sallyport.service", "sallyport.socket"] {
        // The program must be where the unit says, and it is not installed here.
        let unit = text(&format!("systemd/{name}")).replace("/usr/bin/sallyport", program);
        std::fs::write(folder.path().join(name), unit).unwrap();
        analyze.arg(folder.path().join(name));
    }
    let ran = run(&mut analyze).await.ok();
    assert!(!ran.err.contains("sallyport"), "{ran:?}");
}

#[test]
fn the_service_waits_longer_than_the_program_drains() {
    let [stop] = &service("TimeoutStopSec")[..] else { panic!("TimeoutStopSec is not set once") };
    let drain = Config::default().server.drain.0;
    assert!(stop.parse::<Span>().unwrap().0 > drain + Duration::from_secs(5), "{stop}");
}

#[test]
fn the_service_passes_every_secret_as_a_credential_that_may_be_missing() {
    let passed: BTreeSet<String> = service("LoadCredential").into_iter().collect();
    // The names under which `Config::key_path` and `Config::store_password_path` look.
    let names = [
        "sealing_key",
        "host_key",
        "host_ca",
        "user_ca",
        "login_ca",
        "audit_key",
        "store_password",
    ];
    // A path with a slash would have to exist (systemd.exec(5)).
    assert_eq!(passed, names.map(|name| format!("{name}:sallyport.{name}")).into());
}

#[test]
fn a_wrong_configuration_does_not_make_the_service_start_again_and_again() {
    let code = sallyport::config::Error::EXIT_CODE.to_string();
    assert_eq!(service("RestartPreventExitStatus"), [code]);
}

#[test]
fn the_scripts_can_be_run_and_ci_runs_what_the_readme_says() {
    for script in ["tests/run", ".ci/run"] {
        let mode = std::fs::metadata(path(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
        assert!(text(script).contains("\nset -euo pipefail\n"), "{script} goes on after a failure");
    }
    let readme = text("README.md");
    assert!(readme.contains("cargo run --release -- serve") && readme.contains("tests/run"));
    assert!(text(".ci/run").lines().any(|line| line == "tests/run"));
}
