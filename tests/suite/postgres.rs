//! The real binary on PostgreSQL: its commands, and two nodes on one store.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::bastion::{Engine, PASSWORD, code_at};
use crate::support::eventually;
use crate::support::server::Server;
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;

async fn json(server: &Server, args: &[&str]) -> Value {
    let ran = server.run(&[args, &["--json"]].concat()).await.ok();
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {ran:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_finds_its_store() {
    let mut server = Server::on(Engine::Postgres, "").await;
    let checked = json(&server, &["check"]).await;
    assert_eq!(checked["store"], "PostgreSQL");
    for args in [
        &["user", "add", "alice"][..],
        &["user", "add", "otto", "--role", "auditor"],
        &["group", "add", "dba"],
        &["group", "join", "dba", "alice"],
        &["target", "add", "db1", "192.0.2.5", "--mode", "tunnel", "--label", "env=prod"],
        &["grant", "add", "--group", "dba", "--label", "env=prod"],
        &["otp", "reset", "alice"],
        &["user", "disable", "otto"],
        &["key", "add"],
        &["audit", "verify"],
    ] {
        server.run(args).await.ok();
    }
    let alone = server.run(&["key", "rotate"]).await.failed();
    assert!(alone.err.contains("other nodes may share this store"), "{alone:?}");
    let keys = json(&server, &["key", "list"]).await;
    let added = keys.as_array().unwrap().iter().find(|key| key["seals"] == false).unwrap();
    // It says with its next beat that it holds the key, too.
    eventually("every node holds the key", async || {
        let to = ["key", "rotate", "--to", added["id"].as_str().unwrap()];
        (server.run(&to).await.code == Some(0)).then_some(())
    })
    .await;
    let again = server.run(&["user", "add", "alice"]).await.failed();
    assert!(again.err.contains("alice"), "{again:?}");
    let users = json(&server, &["user", "list"]).await;
    let names: Vec<&str> =
        users.as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"alice") && names.contains(&"otto"), "{users}");
    let explained = server.run(&["explain", "alice", "db1"]).await.ok();
    assert!(explained.out.contains("db1"), "{explained:?}");
    let granted = json(&server, &["grant", "list"]).await;
    assert_eq!(granted.as_array().unwrap().len(), 1, "{granted}");
    let events = json(&server, &["audit", "list"]).await.to_string();
    for kind in ["user-added", "group-added", "target-added", "grant-added", "user-disabled"] {
        assert!(events.contains(kind), "no {kind} in {events}");
    }
    assert!(json(&server, &["session", "list", "--live"]).await.as_array().unwrap().is_empty());
    server.signal(Signal::TERM);
    server.ends_well().await;
    server.run(&["audit", "verify"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_on_one_node_ends_a_session_on_another_and_no_other() {
    let mut first = Server::on(Engine::Postgres, "").await;
    let mut second = first.beside("node = \"second\"\n").await;
    let sshd = Sshd::start().await;
    let mut hops = Vec::new();
    for (user, server) in [("alice", &first), ("bob", &second)] {
        let person = first.registry().person(user).await;
        first
            .registry()
            .grant(user, &format!("of-{user}"), &format!("127.0.0.1:{}", sshd.port))
            .await;
        let target = format!("of-{user}");
        let client = Client::on_port(server.port, user).knows(&target, &sshd);
        client.answers(&[PASSWORD, &code_at(&person, sallyport::clock::Clock::System.now())]);
        let mut hop = client.echo(&["-J", "bastion", &target, "cat"]);
        hop.say("up").await;
        hops.push((client, hop));
    }
    let live = json(&first, &["session", "list", "--live"]).await;
    let of = |user: &str| {
        let sessions = live.as_array().unwrap();
        sessions.iter().find(|session| session["user"] == user).unwrap_or_else(|| panic!("{live}"))
    };
    assert_eq!((&of("alice")["node"], &of("bob")["node"]), (&"test".into(), &"second".into()));
    assert_eq!(live, json(&second, &["session", "list", "--live"]).await);

    first.run(&["session", "kill", of("bob")["id"].as_str().unwrap()]).await.ok();
    let (_client, bobs) = hops.pop().unwrap();
    bobs.end().await.failed();
    let ended = first.event("session-ended", &[("user", "bob"), ("reason", "killed")]).await;
    assert_eq!(ended["node"], "second", "{ended}");
    eventually("it is no longer live on either", async || {
        let live = json(&second, &["session", "list", "--live"]).await;
        let users: Vec<&Value> = live.as_array().unwrap().iter().map(|s| &s["user"]).collect();
        (users == ["alice"]).then_some(())
    })
    .await;
    let (_client, mut alices) = hops.pop().unwrap();
    alices.say("still here").await;
    alices.hang_up();
    alices.end().await.ok();
    for server in [&mut second, &mut first] {
        server.signal(Signal::TERM);
        server.ends_well().await;
    }
    first.nothing_is_open().await;
    first.run(&["audit", "verify"]).await.ok();
}
