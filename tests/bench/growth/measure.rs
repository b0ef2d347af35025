//! What is measured in a store of one size: signing in, authorizing, the menu, lists.

use std::time::{Duration, Instant};

use sallyport::audit::{Context, Step};
use sallyport::auth::account::ThrottleRules;
use sallyport::auth::machine::{Attempt, Claim};
use sallyport::domain::{
    Destination, Factor, Factors, GrantObject, GrantSubject, Id, Source, TimeStep, UnixTime,
};
use sallyport::policy::{Decision, Subject, authorize, granted_targets};
use sallyport::store::{SignIn, Throttled};

use crate::support::bastion::{Person, TestBastion};
use crate::support::{command, server};
use crate::table::Table;

/// How often a list is asked for: a process each.
const LISTS: usize = 15;

/// Measures everything, `rounds` times each.
pub async fn all(bastion: &TestBastion, rounds: usize, table: &mut Table) {
    let alice = alice(bastion).await;
    signing_in(bastion, &alice, rounds, table).await;
    authorizing(bastion, &alice, rounds, table).await;
    let mut took = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        bastion.store().live().await.unwrap();
        took.push(began.elapsed());
    }
    table.push("look after live sessions, after a change", took);
    lists(bastion, table).await;
}

/// Somebody with 20 grants of their own and 20 of a group of theirs, in every store alike.
async fn alice(bastion: &TestBastion) -> Person {
    let alice = bastion.person("alice").await;
    let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
    let team: sallyport::domain::GroupName = "team-of-alice".parse().unwrap();
    store.add_group(&team, &context, now).await.unwrap();
    store.join_group(&team, &alice.name, &context, now).await.unwrap();
    for n in 0..20 {
        let name = format!("of-alice{n}");
        bastion.grant("alice", &name, &format!("192.0.2.{n}:22")).await;
        let subject = GrantSubject::Group(team.clone());
        let label = GrantObject::Label(format!("of=team{n}").parse().unwrap());
        bastion
            .add_grant("alice", &name, |grant| {
                grant.subject = subject;
                grant.object = label;
            })
            .await;
    }
    alice
}

async fn signing_in(bastion: &TestBastion, alice: &Person, rounds: usize, table: &mut Table) {
    let (store, now) = (bastion.store(), bastion.now());
    let source = Source("192.0.2.7:4022".parse().unwrap());
    let whose = Throttled::new("alice", &source);
    let rules = ThrottleRules {
        lock_after: 10,
        site_lock_after: 50,
        attack_after: 100,
        code_failures_max: 50,
        lock_for: Duration::from_secs(600),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
    };
    let (mut looked_up, mut claimed) = (Vec::new(), Vec::new());
    for n in 0..rounds as i64 {
        let began = Instant::now();
        let (found, _) = store.account(Some(&alice.name), &whose, &rules, now).await.unwrap();
        looked_up.push(began.elapsed());
        let session = Id::random().unwrap();
        let attempt = Attempt {
            account: alice.id.clone(),
            epoch: found.unwrap().epoch,
            factor: Factor::Totp,
            claim: Claim::Code(TimeStep(now.step().0 + n)),
            key: None,
            given: Factors::PASSWORD.with(Factors::OTP),
            steps: vec![Step::Password, Step::Code],
            notes: Vec::new(),
        };
        let new = SignIn { session: &session, source: &source, client: "SSH-2.0-OpenSSH_9.2p1" };
        let context = Context {
            user: Some("alice".into()),
            session: Some(session.clone()),
            ..Context::default()
        };
        let began = Instant::now();
        let signed = store.sign_in(attempt, &new, &whose, &rules, &context, now).await;
        claimed.push(began.elapsed());
        signed.unwrap().unwrap();
    }
    table.push("sign in: look the account up", looked_up);
    table.push("sign in: claim the code, open the session", claimed);
}

async fn authorizing(bastion: &TestBastion, alice: &Person, rounds: usize, table: &mut Table) {
    let (store, now) = (bastion.store(), bastion.now());
    let destination = Destination::parse("of-alice7", 22).unwrap();
    let source = "192.0.2.7".parse().unwrap();
    let given = Factors::PASSWORD.with(Factors::OTP);
    let (mut authorized, mut chosen) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        let access = store.access_to(&alice.id, &destination).await.unwrap();
        let who = Subject { user: &alice.name, groups: &access.groups, source, given };
        let decision = authorize(&who, &access.targets, &access.grants, &destination, now);
        authorized.push(began.elapsed());
        assert!(matches!(decision, Decision::Permit(_)), "{decision:?}");
        let began = Instant::now();
        let access = store.access_of(&alice.id).await.unwrap();
        let who = Subject { user: &alice.name, groups: &access.groups, source, given };
        let granted = granted_targets(&who, &access.targets, &access.grants).len();
        chosen.push(began.elapsed());
        assert_eq!(granted, 20);
    }
    table.push("authorize: read, decide", authorized);
    table.push("what the menu leads to", chosen);
}

/// By the program itself, its start included.
async fn lists(bastion: &TestBastion, table: &mut Table) {
    let month = |n: i64| UnixTime(bastion.now().0 - n * 30 * 86_400_000).date();
    let (since, until) = (month(7), month(6));
    for (what, args) in [
        ("session list", &["session", "list"][..]),
        ("session list --live", &["session", "list", "--live"]),
        ("session list --user", &["session", "list", "--user", "user8"]),
        ("audit list", &["audit", "list"]),
        ("audit list --user", &["audit", "list", "--user", "user8"]),
        ("audit list --kind", &["audit", "list", "--kind", "signed-in"]),
        ("audit list --since --until", &["audit", "list", "--since", &since, "--until", &until]),
    ] {
        let mut took = Vec::new();
        for _ in 0..LISTS {
            let mut list = command(server::BINARY);
            list.arg("--config").arg(bastion.path("sallyport.toml")).args(args);
            let began = Instant::now();
            let out = list.output().await.unwrap();
            took.push(began.elapsed());
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        table.push(what, took);
    }
}
