//! What people use over SSH, on a target in record mode.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::hop::{Hop, Ran, fed};
use crate::support::ssh::digest;
use crate::support::{PATIENCE, command, ended, free_port, listening, present_user, tool};

/// A file of some megabytes, and a name for its copy.
fn file(hop: &Hop) -> (PathBuf, PathBuf) {
    let file = hop.client.path("file");
    let bytes = (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    std::fs::write(&file, bytes.collect::<Vec<u8>>()).unwrap();
    (file, hop.client.path("copy"))
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn at(path: &Path) -> String {
    format!("via:{}", path.display())
}

/// Takes the copy away, once it is known to be one.
fn copied(file: &Path, copy: &Path) {
    assert_eq!(digest(copy), digest(file));
    std::fs::remove_file(copy).unwrap();
}

/// The event of a file operation.
async fn accessed(hop: &Hop, operation: &str, path: &Path) -> Value {
    let fields = [("operation", operation), ("path", name(path)), ("outcome", "ok")];
    hop.bastion.event("file-accessed", &fields).await
}

async fn tool_run(hop: &Hop, program: &str, args: &[&str]) -> Ran {
    fed(&mut hop.client.command(program, args), b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_and_sftp_copy_both_ways_and_are_written_down() {
    let hop = Hop::start().await;
    let (file, copy) = file(&hop);
    let size = std::fs::metadata(&file).unwrap().len();
    tool_run(&hop, "scp", &[name(&file), &at(&copy)]).await.ok();
    copied(&file, &copy);
    let event = accessed(&hop, "upload", &copy).await;
    assert_eq!((event["written"].as_u64(), event["read"].as_u64()), (Some(size), Some(0)));
    tool_run(&hop, "scp", &["-p", &at(&file), name(&copy)]).await.ok();
    copied(&file, &copy);
    let event = accessed(&hop, "download", &file).await;
    assert_eq!((event["written"].as_u64(), event["read"].as_u64()), (Some(0), Some(size)));
    let gone = at(&hop.client.path("gone"));
    tool_run(&hop, "scp", &[&gone, name(&copy)]).await.failed();

    // The old protocol, which is a command.
    tool_run(&hop, "scp", &["-O", name(&file), &at(&copy)]).await.ok();
    copied(&file, &copy);
    tool_run(&hop, "scp", &["-O", "-p", &at(&file), name(&copy)]).await.ok();
    copied(&file, &copy);
    hop.recorded(&format!("scp -t {}", copy.display())).await;

    let dir = hop.client.path("dir");
    let (inner, renamed) = (dir.join("inner"), dir.join("renamed"));
    let batch = hop.client.path("batch");
    let lines = [
        format!("mkdir {}", dir.display()),
        format!("put {} {}", file.display(), inner.display()),
        format!("ls -l {}", dir.display()),
        format!("chmod 600 {}", inner.display()),
        format!("rename {} {}", inner.display(), renamed.display()),
        format!("get {} {}", renamed.display(), copy.display()),
        format!("rm {}", renamed.display()),
        format!("rmdir {}", dir.display()),
    ];
    std::fs::write(&batch, lines.join("\n")).unwrap();
    let ran = tool_run(&hop, "sftp", &["-b", name(&batch), "via"]).await.ok();
    assert!(ran.text().contains("inner"), "{ran:?}");
    copied(&file, &copy);
    assert!(!dir.exists());
    for (operation, path) in [
        ("mkdir", &dir),
        ("upload", &inner),
        ("list", &dir.join("")),
        ("setstat", &inner),
        ("rename", &inner),
        ("download", &renamed),
        ("remove", &renamed),
        ("rmdir", &dir),
    ] {
        accessed(&hop, operation, path).await;
    }
    assert_eq!(accessed(&hop, "rename", &inner).await["to"], name(&renamed));
}

/// A program that starts the `ssh` of alice's by itself.
fn with_ssh(hop: &Hop, program: &str) -> Command {
    let mut command = command(tool(program));
    command.env("HOME", hop.client.path("")).current_dir(hop.client.path(""));
    command
}

fn ssh_line(hop: &Hop) -> String {
    format!("ssh -F {}", hop.client.path("config").display())
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync_copies_both_ways() {
    let hop = Hop::start().await;
    let (file, copy) = file(&hop);
    let tree = hop.client.path("tree");
    for n in 0..200 {
        let dir = tree.join(format!("d{}", n % 7));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("f{n}")), format!("{n}").repeat(n)).unwrap();
    }
    let (there, back) = (hop.client.path("there"), hop.client.path("back"));
    let trees = [format!("{}/", tree.display()), format!("{}/", there.display())];
    for (from, to) in [
        (name(&file).to_owned(), at(&copy)),
        (trees[0].clone(), at(&there)),
        (format!("via:{}", trees[1]), name(&back).to_owned()),
    ] {
        let mut rsync = with_ssh(&hop, "rsync");
        fed(rsync.args(["-az", "-e", &ssh_line(&hop), &from, &to]), b"").await.ok();
    }
    copied(&file, &copy);
    let mut diff = command(tool("diff"));
    fed(diff.arg("-r").arg(&tree).arg(&back), b"").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn git_pushes_and_fetches() {
    let hop = Hop::start().await;
    let repository = hop.client.path("there.git");
    let url = at(&repository);
    let git = async |args: &[&str]| {
        let mut git = with_ssh(&hop, "git");
        git.args(["-c", "user.name=Alice", "-c", "user.email=alice@localhost"]);
        git.args(["-c", "init.defaultBranch=main"]).args(args);
        git.env("GIT_SSH_COMMAND", ssh_line(&hop)).env("GIT_CONFIG_NOSYSTEM", "1");
        fed(&mut git, b"").await.ok().text()
    };
    git(&["init", "-q", "--bare", name(&repository)]).await;
    git(&["init", "-q", "here"]).await;
    std::fs::rename(file(&hop).0, hop.client.path("here/file")).unwrap();
    git(&["-C", "here", "add", "file"]).await;
    git(&["-C", "here", "commit", "-q", "-m", "a file"]).await;
    git(&["-C", "here", "push", "-q", &url, "HEAD:main"]).await;
    git(&["clone", "-q", &url, "clone"]).await;
    assert_eq!(digest(&hop.client.path("clone/file")), digest(&hop.client.path("here/file")));
    git(&["-C", "here", "commit", "-q", "--allow-empty", "-m", "nothing"]).await;
    git(&["-C", "here", "push", "-q", &url, "HEAD:main"]).await;
    git(&["-C", "clone", "fetch", "-q"]).await;
    let head = git(&["-C", "here", "rev-parse", "HEAD"]).await;
    assert_eq!(git(&["-C", "clone", "rev-parse", "origin/main"]).await, head);
}

#[tokio::test(flavor = "multi_thread")]
async fn ansible_runs_a_playbook() {
    let hop = Hop::start().await;
    let (file, copy) = file(&hop);
    let playbook = hop.client.path("play.yml");
    let text = format!(
        "- hosts: via\n  gather_facts: true\n  tasks:\n    - copy: {{src: '{}', dest: '{}'}}\n    \
         - command: cksum {}\n      register: sum\n    - debug: {{var: sum.stdout}}\n",
        file.display(),
        copy.display(),
        copy.display(),
    );
    std::fs::write(&playbook, text).unwrap();
    for transfer in ["sftp", "piped"] {
        let mut ansible = with_ssh(&hop, "ansible-playbook");
        let ssh = format!("-F {}", hop.client.path("config").display());
        ansible
            .args(["-i", "via,", "-e", "ansible_python_interpreter=/usr/bin/python3"])
            .args(["--ssh-common-args", &ssh])
            .arg(&playbook)
            .env("ANSIBLE_HOME", hop.client.path("ansible"))
            .env("ANSIBLE_REMOTE_TEMP", hop.client.path("remote"))
            .env("ANSIBLE_SSH_TRANSFER_METHOD", transfer)
            .env("ANSIBLE_PIPELINING", if transfer == "piped" { "1" } else { "0" });
        let ran = fed(&mut ansible, b"").await.ok();
        assert!(ran.text().contains("failed=0"), "{}", ran.text());
        copied(&file, &copy);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_installs_its_server_and_reaches_it() {
    let hop = Hop::start().await;
    let socks = free_port();
    let proxy = socks.to_string();
    // As VS Code does: a shell without a terminal, its script on standard input, one connection
    // for the script's output and for the server that it starts.
    let script = "echo ready\n\
        perl -MIO::Socket::INET -e '\
        my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => \"127.0.0.1\") or die;\
        $| = 1; print \"listeningOn==\", $s->sockport, \"==\\n\";\
        while (my $c = $s->accept) { my $l = <$c>; print $c \"served $l\"; close $c }' &\n\
        server=$!\n\
        read line\n\
        kill $server\n\
        echo \"stopped by $line\"\n";
    let mut ssh = hop.command(&["-T", "-D", &proxy, "via", "sh"]);
    let mut child = ssh.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        line.expect("the script ended")
    };
    assert_eq!(next().await, "ready");
    let line = next().await;
    let port: u16 = line.split("==").nth(1).unwrap().parse().unwrap();
    listening(socks).await;
    for n in 0..3 {
        let mut stream = crate::record_onward::by_socks(socks, port).await;
        stream.write_all(format!("{n}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        assert_eq!(answer, format!("served {n}\n"));
    }
    // And to a port that was forwarded before.
    let local = free_port();
    let forward = format!("{local}:127.0.0.1:{port}");
    let mut other = hop.command(&["-N", "-L", &forward, "via"]).spawn().unwrap();
    listening(local).await;
    let mut stream = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    stream.write_all(b"by -L\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "served by -L\n");
    other.kill().await.unwrap();

    stdin.write_all(b"the editor\n").await.unwrap();
    assert_eq!(next().await, "stopped by the editor");
    drop(stdin);
    assert!(ended(&mut child).await.success());
    assert!(hop.recorded("sh").await.output().contains("listeningOn=="));
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_hops_too() {
    let hop = Hop::start().await;
    // PuTTY knows nothing of the authority here: it is told the key.
    let proxy = format!("{} -W %host:%port bastion", ssh_line(&hop));
    let key = stand_in_key(&hop).await;
    let run = async |line: &str, input: &[u8]| {
        let mut plink = with_ssh(&hop, "plink");
        plink.args(["-ssh", "-batch", "-noagent", "-proxycmd", &proxy, "-hostkey", &key]);
        plink.args(["-l", &present_user(), "db1", line]);
        fed(&mut plink, input).await
    };
    let ran = run("cat; echo err >&2; exit 9", b"through PuTTY\n").await;
    assert_eq!((ran.code, ran.text().as_str()), (Some(9), "through PuTTY\n"), "{ran:?}");
    assert!(ran.err.contains("err"), "{ran:?}");
    hop.recorded("cat; echo err >&2; exit 9").await;
}

/// The fingerprint of the key that the bastion shows in the target's place.
async fn stand_in_key(hop: &Hop) -> String {
    let known = hop.client.path("plain_known");
    let option = format!("UserKnownHostsFile={}", known.display());
    let args = ["-o", &option, "-o", "StrictHostKeyChecking=accept-new"];
    let plain = ["-o", "HostKeyAlgorithms=ssh-ed25519", "via", "true"];
    hop.ssh(&[&args[..], &plain].concat()).await.ok();
    let mut keygen = command(tool("ssh-keygen"));
    let ran = fed(keygen.arg("-l").arg("-f").arg(&known), b"").await.ok();
    ran.text().split(' ').nth(1).unwrap().to_owned()
}
