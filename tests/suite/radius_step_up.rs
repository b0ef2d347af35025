//! A fresh code before a target is reached, of somebody whose codes FreeRADIUS checks.

use crate::radius_login::{by_group, radius};
use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::freeradius::{ALICE, FreeRadius, fresh_code, next_code};
use crate::support::hop::{Hop, NOTICE};
use crate::support::screen::Screen;
use crate::support::sshd::Sshd;
use crate::support::{on_both_engines, present_user};

on_both_engines!(the_server_judges_the_code_and_each_works_once);

/// Alice, signed in by her authenticator, whose grant asks for a code; since then a server of `variant`
/// checks the codes of a group that she is in.
async fn hop(engine: Engine, mode: &str, variant: &str) -> (FreeRadius, Hop) {
    let server = FreeRadius::start().await;
    let configured = server.configured("main", variant).replace("15s", "5s");
    let bastion = TestBastion::start_with(engine, &radius(mode, "", &[configured])).await;
    let sshd = Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    let hop = Hop::around(bastion, sshd, |grant| grant.step_up = true).await;
    by_group(&hop.bastion, &hop.alice, None).await;
    (server, hop)
}

/// What is said before and after a target's name.
fn name() -> String {
    format!("{}@db1", present_user())
}

/// The bastion went to the target so many times.
async fn reached(hop: &Hop) -> usize {
    hop.bastion.kinds("target-signed-in").await.len()
}

async fn the_server_judges_the_code_and_each_works_once(engine: Engine) {
    let (server, hop) = hop(engine, "code", "CODE").await;
    let code = fresh_code(ALICE[2]).await;
    hop.client.answers(&["000000", &code]);
    let ran = hop.ssh(&["via", "echo in"]).await.ok();
    assert_eq!(ran.text(), "in\n");
    assert!(ran.err.contains("The RADIUS server rejected that."), "{ran:?}");
    let question = format!("6-digit code for {}: ", name());
    let asked = hop.client.asked();
    assert!(asked.len() == 2 && asked.iter().all(|asked| asked.ends_with(&question)), "{asked:?}");
    let user = present_user();
    let at = [("user", "alice"), ("target", "db1"), ("account", user.as_str())];
    hop.bastion.event("account-refused", &[&at[..], &[("reason", "step-up")]].concat()).await;
    let failed = [("user", "alice"), ("step", "radius"), ("reason", "radius-rejected")];
    hop.bastion.event("step-failed", &failed).await;
    hop.bastion.event("step-up-passed", &at).await;
    for verdict in ["reject", "accept"] {
        hop.bastion.event("radius-answered", &[("user", "alice"), ("verdict", verdict)]).await;
    }

    // The server would take it again within its life; the bastion does not, here or at the door.
    hop.client.answers(&[&code, "1", "1"]);
    let ran = hop.ssh(&["via", "echo in"]).await.failed();
    assert!(
        ran.err.contains(&format!("too many wrong codes for {}: connect again", name())),
        "{ran:?}"
    );
    hop.client.answers(&[PASSWORD, &code]);
    hop.ssh(&["-o", "NumberOfPasswordPrompts=1", "chosen", "echo in"]).await.failed();
    assert_eq!(reached(&hop).await, 1);

    // Where nobody can be asked, the code of this sign-in does, which the server judged, too.
    let code = next_code(ALICE[2], &code).await;
    hop.client.answers(&[PASSWORD, &code]);
    assert_eq!(hop.ssh(&["chosen", "echo in"]).await.ok().text(), "in\n");
    assert_eq!(hop.bastion.kinds("step-up-passed").await.len(), 2);

    server.freeze();
    hop.client.answers(&["123456"]);
    let ran = hop.ssh(&["via", "echo in"]).await.failed();
    server.thaw();
    let dead = format!("do not answer, so {} was not reached: try again later", name());
    assert!(ran.err.contains(&dead), "{ran:?}");
    hop.bastion
        .event("account-refused", &[&at[..], &[("reason", "radius-unavailable")]].concat())
        .await;
    let why = hop.bastion.event("radius-unanswered", &[("user", "alice")]).await;
    assert!(why["error"].as_str().unwrap().contains("no answer in 5.0 s"), "{why}");
    assert_eq!(reached(&hop).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_code_is_not_taken_again() {
    let (_server, hop) = hop(Engine::Sqlite, "code", "CODE").await;
    let code = fresh_code(ALICE[2]).await;
    hop.client.answers(&[&code]);
    hop.ssh(&["via", "true"]).await.ok();
    // Right after that, while the server takes it still: unlike above, no wrong answer comes between.
    hop.client.answers(&[&code]);
    let ran = hop.ssh(&["-o", "NumberOfPasswordPrompts=1", "via", "true"]).await.failed();
    assert!(ran.err.contains("That code was used already"), "{ran:?}");
    hop.bastion.event("step-failed", &[("step", "radius"), ("reason", "replayed-code")]).await;
    assert_eq!(reached(&hop).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_asks_its_questions_in_the_menu_and_by_the_inner_ssh() {
    let (server, hop) = hop(Engine::Sqlite, "challenge", "ASKS").await;
    let before = format!("For {}, your RADIUS server asks:", name());
    let code = fresh_code(ALICE[2]).await;
    hop.client.answers(&["1", "000000", "2", &code]);
    let ran = hop.ssh(&["via", "echo in"]).await.ok();
    assert_eq!(ran.text(), "in\n");
    let asked = hop.client.asked();
    let way = |way: u8| format!("{before}\nThe code of way {way}: ");
    let choice = format!("{before}\n\\u{{1b}}[2J1 app\n2 call: ");
    assert_eq!(asked.len(), 4, "{asked:?}");
    for (asked, question) in asked.iter().zip([&choice, &way(1), &choice, &way(2)]) {
        assert!(asked.ends_with(question.as_str()), "{asked:?}");
    }

    let mut screen = Screen::run(&hop.command(&["-t", "bastion"]));
    screen.shows("Type to filter").await;
    screen.press(&format!("db1\r\u{15}{}\r", present_user())).await;
    screen.shows(&before).await;
    screen.shows("2 call: ").await;
    screen.type_line("2").await;
    screen.shows("The code of way 2: ").await;
    screen.type_line(&next_code(ALICE[2], &code).await).await;
    screen.shows(NOTICE.trim()).await;
    screen.press("exit\r").await;
    screen.shows("exit status 0").await;
    assert_eq!(reached(&hop).await, 2);

    server.freeze();
    screen.shows("Type to filter").await;
    screen.press(&format!("db1\r\u{15}{}\r", present_user())).await;
    screen.shows("the RADIUS servers").await;
    server.thaw();
    assert_eq!(reached(&hop).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_the_servers_is_asked_for_as_such() {
    let (_server, hop) = hop(Engine::Sqlite, "both", "BASTION").await;
    let code = fresh_code(ALICE[2]).await;
    hop.client.answers(&[PASSWORD, "123456", ALICE[1], &code]);
    let ran = hop.ssh(&["via", "echo in"]).await.ok();
    assert_eq!(ran.text(), "in\n");
    let asked = hop.client.asked();
    let code = format!("6-digit code for {}: ", name());
    let password = "Your password that RADIUS checks: ";
    assert_eq!(asked.len(), 4, "{asked:?}");
    for (asked, question) in asked.iter().zip([password, &code, password, &code]) {
        assert!(asked.ends_with(question), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_no_code_opens_nothing() {
    let server = FreeRadius::start().await;
    let old = server.configured("main", "OLD") + "require_message_authenticator = false\n";
    let bastion = TestBastion::start_with(Engine::Sqlite, &radius("both", "", &[old])).await;
    let sshd = Sshd::start().await;
    bastion.record_target("db1", &sshd).await;
    let hop = Hop::around(bastion, sshd, |grant| grant.step_up = true).await;
    by_group(&hop.bastion, &hop.alice, None).await;
    hop.client.answers(&[ALICE[1], "123456"]);
    let ran = hop.ssh(&["-o", "NumberOfPasswordPrompts=1", "via", "true"]).await.failed();
    assert!(ran.err.contains("The RADIUS server asked for no code"), "{ran:?}");
    hop.bastion.event("step-failed", &[("step", "radius"), ("reason", "radius-one-factor")]).await;
    assert_eq!(reached(&hop).await, 0);
}
