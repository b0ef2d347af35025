//! Thousands of connections that do nothing: what they take, and whether others get in meanwhile.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;

use crate::Options;
use crate::client::{Factors, open};
use crate::lab::{Lab, Way};
use crate::process::pss_kib;
use crate::table::{Series, Table};

/// Who holds them: somebody who needs no code from this machine, since a code works once.
const WHO: &str = "u0";
/// How many come at a time.
const AT_ONCE: usize = 16;
/// Sign-ins that are measured meanwhile.
const SIGN_INS: usize = 100;

pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    let rule = ["user", "sign-in", WHO, "key from 127.0.0.0/8"];
    lab.server.run(&rule).await.ok();
    let key = Arc::new(russh::keys::load_secret_key(lab.target.identity(), None).unwrap());
    let (port, count) = (lab.server.port, options.idle);
    let before = pss_kib(lab.pid(Way::Tunnel));
    let began = Instant::now();
    let mut held = Vec::with_capacity(count);
    let mut coming = tokio::task::JoinSet::new();
    while held.len() < count {
        while coming.len() < AT_ONCE && held.len() + coming.len() < count {
            let key = Arc::clone(&key);
            coming
                .spawn(async move { open(port, WHO, Factors::Key { key, code: "" }, None).await });
        }
        held.push(coming.join_next().await.unwrap().unwrap());
    }
    let [mut memory, mut each, mut rate, mut p50, mut p95]: [Series; 5] = Default::default();
    rate.push(count as f64 / began.elapsed().as_secs_f64());
    let after = pss_kib(lab.pid(Way::Tunnel));
    memory.push(after as f64 / 1024.0);
    each.push(after.saturating_sub(before) as f64 / count as f64);
    let mut took = Series::default();
    for _ in 0..SIGN_INS {
        let mut ssh = lab.ssh_as(&["-S", "none", "-W", &tunnel(lab), "jump-sallyport"]).await;
        let began = Instant::now();
        let mut child = ssh.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).await.expect("nobody was let in");
        took.push(began.elapsed().as_secs_f64() * 1000.0);
        child.kill().await.unwrap();
    }
    p50.push(took.quantile(0.5));
    p95.push(took.quantile(0.95));
    for (what, unit, series) in [
        (format!("{count} idle connections: PSS of the jump host"), "MiB", memory),
        (format!("{count} idle connections: PSS of each"), "KiB", each),
        (format!("{count} idle connections: let in"), "1/s", rate),
        (format!("sign-in, key + code, beside {count} idle: p50"), "ms", p50),
        (format!("sign-in, key + code, beside {count} idle: p95"), "ms", p95),
    ] {
        table.ours(what, unit, series);
    }
    drop(held);
    lab.server.run(&["user", "sign-in", WHO, "default"]).await.ok();
}

fn tunnel(lab: &Lab) -> String {
    format!("tunnel:{}", lab.target.port)
}
