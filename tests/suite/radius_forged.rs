//! The RADIUS client against a server that lies: no forged answer counts, and none keeps the true
//! one from being heard.

use std::time::{Duration, Instant};

use sallyport::radius::packet::Discard;
use sallyport::radius::{Client, Discards, Error, Reason, Reply, Server, Settings, Verdict};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::radius::{ask, client};
use crate::support::radius_peer::{ACCEPT, Asked, CHALLENGE, Forgery, Mac, Peer, REJECT};

/// Asks, while `answer` plays the server.
async fn against(peer: &Peer, answer: impl AsyncFnOnce(Asked)) -> Result<Reply, Error> {
    let client = client(vec![peer.server("peer")]);
    let (reply, ()) = tokio::join!(ask(&client, "alice", "123456", None), async {
        answer(peer.asked().await).await
    });
    reply
}

/// Accepts that are forged in all ways, for this request.
fn forged(asked: &Asked) -> Vec<(&'static str, Vec<u8>)> {
    let accept = || asked.reply(ACCEPT);
    let identifier = asked.bytes[1].wrapping_add(1);
    let mut cut = accept().bytes();
    cut.truncate(30);
    let mut zeros = accept().bytes();
    zeros[4..20].fill(0);
    vec![
        ("identifier", Forgery { identifier, ..accept() }.bytes()),
        ("another request", Forgery { request_authenticator: [0; 16], ..accept() }.bytes()),
        ("authenticator", zeros),
        ("secret", Forgery { secret: "guessed", ..accept() }.bytes()),
        ("MAC", Forgery { mac: Mac::Wrong, ..accept() }.bytes()),
        ("no MAC", Forgery { mac: Mac::Missing, ..accept() }.bytes()),
        ("code", asked.reply(5).bytes()),
        ("cut off", cut),
        ("attribute", Forgery { attributes: vec![18, 1], ..accept() }.bytes()),
        ("the request itself", asked.bytes.clone()),
        ("nothing", vec![]),
        ("junk", vec![0x41; 4999]),
    ]
}

#[tokio::test]
async fn the_true_answer_is_heard_after_forged_ones() {
    let peer = Peer::start().await;
    let reply = against(&peer, async |asked| {
        for (_, packet) in forged(&asked) {
            peer.send(&asked, &packet).await;
        }
        peer.send(&asked, &asked.reply(REJECT).with(18, b"the true one").bytes()).await;
    })
    .await
    .unwrap();
    assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}");
    assert_eq!(reply.message, "the true one");
}

#[tokio::test]
async fn a_forged_answer_alone_is_no_answer_and_its_reason_is_told() {
    for (place, why) in [
        (0, Discard::Identifier),
        (1, Discard::ResponseAuthenticator),
        (2, Discard::ResponseAuthenticator),
        (3, Discard::ResponseAuthenticator),
        (4, Discard::MessageAuthenticator),
        (5, Discard::NoMessageAuthenticator),
        (6, Discard::Code(5)),
        (7, Discard::Length),
        (8, Discard::Attribute(18)),
        (9, Discard::Code(1)),
        (10, Discard::Length),
        (11, Discard::Length),
    ] {
        let peer = Peer::start().await;
        let server =
            Server { timeout: Duration::from_millis(300), tries: 1, ..peer.server("peer") };
        let client = client(vec![server]);
        let (refused, what) = tokio::join!(ask(&client, "alice", "1", None), async {
            let asked = peer.asked().await;
            let (what, packet) = forged(&asked).swap_remove(place);
            peer.send(&asked, &packet).await;
            what
        });
        let Err(Error::AllDead(failures)) = &refused else { panic!("{what}: {refused:?}") };
        let Reason::Silent { discards, .. } = &failures.0[0].reason else { panic!("{what}") };
        assert_eq!(discards, &Discards([(why, 1)].into()), "{what}");
    }
}

#[tokio::test]
async fn an_answer_from_elsewhere_is_not_heard() {
    let peer = Peer::start().await;
    let port = peer.socket.local_addr().unwrap().port();
    let reply = against(&peer, async |asked| {
        // The right bytes, from another port and from another address.
        for from in ["127.0.0.1:0".to_owned(), format!("127.0.0.2:{port}")] {
            let elsewhere = UdpSocket::bind(from).await.unwrap();
            elsewhere.send_to(&asked.reply(ACCEPT).bytes(), asked.from).await.unwrap();
        }
        peer.send(&asked, &asked.reply(REJECT).bytes()).await;
    })
    .await
    .unwrap();
    assert!(matches!(reply.verdict, Verdict::Reject), "{reply:?}");
}

#[tokio::test]
async fn a_request_is_sent_again_byte_for_byte_and_the_next_is_unlike_it() {
    let peer = Peer::start().await;
    let server = Server { timeout: Duration::from_secs(7), tries: 3, ..peer.server("peer") };
    let client = client(vec![server]);
    let mut before: Option<Asked> = None;
    for _ in 0..2 {
        let asked = async {
            let first = peer.asked().await;
            for _ in 0..2 {
                assert_eq!(peer.asked().await, first);
            }
            peer.send(&first, &first.reply(ACCEPT).bytes()).await;
            first
        };
        let (reply, asked) = tokio::join!(ask(&client, "alice", "1", None), asked);
        assert!(matches!(reply.unwrap().verdict, Verdict::Accept));
        if let Some(before) = before.replace(asked.clone()) {
            assert_ne!(asked.bytes[4..20], before.bytes[4..20]);
            assert_ne!(asked.from.port(), before.from.port());
        }
        assert_eq!(asked.bytes[20..22], [80, 18], "the Message-Authenticator is not first");
    }
}

#[tokio::test]
async fn a_silent_server_gets_as_many_requests_as_set_and_no_more() {
    let peer = Peer::start().await;
    let server = Server { timeout: Duration::from_millis(400), tries: 4, ..peer.server("peer") };
    let before = Instant::now();
    let refused = ask(&client(vec![server]), "alice", "1", None).await;
    assert!(matches!(refused, Err(Error::AllDead(_))), "{refused:?}");
    assert!(before.elapsed() >= Duration::from_millis(400));
    for _ in 0..4 {
        peer.asked().await;
    }
    let more = peer.socket.try_recv(&mut [0; 64]);
    assert_eq!(more.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_does_not_hold_anybody_up() {
    let peer = Peer::start().await;
    let server = Server { timeout: Duration::from_millis(500), ..peer.server("peer") };
    let client = client(vec![server]);
    let before = Instant::now();
    let mut flood = JoinSet::new();
    flood.spawn(async move {
        let asked = peer.asked().await;
        let junk = Forgery { mac: Mac::Wrong, ..asked.reply(ACCEPT) }.bytes();
        // Once the client is gone, the system says so.
        while peer.socket.send_to(&junk, asked.from).await.is_ok() {}
    });
    let refused = ask(&client, "alice", "1", None).await;
    assert!(matches!(refused, Err(Error::AllDead(_))), "{refused:?}");
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_challenge_brings_its_state_back_exactly() {
    let peer = Peer::start().await;
    let client = client(vec![peer.server("peer")]);
    let (mut state, value) = (None, [0, 255, 27, 10]);
    for (code, with_state) in [(CHALLENGE, true), (CHALLENGE, false), (REJECT, true)] {
        let expected: Vec<Vec<u8>> = match (&state, code) {
            (None, _) | (_, REJECT) => vec![],
            _ => vec![value.to_vec()],
        };
        let answer = async {
            let asked = peer.asked().await;
            assert_eq!(asked.values(24), expected);
            let reply = asked.reply(code).with(18, b"\x1b[2Jcode?\r\n");
            let reply = if with_state { reply.with(24, &value) } else { reply };
            peer.send(&asked, &reply.bytes()).await;
        };
        let (reply, ()) = tokio::join!(ask(&client, "alice", "1", state.take()), answer);
        let reply = reply.unwrap();
        assert_eq!(reply.message, "\x1b[2Jcode?\r\n");
        state = match reply.verdict {
            Verdict::Challenge(state) => Some(state),
            _ => None,
        };
        assert_eq!(state.is_some(), code == CHALLENGE);
    }
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_set() {
    let peer = Peer::start().await;
    let settings = Settings { concurrent: 2, ..Settings::new("bastion") };
    let client = Client::new(vec![peer.server("peer")], settings).unwrap();
    let mut asking = std::pin::pin!(async {
        tokio::join!(
            ask(&client, "a", "1", None),
            ask(&client, "b", "1", None),
            ask(&client, "c", "1", None),
        )
    });
    let answering = async {
        let (first, second) = (peer.asked().await, peer.asked().await);
        // All three were begun at once, and on loopback what is sent is there.
        let third = peer.socket.try_recv(&mut [0; 64]);
        assert_eq!(third.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        peer.send(&first, &first.reply(ACCEPT).bytes()).await;
        let third = peer.asked().await;
        assert_eq!(third.values(1), [b"c"]);
        for asked in [second, third] {
            peer.send(&asked, &asked.reply(ACCEPT).bytes()).await;
        }
    };
    let ((a, b, c), ()) = tokio::join!(asking.as_mut(), answering);
    for reply in [a, b, c] {
        assert!(matches!(reply.unwrap().verdict, Verdict::Accept));
    }
}
