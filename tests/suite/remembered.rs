//! Remembered logins: a code, and then none for a while from the same address with the same key.

use std::time::Duration;

use sallyport::audit::{Context, Refusal};
use sallyport::auth::account::{Account, ThrottleRules};
use sallyport::auth::machine::{Attempt, Claim};
use sallyport::auth::password;
use sallyport::domain::{Factors, GroupName, Id, Remember, SecondFactor, Source, Verifier};
use sallyport::store::{SignIn, Throttled};

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::keypair::KeyPair;
use crate::support::on_both_engines;
use crate::support::ssh::{Client, Run};

on_both_engines!(
    a_login_is_remembered_for_its_user_key_and_address,
    what_ends_sessions_ends_what_is_remembered,
    what_changes_while_a_remembered_login_is_under_way_ends_it,
);

const HOURS: u64 = 8;

/// Alice with two keys, in a group whose logins are remembered.
struct Member {
    alice: Person,
    key: KeyPair,
    other: KeyPair,
    group: GroupName,
}

impl Member {
    async fn new(bastion: &TestBastion) -> Self {
        let (alice, key) = (bastion.person("alice").await, KeyPair::new().await);
        let other = KeyPair::new().await;
        key.add_to(bastion, &alice).await;
        other.add_to(bastion, &alice).await;
        let group: GroupName = "staff".parse().unwrap();
        let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
        store.add_group(&group, &context, now).await.unwrap();
        store.join_group(&group, &alice.name, &context, now).await.unwrap();
        let member = Self { alice, key, other, group };
        member.remember(bastion, Remember::For(Duration::from_secs(HOURS * 3600))).await;
        member
    }

    async fn remember(&self, bastion: &TestBastion, remember: Remember) {
        let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
        store.set_group_remember(&self.group, remember, &context, now).await.unwrap();
    }

    fn client(bastion: &TestBastion, key: &KeyPair) -> Client {
        Client::new(bastion, "alice").host("bastion", &key.identity())
    }

    /// Signs in with key and code.
    async fn with_code(&self, bastion: &TestBastion) {
        let client = Self::client(bastion, &self.key);
        client.answers(&[&bastion.code(&self.alice)]);
        client.ssh(&["bastion", "targets"]).await.ok();
    }

    /// Signs in and can be asked nothing.
    async fn without(bastion: &TestBastion, key: &KeyPair, options: &[&str]) -> Run {
        let client = Self::client(bastion, key);
        let args = [&["-o", "BatchMode=yes"][..], options, &["bastion", "targets"]].concat();
        client.ssh(&args).await
    }
}

async fn a_login_is_remembered_for_its_user_key_and_address(engine: Engine) {
    let bastion = TestBastion::start_with(engine, "[login]\ncertificate_life = \"8h\"\n").await;
    let member = Member::new(&bastion).await;
    let Member { alice, key, other, .. } = &member;
    Member::without(&bastion, key, &[]).await.failed();
    // A password is nothing to remember a login by.
    let by_password = Client::new(&bastion, "alice");
    by_password.answers(&[PASSWORD, &bastion.code(alice)]);
    by_password.ssh(&["bastion", "targets"]).await.ok();
    assert!(bastion.store().remembered(None, bastion.now()).await.unwrap().is_empty());

    member.with_code(&bastion).await;
    let event = bastion.event("login-remembered", &[("user", "alice")]).await;
    assert_eq!(event["key"], key.fingerprint().as_str());
    for _ in 0..2 {
        Member::without(&bastion, key, &[]).await.ok();
    }
    let signed_in = bastion.kinds("signed-in").await;
    let steps = &signed_in.last().unwrap()["steps"];
    assert_eq!(*steps, serde_json::json!(["key", "remembered"]));

    Member::without(&bastion, other, &[]).await.failed();
    Member::without(&bastion, key, &["-o", "BindAddress=127.0.0.2"]).await.failed();
    let again = Client::new(&bastion, "alice");
    again.answers(&[PASSWORD, "000000"]);
    again.ssh(&["-o", "NumberOfPasswordPrompts=1", "bastion"]).await.failed();
    assert!(again.asked().iter().any(|asked| asked.contains("6-digit code")));

    // It leads to no certificate, which would hold for longer.
    let client = Member::client(&bastion, key);
    let ran = client.ssh(&["-o", "BatchMode=yes", "bastion", "certificate"]).await.failed();
    assert!(ran.err.contains("only to who has just signed in with a code"), "{ran:?}");
    let listed = client.ssh(&["-o", "BatchMode=yes", "bastion", "otp", "remembered"]).await.ok();
    assert!(listed.out.contains(&key.fingerprint()), "{listed:?}");
    assert!(listed.out.contains("127.0.0.1"), "{listed:?}");

    // Counted from the code, and not from the last login.
    bastion.clock.advance(Duration::from_secs((HOURS - 1) * 3600));
    Member::without(&bastion, key, &[]).await.ok();
    bastion.clock.advance(Duration::from_secs(3600));
    Member::without(&bastion, key, &[]).await.failed();
    assert!(bastion.store().remembered(None, bastion.now()).await.unwrap().is_empty());
}

async fn what_ends_sessions_ends_what_is_remembered(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let member = Member::new(&bastion).await;
    let Member { alice, key, other, group } = &member;
    let (store, context) = (bastion.store(), Context::default());
    let cost = password::Cost { memory_kib: 8, passes: 1, lanes: 1 };
    let hash = password::hash(&PASSWORD.into(), cost).unwrap();
    let dba: GroupName = "dba".parse().unwrap();
    store.add_group(&dba, &context, bastion.now()).await.unwrap();
    store.join_group(&dba, &alice.name, &context, bastion.now()).await.unwrap();
    for change in [
        "forget",
        "by owner",
        "password",
        "disabled",
        "key",
        "off",
        "another group",
        "left",
        "reset",
    ] {
        member.with_code(&bastion).await;
        Member::without(&bastion, key, &[]).await.ok();
        let now = bastion.now();
        match change {
            "forget" => {
                let id = store.remembered(Some(&alice.name), now).await.unwrap()[0].id.clone();
                let none = store.forget_logins(&alice.name, Some("zzzzz"), &context, now).await;
                none.unwrap_err();
                let forget = store.forget_logins(&alice.name, Some(&id[..4]), &context, now);
                assert_eq!(forget.await.unwrap(), 1);
            }
            "by owner" => {
                let client = Member::client(&bastion, key);
                client.ssh(&["-o", "BatchMode=yes", "bastion", "otp", "forget"]).await.ok();
                bastion.event("logins-forgotten", &[("user", "alice")]).await;
            }
            "password" => {
                store.set_password(&alice.name, &hash, false, &context, now).await.unwrap();
            }
            "disabled" => {
                store.set_disabled(&alice.name, true, &context, now).await.unwrap();
                store.set_disabled(&alice.name, false, &context, now).await.unwrap();
            }
            "key" => {
                let removed = other.fingerprint();
                store.remove_key(&alice.name, &removed, &context, now).await.unwrap();
            }
            "off" => member.remember(&bastion, Remember::Off).await,
            "another group" => {
                store.set_group_remember(&dba, Remember::Off, &context, now).await.unwrap();
            }
            "left" => store.leave_group(group, &alice.name, &context, now).await.unwrap(),
            _ => {
                let until = now.plus(Duration::from_secs(600));
                store
                    .reset_otp(
                        &alice.name,
                        until,
                        sallyport::store::BindingPassword::Kept,
                        &context,
                        now,
                    )
                    .await
                    .unwrap();
            }
        }
        let ran = Member::without(&bastion, key, &[]).await.failed();
        assert!(ran.err.contains("Permission denied"), "{change}: {ran:?}");
        let held = store.remembered(Some(&alice.name), now).await.unwrap();
        assert!(held.is_empty(), "{change}: {held:?}");
        match change {
            "off" => member.remember(&bastion, Remember::For(Duration::from_secs(3600))).await,
            "another group" => {
                store.set_group_remember(&dba, Remember::Unsaid, &context, now).await.unwrap();
            }
            "left" => store.join_group(group, &alice.name, &context, now).await.unwrap(),
            _ => {}
        }
    }
}

/// Nothing locks here.
fn rules() -> ThrottleRules {
    ThrottleRules {
        site_lock_after: 100,
        attack_after: 100,
        code_failures_max: 100,
        lock_after: 100,
        lock_for: Duration::from_secs(60),
        backoff_first: Duration::ZERO,
        backoff_max: Duration::ZERO,
    }
}

/// From where logins are remembered here.
fn here() -> Source {
    Source("127.0.0.1:4022".parse().unwrap())
}

impl Member {
    /// Her account, as a login reads it that begins now.
    async fn account(&self, bastion: &TestBastion) -> Account {
        let (whose, rules) = (Throttled::new("alice", &here()), rules());
        let name = Some(&self.alice.name);
        let found = bastion.store().account(name, &whose, &rules, bastion.now()).await.unwrap();
        *found.0.unwrap()
    }

    /// Ends a login that began when the account was so, from `source`.
    async fn open(
        &self,
        bastion: &TestBastion,
        account: &Account,
        source: Source,
    ) -> Result<(), Refusal> {
        let remembered = account.remembered[0].clone();
        let attempt = Attempt {
            account: account.id.clone(),
            epoch: account.epoch,
            factor: account.factor.factor,
            key: Some(remembered.key.clone()),
            claim: Claim::Remembered(remembered),
            given: Factors::KEY.with(Factors::OTP),
            steps: Vec::new(),
            notes: Vec::new(),
        };
        let (whose, rules) = (Throttled::new("alice", &source), rules());
        let (session, context) = (Id::random().unwrap(), Context::default());
        let new = SignIn { session: &session, source: &source, client: "SSH-2.0-test" };
        let store = bastion.store();
        let opened = store.sign_in(attempt, &new, &whose, &rules, &context, bastion.now());
        opened.await.unwrap().map(drop)
    }
}

/// A login reads the account, and opens its session later: what counts is what holds then.
async fn what_changes_while_a_remembered_login_is_under_way_ends_it(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let member = Member::new(&bastion).await;
    let Member { alice, group, .. } = &member;
    let (store, context) = (bastion.store(), Context::default());
    let radius = Some(SecondFactor { factor: Verifier::Radius, mode: None });
    let hours = Remember::For(Duration::from_secs(HOURS * 3600));
    let changed = Err(Refusal::AccountChanged);
    for (change, outcome) in [
        ("nothing", Ok(())),
        ("elsewhere", changed),
        ("rule off", changed),
        ("shorter rule", changed),
        ("left", changed),
        ("forgotten", changed),
        ("factor of the group", changed),
        ("factor of the user", changed),
        ("rule for signing in", Err(Refusal::SignInRule)),
    ] {
        member.with_code(&bastion).await;
        let account = member.account(&bastion).await;
        let (now, mut source) = (bastion.now(), here());
        match change {
            "elsewhere" => source = Source("127.0.0.2:4022".parse().unwrap()),
            "rule off" => member.remember(&bastion, Remember::Off).await,
            "shorter rule" => {
                member.remember(&bastion, Remember::For(Duration::from_secs(60))).await;
                bastion.clock.advance(Duration::from_secs(60));
            }
            "left" => store.leave_group(group, &alice.name, &context, now).await.unwrap(),
            "forgotten" => {
                assert_eq!(store.forget_logins(&alice.name, None, &context, now).await.unwrap(), 1);
            }
            "factor of the group" => {
                store.set_group_factor(group, radius, &context, now).await.unwrap();
            }
            "factor of the user" => {
                store.set_user_factor(&alice.name, radius, &context, now).await.unwrap();
            }
            "rule for signing in" => {
                let rule = "password+otp".parse().unwrap();
                store.set_user_sign_in(&alice.name, Some(&rule), &context, now).await.unwrap();
            }
            _ => {}
        }
        let sessions = bastion.store().sessions(&Default::default(), 100).await.unwrap().len();
        assert_eq!(member.open(&bastion, &account, source).await, outcome, "{change}");
        let opened = bastion.store().sessions(&Default::default(), 100).await.unwrap().len();
        assert_eq!(opened - sessions, usize::from(outcome.is_ok()), "{change}");
        let now = bastion.now();
        match change {
            "rule off" | "shorter rule" => member.remember(&bastion, hours).await,
            "left" => store.join_group(group, &alice.name, &context, now).await.unwrap(),
            "factor of the group" => {
                store.set_group_factor(group, None, &context, now).await.unwrap();
            }
            "factor of the user" => {
                store.set_user_factor(&alice.name, None, &context, now).await.unwrap();
            }
            "rule for signing in" => {
                store.set_user_sign_in(&alice.name, None, &context, now).await.unwrap();
            }
            _ => {}
        }
    }
}
