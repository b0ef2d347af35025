//! What a hostile user or target tries on a recorded way: nothing stays unwritten or open.

use std::path::Path;
use std::time::{Duration, SystemTime};

use sallyport::domain::{Id, Mode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::raw::{self, Packet, RawClient};
use crate::support::server::Server;
use crate::support::sshd::Sshd;
use crate::support::{eventually_or, free_port, present_user};

/// A bastion with the recorded target `db1`, and somebody signed in who chose it.
async fn chosen() -> (TestBastion, Sshd, RawClient) {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let sshd = Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    let alice = bastion.person("alice").await;
    bastion.add_grant("alice", "db1", |_| {}).await;
    let code = bastion.code(&alice);
    let mut client = RawClient::connect(bastion.port).await;
    let name = format!("alice+{}@db1", present_user());
    assert_eq!(client.log_in(&name, PASSWORD, &code).await, raw::USERAUTH_SUCCESS);
    (bastion, sshd, client)
}

/// Opens a session channel; gives the bastion's number of it.
async fn open(client: &mut RawClient, ours: u32) -> u32 {
    open_with(client, ours, 1 << 20).await
}

/// The same with a window of this size.
async fn open_with(client: &mut RawClient, ours: u32, window: u32) -> u32 {
    let open = Packet::new(90).text("session").number(ours).number(window).number(32768);
    client.send(&open.0).await;
    loop {
        let packet = client.receive().await.unwrap();
        assert_ne!(packet[0], 92, "it was refused");
        if packet[0] == 91 && packet[1..5] == ours.to_be_bytes() {
            return u32::from_be_bytes(packet[5..9].try_into().unwrap());
        }
    }
}

/// Channels to a target whose name takes its time to resolve: each has its place from the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn channels_that_wait_for_a_name_take_their_places() {
    let (release, hang) = std::sync::mpsc::channel::<()>();
    let hang = std::sync::Mutex::new(hang);
    let lookup = move |_: &str, _| {
        assert!(hang.lock().unwrap().recv().is_err()); // Once nobody holds the other end.
        Err(std::io::ErrorKind::NotFound.into())
    };
    let prepare = |bastion: &mut sallyport::server::Bastion| {
        bastion.resolver = sallyport::server::forward::dial::Resolver::new(lookup);
    };
    let extra = "[server]\nmax_channels = 4\n";
    let now = sallyport::clock::Clock::System.now();
    let bastion = TestBastion::start_prepared(now, Engine::Sqlite, extra, prepare).await;
    bastion.target_in(Mode::Record, "slow", "slow.example:22").await;
    let alice = bastion.person("alice").await;
    bastion.add_grant("alice", "slow", |_| {}).await;
    let code = bastion.code(&alice);
    let mut client = RawClient::connect(bastion.port).await;
    assert_eq!(client.log_in("alice+root@slow", PASSWORD, &code).await, raw::USERAUTH_SUCCESS);
    for ours in 0..4 {
        match ours % 2 {
            0 => client.ask_channel("session", ours, Packet::default()).await,
            _ => client.ask_direct(ours, "127.0.0.1", 80).await,
        }
    }
    for ours in 4..10 {
        match ours % 2 {
            0 => client.ask_channel("session", ours, Packet::default()).await,
            _ => client.ask_direct(ours, "127.0.0.1", 80).await,
        }
        let (code, why) = client.opened(ours).await.unwrap_err();
        assert_eq!((code, why.contains("too many channels")), (1, true), "{why}");
    }
    let refused = [("reason", "too-many-channels"), ("request", "session")];
    bastion.event("request-refused", &refused).await;
    drop(release);
    let mut waited: Vec<String> = Vec::new();
    while waited.len() < 4 {
        let packet = client.next().await;
        assert_eq!(packet[0], raw::CHANNEL_OPEN_FAILURE);
        waited.push(String::from_utf8_lossy(raw::take(&mut &packet[9..])).into_owned());
    }
    assert!(waited.iter().all(|why| why.contains("does not resolve")), "{waited:?}");
    // Their places are free again.
    client.ask_channel("session", 10, Packet::default()).await;
    let (_, why) = client.opened(10).await.unwrap_err();
    assert!(why.contains("does not resolve"), "{why}");
}

fn files(recordings: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for day in std::fs::read_dir(recordings).into_iter().flatten() {
        for file in std::fs::read_dir(day.unwrap().path()).unwrap() {
            names.push(file.unwrap().file_name().into_string().unwrap());
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_closed_at_once_leave_nothing_half_written() {
    let (bastion, _sshd, mut client) = chosen().await;
    for wait in 0..40 {
        let id = open(&mut client, wait).await;
        client.send(&Packet::new(98).number(id).text("shell").bytes(&[1]).0).await;
        // The attack is in the time between; whatever it is, the end must be the same.
        tokio::time::sleep(Duration::from_millis(wait.into())).await;
        client.send(&Packet::new(97).number(id).0).await;
    }
    drop(client);
    eventually_or("each recording has a row and an end", async || {
        let rows = bastion.store().recordings().await.unwrap();
        let files = files(&bastion.config.recordings());
        let open = rows.iter().filter(|row| row.ended_at.is_none()).count();
        let lost: Vec<_> = files
            .iter()
            .filter(|name| !rows.iter().any(|row| row.path.ends_with(*name)))
            .cloned()
            .collect();
        let sessions = bastion.store().sessions(&Default::default(), 5).await.unwrap();
        let over = sessions.iter().all(|row| row.ended_at.is_some());
        (over && open == 0 && lost.is_empty() && files.len() == rows.len()).then_some(()).ok_or((
            rows.len(),
            open,
            lost,
        ))
    })
    .await;
    let started = bastion.kinds("recording-started").await.len();
    assert_eq!(started, bastion.kinds("recording-ended").await.len());
    assert!(started > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_removes_recordings_that_never_began() {
    let mut server = Server::start("").await;
    server.signal(rustix::process::Signal::TERM);
    server.ends_well().await;
    let recordings = server.dir.path().join("data/recordings");
    let day = recordings.join("2026-01-01");
    std::fs::create_dir_all(&day).unwrap();
    let put = |text: &str, old: bool| {
        let name = format!("{}.cast", Id::random().unwrap());
        std::fs::write(day.join(&name), text).unwrap();
        if old {
            let file = std::fs::File::options().write(true).open(day.join(&name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        name
    };
    let header = "{\"version\":3,\"term\":{\"cols\":80,\"rows\":24}}\n";
    let forsaken = put(header, true);
    // Another bastion may be about to write its row; and what was recorded is never thrown away.
    let new = put(header, false);
    let recorded = put(&format!("{header}[0.1,\"o\",\"evidence\"]\n"), true);
    server.start_again().await;
    eventually_or("it is gone", async || {
        let left = files(&recordings);
        (!left.contains(&forsaken)).then_some(()).ok_or(left)
    })
    .await;
    let left = files(&recordings);
    assert!(left.contains(&new) && left.contains(&recorded), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_subsystem_is_kept_short_and_harmless() {
    let (bastion, _sshd, mut client) = chosen().await;
    let id = open(&mut client, 0).await;
    let name = format!("shell\u{1b}]0;x{}", "A".repeat(20_000));
    client.send(&Packet::new(98).number(id).text("subsystem").bytes(&[1]).text(name).0).await;
    let row = eventually_or("it is written down", async || {
        let rows = bastion.store().recordings().await.unwrap();
        rows.first().map(|row| row.kind.clone()).ok_or(rows.len())
    })
    .await;
    assert!(row.starts_with("subsystem:shell\\u{1b}]0;xAAA"), "{row}");
    assert!(row.len() < 400, "{}", row.len());
}

/// Asks for a connection from the target on; gives whether it was opened.
async fn onward(client: &mut RawClient, ours: u32, port: u16) -> bool {
    onward_to(client, ours, "127.0.0.1", port).await
}

async fn onward_to(client: &mut RawClient, ours: u32, host: &str, port: u16) -> bool {
    let open = Packet::new(90).text("direct-tcpip").number(ours).number(1 << 20).number(32768);
    let open = open.text(host).number(port.into()).text("127.0.0.1").number(1);
    client.send(&open.0).await;
    loop {
        let packet = client.receive().await.unwrap();
        if matches!(packet[0], 91 | 92) && packet[1..5] == ours.to_be_bytes() {
            return packet[0] == 91;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_server_on_the_same_host_is_not_reached_unseen() {
    let (bastion, _sshd, mut client) = chosen().await;
    let other = Sshd::start().await;
    assert!(onward(&mut client, 0, other.port).await, "it is no target yet");
    bastion.record_target("db2", &other).await;
    assert!(!onward(&mut client, 1, other.port).await);
    let what = format!("direct-tcpip 127.0.0.1:{}", other.port);
    bastion.event("use-refused", &[("what", &what)]).await;
    // What was open by then ends.
    let closed = bastion.event("onward-closed", &[("to", &what)]).await;
    let reason = closed["reason"].as_str().unwrap();
    assert!(reason.contains("sessions on db2 are recorded"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_server_is_not_reached_unseen_by_another_name() {
    let (bastion, _sshd, mut client) = chosen().await;
    let other = Sshd::start().await;
    // Granted, in tunnel mode, under another name and address than the recorded one has.
    let address = format!("127.0.0.1:{}", other.port);
    bastion.target("plain", &address).await;
    bastion.add_grant("alice", "plain", |_| {}).await;
    assert!(onward_to(&mut client, 0, "plain", other.port).await, "it is not recorded yet");
    bastion.target_in(Mode::Record, "db2", &format!("localhost:{}", other.port)).await;
    let refused = ["plain", "127.0.0.1", "localhost", "db1"];
    for (n, host) in (1..).zip(refused) {
        assert!(!onward_to(&mut client, n, host, other.port).await, "{host}");
        let what = format!("direct-tcpip {host}:{}", other.port);
        bastion.event("use-refused", &[("what", &what)]).await;
    }
    // A name that leads back to the target itself is no way around, either.
    bastion.target("back", &format!("localhost:{}", free_port())).await;
    bastion.add_grant("alice", "back", |_| {}).await;
    assert!(!onward_to(&mut client, 9, "back", 22).await);
    bastion.event("use-refused", &[("what", "direct-tcpip back:22")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_could_not_be_opened_has_its_end_written() {
    let (bastion, _sshd, mut client) = chosen().await;
    let port = free_port();
    assert!(!onward(&mut client, 0, port).await);
    let to = format!("direct-tcpip 127.0.0.1:{port}");
    assert_eq!(bastion.event("onward-opened", &[("to", &to)]).await["to"], to);
    bastion.event("onward-closed", &[("to", &to)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_nobody_waits_for_ends_its_socket() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap().to_string();
    bastion.target_in(Mode::Record, "db1", &address).await;
    let alice = bastion.person("alice").await;
    bastion.add_grant("alice", "db1", |_| {}).await;
    let code = bastion.code(&alice);
    let mut client = RawClient::connect(bastion.port).await;
    let name = format!("alice+{}@db1", present_user());
    assert_eq!(client.log_in(&name, PASSWORD, &code).await, raw::USERAUTH_SUCCESS);
    let id = open(&mut client, 0).await;
    client.send(&Packet::new(98).number(id).text("shell").bytes(&[1]).0).await;
    let (mut socket, _) = mute.accept().await.unwrap();
    // The key exchange has begun, and goes no further.
    socket.write_all(b"SSH-2.0-mute\r\n").await.unwrap();
    assert_ne!(socket.read(&mut [0; 64]).await.unwrap(), 0);
    client.send(&Packet::new(97).number(id).0).await;
    let gone = async { while matches!(socket.read(&mut [0; 4096]).await, Ok(1..)) {} };
    // Well before the handshake's own deadline.
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the socket lives on");
}

/// A packet of SFTP's (draft-ietf-secsh-filexfer-02 section 3), to send on `channel`.
fn sftp(channel: u32, kind: u8, body: Packet) -> Vec<u8> {
    let packet = Packet::default().text([&[kind], &body.0[..]].concat());
    Packet::new(94).number(channel).text(packet.0).0
}

/// Takes a packet of SFTP's off the front of what came, without its length.
fn whole(got: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = u32::from_be_bytes(*got.first_chunk::<4>()?) as usize;
    if got.len() < 4 + len {
        return None;
    }
    let rest = got.split_off(4 + len);
    Some(std::mem::replace(got, rest).split_off(4))
}

/// The next packet of SFTP's on a channel of ours.
async fn sftp_reply(client: &mut RawClient, ours: u32, got: &mut Vec<u8>) -> Vec<u8> {
    loop {
        if let Some(reply) = whole(got) {
            return reply;
        }
        let packet = client.receive().await.unwrap();
        assert!(!matches!(packet[0], 96 | 97), "it ended");
        if packet[0] == 94 && packet[1..5] == ours.to_be_bytes() {
            got.extend_from_slice(raw::take(&mut &packet[5..]));
        }
    }
}

/// Starts SFTP on a channel, which has a number of ours and one of the bastion's, and opens a file for
/// reading and one for writing; their handles.
async fn sftp_files(
    client: &mut RawClient,
    (ours, id): (u32, u32),
    got: &mut Vec<u8>,
    [source, sink]: [&Path; 2],
) -> Vec<Vec<u8>> {
    client.send(&Packet::new(98).number(id).text("subsystem").bytes(&[0]).text("sftp").0).await;
    client.send(&sftp(id, 1, Packet::default().number(3))).await;
    assert_eq!(sftp_reply(client, ours, got).await[0], 2);
    let mut handles = Vec::new();
    for (n, path, flags) in [(1, source, 1), (2, sink, 0x1a)] {
        let open = Packet::default().number(n).text(path.to_str().unwrap()).number(flags).number(0);
        client.send(&sftp(id, 3, open)).await;
        let reply = sftp_reply(client, ours, got).await;
        assert_eq!(reply[0], 102, "{reply:?}");
        handles.push(raw::take(&mut &reply[5..]).to_vec());
    }
    handles
}

/// A client that asks for far more than waits for anybody, and takes it slowly: it gets everything, what
/// it writes meanwhile arrives, and nobody else waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_of_answers_gets_them_all_and_slows_nobody_else() {
    const PIECE: usize = 32 * 1024;
    let (bastion, _sshd, mut client) = chosen().await;
    let (source, sink) = (bastion.path("source"), bastion.path("sink"));
    let content: Vec<u8> = (0..256_u32 * 8192).flat_map(|n| (n * 7).to_le_bytes()).collect();
    std::fs::write(&source, &content).unwrap();
    let (id, mut got) = (open_with(&mut client, 0, 2048).await, Vec::new());
    let handles = sftp_files(&mut client, (0, id), &mut got, [&source, &sink]).await;
    let other = open(&mut client, 1).await;
    let read = |n: u32| {
        let at = (u64::from(n) * PIECE as u64).to_be_bytes();
        let read = Packet::default().number(100 + n).text(&handles[0]).bytes(&at);
        sftp(id, 5, read.number(PIECE as u32))
    };
    for n in 0..16 {
        client.send(&read(n)).await;
    }
    let piece = vec![9; 30 * 1024];
    for n in 0..4 {
        let at = (u64::from(n) * piece.len() as u64).to_be_bytes();
        let write = Packet::default().number(10 + n).text(&handles[1]).bytes(&at).text(&piece);
        client.send(&sftp(id, 6, write)).await;
    }
    eventually_or("it is written", async || {
        let len = std::fs::metadata(&sink).unwrap().len();
        (len == 4 * 30 * 1024).then_some(()).ok_or(len)
    })
    .await;
    for n in 16..256 {
        client.send(&read(n)).await;
    }
    let held = || bastion.bastion.budget.held();
    eventually_or("answers wait", async || (held() > 1 << 20).then_some(()).ok_or(held())).await;
    let exec = Packet::new(98).number(other).text("exec").bytes(&[0]).text("echo served");
    client.send(&exec.0).await;
    let served = loop {
        let packet = client.receive().await.unwrap();
        assert!(!matches!(packet[0], 96 | 97), "it ended");
        if packet[0] == 94 {
            let data = raw::take(&mut &packet[5..]).to_vec();
            if packet[1..5] == 1_u32.to_be_bytes() {
                break data;
            }
            got.extend_from_slice(&data);
        }
    };
    assert_eq!(served, b"served\n");
    // No more is asked of the target than may wait.
    assert!(held() < 3 << 20, "{}", held());

    // From now on everything is taken, a little at a time.
    client.send(&Packet::new(93).number(id).number(8192).0).await;
    let (mut read, mut written) = (0, 0);
    while read < 256 || written < 4 {
        while let Some(reply) = whole(&mut got) {
            let n = u32::from_be_bytes(reply[1..5].try_into().unwrap());
            match reply[0] {
                101 => written += 1,
                103 => {
                    let at = (n as usize - 100) * PIECE;
                    assert!(raw::take(&mut &reply[5..]) == &content[at..at + PIECE], "{n}");
                    read += 1;
                }
                other => panic!("{other}"),
            }
        }
        if read == 256 && written == 4 {
            break;
        }
        let packet = client.receive().await.unwrap();
        if packet[0] == 94 && packet[1..5] == 0_u32.to_be_bytes() {
            let data = raw::take(&mut &packet[5..]).to_vec();
            got.extend_from_slice(&data);
            let more = Packet::new(93).number(id).number(u32::try_from(data.len()).unwrap());
            client.send(&more.0).await;
        }
    }
    assert!(bastion.kinds("session-ended").await.is_empty());
}

/// Many such clients on one connection do not make it hold so much that it is ended.
#[tokio::test(flavor = "multi_thread")]
async fn many_slow_readers_of_answers_on_one_connection_are_not_cut_off() {
    const PIECE: u32 = 32 * 1024;
    let (bastion, _sshd, mut client) = chosen().await;
    let (source, sink) = (bastion.path("source"), bastion.path("sink"));
    std::fs::write(&source, vec![7; 2 << 20]).unwrap();
    for ours in 0..24 {
        let (id, mut got) = (open_with(&mut client, ours, 2048).await, Vec::new());
        let handles = sftp_files(&mut client, (ours, id), &mut got, [&source, &sink]).await;
        for n in 0..64 {
            let at = (u64::from(n) * u64::from(PIECE)).to_be_bytes();
            let read = Packet::default().number(100 + n).text(&handles[0]).bytes(&at);
            client.send(&sftp(id, 5, read.number(PIECE))).await;
        }
    }
    let held = || bastion.bastion.budget.held();
    eventually_or("answers wait", async || (held() > 8 << 20).then_some(()).ok_or(held())).await;
    let other = open(&mut client, 99).await;
    let exec = Packet::new(98).number(other).text("exec").bytes(&[0]).text("echo served");
    client.send(&exec.0).await;
    loop {
        let packet = client.receive().await.unwrap();
        if packet[0] == 94 && packet[1..5] == 99_u32.to_be_bytes() {
            assert_eq!(raw::take(&mut &packet[5..]), b"served\n");
            break;
        }
    }
    assert!(held() < 16 << 20, "{}", held());
    assert!(bastion.kinds("session-ended").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_answers_still_writes_and_holds_up_nobody() {
    let (bastion, _sshd, mut client) = chosen().await;
    let (source, sink) = (bastion.path("source"), bastion.path("sink"));
    std::fs::write(&source, vec![7; 64 * 1024]).unwrap();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    // Enough of a window for the first answers, and never more.
    let (id, mut got) = (open_with(&mut client, 0, 2048).await, Vec::new());
    let handles = sftp_files(&mut client, (0, id), &mut got, [&source, &sink]).await;
    let offset = |at: u64| at.to_be_bytes();
    let read = Packet::default().number(3).text(&handles[0]).bytes(&offset(0)).number(32 * 1024);
    client.send(&sftp(id, 5, read)).await;
    // The answer does not fit, and nobody takes it. What is written from now on arrives.
    let piece = vec![9; 30 * 1024];
    for n in 0..4 {
        let at = offset(u64::from(n) * piece.len() as u64);
        let write = Packet::default().number(10 + n).text(&handles[1]).bytes(&at).text(&piece);
        client.send(&sftp(id, 6, write)).await;
    }
    eventually_or("it is written", async || {
        let len = std::fs::metadata(&sink).unwrap().len();
        (len == 4 * 30 * 1024).then_some(()).ok_or(len)
    })
    .await;
    // And another channel is served.
    let other = open(&mut client, 1).await;
    let exec = Packet::new(98).number(other).text("exec").bytes(&[0]).text("echo served");
    client.send(&exec.0).await;
    loop {
        let packet = client.receive().await.unwrap();
        assert!(packet[0] != 97, "it ended");
        let mut rest = packet.get(5..).unwrap_or_default();
        if packet[0] == 94 && packet[1..5] == 1_u32.to_be_bytes() {
            assert_eq!(raw::take(&mut rest), b"served\n");
            break;
        }
    }
    // Cut off in the middle, it is written down what became of both files.
    drop(client);
    for (operation, path, size) in [("upload", &sink, 4 * 30 * 1024), ("download", &source, 0)] {
        let fields = [("operation", operation), ("path", &*name(path))];
        let event = bastion.event("file-accessed", &fields).await;
        let field = if operation == "upload" { "written" } else { "read" };
        assert!(event[field].as_u64().unwrap() >= size, "{event}");
    }
}
