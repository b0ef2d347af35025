//! The files that are shipped beside the program.

use crate::support::ssh::run;
use crate::support::{command, tool};

fn path(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn the_unit_is_sandboxed_tightly() {
    let mut analyze = command(tool("systemd-analyze"));
    analyze.args(["security", "--offline=true", "--threshold=20", "--no-pager"]);
    let ran = run(analyze.arg(path("systemd/sallyport.service"))).await.ok();
    assert!(ran.out.contains("Overall exposure level"), "{ran:?}");
    assert!(!ran.err.contains("Unknown"), "{ran:?}");
}

#[tokio::test]
async fn ci_runs_what_the_readme_says() {
    let readme = std::fs::read_to_string(path("README.md")).unwrap();
    let ci = std::fs::read_to_string(path(".ci/run")).unwrap();
    assert!(readme.contains("cargo run --release -- serve") && readme.contains("tests/run"));
    assert!(ci.lines().any(|line| line == "tests/run"));
}
