//! The import rule: which part may name which crate.

use std::path::{Path, PathBuf};

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 30);
    files
}

/// The lines that are code.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn crates_are_named_only_where_they_belong() {
    for (krate, places) in [
        ("russh::", &["server", "keys.rs", "keys"][..]),
        ("diesel", &["store"]),
        ("ratatui", &["console"]),
        ("clap", &["cli.rs", "cli", "main.rs"]),
    ] {
        for (path, text) in sources() {
            let allowed = places.iter().any(|place| path.starts_with(place));
            let named = code(&text).find(|line| line.contains(krate));
            assert!(
                allowed || named.is_none(),
                "{}: {}",
                path.display(),
                named.unwrap_or_default()
            );
        }
    }
}

#[test]
fn the_core_knows_no_shell() {
    let shell = [
        "tokio",
        "russh",
        "diesel",
        "crate::store",
        "crate::server",
        "crate::clock",
        "crate::config",
    ];
    for (path, text) in sources() {
        if ["domain", "auth", "policy", "audit", "sftp"].iter().any(|core| path.starts_with(core)) {
            for line in code(&text) {
                assert!(!shell.iter().any(|s| line.contains(s)), "{}: {line}", path.display());
            }
        }
    }
}

/// The parts of the program, from the top down: a part imports only those below it.
const ORDER: [&str; 22] = [
    "main",
    "serve",
    "doctor",
    "setup",
    "server",
    "console",
    "admin",
    "cli",
    "store",
    "recording",
    "keys",
    "config",
    "logging",
    "clock",
    "harden",
    "hashing",
    "policy",
    "auth",
    "sftp",
    "audit",
    "domain",
    // A client that could be a crate of its own: it imports nothing of ours.
    "radius",
];

#[test]
fn imports_point_down_only() {
    let place = |part: &str| ORDER.iter().position(|known| *known == part);
    for (path, text) in sources() {
        let part = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if part == "lib" {
            continue;
        }
        let from = place(part).unwrap_or_else(|| panic!("{part} has no place in the order"));
        for line in code(&text) {
            for rest in line.split("crate::").skip(1) {
                let named = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                let Some(to) = place(named) else { continue };
                assert!(to >= from, "{}: {line}", path.display());
            }
        }
    }
}

/// Who signs in is let in by this proof alone.
#[test]
fn only_the_store_proves_that_a_session_was_opened() {
    let makes = |text: &str| code(text).any(|line| line.contains("Opened::committed"));
    let makers: Vec<PathBuf> =
        sources().into_iter().filter(|(_, text)| makes(text)).map(|(path, _)| path).collect();
    let (store, tests): (Vec<&PathBuf>, Vec<&PathBuf>) =
        makers.iter().partition(|path| path.starts_with("store"));
    assert_eq!(store.len(), 1, "{makers:?}");
    assert!(
        tests.iter().all(|path| path.starts_with("auth/machine/tests")
            || path.ends_with("auth/machine/tests.rs")),
        "{makers:?}"
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{}", path.display());
    }
}
