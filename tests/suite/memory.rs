//! What one signed-in client can make the bastion hold: never more than is held for one connection.

use crate::support::bastion::{Engine, PASSWORD, TestBastion};
use crate::support::eventually;
use crate::support::raw::{CLOSE, DATA, Packet, RawClient, USERAUTH_SUCCESS};

const MIB: usize = 1 << 20;
/// As many as one connection may have.
const CHANNELS: u32 = 64;

/// Memory of this process, which is the bastion's and the test's.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

async fn signed_in(bastion: &TestBastion, name: &str) -> RawClient {
    let person = bastion.person(name).await;
    let mut client = RawClient::connect(bastion.port).await;
    let code = bastion.code(&person);
    assert_eq!(client.log_in(name, PASSWORD, &code).await, USERAUTH_SUCCESS);
    client
}

/// Opens session channels and asks for nothing on them; gives the bastion's numbers of them.
async fn channels(client: &mut RawClient) -> Vec<u32> {
    let mut channels = Vec::new();
    for ours in 0..CHANNELS {
        client.ask_channel("session", ours, Packet::default()).await;
        channels.push(client.opened(ours).await.unwrap());
    }
    channels
}

/// Runs a command of the console, and waits for its end.
async fn is_served(client: &mut RawClient, ours: u32) {
    client.ask_channel("session", ours, Packet::default()).await;
    let id = client.opened(ours).await.unwrap();
    client.send(&Packet::new(98).number(id).text("exec").bytes(&[1]).text("help").0).await;
    while client.next().await[0] != CLOSE {}
}

fn data(channel: u32, bytes: &[u8]) -> Vec<u8> {
    Packet::new(DATA).number(channel).text(bytes).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ignores_its_windows_is_ended_before_it_holds_much() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let mut other = signed_in(&bastion, "bob").await;
    let mut client = signed_in(&bastion, "alice").await;
    let channels = channels(&mut client).await;
    is_served(&mut other, 0).await;
    let (before, mut most_held) = (resident(), 0);
    // 87 MiB on each of them, if it were let.
    let ended = 'sending: {
        for _ in 0..87 * 32 {
            for channel in &channels {
                if !client.pour(&data(*channel, &[7; 32 * 1024]), 1).await {
                    break 'sending true;
                }
            }
            most_held = most_held.max(bastion.bastion.budget.held());
            let grown = resident().saturating_sub(before);
            assert!(grown < 64 * MIB, "{} MiB are taken", grown / MIB);
        }
        false
    };
    assert!(ended, "it sent {} MiB", 87 * CHANNELS);
    assert!(most_held < 36 * MIB, "{most_held} bytes were held");
    let event = bastion.event("session-ended", &[("user", "alice")]).await;
    assert_eq!(event["reason"], "protocol-error");
    eventually("nothing is held", async || (bastion.bastion.budget.held() == 0).then_some(()))
        .await;
    is_served(&mut other, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asked_for_yet_is_a_window_at_most() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let mut client = signed_in(&bastion, "alice").await;
    client.ask_channel("session", 0, Packet::default()).await;
    let id = client.opened(0).await.unwrap();
    client.pour(&data(id, &[7; 32 * 1024]), 32).await;
    eventually("a window is held", async || (bastion.bastion.budget.held() == MIB).then_some(()))
        .await;
    client.pour(&data(id, &[7]), 1).await;
    eventually("nothing is held", async || (bastion.bastion.budget.held() == 0).then_some(()))
        .await;
    // The channel is gone, and no more than that.
    is_served(&mut client, 1).await;
}

/// Each within its window, and each costs much more than it counts for unless they are put together.
#[tokio::test(flavor = "multi_thread")]
async fn very_many_small_pieces_take_little_more_than_what_they_hold() {
    let bastion = TestBastion::start(Engine::Sqlite).await;
    let mut other = signed_in(&bastion, "bob").await;
    let mut client = signed_in(&bastion, "alice").await;
    let channels = channels(&mut client).await;
    let (each, before) = (10_000, resident());
    for channel in &channels {
        assert!(client.pour(&data(*channel, &[7]), each).await);
    }
    let sent = each * channels.len();
    eventually("all of it is held", async || (bastion.bastion.budget.held() == sent).then_some(()))
        .await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 24 * MIB, "{} MiB hold {sent} bytes", grown / MIB);
    is_served(&mut other, 0).await;
    assert!(bastion.kinds("session-ended").await.is_empty());
}
