//! What a sign-in costs, and that its time tells nobody's account from anybody's. Only lower bounds
//! are asserted: how long the machine takes beyond them is its own matter.

use std::time::{Duration, Instant};

use sallyport::audit::Context;
use sallyport::auth::account::ThrottleRules;
use sallyport::domain::{Source, UnixTime};
use sallyport::store::BindingPassword;
use sallyport::store::Throttled;
use tokio::task::JoinSet;

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::raw::{INFO_REQUEST, RawClient, USERAUTH_FAILURE, USERAUTH_SUCCESS};
use crate::support::{eventually, on_both_engines};

on_both_engines!(no_refusal_comes_before_the_floor_whoever_it_is_of);

/// The least time from a question to its refusal.
const FLOOR: Duration = Duration::from_millis(400);

/// Gives a password and a code; how long the refusal took from the answer on.
async fn refused_after(bastion: &TestBastion, user: &str, password: &str) -> Duration {
    let mut client = RawClient::connect(bastion.port).await;
    client.start_interactive(user, "").await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    client.answer(password).await;
    assert_eq!(client.reply().await, INFO_REQUEST);
    let answered = Instant::now();
    client.answer("000000").await;
    assert_eq!(client.reply().await, USERAUTH_FAILURE);
    answered.elapsed()
}

async fn no_refusal_comes_before_the_floor_whoever_it_is_of(engine: Engine) {
    let bastion = TestBastion::start_with(engine, "[login]\nlock_after = 2\n").await;
    let (now, store, context) = (bastion.now(), bastion.store(), Context::default());
    for name in ["wrongpw", "wrongcode", "locked", "disabled"] {
        bastion.person(name).await;
    }
    let unbound = bastion.person("unbound").await;
    store
        .reset_otp(&unbound.name, UnixTime(now.0 - 1), BindingPassword::Kept, &context, now)
        .await
        .unwrap();
    store.set_disabled(&"disabled".parse().unwrap(), true, &context, now).await.unwrap();
    for _ in 0..2 {
        refused_after(&bastion, "locked", "wrong").await;
    }
    for (user, password, reason) in [
        ("nobody", PASSWORD, "unknown-user"),
        ("no name", PASSWORD, "unknown-user"),
        ("wrongpw", "wrong", "wrong-password"),
        ("wrongcode", PASSWORD, "wrong-code"),
        ("locked", PASSWORD, "locked"),
        ("disabled", PASSWORD, "disabled"),
        ("unbound", PASSWORD, "binding-closed"),
    ] {
        let took = refused_after(&bastion, user, password).await;
        assert!(took >= FLOOR, "{user} was refused after {took:?}");
        bastion.event("sign-in-refused", &[("user", user), ("reason", reason)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_in_a_row_is_answered_later_up_to_the_longest_wait() {
    let waits = "[login]\nbackoff_first = \"500ms\"\nbackoff_max = \"1500ms\"\nlock_after = 100\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, waits).await;
    bastion.person("alice").await;
    // Nobody's failures are counted like anybody's.
    for user in ["alice", "nobody"] {
        for least in [500, 1000, 1500, 1500].map(Duration::from_millis) {
            let took = refused_after(&bastion, user, "wrong").await;
            assert!(took >= least, "{user} was refused after {took:?}, before {least:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_no_place_to_hash_is_refused_and_that_is_written_down() {
    let slow = "[login]\nhash_concurrency = 1\nhash_queue = 1\nargon2_memory = \"1 MiB\"\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, slow).await;
    let alice = bastion.person("alice").await;
    // Two may be in there; more than two try all the time.
    let mut crowd = JoinSet::new();
    for _ in 0..4 {
        let hashing = bastion.bastion.hashing.clone();
        crowd.spawn(async move {
            loop {
                let _busy_or_done = hashing.hash("x".into()).await;
                tokio::task::yield_now().await;
            }
        });
    }
    eventually("somebody is refused", async || {
        let mut client = RawClient::connect(bastion.port).await;
        client.start_interactive("alice", "").await;
        assert_eq!(client.reply().await, INFO_REQUEST);
        client.answer(PASSWORD).await;
        (client.reply().await == USERAUTH_FAILURE).then_some(())
    })
    .await;
    bastion.event("sign-in-refused", &[("user", "alice"), ("reason", "busy")]).await;
    crowd.shutdown().await;
    let code = bastion.code(&alice);
    let mut client = RawClient::connect(bastion.port).await;
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_of_an_old_cost_is_made_anew_at_a_login_and_at_no_failure() {
    let dearer = "[login]\nargon2_memory = \"16 KiB\"\nargon2_passes = 2\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, dearer).await;
    let alice = bastion.person("alice").await;
    let hash = async || {
        let rules = ThrottleRules {
            site_lock_after: 100,
            attack_after: 100,
            code_failures_max: 50,
            lock_after: 10,
            lock_for: Duration::from_secs(60),
            backoff_first: Duration::ZERO,
            backoff_max: Duration::ZERO,
        };
        let whose = Throttled::new("alice", &Source("192.0.2.1:1".parse().unwrap()));
        let found = bastion.store().account(Some(&alice.name), &whose, &rules, bastion.now()).await;
        found.unwrap().0.unwrap().password
    };
    let old = hash().await;
    assert!(old.contains("$m=8,t=1,p=1$"), "{old}");
    for (password, code) in [(PASSWORD, "000000"), ("wrong", &bastion.code(&alice))] {
        let mut client = RawClient::connect(bastion.port).await;
        assert_eq!(client.log_in("alice", password, code).await, USERAUTH_FAILURE);
    }
    assert_eq!(hash().await, old);
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
    let new =
        eventually("the hash is new", async || Some(hash().await).filter(|h| *h != old)).await;
    assert!(new.contains("$m=16,t=2,p=1$"), "{new}");
    // And is good for the next.
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&alice);
    assert_eq!(client.log_in("alice", PASSWORD, &code).await, USERAUTH_SUCCESS);
}
