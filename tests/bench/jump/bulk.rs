//! Bulk transfers: how fast, and at what cost to the jump host.

use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Options;
use crate::lab::{Lab, Way};
use crate::process::cpu_seconds;
use crate::table::{Series, Table};

#[derive(Clone, Copy)]
pub enum Direction {
    Up,
    Down,
}

/// CPU seconds of the jump host per GiB, and MiB/s.
#[derive(Default, Clone)]
pub struct Cost {
    pub cpu: Series,
    pub speed: Series,
}

impl Cost {
    /// One transfer: how much it carried, and the seconds of the jump host's CPU and of the clock.
    pub fn push(&mut self, mib: f64, cpu: f64, seconds: f64) {
        self.cpu.push(cpu * 1024.0 / mib);
        self.speed.push(mib / seconds);
    }
}

/// Through the tunnel of `ssh -J`, per cipher.
pub async fn measure(lab: &Lab, options: &Options, table: &mut Table) {
    for cipher in &options.ciphers {
        lab.prefer(cipher);
        let ways = [Way::Sshd, Way::Tunnel];
        for (direction, word) in [(Direction::Up, "up"), (Direction::Down, "down")] {
            let [sshd, ours] = rounds(lab, options, ways, direction, Content::Zeros).await;
            table.pair(format!("-J {word}, {cipher}: CPU"), "s/GiB", sshd.cpu, ours.cpu);
            table.pair(format!("-J {word}, {cipher}: speed"), "MiB/s", sshd.speed, ours.speed);
        }
    }
    lab.prefer("aes128-gcm@openssh.com");
}

/// What is carried; a recording of it costs more or less.
#[derive(Clone, Copy)]
enum Content {
    Zeros,
    Text,
}

/// Recorded, beside sshd's tunnel, which sees nothing.
pub async fn measure_recorded(lab: &Lab, options: &Options, table: &mut Table) {
    for (direction, content, word) in [
        (Direction::Up, Content::Zeros, "up"),
        (Direction::Down, Content::Text, "down, text"),
        (Direction::Down, Content::Zeros, "down, zeros"),
    ] {
        let ways = [Way::Sshd, Way::Record];
        let [sshd, ours] = rounds(lab, options, ways, direction, content).await;
        table.pair(format!("recorded {word}: CPU"), "s/GiB", sshd.cpu, ours.cpu);
        table.pair(format!("recorded {word}: speed"), "MiB/s", sshd.speed, ours.speed);
    }
}

async fn rounds(
    lab: &Lab,
    options: &Options,
    ways: [Way; 2],
    direction: Direction,
    content: Content,
) -> [Cost; 2] {
    let mut costs = [Cost::default(), Cost::default()];
    let mut masters = Vec::new();
    for way in ways {
        masters.push(lab.master(way).await);
    }
    for _ in 0..options.rounds {
        for (way, cost) in ways.into_iter().zip(&mut costs) {
            let (before, began) = (cpu_seconds(lab.pid(way)), Instant::now());
            transfer(lab, way, direction, content, options.mib << 20).await;
            let seconds = began.elapsed().as_secs_f64();
            let cpu = cpu_seconds(lab.pid(way)) - before;
            cost.push(options.mib as f64, cpu, seconds);
        }
    }
    for master in masters {
        lab.end(master).await;
    }
    costs
}

async fn transfer(lab: &Lab, way: Way, direction: Direction, content: Content, bytes: u64) {
    let line = match (direction, content) {
        (Direction::Up, _) => "cat > /dev/null".to_owned(),
        (Direction::Down, Content::Zeros) => format!("head -c {bytes} /dev/zero"),
        (Direction::Down, Content::Text) => {
            format!("yes 'a line of text as a program writes it, 64 bytes or so' | head -c {bytes}")
        }
    };
    let mut ssh = lab.ssh(&[way.target(), &line]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let feed = async move {
        if matches!(direction, Direction::Up) {
            let zeros = vec![0; 1 << 18];
            let mut left = bytes;
            while left > 0 {
                let piece = left.min(zeros.len() as u64);
                input.write_all(&zeros[..piece as usize]).await.unwrap();
                left -= piece;
            }
        }
    };
    let drain = async move {
        let (mut buffer, mut read) = (vec![0; 1 << 18], 0);
        loop {
            match output.read(&mut buffer).await.unwrap() {
                0 => return read,
                n => read += n as u64,
            }
        }
    };
    let ((), read) = tokio::join!(feed, drain);
    assert!(child.wait().await.unwrap().success());
    assert_eq!(read, if matches!(direction, Direction::Up) { 0 } else { bytes });
}
