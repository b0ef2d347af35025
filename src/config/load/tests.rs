//! Tests of loading: what is said of a mistake, what overrides what, what the shipped file shows.

use super::super::names::names;
use super::super::{Method, Span};
use super::*;
use crate::logging::LogFormat;

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    let shown = path.display().to_string();
    let loaded = Config::load(Some(&path), pairs(env));
    loaded.map(|l| l.config).map_err(|e| e.to_string().replace(&shown, "c"))
}

fn pairs(env: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

#[test]
fn mistakes_in_a_file_are_told_by_line_and_column() {
    for (text, says) in [
        // What is no TOML.
        ("data_dir = ", "c:1:12: "),
        ("[server\nlisten = []", "c:1:8: "),
        ("node = \"a\"\nnode = \"b\"", "c:2:1: duplicate key"),
        // Names.
        ("[server]\n  lisen = []", "c:2:3: there is no key server.lisen: did you mean listen?"),
        ("[sever]\nlisten = []", "c:1:2: there is no section [sever]: did you mean server?"),
        ("max_channels = 1", "c:1:1: there is no key max_channels: max_channels belongs into"),
        ("node = \"ö\"\n\"ö\" = 1", "c:2:1: there is no key ö"),
        ("x = [ö]", "c:1:6: "),
        ("[login]\nb = 1\n[keys]\na = 1", "c:2:1: there is no key login.b"),
        // Types.
        ("[login]\nlock_for = \"soon\"", "c:2:12: \"soon\" is not a length of time: write it like"),
        ("[login]\nargon2_memory = \"1 MB\"", "c:2:17: \"1 MB\" is not a size"),
        (
            "[login]\nlock_after = -1",
            "c:2:14: login.lock_after: invalid value: integer `-1`, expected a whole number",
        ),
        (
            "[server]\nlisten = [\"x\"]",
            "c:2:11: server.listen: not an address of this host with a port; write it like listen = [\"0.0.0.0:2222\"]",
        ),
        ("[server]\nproxy_from = [\"10.0.0.0/33\"]", "c:2:15: server.proxy_from: "),
        ("[log]\nformat = \"xml\"", "c:2:10: \"xml\" is not a log format: use one of auto, human"),
        ("server = 1", "c:1:10: server is a section: its keys come below a line [server]"),
        (
            "[node]",
            "c:1:1: node: invalid type: map, expected a string; write it like node = \"text\"",
        ),
        ("[login]\nmethods = [\"pass\"]", "c:2:11: \"pass\" is not a method"),
        // Rules.
        ("[server]\nmax_channels = 0", "c:2:16: server.max_channels must be from 1 to 65536"),
        ("[login]\npassword_min_length = 7", "c:2:23: login.password_min_length must be from 8"),
        ("[login]\nmethods = [\"password\"]", "c:2:11: login.methods must have keyboard-inter"),
        ("[login]\nissuer = \"a:b\"", "c:2:10: login.issuer must be"),
        ("[store]\nurl = \"mysql://x\"", "c:2:7: store.url must begin with \"sqlite:\" or \"post"),
        ("[forward]\nwindow = \"1 GiB\"", "c:2:10: forward.window must be"),
        ("[server]\nlisten = []", "c:2:10: server.listen must name an address"),
        ("[log]\nlevel = \"inof\"", "c:2:9: log.level must be off, error"),
        ("[server]\nlogin_grace = \"0s\"", "c:2:15: server.login_grace must be longer than 0s"),
        // A rule about two keys is told where one of them was set.
        ("[login]\nbackoff_first = \"1m\"", "c:2:17: login.backoff_max and login.backoff_first"),
        ("[login]\nsite_lock_after = 5", "c:2:19: login.site_lock_after and login.lock_after"),
        ("data_dir = \"\"", "c:1:12: data_dir must name a folder"),
    ] {
        let found = load_text(text, &[]).unwrap_err();
        let says = format!("failed to read the configuration {says}");
        assert!(found.starts_with(&says) && !found.contains('\n'), "{text:?}:\n{found}\n{says}");
    }
}

#[test]
fn a_password_in_the_url_is_refused_and_not_repeated() {
    for url in ["postgres://u:hunter2@h/d", "postgresql://u@h/d?password=hunter2"] {
        let found = load_text(&format!("[store]\nurl = \"{url}\""), &[]).unwrap_err();
        assert!(found.contains("store.password_file") && !found.contains("hunter2"), "{found}");
        let found = load_text("", &[("SALLYPORT_STORE__URL", url)]).unwrap_err();
        assert!(found.contains("SALLYPORT_STORE__URL") && !found.contains("hunter2"), "{found}");
    }
}

#[test]
fn the_environment_overrides_single_keys() {
    let env = [
        ("SALLYPORT_SERVER__LISTEN", "[\"127.0.0.1:0\", \"[::1]:22\"]"),
        ("SALLYPORT_LOGIN__ISSUER", "Acme"),
        ("SALLYPORT_LOGIN__LOCK_AFTER", "5"),
        ("SALLYPORT_LOG__FORMAT", "\"json\""),
        ("SALLYPORT_DATA_DIR", "/tmp/x"),
        ("SALLYPORT_NODE", "7"),
        ("SALLYPORT_CONFIG", "/not/looked/at"),
        ("CREDENTIALS_DIRECTORY", "/run/credentials/x"),
        ("OTHER__THING", "x"),
    ];
    let config = load_text("[login]\nissuer = \"File\"\nlock_for = \"1m\"", &env).unwrap();
    assert_eq!(config.server.listen, ["127.0.0.1:0", "[::1]:22"].map(|a| a.parse().unwrap()));
    assert_eq!((config.login.issuer.as_str(), config.login.lock_after), ("Acme", 5));
    assert_eq!(config.login.lock_for, Span::seconds(60));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!((config.data_dir.as_path(), config.node.as_str()), (Path::new("/tmp/x"), "7"));
    assert_eq!(config.keys.credentials.as_deref(), Some(Path::new("/run/credentials/x")));
}

#[test]
fn mistakes_in_the_environment_are_told_by_the_name_of_the_variable() {
    for (name, value, says) in [
        ("SALLYPORT_LOGIN__ISUER", "x", "there is no key login.isuer: did you mean issuer?"),
        ("SALLYPORT_LOGINS__ISSUER", "x", "there is no section [logins]: did you mean login?"),
        ("SALLYPORT_A__B__C", "x", "there is no section [a]"),
        (
            "SALLYPORT_LOGIN__LOCK_AFTER",
            "many",
            "invalid type: string \"many\", expected a whole number from 0 on; write it like SALLYPORT_LOGIN__LOCK_AFTER='10'",
        ),
        ("SALLYPORT_LOGIN__LOCK_AFTER", "0", "login.lock_after must be from 1 to 100"),
        ("SALLYPORT_LOGIN__LOCK_FOR", "30", "\"30\" is not a length of time"),
        (
            "SALLYPORT_SERVER__LISTEN",
            "0.0.0.0:22",
            "invalid type: string \"0.0.0.0:22\", expected a list; write it like SALLYPORT_SERVER__LISTEN='[\"0.0.0.0:2222\"]'",
        ),
        ("SALLYPORT_LOGIN__BACKOFF_FIRST", "1m", "contradict"),
    ] {
        let found = load_text("node = \"a\"", &[(name, value)]).unwrap_err();
        let start = format!("failed to read the environment variable {name}: ");
        assert!(found.starts_with(&start) && found.contains(says), "{found}\n{says}");
    }
}

#[test]
fn variables_that_mean_no_key_are_left_alone() {
    // What Kubernetes sets in every container beside a service named "sallyport".
    let env = [
        ("SALLYPORT_PORT", "tcp://10.0.0.1:22"),
        ("SALLYPORT_SERVICE_HOST", "10.0.0.1"),
        ("SALLYPORT_SERVER", "x"),
    ];
    assert_eq!(load_text("", &env).unwrap(), Config::default());
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let missing = Path::new("/nonexistent/c.toml");
    let error = Config::load(Some(missing), pairs(&[])).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/c.toml"), "{error}");
    let env = [("SALLYPORT_CONFIG", "/nonexistent/d.toml")];
    let error = Config::load(None, pairs(&env)).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/d.toml"), "{error}");
}

#[test]
fn the_first_place_that_has_a_file_counts_and_must_be_readable() {
    let folder = tempfile::tempdir().unwrap();
    let [missing, first, second] = ["a", "b", "c"].map(|name| folder.path().join(name));
    let found = |places: &[&PathBuf]| Source::find(None, places).map(|source| source.path);
    assert_eq!(found(&[&missing, &first]).unwrap(), None);
    std::fs::write(&second, "").unwrap();
    assert_eq!(found(&[&missing, &first, &second]).unwrap(), Some(second.clone()));
    std::fs::write(&first, "").unwrap();
    assert_eq!(found(&[&missing, &first, &second]).unwrap(), Some(first.clone()));
    // A folder is there and cannot be read, for root neither.
    let error = found(&[&missing, &folder.path().to_owned(), &second]).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn a_file_that_somebody_else_can_write_is_not_found_by_default() {
    use std::os::unix::fs::PermissionsExt as _;
    for ((owner, group, mode), caller, why) in [
        ((1000, 1000, 0o644), 1000, None),
        ((1000, 1000, 0o664), 1000, None),
        ((1000, 100, 0o664), 1000, Some(Distrust::Writable)),
        ((1000, 1000, 0o646), 1000, Some(Distrust::Writable)),
        ((0, 0, 0o644), 1000, None),
        ((0, 0, 0o1777), 1000, Some(Distrust::Writable)),
        ((1000, 1000, 0o600), 0, Some(Distrust::Owner)),
        ((1001, 1001, 0o644), 1000, Some(Distrust::Owner)),
    ] {
        assert_eq!(distrust((owner, group, mode), caller), why, "{owner} {mode:o} {caller}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    std::fs::write(&path, "").unwrap();
    let set = |at: &Path, mode| {
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let found = || Source::find(None, &[&path]).map(|source| source.path);
    assert_eq!(found().unwrap(), Some(path.clone()));
    set(folder.path(), 0o1777);
    let error = found().unwrap_err().to_string();
    assert!(error.contains("others can write its folder") && error.contains("--config"), "{error}");
    set(folder.path(), 0o700);
    set(&path, 0o666);
    assert!(matches!(found(), Err(Error::Untrusted { .. })));
    // Whoever names it takes it as it is.
    assert!(Source::find(Some(&path), &[&path]).is_ok());
}

#[test]
fn the_variable_names_the_file_unless_the_command_line_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, node: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("node = \"{node}\"")).unwrap();
        path
    };
    let (explicit, variable) = (file("a", "explicit"), file("b", "variable"));
    let env = [("SALLYPORT_CONFIG", variable.to_str().unwrap())];
    for (named, path) in [(Some(explicit.as_path()), &explicit), (None, &variable)] {
        let loaded = Config::load(named, pairs(&env)).unwrap();
        assert_eq!(loaded.path.as_ref(), Some(path));
        assert_eq!(loaded.config.node, if named.is_some() { "explicit" } else { "variable" });
    }
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let shipped = include_str!("../../../config/sallyport.toml");
    assert_eq!(load_text(shipped, &[]).unwrap(), Config::default());

    // "# key = value" is a default; any other comment explains.
    let is_default = |line: &str| {
        let name = line.split_once(" = ").map(|(name, _)| name);
        name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b"_2".contains(&b)))
    };
    let bare = |line: &&str| line.strip_prefix("# ").filter(|line| is_default(line)).is_some();
    assert!(!shipped.lines().any(is_default), "a key is not commented out");
    let text: String = shipped
        .lines()
        .map(|line| if bare(&line) { line.trim_start_matches("# ") } else { line })
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(load_text(&text, &[]).unwrap(), Config::default());

    let shown: toml::Table = toml::from_str(&text).unwrap();
    assert_eq!(names(&shown), names(&Config::default().table()));
}

#[test]
fn the_default_configuration_survives_being_written_as_toml() {
    let text = toml::to_string(&Config::default().table()).unwrap();
    assert_eq!(load_text(&text, &[]).unwrap(), Config::default());
    assert_eq!(Config::default().login.methods, Method::ALL);
}
