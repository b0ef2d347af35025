//! What a hostile target tries on those who come to it: it gets what they asked for, and no more.

use sallyport::domain::{AccountAuth, Mode};

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::hop::NOTICE;
use crate::support::played::{ANY_PORT, Asks, Played, SLOW_PORT};
use crate::support::raw::{self, Packet, RawClient};
use crate::support::{PATIENCE, eventually_or, present_user};

/// A bastion with such a target, and somebody signed in who chose it and has every right there.
struct Visit {
    bastion: TestBastion,
    played: Played,
    client: RawClient,
    /// How many sessions were opened.
    sessions: u32,
}

/// A request on a channel, without what a reply to it needs.
fn request(name: &str) -> Packet {
    Packet::default().text(name).bytes(&[0])
}

fn x11(single: bool) -> Packet {
    let cookie = request("x11-req").bytes(&[u8::from(single)]).text("MIT-MAGIC-COOKIE-1");
    cookie.text("0123456789abcdef0123456789abcdef").number(0)
}

impl Visit {
    async fn start() -> Self {
        let bastion = TestBastion::start(Engine::Sqlite).await;
        let played = Played::start(Asks::Password).await;
        bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", played.port)).await;
        bastion.pin("db1", &played.host_key, false).await;
        let (user, secret) = (present_user(), Some(&b"tiger"[..]));
        bastion.account("db1", &user, AccountAuth::Password, secret).await;
        let alice = bastion.person("alice").await;
        let rights = ["exec", "agent", "x11", "remote-forward"];
        let allow = |grant: &mut sallyport::domain::Grant| {
            grant.allow = rights.iter().map(|right| right.parse().unwrap()).collect();
        };
        bastion.add_grant("alice", "db1", allow).await;
        let code = bastion.code(&alice);
        let mut client = RawClient::connect(bastion.port).await;
        let name = format!("alice+{user}@db1");
        assert_eq!(client.log_in(&name, PASSWORD, &code).await, raw::USERAUTH_SUCCESS);
        Self { bastion, played, client, sessions: 0 }
    }

    /// Runs a command in a session of its own, after these requests; gives what it says, and the
    /// types of the channels that were opened to the user meanwhile, each of which is accepted.
    async fn exec(&mut self, requests: &[Packet], command: &str) -> (String, Vec<String>) {
        let (client, ours) = (&mut self.client, self.sessions);
        self.sessions += 1;
        let open = Packet::new(90).text("session").number(ours).number(1 << 20).number(32768);
        client.send(&open.0).await;
        let (mut said, mut opened) = (String::new(), Vec::new());
        loop {
            let packet = client.receive().await.unwrap();
            let mut rest = packet.get(5..).unwrap_or_default();
            let is_ours = packet.get(1..5) == Some(&ours.to_be_bytes()[..]);
            match packet[0] {
                91 if is_ours => {
                    let id = u32::from_be_bytes(rest[..4].try_into().unwrap());
                    for request in requests {
                        client.send(&Packet::new(98).number(id).bytes(&request.0).0).await;
                    }
                    let exec = Packet::new(98).number(id).text("exec").bytes(&[0]).text(command);
                    client.send(&exec.0).await;
                }
                90 => {
                    let mut rest = &packet[1..];
                    let kind = raw::take(&mut rest).to_vec();
                    let theirs = u32::from_be_bytes(rest[..4].try_into().unwrap());
                    let number = 1000 + theirs;
                    let accept = Packet::new(91).number(theirs).number(number);
                    client.send(&accept.number(1 << 20).number(32768).0).await;
                    opened.push(String::from_utf8(kind).unwrap());
                }
                94 if is_ours => said += &String::from_utf8_lossy(raw::take(&mut rest)),
                95 if is_ours => said += &String::from_utf8_lossy(raw::take(&mut &rest[4..])),
                97 if is_ours => return (said.replace(NOTICE, ""), opened),
                _ => {}
            }
        }
    }

    /// Makes a global request; gives the reply.
    async fn global(&mut self, request: Packet) -> Vec<u8> {
        self.client.send(&Packet::new(80).bytes(&request.0).0).await;
        loop {
            let packet = self.client.receive().await.unwrap();
            if [81, 82].contains(&packet[0]) {
                return packet;
            }
        }
    }

    async fn listen(&mut self, port: u32) -> Vec<u8> {
        let request = Packet::default().text("tcpip-forward").bytes(&[1]);
        self.global(request.text("localhost").number(port)).await
    }

    async fn unlisten(&mut self, port: u32) -> Vec<u8> {
        let request = Packet::default().text("cancel-tcpip-forward").bytes(&[1]);
        self.global(request.text("localhost").number(port)).await
    }

    /// Opens a session that nothing is run in.
    async fn open(&mut self) {
        let ours = self.sessions;
        self.sessions += 1;
        let open = Packet::new(90).text("session").number(ours).number(1 << 20).number(32768);
        self.client.send(&open.0).await;
        while self.client.receive().await.unwrap()[0] != 91 {}
    }

    /// Waits until these were told as opened unasked, each once.
    async fn told(&self, kinds: &[&str]) {
        eventually_or("each kind is written down once", async || {
            let events = self.bastion.kinds("unasked-channel").await;
            let told: Vec<_> = events.iter().map(|event| event["what"].as_str().unwrap()).collect();
            (told == kinds).then_some(()).ok_or(events)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_nobody_asked_for_are_refused() {
    let mut visit = Visit::start().await;
    let (said, opened) = visit.exec(&[], "open agent x11").await;
    assert_eq!((said.as_str(), opened.len()), ("agent refused\nx11 refused\n", 0));
    let (said, opened) = visit.exec(&[], "open port:4022 socket:/run/a").await;
    assert_eq!((said.as_str(), opened.len()), ("port:4022 refused\nsocket:/run/a refused\n", 0));
    let (said, opened) = visit.exec(&[], "open session").await;
    assert_eq!((said.as_str(), opened.len()), ("session refused\n", 0));
    // What one session asked for is not for another one's connection.
    visit.exec(&[request("auth-agent-req@openssh.com")], "id").await;
    let (said, opened) = visit.exec(&[], "open agent").await;
    assert_eq!((said.as_str(), opened.len()), ("agent refused\n", 0));
    let (agent, socket) = ("auth-agent@openssh.com", "forwarded-streamlocal@openssh.com");
    visit.told(&[agent, "x11", "forwarded-tcpip", socket, "session", agent]).await;
    assert!(visit.bastion.kinds("onward-opened").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_goes_on_opening_channels_is_cut_off() {
    let mut visit = Visit::start().await;
    let (said, opened) = visit.exec(&[], "open agent agent agent agent agent").await;
    assert!(opened.is_empty(), "{opened:?}");
    assert!(said.matches("agent refused\n").count() < 3, "{said}");
    let why = "sallyport: db1 was cut off: it opened channels that nobody asked for\r\n";
    assert!(said.ends_with(why), "{said}");
    visit.told(&["auth-agent@openssh.com"]).await;
    let error = "it opened channels that nobody asked for";
    visit.bastion.event("target-failed", &[("target", "db1"), ("error", error)]).await;
    // The user's own connection goes on.
    let (said, _) = visit.exec(&[], "id").await;
    assert_eq!(said, format!("{} runs id\n", present_user()));
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_were_asked_for_are_taken() {
    let mut visit = Visit::start().await;
    let agent = request("auth-agent-req@openssh.com");
    let (said, opened) = visit.exec(&[agent], "open agent agent").await;
    assert_eq!((said.as_str(), opened.len()), ("agent opened\nagent opened\n", 2));
    // An X11 request may be for one channel alone.
    let (said, opened) = visit.exec(&[x11(true)], "open x11 x11").await;
    assert_eq!((said.as_str(), opened.len()), ("x11 opened\nx11 refused\n", 1));
    let (said, opened) = visit.exec(&[x11(false)], "open x11 x11 x11 x11").await;
    assert_eq!((said.as_str(), opened.len()), ("x11 opened\n".repeat(4).as_str(), 4));

    assert_eq!(visit.listen(4022).await, [81]);
    let any = visit.listen(0).await;
    assert_eq!(any, Packet::new(81).number(ANY_PORT).0);
    let socket = Packet::default().text("streamlocal-forward@openssh.com").bytes(&[1]);
    assert_eq!(visit.global(socket.text("/run/a")).await, [81]);
    let opens = "open port:4022 port:4000 socket:/run/a port:4023 socket:/run/b";
    let (said, opened) = visit.exec(&[], opens).await;
    let expected = "port:4022 opened\nport:4000 opened\nsocket:/run/a opened\n\
                    port:4023 refused\nsocket:/run/b refused\n";
    assert_eq!(said, expected);
    let (port, socket) = ("forwarded-tcpip", "forwarded-streamlocal@openssh.com");
    assert_eq!(opened, [port, port, socket]);
    visit.told(&["x11", port, socket]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_answer_holds_up_nobody_for_long() {
    let mut visit = Visit::start().await;
    // The first session goes by the connection that the ports are asked for on.
    assert_eq!(visit.listen(4022).await, [81]);
    visit.exec(&[], "id").await;
    visit.open().await;
    let asked = std::time::Instant::now();
    assert_eq!(visit.listen(SLOW_PORT).await, [82]);
    let (said, _) = visit.exec(&[], "id").await;
    assert_eq!(said, format!("{} runs id\n", present_user()));
    assert!(asked.elapsed().as_secs() < 8, "{:?}", asked.elapsed());
    // What comes of it after all is taken back: the client was told that there is nothing.
    visit.played.slow.asked.notify_one();
    let taken_back = visit.played.slow.taken_back.notified();
    tokio::time::timeout(PATIENCE, taken_back).await.expect("the target still listens");
    let to = format!("tcpip-forward localhost:{SLOW_PORT}");
    let fields = [("to", to.as_str()), ("reason", "the target answered too late")];
    visit.bastion.event("onward-closed", &fields).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_no_longer_listened_at_has_its_end_written() {
    let mut visit = Visit::start().await;
    for port in [4022, 0, 4023] {
        assert_eq!(visit.listen(port).await[0], 81);
    }
    assert_eq!(visit.unlisten(4022).await, [81]);
    assert_eq!(visit.unlisten(4022).await, [82], "once");
    assert_eq!(visit.unlisten(ANY_PORT).await, [81]);
    let closed = visit.bastion.event("onward-closed", &[("to", "tcpip-forward localhost:4022")]);
    assert!(closed.await.get("reason").is_none());
    visit.bastion.event("onward-closed", &[("to", "tcpip-forward localhost:0")]).await;
    assert_eq!(visit.bastion.kinds("onward-closed").await.len(), 2);
    // The last one ends with the session.
    drop(visit.client);
    visit.bastion.event("onward-closed", &[("to", "tcpip-forward localhost:4023")]).await;
    visit.bastion.event("session-ended", &[("user", "alice")]).await;
    let events = visit.bastion.events().await;
    let last = serde_json::to_value(events.last().unwrap()).unwrap();
    assert_eq!(last["kind"], "session-ended", "nothing of a session comes after its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_refused_past_as_many_as_one_connection_may_have() {
    let mut visit = Visit::start().await;
    for port in 5000..5064 {
        assert_eq!(visit.listen(port).await, [81], "{port}");
    }
    assert_eq!(visit.listen(5064).await, [82]);
    let refused = [("request", "tcpip-forward localhost:5064"), ("reason", "too-many-listeners")];
    visit.bastion.event("request-refused", &refused).await;
    // What is given back makes room. But so many are not asked for by mistake.
    for port in 5000..5010 {
        assert_eq!(visit.unlisten(port).await, [81]);
    }
    let mut asked = 0;
    while visit.listen(6000).await == [81] {
        assert_eq!(visit.unlisten(6000).await, [81]);
        asked += 1;
        assert!(asked < 200, "it may be asked for without end");
    }
    assert!(asked > 30, "{asked}");
    let refused = [("request", "tcpip-forward localhost:6000"), ("reason", "too-many-listeners")];
    visit.bastion.event("request-refused", &refused).await;
    // The session goes on.
    let (said, _) = visit.exec(&[], "id").await;
    assert_eq!(said, format!("{} runs id\n", present_user()));
}
