//! What live sessions carry: known while they go on, and after a `kill -9`.

use rustix::process::Signal;
use sallyport::clock::Clock;
use sallyport::store::{ForwardRow, RecordingRow, SessionFilter, SessionRow, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use crate::support::bastion::{PASSWORD, code_at};
use crate::support::hop::Hop;
use crate::support::server::{BINARY, Server};
use crate::support::ssh::{Client, run};
use crate::support::ways::Way;
use crate::support::{PATIENCE, command, ended, eventually_or};

/// The one live session, with what is open of it.
async fn live(store: &Store) -> (SessionRow, Vec<ForwardRow>, Vec<RecordingRow>) {
    let filter = SessionFilter { live: true, user: None, account: None };
    let rows = store.sessions(&filter, 9).await.unwrap();
    let [row] = <[SessionRow; 1]>::try_from(rows).unwrap();
    let forwards = store.forwards_of(&row.id).await.unwrap();
    let recordings = store.recordings_of(&row.id).await.unwrap();
    (row, forwards, recordings)
}

/// Waits until `count` bytes of the live session are written down, both up and down.
async fn carried(store: &Store, count: i64) -> (SessionRow, Vec<ForwardRow>, Vec<RecordingRow>) {
    eventually_or("what it carried is written down", async || {
        let live = live(store).await;
        let there = live.0.bytes_up >= count && live.0.bytes_down >= count;
        if there { Ok(live) } else { Err(live) }
    })
    .await
}

/// Sends `count` bytes to something that sends them back.
async fn bounce(child: &mut Child, count: usize) {
    let (input, output) = (child.stdin.as_mut().unwrap(), child.stdout.as_mut().unwrap());
    let (sent, mut back) = (vec![b'x'; count], vec![0; count]);
    let both = async {
        let (write, read) = tokio::join!(input.write_all(&sent), output.read_exact(&mut back));
        write.unwrap();
        read.unwrap();
    };
    tokio::time::timeout(PATIENCE, both).await.expect("it did not come back");
    assert_eq!(back, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_recorded_session_carries_is_known_while_it_goes_on() {
    let hop = Hop::start().await;
    let mut child = hop.running(&["via", "echo up; exec cat"]).await;
    bounce(&mut child, 300_000).await;
    let (session, forwards, recordings) = carried(hop.bastion.store(), 300_000).await;
    let (forward, recording) = (&forwards[0], &recordings[0]);
    assert!(session.ended_at.is_none() && forward.closed_at.is_none());
    assert!(recording.ended_at.is_none());
    // What the inner session carries is a part of what the forward does, and counts once.
    assert_eq!((recording.bytes_up, recording.bytes_down), (300_000, 300_003));
    assert_eq!((session.bytes_up, session.bytes_down), (forward.bytes_up, forward.bytes_down));
    assert!(forward.bytes_up > 300_000 && forward.bytes_up < 400_000, "{forward:?}");
    let cli = async |args: &[&str]| {
        let mut cli = command(BINARY);
        cli.arg("--config").arg(hop.bastion.path("sallyport.toml")).args(args);
        run(&mut cli).await.ok().out
    };
    let listed = cli(&["--json", "session", "list", "--live"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["bytes_up"], session.bytes_up, "{listed}");
    let shown = cli(&["session", "show", &session.id]).await;
    assert!(shown.contains("KiB down, open"), "{shown}");
    child.stdin = None;
    assert!(ended(&mut child).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_chosen_target_carries_is_the_sessions() {
    let mut hop = Hop::start().await;
    hop.leave().await;
    hop.sign_in_on(Way::Selector);
    let mut child = hop.running(&["chosen", "echo up; exec cat"]).await;
    bounce(&mut child, 100_000).await;
    let (session, _, recordings) = carried(hop.bastion.store(), 100_000).await;
    assert_eq!((session.bytes_up, session.bytes_down), (100_000, 100_003));
    assert_eq!((recordings[0].bytes_up, recordings[0].bytes_down), (100_000, 100_003));
    child.stdin = None;
    assert!(ended(&mut child).await.success());
}

/// Runs SQL behind the server's back.
fn tamper(server: &Server, sql: &str) {
    use diesel::Connection as _;
    use diesel::connection::SimpleConnection as _;
    let path = server.dir.path().join("data/sallyport.db");
    let mut file = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    file.batch_execute(&format!("PRAGMA busy_timeout = 5000; {sql}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_servers_session_has_what_was_last_known_of_it() {
    let mut server = Server::start("").await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    let alice = server.registry().person("alice").await;
    server.registry().grant("alice", "played", &address.to_string()).await;
    let client = Client::on_port(server.port, "alice");
    client.answers(&[PASSWORD, &code_at(&alice, Clock::System.now())]);
    let mut ssh = client.echo(&["-W", &format!("played:{}", address.port()), "bastion"]);
    let mut there: TcpStream =
        tokio::time::timeout(PATIENCE, target.accept()).await.unwrap().unwrap().0;
    let echo = async {
        let (mut read, mut write) = there.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    };
    let test = async {
        // A store that fails ends nothing, and is tried again.
        tamper(&server, "ALTER TABLE forwards RENAME TO gone");
        ssh.say(&"x".repeat(999)).await;
        server.logged("message", "failed to write down what sessions carry").await;
        ssh.say(&"x".repeat(1999)).await;
        assert_eq!(live_bytes(&server).await, (0, 0));
        tamper(&server, "ALTER TABLE gone RENAME TO forwards");
        let (_, forwards, _) = carried(server.store(), 3000).await;
        assert_eq!((forwards[0].bytes_up, forwards[0].bytes_down), (3000, 3000));
        server.signal(Signal::KILL);
    };
    tokio::join!(echo, test); // The echo ends with its connection.
    assert_eq!(ended(&mut server.child).await.code(), None);
    server.start_again().await;
    let end = server.event("session-ended", &[("reason", "interrupted")]).await;
    assert_eq!((end["up"].as_u64(), end["down"].as_u64()), (Some(3000), Some(3000)), "{end}");
    let (session, _) = &server.sessions().await[0];
    assert_eq!((session.bytes_up, session.bytes_down), (3000, 3000));
    server.signal(Signal::TERM);
    server.ends_well().await;
}

async fn live_bytes(server: &Server) -> (i64, i64) {
    let filter = SessionFilter { live: true, user: None, account: None };
    let rows = server.store().sessions(&filter, 9).await.unwrap();
    (rows[0].bytes_up, rows[0].bytes_down)
}
