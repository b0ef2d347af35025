//! `cargo bench --bench jump`: Sallyport as the jump host beside OpenSSH's sshd, in one run.
//!
//! Always holds: both are asked for the same by the same client, in turns, on loopback; CPU is that
//! of the jump host alone, with all its processes; every figure is a median with its spread, and a
//! ratio where sshd does the same. Options come after `--`: see `--help`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)] // Nothing outside a benchmark could be reached.

mod bulk;
mod client;
mod echo;
mod idle;
mod lab;
mod logins;
mod memory;
mod process;
mod storm;
mod table;
mod tunnel;

/// What the tests are made of; not all of it is used here.
#[allow(unused_imports, unused_macros)]
#[path = "../../suite/support/mod.rs"]
mod support;

use lab::Lab;
use table::Table;

const HELP: &str = "Measures Sallyport as a jump host beside OpenSSH's sshd.

Usage: cargo bench --bench jump -- [OPTIONS]

  --only PART[,PART]   of: tunnel, bulk, record, logins, ssh-logins, first-byte, echo, storm,
                       memory, idle [all]
  --rounds N           how often each figure is measured [5]
  --mib N              how much a bulk transfer carries [512]
  --connections N,N    idle connections that are held [100,500]
  --idle N             connections that sign in and do nothing, in the part \"idle\" [2000]
  --ciphers A,B        what bulk transfers are encrypted with
                       [aes128-gcm@openssh.com,default]; default: the client's first that
                       the server has, as between two that nobody configured
  --json               one JSON object instead of the table
";

/// What can be measured alone.
const PARTS: [&str; 10] = [
    "tunnel",
    "bulk",
    "record",
    "logins",
    "ssh-logins",
    "first-byte",
    "echo",
    "storm",
    "memory",
    "idle",
];

/// What is asked for.
pub struct Options {
    only: Vec<String>,
    pub rounds: usize,
    pub mib: u64,
    pub connections: Vec<usize>,
    pub idle: usize,
    pub ciphers: Vec<String>,
    json: bool,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            only: Vec::new(),
            rounds: 5,
            mib: 512,
            connections: vec![100, 500],
            idle: 2000,
            ciphers: vec!["aes128-gcm@openssh.com".into(), "default".into()],
            json: false,
        };
        let mut args = std::env::args().skip(1);
        let list = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        while let Some(arg) = args.next() {
            let mut value =
                || args.next().unwrap_or_else(|| leave(&format!("{arg} needs a value")));
            match arg.as_str() {
                "--bench" => {} // What cargo adds.
                "--only" => options.only = list(value()).into_iter().map(part).collect(),
                "--rounds" => options.rounds = number(&value()).max(1),
                "--mib" => options.mib = number(&value()).max(1) as u64,
                "--connections" => {
                    options.connections = list(value()).iter().map(|n| number(n)).collect();
                }
                "--idle" => options.idle = number(&value()).max(1),
                "--ciphers" => options.ciphers = list(value()),
                "--json" => options.json = true,
                "--help" | "-h" => {
                    print!("{HELP}");
                    std::process::exit(0);
                }
                other => leave(&format!("{other} is no option")),
            }
        }
        options
    }

    /// Whether one of [`PARTS`] is to be measured.
    pub fn wants(&self, part: &str) -> bool {
        assert!(PARTS.contains(&part), "{part} cannot be asked for");
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }
}

fn part(name: String) -> String {
    if PARTS.contains(&name.as_str()) {
        return name;
    }
    leave(&format!("{name:?} is no part; the parts are {}", PARTS.join(", ")))
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| leave(&format!("{text:?} is no number")))
}

fn leave(why: &str) -> ! {
    eprintln!("{why}\n\n{HELP}");
    std::process::exit(64)
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let files = process::allow_files();
    if options.wants("idle") && files < options.idle as u64 + 1000 {
        leave(&format!(
            "--idle {} takes as many open files, and {files} are allowed: raise the limit (ulimit -Hn)",
            options.idle
        ));
    }
    let lab = Lab::start(&options).await;
    let mut table = Table::new();
    if options.wants("tunnel") {
        tunnel::measure(&lab, &options, &mut table).await;
    }
    if options.wants("bulk") {
        bulk::measure(&lab, &options, &mut table).await;
    }
    if options.wants("record") {
        bulk::measure_recorded(&lab, &options, &mut table).await;
    }
    if options.wants("logins") {
        logins::measure(&lab, &options, &mut table).await;
    }
    if options.wants("ssh-logins") {
        logins::measure_ssh(&lab, &options, &mut table).await;
    }
    if options.wants("first-byte") {
        logins::measure_first_byte(&lab, &options, &mut table).await;
    }
    if options.wants("echo") {
        echo::measure(&lab, &options, &mut table).await;
    }
    if options.wants("storm") {
        storm::measure(&lab, &options, &mut table).await;
    }
    if options.wants("memory") {
        memory::measure(&lab, &options, &mut table).await;
    }
    if options.wants("idle") {
        idle::measure(&lab, &options, &mut table).await;
    }
    lab.stop().await;
    if options.json {
        println!("{}", table.json());
    } else {
        print!("{}", table.text());
    }
}
