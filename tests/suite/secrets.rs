//! What is left of secrets after a first login: in the server's memory, and in every file.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use sallyport::clock::Clock;
use sallyport::domain::UnixTime;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::process::Command;

use crate::support::bastion::{code_of, secret_of};
use crate::support::screen::Screen;
use crate::support::server::{BINARY, Server};
use crate::support::ssh::{Client, run};
use crate::support::{PATIENCE, command, ended, eventually, tool};

/// Long, since an allocator writes over the beginning of what is freed.
const CHOSEN: &str = "seventeen lopsided teapots hum beneath a wardrobe";
const BANNER: &str = "a banner that is in memory all the time";

/// Makes glibc wipe all memory that is freed: what is found then is still kept by somebody.
const WIPE: &str = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=165";

/// Every form in which a secret was in the server.
struct Secrets {
    one_time: String,
    raw: Vec<u8>,
    base32: String,
    codes: Vec<String>,
}

impl Secrets {
    /// Those that go over the wire, and so through the SSH library: as they are typed and shown.
    fn shown(&self) -> Vec<(String, Vec<u8>)> {
        let groups: Vec<&str> =
            self.base32.as_bytes().chunks(4).map(|g| std::str::from_utf8(g).unwrap()).collect();
        let mut all = vec![
            ("the one-time password".into(), self.one_time.clone().into_bytes()),
            ("the chosen password".into(), CHOSEN.into()),
            ("the secret in groups".into(), groups.join(" ").into_bytes()),
        ];
        all.extend(self.codes.iter().map(|code| (format!("code {code}"), code.clone().into())));
        all
    }

    /// Those that only the bastion's own code sees.
    fn inner(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = vec![
            ("the secret's bytes".into(), self.raw.clone()),
            ("the secret in base32".into(), self.base32.clone().into_bytes()),
        ];
        let plain = |code: &String| (format!("plain {code}"), code.replace('-', "").into_bytes());
        all.extend(self.codes.iter().map(plain));
        all
    }
}

/// Which of `secrets` are in `bytes`, by any ten bytes of them.
fn found(bytes: &[u8], secrets: &[(String, Vec<u8>)]) -> Vec<String> {
    const PART: usize = 10;
    let windows = |secret: &[u8]| secret.windows(PART).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let parts: HashSet<Vec<u8>> = secrets.iter().flat_map(|(_, secret)| windows(secret)).collect();
    let mut begins = vec![false; 1 << 16];
    let begin = |part: &[u8]| usize::from(part[0]) << 8 | usize::from(part[1]);
    parts.iter().for_each(|part| begins[begin(part)] = true);
    let seen: HashSet<&[u8]> =
        bytes.windows(PART).filter(|part| begins[begin(part)] && parts.contains(*part)).collect();
    let is_seen = |secret: &[u8]| secret.windows(PART).any(|part| seen.contains(part));
    secrets.iter().filter(|(_, s)| is_seen(s)).map(|(name, _)| name.clone()).collect()
}

/// Runs a program as root: nobody else may look into a server.
async fn as_root(program: &str, args: &[&str]) -> Vec<u8> {
    let mut command = if rustix::process::getuid().is_root() {
        command(tool(program))
    } else {
        let mut sudo = command(tool("sudo"));
        sudo.args(["-n", program]);
        sudo
    };
    let child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}

/// The heap and the static variables of a process. Its stacks are left out: what is left on them of
/// a function that has returned is the compiler's.
async fn memory(pid: u32) -> Vec<u8> {
    let maps = as_root("cat", &[&format!("/proc/{pid}/maps")]).await;
    let (mut ranges, mut guarded) = (Vec::new(), 0);
    for line in String::from_utf8(maps).unwrap().lines() {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (start, end) = (number(start), number(end));
        // A thread's stack begins behind a page that nobody may touch.
        if line.contains(" rw") && start != guarded && !line.ends_with("[stack]") {
            ranges.push(format!("skip={start} count={}", end - start));
        }
        guarded = if line.contains(" ---p") && end - start == 4096 { end } else { 0 };
    }
    let memory = format!("if=/proc/{pid}/mem iflag=skip_bytes,count_bytes bs=1M status=none");
    let script = format!("for range; do dd {memory} $range || exit 1; done");
    let ranges = ranges.iter().map(String::as_str);
    as_root("sh", &["-c", &script, "sh"].into_iter().chain(ranges).collect::<Vec<_>>()).await
}

/// A first login with a real client, and a second one, both over when this returns.
async fn logged_in(change: impl FnOnce(&mut Command)) -> (Server, Secrets) {
    let banner = format!("[server]\nbanner = \"{BANNER}\"\n");
    let mut one_time = SecretString::from("");
    let server =
        Server::prepared(&banner, async |r| one_time = r.newcomer("alice").await, change).await;
    let client = Client::on_port(server.port, "alice");
    let mut ssh = command(tool("ssh"));
    ssh.arg("-F").arg(client.path("config")).arg("bastion");
    let mut screen = Screen::run(&ssh);
    screen.expect("Password: ").await;
    screen.type_line(one_time.expose_secret()).await;
    for prompt in ["Choose a new password: ", "Repeat the new password: "] {
        screen.expect(prompt).await;
        screen.type_line(CHOSEN).await;
    }
    screen.expect("makes a new one): ").await;
    screen.settle().await;
    let raw = secret_of(&screen.qr().unwrap());
    let now = Clock::System.now();
    screen.type_line(&code_of(&raw, now)).await;
    screen.expect("Press Enter to continue: ").await;
    let text = screen.text();
    let is_code = |word: &&str| word.len() == 29 && word.matches('-').count() == 5;
    let codes: Vec<String> = text.split_whitespace().filter(is_code).map(str::to_owned).collect();
    assert_eq!(codes.len(), 10, "{text}");
    screen.type_line("").await;
    screen.shows("Authenticator bound").await;
    screen.press("qq").await;
    screen.end().await;
    client.answers(&[CHOSEN, &code_of(&raw, UnixTime(now.0 + 30_000))]);
    client.ssh(&["bastion", "targets"]).await.ok();
    client.answers(&[CHOSEN, &codes[9]]);
    client.ssh(&["bastion", "targets"]).await.ok();
    eventually("all sessions are over", async || {
        (server.kinds("session-ended").await.len() == 3).then_some(())
    })
    .await;
    let base32 = totp_rs::Secret::from(raw.clone()).to_base32();
    let one_time = one_time.expose_secret().to_owned();
    (server, Secrets { one_time, raw, base32, codes })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_keeps_no_secret_in_memory_or_files() {
    let (server, secrets) = logged_in(|serve| {
        serve.env("GLIBC_TUNABLES", WIPE);
    })
    .await;
    let all = [secrets.shown(), secrets.inner()].concat();
    let memory = memory(server.child.id().unwrap()).await;
    assert_eq!(found(&memory, &[("the banner".into(), BANNER.into())]), ["the banner"]);
    assert_eq!(found(&memory, &all), Vec::<String>::new());

    let export = server.dir.path().join("export.jsonl");
    server.run(&["audit", "export", "--output", export.to_str().unwrap()]).await.ok();
    let mut folders = vec![server.dir.path().to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(found(&bytes, &all), Vec::<String>::new(), "{}", path.display());
            files.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    for file in ["sallyport.db", "sallyport.db-wal", "log-1", "export.jsonl", "sallyport.toml"] {
        assert!(files.iter().any(|name| name == file), "{file}: {files:?}");
    }
}

/// What passes through the SSH library, and the crate that judges new passwords, is freed by them
/// without being wiped; this is about what is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_bastion_itself_sees_is_wiped() {
    let (server, secrets) = logged_in(|_| {}).await;
    let memory = memory(server.child.id().unwrap()).await;
    assert_eq!(found(&memory, &[("the banner".into(), BANNER.into())]), ["the banner"]);
    assert_eq!(found(&memory, &secrets.inner()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_same_user_cannot_look_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("sallyport");
    std::fs::copy(BINARY, &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Root may look into everything: then it is somebody else who serves, and looks.
    let root = rustix::process::getuid().is_root();
    let (mut serve, mut other) = (command(&binary), command(tool("sleep")));
    if root {
        let id = async |of: &str| -> u32 {
            run(command(tool("id")).args([of, "nobody"])).await.ok().out.trim().parse().unwrap()
        };
        let (user, group) = (id("-u").await, id("-g").await);
        std::os::unix::fs::chown(dir.path(), Some(user), None).unwrap();
        for command in [&mut serve, &mut other] {
            command.uid(user).gid(group);
        }
    }
    let log = dir.path().join("log");
    serve
        .arg("serve")
        .current_dir(dir.path())
        .env("SALLYPORT_SERVER__LISTEN", "[\"127.0.0.1:0\"]")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    let mut serving = serve.spawn().unwrap();
    let mut sleeping = other.arg("600").spawn().unwrap();
    eventually("it serves", async || {
        std::fs::read_to_string(&log).unwrap().contains("server-started").then_some(())
    })
    .await;
    let look = async |pid: u32, what: &str| {
        let mut cat = command(if root { tool("runuser") } else { tool("cat") });
        if root {
            cat.args(["-u", "nobody", "--", "cat"]);
        }
        run(cat.arg(format!("/proc/{pid}/{what}"))).await
    };
    // An ordinary process of theirs they may look at.
    let seen = look(sleeping.id().unwrap(), "maps").await.ok();
    assert!(seen.out.contains("[stack]"), "{seen:?}");
    for what in ["maps", "mem", "environ"] {
        let refused = look(serving.id().unwrap(), what).await.failed();
        assert!(refused.err.contains("Permission denied"), "{refused:?}");
    }
    for child in [&mut serving, &mut sleeping] {
        child.kill().await.unwrap();
        ended(child).await;
    }
}
