//! `kill -9` at any moment: what was let through is written down, and nothing stays open.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use sallyport::clock::Clock;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::bastion::{Engine, PASSWORD, Person, code_at};
use crate::support::server::Server;
use crate::support::ssh::Client;
use crate::support::{ended, eventually, on_both_engines};

on_both_engines!(kills_leave_a_whole_log_and_nothing_open);

const CLIENTS: usize = 2;

/// A target that sends lines back, and remembers the first of each connection.
struct Target {
    address: std::net::SocketAddr,
    greeted_by: Arc<Mutex<HashSet<String>>>,
    _task: JoinSet<()>,
}

impl Target {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let greeted_by = Arc::<Mutex<HashSet<String>>>::default();
        let mut task = JoinSet::new();
        let names = Arc::clone(&greeted_by);
        task.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                served.spawn(echo(stream, Arc::clone(&names)));
            }
        });
        Self { address, greeted_by, _task: task }
    }

    fn met(&self, name: &str) -> bool {
        self.greeted_by.lock().unwrap().contains(name)
    }
}

/// Ends with its connection, however that ends.
async fn echo(mut stream: TcpStream, names: Arc<Mutex<HashSet<String>>>) {
    let (read, mut write) = stream.split();
    let (mut lines, mut first) = (BufReader::new(read).lines(), true);
    while let Ok(Some(line)) = lines.next_line().await {
        if std::mem::take(&mut first) {
            names.lock().unwrap().insert(line.clone());
        }
        if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

fn random_below(limit: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % limit
}

/// Signs in, and talks through the bastion until it is gone.
async fn talk(server: &Server, target: &Target, person: &Person) {
    let client = Client::on_port(server.port, person.name.as_str());
    client.answers(&[PASSWORD, &code_at(person, Clock::System.now())]);
    let to = format!("played:{}", target.address.port());
    let mut ssh = client.echo(&["-o", "ConnectTimeout=5", "-W", &to, "bastion"]);
    let mut text = person.name.to_string();
    while ssh.try_say(&text).await {
        text = "more".into();
    }
    ssh.hang_up();
    ssh.end().await;
}

/// Whoever reads the log alone must see for how long everything was open.
async fn every_forward_of_the_export_has_one_end_within_its_session(
    server: &Server,
    rounds: usize,
) {
    let export = server.run(&["audit", "export"]).await.ok().out;
    let (mut open, mut all) = (HashMap::new(), 0);
    for line in export.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        match event["kind"].as_str() {
            Some("forward-opened") => {
                all += 1;
                let session = event["session"].as_str().unwrap().to_owned();
                open.insert(event["forward"].as_str().unwrap().to_owned(), session);
            }
            Some("forward-closed" | "forward-failed") => {
                let of = open.remove(event["forward"].as_str().unwrap());
                assert_eq!(of.as_deref(), event["session"].as_str(), "{event}");
            }
            Some("session-ended") => {
                let left = open.values().find(|of| event["session"] == **of);
                assert_eq!(left, None, "{event}");
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(all >= rounds / 4, "{all}");
}

async fn kills_leave_a_whole_log_and_nothing_open(engine: Engine) {
    let rounds = match engine {
        Engine::Sqlite => 20,
        Engine::Postgres => 8, // The store is not what is killed.
    };
    let mut server = Server::on(engine, "").await;
    let target = Target::start().await;
    let mut people = Vec::new();
    server.registry().target("played", &target.address.to_string()).await;
    for n in 0..rounds * CLIENTS {
        let name = format!("user{n}");
        people.push(server.registry().person(&name).await);
        server.registry().add_grant(&name, "played", |_| {}).await;
    }
    // Only the server has the store open: the next one has to recover it.
    server.close_store();
    for (round, people) in people.chunks(CLIENTS).enumerate() {
        if round > 0 {
            server.start_again().await;
        }
        let pid = server.child.id().unwrap();
        // Now and then at the moment that somebody got through, else at any.
        let wait = Duration::from_millis(random_below(700));
        println!("round {round}: {wait:?}");
        let kill = async {
            if round % 4 == 0 {
                let met = async || people.iter().any(|p| target.met(p.name.as_str())).then_some(());
                eventually("somebody got through", met).await;
            } else {
                tokio::time::sleep(wait).await; // The moment is what is random here.
            }
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        };
        let talks = people.iter().map(|person| talk(&server, &target, person));
        tokio::join!(kill, futures_util::future::join_all(talks));
        assert_eq!(ended(&mut server.child).await.code(), None);
        server.run(&["audit", "verify"]).await.ok();
    }
    server.start_again().await;
    server.open_store().await;
    server.nothing_is_open().await;
    server.run(&["audit", "verify"]).await.ok();

    let [signed_in, opened, ended] = [
        server.kinds("signed-in").await,
        server.kinds("forward-opened").await,
        server.kinds("session-ended").await,
    ];
    let of = |events: &[serde_json::Value], user: &str| -> Vec<String> {
        let of_user = events.iter().filter(|event| event["user"] == *user);
        of_user.map(|event| event["session"].as_str().unwrap().to_owned()).collect()
    };
    // Each had one code: one session at most.
    for person in &people {
        let name = person.name.as_str();
        let sessions = of(&signed_in, name);
        assert!(sessions.len() <= 1, "{name}: {sessions:?}");
        assert_eq!(of(&ended, name), sessions, "{name}");
        let forwards = of(&opened, name);
        assert!(forwards.is_empty() || forwards == sessions, "{name}: {forwards:?} {sessions:?}");
        assert!(!target.met(name) || !forwards.is_empty(), "{name} got through unwritten");
    }
    every_forward_of_the_export_has_one_end_within_its_session(&server, rounds).await;
    let sessions = server.sessions().await;
    assert_eq!(sessions.len(), signed_in.len());
    let interrupted = ended.iter().filter(|event| event["reason"] == "interrupted").count();
    assert!(interrupted >= rounds / 4, "{interrupted}");
    assert!(target.greeted_by.lock().unwrap().len() >= rounds / 4);
    server.signal(Signal::TERM);
    server.ends_well().await;
}
