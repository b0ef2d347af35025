//! What people use over SSH, on a target in record mode.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::bastion::PASSWORD;
use crate::support::hop::{Hop, fed};
use crate::support::screen::Screen;
use crate::support::ssh::digest;
use crate::support::sshd::Sshd;
use crate::support::ways::{ENTRANCES, Program, Reach, Way};
use crate::support::{PATIENCE, command, ended, free_port, listening, present_user, tool};

/// A file of a megabyte, and a name for its copy, for one way.
fn file(hop: &Hop, name: &str) -> (PathBuf, PathBuf) {
    let file = hop.client.path(&format!("file-{name}"));
    let bytes = (0..250_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    std::fs::write(&file, bytes.collect::<Vec<u8>>()).unwrap();
    (file, hop.client.path(&format!("copy-{name}")))
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn at(host: &str, path: &Path) -> String {
    format!("{host}:{}", path.display())
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

/// Copies both ways with `tool`, in one of its protocols, where each is written down.
async fn copies(reach: &Reach<'_>, tool: &str, options: &[&str]) {
    let (file, copy) = file(reach.hop, &format!("{}{}", reach.way.host(), options.concat()));
    let size = std::fs::metadata(&file).unwrap().len();
    // The old protocol tells only the names that the source has for its files.
    let old = options.iter().any(|option| ["-O", "-scp"].contains(option));
    let told = |path: &Path| {
        if old { PathBuf::from(file.file_name().unwrap()) } else { path.to_owned() }
    };
    let run = async |from: &str, to: &str| {
        let ran = reach.run_tool(tool, &[options, &[from, to]].concat(), b"").await;
        (ran.code == Some(0)).then_some(()).ok_or(ran)
    };
    run(name(&file), &at("HOST", &copy)).await.unwrap();
    copied(&file, &copy);
    let event = accessed(reach.hop, "upload", &told(&copy)).await;
    assert_eq!((event["written"].as_u64(), event["read"].as_u64()), (Some(size), Some(0)));
    run(&at("HOST", &file), name(&copy)).await.unwrap();
    copied(&file, &copy);
    let event = accessed(reach.hop, "download", &told(&file)).await;
    assert_eq!((event["written"].as_u64(), event["read"].as_u64()), (Some(0), Some(size)));
    let gone = at("HOST", &reach.hop.client.path("gone"));
    run(&gone, name(&copy)).await.unwrap_err();
    assert!(!copy.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_copies_both_ways_in_either_protocol() {
    let hop = Hop::roomy("", |_| {}).await;
    for reach in hop.reaches() {
        let (tool, protocols) = match reach.program {
            Program::OpenSsh => ("scp", [&["-q", "-p", "-s"], &["-q", "-p", "-O"]]),
            Program::Plink => ("pscp", [&["-q", "-p", "-sftp"], &["-q", "-p", "-scp"]]),
        };
        for options in protocols {
            copies(&reach, tool, options).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_does_what_it_does_and_each_is_written_down() {
    let hop = Hop::roomy("", |_| {}).await;
    for reach in hop.reaches() {
        let of = format!("{:?}-{:?}", reach.program, reach.way);
        let (file, copy) = file(&hop, &of);
        let dir = hop.client.path(&format!("dir-{of}"));
        let (inner, renamed) = (dir.join("inner"), dir.join("renamed"));
        let batch = hop.client.path("batch");
        let (tool, options, list, rename): (_, &[&str], _, _) = match reach.program {
            // With a batch it asks nobody, if it is not told to.
            Program::OpenSsh => ("sftp", &["-o", "BatchMode=no"], "ls -l", "rename"),
            Program::Plink => ("psftp", &[], "ls", "mv"),
        };
        let lines = [
            format!("mkdir {}", dir.display()),
            format!("put {} {}", file.display(), inner.display()),
            format!("{list} {}", dir.display()),
            format!("chmod 600 {}", inner.display()),
            format!("{rename} {} {}", inner.display(), renamed.display()),
            format!("get {} {}", renamed.display(), copy.display()),
            format!("rm {}", renamed.display()),
            format!("rmdir {}", dir.display()),
        ];
        std::fs::write(&batch, lines.join("\n")).unwrap();
        let ran = reach
            .run_tool(tool, &[options, &["-b", name(&batch), "HOST"]].concat(), b"")
            .await
            .ok();
        assert!(ran.text().contains("inner"), "{reach:?} {ran:?}");
        copied(&file, &copy);
        assert!(!dir.exists());
        let listed = if reach.program == Program::OpenSsh { dir.join("") } else { dir.clone() };
        for (operation, path) in [
            ("mkdir", &dir),
            ("upload", &inner),
            ("list", &listed),
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
}

/// A program that starts the `ssh` of alice's by itself.
fn with_ssh(hop: &Hop, program: &str) -> Command {
    let mut command = command(tool(program));
    command.env("HOME", hop.client.path("")).current_dir(hop.client.path(""));
    hop.client.answer_for(&mut command);
    command
}

fn ssh_line(hop: &Hop) -> String {
    format!("ssh -F {}", hop.client.path("config").display())
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync_copies_both_ways() {
    let hop = Hop::roomy("", |_| {}).await;
    let tree = hop.client.path("tree");
    for n in 0..200 {
        let dir = tree.join(format!("d{}", n % 7));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("f{n}")), format!("{n}").repeat(n)).unwrap();
    }
    for way in ENTRANCES {
        let host = way.host();
        let (file, copy) = file(&hop, host);
        let there = hop.client.path(&format!("there-{host}"));
        let back = hop.client.path(&format!("back-{host}"));
        let trees = [format!("{}/", tree.display()), format!("{}/", there.display())];
        for (from, to) in [
            (name(&file).to_owned(), at(host, &copy)),
            (trees[0].clone(), at(host, &there)),
            (format!("{host}:{}", trees[1]), name(&back).to_owned()),
        ] {
            hop.sign_in_on(way);
            let mut rsync = with_ssh(&hop, "rsync");
            fed(rsync.args(["-az", "-e", &ssh_line(&hop), &from, &to]), b"").await.ok();
        }
        copied(&file, &copy);
        let mut diff = command(tool("diff"));
        fed(diff.arg("-r").arg(&tree).arg(&back), b"").await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_pushes_and_fetches() {
    let hop = Hop::roomy("", |_| {}).await;
    for way in ENTRANCES {
        let work = hop.client.path(&format!("work-{}", way.host()));
        std::fs::create_dir(&work).unwrap();
        let repository = work.join("there.git");
        let url = at(way.host(), &repository);
        let git = async |args: &[&str]| {
            hop.sign_in_on(way);
            let mut git = with_ssh(&hop, "git");
            git.current_dir(&work).args(["-c", "user.name=Alice", "-c", "user.email=alice@db1"]);
            git.args(["-c", "init.defaultBranch=main"]).args(args);
            git.env("GIT_SSH_COMMAND", ssh_line(&hop)).env("GIT_CONFIG_NOSYSTEM", "1");
            fed(&mut git, b"").await.ok().text()
        };
        git(&["init", "-q", "--bare", name(&repository)]).await;
        git(&["init", "-q", "here"]).await;
        std::fs::rename(file(&hop, way.host()).0, work.join("here/file")).unwrap();
        git(&["-C", "here", "add", "file"]).await;
        git(&["-C", "here", "commit", "-q", "-m", "a file"]).await;
        git(&["-C", "here", "push", "-q", &url, "HEAD:main"]).await;
        git(&["clone", "-q", &url, "clone"]).await;
        assert_eq!(digest(&work.join("clone/file")), digest(&work.join("here/file")));
        git(&["-C", "here", "commit", "-q", "--allow-empty", "-m", "nothing"]).await;
        git(&["-C", "here", "push", "-q", &url, "HEAD:main"]).await;
        git(&["-C", "clone", "fetch", "-q"]).await;
        let head = git(&["-C", "here", "rev-parse", "HEAD"]).await;
        assert_eq!(git(&["-C", "clone", "rev-parse", "origin/main"]).await, head);
    }
}

/// What Ansible did on one host, of its last lines: "db1 : ok=3 changed=1 ... failed=0 ...".
fn recap<'a>(text: &'a str, host: &str) -> &'a str {
    let lines = text.lines().skip_while(|line| !line.starts_with("PLAY RECAP"));
    let mut lines = lines.filter(|line| line.starts_with(host));
    lines.next().unwrap_or_else(|| panic!("nothing of {host}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn ansible_pings_and_copies_to_three_targets() {
    let hop = Hop::start().await;
    let hosts = ["db1", "db2", "db3"];
    let mut others = Vec::new();
    for host in &hosts[1..] {
        let sshd = Sshd::start().await;
        hop.bastion.record_target(host, &sshd).await;
        hop.bastion.add_grant("alice", host, |_| {}).await;
        others.push(sshd);
    }
    let (file, copy) = file(&hop, "ansible");
    let to = |host: &str| copy.with_extension(host);
    let playbook = hop.client.path("play.yml");
    let text = format!(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n    \
         - copy: {{src: '{}', dest: '{}.{{{{ inventory_hostname }}}}'}}\n    \
         - command: cksum {}.{{{{ inventory_hostname }}}}\n",
        file.display(),
        copy.display(),
        copy.display(),
    );
    std::fs::write(&playbook, text).unwrap();
    let known = hop.client.path("known_targets");
    let ssh = format!(
        "-F {} -J bastion -o UserKnownHostsFile={} -o StrictHostKeyChecking=yes",
        hop.client.path("config").display(),
        known.display()
    );
    for (transfer, pipelining) in [("sftp", "0"), ("piped", "1")] {
        let mut ansible = with_ssh(&hop, "ansible-playbook");
        ansible
            .args(["-i", &hosts.join(","), "-u", &present_user()])
            .args(["-e", "ansible_python_interpreter=/usr/bin/python3"])
            .args(["--ssh-common-args", &ssh])
            .arg(&playbook)
            .env("ANSIBLE_HOME", hop.client.path("ansible"))
            .env("ANSIBLE_REMOTE_TEMP", hop.client.path("remote"))
            .env("ANSIBLE_SSH_TRANSFER_METHOD", transfer)
            .env("ANSIBLE_PIPELINING", pipelining);
        let text = fed(&mut ansible, b"").await.ok().text();
        for host in hosts {
            let recap = recap(&text, host);
            assert!(recap.contains("ok=3") && recap.contains("failed=0"), "{text}");
            copied(&file, &to(host));
        }
    }
    // It was there through the bastion, on each of them.
    for host in hosts {
        hop.bastion.event("recording-started", &[("target", host), ("what", "exec")]).await;
        hop.bastion.event("recording-started", &[("target", host), ("what", "sftp")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ansible_pings_and_copies_by_selector() {
    let hop = Hop::roomy("", |_| {}).await;
    let (file, copy) = file(&hop, "ansible");
    let playbook = hop.client.path("play.yml");
    let text = format!(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n    \
         - copy: {{src: '{}', dest: '{}'}}\n    - command: cksum {}\n",
        file.display(),
        copy.display(),
        copy.display(),
    );
    std::fs::write(&playbook, text).unwrap();
    // One sign-in, and everything by it.
    let (mut master, path) = hop.shared_on(Way::Selector, &[]).await;
    let ssh = format!("-F {} -o ControlPath={path}", hop.client.path("config").display());
    for (transfer, pipelining) in [("sftp", "0"), ("piped", "1")] {
        let mut ansible = with_ssh(&hop, "ansible-playbook");
        ansible
            .args(["-i", "chosen,", "-e", "ansible_python_interpreter=/usr/bin/python3"])
            .arg(&playbook)
            .env("ANSIBLE_HOME", hop.client.path("ansible"))
            .env("ANSIBLE_REMOTE_TEMP", hop.client.path("remote"))
            .env("ANSIBLE_SSH_ARGS", &ssh)
            .env("ANSIBLE_SSH_TRANSFER_METHOD", transfer)
            .env("ANSIBLE_PIPELINING", pipelining);
        let text = fed(&mut ansible, b"").await.ok().text();
        let recap = recap(&text, "chosen");
        assert!(recap.contains("ok=3") && recap.contains("failed=0"), "{text}");
        copied(&file, &copy);
    }
    for what in ["exec", "sftp"] {
        hop.bastion.event("recording-started", &[("target", "db1"), ("what", what)]).await;
    }
    hop.ssh(&["-O", "exit", "-S", &path, "chosen"]).await.ok();
    ended(&mut master).await;
}

/// As VS Code does: a shell without a terminal, its script on standard input, one connection for
/// the script's output and for the server that it starts.
async fn an_editor(reach: &Reach<'_>) {
    let socks = free_port();
    let proxy = socks.to_string();
    let script = "echo ready\n\
        perl -MIO::Socket::INET -e '\
        my $s = IO::Socket::INET->new(Listen => 5, LocalAddr => \"127.0.0.1\") or die;\
        $| = 1; print \"listeningOn==\", $s->sockport, \"==\\n\";\
        while (my $c = $s->accept) { my $l = <$c>; print $c \"served $l\"; close $c }' &\n\
        server=$!\n\
        read line\n\
        kill $server\n\
        echo \"stopped by $line\"\n";
    let mut child = reach.start(&["-T", "-D", &proxy, "HOST", "sh"]).await;
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
    let mut other = reach.start(&["-N", "-L", &forward, "HOST"]).await;
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
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_installs_its_server_and_reaches_it() {
    let hop = Hop::roomy("", |_| {}).await;
    for reach in hop.reaches() {
        an_editor(&reach).await;
    }
    let rows: Vec<_> = hop
        .recordings()
        .await
        .into_iter()
        .filter(|row| row.command.as_deref() == Some("sh"))
        .collect();
    assert_eq!(rows.len(), hop.reaches().count());
    for row in rows {
        let id = row.id.clone();
        hop.bastion.event("recording-ended", &[("recording", &id)]).await;
    }
    assert!(hop.recorded("sh").await.output().contains("listeningOn=="));
}

#[tokio::test(flavor = "multi_thread")]
async fn putty_hops_by_itself() {
    let hop = Hop::roomy("", |_| {}).await;
    // PuTTY's own jump: no ssh in between, and its questions are asked where it runs.
    let session = format!(
        "Protocol=ssh\nHostName=db1\nPortNumber=22\nUserName={}\nTryAgent=0\nProxyMethod=6\n\
         ProxyHost=bastion-by-putty\n",
        present_user()
    );
    std::fs::write(hop.client.path(".putty/sessions/hopped"), session).unwrap();
    let chosen = std::fs::read_to_string(hop.client.path(".putty/sessions/chosen")).unwrap();
    let bastion = chosen.lines().map(|line| match line.split_once('=') {
        Some(("UserName", _)) => "UserName=alice\n".to_owned(),
        _ => format!("{line}\n"),
    });
    let bastion = bastion.collect::<String>();
    std::fs::write(hop.client.path(".putty/sessions/bastion-by-putty"), bastion).unwrap();
    let plink =
        hop.reach(Program::Plink, Way::Jump).command("plink", &["hopped", "echo in; exit 9"]);
    let mut screen = Screen::run(&plink);
    screen.expect("Password: ").await;
    screen.type_line(PASSWORD).await;
    screen.expect("6-digit code: ").await;
    screen.type_line(&hop.bastion.code(&hop.alice)).await;
    screen.expect("in").await;
    assert_eq!(screen.end().await.0, Some(9));
    hop.recorded("echo in; exit 9").await;
}
