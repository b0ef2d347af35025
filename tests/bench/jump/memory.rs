//! What an idle connection with one open forward takes of the jump host's memory.

use std::time::Duration;

use crate::Options;
use crate::bulk::Direction;
use crate::client::Login;
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
                idle.push(Login::new(lab, way).await.open().await);
            }
            let each = |total: u64| total.saturating_sub(empty) as f64 / *count as f64;
            fresh[n].push(each(pss_kib(lab.pid(way))));
            for connection in &mut idle {
                connection.carry(Direction::Up, 1 << 20).await;
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
