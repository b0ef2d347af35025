//! The RADIUS client against Debian's FreeRADIUS over TLS (RadSec, RFC 6614).

use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport::radius::{
    Client, Error, ProbeAnswer, Reason, Server, Settings, Tls, Transport, Verdict,
};
use tokio::task::JoinSet;

use crate::radius::{ask, challenged, client, sign_in};
use crate::support::freeradius::{FRED, FreeRadius, GINA};

/// `server` with something else in its TLS settings.
fn with_tls(server: Server, change: impl FnOnce(&mut Tls)) -> Server {
    let Transport::Tls(mut tls) = server.transport else { panic!("not over TLS") };
    change(&mut tls);
    Server { transport: Transport::Tls(tls), ..server }
}

/// Why this server gives no answer.
async fn refusal(server: Server) -> Reason {
    match ask(&client(vec![server]), GINA[0], GINA[1], None).await {
        Err(Error::AllDead(mut failures)) => failures.0.remove(0).reason,
        other => panic!("{other:?}"),
    }
}

fn connections(radius: &FreeRadius) -> usize {
    radius.log().matches("Listening on auth from client (").count()
}

#[tokio::test]
async fn logins_share_one_connection() {
    let radius = FreeRadius::start().await;
    let client = Arc::new(client(vec![radius.tls_server("tls")]));
    for user in [GINA, FRED] {
        let reply = sign_in(&client, user).await;
        assert!(matches!(reply.verdict, Verdict::Accept), "{reply:?}\n{}", radius.log());
    }
    // Many at once are told apart.
    let mut logins = JoinSet::new();
    for number in 0..40 {
        let client = Arc::clone(&client);
        logins.spawn(async move {
            let user = if number % 2 == 0 { GINA } else { FRED };
            let wrong = ask(&client, user[0], "wrong", None).await.unwrap();
            assert!(matches!(wrong.verdict, Verdict::Reject), "{wrong:?}");
            challenged(ask(&client, user[0], user[1], None).await.unwrap());
        });
    }
    while let Some(login) = logins.join_next().await {
        login.unwrap();
    }
    assert_eq!(connections(&radius), 1, "{}", radius.log());
}

#[tokio::test]
async fn a_server_that_is_not_the_right_one_hears_nothing() {
    let radius = FreeRadius::start().await;
    let strange =
        with_tls(radius.tls_server("tls"), |tls| tls.ca_file = radius.file("other-ca.pem"));
    let reason = refusal(strange).await;
    assert!(matches!(reason, Reason::Tls(_)), "{reason:?}");
    assert!(reason.to_string().contains("UnknownIssuer"), "{reason}");
    // Its certificate is for `localhost` and `radius.example`.
    let address = format!("127.0.0.1:{}", radius.port("RADSEC"));
    let by_address = Server { address, ..radius.tls_server("tls") };
    let reason = refusal(by_address.clone()).await;
    assert!(matches!(reason, Reason::Tls(_)), "{reason:?}");
    assert!(!radius.log().contains("User-Name = "), "{}", radius.log());
    let named = with_tls(by_address, |tls| tls.server_name = Some("radius.example".into()));
    assert!(matches!(sign_in(&client(vec![named]), GINA).await.verdict, Verdict::Accept));
}

#[tokio::test]
async fn a_client_without_the_right_certificate_is_told() {
    let radius = FreeRadius::start().await;
    let stranger = with_tls(radius.tls_server("tls"), |tls| {
        tls.certificate_file = radius.file("stranger.pem");
        tls.key_file = radius.file("stranger.key");
    });
    let reason = refusal(stranger).await;
    assert!(matches!(reason, Reason::Closed(_)), "{reason:?}");
    assert!(reason.to_string().contains("does not accept our certificate"), "{reason}");
    assert!(!radius.log().contains("User-Name = "), "{}", radius.log());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_at_once() {
    let radius = FreeRadius::start().await;
    let refused = |change: fn(&FreeRadius, &mut Tls)| {
        let server = with_tls(radius.tls_server("tls"), |tls| change(&radius, tls));
        Client::new(vec![server], Settings::new("bastion")).unwrap_err().to_string()
    };
    let text = refused(|radius, tls| tls.ca_file = radius.file("ca.key"));
    assert!(text.contains("ca.key: it holds no certificate"), "{text}");
    let text = refused(|radius, tls| tls.key_file = radius.file("server.pem"));
    assert!(text.contains("our private key from") && text.contains("server.pem"), "{text}");
    let text = refused(|radius, tls| tls.key_file = radius.file("server.key"));
    assert!(text.contains("certificate and key cannot be used"), "{text}");
    let text = refused(|_, tls| tls.server_name = Some("not a name".into()));
    assert!(text.contains("\"not a name\" is not a name"), "{text}");
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let mut radius = FreeRadius::start().await;
    let client = client(vec![radius.tls_server("tls")]);
    challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
    radius.restart().await;
    challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
    assert_eq!(connections(&radius), 1, "{}", radius.log());
}

#[tokio::test]
async fn a_silent_connection_is_given_up_at_the_deadline_and_replaced() {
    let radius = FreeRadius::start().await;
    let timeout = Duration::from_secs(3);
    let client = client(vec![Server { timeout, ..radius.tls_server("tls") }]);
    challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
    radius.freeze();
    let before = Instant::now();
    let refused = ask(&client, GINA[0], GINA[1], None).await.unwrap_err();
    let Error::AllDead(failures) = &refused else { panic!("{refused}") };
    assert!(matches!(failures.0[0].reason, Reason::Silent { .. }), "{refused}");
    assert!(before.elapsed() >= timeout);
    radius.thaw();
    challenged(ask(&client, GINA[0], GINA[1], None).await.unwrap());
    assert_eq!(connections(&radius), 2, "{}", radius.log());
}

#[tokio::test]
async fn a_port_without_a_server_is_unreachable() {
    let radius = FreeRadius::start().await;
    let nobody = Server { address: "localhost:9".into(), ..radius.tls_server("tls") };
    let reason = refusal(nobody).await;
    assert!(matches!(reason, Reason::Unreachable(_)), "{reason:?}");
}

#[tokio::test]
async fn a_probe_goes_over_tls_too() {
    let radius = FreeRadius::start().await;
    let client = client(vec![radius.tls_server("tls")]);
    let probe = client.probe("tls").await.unwrap();
    assert_eq!(probe.answer, ProbeAnswer::Status);
}
