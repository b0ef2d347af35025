//! What `direct-tcpip` carries, and what is refused, with the real clients.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use sallyport::audit::Context;
use sallyport::clock::Clock;
use sallyport::domain::Mode;
use sallyport::server::Bastion;
use sallyport::server::forward::{dial::Resolver, known::KnownAddresses};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::ssh::{Client, digest, run};
use crate::support::sshd::Sshd;
use crate::support::{
    PATIENCE, command, ended, eventually, free_port, listening, on_both_engines, tool,
};

on_both_engines!(hops_and_is_written_down, what_is_recorded_under_another_name_is_not_tunnelled_to,);

async fn setting(engine: Engine) -> (TestBastion, Sshd, Person, Client) {
    let bastion = TestBastion::start(engine).await;
    let sshd = Sshd::start().await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    (bastion, sshd, alice, client)
}

/// The same, where the names of recorded targets are looked up by `lookup`.
async fn with_lookup(
    lookup: impl Fn(&str, u16) -> std::io::Result<Vec<IpAddr>> + Send + Sync + 'static,
) -> (TestBastion, Sshd, Person) {
    let prepare = |bastion: &mut Bastion| {
        bastion.recorded = KnownAddresses::new(Resolver::new(lookup));
    };
    let bastion =
        TestBastion::start_prepared(Clock::System.now(), Engine::Sqlite, "", prepare).await;
    let sshd = Sshd::start().await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    (bastion, sshd, alice)
}

async fn hops_and_is_written_down(engine: Engine) {
    let (bastion, sshd, alice, client) = setting(engine).await;
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let ran = client.ssh(&["-J", "bastion", "db1", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(7), "out\n"), "{ran:?}");
    assert!(ran.err.ends_with("err\n"), "{ran:?}");
    let ended = bastion.event("session-ended", &[("user", "alice")]).await;
    let closed = bastion.event("forward-closed", &[("user", "alice")]).await;
    assert_eq!(closed["address"], format!("127.0.0.1:{}", sshd.port).as_str(), "{closed}");
    let opened = bastion.event("forward-opened", &[("user", "alice")]).await;
    for field in ["forward", "destination", "target"] {
        assert!(!closed[field].is_null() && closed[field] == opened[field], "{closed} {opened}");
    }
    assert_eq!(ended["up"], closed["up"]);
    assert!(closed["up"].as_u64().unwrap() > 1000 && closed["down"].as_u64().unwrap() > 1000);
    let kinds: Vec<String> = bastion
        .events()
        .await
        .iter()
        .map(|record| {
            serde_json::to_value(&record.event).unwrap()["kind"].as_str().unwrap().to_owned()
        })
        .collect();
    let after = |kind: &str| kinds.iter().position(|k| k == kind).unwrap();
    assert!(after("signed-in") < after("forward-opened"));
    assert!(after("forward-opened") < after("forward-closed"));
    assert!(after("forward-closed") < after("session-ended"));

    let sessions = bastion.store().sessions(&Default::default(), 10).await.unwrap();
    let forwards = bastion.store().forwards_of(&sessions[0].id).await.unwrap();
    assert_eq!(forwards[0].address.as_deref(), Some(format!("127.0.0.1:{}", sshd.port).as_str()));
    assert!(sessions[0].client.starts_with("SSH-2.0-OpenSSH"));
    assert!(sessions[0].ended_at.is_some());
}

/// Two targets may lead to one server by different names: where one of them is recorded, the other one
/// is no way round that.
async fn what_is_recorded_under_another_name_is_not_tunnelled_to(engine: Engine) {
    let (bastion, sshd, alice, client) = setting(engine).await;
    let hop = async || {
        client.answers(&[PASSWORD, &bastion.code(&alice)]);
        client.ssh(&["-J", "bastion", "db1", "echo in"]).await
    };
    // Another port of the same host is another server.
    bastion.target_in(Mode::Record, "beside", &format!("localhost:{}", free_port())).await;
    assert_eq!(hop().await.ok().out, "in\n");
    bastion.target_in(Mode::Record, "seen", &format!("localhost:{}", sshd.port)).await;
    let ran = hop().await.failed();
    assert!(ran.err.contains("sessions on seen are recorded: go there with ssh -J"), "{ran:?}");
    let refused = [("target", "db1"), ("reason", "not-granted"), ("user", "alice")];
    bastion.event("forward-refused", &refused).await;
    assert_eq!(bastion.kinds("forward-opened").await.len(), 1);
}

/// While nobody can say where a recorded target is, nothing at its port is taken for another server.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_recorded_is_not_tunnelled_to() {
    let lookup = |_: &str, _| Err(std::io::Error::other("the name server is silent"));
    let (bastion, sshd, alice) = with_lookup(lookup).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    bastion.target_in(Mode::Record, "lost", &format!("lost.example:{}", sshd.port)).await;
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let ran = client.ssh(&["-J", "bastion", "db1", "echo in"]).await.failed();
    assert!(ran.err.contains("whether this leads there cannot be found out"), "{ran:?}");
    assert!(ran.err.contains("the address of lost does not resolve"), "{ran:?}");
    bastion.event("forward-refused", &[("reason", "recorded-elsewhere")]).await;
    assert!(bastion.kinds("forward-opened").await.is_empty());
}

/// A tunnel that is open ends when its server becomes one that is recorded, and goes on while that
/// cannot be found out of another.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_tunnel_ends_when_its_server_is_recorded() {
    let lookup = |name: &str, _| match name {
        "seen.example" => Ok(vec![[127, 0, 0, 1].into()]),
        _ => Err(std::io::Error::other("the name server is silent")),
    };
    let (bastion, sshd, alice) = with_lookup(lookup).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut hop = client.command("ssh", &["-J", "bastion", "db1", "cat"]);
    let mut hop = hop.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (hop.stdin.take().unwrap(), hop.stdout.take().unwrap());
    bastion.event("forward-opened", &[("target", "db1")]).await;
    bastion.target_in(Mode::Record, "lost", &format!("lost.example:{}", sshd.port)).await;
    input.write_all(b"still there").await.unwrap();
    let mut back = [0; 11];
    tokio::time::timeout(PATIENCE, output.read_exact(&mut back)).await.unwrap().unwrap();
    bastion.target_in(Mode::Record, "seen", &format!("seen.example:{}", sshd.port)).await;
    let closed = bastion.event("forward-closed", &[("target", "db1")]).await;
    let reason = closed["reason"].as_str().unwrap();
    assert!(reason.contains("sessions on seen are recorded"), "{reason}");
    assert!(!ended(&mut hop).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_by_every_tool() {
    let (bastion, _sshd, alice, client) = setting(Engine::Sqlite).await;
    let file = client.path("file");
    std::fs::write(
        &file,
        (0..3_000_000_u32).flat_map(|n| (n * 7).to_le_bytes()).collect::<Vec<u8>>(),
    )
    .unwrap();
    let copy = client.path("copy");
    let (from, to) = (file.to_str().unwrap(), format!("db1:{}", copy.display()));
    for (program, args) in
        [("scp", vec!["-J", "bastion", from, &to]), ("scp", vec!["-O", "-J", "bastion", from, &to])]
    {
        client.answers(&[PASSWORD, &bastion.code(&alice)]);
        client.run(program, &args).await.ok();
        assert_eq!(digest(&copy), digest(&file));
        std::fs::remove_file(&copy).unwrap();
    }
    // And back.
    let remote = format!("db1:{from}");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.run("scp", &["-J", "bastion", &remote, copy.to_str().unwrap()]).await.ok();
    assert_eq!(digest(&copy), digest(&file));
    std::fs::remove_file(&copy).unwrap();

    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let batch = client.path("batch");
    std::fs::write(&batch, format!("put {from} {}\n", copy.display())).unwrap();
    client.run("sftp", &["-J", "bastion", "-b", batch.to_str().unwrap(), "db1"]).await.ok();
    assert_eq!(digest(&copy), digest(&file));
    std::fs::remove_file(&copy).ok();

    let ssh = format!("ssh -F {} -J bastion", client.path("config").display());
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut rsync = command(tool("rsync"));
    rsync.args(["-a", "-e", &ssh, from, &to]);
    with_answers(&client, &mut rsync);
    run(&mut rsync).await.ok();
    assert_eq!(digest(&copy), digest(&file));

    let repository = client.path("repository.git");
    run(command(tool("git")).args(["init", "-q", "--bare"]).arg(&repository)).await.ok();
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut git = command(tool("git"));
    git.arg("ls-remote").arg(format!("db1:{}", repository.display())).env("GIT_SSH_COMMAND", &ssh);
    with_answers(&client, &mut git);
    run(&mut git).await.ok();
}

fn with_answers(client: &Client, command: &mut tokio::process::Command) {
    command.env("SSH_ASKPASS", client.path("ask")).env("SSH_ASKPASS_REQUIRE", "force");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_login_carries_ten_sessions_and_local_forwards() {
    let (bastion, sshd, alice, client) = setting(Engine::Sqlite).await;
    let control = client.path("control");
    let client = client.host("bastion", &format!("ControlPath {}", control.display()));
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let local = free_port();
    let forward = format!("{local}:db1:{}", sshd.port);
    let mut master = client.command("ssh", &["-M", "-N", "-L", &forward, "bastion"]);
    let mut master = master.spawn().unwrap();
    listening(local).await;
    let proxy = format!("ProxyCommand=ssh -F {} -W %h:%p bastion", client.path("config").display());
    let texts: Vec<String> = (0..10).map(|n| format!("echo {n}; sleep 0.2; echo {n}")).collect();
    let args: Vec<[&str; 4]> =
        texts.iter().map(|text| ["-o", proxy.as_str(), "db1", text.as_str()]).collect();
    let runs = futures_util::future::join_all(args.iter().map(|args| client.ssh(args))).await;
    for (n, ran) in runs.into_iter().enumerate() {
        assert_eq!(ran.ok().out, format!("{n}\n{n}\n"));
    }
    assert_eq!(bastion.kinds("signed-in").await.len(), 1);
    let (identity, local) = (sshd.identity(), local.to_string());
    let identity = identity.to_str().unwrap();
    let direct =
        ["-p", &local, "-o", "HostKeyAlias=local", "-i", identity, "127.0.0.1", "echo by -L"];
    assert_eq!(client.ssh(&direct).await.ok().out, "by -L\n");
    client.ssh(&["-O", "exit", "bastion"]).await.ok();
    ended(&mut master).await;
    bastion.event("session-ended", &[("reason", "client-closed")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_plain_and_audited() {
    let (bastion, sshd, alice, client) = setting(Engine::Sqlite).await;
    let port = sshd.port;
    bastion.target("secret", &format!("127.0.0.1:{port}")).await;
    bastion.grant("alice", "closed", "127.0.0.1:22").await;
    bastion.target("office", "127.0.0.1:22").await;
    bastion
        .add_grant("alice", "office", |grant| {
            grant.hours = Some("Sat 03:00-03:01 Europe/Berlin".parse().unwrap());
        })
        .await;
    bastion.target("elsewhere", "127.0.0.1:22").await;
    bastion
        .add_grant("alice", "elsewhere", |grant| grant.from = vec!["192.0.2.0/24".parse().unwrap()])
        .await;
    let gone = free_port();
    bastion.grant("alice", "gone", &format!("127.0.0.1:{gone}")).await;
    // A name that leads to loopback, as DNS rebinding would.
    bastion.grant("alice", "rebound", &format!("localhost:{port}")).await;
    bastion.grant("alice", "nowhere", "nowhere.invalid").await;

    let control = client.path("control");
    let client = client.host("bastion", &format!("ControlPath {}", control.display()));
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut master = client
        .command("ssh", &["-M", "-N", "-v", "-E", client.path("log").to_str().unwrap(), "bastion"]);
    let mut master = master.spawn().unwrap();
    eventually("the master is up", async || control.exists().then_some(())).await;
    let prohibited = "administratively prohibited: ";
    let local = format!("127.0.0.1:{port}");
    for (to, said, reason) in [
        ("unknown:22", format!("{prohibited}unknown is not granted to you"), "not-granted"),
        ("secret:22", format!("{prohibited}secret is not granted to you"), "not-granted"),
        ("db1:443", format!("{prohibited}db1:443 is not granted to you"), "not-granted"),
        ("2130706433:22", format!("{prohibited}\"2130706433\" is not a host name"), "not-granted"),
        ("0:22", format!("{prohibited}\"0\" is not a host name"), "not-granted"),
        (
            "office:22",
            format!("{prohibited}outside granted hours (Sat 03:00-03:01 Europe/Berlin)"),
            "outside-hours",
        ),
        (
            "elsewhere:22",
            format!(
                "{prohibited}your address 127.0.0.1 is not one that the grant for elsewhere allows"
            ),
            "wrong-source",
        ),
        (
            "rebound:22",
            format!("{prohibited}rebound leads to a forbidden address (127.0.0.1)"),
            "forbidden-address",
        ),
        ("gone:22", "connect failed: gone refused the connection".to_owned(), ""),
        ("nowhere:22", "connect failed: the address of nowhere does not resolve".to_owned(), ""),
        (&local, String::new(), ""),
    ] {
        let ran = client.ssh(&["-W", to, "bastion"]).await;
        if said.is_empty() {
            // By its own address a granted target is reached like by its name.
            assert!(ran.out.starts_with("SSH-2.0-OpenSSH"), "{ran:?}");
            continue;
        }
        ran.failed();
        eventually(&format!("{to} is refused with {said:?}"), async || {
            let log = std::fs::read_to_string(client.path("log")).unwrap();
            log.contains(&said).then_some(())
        })
        .await;
        if !reason.is_empty() {
            bastion.event("forward-refused", &[("user", "alice"), ("reason", reason)]).await;
        }
    }
    // The log tells whether there is such a target, which the user is not told.
    let refused = bastion.kinds("forward-refused").await;
    for (to, target) in [
        ("unknown:22", None),
        ("db1:443", None),
        ("0:22", None),
        ("secret:22", Some("secret")),
        ("office:22", Some("office")),
        ("rebound:22", Some("rebound")),
    ] {
        let event = refused.iter().find(|event| event["destination"] == to).unwrap();
        assert_eq!(event["target"].as_str(), target, "{event}");
    }
    let failed = bastion.kinds("forward-failed").await;
    assert_eq!(failed.len(), 2, "{failed:?}");
    client.ssh(&["-O", "exit", "bastion"]).await.ok();
    ended(&mut master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_refused_and_never_hangs() {
    let (bastion, _sshd, alice, client) = setting(Engine::Sqlite).await;
    let login = |args: &'static [&'static str]| {
        client.answers(&[PASSWORD, &bastion.code(&alice)]);
        client.ssh(args)
    };
    let ran = login(&["-R", "0:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes", "-N", "bastion"])
        .await
        .failed();
    assert!(ran.err.contains("remote port forwarding failed"), "{ran:?}");
    bastion.event("request-refused", &[("request", "tcpip-forward localhost:0")]).await;

    let ran = login(&["-s", "bastion", "sftp"]).await.failed();
    assert!(ran.err.contains("subsystem request failed"), "{ran:?}");
    bastion.event("request-refused", &[("request", "subsystem sftp")]).await;

    login(&[
        "-o",
        "StreamLocalBindUnlink=yes",
        "-R",
        "/tmp/no.sock:127.0.0.1:1",
        "-o",
        "ExitOnForwardFailure=yes",
        "-N",
        "bastion",
    ])
    .await
    .failed();
    bastion.event("request-refused", &[("request", "streamlocal-forward /tmp/no.sock")]).await;

    // Agent and X11 requests are refused, the session goes on.
    let agent = client.path("agent.sock");
    let mut ssh_agent = command(tool("ssh-agent"));
    let mut ssh_agent = ssh_agent.arg("-D").arg("-a").arg(&agent).spawn().unwrap();
    eventually("the agent listens", async || agent.exists().then_some(())).await;
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let option = format!("IdentityAgent={}", agent.display());
    client.ssh(&["-o", &option, "-A", "bastion", "targets"]).await.ok();
    bastion.event("request-refused", &[("request", "auth-agent-req")]).await;
    ssh_agent.kill().await.unwrap();

    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let mut x11 = client.command("ssh", &["-Y", "bastion", "targets"]);
    let ran = run(x11.env("DISPLAY", "127.0.0.1:77")).await.ok();
    assert!(ran.err.contains("X11 forwarding request failed"), "{ran:?}");
    bastion.event("request-refused", &[("request", "x11-req")]).await;

    // A socket file of the bastion's own host.
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let local = free_port();
    let forward = format!("{local}:/tmp/no.sock");
    let mut ssh = client.command("ssh", &["-N", "-L", &forward, "bastion"]).spawn().unwrap();
    listening(local).await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    let _closed_or_reset = tokio::time::timeout(PATIENCE, read).await.expect("it hangs");
    assert!(rest.is_empty());
    bastion.event("request-refused", &[("request", "direct-streamlocal")]).await;
    ssh.kill().await.unwrap();

    let ran = login(&["bastion", "nonsense"]).await;
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.err.contains("unrecognized subcommand"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_counted() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[server]\nmax_channels = 2\n").await;
    let sshd = Sshd::start().await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let local = free_port();
    let forward = format!("{local}:db1:{}", sshd.port);
    let mut ssh = client.command("ssh", &["-N", "-L", &forward, "bastion"]);
    let mut ssh = ssh.spawn().unwrap();
    eventually("the forward listens", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", local)).await.ok()
    })
    .await;
    let open = async || {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        let mut banner = [0; 4];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut banner).await;
        read.map(|_| stream)
    };
    // The look whether it listens took a channel, too, which may not be free again yet.
    let first = eventually("a channel is free", async || open().await.ok()).await;
    let second = eventually("another channel is free", async || open().await.ok()).await;
    let held = [first, second];
    assert!(open().await.is_err());
    bastion.event("forward-refused", &[("reason", "too-many-channels")]).await;
    drop(held);
    eventually("a channel is free again", async || open().await.ok()).await;
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_grant_a_closed_hour_and_a_disabled_user_end_what_is_open() {
    let (bastion, sshd, alice, client) = setting(Engine::Sqlite).await;
    let (store, context) = (bastion.store(), Context::default());
    let sleeper = async |target: &str, client: &Client| {
        client.answers(&[PASSWORD, &bastion.code(&alice)]);
        let mut ssh = client.command("ssh", &["-J", "bastion", target, "echo up; exec cat"]);
        // `cat` ends with its input: nothing on the target outlives the session.
        ssh.stdin(std::process::Stdio::piped());
        let mut child = ssh.spawn().unwrap();
        let mut up = [0; 3];
        tokio::io::AsyncReadExt::read_exact(child.stdout.as_mut().unwrap(), &mut up).await.unwrap();
        // Held apart from the child: waiting for that would close it.
        let stdin = child.stdin.take();
        (child, stdin)
    };
    let (mut child, _stdin) = sleeper("db1", &client).await;
    let grants = store.grants().await.unwrap();
    store.remove_grant(grants[0].id.as_str(), &context, bastion.now()).await.unwrap();
    assert!(!ended(&mut child).await.success());
    bastion.event("forward-closed", &[("reason", "db1 is not granted to you")]).await;

    // The clock of the policy is the bastion's; another change makes it look.
    bastion
        .add_grant("alice", "db1", |grant| {
            grant.until = Some(bastion.now().plus(Duration::from_secs(3600)))
        })
        .await;
    let (mut child, _stdin) = sleeper("db1", &client).await;
    bastion.clock.advance(Duration::from_secs(3601));
    store.add_group(&"x".parse().unwrap(), &context, bastion.now()).await.unwrap();
    assert!(!ended(&mut child).await.success());

    let id = bastion.add_grant("alice", "db1", |_| {}).await;
    let (mut child, _stdin) = sleeper("db1", &client).await;
    store.set_disabled(&alice.name, true, &context, bastion.now()).await.unwrap();
    assert!(!ended(&mut child).await.success());
    bastion.event("session-ended", &[("reason", "revoked")]).await;
    assert!(!id.as_str().is_empty() && sshd.port > 0);
}
