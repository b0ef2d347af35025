//! What breaks SSH servers built on russh, tried with the real client: slow readers, stuck uploads,
//! clients that die, rekeying, dripped packets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::ssh::{Client, digest};
use crate::support::sshd::Sshd;
use crate::support::{PATIENCE, SOON, ended, eventually, free_port, signal};

async fn setting() -> (TestBastion, Sshd, Client) {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let sshd = Sshd::start().await;
    let alice = bastion.person("alice").await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    (bastion, sshd, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn zcat_of_a_small_file_that_becomes_large() {
    let (_bastion, _sshd, client) = setting().await;
    let text = client.path("zeros");
    let script = format!("head -c 300000000 /dev/zero | gzip -c > {}", text.display());
    let made = crate::support::command("/bin/sh").args(["-c", &script]).status().await.unwrap();
    assert!(made.success());
    let mut ssh = client.command("ssh", &["-J", "bastion", "db1", "zcat | wc -c"]);
    ssh.stdin(std::fs::File::open(&text).unwrap());
    assert_eq!(crate::support::ssh::run(&mut ssh).await.ok().out.trim(), "300000000");

    // And the large side on its way back through the bastion, both directions busy.
    let (_bastion, _sshd, client) = setting().await;
    let script = format!("head -c 60000000 /dev/zero | gzip -c > {}", client.path("z").display());
    assert!(
        crate::support::command("/bin/sh").args(["-c", &script]).status().await.unwrap().success()
    );
    let mut ssh = client.command("ssh", &["-J", "bastion", "db1", "zcat"]);
    ssh.stdin(std::fs::File::open(client.path("z")).unwrap());
    assert_eq!(crate::support::ssh::run(&mut ssh).await.ok().out.len(), 60_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn rekeying_every_megabyte_changes_nothing() {
    let (bastion, _sshd, client) = setting().await;
    let client = client.host("bastion", "RekeyLimit 1M");
    let file = client.path("file");
    let bytes: Vec<u8> =
        (0..8_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&file, bytes).unwrap();
    let copy = client.path("copy");
    let to = format!("db1:{}", copy.display());
    client.run("scp", &["-J", "bastion", file.to_str().unwrap(), &to]).await.ok();
    assert_eq!(digest(&copy), digest(&file));
    // The inner ssh ends the outer one by SIGHUP. If bytes from the bastion are still unread then, its
    // socket goes with a reset, which cannot be told from a connection that broke.
    let ended = bastion.event("session-ended", &[]).await;
    let reason = ended["reason"].as_str().unwrap();
    assert!(["client-closed", "connection-lost"].contains(&reason), "{ended}");
}

/// A target that the test plays itself, and an open `ssh -L` to it.
async fn forwarded(
    bastion: &TestBastion,
    client: &Client,
) -> (TcpListener, u16, tokio::process::Child) {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    bastion.grant("alice", "played", &address.to_string()).await;
    let local = free_port();
    let forward = format!("{local}:played:{}", address.port());
    let child = client.command("ssh", &["-N", "-L", &forward, "bastion"]).spawn().unwrap();
    (target, local, child)
}

async fn connected(target: &TcpListener, local: u16) -> (TcpStream, TcpStream) {
    let ours =
        eventually("ssh listens", async || TcpStream::connect(("127.0.0.1", local)).await.ok())
            .await;
    let theirs = tokio::time::timeout(PATIENCE, target.accept()).await.unwrap().unwrap().0;
    (ours, theirs)
}

/// Writes until nothing more is taken.
async fn fill(stream: &mut TcpStream) -> usize {
    let mut sent = 0;
    let piece = vec![7; 64 * 1024];
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), stream.write(&piece)).await
    {
        sent += written.unwrap();
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_upload_leaves_its_neighbour_alone_and_arrives_in_the_end() {
    let (bastion, _sshd, client) = setting().await;
    let (target, local, mut ssh) = forwarded(&bastion, &client).await;
    let (mut stuck, mut unread) = connected(&target, local).await;
    let sent = fill(&mut stuck).await;
    let (mut here, mut there) = connected(&target, local).await;
    for tick in 0..20_u8 {
        here.write_all(&[tick]).await.unwrap();
        let mut byte = [0];
        tokio::time::timeout(PATIENCE, there.read_exact(&mut byte)).await.unwrap().unwrap();
        there.write_all(&byte).await.unwrap();
        tokio::time::timeout(PATIENCE, here.read_exact(&mut byte)).await.unwrap().unwrap();
        assert_eq!(byte, [tick]);
    }
    assert!(bastion.bastion.budget.held() < 4 << 20, "{}", bastion.bastion.budget.held());
    // The reader wakes up: everything arrives, half-closed.
    stuck.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(PATIENCE, unread.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), sent);
    assert!(got.iter().all(|byte| *byte == 7));
    // The other direction is still open.
    unread.write_all(b"answer").await.unwrap();
    drop(unread);
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stuck.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(bastion.bastion.budget.held(), 0);
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_read_is_given_up_after_the_stall_timeout() {
    let extra = "[forward]\nstall_timeout = \"2s\"\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, extra).await;
    let alice = bastion.person("alice").await;
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let (target, local, mut ssh) = forwarded(&bastion, &client).await;
    let (mut ours, theirs) = connected(&target, local).await;
    fill(&mut ours).await;
    bastion.event("forward-closed", &[("reason", "the target did not read for 2s")]).await;
    drop(theirs);
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_with_a_full_window_leaves_nothing_behind() {
    let (bastion, _sshd, client) = setting().await;
    let (target, local, mut ssh) = forwarded(&bastion, &client).await;
    let (ours, mut theirs) = connected(&target, local).await;
    fill(&mut theirs).await; // Nobody reads `ours`.
    ssh.kill().await.unwrap();
    ended(&mut ssh).await;
    let gone = async {
        let piece = vec![0; 64 * 1024];
        while theirs.write_all(&piece).await.is_ok() {}
    };
    // Its end is written down after all its tasks are over.
    let written = async {
        bastion.event("forward-closed", &[]).await;
        bastion.event("session-ended", &[("user", "alice")]).await;
    };
    let over = tokio::time::timeout(SOON, async { tokio::join!(gone, written) });
    over.await.expect("something outlives the client");
    assert_eq!(bastion.bastion.budget.held(), 0);
    drop(ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_groups_are_not_offered() {
    let (_bastion, _sshd, client) = setting().await;
    for group in
        ["diffie-hellman-group18-sha512", "diffie-hellman-group16-sha512", "ecdh-sha2-nistp256"]
    {
        let ran = client.ssh(&["-o", &format!("KexAlgorithms={group}"), "bastion"]).await.failed();
        assert!(ran.err.contains("no matching key exchange method"), "{ran:?}");
    }
    let ran = client.ssh(&["-vv", "-o", "Compression=yes", "bastion", "targets"]).await.ok();
    assert!(
        ran.err.contains("server->client cipher: aes") && ran.err.contains("compression: none"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dripped_packets_do_not_outlive_the_grace_time() {
    let bastion = TestBastion::start_with(Engine::Sqlite, "[server]\nlogin_grace = \"2s\"\n").await;
    let mut stream = TcpStream::connect(("127.0.0.1", bastion.port)).await.unwrap();
    stream.write_all(b"SSH-2.0-drip\r\n").await.unwrap();
    // SSH_MSG_IGNORE (RFC 4253 section 11.2), unencrypted: length 12, padding 6, type 2, no data.
    let ignore = [0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let drip = async {
        loop {
            if stream.write_all(&ignore).await.is_err() {
                return;
            }
            let mut buffer = [0; 1024];
            if let Ok(Ok(0) | Err(_)) =
                tokio::time::timeout(Duration::from_millis(200), stream.read(&mut buffer)).await
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), drip).await.expect("it is still connected");
}

/// Far more than all buffers between a target and a client hold together.
const MUCH: usize = 48 << 20;

/// Writes [`MUCH`], telling how far it got, and gives its checksum.
async fn pour(mut to: TcpStream, written: &AtomicUsize) -> ring::digest::Digest {
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    let mut piece = vec![0; 64 * 1024];
    while written.load(Ordering::SeqCst) < MUCH {
        let at = written.load(Ordering::SeqCst);
        for (n, word) in piece.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(
                &((at + n) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes(),
            );
        }
        to.write_all(&piece).await.unwrap();
        sum.update(&piece);
        written.fetch_add(piece.len(), Ordering::SeqCst);
    }
    to.shutdown().await.unwrap();
    sum.finish()
}

/// Reads to the end; how much, and its checksum.
async fn drain(from: &mut TcpStream) -> (usize, ring::digest::Digest) {
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    let (mut piece, mut all) = (vec![0; 64 * 1024], 0);
    loop {
        let read = tokio::time::timeout(PATIENCE, from.read(&mut piece)).await;
        match read.expect("nothing more comes").unwrap() {
            0 => return (all, sum.finish()),
            read => {
                sum.update(&piece[..read]);
                all += read;
            }
        }
    }
}

/// Sends bytes there and back.
async fn tick((here, there): &mut (TcpStream, TcpStream), ticks: u8) {
    let mut byte = [0];
    for tick in 0..ticks {
        here.write_all(&[tick]).await.unwrap();
        tokio::time::timeout(PATIENCE, there.read_exact(&mut byte)).await.unwrap().unwrap();
        there.write_all(&byte).await.unwrap();
        tokio::time::timeout(PATIENCE, here.read_exact(&mut byte)).await.unwrap().unwrap();
        assert_eq!(byte, [tick]);
    }
}

/// Ticks until `written` no longer grows; how far it got.
async fn stalled(written: &AtomicUsize, ticking: &mut (TcpStream, TcpStream)) -> usize {
    let mut before = 0;
    eventually("a writer is held back", async || {
        tick(ticking, 50).await;
        let now = written.load(Ordering::SeqCst);
        (now > 0 && std::mem::replace(&mut before, now) == now).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_reader_leaves_its_neighbour_alone_and_gets_everything_in_the_end() {
    let (bastion, _sshd, client) = setting().await;
    let (target, local, mut ssh) = forwarded(&bastion, &client).await;
    let (mut paused, theirs) = connected(&target, local).await;
    let mut ticking = connected(&target, local).await;
    let written = AtomicUsize::new(0);
    let (poured, (all, sum)) = tokio::join!(pour(theirs, &written), async {
        let at = stalled(&written, &mut ticking).await;
        assert!(at < MUCH, "{at} bytes were taken for a reader that does not read");
        tick(&mut ticking, 50).await;
        let (got, ()) = tokio::join!(drain(&mut paused), tick(&mut ticking, 50));
        got
    });
    assert_eq!((all, sum.as_ref()), (MUCH, poured.as_ref()));
    assert_eq!(bastion.bastion.budget.held(), 0);
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_client_is_waited_for_and_gets_everything_in_the_end() {
    let (bastion, _sshd, client) = setting().await;
    let (target, local, mut stopped) = forwarded(&bastion, &client).await;
    let (mut ours, theirs) = connected(&target, local).await;
    let mut beside = connected(&target, local).await;
    tick(&mut beside, 5).await;
    // Somebody else, whose client is not stopped.
    let bob = bastion.person("bob").await;
    bastion.add_grant("bob", "played", |_| {}).await;
    let other = Client::new(&bastion, "bob");
    other.answers(&[PASSWORD, &bastion.code(&bob)]);
    let other_local = free_port();
    let forward = format!("{other_local}:played:{}", target.local_addr().unwrap().port());
    let mut running = other.command("ssh", &["-N", "-L", &forward, "bastion"]).spawn().unwrap();
    let mut ticking = connected(&target, other_local).await;

    signal(&stopped, Signal::STOP);
    let written = AtomicUsize::new(0);
    let (poured, (all, sum)) = tokio::join!(pour(theirs, &written), async {
        // A target that answers on the same connection meanwhile.
        beside.1.write_all(b"while it is stopped").await.unwrap();
        let at = stalled(&written, &mut ticking).await;
        assert!(at < MUCH, "{at} bytes were taken for a client that is stopped");
        assert!(bastion.kinds("session-ended").await.is_empty());
        signal(&stopped, Signal::CONT);
        let mut text = [0; 19];
        let beside = async {
            tokio::time::timeout(PATIENCE, beside.0.read_exact(&mut text)).await.unwrap().unwrap();
            tick(&mut beside, 50).await;
        };
        let (got, ()) = tokio::join!(drain(&mut ours), beside);
        assert_eq!(&text, b"while it is stopped");
        got
    });
    assert_eq!((all, sum.as_ref()), (MUCH, poured.as_ref()));
    assert_eq!(bastion.bastion.budget.held(), 0);
    for ssh in [&mut stopped, &mut running] {
        ssh.kill().await.unwrap();
    }
}

/// One account has as many stuck uploads as it can; what another one does beside it, whose target
/// reads, comes to its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_many_stuck_channels_neither_stops_nor_ends_another_one() {
    let extra = "[forward]\nwindow = \"64 KiB\"\nchannel_budget = \"64 KiB\"\n\
                 total_budget = \"3 MiB\"\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, extra).await;
    let sshd = Sshd::start().await;
    let (alice, bob) = (bastion.person("alice").await, bastion.person("bob").await);
    let client = Client::new(&bastion, "alice");
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let (target, local, mut ssh) = forwarded(&bastion, &client).await;
    // So that little is held elsewhere.
    socket2::SockRef::from(&target).set_recv_buffer_size(8 << 10).unwrap();
    let mut stuck = Vec::new();
    // Half of the budget, a window for each of them, and what was read ahead, leave room for another.
    for _ in 0..20 {
        stuck.push(connected(&target, local).await);
    }
    let sent: Vec<AtomicUsize> = stuck.iter().map(|_| AtomicUsize::new(0)).collect();
    let filling = stuck.iter_mut().zip(&sent).map(|((here, _), sent)| async {
        let piece = vec![7; 64 * 1024];
        loop {
            sent.fetch_add(here.write(&piece).await.unwrap(), Ordering::SeqCst);
        }
    });
    let held = || bastion.bastion.budget.held();
    let full = async {
        let mut before = 0;
        while held() > before + (16 << 10) || held() < 1 << 20 {
            before = held();
            // Nothing tells when no more is taken.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        _ = futures_util::future::join_all(filling) => unreachable!("a stuck upload ended"),
        full = tokio::time::timeout(PATIENCE, full) => full.expect("no more is held"),
    }

    bastion.grant("bob", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let other = Client::new(&bastion, "bob").knows("db1", &sshd);
    other.answers(&[PASSWORD, &bastion.code(&bob)]);
    let (file, copy) = (other.path("file"), other.path("copy"));
    let bytes: Vec<u8> =
        (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&file, bytes).unwrap();
    let to = format!("db1:{}", copy.display());
    other.run("scp", &["-J", "bastion", file.to_str().unwrap(), &to]).await.ok();
    assert_eq!(digest(&copy), digest(&file));

    // Whoever waits is served in the end, too.
    let read = stuck.iter_mut().map(async |(here, unread)| {
        here.shutdown().await.unwrap();
        drain(unread).await.0
    });
    let got = futures_util::future::join_all(read).await;
    let sent: Vec<usize> = sent.iter().map(|sent| sent.load(Ordering::SeqCst)).collect();
    assert_eq!(got, sent);
    let ended = bastion.kinds("session-ended").await;
    assert!(ended.iter().all(|event| event["user"] == "bob"), "{ended:?}");
    ssh.kill().await.unwrap();
}
