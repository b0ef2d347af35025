//! How long a key takes to come back.

use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Options;
use crate::lab::{Lab, Way};
use crate::table::{Series, Table};

/// Keys of one measurement.
const KEYS: usize = 1000;

/// What goes on beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// A transfer on the same connection to the jump host.
    Same,
    /// A transfer on another one.
    Other,
}

pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    for (beside, words) in [
        (Beside::Nothing, "alone"),
        (Beside::Same, "beside a transfer on the same connection"),
        (Beside::Other, "beside a transfer on another connection"),
    ] {
        let ways = [Way::Sshd, Way::Tunnel, Way::Record];
        let mut p50: [Series; 3] = Default::default();
        let mut p99: [Series; 3] = Default::default();
        for _ in 0..options.rounds {
            for (n, way) in ways.into_iter().enumerate() {
                let times = round(lab, way, beside).await;
                p50[n].push(times.quantile(0.5));
                p99[n].push(times.quantile(0.99));
            }
        }
        for (name, [sshd, tunnel, record]) in [("p50", p50), ("p99", p99)] {
            table.pair(format!("echo {words}: {name}"), "us", sshd.clone(), tunnel);
            table.pair(format!("echo {words}, recorded: {name}"), "us", sshd, record);
        }
    }
}

async fn round(lab: &Lab, way: Way, beside: Beside) -> Series {
    let master = lab.master(way).await;
    // Another person's, with the same key: it shares nothing.
    let mut transfer = match beside {
        Beside::Nothing => None,
        Beside::Same => Some(lab.ssh(&[way.target(), "cat /dev/zero"])),
        Beside::Other => {
            let target = format!(
                "{}:{}",
                if way == Way::Sshd { "127.0.0.1" } else { "tunnel" },
                lab.target.port
            );
            let to = format!("ProxyCommand={}", lab.proxy(way, &target).await);
            Some(lab.ssh(&["-o", &to, "direct", "cat /dev/zero"]))
        }
    };
    let transfer = transfer.as_mut().map(|ssh| ssh.stdout(Stdio::piped()).spawn().unwrap());
    let mut draining = tokio::task::JoinSet::new();
    if let Some(mut transfer) = transfer {
        let mut output = transfer.stdout.take().unwrap();
        let mut first = vec![0; 1 << 16];
        output.read_exact(&mut first).await.unwrap();
        draining.spawn(async move {
            let _transfer = transfer; // Ends with this task.
            let mut buffer = vec![0; 1 << 18];
            while output.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
        });
    }
    let mut ssh = lab.ssh(&[way.target(), "cat"]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut times = Series::default();
    let mut byte = [0];
    for n in 0..KEYS + 50 {
        let began = Instant::now();
        input.write_all(b"x").await.unwrap();
        output.read_exact(&mut byte).await.unwrap();
        if n >= 50 {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    child.kill().await.unwrap();
    draining.shutdown().await;
    lab.end(master).await;
    times
}
