//! What somebody who works notices while many sign in with passwords: hashing must not hold their keys
//! back. The crowd goes no further than the door: what is behind it would be measured.

use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Options;
use crate::client::{Factors, open};
use crate::lab::{Lab, Way};
use crate::table::{Series, Table};

/// How many sign in at a time.
pub const CROWD: usize = 500;
/// Keys that are typed before the crowd comes.
const KEYS: usize = 500;

pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    let ways = [Way::Tunnel, Way::Record];
    for (way, word) in ways.into_iter().zip(["", ", recorded"]) {
        let [mut p50, mut p99, mut most, mut alone, mut took]: [Series; 5] = Default::default();
        for _ in 0..options.rounds {
            let round = round(lab, way).await;
            alone.push(round.alone.quantile(0.99));
            p50.push(round.beside.quantile(0.5));
            p99.push(round.beside.quantile(0.99));
            most.push(round.beside.quantile(1.0));
            took.push(round.seconds);
        }
        for (what, unit, series) in [
            (format!("echo before {CROWD} sign in at once{word}: p99"), "ms", alone),
            (format!("echo while {CROWD} sign in at once{word}: p50"), "ms", p50),
            (format!("echo while {CROWD} sign in at once{word}: p99"), "ms", p99),
            (format!("echo while {CROWD} sign in at once{word}: most"), "ms", most),
            (format!("until {CROWD} have signed in{word}"), "s", took),
        ] {
            table.ours(what, unit, series);
        }
    }
}

/// Milliseconds that a key takes to come back.
struct Round {
    alone: Series,
    beside: Series,
    /// How long it took until all had signed in.
    seconds: f64,
}

async fn round(lab: &Lab, way: Way) -> Round {
    let master = lab.master(way).await;
    let mut codes = Vec::new();
    for _ in 0..CROWD {
        codes.push(lab.code().await);
    }
    let mut ssh = lab.ssh(&[way.target(), "cat"]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut echo = async || {
        let (began, mut byte) = (Instant::now(), [0]);
        input.write_all(b"x").await.unwrap();
        output.read_exact(&mut byte).await.unwrap();
        began.elapsed().as_secs_f64() * 1000.0
    };
    let [mut alone, mut beside]: [Series; 2] = Default::default();
    echo().await; // The first brings the target's shell along.
    for _ in 0..KEYS {
        alone.push(echo().await);
    }
    let began = Instant::now();
    let mut crowd = tokio::task::JoinSet::new();
    for (user, code) in codes {
        let port = lab.server.port;
        let given = async move { open(port, &user, Factors::Password { code: &code }, None).await };
        crowd.spawn(given);
    }
    let mut held = Vec::new();
    loop {
        beside.push(echo().await);
        while let Some(signed_in) = crowd.try_join_next() {
            held.push(signed_in.unwrap());
        }
        if crowd.is_empty() {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(held.len(), CROWD);
    child.kill().await.unwrap();
    lab.end(master).await;
    Round { alone, beside, seconds }
}
