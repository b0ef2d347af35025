//! What looking an account up costs, statement by statement.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::InstrumentationEvent;
use diesel_async::AsyncConnection as _;

use super::{NewAuthenticator, Throttled};
use crate::audit::{Context, Refusal};
use crate::auth::account::ThrottleRules;
use crate::auth::totp;
use crate::domain::{
    Id, RadiusMode, Role, SecondFactor, Source, TimeStep, UnixTime, UserName, Verifier,
};
use crate::store::pool::on;
use crate::store::{NewUser, Store};

const NOW: UnixTime = UnixTime(1_795_508_403_000);

/// Adds a user whose binding window is open, with a key.
async fn add(store: &Store, name: &str, factor: Option<SecondFactor>) -> Id {
    let new = NewUser {
        name: &name.parse().unwrap(),
        role: Role::User,
        factor,
        password_hash: "a hash",
        one_time: false,
        binding_until: NOW.plus(Duration::from_secs(60)),
        keys: vec![(format!("SHA256:{name}"), format!("ssh-ed25519 {name}"))],
    };
    store.add_user(&new, &Context::default(), NOW).await.unwrap()
}

/// Writes down every statement of the store's next reader, without what it is about.
async fn watch(store: &Store) -> Arc<Mutex<Vec<String>>> {
    let run = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&run);
    let mut tx = store.read().await.unwrap();
    let write_down = move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            let text = query.to_string();
            seen.lock().unwrap().push(text.split("-- binds").next().unwrap_or_default().into());
        }
    };
    on!(tx.engine(), conn => conn.set_instrumentation(write_down));
    tx.commit().await.unwrap(); // The connection goes back, and is the next to be lent.
    run.lock().unwrap().clear();
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_costs_the_same_statements_whatever_it_is_and_nobodys_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::for_test(dir.path()).await;
    let context = Context::default();
    let bound = add(&store, "bound", None).await;
    let secret = totp::Secret::generate().unwrap();
    let new = NewAuthenticator { account: &bound, epoch: 1, secret: &secret, step: TimeStep(0) };
    store.bind(&new, Vec::new(), &context, NOW).await.unwrap().unwrap();
    add(&store, "unbound", None).await;
    add(&store, "disabled", None).await;
    store.set_disabled(&"disabled".parse().unwrap(), true, &context, NOW).await.unwrap();
    let radius = SecondFactor { factor: Verifier::Radius, mode: Some(RadiusMode::ALL[0]) };
    add(&store, "own-radius", Some(radius)).await;
    add(&store, "group-radius", None).await;
    let group = "radius".parse().unwrap();
    store.add_group(&group, &context, NOW).await.unwrap();
    store.join_group(&group, &"group-radius".parse().unwrap(), &context, NOW).await.unwrap();
    store.set_group_factor(&group, Some(radius), &context, NOW).await.unwrap();

    let rules = ThrottleRules {
        site_lock_after: 100,
        attack_after: 100,
        code_failures_max: 50,
        lock_after: 10,
        lock_for: Duration::from_secs(60),
        backoff_first: Duration::ZERO,
        backoff_max: Duration::ZERO,
    };
    let run = watch(&store).await;
    let cost = async |typed: &str| {
        let whose = Throttled::new(typed, &Source("192.0.2.1:1".parse().unwrap()));
        let name: Option<UserName> = typed.parse().ok();
        let (account, _) = store.account(name.as_ref(), &whose, &rules, NOW).await.unwrap();
        (account.map(|a| a.factor.factor), std::mem::take(&mut *run.lock().unwrap()))
    };
    let (found, reference) = cost("bound").await;
    assert_eq!(found, Some(Verifier::Totp));
    assert!(reference.len() > 5, "the statements are not seen: {reference:?}");
    for (typed, factor) in [
        ("unbound", Some(Verifier::Totp)),
        ("disabled", Some(Verifier::Totp)),
        ("own-radius", Some(Verifier::Radius)),
        ("group-radius", Some(Verifier::Radius)),
        ("nobody", None),
        ("no name: \u{1b}", None),
        ("", None),
    ] {
        let (found, statements) = cost(typed).await;
        assert_eq!(found, factor, "{typed}");
        assert_eq!(statements, reference, "{typed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_window_alone_binds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::for_test(dir.path()).await;
    let alice = add(&store, "alice", None).await;
    // As an older version left it, whose reset said of no password that it may bind.
    let mut tx = store.begin().await.unwrap();
    tx.let_password_bind(&alice, false).await.unwrap();
    tx.commit().await.unwrap();
    let secret = totp::Secret::generate().unwrap();
    let new = NewAuthenticator { account: &alice, epoch: 1, secret: &secret, step: TimeStep(0) };
    let bound = store.bind(&new, Vec::new(), &Context::default(), NOW).await.unwrap();
    assert_eq!(bound.unwrap_err(), Refusal::AlreadyBound);
}
