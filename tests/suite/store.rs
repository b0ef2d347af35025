//! The store on both engines: every change and its conflicts, what is used up once however many
//! try at a time, and secrets that open only where they belong.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use sallyport::admin;
use sallyport::audit::{Context, EndReason, Event, Note, Refusal, Step};
use sallyport::auth::account::{Throttle, ThrottleRules};
use sallyport::auth::machine::{Attempt, Claim, Claimed};
use sallyport::auth::{recovery, totp};
use sallyport::clock::Clock;
use sallyport::domain::{
    AccountAuth, Destination, Factors, Grant, GrantObject, GrantSubject, Id, IdPrefix, Mode, Role,
    SecondFactor, SignInRule, Source, Target, TimeStep, UnixTime, UserName, Verifier,
};
use sallyport::setup;
use sallyport::store::{
    BindingPassword, Carried, Carrier, Error, EventFilter, FailureNote, NewAuthenticator,
    NewRecording, NewUser, Opening, RecordingEnd, SessionFilter, SignIn, Store, Throttled,
};

use crate::support::bastion::{Engine, Person, TestBastion};
use crate::support::journal::Journal;
use crate::support::on_both_engines;
use crate::tampering::with_verbs;

on_both_engines!(
    a_session_opens_only_by_the_rule_that_holds_then,
    users_change_and_conflicts_are_told,
    only_a_password_that_was_made_for_it_binds,
    a_name_that_is_given_again_brings_nothing_along,
    a_login_ends_with_the_factor_that_it_began_with,
    own_keys_are_added_by_the_session_that_asked_or_not_at_all,
    what_must_end_sessions_moves_the_revision_and_the_epoch,
    groups_targets_and_grants_change_and_conflicts_are_told,
    a_second_factor_works_once_however_many_try,
    one_of_many_binds_and_one_of_many_adds,
    changes_of_the_same_thing_at_once_do_not_break_each_other,
    what_is_set_for_what_goes_away_waits_for_nobody,
    failures_add_up_lock_and_are_forgotten,
    an_ipv6_site_is_locked_as_a_whole,
    a_sites_lock_spares_who_signed_in_from_there,
    many_failures_from_everywhere_are_told_once_and_lock_nobody,
    wrong_codes_from_everywhere_leave_known_sources_and_recovery_codes,
    another_authenticator_makes_sources_unknown,
    who_never_bound_anything_is_known_from_nowhere,
    a_login_stops_when_its_account_changed,
    sessions_and_forwards_are_kept_and_closed,
    what_is_carried_is_written_down_while_it_is_open,
    what_is_dropped_in_the_middle_changed_all_or_nothing,
    sealed_secrets_open_only_in_their_row,
    rotation_under_logins_loses_no_secret,
    two_rotations_at_once_leave_no_secret_behind,
    no_key_seals_that_a_node_does_not_hold,
    events_are_found_by_what_they_are_about,
    what_was_not_committed_is_not_told,
    events_are_written_in_groups_all_or_none,
);

/// The log for operators must not know of a sign-in that the audit log does not.
async fn what_was_not_committed_is_not_told(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, journal) = (bastion.store(), bastion.now(), Journal::default());
    let writer = journal.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let event = |version: &str| Event::ServerStarted { version: version.into() };
    store.record(now, &nobody(), event("good")).await.unwrap();
    assert!(journal.take().contains("good"));

    // Everything but the commit itself goes well.
    bastion
        .tamper(match engine {
            Engine::Sqlite => {
                "CREATE TABLE late_parents (id INTEGER PRIMARY KEY);
                 CREATE TABLE late_children
                   (id INTEGER REFERENCES late_parents (id) DEFERRABLE INITIALLY DEFERRED);
                 CREATE TRIGGER late AFTER INSERT ON audit_events
                   BEGIN INSERT INTO late_children VALUES (1); END"
            }
            Engine::Postgres => {
                "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'too late'; END $$;
                 CREATE CONSTRAINT TRIGGER late AFTER INSERT ON audit_events
                   DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()"
            }
        })
        .await;
    store.record(now, &nobody(), event("bad")).await.unwrap_err();
    let said = journal.take();
    assert!(!said.contains("bad"), "{said}");
    let last = store.audit_end().await.unwrap();
    assert_eq!(last.0.seq, last.1, "the log ends with what was committed");
}

/// A store that nothing but the test uses: the server that came with it has stopped.
async fn quiet(engine: Engine) -> TestBastion {
    let mut bastion = TestBastion::start(engine).await;
    bastion.stop().await;
    bastion
}

fn source() -> Source {
    Source("192.0.2.7:4022".parse().unwrap())
}

fn rules() -> ThrottleRules {
    ThrottleRules {
        lock_after: 3,
        site_lock_after: 5,
        attack_after: 7,
        code_failures_max: 4,
        lock_for: Duration::from_secs(600),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
    }
}

fn whose(name: &UserName) -> Throttled {
    Throttled::new(name.as_str(), &source())
}

fn nobody() -> Context {
    Context::default()
}

/// What a conflict says.
fn conflict<T: Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Conflict(said)) => said,
        other => panic!("no conflict: {other:?}"),
    }
}

fn attempt(person: &Person, epoch: i64, claim: Claim) -> Attempt {
    let steps = vec![Step::Password, Step::Code];
    let given = Factors::PASSWORD.with(Factors::OTP);
    let factor = match claim {
        Claim::Radius { .. } => Verifier::Radius,
        _ => Verifier::Totp,
    };
    let (account, notes) = (person.id.clone(), Vec::new());
    Attempt { account, epoch, factor, claim, key: None, given, steps, notes }
}

/// Signs in with `claim` in a session of its own.
async fn sign_in(
    store: &Store,
    person: &Person,
    epoch: i64,
    claim: Claim,
    now: UnixTime,
) -> (Id, Result<Claimed, Refusal>) {
    let session = Id::random().unwrap();
    let source = source();
    let new = SignIn { session: &session, source: &source, client: "SSH-2.0-test" };
    let context =
        Context { user: Some(person.name.to_string()), session: Some(session.clone()), ..nobody() };
    let attempt = attempt(person, epoch, claim);
    let whose = whose(&person.name);
    let signed = store.sign_in(attempt, &new, &whose, &rules(), &context, now).await.unwrap();
    (session, signed.map(|opened| opened.claimed().clone()))
}

/// Opens a session for which this was given.
async fn open_with(
    store: &Store,
    person: &Person,
    (claim, given): (Claim, Factors),
    now: UnixTime,
) -> Result<Claimed, Refusal> {
    let (session, source) = (Id::random().unwrap(), source());
    let new = SignIn { session: &session, source: &source, client: "SSH-2.0-test" };
    let epoch = 2;
    let attempt = Attempt { given, steps: Vec::new(), ..attempt(person, epoch, claim) };
    let whose = whose(&person.name);
    let signed = store.sign_in(attempt, &new, &whose, &rules(), &nobody(), now).await.unwrap();
    signed.map(|opened| opened.claimed().clone())
}

async fn account(bastion: &TestBastion, name: &UserName) -> sallyport::auth::account::Account {
    let (found, _) =
        bastion.store().account(Some(name), &whose(name), &rules(), bastion.now()).await.unwrap();
    *found.unwrap()
}

fn new_user<'a>(name: &'a UserName, keys: &[(&str, &str)]) -> NewUser<'a> {
    NewUser {
        name,
        role: Role::User,
        factor: None,
        password_hash: "$argon2id$nobody",
        one_time: true,
        binding_until: UnixTime(i64::MAX),
        keys: keys.iter().map(|(f, k)| ((*f).to_owned(), (*k).to_owned())).collect(),
    }
}

fn target(name: &str, address: &str, labels: &[&str]) -> Target {
    Target {
        id: Id::random().unwrap(),
        name: name.parse().unwrap(),
        address: address.parse().unwrap(),
        mode: Mode::Tunnel,
        sign_in: None,
        labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
        created_at: UnixTime(5),
    }
}

fn grant(subject: GrantSubject, object: GrantObject) -> Grant {
    Grant {
        id: Id::random().unwrap(),
        subject,
        object,
        accounts: vec!["root".parse().unwrap(), "postgres".parse().unwrap()],
        allow: vec!["shell".parse().unwrap()],
        hours: Some("Mon-Fri 08:00-18:00 Europe/Berlin".parse().unwrap()),
        from: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        until: Some(UnixTime(9)),
        step_up: true,
        created_at: UnixTime(7),
    }
}

fn user_grant(user: &str, target: &str) -> Grant {
    grant(GrantSubject::User(user.parse().unwrap()), GrantObject::Target(target.parse().unwrap()))
}

fn group_grant(group: &str, object: GrantObject) -> Grant {
    grant(GrantSubject::Group(group.parse().unwrap()), object)
}

async fn only_a_password_that_was_made_for_it_binds(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let name: UserName = "alice".parse().unwrap();
    let until = UnixTime(now.0 + 1000);
    let secret = totp::Secret::from_bytes(&[7; 20]);
    let id = store.add_user(&new_user(&name, &[]), &context, now).await.unwrap();
    let state = async || {
        let account = account(&bastion, &name).await;
        (account.password.clone(), account.one_time, account.password_binds, account.epoch)
    };
    let bind = async || {
        let epoch = state().await.3;
        let new = NewAuthenticator { account: &id, epoch, secret: &secret, step: now.step() };
        let bound = store.bind(&new, Vec::new(), &context, now).await.unwrap().unwrap();
        assert!(!state().await.2, "it binds once");
        bound.0
    };
    // Whoever had the one-time password chose another, and may go on later.
    store.choose_password(&id, 1, "mine", vec![], &context, now).await.unwrap().unwrap();
    assert_eq!(state().await, ("mine".into(), false, true, 2));
    bind().await;
    // One that is in use is replaced by a reset; it binds only if that is said.
    store.reset_otp(&name, until, BindingPassword::OneTime("token"), &context, now).await.unwrap();
    assert_eq!(state().await, ("token".into(), true, false, 4));
    let set = bastion.kinds("password-set").await;
    assert_eq!(set.last().unwrap()["one_time"], true);
    store.choose_password(&id, 4, "mine", vec![], &context, now).await.unwrap().unwrap();
    bind().await;
    assert!(bastion.kinds("password-may-bind").await.is_empty());
    store.reset_otp(&name, until, BindingPassword::Kept, &context, now).await.unwrap();
    assert_eq!(state().await, ("mine".into(), false, true, 7));
    assert_eq!(bastion.kinds("password-may-bind").await.len(), 1);
    let epoch = bind().await;
    // Their own reset gives them a token as well.
    let unbound = store.unbind((&id, epoch), &name, (until, "token"), &context, now).await;
    assert_eq!(unbound.unwrap(), Ok(epoch + 1));
    assert_eq!(state().await, ("token".into(), true, false, epoch + 1));
    // An administrator's binds an account that has nothing yet, and none that has.
    store.set_password(&name, "theirs", false, &context, now).await.unwrap();
    assert_eq!(state().await, ("theirs".into(), false, true, epoch + 2));
    bind().await;
    store.set_password(&name, "another", false, &context, now).await.unwrap();
    assert!(!state().await.2);
    let bob: UserName = "bob".parse().unwrap();
    let new = NewUser { one_time: false, ..new_user(&bob, &[]) };
    store.add_user(&new, &context, now).await.unwrap();
    assert!(account(&bastion, &bob).await.password_binds);
}

async fn own_keys_are_added_by_the_session_that_asked_or_not_at_all(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let alice = bastion.person("alice").await;
    let name = &alice.name;
    let key = |n: &str| (format!("SHA256:{n}"), format!("ssh-ed25519 {n}"));
    let add = async |epoch: i64, keys: &[(String, String)]| {
        store.add_own_keys((&alice.id, epoch), name, keys, &context, now).await
    };
    let epoch = account(&bastion, name).await.epoch;
    add(epoch, &[key("a")]).await.unwrap().unwrap();
    // What an administrator does between two keys ends the session, and with it this.
    store.set_password(name, "another", false, &context, now).await.unwrap();
    assert_eq!(add(epoch, &[key("b")]).await.unwrap(), Err(Refusal::AccountChanged));
    store.set_disabled(name, true, &context, now).await.unwrap();
    let epoch = account(&bastion, name).await.epoch;
    assert_eq!(add(epoch, &[key("b")]).await.unwrap(), Err(Refusal::AccountChanged));
    store.set_disabled(name, false, &context, now).await.unwrap();
    let epoch = account(&bastion, name).await.epoch;
    // All or none.
    let twice = add(epoch, &[key("b"), key("a")]).await;
    assert_eq!(conflict(twice), "alice has that key already");
    assert_eq!(account(&bastion, name).await.keys, ["SHA256:a"]);
    assert_eq!(bastion.kinds("key-added").await.len(), 1);
    add(epoch, &[key("b"), key("c")]).await.unwrap().unwrap();
    assert_eq!(account(&bastion, name).await.keys.len(), 3);
}

async fn a_login_ends_with_the_factor_that_it_began_with(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let alice = bastion.person("alice").await;
    let group = "staff".parse().unwrap();
    store.add_group(&group, &context, now).await.unwrap();
    store.join_group(&group, &alice.name, &context, now).await.unwrap();
    let epoch = account(&bastion, &alice.name).await.epoch;
    let radius = SecondFactor { factor: Verifier::Radius, mode: None };
    // Between the new authenticator and Enter, somebody lets RADIUS answer for the whole group.
    store.set_group_factor(&group, Some(radius), &context, now).await.unwrap();
    let signed = sign_in(store, &alice, epoch, Claim::Nothing, now).await.1;
    assert_eq!(signed, Err(Refusal::AccountChanged));
    // And the other way round.
    let began = || Attempt { factor: Verifier::Radius, ..attempt(&alice, epoch, Claim::Nothing) };
    let claim = async |attempt: Attempt| {
        let (whose, rules) = (whose(&alice.name), rules());
        store.claim(attempt, &whose, &rules, &context, now).await.unwrap()
    };
    claim(began()).await.unwrap();
    store.set_group_factor(&group, None, &context, now).await.unwrap();
    assert_eq!(claim(began()).await, Err(Refusal::AccountChanged));
    sign_in(store, &alice, epoch, Claim::Nothing, now).await.1.unwrap();
}

async fn a_name_that_is_given_again_brings_nothing_along(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let old = bastion.person("alice").await;
    let name = &old.name;
    let epoch = account(&bastion, name).await.epoch;
    let (session, signed) = sign_in(store, &old, epoch, Claim::Code(now.step()), now).await;
    signed.unwrap();
    let recording = NewRecording {
        id: &Id::random().unwrap(),
        target: &"db1".parse().unwrap(),
        account: &"root".parse().unwrap(),
        kind: "shell",
        command: None,
        path: "x",
        grants: &[],
    };
    let theirs = Context { session: Some(session), ..nobody() };
    store.start_recording(&recording, &theirs, now).await.unwrap();
    let (key, limits) = (whose(name), rules());
    for _ in 0..limits.lock_after {
        let (account, reason) = (Some(old.id.clone()), Refusal::WrongCode);
        let failure = FailureNote { account, reason, counts: true, code: false, drift: None };
        store.fail(failure, Vec::new(), &key, &limits, &context, now).await.unwrap();
    }
    assert!(store.locked(now).await.unwrap().contains("alice"));
    let own = async |id: &Id| {
        let (user, account) = (Some("alice".to_owned()), Some(id.clone()));
        let filter = SessionFilter { live: false, user, account };
        let sessions = store.sessions(&filter, 9).await.unwrap().len();
        (sessions, store.last_accounts(name, id).await.unwrap().len())
    };
    assert_eq!(own(&old.id).await, (1, 1));
    store.remove_user(name, &context, now).await.unwrap();
    let new = bastion.person("alice").await;
    assert_eq!(own(&new.id).await, (0, 0));
    let (_, throttle) = store.account(Some(name), &key, &limits, now).await.unwrap();
    assert_eq!(throttle, Throttle::default());
    assert!(store.locked(now).await.unwrap().is_empty());
    // Administrators find the old one's by the name.
    let filter = SessionFilter { live: false, user: Some("alice".into()), account: None };
    assert_eq!(store.sessions(&filter, 9).await.unwrap().len(), 1);
}

async fn users_change_and_conflicts_are_told(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let (alice, none): (UserName, UserName) = ("alice".parse().unwrap(), "none".parse().unwrap());
    assert!(store.has_users().await.unwrap()); // The first administrator.
    let new = new_user(&alice, &[("SHA256:a", "ssh-ed25519 A")]);
    let id = store.add_user(&new, &context, now).await.unwrap();
    assert_eq!(
        conflict(store.add_user(&new, &context, now).await),
        "there is a user alice already"
    );
    let names: Vec<String> =
        store.users().await.unwrap().into_iter().map(|user| user.name).collect();
    assert_eq!(names, ["admin", "alice"]);
    let detail = store.user(&alice).await.unwrap();
    assert_eq!(detail.user.id, id.as_str());
    assert_eq!((detail.user.role.as_str(), detail.user.password_one_time), ("user", 1));
    assert_eq!(detail.keys[0].fingerprint, "SHA256:a");
    assert_eq!(detail.recovery_codes_left, 0);

    // Keys.
    store.add_key(&alice, "SHA256:b", "ssh-ed25519 B", &context, now).await.unwrap();
    let again = store.add_key(&alice, "SHA256:b", "ssh-ed25519 B", &context, now).await;
    assert_eq!(conflict(again), "alice has that key already");
    store.remove_key(&alice, "SHA256:a", &context, now).await.unwrap();
    let gone = conflict(store.remove_key(&alice, "SHA256:a", &context, now).await);
    assert!(gone.starts_with("alice has no key with that fingerprint"), "{gone}");
    assert_eq!(account(&bastion, &alice).await.keys, ["SHA256:b"]);

    // Disabled and enabled, each once.
    store.set_disabled(&alice, true, &context, now).await.unwrap();
    assert!(account(&bastion, &alice).await.disabled);
    let again = store.set_disabled(&alice, true, &context, now).await;
    assert_eq!(conflict(again), "alice is disabled already");
    store.set_disabled(&alice, false, &context, now).await.unwrap();
    let again = store.set_disabled(&alice, false, &context, now).await;
    assert_eq!(conflict(again), "alice is enabled already");

    // A password, and its hash at another cost, only in the place of the one that was compared.
    store.set_password(&alice, "hash 1", false, &context, now).await.unwrap();
    store.rehash(&id, "another", "hash 2").await.unwrap();
    assert_eq!(account(&bastion, &alice).await.password, "hash 1");
    let epoch = account(&bastion, &alice).await.epoch;
    store.rehash(&id, "hash 1", "hash 2").await.unwrap();
    let changed = account(&bastion, &alice).await;
    assert_eq!(
        (changed.password.as_str(), changed.epoch, changed.one_time),
        ("hash 2", epoch, false)
    );

    // An unbound account can be reset, too: it opens the window, and ends what is under way.
    let epoch = changed.epoch;
    store.reset_otp(&alice, UnixTime(77), BindingPassword::Kept, &context, now).await.unwrap();
    assert_eq!(account(&bastion, &alice).await.epoch, epoch + 1);
    assert_eq!(account(&bastion, &alice).await.binding_until, Some(UnixTime(77)));
    assert!(bastion.kinds("authenticator-unbound").await.is_empty());
    assert_eq!(store.unlock(&alice, &context, now).await.unwrap(), 0);

    // Nobody of that name.
    let said = "there is no user none: see 'sallyport user list'";
    assert_eq!(conflict(store.user(&none).await), said);
    assert_eq!(conflict(store.set_disabled(&none, true, &context, now).await), said);
    assert_eq!(conflict(store.set_password(&none, "x", false, &context, now).await), said);
    assert_eq!(
        conflict(store.reset_otp(&none, now, BindingPassword::Kept, &context, now).await),
        said
    );
    assert_eq!(conflict(store.add_key(&none, "f", "k", &context, now).await), said);
    assert_eq!(conflict(store.remove_key(&none, "f", &context, now).await), said);
    assert_eq!(conflict(store.unlock(&none, &context, now).await), said);
    assert_eq!(conflict(store.remove_user(&none, &context, now).await), said);
    let found = store.account(Some(&none), &whose(&none), &rules(), now).await.unwrap();
    assert!(found.0.is_none() && found.1 == Throttle::default());

    // A user goes with keys, groups and grants; the events stay.
    store.add_group(&"dba".parse().unwrap(), &context, now).await.unwrap();
    store.join_group(&"dba".parse().unwrap(), &alice, &context, now).await.unwrap();
    store.add_target(&target("db1", "10.0.0.5", &[]), &context, now).await.unwrap();
    store.add_grant(&user_grant("alice", "db1"), &context, now).await.unwrap();
    store.remove_user(&alice, &context, now).await.unwrap();
    assert!(store.grants().await.unwrap().is_empty());
    assert!(store.groups().await.unwrap()[0].members.is_empty());
    assert_eq!(bastion.kinds("grant-removed").await.len(), 1);
    assert_eq!(bastion.kinds("key-added").await.len(), 2);
    for (kind, count) in [("user-added", 2), ("user-removed", 1), ("user-disabled", 1)] {
        assert_eq!(bastion.kinds(kind).await.len(), count, "{kind}");
    }
    // Whoever comes after them under the name is somebody else.
    let again = store.add_user(&new_user(&alice, &[]), &context, now).await.unwrap();
    assert_ne!(again, id);
    assert!(store.user(&alice).await.unwrap().keys.is_empty());
}

async fn what_must_end_sessions_moves_the_revision_and_the_epoch(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let alice = bastion.person("alice").await;
    let name = &alice.name;
    let epoch = account(&bastion, name).await.epoch;
    let code = Claim::Code(now.step());
    let (session, signed) = sign_in(store, &alice, epoch, code, now).await;
    signed.unwrap();
    let live = async || {
        let live = store.live().await.unwrap();
        assert_eq!(live.epochs.len(), 1);
        assert_eq!(live.epochs[0].0, alice.id);
        (store.revision().await.unwrap(), live.epochs[0].1, live.killed)
    };
    let mut before = live().await;
    assert_eq!(before.1, Some(epoch));

    // What ends sessions moves both numbers.
    for change in ["password", "reset", "disable", "enable", "choose", "remove"] {
        match change {
            "password" => store.set_password(name, "h", false, &context, now).await.unwrap(),
            "reset" => store
                .reset_otp(name, UnixTime(i64::MAX), BindingPassword::Kept, &context, now)
                .await
                .unwrap(),
            "disable" => store.set_disabled(name, true, &context, now).await.unwrap(),
            "enable" => store.set_disabled(name, false, &context, now).await.unwrap(),
            "choose" => {
                let epoch = account(&bastion, name).await.epoch;
                let chosen = store.choose_password(&alice.id, epoch, "h", vec![], &context, now);
                assert_eq!(chosen.await.unwrap(), Ok(epoch + 1));
            }
            _ => store.remove_user(name, &context, now).await.unwrap(),
        }
        let after = live().await;
        assert!(after.0 > before.0, "{change} did not move the revision");
        assert_ne!(after.1, before.1, "{change} did not move the epoch");
        assert_ne!(after.1, Some(epoch), "{change} brought the session's epoch back");
        let ends = matches!(change, "disable" | "remove");
        assert_eq!(after.1.is_none(), ends, "{change}");
        before = after;
    }

    // What forwards have to look at again moves the revision.
    let bob = bastion.person("bob").await;
    let group = "dba".parse().unwrap();
    let db1 = target("db1", "10.0.0.5", &[]);
    let granted = user_grant("bob", "db1");
    let mut revision = store.revision().await.unwrap();
    for change in
        ["group", "join", "target", "grant", "ungrant", "leave", "ungroup", "untarget", "kill"]
    {
        match change {
            "group" => store.add_group(&group, &context, now).await.unwrap(),
            "join" => store.join_group(&group, &bob.name, &context, now).await.unwrap(),
            "target" => store.add_target(&db1, &context, now).await.unwrap(),
            "grant" => store.add_grant(&granted, &context, now).await.unwrap(),
            "ungrant" => {
                store.remove_grant(granted.id.as_str(), &context, now).await.unwrap();
            }
            "leave" => store.leave_group(&group, &bob.name, &context, now).await.unwrap(),
            "ungroup" => store.remove_group(&group, &context, now).await.unwrap(),
            "untarget" => store.remove_target(&db1.name, &context, now).await.unwrap(),
            _ => assert!(store.request_kill(&session, &context, now).await.unwrap()),
        }
        let after = store.revision().await.unwrap();
        assert!(after > revision, "{change}");
        revision = after;
    }
    assert_eq!(store.live().await.unwrap().killed, std::slice::from_ref(&session));
    // What ends nothing moves nothing.
    store.forget_old_failures(UnixTime(0)).await.unwrap();
    store.record(now, &context, Event::ServerStarted { version: "x".into() }).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), revision);
}

async fn groups_targets_and_grants_change_and_conflicts_are_told(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let alice = bastion.person("alice").await;
    let bob = bastion.person("bob").await;
    let (dba, web) = ("dba".parse().unwrap(), "web".parse().unwrap());
    store.add_group(&dba, &context, now).await.unwrap();
    let again = store.add_group(&dba, &context, now).await;
    assert_eq!(conflict(again), "there is a group dba already");
    store.join_group(&dba, &alice.name, &context, now).await.unwrap();
    let again = store.join_group(&dba, &alice.name, &context, now).await;
    assert_eq!(conflict(again), "alice is in the group dba already");
    let said = "there is no group web: see 'sallyport group list'";
    assert_eq!(conflict(store.join_group(&web, &alice.name, &context, now).await), said);
    assert_eq!(conflict(store.remove_group(&web, &context, now).await), said);
    let left = store.leave_group(&dba, &bob.name, &context, now).await;
    assert_eq!(conflict(left), "bob is not in a group dba");
    assert_eq!(store.groups().await.unwrap()[0].members, ["alice"]);

    let db1 = target("db1", "10.0.0.5", &["env=prod", "tier=1"]);
    store.add_target(&db1, &context, now).await.unwrap();
    let again = store.add_target(&target("db1", "10.0.0.6", &[]), &context, now).await;
    assert_eq!(conflict(again), "there is a target db1 already");
    // A tunnel would pass the recording by, and a recording be passed by.
    let other = Target { mode: Mode::Record, ..target("db2", "10.0.0.5:22", &[]) };
    let refused = conflict(store.add_target(&other, &context, now).await);
    let why = "10.0.0.5:22 is the target db1 already, which is not in record mode: ";
    assert!(refused.starts_with(why), "{refused}");
    let recorded = Target { mode: Mode::Record, ..target("db2", "10.0.0.5:23", &[]) };
    store.add_target(&recorded, &context, now).await.unwrap();
    let tunnel = target("db3", "10.0.0.5:23", &[]);
    let refused = conflict(store.add_target(&tunnel, &context, now).await);
    let why = "10.0.0.5:23 is the target db2 already, which is not in tunnel mode: ";
    assert!(refused.starts_with(why), "{refused}");
    store.remove_target(&recorded.name, &context, now).await.unwrap();
    // Two names for one in the same mode are no matter.
    let twin = target("twin", "10.0.0.5", &[]);
    store.add_target(&twin, &context, now).await.unwrap();
    store.remove_target(&twin.name, &context, now).await.unwrap();
    store.add_target(&target("web1", "web1.internal:8443", &[]), &context, now).await.unwrap();
    let targets = store.targets().await.unwrap();
    assert_eq!(targets.len(), 2);
    let labels = |target: &Target| -> BTreeSet<String> {
        target.labels.iter().map(ToString::to_string).collect()
    };
    assert_eq!(labels(&targets[0]), labels(&db1));
    assert_eq!(
        Target { labels: vec![], ..targets[0].clone() },
        Target { labels: vec![], ..db1.clone() }
    );

    // Grants read back as they were written.
    let by_name = user_grant("alice", "db1");
    let by_label = group_grant("dba", GrantObject::Label("env=prod".parse().unwrap()));
    let by_group = group_grant("dba", GrantObject::Target("web1".parse().unwrap()));
    for granted in [&by_name, &by_label, &by_group] {
        store.add_grant(granted, &context, now).await.unwrap();
    }
    let mut written = vec![by_name.clone(), by_label.clone(), by_group.clone()];
    written.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(store.grants().await.unwrap(), written);
    let none = store.add_grant(&user_grant("none", "db1"), &context, now).await;
    assert_eq!(conflict(none), "there is no user none: see 'sallyport user list'");
    let none = store.add_grant(&user_grant("alice", "none"), &context, now).await;
    assert_eq!(conflict(none), "there is no target none: see 'sallyport target list'");
    let object = GrantObject::Target("db1".parse().unwrap());
    let none = store.add_grant(&group_grant("web", object), &context, now).await;
    assert_eq!(conflict(none), said);

    // What the policy is given: of others, nothing.
    let at = |text: &str, port| Destination::parse(text, port).unwrap();
    let access = store.access_to(&alice.id, &at("10.0.0.5", 22)).await.unwrap();
    assert_eq!((access.groups.len(), access.targets.len()), (1, 1));
    let leading = [&by_name, &by_label, &by_group].map(|grant| grant.leads_to(&access.targets[0]));
    assert_eq!(access.grants.len(), leading.iter().filter(|leads| **leads).count());
    assert!(access.grants.iter().all(|grant| grant.leads_to(&access.targets[0])));
    let explained = store.access_explained(&alice.id, &at("10.0.0.5", 22)).await.unwrap();
    assert_eq!((explained.grants.len(), &explained.targets), (3, &access.targets));
    assert_eq!(labels(&access.targets[0]).len(), 2);
    assert_eq!(store.access_to(&alice.id, &at("10.0.0.5", 23)).await.unwrap().targets.len(), 0);
    assert_eq!(store.access_to(&alice.id, &at("db1", 23)).await.unwrap().targets.len(), 1);
    assert_eq!(store.access_of(&alice.id).await.unwrap().targets.len(), 2);
    let access = store.access_of(&bob.id).await.unwrap();
    assert!(access.grants.is_empty() && access.targets.is_empty() && access.groups.is_empty());

    // By the beginning of an id, if it is one's only.
    let none = conflict(store.remove_grant("", &context, now).await);
    assert!(none.starts_with("more than one grant begins with"), "{none}");
    let none = conflict(store.remove_grant("not an id", &context, now).await);
    assert!(none.starts_with("there is no grant not an id"), "{none}");
    let removed = store.remove_grant(by_name.id.as_str(), &context, now).await.unwrap();
    assert_eq!(removed, by_name);

    // A target takes the grants for it alone along, a group those for it.
    store.remove_target(&"web1".parse().unwrap(), &context, now).await.unwrap();
    assert_eq!(store.grants().await.unwrap(), std::slice::from_ref(&by_label));
    let none = store.remove_target(&"web1".parse().unwrap(), &context, now).await;
    assert_eq!(conflict(none), "there is no target web1: see 'sallyport target list'");
    store.remove_group(&dba, &context, now).await.unwrap();
    assert!(store.grants().await.unwrap().is_empty() && store.groups().await.unwrap().is_empty());
    assert_eq!(bastion.kinds("grant-removed").await.len(), 3);
}

async fn a_second_factor_works_once_however_many_try(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, other, now) = (bastion.store(), bastion.other_store().await, bastion.now());
    let alice = bastion.person("alice").await;
    let epoch = account(&bastion, &alice.name).await.epoch;
    let code = recovery::normalize(&alice.recovery_code(0)).unwrap();
    let hash = recovery::hash(&alice.id, &code);
    for claim in [Claim::Code(now.step()), Claim::RecoveryCode(hash)] {
        let tries = (0..10).map(async |n| {
            let store = if n % 2 == 0 { store } else { &other };
            if n % 3 == 0 {
                let attempt = attempt(&alice, epoch, claim.clone());
                let whose = whose(&alice.name);
                store.claim(attempt, &whose, &rules(), &nobody(), now).await.unwrap()
            } else {
                sign_in(store, &alice, epoch, claim.clone(), now).await.1
            }
        });
        let results = join_all(tries).await;
        let taken = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(taken, 1, "{claim:?}: {results:?}");
        let reason = match claim {
            Claim::Code(_) => Refusal::ReplayedCode,
            _ => Refusal::WrongRecoveryCode,
        };
        assert!(results.iter().all(|r| r.is_ok() || *r == Err(reason)), "{results:?}");
    }
    // Nor does an older step work, or a recovery code of somebody else.
    let older = Claim::Code(TimeStep(now.step().0 - 1));
    assert_eq!(sign_in(store, &alice, epoch, older, now).await.1, Err(Refusal::ReplayedCode));
    let bob = bastion.person("bob").await;
    let code = recovery::normalize(&bob.recovery_code(0)).unwrap();
    let hash = recovery::hash(&bob.id, &code);
    let stolen = sign_in(store, &alice, epoch, Claim::RecoveryCode(hash), now).await.1;
    assert_eq!(stolen, Err(Refusal::WrongRecoveryCode));
    assert_eq!(store.user(&alice.name).await.unwrap().recovery_codes_left, 9);
    assert_eq!(store.user(&bob.name).await.unwrap().recovery_codes_left, 10);
    let used = bastion.kinds("recovery-code-used").await;
    assert_eq!((used.len(), used[0]["left"].as_u64()), (1, Some(9)));
}

async fn one_of_many_binds_and_one_of_many_adds(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, other, now) = (bastion.store(), bastion.other_store().await, bastion.now());
    let context = nobody();
    let alice = "alice".parse().unwrap();
    let new = new_user(&alice, &[("SHA256:a", "ssh-ed25519 A")]);
    let stores = [store, &other, store, &other, store, &other];
    let added = join_all(stores.iter().map(|s| s.add_user(&new, &context, now))).await;
    assert_eq!(added.iter().filter(|result| result.is_ok()).count(), 1, "{added:?}");
    let id = added.into_iter().fold(None, |id, result| match result {
        Ok(added) => Some(added),
        Err(Error::Conflict(_)) => id,
        Err(error) => panic!("{error:?}"),
    });
    let id = id.unwrap();
    assert_eq!(bastion.kinds("user-added").await.len(), 2); // With the first administrator.

    let secrets: Vec<totp::Secret> = (0..6).map(|n| totp::Secret::from_bytes(&[n; 20])).collect();
    let bound = join_all(stores.iter().zip(&secrets).map(async |(store, secret)| {
        let new = NewAuthenticator { account: &id, epoch: 1, secret, step: TimeStep(9) };
        store.bind(&new, Vec::new(), &context, now).await.unwrap()
    }))
    .await;
    let winners: Vec<usize> =
        (0..6).filter(|n| matches!(&bound[*n], Ok((2, codes)) if codes.len() == 10)).collect();
    assert_eq!(winners.len(), 1, "{bound:?}");
    assert!(
        bound
            .iter()
            .enumerate()
            .all(|(n, b)| n == winners[0] || matches!(b, Err(Refusal::AlreadyBound)))
    );
    let otp = account(&bastion, &alice).await.otp.unwrap();
    assert_eq!(otp.secret.expose(), secrets[winners[0]].expose());
    assert_eq!(otp.last_step, TimeStep(9));
    assert_eq!(store.user(&alice).await.unwrap().recovery_codes_left, 10);
    assert_eq!(bastion.kinds("authenticator-bound").await.len(), 1);

    // The same for everything else that has a name.
    let group = "dba".parse().unwrap();
    let added = join_all(stores.iter().map(|s| s.add_group(&group, &context, now))).await;
    one_did(added);
    let targets: Vec<Target> = (0..6).map(|_| target("db1", "10.0.0.5", &["a=b"])).collect();
    let added = stores.iter().zip(&targets).map(|(s, t)| s.add_target(t, &context, now));
    one_did(join_all(added).await);
    one_did(join_all(stores.iter().map(|s| s.join_group(&group, &alice, &context, now))).await);
    let keys = stores.iter().map(|s| s.add_key(&alice, "SHA256:b", "k", &context, now));
    one_did(join_all(keys).await);
    // And for what takes it away.
    let granted = user_grant("alice", "db1");
    store.add_grant(&granted, &context, now).await.unwrap();
    let id = granted.id.as_str();
    let gone = stores.iter().map(async |s| s.remove_grant(id, &context, now).await.map(drop));
    one_did(join_all(gone).await);
    one_did(join_all(stores.iter().map(|s| s.leave_group(&group, &alice, &context, now))).await);
    one_did(join_all(stores.iter().map(|s| s.remove_group(&group, &context, now))).await);
    let name = "db1".parse().unwrap();
    one_did(join_all(stores.iter().map(|s| s.remove_target(&name, &context, now))).await);
    one_did(join_all(stores.iter().map(|s| s.set_disabled(&alice, true, &context, now))).await);
    one_did(join_all(stores.iter().map(|s| s.remove_user(&alice, &context, now))).await);
    for kind in [
        "group-added",
        "target-added",
        "group-joined",
        "grant-removed",
        "group-left",
        "group-removed",
        "target-removed",
        "user-disabled",
        "user-removed",
    ] {
        assert_eq!(bastion.kinds(kind).await.len(), 1, "{kind}");
    }

    // Of an address in both modes there is one mode, whichever was first.
    for round in 0..5 {
        let at = format!("10.0.1.{round}");
        let tunnel = target(&format!("tunnel{round}"), &at, &[]);
        let name = format!("record{round}");
        let recorded = Target { mode: Mode::Record, ..target(&name, &at, &[]) };
        let both = stores.iter().zip([&tunnel, &recorded]);
        one_did(join_all(both.map(|(s, t)| s.add_target(t, &context, now))).await);
    }
}

/// One of them succeeded, and the others were told of a conflict.
#[track_caller]
fn one_did(results: Vec<Result<(), Error>>) {
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(Error::Conflict(_)))), "{results:?}");
}

async fn changes_of_the_same_thing_at_once_do_not_break_each_other(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, other, now) = (bastion.store(), bastion.other_store().await, bastion.now());
    let context = nobody();
    store.add_target(&target("db1", "10.0.0.5", &[]), &context, now).await.unwrap();
    let fine = |result: Result<(), Error>| {
        assert!(matches!(result, Ok(()) | Err(Error::Conflict(_))), "{result:?}");
    };
    for n in 0..6 {
        // A user with grants goes while they sign in and fail to, and others change them.
        let alice = bastion.person(&format!("alice{n}")).await;
        let name = alice.name.clone();
        let granted = user_grant(name.as_str(), "db1");
        store.add_grant(&granted, &context, now).await.unwrap();
        let epoch = account(&bastion, &name).await.epoch;
        let failure = || FailureNote {
            account: Some(alice.id.clone()),
            reason: Refusal::WrongCode,
            counts: true,
            code: true,
            drift: Some(60),
        };
        let whose = whose(&name);
        let rules = rules();
        let another = user_grant(name.as_str(), "db1");
        let (removed, signed, failed, set, reset, granted) = tokio::join!(
            store.remove_user(&name, &context, now),
            sign_in(&other, &alice, epoch, Claim::Code(now.step()), now),
            other.fail(failure(), Vec::new(), &whose, &rules, &context, now),
            other.set_password(&name, "hash", false, &context, now),
            store.reset_otp(&name, now, BindingPassword::Kept, &context, now),
            other.add_grant(&another, &context, now),
        );
        removed.unwrap();
        failed.unwrap();
        assert!(signed.1.is_ok() || signed.1 == Err(Refusal::AccountChanged), "{signed:?}");
        fine(set);
        fine(reset);
        fine(granted);
        assert!(store.grants().await.unwrap().is_empty());

        // A group with grants goes while somebody is put into it and granted something by it.
        let group = "dba".parse().unwrap();
        let bob = bastion.person(&format!("bob{n}")).await;
        store.add_group(&group, &context, now).await.unwrap();
        let object = || GrantObject::Target("db1".parse().unwrap());
        store.add_grant(&group_grant("dba", object()), &context, now).await.unwrap();
        let another = group_grant("dba", object());
        let (removed, joined, granted) = tokio::join!(
            store.remove_group(&group, &context, now),
            other.join_group(&group, &bob.name, &context, now),
            other.add_grant(&another, &context, now),
        );
        removed.unwrap();
        fine(joined);
        fine(granted);
        assert!(store.grants().await.unwrap().is_empty());
    }
    verify(&bastion).await;
}

/// A group or target goes while what belongs to it is set anew: neither waits for the other without end.
async fn what_is_set_for_what_goes_away_waits_for_nobody(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, other, now) = (bastion.store(), bastion.other_store().await, bastion.now());
    let context = nobody();
    let (group, db) = ("dba".parse().unwrap(), "db1".parse().unwrap());
    let root = "root".parse().unwrap();
    let rule: SignInRule = "password+otp".parse().unwrap();
    let rule = Some(&rule);
    let second = Some(SecondFactor::TOTP);
    let remember = sallyport::domain::Remember::Off;
    let fine = |result: Result<(), Error>| {
        assert!(matches!(result, Ok(()) | Err(Error::Conflict(_))), "{result:?}");
    };
    for _ in 0..25 {
        store.add_group(&group, &context, now).await.unwrap();
        store.add_target(&target("db1", "10.0.0.5", &[]), &context, now).await.unwrap();
        // What is there already is what two would hold in another order.
        store.set_group_sign_in(&group, rule, &context, now).await.unwrap();
        store.set_group_factor(&group, second, &context, now).await.unwrap();
        store.set_group_remember(&group, remember, &context, now).await.unwrap();
        store.set_target_sign_in(&db, rule, &context, now).await.unwrap();
        store.set_account(&db, &root, (AccountAuth::Ask, None), &context, now).await.unwrap();
        let of_group = tokio::join!(
            other.set_group_sign_in(&group, rule, &context, now),
            other.set_group_factor(&group, second, &context, now),
            other.set_group_remember(&group, remember, &context, now),
            store.remove_group(&group, &context, now),
        );
        let of_target = tokio::join!(
            other.set_target_sign_in(&db, rule, &context, now),
            other.set_account(&db, &root, (AccountAuth::Ask, None), &context, now),
            store.remove_target(&db, &context, now),
        );
        fine(of_group.0);
        fine(of_group.1);
        fine(of_group.2);
        of_group.3.unwrap();
        fine(of_target.0);
        fine(of_target.1);
        of_target.2.unwrap();
    }
}

/// Checks the audit log as `audit verify` does.
async fn verify(bastion: &TestBastion) {
    let (verified, _) = with_verbs(bastion.store(), async |verbs, out| {
        sallyport::admin::verify_store(verbs, Vec::new(), out).await
    })
    .await;
    verified.unwrap();
}

/// Failures of `typed`, which is ours with `account`, from each of these addresses.
async fn fail_from(bastion: &TestBastion, typed: &str, account: Option<&Id>, from: &[String]) {
    for ip in from {
        let whose = Throttled::new(typed, &Source(SocketAddr::new(ip.parse().unwrap(), 1)));
        let (account, reason) = (account.cloned(), Refusal::WrongCode);
        let note = FailureNote { account, reason, counts: true, code: false, drift: None };
        let (rules, now) = (rules(), bastion.now());
        let context = Context { user: Some(typed.to_owned()), ..nobody() };
        bastion.store().fail(note, Vec::new(), &whose, &rules, &context, now).await.unwrap();
    }
}

/// One IPv6 site is 65,536 networks, of which each would have its own guesses.
async fn an_ipv6_site_is_locked_as_a_whole(engine: Engine) {
    let bastion = quiet(engine).await;
    let alice = bastion.person("alice").await;
    let epoch = account(&bastion, &alice.name).await.epoch;
    let from = |n: u32| format!("2001:db8:1:{n:x}::7");
    let locked = async |typed: &str, ip: &str| {
        let whose = Throttled::new(typed, &Source(SocketAddr::new(ip.parse().unwrap(), 1)));
        let rules = rules();
        let found = bastion.store().account(None, &whose, &rules, bastion.now()).await;
        found.unwrap().1.locked_until.is_some()
    };
    // A name that is nobody's is counted like one that is.
    for (typed, id) in [("alice", Some(&alice.id)), ("nobody", None)] {
        fail_from(&bastion, typed, id, &[1, 2, 3, 4].map(from)).await;
        assert!(!locked(typed, &from(1)).await && !locked(typed, &from(9)).await);
        fail_from(&bastion, typed, id, &[from(5)]).await;
        assert!(locked(typed, &from(1)).await && locked(typed, &from(9)).await);
        for elsewhere in ["2001:db8:2::7", "192.0.2.7"] {
            assert!(!locked(typed, elsewhere).await, "{typed} {elsewhere}");
        }
    }
    let told = bastion.kinds("source-locked").await;
    let of_alice: Vec<_> = told.iter().filter(|event| event["user"] == "alice").collect();
    assert_eq!(of_alice.len(), 1, "{told:?}");
    assert_eq!(
        (&of_alice[0]["network"], &of_alice[0]["failures"]),
        (&"2001:db8:1::/48".into(), &5.into())
    );

    // Unlocking lifts it, and so does its time; a sign-in forgets the site's failures as well.
    bastion.store().unlock(&alice.name, &nobody(), bastion.now()).await.unwrap();
    assert!(!locked("alice", &from(9)).await);
    bastion.clock.advance(rules().lock_for);
    assert!(!locked("nobody", &from(9)).await);
    fail_from(&bastion, "alice", Some(&alice.id), &[1, 2, 3, 4].map(from)).await;
    let here = Source(SocketAddr::new(from(8).parse().unwrap(), 1));
    let (session, whose) = (Id::random().unwrap(), Throttled::new("alice", &here));
    let code = Claim::Code(bastion.now().step());
    let attempt = attempt(&alice, epoch, code);
    let sign_in = SignIn { session: &session, source: &here, client: "test" };
    let (rules, now) = (rules(), bastion.now());
    let context = nobody();
    let claimed = bastion.store().sign_in(attempt, &sign_in, &whose, &rules, &context, now);
    claimed.await.unwrap().unwrap();
    fail_from(&bastion, "alice", Some(&alice.id), &[from(5)]).await;
    assert!(!locked("alice", &from(9)).await);
    bastion.clock.advance(rules.lock_for + Duration::from_secs(1));
    assert!(bastion.store().forget_old_failures(bastion.now()).await.unwrap() > 5);
    assert!(bastion.store().user(&alice.name).await.unwrap().locks.is_empty());
}

async fn a_sites_lock_spares_who_signed_in_from_there(engine: Engine) {
    let bastion = quiet(engine).await;
    let alice = bastion.person("alice").await;
    let epoch = account(&bastion, &alice.name).await.epoch;
    let (store, rules) = (bastion.store(), rules());
    let from = |n: u32| format!("2001:db8:1:{n:x}::7");
    let at = |n: u32| Source(SocketAddr::new(from(n).parse().unwrap(), 1));
    let locked = async |n: u32| {
        let whose = Throttled::new("alice", &at(n));
        let found = store.account(Some(&alice.name), &whose, &rules, bastion.now()).await;
        found.unwrap().1.locked_until.is_some()
    };
    let enter = async |n: u32| {
        bastion.clock.advance(Duration::from_secs(30));
        let (session, source) = (Id::random().unwrap(), at(n));
        let sign_in = SignIn { session: &session, source: &source, client: "test" };
        let attempt = attempt(&alice, epoch, Claim::Code(bastion.now().step()));
        let whose = Throttled::new("alice", &source);
        let (context, now) = (nobody(), bastion.now());
        store.sign_in(attempt, &sign_in, &whose, &rules, &context, now).await.unwrap()
    };
    enter(8).await.unwrap();
    fail_from(&bastion, "alice", Some(&alice.id), &[1, 2, 3, 4, 5].map(from)).await;
    assert!(locked(9).await && !locked(8).await);
    assert_eq!(enter(9).await, Err(Refusal::Locked));
    enter(8).await.unwrap();
    // That lifted nothing for the others; and its own failures lock it as they do anybody.
    assert!(locked(9).await);
    fail_from(&bastion, "alice", Some(&alice.id), &[8, 8].map(from)).await;
    assert!(!locked(8).await);
    fail_from(&bastion, "alice", Some(&alice.id), &[from(8)]).await;
    assert!(locked(8).await);
    assert_eq!(enter(8).await, Err(Refusal::Locked));
}

/// Whoever has the password and many sources must not be able to go on guessing codes for ever.
async fn wrong_codes_from_everywhere_leave_known_sources_and_recovery_codes(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, rules) = (bastion.store(), rules());
    let alice = bastion.person("alice").await;
    let epoch = account(&bastion, &alice.name).await.epoch;
    let far = |n: u8| Source(SocketAddr::from(([198, 51, 100, n], 1)));
    let guess = async |from: Source| {
        let (account, reason) = (Some(alice.id.clone()), Refusal::WrongCode);
        let note = FailureNote { account, reason, counts: true, code: true, drift: None };
        let context = Context { user: Some("alice".to_owned()), ..nobody() };
        let whose = Throttled::new("alice", &from);
        store.fail(note, Vec::new(), &whose, &rules, &context, bastion.now()).await.unwrap();
    };
    let enter = async |from: Source, claim: Claim| {
        let session = Id::random().unwrap();
        let new = SignIn { session: &session, source: &from, client: "SSH-2.0-test" };
        let attempt = attempt(&alice, epoch, claim);
        let whose = Throttled::new("alice", &from);
        store.sign_in(attempt, &new, &whose, &rules, &nobody(), bastion.now()).await.unwrap()
    };
    let code = || {
        bastion.clock.advance(Duration::from_secs(30));
        Claim::Code(bastion.now().step())
    };
    let recovery = |n: usize| {
        let code = recovery::normalize(&alice.recovery_code(n)).unwrap();
        Claim::RecoveryCode(recovery::hash(&alice.id, &code))
    };
    let failures =
        async || store.user(&alice.name).await.unwrap().code_failures.map(|c| c.failures);
    let attack = async || {
        for n in 100..104 {
            guess(far(n)).await;
        }
    };

    // Fewer than the limit: a right code is taken from anywhere, which makes its source known. Only from
    // one that was known before does it end the count.
    for n in 1..4 {
        guess(far(n)).await;
    }
    enter(far(50), code()).await.unwrap();
    assert_eq!(failures().await, Some(3));
    enter(far(50), code()).await.unwrap();
    assert_eq!(failures().await, None);

    // At the limit it is told, once.
    attack().await;
    guess(far(105)).await;
    let told = bastion.kinds("code-limit-reached").await;
    assert_eq!(
        (told.len(), &told[0]["failures"], &told[0]["user"]),
        (1, &4.into(), &"alice".into())
    );
    assert!(store.locked(bastion.now()).await.unwrap().contains("alice"));
    // A right code is refused where nobody signed in before, and unused.
    let right = code();
    assert_eq!(enter(far(60), right.clone()).await, Err(Refusal::CodeLimit));
    let whose = Throttled::new("alice", &far(60));
    let again = attempt(&alice, epoch, right.clone());
    let claimed = store.claim(again, &whose, &rules, &nobody(), bastion.now()).await.unwrap();
    assert_eq!(claimed, Err(Refusal::CodeLimit), "nor within a session");
    // The known source is let in by it, and that ends the count.
    enter(far(50), right).await.unwrap();
    assert_eq!(failures().await, None);
    assert!(store.locked(bastion.now()).await.unwrap().is_empty());
    enter(far(60), code()).await.unwrap();

    // A recovery code gets in from anywhere; the next code from there, too, and ends the count.
    attack().await;
    assert_eq!(enter(far(70), code()).await, Err(Refusal::CodeLimit));
    enter(far(70), recovery(0)).await.unwrap();
    assert_eq!(enter(far(71), code()).await, Err(Refusal::CodeLimit));
    enter(far(70), code()).await.unwrap();
    assert_eq!(failures().await, None);

    // So does an administrator's unlock, and in the end a reset.
    attack().await;
    store.unlock(&alice.name, &nobody(), bastion.now()).await.unwrap();
    enter(far(72), code()).await.unwrap();

    // The latest of them are found, as far back as is asked.
    let since = |ago: u64| bastion.now().minus(Duration::from_secs(ago));
    let latest = async |ago, most| {
        let latest = store.latest_known_sources(since(ago), most).await.unwrap();
        latest.into_iter().map(|known| known.source).collect::<Vec<_>>()
    };
    assert_eq!(latest(3600, 9).await.len(), 4);
    assert_eq!(latest(3600, 2).await, ["198.51.100.72/32", "198.51.100.70/32"]);
    assert_eq!(latest(1, 9).await, ["198.51.100.72/32"]);

    // What is over is forgotten.
    let known = async || store.user(&alice.name).await.unwrap().known_sources.len();
    assert_eq!(known().await, 4);
    guess(far(1)).await;
    bastion.clock.advance(Duration::from_secs(30 * 24 * 3600));
    store.forget_old_sources(bastion.now()).await.unwrap();
    assert_eq!((failures().await, known().await), (None, 4));
    bastion.clock.advance(Duration::from_secs(61 * 24 * 3600));
    assert_eq!(store.forget_old_sources(bastion.now()).await.unwrap(), 4);
    assert_eq!(known().await, 0);

    attack().await;
    assert!(bastion.kinds("code-limit-reached").await.len() > 3);
    assert_eq!(failures().await, Some(4));
    let until = bastion.now().plus(Duration::from_secs(60));
    let (kept, context) = (BindingPassword::Kept, nobody());
    store.reset_otp(&alice.name, until, kept, &context, bastion.now()).await.unwrap();
    assert_eq!(failures().await, None);
}

/// What revokes an authenticator must not leave its holder a way in that others do not have.
async fn another_authenticator_makes_sources_unknown(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, rules) = (bastion.store(), rules());
    let (alice, bob) = (bastion.person("alice").await, bastion.person("bob").await);
    let far = |n: u8| Source(SocketAddr::from(([198, 51, 100, n], 1)));
    let enter = async |who: &Person, n: u8| {
        bastion.clock.advance(Duration::from_secs(60));
        let (session, source) = (Id::random().unwrap(), far(n));
        let new = SignIn { session: &session, source: &source, client: "SSH-2.0-test" };
        let epoch = account(&bastion, &who.name).await.epoch;
        let attempt = attempt(who, epoch, Claim::Code(bastion.now().step()));
        let whose = Throttled::new(who.name.as_str(), &source);
        let (context, now) = (nobody(), bastion.now());
        let entered = store.sign_in(attempt, &new, &whose, &rules, &context, now).await;
        entered.unwrap().unwrap();
    };
    let known = async |who: &Person| {
        let known = store.user(&who.name).await.unwrap().known_sources;
        known.into_iter().map(|known| known.source).collect::<Vec<_>>()
    };
    enter(&bob, 1).await;
    for n in 1..4 {
        enter(&alice, n).await;
    }
    let secret = totp::Secret::from_bytes(&[7; 20]);
    let new = async || NewAuthenticator {
        account: &alice.id,
        epoch: account(&bastion, &alice.name).await.epoch,
        secret: &secret,
        step: bastion.now().step(),
    };

    // They keep the source that they bind another from, and one that was unknown stays so.
    let from = |n: u8| Context { source: Some(far(n)), ..nobody() };
    let (context, now) = (from(2), bastion.now());
    store.rebind(&new().await, Vec::new(), &context, now).await.unwrap().unwrap();
    assert_eq!(known(&alice).await, ["198.51.100.2/32"]);
    store.rebind(&new().await, Vec::new(), &from(9), now).await.unwrap().unwrap();
    assert!(known(&alice).await.is_empty());

    // Unbinding takes all of them, and the count, which nobody could end any more.
    enter(&alice, 2).await;
    let guess = FailureNote {
        account: Some(alice.id.clone()),
        reason: Refusal::WrongCode,
        counts: true,
        code: true,
        drift: None,
    };
    let (whose, now) = (Throttled::new("alice", &far(8)), bastion.now());
    store.fail(guess, Vec::new(), &whose, &rules, &nobody(), now).await.unwrap();
    let until = now.plus(Duration::from_secs(60));
    let epoch = account(&bastion, &alice.name).await.epoch;
    let (name, opens) = (&alice.name, (until, "token"));
    let unbound = store.unbind((&alice.id, epoch), name, opens, &from(2), now).await;
    unbound.unwrap().unwrap();
    assert!(known(&alice).await.is_empty());
    assert!(store.user(&alice.name).await.unwrap().code_failures.is_none());

    // So does an administrator's reset.
    store.bind(&new().await, Vec::new(), &nobody(), now).await.unwrap().unwrap();
    enter(&alice, 2).await;
    assert_eq!(known(&alice).await.len(), 1);
    let (kept, context) = (BindingPassword::Kept, from(2));
    store.reset_otp(&alice.name, until, kept, &context, bastion.now()).await.unwrap();
    assert!(known(&alice).await.is_empty());
    // Others are as they were.
    assert_eq!(known(&bob).await, ["198.51.100.1/32"]);
}

/// What an older store's sessions were taken for.
async fn who_never_bound_anything_is_known_from_nowhere(engine: Engine) {
    let mut bastion = quiet(engine).await;
    let alice = bastion.person("alice").await;
    bastion.newcomer("bob").await;
    let add = format!(
        "INSERT INTO known_sources SELECT id, '192.0.2.7/32', {} FROM users;
         DELETE FROM __diesel_schema_migrations WHERE version = '20261124000043'",
        bastion.now().0
    );
    bastion.stop().await;
    bastion.tamper(&add).await;
    let clock = Clock::Test(bastion.clock.clone());
    let (store, _) = setup::init(&bastion.config, &clock).await.unwrap();
    let known = async |name: &UserName| store.user(name).await.unwrap().known_sources.len();
    assert_eq!(known(&alice.name).await, 1);
    assert_eq!(known(&"bob".parse().unwrap()).await, 0);
    assert_eq!(known(&"admin".parse().unwrap()).await, 0);
}

async fn many_failures_from_everywhere_are_told_once_and_lock_nobody(engine: Engine) {
    let bastion = quiet(engine).await;
    let alice = bastion.person("alice").await;
    let far = |n: usize| format!("198.51.100.{n}");
    let began = bastion.now();
    let from: Vec<String> = (1..=20).map(far).collect();
    fail_from(&bastion, "alice", Some(&alice.id), &from[..6]).await;
    assert!(bastion.kinds("account-under-attack").await.is_empty());
    fail_from(&bastion, "alice", Some(&alice.id), &from[6..]).await;
    let told = bastion.kinds("account-under-attack").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["user"], &told[0]["failures"]), (&"alice".into(), &7.into()));
    assert_eq!(told[0]["since"], began.0, "{told:?}");
    assert!(bastion.kinds("source-locked").await.is_empty());
    // One source alone, which is locked soon, is no such attack.
    bastion.clock.advance(rules().lock_for);
    fail_from(&bastion, "alice", Some(&alice.id), &vec![far(1); 20]).await;
    assert_eq!(bastion.kinds("account-under-attack").await.len(), 1);
    // In the next such time it is told again; of names that are nobody's, never.
    fail_from(&bastion, "nobody", None, &from).await;
    fail_from(&bastion, "alice", Some(&alice.id), &from[1..]).await;
    assert_eq!(bastion.kinds("account-under-attack").await.len(), 2);
    // An old count is dropped, and the next failure begins a new one.
    bastion.clock.advance(rules().lock_for + Duration::from_secs(1));
    bastion.store().forget_old_failures(bastion.now()).await.unwrap();
    fail_from(&bastion, "alice", Some(&alice.id), &from[..6]).await;
    assert_eq!(bastion.kinds("account-under-attack").await.len(), 2);
}

async fn failures_add_up_lock_and_are_forgotten(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, context, rules) = (bastion.store(), nobody(), rules());
    let alice = bastion.person("alice").await;
    let epoch = account(&bastion, &alice.name).await.epoch;
    let here = whose(&alice.name);
    let there = Throttled::new("alice", &Source("198.51.100.1:1".parse().unwrap()));
    let fail = async |whose: &Throttled, counts: bool, drift: Option<i64>| {
        let reason = Refusal::WrongCode;
        let note =
            FailureNote { account: Some(alice.id.clone()), reason, counts, code: false, drift };
        store.fail(note, Vec::new(), whose, &rules, &context, bastion.now()).await.unwrap()
    };
    let state = async |whose: &Throttled| {
        store.account(Some(&alice.name), whose, &rules, bastion.now()).await.unwrap().1
    };
    assert_eq!(fail(&here, true, None).await, 1);
    assert_eq!(fail(&here, false, None).await, 1); // One that does not count.
    assert_eq!(fail(&here, true, Some(-90)).await, 2);
    assert_eq!(account(&bastion, &alice.name).await.drift, Some(-90));
    assert_eq!(fail(&there, true, None).await, 1); // Each source by itself.
    assert_eq!(fail(&here, true, None).await, 3);
    let until = bastion.now().plus(rules.lock_for);
    assert_eq!(state(&here).await, Throttle { failures: 3, locked_until: Some(until) });
    assert_eq!(state(&there).await.locked_until, None);
    assert_eq!(store.user(&alice.name).await.unwrap().locks.len(), 2);
    assert_eq!(bastion.kinds("source-locked").await.len(), 1);
    // While it is locked, failures do not put the end off, and a right code is refused and unused.
    assert_eq!(fail(&here, true, None).await, 3);
    assert_eq!(state(&here).await.locked_until, Some(until));
    let code = Claim::Code(bastion.now().step());
    let (_, signed) = sign_in(store, &alice, epoch, code.clone(), bastion.now()).await;
    assert_eq!(signed, Err(Refusal::Locked));
    assert_eq!(store.unlock(&alice.name, &context, bastion.now()).await.unwrap(), 2);
    let (_, signed) = sign_in(store, &alice, epoch, code, bastion.now()).await;
    assert!(signed.is_ok(), "{signed:?}");
    assert_eq!(account(&bastion, &alice.name).await.drift, None); // The clock is right again.

    // Signing in forgets the failures of its source; a lock that ran out wipes them.
    for _ in 0..2 {
        fail(&here, true, None).await;
    }
    bastion.clock.advance(Duration::from_secs(30));
    let code = Claim::Code(bastion.now().step());
    sign_in(store, &alice, epoch, code, bastion.now()).await.1.unwrap();
    assert_eq!(state(&here).await, Throttle::default());
    for _ in 0..3 {
        fail(&here, true, None).await;
    }
    bastion.clock.advance(rules.lock_for);
    assert_eq!(state(&here).await, Throttle::default());
    assert_eq!(fail(&here, true, None).await, 1);
    // Failures of long ago do not count, and are dropped.
    bastion.clock.advance(rules.lock_for);
    assert_eq!(fail(&here, true, None).await, 1);
    bastion.clock.advance(Duration::from_secs(1));
    assert_eq!(store.forget_old_failures(UnixTime(bastion.now().0 - 2000)).await.unwrap(), 0);
    assert_eq!(store.forget_old_failures(bastion.now()).await.unwrap(), 1);
    assert!(store.user(&alice.name).await.unwrap().locks.is_empty());
    // A name that is nobody's is counted like one that is.
    let nobodys = Throttled::new("no\x1bbody", &source());
    for n in 1..=3 {
        let note = FailureNote {
            account: None,
            reason: Refusal::UnknownUser,
            counts: true,
            code: false,
            drift: None,
        };
        let failed = store.fail(note, Vec::new(), &nobodys, &rules, &context, bastion.now()).await;
        assert_eq!(failed.unwrap(), n);
    }
    let (found, throttle) = store.account(None, &nobodys, &rules, bastion.now()).await.unwrap();
    assert!(found.is_none() && throttle.locked_until.is_some());

    // Many failures at once are all counted.
    let at_once = Throttled::new("bob", &source());
    let wide = ThrottleRules { lock_after: 100, ..rules };
    let fails = (0..8).map(async |_| {
        let note = FailureNote {
            account: None,
            reason: Refusal::UnknownUser,
            counts: true,
            code: false,
            drift: None,
        };
        store.fail(note, Vec::new(), &at_once, &wide, &context, bastion.now()).await.unwrap()
    });
    let mut counted = join_all(fails).await;
    counted.sort_unstable();
    assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7, 8]);
}

async fn a_login_stops_when_its_account_changed(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let alice = bastion.person("alice").await;
    let name = &alice.name;
    let begun = account(&bastion, name).await.epoch;
    let code = || Claim::Code(now.step());
    store.set_password(name, "another", true, &context, now).await.unwrap();
    let (session, signed) = sign_in(store, &alice, begun, code(), now).await;
    assert_eq!(signed, Err(Refusal::AccountChanged));
    let chosen = store.choose_password(&alice.id, begun, "mine", vec![], &context, now).await;
    assert_eq!(chosen.unwrap(), Err(Refusal::AccountChanged));
    let (mine, limits) = (whose(name), rules());
    let tried = attempt(&alice, begun, code());
    let claimed = store.claim(tried, &mine, &limits, &context, now).await;
    assert_eq!(claimed.unwrap(), Err(Refusal::AccountChanged));
    // None of it was written down or used up.
    assert!(store.sessions(&SessionFilter::default(), 9).await.unwrap().is_empty());
    assert!(store.sessions_by_prefix(&prefix(&session)).await.unwrap().is_empty());
    assert!(bastion.kinds("step-passed").await.is_empty());
    let then = account(&bastion, name).await;
    assert_eq!((then.password.as_str(), then.one_time), ("another", true));
    let chosen = store.choose_password(&alice.id, then.epoch, "mine", vec![], &context, now).await;
    assert_eq!(chosen.unwrap(), Ok(then.epoch + 1));
    let then = account(&bastion, name).await;
    assert_eq!((then.password.as_str(), then.one_time), ("mine", false));

    // Disabled: the epoch is right and still nothing goes.
    store.set_disabled(name, true, &context, now).await.unwrap();
    let epoch = account(&bastion, name).await.epoch;
    assert_eq!(sign_in(store, &alice, epoch, code(), now).await.1, Err(Refusal::AccountChanged));
    let chosen = store.choose_password(&alice.id, epoch, "x", vec![], &context, now).await;
    assert!(chosen.unwrap().is_err());
    store.set_disabled(name, false, &context, now).await.unwrap();

    // Unbound: an old code is of no use, and neither is what was claimed before.
    store.reset_otp(name, UnixTime(now.0 + 1), BindingPassword::Kept, &context, now).await.unwrap();
    let epoch = account(&bastion, name).await.epoch;
    for claim in [code(), Claim::Nothing] {
        assert_eq!(sign_in(store, &alice, epoch, claim, now).await.1, Err(Refusal::AccountChanged));
    }
    // Binding: only with the right epoch, and while the window is open.
    let secret = totp::Secret::from_bytes(&[7; 20]);
    let bind = async |epoch: i64, now: UnixTime| {
        let new = NewAuthenticator { account: &alice.id, epoch, secret: &secret, step: now.step() };
        store.bind(&new, Vec::new(), &context, now).await.unwrap()
    };
    assert!(matches!(bind(begun, now).await, Err(Refusal::AlreadyBound)));
    assert!(bind(epoch, UnixTime(now.0 + 1)).await.is_err());
    assert_eq!(store.user(name).await.unwrap().recovery_codes_left, 0);
    assert!(bind(epoch, now).await.is_ok());
    // The code that bound it is used up.
    assert_eq!(sign_in(store, &alice, epoch + 1, code(), now).await.1, Err(Refusal::ReplayedCode));
    let (_, signed) = sign_in(store, &alice, epoch + 1, Claim::Nothing, now).await;
    assert!(signed.is_ok(), "{signed:?}");
}

fn prefix(id: &Id) -> IdPrefix {
    id.as_str().parse().unwrap()
}

async fn sessions_and_forwards_are_kept_and_closed(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now) = (bastion.store(), bastion.now());
    let alice = bastion.person("alice").await;
    let bob = bastion.person("bob").await;
    let mut open = Vec::new();
    for (n, person) in [&alice, &bob, &alice, &alice].into_iter().enumerate() {
        let at = UnixTime(now.0 + 30_000 * n as i64);
        let epoch = account(&bastion, &person.name).await.epoch;
        let (session, signed) = sign_in(store, person, epoch, Claim::Code(at.step()), at).await;
        signed.unwrap();
        open.push(session);
    }
    let list = async |live: bool, user: Option<&str>, limit: i64| -> Vec<String> {
        let filter = SessionFilter { live, user: user.map(str::to_owned), account: None };
        let rows = store.sessions(&filter, limit).await.unwrap();
        rows.into_iter().map(|row| row.id).collect()
    };
    let ids: Vec<String> = open.iter().map(ToString::to_string).collect();
    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(list(false, None, 99).await, newest_first);
    assert_eq!(list(false, None, 2).await, newest_first[..2]);
    assert_eq!(list(true, Some("bob"), 99).await, [ids[1].clone()]);
    assert_eq!(store.sessions_by_prefix(&prefix(&open[0])).await.unwrap()[0].user, "alice");

    // Forwards.
    let within = |session: &Id| Context { session: Some(session.clone()), ..nobody() };
    let (first, second) = (Id::random().unwrap(), Id::random().unwrap());
    let destination = Destination::parse("db1", 22).unwrap();
    let (name, rule) = ("db1".parse().unwrap(), Id::random().unwrap());
    for (forward, at) in [(&first, 1), (&second, 2)] {
        let context = within(&open[0]);
        let at = UnixTime(at);
        store.open_forward(forward, (&destination, &name, &rule), &context, at).await.unwrap();
    }
    // One that belongs to no session is not opened.
    let lost = Id::random().unwrap();
    let none = store.open_forward(&lost, (&destination, &name, &rule), &nobody(), now).await;
    assert!(none.is_err());
    let event = Event::ForwardClosed {
        forward: first.clone(),
        destination: Some(destination.clone()),
        target: Some(name.clone()),
        address: None,
        up: 5,
        down: 6,
        reason: "done".into(),
    };
    let ended = (Some("127.0.0.1:22".parse().unwrap()), "done");
    store.close_forward(&first, (5, u64::MAX), ended, event, &within(&open[0]), now).await.unwrap();
    let forwards = store.forwards_of(ids[0].as_str()).await.unwrap();
    assert_eq!(forwards.len(), 2);
    assert_eq!((forwards[0].bytes_up, forwards[0].bytes_down), (5, i64::MAX));
    assert_eq!(forwards[0].address.as_deref(), Some("127.0.0.1:22"));
    assert_eq!((forwards[1].closed_at, forwards[1].end_reason.as_deref()), (None, None));
    assert!(store.forwards_of(ids[1].as_str()).await.unwrap().is_empty());

    // A session ends once; it takes its forwards along.
    let close = async |reason, sums| {
        store.close_session(&open[1], reason, sums, &within(&open[1]), now).await.unwrap();
    };
    close(EndReason::ClientClosed, (1, 2)).await;
    close(EndReason::Killed, (3, 4)).await;
    let row = &store.sessions_by_prefix(&prefix(&open[1])).await.unwrap()[0];
    assert_eq!((row.bytes_up, row.end_reason.as_deref()), (1, Some("client-closed")));
    assert_eq!(bastion.kinds("session-ended").await.len(), 1);
    // One that ended cannot be killed, and neither can one that never was.
    assert!(!store.request_kill(&open[1], &nobody(), now).await.unwrap());
    assert!(!store.request_kill(&lost, &nobody(), now).await.unwrap());
    assert!(bastion.kinds("kill-requested").await.is_empty());
    assert!(store.request_kill(&open[2], &nobody(), now).await.unwrap());
    assert_eq!(store.live().await.unwrap().killed, [open[2].clone()]);

    // After a crash this node closes its own, not another's.
    bastion.tamper(&format!("UPDATE sessions SET node = 'other' WHERE id = '{}'", open[3])).await;
    assert_eq!(store.live().await.unwrap().epochs.len(), 2);
    assert_eq!(store.close_interrupted(now).await.unwrap(), 2);
    assert_eq!(store.close_interrupted(now).await.unwrap(), 0);
    assert_eq!(list(true, None, 99).await, [ids[3].clone()]);
    // Unless that one is dead; all are told, should it live after all.
    let revision = store.revision().await.unwrap();
    assert_eq!(store.close_lost("other", now).await.unwrap(), 1);
    assert!(store.revision().await.unwrap() > revision);
    assert!(list(true, None, 99).await.is_empty());
    // A node says that it lives, and hears how often others did.
    assert!(store.beat().await.unwrap().is_empty());
    bastion.tamper("INSERT INTO nodes (node, beats) VALUES ('other', 7)").await;
    for _ in 0..2 {
        assert_eq!(store.beat().await.unwrap(), [("other".to_owned(), 7)]);
    }
    store.close_lost("other", now).await.unwrap();
    assert!(store.beat().await.unwrap().is_empty());
    let ended = bastion.kinds("session-ended").await;
    let of = |id: &Id| {
        let found = ended.iter().find(|event| event["session"] == id.as_str());
        found.unwrap_or_else(|| panic!("{ended:?}")).clone()
    };
    // A forward that was open ended before its session, and one that had closed not again.
    let closed = bastion.kinds("forward-closed").await;
    let closed: Vec<_> = closed.iter().filter(|event| event["reason"] == "interrupted").collect();
    assert_eq!(closed.len(), 1, "{closed:?}");
    let fields = ["forward", "target", "session", "user"].map(|key| &closed[0][key]);
    assert_eq!(fields, [second.as_str(), "db1", open[0].as_str(), "alice"]);
    assert_eq!(closed[0]["destination"], serde_json::json!({ "host": "db1", "port": 22 }));
    assert!(closed[0]["seq"].as_i64() < of(&open[0])["seq"].as_i64());
    // What its forwards had carried, as far as it was written down.
    let first = of(&open[0]);
    assert_eq!((first["up"].as_u64(), first["user"].as_str()), (Some(5), Some("alice")));
    assert_eq!(of(&open[2])["reason"], "interrupted");
    let forwards = store.forwards_of(ids[0].as_str()).await.unwrap();
    assert_eq!(forwards[0].end_reason.as_deref(), Some("done"));
    assert_eq!(forwards[1].end_reason.as_deref(), Some("interrupted"));
}

async fn what_is_carried_is_written_down_while_it_is_open(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now) = (bastion.store(), bastion.now());
    let alice = bastion.person("alice").await;
    let mut sessions = Vec::new();
    for n in 0..2 {
        let at = UnixTime(now.0 + 30_000 * n);
        let epoch = account(&bastion, &alice.name).await.epoch;
        let (session, signed) = sign_in(store, &alice, epoch, Claim::Code(at.step()), at).await;
        signed.unwrap();
        sessions.push(session);
    }
    let within = |session: &Id| Context { session: Some(session.clone()), ..nobody() };
    let context = within(&sessions[0]);
    let (forward, recording) = (Id::random().unwrap(), Id::random().unwrap());
    let destination = Destination::parse("db1", 22).unwrap();
    let (name, rule) = ("db1".parse().unwrap(), Id::random().unwrap());
    store.open_forward(&forward, (&destination, &name, &rule), &context, now).await.unwrap();
    let new = NewRecording {
        id: &recording,
        target: &name,
        account: &"root".parse().unwrap(),
        kind: "shell",
        command: None,
        path: "x.cast",
        grants: &[],
    };
    store.start_recording(&new, &context, now).await.unwrap();
    let bytes = async || {
        let of = async |id: &Id| {
            let row = store.sessions_by_prefix(&prefix(id)).await.unwrap().remove(0);
            (row.bytes_up, row.bytes_down)
        };
        let forwards = store.forwards_of(sessions[0].as_str()).await.unwrap();
        let recordings = store.recordings_of(sessions[0].as_str()).await.unwrap();
        let forward = (forwards[0].bytes_up, forwards[0].bytes_down);
        let recording = (recordings[0].bytes_up, recordings[0].bytes_down);
        [of(&sessions[0]).await, of(&sessions[1]).await, forward, recording]
    };
    let carried = |n: u64| {
        let open = vec![
            (Carrier::Forward(forward.clone()), (n, 2 * n)),
            (Carrier::Recording(recording.clone()), (3 * n, 4 * n)),
        ];
        let first = Carried { session: sessions[0].clone(), bytes: (5 * n, 6 * n), open };
        let bytes = (n, u64::MAX);
        let second = Carried { session: sessions[1].clone(), bytes, open: Vec::new() };
        [first, second]
    };
    let events = bastion.events().await.len();
    store.write_carried(&[]).await.unwrap();
    store.write_carried(&carried(10)).await.unwrap();
    let first = [(50, 60), (10, i64::MAX), (10, 20), (30, 40)];
    assert_eq!(bytes().await, first);
    // It is no event: the end of each is one.
    assert_eq!(bastion.events().await.len(), events);

    // All of it or nothing.
    bastion.tamper("ALTER TABLE recordings RENAME TO gone").await;
    store.write_carried(&carried(20)).await.unwrap_err();
    bastion.tamper("ALTER TABLE gone RENAME TO recordings").await;
    assert_eq!(bytes().await, first);

    // What has ended stays as it ended.
    let event = Event::ForwardClosed {
        forward: forward.clone(),
        destination: None,
        target: None,
        address: None,
        up: 5,
        down: 6,
        reason: "done".into(),
    };
    store.close_forward(&forward, (5, 6), (None, "done"), event, &context, now).await.unwrap();
    let end = RecordingEnd { outcome: "done", bytes: (7, 8), file: None };
    store.end_recording(&recording, &end, &context, now).await.unwrap();
    store.write_carried(&carried(20)).await.unwrap();
    assert_eq!(bytes().await, [(100, 120), (20, i64::MAX), (5, 6), (7, 8)]);

    // A crash takes what was known last.
    assert_eq!(store.close_interrupted(now).await.unwrap(), 2);
    store.write_carried(&carried(30)).await.unwrap();
    assert_eq!(bytes().await, [(100, 120), (20, i64::MAX), (5, 6), (7, 8)]);
    let ended = bastion.kinds("session-ended").await;
    let first = ended.iter().find(|event| event["session"] == sessions[0].as_str()).unwrap();
    assert_eq!((first["up"].as_u64(), first["down"].as_u64()), (Some(100), Some(120)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_opened_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let closed = crate::support::free_port();
    for (url, said) in [
        ("mysql://x", "use \"sqlite:PATH\" or \"postgres://USER@HOST/DATABASE\""),
        ("sqlite:", "needs a path after it"),
        ("postgres://u@127.0.0.1:notaport/d", "failed to read the store's URL"),
        (&format!("postgres://u@127.0.0.1:{closed}/d"), "failed to reach the PostgreSQL server"),
        ("sqlite:/nonexistent/folder/file.db", "failed to open the store"),
    ] {
        let error = open(dir.path(), url, "secret").await.unwrap_err().to_string();
        assert!(error.contains(said) && error.lines().count() == 1, "{url}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    // A file that is no database is not taken for an empty one.
    std::fs::write(dir.path().join("file.db"), "nonsense ".repeat(1000)).unwrap();
    let url = format!("sqlite:{}", dir.path().join("file.db").display());
    let error = open(dir.path(), &url, "secret").await.unwrap_err().to_string();
    assert!(error.contains("not a database"), "{error}");

    let postgres = crate::support::postgres::Postgres::start().await;
    let error = open(dir.path(), &postgres.url(), "secret").await.unwrap_err().to_string();
    assert!(
        error.contains("password authentication failed") && !error.contains("secret"),
        "{error}"
    );
    let right = crate::support::postgres::PASSWORD;
    // Nodes that start together bring the schema up to date once.
    let nodes: Vec<_> = (0..4)
        .map(|_| {
            let (dir, url) = (dir.path().to_owned(), postgres.url());
            let opening = async move { open(&dir, &url, right).await };
            #[allow(clippy::disallowed_methods)]
            // Opening blocks its task: each has one of its own.
            tokio::spawn(opening)
        })
        .collect();
    for opened in join_all(nodes).await {
        assert!(!opened.unwrap().unwrap().has_users().await.unwrap());
    }
}

async fn open(dir: &std::path::Path, url: &str, password: &str) -> Result<Store, Error> {
    use sallyport::keys::{AuditKey, load_or_create};
    let keyring = sallyport::store::seal::Keyring::load_or_create(&dir.join("sealing")).unwrap();
    let settings = sallyport::store::Settings {
        url: url.to_owned(),
        password: Some(password.into()),
        tls_ca_file: None,
        connections: 2,
        node: "test".into(),
    };
    let key = AuditKey::new(load_or_create(&dir.join("audit"), "audit").unwrap());
    Store::open(&settings, keyring, key, Opening::Prepare).await
}

/// Polls `future` to its end, or drops it after `polls` times.
async fn drop_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = Box::pin(future);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn what_is_dropped_in_the_middle_changed_all_or_nothing(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now, context) = (bastion.store(), bastion.now(), nobody());
    let mut dropped = 0;
    for polls in 1..=20 {
        let name = format!("db{polls}");
        let new = target(&name, "10.0.0.5", &["env=prod", "tier=1"]);
        let revision = store.revision().await.unwrap();
        let outcome = drop_after(polls, store.add_target(&new, &context, now)).await;
        // A commit may be under way yet: what is written now comes behind it.
        store.record(now, &context, Event::ClockDrift { seconds: 0 }).await.unwrap();
        let there = store.targets().await.unwrap().iter().any(|target| target.name == new.name);
        let written = bastion.kinds("target-added").await;
        let written = written.iter().any(|event| event["target"] == name.as_str());
        let moved = store.revision().await.unwrap() > revision;
        assert_eq!((there, there), (written, moved), "dropped after {polls} polls");
        match outcome {
            Some(result) => assert!(result.is_ok() && there, "{result:?}"),
            None => dropped += 1,
        }
    }
    assert!(dropped > 0, "it never waited");
    // An error in the middle leaves nothing behind, either.
    let before = store.audit_head().await.unwrap();
    let alice = "alice".parse().unwrap();
    let twice = new_user(&alice, &[("SHA256:a", "k"), ("SHA256:a", "k")]);
    conflict(store.add_user(&twice, &context, now).await);
    assert_eq!(store.audit_head().await.unwrap(), before);
    conflict(store.user(&alice).await);
    verify(&bastion).await;
}

async fn sealed_secrets_open_only_in_their_row(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now) = (bastion.store(), bastion.now());
    let alice = bastion.person("alice").await;
    let bob = bastion.person("bob").await;
    let secret = async |person: &Person| {
        store.account(Some(&person.name), &whose(&person.name), &rules(), now).await
    };
    let swap = "CREATE TEMP TABLE swapped AS SELECT name, otp_secret FROM users;
        UPDATE users SET otp_secret = (SELECT s.otp_secret FROM swapped s
            WHERE s.name = CASE users.name WHEN 'alice' THEN 'bob' ELSE 'alice' END)
        WHERE name IN ('alice', 'bob');";
    bastion.tamper(swap).await;
    for person in [&alice, &bob] {
        let error = secret(person).await.unwrap_err().to_string();
        assert!(error.contains("changed or belongs to another row (users.otp_secret)"), "{error}");
    }
    bastion.tamper(swap).await; // Back again.
    for person in [&alice, &bob] {
        let opened = secret(person).await.unwrap().0.unwrap().otp.unwrap();
        assert_eq!(opened.secret.expose(), person.secret.expose());
    }
    // Neither is a row with the secret of another taken for a login by the bastion.
    bastion.tamper("UPDATE users SET otp_secret = 's1.plain' WHERE name = 'alice'").await;
    assert!(secret(&alice).await.is_err());
    let key = store.keyring().add_key().unwrap();
    assert!(store.rotate(&key, &nobody(), now).await.is_err());
}

async fn rotation_under_logins_loses_no_secret(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now) = (bastion.store(), bastion.now());
    let mut people = Vec::new();
    for n in 0..4 {
        people.push(bastion.person(&format!("person{n}")).await);
    }
    let old = store.keyring().first();
    // `key rotate` is another process: this one learns of the new key by itself.
    let rotating = bastion.other_store().await;
    let newcomers: Vec<UserName> = (0..6).map(|n| format!("new{n}").parse().unwrap()).collect();
    let fresh = totp::Secret::from_bytes(&[9; 20]);
    let logins = join_all(people.iter().map(async |person| {
        for step in 0..5 {
            let account = account(&bastion, &person.name).await;
            assert_eq!(account.otp.unwrap().secret.expose(), person.secret.expose());
            let claim = Claim::Code(TimeStep(now.step().0 + step));
            sign_in(store, person, account.epoch, claim, now).await.1.unwrap();
        }
    }));
    let bindings = async {
        for name in &newcomers {
            let id = store.add_user(&new_user(name, &[]), &nobody(), now).await.unwrap();
            let step = now.step();
            let new = NewAuthenticator { account: &id, epoch: 1, secret: &fresh, step };
            let bound = store.bind(&new, Vec::new(), &nobody(), now).await.unwrap();
            assert!(bound.is_ok());
        }
    };
    let rotations = async {
        let mut key = String::new();
        for _ in 0..3 {
            key = rotating.keyring().add_key().unwrap();
            rotating.rotate(&key, &nobody(), now).await.unwrap();
        }
        key
    };
    let (_, (), key) = tokio::join!(logins, bindings, rotations);
    // Nothing slipped through: whatever was bound meanwhile is under the newest.
    let keys = store.sealing_keys().await.unwrap();
    assert_eq!(
        keys.iter().find(|of| of.secrets > 0).map(|of| (&of.id, of.secrets)),
        Some((&key, 10))
    );
    assert_eq!(rotating.rotate(&key, &nobody(), now).await.unwrap(), 0);
    assert_ne!(key, old);
    bastion.event("key-rotated", &[("key", &key)]).await;

    // With the newest key alone every secret opens, also one that is bound from now on.
    let late: UserName = "late".parse().unwrap();
    let id = store.add_user(&new_user(&late, &[]), &nobody(), now).await.unwrap();
    let new = NewAuthenticator { account: &id, epoch: 1, secret: &fresh, step: now.step() };
    store.bind(&new, Vec::new(), &nobody(), now).await.unwrap().unwrap();
    let file = bastion.path("data/sealing_key");
    let all = std::fs::read_to_string(&file).unwrap();
    let newest = all.lines().last().unwrap();
    sallyport::keys::replace_secret(&file, format!("{newest}\n").as_bytes()).unwrap();
    let restarted = bastion.other_store().await;
    let names = people.iter().map(|person| &person.name).chain(&newcomers).chain([&late]);
    for name in names {
        let found = restarted.account(Some(name), &whose(name), &rules(), now).await;
        let otp = found.unwrap_or_else(|error| panic!("{name}: {error}")).0.unwrap().otp.unwrap();
        let person = people.iter().find(|person| person.name == *name);
        let expected = person.map_or(&fresh, |person| &person.secret);
        assert_eq!(otp.secret.expose(), expected.expose(), "{name}");
    }
    // Without it the loss is told by the key's name.
    let others = all.replace(newest, "");
    sallyport::keys::replace_secret(&file, others.as_bytes()).unwrap();
    let said = sallyport::setup::open(&bastion.config).await.unwrap_err().to_string();
    assert!(said.contains(&format!("but the store belongs to {key}")), "{said}");
}

async fn two_rotations_at_once_leave_no_secret_behind(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, other, now) = (bastion.store(), bastion.other_store().await, bastion.now());
    for n in 0..6 {
        bastion.person(&format!("person{n}")).await;
    }
    for _ in 0..6 {
        let (one, two) = (store.keyring().add_key().unwrap(), store.keyring().add_key().unwrap());
        let context = nobody();
        let rotated =
            tokio::join!(store.rotate(&one, &context, now), other.rotate(&two, &context, now));
        // The later one seals everything; the other is told, unless it had ended.
        let results = [rotated.0, rotated.1];
        assert!(results.iter().any(Result::is_ok), "{results:?}");
        for result in results {
            if let Err(error) = result {
                let said = error.to_string();
                assert!(said.contains("another rotation began meanwhile"), "{said}");
            }
        }
        let keys = store.sealing_keys().await.unwrap();
        let held: Vec<_> = keys.iter().filter(|of| of.secrets > 0 || of.seals).collect();
        assert!(held.len() == 1 && held[0].secrets == 6, "{keys:?}");
    }
}

async fn no_key_seals_that_a_node_does_not_hold(engine: Engine) {
    let bastion = quiet(engine).await;
    let (store, now) = (bastion.store(), bastion.now());
    let alice = bastion.person("alice").await;
    let (file, copy) = (bastion.path("data/sealing_key"), bastion.path("data/copy"));
    let copy_over = || std::fs::copy(&file, &copy).unwrap();
    copy_over();
    let mut config = bastion.config.clone();
    (config.node, config.keys.sealing_key) = ("b".to_owned(), copy.clone());
    let other = sallyport::setup::open(&config).await.unwrap();
    other.beat().await.unwrap();

    let key = store.keyring().add_key().unwrap();
    let said = format!("b does not hold the key {key}: copy the sealing key file to it");
    assert!(conflict(store.rotate(&key, &nobody(), now).await).starts_with(&said));
    copy_over();
    assert!(conflict(store.rotate(&key, &nobody(), now).await).starts_with(&said));
    let seals = async || {
        let keys = store.sealing_keys().await.unwrap();
        keys.into_iter().find(|of| of.seals).map(|of| (of.id, of.secrets)).unwrap()
    };
    assert_ne!(seals().await.0, key);
    other.beat().await.unwrap();
    assert_eq!(store.rotate(&key, &nobody(), now).await.unwrap(), 1);
    assert_eq!(seals().await, (key.clone(), 1));

    // Both read what is there; what the other writes is under the new key, too.
    for store in [store, &other] {
        let found = store.account(Some(&alice.name), &whose(&alice.name), &rules(), now).await;
        let otp = found.unwrap().0.unwrap().otp.unwrap();
        assert_eq!(otp.secret.expose(), alice.secret.expose());
    }
    let late: UserName = "late".parse().unwrap();
    let id = store.add_user(&new_user(&late, &[]), &nobody(), now).await.unwrap();
    let fresh = totp::Secret::from_bytes(&[9; 20]);
    let new = NewAuthenticator { account: &id, epoch: 1, secret: &fresh, step: now.step() };
    other.bind(&new, Vec::new(), &nobody(), now).await.unwrap().unwrap();
    assert_eq!(seals().await, (key, 2));

    let said = "there is no key nokey in ";
    assert!(conflict(store.rotate("nokey", &nobody(), now).await).starts_with(said));
    if engine == Engine::Postgres {
        with_verbs(store, async |verbs, out| {
            let rotate = sallyport::cli::KeyCommand::Rotate { to: None };
            let error = admin::sealing(verbs, rotate, out).await.unwrap_err().to_string();
            assert!(error.starts_with("other nodes may share this store"), "{error}");
        })
        .await;
        assert_eq!(store.sealing_keys().await.unwrap().len(), 2);
    }
}

async fn events_are_written_in_groups_all_or_none(engine: Engine) {
    let bastion = quiet(engine).await;
    let store = bastion.store();
    let before = store.audit_head().await.unwrap().seq;
    let context = Context { user: Some("alice".to_owned()), ..nobody() };
    let group = |from: i64| {
        let event = |n| Note { at: UnixTime(100 - n), event: Event::ClockDrift { seconds: n } };
        (from..from + 5).map(event).collect::<Vec<_>>()
    };
    let verify = async || {
        let verified = with_verbs(store, async |verbs, out| {
            admin::verify_store(verbs, Vec::new(), out).await.unwrap();
        });
        verified.await
    };
    store.record_all(&context, Vec::new()).await.unwrap();
    store.record_all(&context, group(0)).await.unwrap();
    store.record_all(&context, group(5)).await.unwrap();
    assert_eq!(store.audit_head().await.unwrap().seq, before + 10);
    // In their order, whatever the clock says.
    let drifts = bastion.kinds("clock-drift").await;
    for (n, event) in (0..).zip(&drifts) {
        let facts = [&event["seconds"], &event["seq"], &event["at"]].map(|fact| fact.as_i64());
        assert_eq!(facts, [Some(n), Some(before + 1 + n), Some(100 - n)], "{event}");
        assert_eq!(event["user"], "alice");
    }
    verify().await;

    bastion.tamper("ALTER TABLE audit_events RENAME TO gone").await;
    store.record_all(&context, group(10)).await.unwrap_err();
    bastion.tamper("ALTER TABLE gone RENAME TO audit_events").await;
    assert_eq!(store.audit_head().await.unwrap().seq, before + 10);
    store.record_all(&context, group(10)).await.unwrap();
    assert_eq!(store.audit_head().await.unwrap().seq, before + 15);
    verify().await;
}

async fn events_are_found_by_what_they_are_about(engine: Engine) {
    let bastion = quiet(engine).await;
    let store = bastion.store();
    let head = store.audit_head().await.unwrap();
    let session = Id::random().unwrap();
    let about = |user: &str, session: Option<&Id>| Context {
        user: Some(user.to_owned()),
        session: session.cloned(),
        ..nobody()
    };
    let event = |reason| Event::SignInRefused { reason };
    for (at, context, event) in [
        (1, about("alice", None), event(Refusal::WrongCode)),
        (2, about("bob", Some(&session)), event(Refusal::Locked)),
        (3, about("alice", Some(&session)), Event::ClockDrift { seconds: -30 }),
    ] {
        store.record(UnixTime(at), &context, event).await.unwrap();
    }
    let find = async |filter: EventFilter| -> Vec<i64> {
        let rows = store.events(&filter, 100).await.unwrap();
        rows.into_iter().map(|row| row.seq - head.seq).collect()
    };
    let filter = EventFilter::default;
    let kind = Some("sign-in-refused".to_owned());
    assert_eq!(find(EventFilter { kind, ..filter() }).await, [2, 1]);
    assert_eq!(find(EventFilter { user: Some("alice".into()), ..filter() }).await, [3, 1]);
    let of = Some(session.as_str()[..6].parse::<IdPrefix>().unwrap());
    assert_eq!(find(EventFilter { session: of.clone(), ..filter() }).await, [3, 2]);
    let until = Some(UnixTime(3));
    assert_eq!(find(EventFilter { until, since: Some(UnixTime(2)), ..filter() }).await, [2]);
    let user = Some("alice".to_owned());
    assert_eq!(find(EventFilter { user, session: of, ..filter() }).await, [3]);
    assert_eq!(store.events(&filter(), 2).await.unwrap().len(), 2);

    // Pages, oldest first, end where the log does.
    let page = store.events_after(head.seq, 2).await.unwrap();
    assert_eq!(page.iter().map(|row| row.seq - head.seq).collect::<Vec<_>>(), [1, 2]);
    let end = store.audit_head().await.unwrap();
    assert_eq!(end.seq, head.seq + 3);
    assert_eq!(store.events_after(end.seq - 1, 9).await.unwrap()[0].hash, end.hash);
    assert!(store.events_after(end.seq, 9).await.unwrap().is_empty());
    // Writers of all nodes stand in a line: no number is left out or given twice.
    let other = bastion.other_store().await;
    let writes = (0..20).map(async |n| {
        let store = if n % 2 == 0 { store } else { &other };
        store.record(UnixTime(9), &nobody(), event(Refusal::Busy)).await.unwrap();
    });
    join_all(writes).await;
    assert_eq!(store.audit_head().await.unwrap().seq, end.seq + 20);
    assert_eq!(store.node(), "test");
    verify(&bastion).await;
}

async fn a_session_opens_only_by_the_rule_that_holds_then(engine: Engine) {
    let bastion = TestBastion::start(engine).await;
    let (alice, now) = (bastion.person("alice").await, bastion.now());
    let store = bastion.store();
    let by_key = || (Claim::NoCode, Factors::KEY);
    let with_code = |step| (Claim::Code(TimeStep(step)), Factors::PASSWORD.with(Factors::OTP));
    assert_eq!(open_with(store, &alice, by_key(), now).await, Err(Refusal::SignInRule));
    let near: SignInRule = "key from 127.0.0.0/8 192.0.2.0/24".parse().unwrap();
    store.set_user_sign_in(&alice.name, Some(&near), &nobody(), now).await.unwrap();
    open_with(store, &alice, by_key(), now).await.unwrap();
    // A login that began under another rule; its code is not used up.
    assert_eq!(open_with(store, &alice, with_code(7), now).await, Err(Refusal::SignInRule));
    store.set_user_sign_in(&alice.name, None, &nobody(), now).await.unwrap();
    assert_eq!(open_with(store, &alice, by_key(), now).await, Err(Refusal::SignInRule));
    open_with(store, &alice, with_code(7), now).await.unwrap();
    // Nobody has given a code who claims none.
    let pretended = (Claim::NoCode, Factors::KEY.with(Factors::OTP));
    let opened = open_with(store, &alice, pretended, now).await;
    assert_eq!(opened, Err(Refusal::AccountChanged));
    assert_eq!(bastion.kinds("signed-in").await.len(), 2);

    // What is set for groups, and goes with them.
    let (group, context) = ("dba".parse().unwrap(), nobody());
    store.add_group(&group, &context, now).await.unwrap();
    store.join_group(&group, &alice.name, &context, now).await.unwrap();
    let key: SignInRule = "key+otp".parse().unwrap();
    store.set_group_sign_in(&group, Some(&key), &context, now).await.unwrap();
    assert_eq!(store.groups().await.unwrap()[0].sign_in.as_deref(), Some("key+otp"));
    let policy = || async { store.user(&alice.name).await.unwrap().sign_in.to_string() };
    assert_eq!(policy().await, "key+otp (the rule of group dba)");
    assert_eq!(open_with(store, &alice, with_code(8), now).await, Err(Refusal::SignInRule));
    store.remove_group(&group, &context, now).await.unwrap();
    assert!(policy().await.ends_with("(the default)"));
    open_with(store, &alice, with_code(8), now).await.unwrap();
    for (kind, count) in [("user-sign-in-set", 2), ("group-sign-in-set", 1)] {
        assert_eq!(bastion.kinds(kind).await.len(), count, "{kind}");
    }
    let nobody_there = store.set_user_sign_in(&"eve".parse().unwrap(), None, &context, now).await;
    assert!(conflict(nobody_there).contains("no user eve"));
}
