//! The menu, as people see it: `ssh alice@bastion` in a terminal.

use sallyport::audit::Context;
use sallyport::domain::{AccountAuth, Capability, Mode, printable};
use sallyport::store::SessionFilter;

use crate::support::bastion::{Engine, PASSWORD, TestBastion, code_of, secret_of};
use crate::support::hop::{Agent, Hop, NOTICE};
use crate::support::played::{Asks, HOSTILE, Played};
use crate::support::screen::Screen;
use crate::support::sshd::Sshd;
use crate::support::ways::{Program, Way};
use crate::support::{command, eventually, present_user, tool};

/// The menu in a terminal of alice's, with `options` to her `ssh`.
async fn menu(hop: &Hop, options: &[&str]) -> Screen {
    let mut screen = Screen::run(&hop.command(&[options, &["-t", "bastion"]].concat()));
    screen.shows("Type to filter").await;
    screen
}

/// Answers what the bastion asks, up to the menu.
async fn sign_in(hop: &Hop, screen: &mut Screen) {
    screen.expect("Password: ").await;
    screen.type_line(PASSWORD).await;
    screen.expect("6-digit code: ").await;
    screen.type_line(&hop.bastion.code(&hop.alice)).await;
    screen.shows("Type to filter").await;
}

/// Goes to db1 as the user of the tests, and waits for the shell there.
async fn visit(screen: &mut Screen) {
    screen.press("db1\r").await;
    screen.shows("Account on db1").await;
    screen.press(&format!("{}\r", present_user())).await;
    screen.shows(NOTICE.trim()).await;
    screen.press("echo $((6 * 7))-there\r").await;
    screen.shows("42-there").await;
}

/// How the first recording ended.
async fn outcome(hop: &Hop) -> String {
    eventually("the recording ended", async || hop.recordings().await.remove(0).outcome).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leads_to_a_recorded_shell_and_back() {
    let hop = Hop::start().await;
    hop.bastion.target("plain", "127.0.0.1:5432").await;
    hop.bastion.add_grant("alice", "plain", |_| {}).await;
    let mut screen = menu(&hop, &[]).await;
    assert!(screen.alternate(), "{}", screen.text());
    for text in ["db1", "plain", "2 targets", "10 recovery codes are left"] {
        screen.shows(text).await;
    }
    screen.resize(30, 90).await;
    screen.reaches(29).await;
    screen.press("db").await;
    screen.until("plain", false).await;
    screen.press("\u{1b}").await;
    screen.shows("plain").await;

    visit(&mut screen).await;
    assert!(!screen.alternate());
    screen.press("stty size; tty; echo $TERM\r").await;
    for text in ["30 90", "/dev/pts/", "xterm"] {
        screen.shows(text).await;
    }
    screen.press("exit 5\r").await;
    screen.shows(&format!("{}@db1: exit status 5", present_user())).await;
    assert!(screen.alternate());

    // What is not recorded is only shown the way to.
    screen.press("plain\r").await;
    screen.shows("from your own computer").await;
    screen.shows("ssh -J alice@").await;
    screen.press("\u{1b}").await;
    screen.until("from your own computer", false).await;
    screen.press("\u{3}").await; // The filter.
    screen.press("s").await;
    screen.shows("Your sessions").await;
    screen.shows("live").await;
    screen.press("\u{1b}").await;
    screen.until("Your sessions", false).await;
    screen.press("o").await;
    screen.shows("10 left").await;
    screen.press("\u{1b}").await;
    screen.until("10 left", false).await;
    // The account of last time is offered.
    screen.press("db1\r").await;
    screen.shows(&format!("Account on db1 [{}]", present_user())).await;
    screen.press("\u{3}").await;
    screen.until("Account on", false).await;
    screen.press("\u{3}qq").await;
    assert_eq!(screen.ended().await, Some(0));
    assert!(!screen.alternate());

    let rows = hop.recordings().await;
    assert_eq!(rows.len(), 1);
    let cast = hop.cast(rows.into_iter().next().unwrap());
    assert_eq!(cast.row.outcome.as_deref(), Some("exit status 5"));
    assert_eq!((cast.header.width, cast.header.height), (90, 30));
    assert!(cast.output().contains("42-there"), "{}", cast.output());
    assert!(!cast.output().contains("Type to filter"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_said_and_leads_back() {
    let hop = Hop::granting(|grant| grant.allow = vec![Capability::Exec]).await;
    let mut screen = menu(&hop, &[]).await;
    screen.press(&format!("db1\r{}\r", present_user())).await;
    screen.shows("shell is not granted to you on db1").await;
    assert!(screen.alternate());
    hop.refused("shell").await;
    screen.press("db").await;
    screen.shows("Filter: db").await;
    screen.press("\u{3}").await; // Clears the filter, and then leaves.
    screen.shows("Type to filter").await;
    screen.press("\u{3}").await;
    assert_eq!(screen.ended().await, Some(0));
    assert!(!screen.alternate());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authenticators_page_leads_to_a_dialog_and_back() {
    let hop = Hop::start().await;
    let mut screen = menu(&hop, &[]).await;
    screen.press("o").await;
    screen.shows("C  make new recovery codes").await;
    // Given up: the menu says so.
    screen.press("C").await;
    screen.shows("6-digit code: ").await;
    assert!(!screen.alternate());
    screen.press("12\u{3}").await;
    screen.shows("given up").await;
    screen.shows("10 left").await;
    assert!(screen.alternate());

    screen.press("c").await;
    screen.shows("6-digit code: ").await;
    let code = hop.bastion.code(&hop.alice);
    screen.type_line(&code).await;
    screen.shows("Press Enter to go back to the menu").await;
    screen.shows("They are not shown again.").await;
    hop.bastion.event("recovery-codes-renewed", &[("user", "alice")]).await;
    hop.bastion.event("command-run", &[("user", "alice"), ("command", "otp codes")]).await;
    screen.type_line("").await;
    screen.shows("Your authenticator").await;
    assert!(screen.alternate());

    // A new authenticator ends other sessions, and not this one.
    screen.press("N").await;
    screen.shows("or a recovery code: ").await;
    let code = hop.bastion.code(&hop.alice);
    screen.type_line(&code).await;
    screen.shows("makes a new one): ").await;
    screen.settle().await;
    let uri = screen.qr().unwrap_or_else(|| panic!("no QR code on:\n{}", screen.text()));
    screen.type_line(&code_of(&secret_of(&uri), hop.bastion.now())).await;
    screen.shows("Press Enter to go back to the menu").await;
    screen.type_line("").await;
    screen.shows("Your authenticator").await;
    hop.bastion.event("authenticator-unbound", &[("user", "alice")]).await;
    // What the others lead to.
    screen.press("P").await;
    screen.shows("6-digit code: ").await;
    screen.press("\u{3}").await;
    screen.shows("given up").await;
    screen.press("U").await;
    screen.shows("or a recovery code: ").await;
    screen.type_line("000000").await;
    screen.shows("That code is wrong.").await;
    screen.press("\u{3}").await;
    screen.shows("given up").await;
    for command in ["passwd", "otp unbind"] {
        hop.bastion.event("command-run", &[("user", "alice"), ("command", command)]).await;
    }
    let refused = [("command", "otp unbind"), ("reason", "wrong-code")];
    hop.bastion.event("command-refused", &refused).await;
    screen.press("\u{1b}").await;
    screen.until("Your authenticator", false).await;
    visit(&mut screen).await;
    screen.press("exit\r").await;
    screen.shows("exit status 0").await;
    screen.press("\u{3}").await;
    assert_eq!(screen.ended().await, Some(0));
}

/// A hop to a target that asks like that.
async fn asking(asks: Asks) -> (Hop, Played) {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let played = Played::start(asks).await;
    bastion.target_in(Mode::Record, "db1", &format!("127.0.0.1:{}", played.port)).await;
    bastion.pin("db1", &played.host_key, false).await;
    bastion.account("db1", &present_user(), AccountAuth::Ask, None).await;
    (Hop::around(bastion, Sshd::start().await, |_| {}).await, played)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_asks_is_said_to_be_its_question() {
    let who = format!("{}@db1 asks:", present_user());
    let own = format!("{}@db1's password: ", present_user());
    let hostile = printable(HOSTILE);
    let cases = [(Asks::Password, own.as_str()), (Asks::Question, "Password: ")];
    for (asks, prompt) in cases.into_iter().chain([(Asks::Hostile, hostile.as_str())]) {
        let (hop, _played) = asking(asks).await;
        for by_menu in [true, false] {
            let mut screen = if by_menu {
                let mut screen = menu(&hop, &[]).await;
                screen.press(&format!("db1\r{}\r", present_user())).await;
                screen
            } else {
                hop.reach(Program::OpenSsh, Way::Selector).screen(&["-t", "HOST"]).await
            };
            // The bastion's password is not for it, so it is said first who asks.
            screen.expect(&who).await;
            if asks != Asks::Password {
                screen.expect("Say who you are.\\u{1b}[2J").await;
            }
            screen.expect(prompt).await;
            assert!(!screen.alternate());
            screen.type_line("tiger").await;
            if by_menu {
                screen.shows(&format!("{}@db1: exit status 3", present_user())).await;
                assert!(!screen.text().contains("tiger"), "{}", screen.text());
                screen.press("\u{3}\u{3}").await;
                screen.ended().await;
            } else {
                let (code, text) = screen.end().await;
                assert_eq!(code, Some(3), "{text}");
                assert!(!text.contains("tiger"), "{text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_that_the_bastion_is_stopping() {
    let mut hop = Hop::start_with("[server]\ndrain = \"5s\"\n", "", |_| {}).await;
    let mut screen = menu(&hop, &[]).await;
    let seen = async {
        screen.shows("the bastion is stopping: this ends within 5 s").await;
        assert!(screen.alternate());
        // It can be used until then.
        screen.press("db").await;
        screen.shows("Filter: db").await;
        assert_ne!(screen.ended().await, Some(0));
    };
    tokio::join!(hop.bastion.stop(), seen);
    assert!(!screen.alternate());
    assert!(screen.text().contains("sallyport: the bastion is stopping"), "{}", screen.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_ends_leads_back() {
    let hop = Hop::start().await;
    let (store, context) = (hop.bastion.store(), Context::default());
    let mut screen = menu(&hop, &[]).await;
    visit(&mut screen).await;
    let grants = store.grants().await.unwrap();
    store.remove_grant(grants[0].id.as_str(), &context, hop.bastion.now()).await.unwrap();
    screen.shows("db1 is not granted to you").await;
    screen.shows("No target is granted").await;
    assert!(screen.alternate());
    assert_eq!(outcome(&hop).await, "db1 is not granted to you");
    screen.press("\u{3}").await;
    assert_eq!(screen.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_ended_gets_their_terminal_back() {
    for there in [false, true] {
        let hop = Hop::start().await;
        let mut screen = menu(&hop, &[]).await;
        if there {
            visit(&mut screen).await;
            // As an editor leaves it when it is cut off.
            screen.press("printf '\\033[?1049h\\033[?1002h'; echo in-$((1 + 1)); cat\r").await;
            screen.shows("in-2").await;
            assert!(screen.alternate());
        }
        let filter = SessionFilter { live: true, user: None, account: None };
        let (store, context) = (hop.bastion.store(), Context::default());
        let sessions = store.sessions(&filter, 1).await.unwrap();
        let id = sessions[0].id.parse().unwrap();
        assert!(store.request_kill(&id, &context, hop.bastion.now()).await.unwrap());
        assert_ne!(screen.ended().await, Some(0));
        assert!(!screen.alternate(), "there: {there}; {}", screen.text());
        assert!(screen.text().contains("an administrator ended this session"), "{}", screen.text());
        if there {
            assert_eq!(outcome(&hop).await, "it was ended");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_forwarded_where_it_is_granted() {
    for granted in [true, false] {
        let right = if granted { Capability::Agent } else { Capability::Exec };
        let hop = Hop::granting(|grant| grant.allow = vec![Capability::Shell, right]).await;
        let mut agent = Agent::start(&hop).await;
        let options = ["-S", "none", "-A", "-o", &agent.option(), "-t", "bastion"];
        let mut screen = Screen::run(&hop.command(&options));
        sign_in(&hop, &mut screen).await;
        visit(&mut screen).await;
        screen.press("ssh-add -l | grep -c SHA256; echo code-$?\r").await;
        screen.shows(if granted { "code-0" } else { "code-1" }).await;
        if !granted {
            hop.bastion.event("request-refused", &[("request", "auth-agent-req")]).await;
        }
        agent.process.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_that_cannot_show_it_are_greeted() {
    let hop = Hop::start().await;
    let mut ssh = hop.command(&["-tt", "bastion"]);
    ssh.env("TERM", "dumb");
    let ran = crate::support::hop::fed(&mut ssh, b"").await.ok();
    assert!(ran.text().contains("Hello alice"), "{}", ran.text());
    let ran = hop.ssh(&["-T", "bastion"]).await.ok();
    assert!(ran.text().contains("Hello alice"), "{}", ran.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn plink_shows_it_too() {
    let hop = Hop::start().await;
    let mut keygen = command(tool("ssh-keygen"));
    let key = hop.bastion.path("data/host_key");
    let listed = crate::support::ssh::run(keygen.arg("-l").arg("-f").arg(key)).await.ok().out;
    let fingerprint = listed.split(' ').nth(1).unwrap().to_owned();
    let mut plink = command(tool("plink"));
    let port = hop.bastion.port.to_string();
    plink.args(["-ssh", "-no-antispoof", "-hostkey", &fingerprint, "-P", &port, "alice@127.0.0.1"]);
    let mut screen = Screen::run(&plink);
    sign_in(&hop, &mut screen).await;
    visit(&mut screen).await;
    screen.press("exit 7\r").await;
    screen.shows("exit status 7").await;
    screen.press("\u{3}").await;
    screen.press("qq").await;
    assert_eq!(screen.ended().await, Some(0));
    assert!(!screen.alternate());
}
