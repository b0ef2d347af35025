//! The RADIUS client against Debian's FreeRADIUS over UDP, in every variant of `tests/freeradius`.

use std::time::{Duration, Instant};

use sallyport::radius::{
    Client, Error, ProbeAnswer, Reason, Reply, Request, Server, Settings, State, Verdict,
};
use secrecy::SecretString;

use crate::support::eventually;
use crate::support::freeradius::{FRED, FreeRadius, GINA, code};
use crate::support::journal::Journal;

pub fn client(servers: Vec<Server>) -> Client {
    Client::new(servers, Settings::new("bastion")).unwrap()
}

pub async fn ask(
    client: &Client,
    user: &str,
    password: &str,
    state: Option<State>,
) -> Result<Reply, Error> {
    let password = SecretString::from(password);
    let request = Request { user, password: &password, calling_station: "192.0.2.7", state };
    client.authenticate(request).await
}

pub fn challenged(reply: Reply) -> State {
    match reply.verdict {
        Verdict::Challenge(state) => state,
        other => panic!("{other:?}"),
    }
}

/// Password, then code. FreeRADIUS knows only the present code, so where the time moved on
/// between reading it and checking it, once more.
pub async fn sign_in(client: &Client, [name, password, secret]: [&str; 3]) -> Reply {
    for _ in 0..3 {
        let asked = ask(client, name, password, None).await.unwrap();
        assert_eq!(asked.message, "Enter your one-time code: ");
        let state = challenged(asked);
        assert_eq!(state.round(), 1);
        let shown = code(secret).await;
        let reply = ask(client, name, &shown, Some(state)).await.unwrap();
        if matches!(reply.verdict, Verdict::Accept) || shown == code(secret).await {
            return reply;
        }
    }
    panic!("the time moved on each time");
}

#[tokio::test]
async fn a_password_is_followed_by_a_challenge_for_the_code() {
    let radius = FreeRadius::start().await;
    let client = client(vec![radius.server("main", "BASTION")]);
    for user in [GINA, FRED] {
        let reply = sign_in(&client, user).await;
        assert!(matches!(reply.verdict, Verdict::Accept), "{reply:?}\n{}", radius.log());
        assert_eq!(reply.message, format!("Welcome, {} from 192.0.2.7", user[0]));
        assert_eq!(reply.session_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(reply.server, "main");
    }
    let log = radius.log();
    for sent in [
        "NAS-Identifier = \"bastion\"",
        "NAS-Port-Type = Virtual",
        "Service-Type = Authenticate-Only",
        "Calling-Station-Id = \"192.0.2.7\"",
    ] {
        assert!(log.contains(sent), "{sent}\n{log}");
    }
}

#[tokio::test]
async fn a_wrong_password_and_a_wrong_code_are_rejected() {
    let radius = FreeRadius::start().await;
    let client = client(vec![radius.server("main", "BASTION")]);
    for (name, password) in [("gina", "pw of fred"), ("gina", ""), ("nobody", "pw of gina")] {
        let reply = ask(&client, name, password, None).await.unwrap();
        assert!(matches!(reply.verdict, Verdict::Reject), "{name}: {reply:?}");
    }
    let state = challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
    let reply = ask(&client, GINA[0], "12345", Some(state)).await.unwrap();
    assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}");
}

#[tokio::test]
async fn a_code_alone_can_be_asked() {
    let radius = FreeRadius::start().await;
    let client = client(vec![radius.server("main", "CODE")]);
    for [name, _, secret] in [GINA, FRED] {
        let accepted = eventually("the code is accepted", async || {
            let shown = code(secret).await;
            let reply = ask(&client, name, &shown, None).await.unwrap();
            matches!(reply.verdict, Verdict::Accept).then_some(reply)
        });
        assert_eq!(accepted.await.message, "");
        let reply = ask(&client, name, "12345", None).await.unwrap();
        assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_and_an_address_where_nobody_listens_passed_over() {
    let radius = FreeRadius::start().await;
    // Most systems know `localhost` as ::1 too, where FreeRADIUS does not listen.
    let address = format!("localhost:{}", radius.port("BASTION"));
    let client = client(vec![Server { address, ..radius.server("main", "BASTION") }]);
    challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
}

#[tokio::test]
async fn long_passwords_and_every_character_arrive() {
    let radius = FreeRadius::start().await;
    let client = client(vec![radius.server("main", "BASTION")]);
    // FreeRADIUS logs what it has read.
    for password in ["grüße, 日本!", &"0123456789abcdef".repeat(8), &"a".repeat(17)] {
        let reply = ask(&client, "gina", password, None).await.unwrap();
        assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}");
        let read = format!("User-Password = \"{password}\"");
        assert!(radius.log().contains(&read), "{}", radius.log());
    }
}

#[tokio::test]
async fn a_challenge_goes_on_over_several_rounds() {
    let radius = FreeRadius::start().await;
    let client = client(vec![radius.server("main", "ROUNDS")]);
    for wrong in [None, Some(1), Some(2), Some(3)] {
        let mut reply = ask(&client, GINA[0], GINA[1], None).await.unwrap();
        for round in 1..=3 {
            assert_eq!(reply.message, format!("Say {round}: "));
            let state = challenged(reply);
            assert_eq!((state.round(), state.server()), (round, "main"));
            let answer = if wrong == Some(round) { "7".into() } else { round.to_string() };
            reply = ask(&client, GINA[0], &answer, Some(state)).await.unwrap();
            if wrong == Some(round) {
                break;
            }
        }
        match wrong {
            None => assert!(matches!(reply.verdict, Verdict::Accept), "{reply:?}"),
            Some(_) => assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}"),
        }
    }
}

#[tokio::test]
async fn a_challenge_is_only_answered_for_its_user_and_to_its_server() {
    let radius = FreeRadius::start().await;
    let main = client(vec![radius.server("main", "BASTION")]);
    let state = challenged(ask(&main, GINA[0], GINA[1], None).await.unwrap());
    let refused = ask(&main, FRED[0], "123456", Some(state)).await;
    assert!(matches!(refused, Err(Error::OtherUser)), "{refused:?}");
    let state = challenged(ask(&main, GINA[0], GINA[1], None).await.unwrap());
    let other = client(vec![radius.server("other", "BASTION")]);
    let refused = ask(&other, GINA[0], "123456", Some(state)).await;
    assert!(matches!(refused, Err(Error::UnknownServer(name)) if name == "main"));
}

#[tokio::test]
async fn an_unsigned_reply_counts_only_where_that_is_allowed() {
    let radius = FreeRadius::start().await;
    let strict = Server { timeout: Duration::from_secs(2), ..radius.server("strict", "OLD") };
    let refused = ask(&client(vec![strict]), GINA[0], GINA[1], None).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("without Message-Authenticator"), "{text}");
    assert!(text.contains(&format!("strict (127.0.0.1:{})", radius.port("OLD"))), "{text}");

    let lax = Server { require_message_authenticator: false, ..radius.server("lax", "OLD") };
    let client = client(vec![lax]);
    let reply = ask(&client, GINA[0], GINA[1], None).await.unwrap();
    assert!(matches!(reply.verdict, Verdict::Accept), "{reply:?}");
    let reply = ask(&client, GINA[0], "wrong", None).await.unwrap();
    assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}");
}

#[tokio::test]
async fn a_server_that_need_not_sign_is_loudly_logged() {
    let udp = |name| Server::udp(name, "127.0.0.1:9", "testing-123".into());
    let lax = Server { require_message_authenticator: false, ..udp("lax") };
    let journal = Journal::default();
    let writer = journal.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    drop(client(vec![udp("strict"), lax]));
    let said = journal.take();
    assert_eq!(said.matches("CVE-2024-3596").count(), 1, "{said}");
    assert!(said.contains("WARN") && said.contains("lax") && !said.contains("strict"), "{said}");
}

#[tokio::test]
async fn another_secret_gives_no_answer() {
    let radius = FreeRadius::start().await;
    let server = Server {
        secret: "not the server's".into(),
        timeout: Duration::from_secs(1),
        ..radius.server("main", "BASTION")
    };
    let refused = ask(&client(vec![server]), GINA[0], GINA[1], None).await.unwrap_err();
    assert!(refused.to_string().contains("no answer in 1.0 s"), "{refused}");
}

#[tokio::test]
async fn a_stopped_server_is_passed_over_and_then_asked_last() {
    let (first, second) = tokio::join!(FreeRadius::start(), FreeRadius::start());
    let timeout = Duration::from_secs(3);
    let servers = vec![
        Server { timeout, ..first.server("first", "BASTION") },
        second.server("second", "BASTION"),
    ];
    let settings = Settings { dead_time: Duration::from_secs(3600), ..Settings::new("bastion") };
    let client = Client::new(servers, settings).unwrap();
    assert_eq!(sign_in(&client, GINA).await.server, "first");

    first.freeze();
    let before = Instant::now();
    let reply = ask(&client, GINA[0], GINA[1], None).await.unwrap();
    assert_eq!(reply.server, "second");
    assert!(before.elapsed() >= timeout);
    // From now on the second is asked at once, for which a busy machine gets less than the timeout.
    let before = Instant::now();
    for _ in 0..3 {
        assert_eq!(ask(&client, GINA[0], GINA[1], None).await.unwrap().server, "second");
    }
    assert!(before.elapsed() < timeout, "{:?}", before.elapsed());

    // Alive again, but not asked within its dead time, except where nobody else answers.
    first.thaw();
    let state = challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
    assert_eq!(state.server(), "second");
    second.freeze();
    let probed = client.probe("first").await.unwrap();
    assert!(probed.signed);
    // The test has found it alive, so it is first again.
    assert_eq!(ask(&client, GINA[0], GINA[1], None).await.unwrap().server, "first");
    second.thaw();
}

#[tokio::test]
async fn a_challenge_is_lost_with_its_server() {
    let (first, second) = tokio::join!(FreeRadius::start(), FreeRadius::start());
    let servers = vec![
        Server { timeout: Duration::from_secs(2), ..first.server("first", "BASTION") },
        second.server("second", "BASTION"),
    ];
    let client = client(servers);
    // A busy machine may have made the first one too slow.
    let state = eventually("the first server asks for more", async || {
        client.probe("first").await.ok()?;
        let state = challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
        (state.server() == "first").then_some(state)
    })
    .await;
    first.freeze();
    let lost = ask(&client, GINA[0], "123456", Some(state)).await.unwrap_err();
    assert!(matches!(&lost, Error::ChallengeLost(failure) if failure.server == "first"), "{lost}");
    first.thaw();
}

#[tokio::test]
async fn when_all_are_dead_the_error_says_why_and_nobody_gets_in() {
    let radius = FreeRadius::start().await;
    let frozen = Server { timeout: Duration::from_secs(1), ..radius.server("frozen", "BASTION") };
    let closed = Server::udp("closed", "127.0.0.1:9", "s".into());
    let unknown = Server::udp("unknown", "radius.invalid:1812", "s".into());
    radius.freeze();
    let client = client(vec![closed, frozen, unknown]);
    for order in [["closed", "frozen", "unknown"]; 2] {
        let refused = ask(&client, GINA[0], GINA[1], None).await.unwrap_err();
        let Error::AllDead(failures) = &refused else { panic!("{refused}") };
        let names: Vec<_> = failures.0.iter().map(|failure| failure.server.as_str()).collect();
        assert_eq!(names, order);
        assert!(matches!(failures.0[0].reason, Reason::Unreachable(_)), "{refused}");
        assert!(matches!(failures.0[1].reason, Reason::Silent { .. }), "{refused}");
        let unresolved = matches!(
            failures.0[2].reason,
            // Without a name server, looking a name up may also take too long.
            Reason::Resolve(_) | Reason::Silent { .. }
        );
        assert!(unresolved, "{refused}");
    }
    radius.thaw();
    // All are dead, and yet asked, so this one is found alive.
    let reply =
        eventually("the server answers", async || ask(&client, GINA[0], GINA[1], None).await.ok());
    assert_eq!(reply.await.server, "frozen");
}

#[tokio::test]
async fn a_probe_tells_what_a_server_does() {
    let radius = FreeRadius::start().await;
    let lax = |variant| Server {
        require_message_authenticator: false,
        ..radius.server(variant, variant)
    };
    let quick = |name: &str, variant| Server {
        timeout: Duration::from_secs(2),
        ..radius.server(name, variant)
    };
    let client = client(vec![lax("OLD"), quick("strict", "OLD"), quick("main", "BASTION")]);
    assert_eq!(client.servers().collect::<Vec<_>>(), ["OLD", "strict", "main"]);
    let probe = client.probe("OLD").await.unwrap();
    assert_eq!((probe.answer, probe.signed), (ProbeAnswer::Rejected, false));
    // FreeRADIUS 3.2.1 does not sign its answer to Status-Server, so it proves nothing.
    let probe = client.probe("main").await.unwrap();
    assert_eq!((probe.answer, probe.signed), (ProbeAnswer::Rejected, true));
    let refused = client.probe("strict").await.unwrap_err().to_string();
    assert!(refused.contains("without Message-Authenticator"), "{refused}");
    assert!(matches!(client.probe("none").await, Err(Error::UnknownServer(_))));
}
