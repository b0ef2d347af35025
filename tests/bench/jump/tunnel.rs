//! Bulk through one forwarded port: no second encryption in the client, so that the jump host is
//! what is measured.

use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::Options;
use crate::bulk::{Cost, Direction};
use crate::lab::{Lab, Way};
use crate::process::cpu_seconds;
use crate::support::{eventually, free_port};
use crate::table::Table;

/// How much is read or written at a time.
const PIECE: usize = 1 << 18;

/// Takes everything, or sends as much as it is asked for: a letter and eight bytes say which.
pub async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).ok();
        #[allow(clippy::disallowed_methods)] // It ends with its connection.
        tokio::spawn(answer(stream));
    }
}

/// What [`serve`] is asked by.
pub fn request(direction: Direction, bytes: u64) -> Vec<u8> {
    let way = if matches!(direction, Direction::Up) { b'u' } else { b'd' };
    [&[way][..], &bytes.to_be_bytes()].concat()
}

/// An end of the connection ends this, too: nobody is there to be told.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let way = stream.read_u8().await?;
        let bytes = stream.read_u64().await?;
        if way == b'u' {
            take(&mut stream, bytes).await?;
            stream.write_all(b".").await?;
        } else {
            give(&mut stream, bytes).await?;
        }
    }
}

async fn take(stream: &mut TcpStream, bytes: u64) -> std::io::Result<()> {
    let (mut buffer, mut left) = (vec![0; PIECE], bytes);
    while left > 0 {
        match stream.read(&mut buffer).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => left -= read as u64,
        }
    }
    Ok(())
}

async fn give(stream: &mut TcpStream, bytes: u64) -> std::io::Result<()> {
    let (buffer, mut left) = (vec![0; PIECE], bytes);
    while left > 0 {
        let piece = left.min(PIECE as u64) as usize;
        stream.write_all(&buffer[..piece]).await?;
        left -= piece as u64;
    }
    Ok(())
}

/// Up and down through `ssh -N -L`, per cipher.
pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    for cipher in &options.ciphers {
        lab.prefer(cipher);
        let mut costs: [[Cost; 2]; 2] = Default::default();
        let mut forwards = Vec::new();
        for way in [Way::Sshd, Way::Tunnel] {
            forwards.push((way, forward(lab, way).await));
        }
        for _ in 0..options.rounds {
            for (n, direction) in [Direction::Up, Direction::Down].into_iter().enumerate() {
                for (m, (way, (port, _))) in forwards.iter().enumerate() {
                    let (before, began) = (cpu_seconds(lab.pid(*way)), Instant::now());
                    transfer(*port, direction, options.mib << 20).await;
                    let seconds = began.elapsed().as_secs_f64();
                    let cpu = cpu_seconds(lab.pid(*way)) - before;
                    costs[n][m].push(options.mib as f64, cpu, seconds);
                }
            }
        }
        for (_, (_, master)) in forwards {
            lab.end(master).await;
        }
        for (word, [sshd, ours]) in ["up", "down"].into_iter().zip(costs) {
            table.pair(format!("-L {word}, {cipher}: CPU"), "s/GiB", sshd.cpu, ours.cpu);
            table.pair(format!("-L {word}, {cipher}: speed"), "MiB/s", sshd.speed, ours.speed);
        }
    }
    lab.prefer("aes128-gcm@openssh.com");
}

/// A port of this machine that leads over the jump host to [`serve`], and the `ssh` behind it.
async fn forward(lab: &Lab, way: Way) -> (u16, tokio::process::Child) {
    let port = free_port();
    let host = if way == Way::Sshd { "127.0.0.1" } else { "sink" };
    let leads = format!("{port}:{host}:{}", lab.sink);
    let mut ssh = lab.ssh(&["-S", "none", "-N", "-L", &leads, way.jump()]);
    lab.sign_in(&mut ssh, way).await;
    let child = ssh.spawn().unwrap();
    eventually("the port is forwarded", async || {
        TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
    })
    .await;
    (port, child)
}

async fn transfer(port: u16, direction: Direction, bytes: u64) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&request(direction, bytes)).await.unwrap();
    if matches!(direction, Direction::Up) {
        give(&mut stream, bytes).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'.');
    } else {
        take(&mut stream, bytes).await.unwrap();
    }
}
