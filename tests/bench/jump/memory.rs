//! What an idle connection with one open forward takes of the jump host's memory.

use std::sync::Arc;
use std::time::Duration;

use crate::Options;
use crate::client::{self, Factors, Open};
use crate::lab::{Lab, Way};
use crate::process::pss_kib;
use crate::table::{Series, Table};

pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    for count in &options.connections {
        let [mut fresh, mut after, mut left]: [[Series; 2]; 3] = Default::default();
        for (n, way) in [Way::Sshd, Way::Tunnel].into_iter().enumerate() {
            let empty = pss_kib(lab.pid(way));
            let mut idle = Vec::new();
            for _ in 0..*count {
                idle.push(open(lab, way).await);
            }
            let each = |total: u64| total.saturating_sub(empty) as f64 / *count as f64;
            fresh[n].push(each(pss_kib(lab.pid(way))));
            for connection in &mut idle {
                carry(connection).await;
            }
            after[n].push(each(pss_kib(lab.pid(way))));
            drop(idle);
            tokio::time::sleep(Duration::from_secs(3)).await;
            left[n].push(pss_kib(lab.pid(way)) as f64 / empty as f64);
        }
        for (what, unit, [sshd, ours]) in [
            ("PSS per idle connection", "KiB", fresh),
            ("PSS per idle connection after 1 MiB", "KiB", after),
            ("PSS when they left, to that before", "times", left),
        ] {
            table.pair(format!("{what}, {count} of them"), unit, sshd, ours);
        }
    }
}

async fn open(lab: &Lab, way: Way) -> Open {
    let (port, key) = match way {
        Way::Sshd => (lab.jump.port, lab.jump.identity()),
        Way::Tunnel | Way::Record => (lab.server.port, lab.target.identity()),
    };
    let (user, code) = match way {
        Way::Sshd => (crate::support::present_user(), String::new()),
        Way::Tunnel | Way::Record => lab.code().await,
    };
    let key = Arc::new(russh::keys::load_secret_key(key, None).unwrap());
    let host = if way == Way::Sshd { "127.0.0.1" } else { "tunnel" };
    let factors = Factors::Key { key, code: &code };
    client::open(port, &user, factors, Some((host, lab.target.port))).await
}

/// Sends 1 MiB to the target, which does not understand it, and takes what it says.
async fn carry(idle: &mut Open) {
    let channel = idle.channel.as_mut().unwrap();
    let piece = vec![b'x'; 1 << 15];
    for _ in 0..32 {
        if channel.data(&piece[..]).await.is_err() {
            break; // The target has had enough.
        }
    }
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(5), channel.wait()).await {}
}
