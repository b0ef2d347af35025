//! Logins by RADIUS and what is around them: RadSec, a reload in the middle, the login's deadline.

use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use crate::radius_login::{member, radius, sign_in};
use crate::reload::reload;
use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::freeradius::{FRED, FreeRadius, GINA, configured, fresh_code};
use crate::support::radius_peer::Peer;
use crate::support::screen::Screen;
use crate::support::server::Server;
use crate::support::ssh::Client;
use crate::support::{command, eventually, tool};

/// A login whose questions are answered by typing.
fn in_terminal(client: &Client) -> Screen {
    let mut ssh = command(tool("ssh"));
    ssh.arg("-F").arg(client.path("config")).args(["-tt", "bastion", "targets"]);
    Screen::run(&ssh)
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_go_over_tls_with_a_client_certificate() {
    let server = FreeRadius::start().await;
    let config = radius("both", "", &[server.configured_tls("sec", "client")]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    for user in [GINA, FRED] {
        member(&bastion, user[0], None).await;
        let code = fresh_code(user[2]).await;
        sign_in(&bastion, user[0], &[user[1], &code]).await.0.ok();
        let fields = [("user", user[0]), ("server", "sec"), ("verdict", "accept")];
        bastion.event("radius-answered", &fields).await;
        let signed_in = bastion.event("signed-in", &[("user", user[0])]).await;
        assert_eq!(signed_in["steps"], serde_json::json!(["password", "radius"]));
    }
    sign_in(&bastion, "gina", &[GINA[1], "000000"]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "radius-rejected")]).await;
    let log = server.log();
    assert_eq!(log.matches("Listening on auth from client (").count(), 1, "{log}");

    // By the certificate of another authority nobody is asked anything.
    let config = radius("both", "", &[server.configured_tls("sec", "stranger")]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    let code = fresh_code(GINA[2]).await;
    sign_in(&bastion, "gina", &[GINA[1], &code]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "radius-unavailable")]).await;
    let why = bastion.event("radius-unanswered", &[("user", "gina")]).await;
    assert!(why["error"].as_str().unwrap().contains("does not accept our certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_logins_ask_the_servers_of_the_new_file_and_those_under_way_the_old_ones() {
    let radius_server = FreeRadius::start().await;
    let servers = |name| radius("code", "", &[radius_server.configured(name, "CODE")]);
    let mut server = Server::start(&servers("before")).await;
    for user in [GINA, FRED] {
        server.registry().person(user[0]).await;
        server.run(&["user", "factor", user[0], "radius"]).await.ok();
    }
    let gina = Client::on_port(server.port, "gina");
    let mut screen = in_terminal(&gina);
    screen.expect("Password: ").await;
    screen.type_line(PASSWORD).await;
    screen.expect("6-digit code: ").await;
    reload(&server, &servers("after"), "radius.server").await;

    let fred = Client::on_port(server.port, "fred");
    fred.answers(&[PASSWORD, &fresh_code(FRED[2]).await]);
    fred.ssh(&["bastion", "targets"]).await.ok();
    screen.type_line(&fresh_code(GINA[2]).await).await;
    assert_eq!(screen.ended().await, Some(0), "{}", screen.text());
    for (user, asked) in [("gina", "before"), ("fred", "after")] {
        let answers = server.kinds("radius-answered").await;
        let of_user: Vec<_> = answers.iter().filter(|event| event["user"] == user).collect();
        assert_eq!(of_user.len(), 1, "{answers:?}");
        assert_eq!(of_user[0]["server"], asked, "{answers:?}");
    }
    server.signal(rustix::process::Signal::TERM);
    server.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logins_deadline_ends_a_wait_for_a_server_and_leaves_nothing_behind() {
    let peer = Peer::start().await;
    let (grace, timeout) = (Duration::from_secs(10), Duration::from_secs(9));
    let secrets = tempfile::tempdir().unwrap();
    let port = peer.socket.local_addr().unwrap().port();
    let silent = configured("silent", port, &secrets.path().join("secret")).replace("15s", "9s");
    let config = format!("[server]\nlogin_grace = \"10s\"\n{}", radius("code", "", &[silent]));
    let mut bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    let client = Client::new(&bastion, "gina");
    let began = Instant::now();
    let mut screen = in_terminal(&client);
    screen.expect("Password: ").await;
    screen.type_line(PASSWORD).await;
    screen.expect("6-digit code: ").await;
    // So late that the server would have time past the deadline.
    tokio::time::sleep_until((began + Duration::from_secs(3)).into()).await;
    screen.type_line("123456").await;
    let asked = peer.asked().await;
    let waits = Instant::now();
    assert_eq!(screen.ended().await, Some(255), "{}", screen.text());
    assert!(began.elapsed() >= grace, "after {:?}", began.elapsed());
    let refused = bastion.event("sign-in-refused", &[("user", "gina")]).await;
    // The wait and the connection see the deadline at once: whichever is first says why.
    let reasons = ["radius-unavailable", "given-up"];
    assert!(reasons.contains(&refused["reason"].as_str().unwrap()), "{refused}");
    eventually("its socket is closed", async || {
        UdpSocket::bind(("0.0.0.0", asked.from.port())).await.ok()
    })
    .await;
    assert!(waits.elapsed() < timeout, "it was waited to the end: {:?}", waits.elapsed());
    assert!(bastion.kinds("signed-in").await.is_empty());
    // A task that was left would hold this up.
    let stopping = Instant::now();
    bastion.stop().await;
    assert!(stopping.elapsed() < timeout, "{:?}", stopping.elapsed());
}
