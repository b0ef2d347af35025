//! Signing in: how many a second, how long one takes, and what it costs the jump host.

use std::process::Stdio;
use std::time::Instant;

use russh::Disconnect;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::Options;
use crate::bulk::Direction;
use crate::client::Login;
use crate::lab::{Lab, Way};
use crate::process::cpu_seconds;
use crate::table::{Series, Table};

/// Logins by `ssh` of one measurement; as many people have a code at a time.
const LOGINS: usize = 32;
/// Those by the client that costs little.
const LIGHT_LOGINS: usize = 256;

/// What `ssh` signs in with.
#[derive(Clone, Copy)]
enum SshLogin {
    /// What sshd is asked for.
    Key,
    KeyAndCode,
    PasswordAndCode,
}

#[derive(Default)]
struct Logins {
    per_second: Series,
    /// Milliseconds of each.
    took: Series,
    /// Milliseconds of CPU of each.
    cpu: Series,
}

/// With a key, and on Sallyport a code, by a client that costs little; to the target's first byte.
pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    for parallel in [1, 4, 16] {
        let mut all: [Logins; 2] = Default::default();
        for _ in 0..options.rounds {
            for (way, logins) in [Way::Sshd, Way::Tunnel].into_iter().zip(&mut all) {
                let mut ready = Vec::new();
                for _ in 0..LIGHT_LOGINS {
                    ready.push(Login::new(lab, way).await);
                }
                let each = ready.into_iter().map(light_first_byte);
                run(lab, way, parallel, each, logins).await;
            }
        }
        let [sshd, ours] = all;
        let what = format!("sign-in, key + code (sshd: key), {parallel} at once");
        rows(table, &what, &sshd, ours);
    }
}

/// Seconds to the first byte of what is behind the jump host; the end is not counted.
async fn light_first_byte(login: Login) -> f64 {
    let began = Instant::now();
    let mut connection = login.open().await;
    connection.carry(Direction::Down, 1).await;
    let took = began.elapsed().as_secs_f64();
    let _gone = connection.handle.disconnect(Disconnect::ByApplication, "", "").await;
    took
}

/// From the start of `ssh -W` to the target's first byte.
pub async fn measure_ssh(lab: &Lab, options: &Options, table: &mut Table) {
    for parallel in [1, 4, 16] {
        let mut all: [Logins; 3] = Default::default();
        for _ in 0..options.rounds {
            let kinds = [SshLogin::Key, SshLogin::KeyAndCode, SshLogin::PasswordAndCode];
            for (login, logins) in kinds.into_iter().zip(&mut all) {
                round(lab, login, parallel, logins).await;
            }
        }
        let [sshd, key, password] = all;
        for (ours, what) in [(key, "key + code"), (password, "password + code")] {
            let what = format!("ssh -W, {what} (sshd: key), {parallel} at once");
            rows(table, &what, &sshd, ours);
        }
    }
}

fn rows(table: &mut Table, what: &str, sshd: &Logins, ours: Logins) {
    table.pair(what, "1/s", sshd.per_second.clone(), ours.per_second);
    table.pair(format!("{what}: CPU"), "ms", sshd.cpu.clone(), ours.cpu);
    for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
        let one = |series: &Series| {
            let mut one = Series::default();
            one.push(series.quantile(share));
            one
        };
        table.pair(format!("{what}: {name}"), "ms", one(&sshd.took), one(&ours.took));
    }
}

async fn round(lab: &Lab, login: SshLogin, parallel: usize, logins: &mut Logins) {
    let way = if matches!(login, SshLogin::Key) { Way::Sshd } else { Way::Tunnel };
    let mut commands = Vec::new();
    for _ in 0..LOGINS {
        commands.push(command(lab, login).await);
    }
    run(lab, way, parallel, commands.into_iter().map(first_byte), logins).await;
}

/// Runs sign-ins, so many at once; each gives the seconds that it took.
async fn run<F>(
    lab: &Lab,
    way: Way,
    parallel: usize,
    mut waiting: impl ExactSizeIterator<Item = F>,
    logins: &mut Logins,
) where
    F: Future<Output = f64> + Send + 'static,
{
    let count = waiting.len() as f64;
    let (before, began) = (cpu_seconds(lab.pid(way)), Instant::now());
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.len() < parallel
            && let Some(login) = waiting.next()
        {
            running.spawn(login);
        }
        match running.join_next().await {
            Some(took) => logins.took.push(took.unwrap() * 1000.0),
            None => break,
        }
    }
    logins.per_second.push(count / began.elapsed().as_secs_f64());
    let cpu = cpu_seconds(lab.pid(way)) - before;
    logins.cpu.push(cpu * 1000.0 / count);
}

async fn command(lab: &Lab, login: SshLogin) -> Command {
    let port = lab.target.port;
    match login {
        SshLogin::Key => lab.ssh(&["-S", "none", "-W", &format!("127.0.0.1:{port}"), "jump-sshd"]),
        SshLogin::KeyAndCode => {
            lab.ssh_as(&["-S", "none", "-W", &format!("tunnel:{port}"), "jump-sallyport"]).await
        }
        SshLogin::PasswordAndCode => {
            let to = format!("tunnel:{port}");
            let only = "PubkeyAuthentication=no";
            lab.ssh_as(&["-S", "none", "-o", only, "-W", &to, "jump-sallyport"]).await
        }
    }
}

/// Seconds from its start to its first byte of output.
async fn first_byte(mut ssh: Command) -> f64 {
    let began = Instant::now();
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = ssh.spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).await.expect("nobody was let in");
    let took = began.elapsed().as_secs_f64();
    child.kill().await.unwrap();
    took
}

/// `ssh -J host`, over a jump host that has not been signed in on yet.
pub async fn measure_first_byte(lab: &Lab, options: &Options, table: &mut Table) {
    let ways = [Way::Sshd, Way::Tunnel, Way::Record];
    let mut all: [Series; 3] = Default::default();
    for _ in 0..options.rounds {
        for (way, series) in ways.into_iter().zip(&mut all) {
            let mut ssh = lab.ssh(&[way.target(), "echo x"]);
            lab.sign_in(&mut ssh, way).await;
            series.push(first_byte(ssh).await * 1000.0);
        }
    }
    let [sshd, tunnel, record] = all;
    table.pair("ssh -J to the first byte, key (+ code)", "ms", sshd.clone(), tunnel);
    table.pair("ssh -J to the first byte, recorded", "ms", sshd, record);
}
