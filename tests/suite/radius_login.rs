//! Signing in by RADIUS with the real `ssh` and FreeRADIUS: each mode, and what is refused.

use sallyport::audit::Context;
use sallyport::domain::{RadiusMode, SecondFactor, Verifier};

use crate::support::bastion::{Engine, PASSWORD, Person, TestBastion};
use crate::support::freeradius::{FRED, FreeRadius, GINA, configured, fresh_code};
use crate::support::on_both_engines;
use crate::support::ssh::{Client, Run};

on_both_engines!(
    the_code_alone_goes_to_the_server_and_works_once,
    a_group_says_how_its_members_sign_in,
);

const ONCE: [&str; 5] = [
    "-o",
    "NumberOfPasswordPrompts=1",
    "-o",
    "PreferredAuthentications=keyboard-interactive",
    "bastion",
];

/// Adds somebody who signs in by RADIUS.
pub async fn member(bastion: &TestBastion, name: &str, mode: Option<RadiusMode>) {
    bastion.person(name).await;
    let second = Some(SecondFactor { factor: Verifier::Radius, mode });
    set(bastion, name, second).await;
}

async fn set(bastion: &TestBastion, name: &str, second: Option<SecondFactor>) {
    let (name, context) = (name.parse().unwrap(), Context::default());
    bastion.store().set_user_factor(&name, second, &context, bastion.now()).await.unwrap();
}

/// From now on servers check the codes of a group that somebody is in; their sessions go on.
pub async fn by_group(bastion: &TestBastion, person: &Person, mode: Option<RadiusMode>) {
    let (store, context, now) = (bastion.store(), Context::default(), bastion.now());
    let group = "phones".parse().unwrap();
    if store.groups().await.unwrap().is_empty() {
        store.add_group(&group, &context, now).await.unwrap();
        store.join_group(&group, &person.name, &context, now).await.unwrap();
    }
    let second = SecondFactor { factor: Verifier::Radius, mode };
    store.set_group_factor(&group, Some(second), &context, now).await.unwrap();
}

/// The factor that the list of users shows.
async fn factor_listed(bastion: &TestBastion, name: &str) -> String {
    let users = bastion.store().users().await.unwrap();
    users.into_iter().find(|user| user.name == name).unwrap().factor
}

/// Signs in with these answers; what came of it, and what was asked.
pub async fn sign_in(bastion: &TestBastion, name: &str, answers: &[&str]) -> (Run, Vec<String>) {
    let client = Client::new(bastion, name);
    let ran = client.answers(answers).ssh(&ONCE).await;
    let by = format!("({name}@127.0.0.1) ");
    let asked = client.asked();
    (ran, asked.iter().map(|q| q.strip_prefix(&by).unwrap_or(q).to_owned()).collect())
}

pub fn radius(mode: &str, more: &str, servers: &[String]) -> String {
    format!(
        "[radius]\nmode = \"{mode}\"\nnas_identifier = \"fort\"\nrefusal_wait = \"0s\"\n{more}\n{}",
        servers.concat()
    )
}

async fn the_code_alone_goes_to_the_server_and_works_once(engine: Engine) {
    let server = FreeRadius::start().await;
    let config = radius("code", "", &[server.configured("main", "CODE")]);
    let bastion = TestBastion::start_with(engine, &config).await;
    member(&bastion, "gina", None).await;
    member(&bastion, "fred", Some(RadiusMode::Code)).await;

    let code = fresh_code(GINA[2]).await;
    // Many at once with one code, each of which the server accepts: one gets in.
    let answers = [PASSWORD, &code];
    let logins = (0..4).map(|_| sign_in(&bastion, "gina", &answers));
    let runs = futures_util::future::join_all(logins).await;
    let let_in = runs.iter().filter(|(run, _)| run.code == Some(0)).count();
    assert_eq!(let_in, 1, "{runs:?}\n{}", server.log());
    assert!(runs.iter().all(|(_, asked)| *asked == ["Password: ", "6-digit code: "]), "{runs:?}");
    let refused = bastion.kinds("sign-in-refused").await;
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|event| event["reason"] == "replayed-code"), "{refused:?}");
    assert_eq!(server.log().matches("Sent Access-Accept").count(), 4, "{}", server.log());
    // Each of the server's answers is written down, whatever came of it.
    assert_eq!(bastion.kinds("radius-answered").await.len(), 4);

    let signed_in = bastion.event("signed-in", &[("user", "gina")]).await;
    assert_eq!(signed_in["steps"], serde_json::json!(["password", "radius"]));
    let fields = [("user", "gina"), ("server", "main"), ("verdict", "accept")];
    bastion.event("radius-answered", &fields).await;
    let log = server.log();
    for sent in ["NAS-Identifier = \"fort\"", "Calling-Station-Id = \"127.0.0.1\""] {
        assert!(log.contains(sent), "{sent}\n{log}");
    }
    // The code is in the store only as a hash that takes a key.
    let database = bastion.path("data/sallyport.db");
    if engine == Engine::Sqlite {
        let plain = std::fs::read(database).unwrap();
        let bare = sallyport::audit::chain::hex_sha256(code.as_bytes());
        let has = |text: &str| plain.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!has(&bare) && has("used_codes"));
    }

    // A wrong code, a wrong password, and ours where it is nobody's.
    let codes = [(PASSWORD, "000000"), ("wrong", &*code)];
    for (password, code) in codes {
        let (ran, asked) = sign_in(&bastion, "fred", &[password, code]).await;
        ran.failed();
        assert_eq!(asked, ["Password: ", "6-digit code: "]);
    }
    bastion.event("sign-in-refused", &[("user", "fred"), ("reason", "radius-rejected")]).await;
    bastion.event("radius-answered", &[("user", "fred"), ("verdict", "reject")]).await;
    bastion.event("sign-in-refused", &[("user", "fred"), ("reason", "wrong-password")]).await;
    let code = fresh_code(FRED[2]).await;
    sign_in(&bastion, "fred", &[PASSWORD, &code]).await.0.ok();

    // What is remembered is forgotten when its life is over.
    let later = bastion.now().plus(std::time::Duration::from_secs(91));
    assert_eq!(bastion.store().forget_used_codes(bastion.now()).await.unwrap(), 0);
    assert_eq!(bastion.store().forget_used_codes(later).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_at_the_server_lock_as_all_others_do() {
    let server = FreeRadius::start().await;
    let config = radius("code", "", &[server.configured("main", "CODE")]);
    let config = format!("[login]\nlock_after = 3\n{config}");
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    for _ in 0..3 {
        sign_in(&bastion, "gina", &[PASSWORD, "000000"]).await.0.failed();
    }
    bastion.event("source-locked", &[("user", "gina")]).await;
    let code = fresh_code(GINA[2]).await;
    let (ran, asked) = sign_in(&bastion, "gina", &[PASSWORD, &code]).await;
    ran.failed();
    assert_eq!(asked, ["Password: ", "6-digit code: "]);
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "locked")]).await;
    assert!(!server.log().contains("Access-Accept"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn password_and_code_both_go_to_the_server() {
    let server = FreeRadius::start().await;
    let config = radius("both", "", &[server.configured("main", "BASTION")]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    for user in [GINA, FRED] {
        member(&bastion, user[0], None).await;
    }
    let code = fresh_code(GINA[2]).await;
    // Ours does not count.
    let (ran, asked) = sign_in(&bastion, "gina", &[PASSWORD, &code]).await;
    ran.failed();
    assert_eq!(asked, ["Password: ", "6-digit code: "]);
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "radius-rejected")]).await;
    sign_in(&bastion, "gina", &[GINA[1], "000000"]).await.0.failed();

    let code = fresh_code(GINA[2]).await;
    let (ran, asked) = sign_in(&bastion, "gina", &[GINA[1], &code]).await;
    ran.ok();
    assert_eq!(asked, ["Password: ", "6-digit code: "]);
    let signed_in = bastion.event("signed-in", &[("user", "gina")]).await;
    assert_eq!(signed_in["steps"], serde_json::json!(["password", "radius"]));
    let accepted = bastion.event("radius-answered", &[("verdict", "accept")]).await;
    assert_eq!(accepted["message"], "Welcome, gina from 127.0.0.1");
    sign_in(&bastion, "gina", &[GINA[1], &code]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "replayed-code")]).await;

    // Who leaves the code out is asked by the server itself.
    let code = fresh_code(FRED[2]).await;
    let (ran, asked) = sign_in(&bastion, "fred", &[FRED[1], "", &code]).await;
    ran.ok();
    assert_eq!(asked, ["Password: ", "6-digit code: ", "Enter your one-time code: "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_no_code_is_believed_only_if_that_is_said() {
    let server = FreeRadius::start().await;
    let old = server.configured("main", "OLD") + "require_message_authenticator = false\n";
    let config = radius("both", "", std::slice::from_ref(&old));
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    sign_in(&bastion, "gina", &[GINA[1], "123456"]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "radius-one-factor")]).await;
    assert!(bastion.kinds("signed-in").await.is_empty());

    let config = radius("both", "both_in_one = true", &[old]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    sign_in(&bastion, "gina", &[GINA[1], "123456"]).await.0.failed();
    // What follows the password is sent right behind it.
    let (password, code) = GINA[1].split_at(6);
    sign_in(&bastion, "gina", &[password, code]).await.0.ok();
    bastion.event("signed-in", &[("user", "gina")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_asks_what_it_wants_and_its_text_does_no_harm() {
    let server = FreeRadius::start().await;
    let config = radius("challenge", "", &[server.configured("main", "ASKS")]);
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    let code = fresh_code(GINA[2]).await;
    let (ran, asked) = sign_in(&bastion, "gina", &[PASSWORD, "1", &code]).await;
    ran.ok();
    let prompts = ["Password: ", "\\u{1b}[2J1 app\n2 call: ", "The code of way 1: "];
    assert_eq!(asked, prompts);
    let events = bastion.kinds("radius-answered").await;
    let verdicts: Vec<_> = events.iter().map(|event| event["verdict"].clone()).collect();
    assert_eq!(verdicts, ["challenge", "challenge", "accept"]);
    assert_eq!(events[0]["message"], "\\u{1b}[2J1 app\\u{a}2 call:");

    // The code is used up, whichever way is chosen; so it is when the server was not done yet.
    sign_in(&bastion, "gina", &[PASSWORD, "2", &code]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "replayed-code")]).await;
    sign_in(&bastion, "gina", &[PASSWORD, "1", "000000"]).await.0.failed();
    bastion.event("sign-in-refused", &[("user", "gina"), ("reason", "radius-rejected")]).await;
    // To whom gives a wrong password the server says nothing.
    let (ran, asked) = sign_in(&bastion, "gina", &["wrong", &code]).await;
    ran.failed();
    assert_eq!(asked, ["Password: ", "6-digit code: "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_servers_but_by_an_authenticator_of_their_own() {
    let server = FreeRadius::start().await;
    let servers = [
        configured("closed", 9, &server.file("secret")),
        server.configured("frozen", "CODE").replace("15s", "1s"),
    ];
    let config = radius("code", "", &servers);
    let config = format!("[login]\nlock_after = 2\n{config}");
    let bastion = TestBastion::start_with(Engine::Sqlite, &config).await;
    member(&bastion, "gina", None).await;
    let rescue = bastion.person("rescue").await;
    set(&bastion, "rescue", Some(SecondFactor::TOTP)).await;
    server.freeze();

    // More often than locks: that the servers are gone is nobody's guess.
    for _ in 0..3 {
        let (ran, asked) = sign_in(&bastion, "gina", &[PASSWORD, "123456"]).await;
        assert!(ran.err.contains("The RADIUS servers do not answer"), "{ran:?}");
        ran.failed();
        assert_eq!(asked, ["Password: ", "6-digit code: "]);
    }
    let refused = bastion.kinds("sign-in-refused").await;
    assert!(refused.iter().all(|event| event["reason"] == "radius-unavailable"), "{refused:?}");
    let why = bastion.event("radius-unanswered", &[("user", "gina")]).await;
    let why = why["error"].as_str().unwrap();
    assert!(why.contains("closed (127.0.0.1:9): it cannot be reached"), "{why}");
    assert!(why.contains("frozen (") && why.contains("no answer in 1.0 s"), "{why}");
    // Who does not know the password learns nothing of it.
    let (ran, _) = sign_in(&bastion, "gina", &["wrong", "123456"]).await;
    assert!(!ran.err.contains("RADIUS"), "{ran:?}");

    let (ran, _) = sign_in(&bastion, "rescue", &[PASSWORD, &bastion.code(&rescue)]).await;
    ran.ok();
    server.thaw();
    assert!(bastion.kinds("source-locked").await.is_empty());
    let code = fresh_code(GINA[2]).await;
    sign_in(&bastion, "gina", &[PASSWORD, &code]).await.0.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_is_asked_where_one_is_gone() {
    let server = FreeRadius::start().await;
    let gone = configured("gone", 9, &server.file("secret"));
    let servers = [gone, server.configured("second", "CODE")];
    let bastion = TestBastion::start_with(Engine::Sqlite, &radius("code", "", &servers)).await;
    member(&bastion, "gina", None).await;
    let code = fresh_code(GINA[2]).await;
    sign_in(&bastion, "gina", &[PASSWORD, &code]).await.0.ok();
    bastion.event("radius-answered", &[("server", "second"), ("verdict", "accept")]).await;
}

async fn a_group_says_how_its_members_sign_in(engine: Engine) {
    let server = FreeRadius::start().await;
    let config = radius("code", "", &[server.configured("main", "BASTION")]);
    let bastion = TestBastion::start_with(engine, &config).await;
    let gina = bastion.person("gina").await;
    let (store, context) = (bastion.store(), Context::default());
    let group = "staff".parse().unwrap();
    store.add_group(&group, &context, bastion.now()).await.unwrap();
    store.join_group(&group, &gina.name, &context, bastion.now()).await.unwrap();
    let both = SecondFactor { factor: Verifier::Radius, mode: Some(RadiusMode::Both) };
    store.set_group_factor(&group, Some(both), &context, bastion.now()).await.unwrap();
    bastion.event("group-factor-set", &[("group", "staff"), ("mode", "both")]).await;

    let code = fresh_code(GINA[2]).await;
    sign_in(&bastion, "gina", &[GINA[1], &code]).await.0.ok();
    let detail = store.user(&gina.name).await.unwrap();
    assert_eq!((detail.user.factor.as_str(), detail.radius_mode), ("radius", both.mode));
    assert_eq!(detail.factor_group.as_deref(), Some("staff"));
    assert_eq!(factor_listed(&bastion, "gina").await, "radius");
    let listed = &store.groups().await.unwrap()[0];
    assert_eq!(listed.factor.as_deref(), Some("radius"));
    // Recovery codes are of an authenticator that does not count now.
    sign_in(&bastion, "gina", &[PASSWORD, &gina.recovery_code(0)]).await.0.failed();

    // What is said for her goes first.
    set(&bastion, "gina", Some(SecondFactor::TOTP)).await;
    let code = bastion.code(&gina);
    sign_in(&bastion, "gina", &[PASSWORD, &code]).await.0.ok();
    set(&bastion, "gina", None).await;
    assert_eq!(factor_listed(&bastion, "gina").await, "radius");
    store.set_group_factor(&group, None, &context, bastion.now()).await.unwrap();
    assert_eq!(factor_listed(&bastion, "gina").await, "totp");
    let code = bastion.code(&gina);
    sign_in(&bastion, "gina", &[PASSWORD, &code]).await.0.ok();
}
