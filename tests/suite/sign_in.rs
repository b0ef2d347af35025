//! Rules for signing in, with the real client: what is enough for whom, from where, and for which
//! target.

use std::process::Stdio;

use sallyport::audit::Context;
use sallyport::domain::SignInRule;

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::hop::Hop;
use crate::support::keypair::KeyPair;
use crate::support::raw::{INFO_REQUEST, RawClient, USERAUTH_FAILURE, USERAUTH_SUCCESS};
use crate::support::ssh::Client;
use crate::support::sshd::Sshd;
use crate::support::{eventually, on_both_engines};

on_both_engines!(
    a_key_is_enough_from_where_the_rule_says_so,
    a_target_asks_for_more_than_the_door,
    a_stricter_rule_ends_sessions_that_gave_less,
);

fn rule(text: &str) -> SignInRule {
    text.parse().unwrap()
}

async fn rule_for(bastion: &TestBastion, person: &Person, text: &str) {
    let (store, context) = (bastion.store(), Context::default());
    store.set_user_sign_in(&person.name, Some(&rule(text)), &context, bastion.now()).await.unwrap();
}

async fn group_rule(bastion: &TestBastion, group: &str, person: &Person, text: &str) {
    let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
    let group = group.parse().unwrap();
    store.add_group(&group, &context, now).await.unwrap();
    store.join_group(&group, &person.name, &context, now).await.unwrap();
    store.set_group_sign_in(&group, Some(&rule(text)), &context, now).await.unwrap();
}

/// Options that ask nobody anything.
const BATCH: [&str; 2] = ["-o", "BatchMode=yes"];

async fn a_key_is_enough_from_where_the_rule_says_so(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let (ci, key) = (bastion.person("ci").await, KeyPair::new().await);
    key.add_to(&bastion, &ci).await;
    let client = Client::new(&bastion, "ci").host("bastion", &key.identity());
    client.ssh(&[&BATCH[..], &["bastion", "targets"]].concat()).await.failed();

    rule_for(&bastion, &ci, "key from 127.0.0.1").await;
    client.ssh(&[&BATCH[..], &["bastion", "targets"]].concat()).await.ok();
    let event = bastion.event("signed-in", &[("user", "ci")]).await;
    assert_eq!(event["steps"], serde_json::json!(["key"]));

    // From elsewhere nothing is enough, and who has the password and a code is told nothing of it.
    let away = ["-o", "BindAddress=127.0.0.2"];
    client.ssh(&[&BATCH[..], &away, &["bastion"]].concat()).await.failed();
    for key in [true, false] {
        let options: &[&str] = if key { &[] } else { &["-o", "PubkeyAuthentication=no"] };
        client.answers(&[PASSWORD, &bastion.code(&ci)]);
        let once = ["-o", "NumberOfPasswordPrompts=1"];
        let ran = client.ssh(&[&away, options, &once, &["bastion", "targets"]].concat()).await;
        assert!(ran.failed().err.contains("Permission denied"));
        assert!(client.asked().iter().any(|asked| asked.contains("6-digit code")));
    }
    let fields = [("user", "ci"), ("reason", "sign-in-rule")];
    eventually("both are written down", async || {
        let refused = bastion.kinds("sign-in-refused").await;
        let fits = |event: &&serde_json::Value| fields.iter().all(|(key, v)| event[*key] == *v);
        (refused.iter().filter(fits).count() == 2).then_some(())
    })
    .await;
    // Neither is the password enough where the key is.
    client.answers(&[PASSWORD, &bastion.code(&ci)]);
    let no_key = ["-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1"];
    client.ssh(&[&no_key[..], &["bastion"]].concat()).await.failed();
}

async fn a_target_asks_for_more_than_the_door(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let sshd = Sshd::start().await;
    let (alice, key) = (bastion.person("alice").await, KeyPair::new().await);
    key.add_to(&bastion, &alice).await;
    bastion.grant("alice", "db1", &format!("127.0.0.1:{}", sshd.port)).await;
    let (store, context) = (bastion.store(), Context::default());
    let db1 = "db1".parse().unwrap();
    store.set_target_sign_in(&db1, Some(&rule("key+otp")), &context, bastion.now()).await.unwrap();

    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    let ran = client.ssh(&["-J", "bastion", "db1", "true"]).await.failed();
    let told = "db1 asks for key+otp; you signed in with password+otp";
    assert!(ran.err.contains(told), "{ran:?}");
    let refused = [("user", "alice"), ("reason", "sign-in-rule")];
    bastion.event("forward-refused", &refused).await;

    let client = client.host("bastion", &key.identity());
    client.answers(&[&bastion.code(&alice)]);
    client.ssh(&["-J", "bastion", "db1", "true"]).await.ok();
    store.set_target_sign_in(&db1, None, &context, bastion.now()).await.unwrap();
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&["-o", "PubkeyAuthentication=no", "-J", "bastion", "db1", "true"]).await.failed();
    let client = Client::new(&bastion, "alice").knows("db1", &sshd);
    client.answers(&[PASSWORD, &bastion.code(&alice)]);
    client.ssh(&["-J", "bastion", "db1", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_target_asks_too_on_every_way() {
    let hop = Hop::start().await;
    let (store, context) = (hop.bastion.store(), Context::default());
    let db1 = "db1".parse().unwrap();
    let now = hop.bastion.now();
    store.set_target_sign_in(&db1, Some(&rule("key+otp")), &context, now).await.unwrap();
    let told = "db1 asks for key+otp; you signed in with password+otp";
    for way in crate::support::ways::ENTRANCES {
        let client = Client::new(&hop.bastion, "alice");
        client.answers(&[PASSWORD, &hop.bastion.code(&hop.alice)]);
        let args: &[&str] = match way {
            crate::support::ways::Way::Selector => {
                &["-o", "User=alice+root@db1", "bastion", "true"]
            }
            _ => &["-J", "bastion", "root@db1", "true"],
        };
        let ran = client.ssh(args).await.failed();
        assert!(ran.err.contains(told), "{way:?}: {ran:?}");
    }
}

async fn a_stricter_rule_ends_sessions_that_gave_less(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let (alice, key) = (bastion.person("alice").await, KeyPair::new().await);
    key.add_to(&bastion, &alice).await;
    let mut masters = Vec::new();
    let mut controls = Vec::new();
    for with_key in [true, false] {
        let client = Client::new(&bastion, "alice");
        let control = client.path("control");
        let identity = if with_key { key.identity() } else { "PubkeyAuthentication no".into() };
        let lines = format!("ControlPath {}\n{identity}", control.display());
        let client = client.host("bastion", &lines);
        let code = bastion.code(&alice);
        let answers = if with_key { vec![code.as_str()] } else { vec![PASSWORD, &code] };
        client.answers(&answers);
        let mut master = client.command("ssh", &["-M", "-N", "bastion"]);
        let master = master.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the master is up", async || control.exists().then_some(())).await;
        controls.push(control);
        masters.push((client, master));
    }
    group_rule(&bastion, "staff", &alice, "password+otp, key+otp").await;
    group_rule(&bastion, "dba", &alice, "key+otp").await;
    bastion.event("session-ended", &[("user", "alice"), ("reason", "revoked")]).await;
    eventually("that with the password ended", async || (!controls[1].exists()).then_some(()))
        .await;
    masters[0].0.ssh(&["bastion", "targets"]).await.ok();
    // The user's own rule stands in their place.
    rule_for(&bastion, &alice, "password+otp").await;
    eventually("that with the key ended", async || (!controls[0].exists()).then_some(())).await;
    eventually("both ends are written down", async || {
        (bastion.kinds("session-ended").await.len() == 2).then_some(())
    })
    .await;
}

/// Who has a notice to read is let in already, and waits for nothing but themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_stricter_rule_ends_a_login_that_waits_behind_a_notice() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let mut waiting = Vec::new();
    for name in ["alice", "bob"] {
        let person = bastion.person(name).await;
        let mut client = RawClient::connect(bastion.port).await;
        client.send_password(name, PASSWORD).await;
        assert_eq!(client.reply().await, USERAUTH_FAILURE); // With partial success.
        client.start_interactive(name, "").await;
        assert_eq!(client.reply().await, INFO_REQUEST);
        // A recovery code brings a notice: how many are left.
        client.answer(&person.recovery_code(0)).await;
        assert_eq!(client.reply().await, INFO_REQUEST);
        waiting.push((person, client));
    }
    assert_eq!(bastion.kinds("signed-in").await.len(), 2);
    let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
    let rule = "key+otp".parse().unwrap();
    store.set_user_sign_in(&waiting[0].0.name, Some(&rule), &context, now).await.unwrap();
    let told = waiting[0].1.receive_disconnect().await;
    assert!(told.contains("more is asked of you by now"), "{told}");
    bastion.event("session-ended", &[("user", "alice"), ("reason", "revoked")]).await;
    // Of whom nothing more is asked goes on.
    let (_, bob) = &mut waiting[1];
    bob.answer_nothing().await;
    assert_eq!(bob.reply().await, USERAUTH_SUCCESS);
}
