//! What an idle connection with one open forward takes of the jump host's memory.

use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};

use crate::Options;
use crate::lab::{Lab, Way};
use crate::process::pss_kib;
use crate::table::{Series, Table};

struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A connection to a jump host, and its channel to the target.
struct Idle {
    _handle: client::Handle<Anybody>,
    channel: russh::Channel<client::Msg>,
}

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

async fn open(lab: &Lab, way: Way) -> Idle {
    let config = Arc::new(client::Config::default());
    let (port, key, user) = match way {
        Way::Sshd => (lab.jump.port, lab.jump.identity(), crate::support::present_user()),
        Way::Tunnel | Way::Record => (lab.server.port, lab.target.identity(), String::new()),
    };
    let (user, code) = if user.is_empty() { lab.code().await } else { (user, String::new()) };
    let mut handle = client::connect(config, ("127.0.0.1", port), Anybody).await.unwrap();
    let key = Arc::new(russh::keys::load_secret_key(key, None).unwrap());
    let key = PrivateKeyWithHashAlg::new(key, None);
    let first = handle.authenticate_publickey(&user, key).await.unwrap();
    if !matches!(first, AuthResult::Success) {
        answer(&mut handle, &user, &code).await;
    }
    let host = if way == Way::Sshd { "127.0.0.1" } else { "tunnel" };
    let to = u32::from(lab.target.port);
    let channel = handle.channel_open_direct_tcpip(host, to, "127.0.0.1", 0).await.unwrap();
    Idle { _handle: handle, channel }
}

async fn answer(handle: &mut client::Handle<Anybody>, user: &str, code: &str) {
    let mut asked = handle.authenticate_keyboard_interactive_start(user, None).await.unwrap();
    loop {
        asked = match asked {
            KeyboardInteractiveAuthResponse::Success => return,
            KeyboardInteractiveAuthResponse::Failure { .. } => panic!("{user} was refused"),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                let answers = prompts.iter().map(|_| code.to_owned()).collect();
                handle.authenticate_keyboard_interactive_respond(answers).await.unwrap()
            }
        };
    }
}

/// Sends 1 MiB to the target, which does not understand it, and takes what it says.
async fn carry(idle: &mut Idle) {
    let piece = vec![b'x'; 1 << 15];
    for _ in 0..32 {
        if idle.channel.data(&piece[..]).await.is_err() {
            break; // The target has had enough.
        }
    }
    while let Ok(Some(_)) =
        tokio::time::timeout(Duration::from_millis(5), idle.channel.wait()).await
    {}
}
