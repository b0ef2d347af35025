//! Sessions on a target in record mode that share a connection, or whose bytes are more than fit.

use std::process::Stdio;

use sallyport::audit::Context;
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use crate::record_table::noise;
use crate::support::bastion::PASSWORD;
use crate::support::hop::{Hop, NOTICE, fed};
use crate::support::server::BINARY;
use crate::support::ssh::run;
use crate::support::ways::{ENTRANCES, Program, Way};
use crate::support::{PATIENCE, command, ended, eventually, eventually_or, tool};

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_on_after_the_end_of_the_output() {
    let hop = Hop::roomy("", |_| {}).await;
    let input = noise(2_000_000);
    for reach in hop.reaches() {
        let file = hop.client.path("copy");
        let line = format!("exec >&- 2>&-; cat > {}", file.display());
        let ran = reach.run(&["HOST", &line], &input).await.ok();
        assert_eq!(ran.out, b"", "{reach:?}");
        assert!(std::fs::read(&file).unwrap() == input, "{reach:?}");
        std::fs::remove_file(&file).unwrap();
    }
    assert_eq!(hop.bastion.bastion.budget.held(), 0);
}

/// As with a host that was reached directly, whose sshd goes when nothing more comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_not_kept_waiting() {
    let hop = Hop::roomy("", |_| {}).await;
    let mut ssh = hop.command(&["-W", "db1:22", "bastion"]);
    let ran = fed(&mut ssh, b"").await.ok();
    assert!(ran.out.starts_with(b"SSH-2.0-Sallyport"), "{:?}", ran.text());
    hop.bastion.event("forward-closed", &[("reason", "client-closed")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zcat_of_a_small_file_that_becomes_large() {
    let hop = Hop::roomy("", |_| {}).await;
    let packed = |bytes: usize| {
        let text = "all work and no play\n".repeat(bytes / 21);
        let mut gzip = command(tool("gzip"));
        gzip.arg("-c");
        async move { fed(&mut gzip, text.as_bytes()).await.ok().out }
    };
    let small = packed(10_500_000).await;
    assert!(small.len() < 100_000, "{}", small.len());
    for reach in hop.reaches() {
        let ran = reach.run(&["HOST", "zcat"], &small).await.ok();
        assert_eq!(ran.out.len(), 10_500_000, "{reach:?}");
    }
    let small = packed(210_000_000).await;
    for reach in hop.reaches() {
        let ran = reach.run(&["HOST", "zcat | wc -c"], &small).await.ok();
        assert_eq!(ran.text(), "210000000\n", "{reach:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sessions_share_one_connection() {
    let hop = Hop::roomy("", |_| {}).await;
    for way in ENTRANCES {
        let host = way.host();
        let (mut master, path) = hop.shared_on(way, &[]).await;
        let lines: Vec<String> =
            (0..10).map(|n| format!("echo {host} {n}; cat; exit {n}")).collect();
        let inputs: Vec<Vec<u8>> = (0..10).map(|n| noise(50_000 + n)).collect();
        let runs = lines.iter().zip(&inputs).map(|(line, input)| {
            let mut ssh = hop.command(&["-S", &path, host, line]);
            async move { fed(&mut ssh, input).await }
        });
        for (n, ran) in futures_util::future::join_all(runs).await.into_iter().enumerate() {
            let out = [format!("{host} {n}\n").as_bytes(), &inputs[n]].concat();
            assert_eq!(ran.code, Some(n as i32), "{}", ran.err);
            assert!(ran.out == out, "{n}");
        }
        for line in &lines {
            hop.recorded(line).await;
        }
        hop.ssh(&["-O", "exit", "-S", &path, host]).await.ok();
        ended(&mut master).await;
    }
    assert_eq!(hop.recordings().await.len(), 20);
    // One hop through the outer connection, and one connection that chose its target.
    assert_eq!(hop.bastion.kinds("forward-opened").await.len(), 1);
    assert_eq!(hop.bastion.kinds("signed-in").await.len(), 2);
    hop.bastion.event("forward-closed", &[("reason", "the client closed it")]).await;
    hop.bastion.event("session-ended", &[("user", "alice")]).await;
}

/// What an administrator looks for, in a form for other programs.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_was_shown_and_tells_it_as_json() {
    let hop = Hop::start().await;
    let line = "echo; echo a needle in hay";
    hop.ssh(&["via", line]).await.ok();
    let cast = hop.recorded(line).await;
    let search = async |text: &str| {
        let mut cli = command(BINARY);
        cli.arg("--config").arg(hop.bastion.path("sallyport.toml"));
        let ran = run(cli.args(["session", "search", text, "--json"])).await;
        serde_json::from_str::<serde_json::Value>(&ran.out).unwrap_or_else(|_| panic!("{ran:?}"))
    };
    let found = search("needle in").await;
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    let fields = ["recording", "session", "line"].map(|key| found[0][key].as_str().unwrap());
    assert_eq!(fields, [&cast.row.id, &cast.row.session_id, "a needle in hay"]);
    assert_eq!(found[0]["started_at"], cast.row.started_at, "{found}");
    assert!(found[0]["at"].as_f64().unwrap() >= 0.0, "{found}");
    let read = hop.bastion.event("recording-read", &[("recording", &cast.row.id)]).await;
    assert!(read["how"].as_str().unwrap().contains("search"), "{read}");
    assert_eq!(search("no such straw").await, serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_whose_input_nobody_reads_leave_nothing_behind() {
    let hop = Hop::roomy("", |_| {}).await;
    let input = noise(3_000_000);
    for way in ENTRANCES {
        let (mut master, path) = hop.shared_on(way, &[]).await;
        for _ in 0..5 {
            let mut ssh = hop.command(&["-S", &path, way.host(), "head -c 5 >/dev/null; exit 7"]);
            assert_eq!(fed(&mut ssh, &input).await.code, Some(7));
        }
        // While the connection that they were on goes on.
        eventually_or("nothing is held", async || {
            let held = hop.bastion.bastion.budget.held();
            (held == 0).then_some(()).ok_or(held)
        })
        .await;
        hop.ssh(&["-O", "exit", "-S", &path, way.host()]).await.ok();
        ended(&mut master).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn puttys_sessions_share_a_connection_too() {
    let hop = Hop::roomy("", |_| {}).await;
    let reach = hop.reach(Program::Plink, Way::Selector);
    let mut upstream = reach.start(&["-share", "-N", "HOST"]).await;
    eventually("PuTTY's connection can be shared", async || {
        let ran = fed(&mut reach.command("plink", &["-shareexists", "HOST"]), b"").await;
        (ran.code == Some(0)).then_some(())
    })
    .await;
    let inputs: Vec<Vec<u8>> = (0..5).map(|n| noise(50_000 + n)).collect();
    let runs = inputs.iter().enumerate().map(|(n, input)| {
        let line = format!("cat; exit {n}");
        let mut plink = reach.command("plink", &["-share", "HOST", &line]);
        async move { fed(&mut plink, input).await }
    });
    for (n, ran) in futures_util::future::join_all(runs).await.into_iter().enumerate() {
        assert_eq!(ran.code, Some(n as i32), "{}", ran.err);
        assert!(ran.out == inputs[n], "{n}");
    }
    assert_eq!(hop.recordings().await.len(), 5);
    // Hop's own, and this one.
    assert_eq!(hop.bastion.kinds("signed-in").await.len(), 2);
    // It takes its socket away when the connection ends from the other side.
    let (store, context) = (hop.bastion.store(), Context::default());
    for session in store.sessions(&Default::default(), 10).await.unwrap() {
        let (id, now) = (session.id.parse().unwrap(), hop.bastion.now());
        store.request_kill(&id, &context, now).await.unwrap();
    }
    ended(&mut upstream).await;
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// One reader with a connection of its own, whose client is stopped; and one, whose output nobody
/// reads, on the connection that its neighbours use, too.
async fn readers_pause(way: Way) {
    let hop = Hop::roomy("", |_| {}).await;
    let numbers: String = (1..=1_500_000).map(|n| format!("{n}\n")).collect();
    let (mut master, path) = hop.shared_on(way, &[]).await;
    let host = way.host();
    let start = async |args: &[&str]| {
        let args = [args, &[host, "echo up; seq 1 1500000"]].concat();
        let mut child = hop.command(&args).stdin(Stdio::null()).spawn().unwrap();
        let mut up = [0; 3];
        let read = child.stdout.as_mut().unwrap().read_exact(&mut up);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        child
    };
    hop.sign_in_on(way);
    let alone = start(&[]).await;
    let shared = start(&["-S", &path]).await;
    signal(&alone, rustix::process::Signal::STOP);
    for n in 0..10 {
        let text = format!("echo {n}");
        hop.sign_in_on(way);
        for args in [vec!["-S", &path, host, &text], vec![host, &text]] {
            assert_eq!(hop.ssh(&args).await.ok().text(), format!("{n}\n"));
        }
    }
    let held = hop.bastion.bastion.budget.held();
    assert!(held < 8 << 20, "{held}");
    signal(&alone, rustix::process::Signal::CONT);
    for child in [alone, shared] {
        let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        assert!(done.status.success() && done.stdout == numbers.as_bytes(), "{}", done.status);
    }
    hop.ssh(&["-O", "exit", "-S", &path, host]).await.ok();
    ended(&mut master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pauses_leaves_its_neighbours_alone() {
    readers_pause(Way::Jump).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pauses_on_a_chosen_target_leaves_its_neighbours_alone() {
    readers_pause(Way::Selector).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_signs_in_and_hops() {
    let hop = Hop::start().await;
    hop.client.answers(&[PASSWORD, &hop.bastion.code(&hop.alice)]);
    let args = ["-o", "ControlPath=none", "-J", "alone", "via", "echo hopped"];
    let alone = format!("HostName 127.0.0.1\nPort {}\nUser alice", hop.bastion.port);
    let Hop { client, .. } = hop;
    let client = client.host("alone", &alone);
    let ran = client.ssh(&args).await.ok();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("hopped\n", NOTICE));
    let asked = client.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    hop.bastion.event("target-signed-in", &[("account", &crate::support::present_user())]).await;
    for kind in ["signed-in", "forward-opened"] {
        hop.bastion.event(kind, &[("user", "alice")]).await;
    }
}
