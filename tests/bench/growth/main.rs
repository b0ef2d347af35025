//! `cargo bench --bench growth`: what the store takes for what people wait for, as it fills, on both
//! engines.
//!
//! Always holds: each size is a store of its own, new and then filled past the program (`filled`); what
//! is measured are the store's own methods, as signing in and authorizing call them, and the real
//! `sallyport` for lists, its start included. Options come after `--`: see `--help`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)] // Nothing outside a benchmark could be reached.

mod measure;
mod table;

/// What the tests are made of; not all of it is used here.
#[allow(unused_imports, unused_macros)]
#[path = "../../suite/support/mod.rs"]
mod support;

use support::bastion::{Engine, TestBastion};
use support::filled::{Size, statements};
use table::Table;

const HELP: &str = "Measures how what people wait for grows with what is in the store.

Usage: cargo bench --bench growth -- [OPTIONS]

  --events N,N      audit events in the stores; 0 is an empty one [0,10000,100000,1000000]
  --full            also 10000000 events, after the others; takes about 20 GB and half an hour
  --engine ENGINE   only on sqlite or on postgres [both]
  --rounds N        how often each figure is measured [100]
  --json            one JSON object instead of the tables

Of 100 events, 10 are a session, 1 a user, 1 a grant, and a tenth a target: 10 million events stand
beside 1 million sessions, 100,000 users, 100,000 grants and 10,000 targets.
";

/// The events of `--full`.
const FULL: u64 = 10_000_000;

struct Options {
    events: Vec<u64>,
    engines: Vec<Engine>,
    rounds: usize,
    json: bool,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            events: vec![0, 10_000, 100_000, 1_000_000],
            engines: vec![Engine::Sqlite, Engine::Postgres],
            rounds: 100,
            json: false,
        };
        let mut full = false;
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value =
                || args.next().unwrap_or_else(|| leave(&format!("{arg} needs a value")));
            match arg.as_str() {
                "--bench" => {} // What cargo adds.
                "--events" => {
                    options.events = value().split(',').map(number).collect();
                }
                "--full" => full = true,
                "--engine" => {
                    options.engines = match value().as_str() {
                        "sqlite" => vec![Engine::Sqlite],
                        "postgres" => vec![Engine::Postgres],
                        other => leave(&format!("{other:?} is no engine")),
                    }
                }
                "--rounds" => options.rounds = (number(&value()) as usize).max(1),
                "--json" => options.json = true,
                "--help" | "-h" => {
                    print!("{HELP}");
                    std::process::exit(0);
                }
                other => leave(&format!("{other} is no option")),
            }
        }
        if full && !options.events.contains(&FULL) {
            options.events.push(FULL);
        }
        options
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| leave(&format!("{text:?} is no number")))
}

fn leave(why: &str) -> ! {
    eprintln!("{why}\n\n{HELP}");
    std::process::exit(64)
}

/// What stands beside so many events.
fn size(events: u64) -> Size {
    Size {
        users: events / 100,
        targets: events / 1000,
        grants: events / 100,
        sessions: events / 10,
        events,
    }
}

/// A store on `engine` with this much in it, and no server that uses it.
async fn filled(engine: Engine, events: u64) -> TestBastion {
    let mut bastion = TestBastion::start(engine).await;
    bastion.stop().await;
    if events == 0 {
        return bastion;
    }
    let (began, now) = (std::time::Instant::now(), bastion.now());
    for statement in statements(size(events), now) {
        // A store that is lost in a crash is filled anew; random places in an index want a cache.
        let hurry = match engine {
            Engine::Sqlite => "PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000; ",
            Engine::Postgres => "",
        };
        bastion.tamper(&format!("{hurry}{statement}")).await;
    }
    match engine {
        Engine::Sqlite => bastion.tamper("PRAGMA wal_checkpoint(TRUNCATE)").await,
        // As autovacuum does some minutes later.
        Engine::Postgres => bastion.tamper("VACUUM ANALYZE").await,
    }
    eprintln!("{engine:?}: {events} events and what is beside them took {:.1?}", began.elapsed());
    bastion
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let mut tables = Vec::new();
    for engine in &options.engines {
        let mut table = Table::new(format!("{engine:?}"), options.events.clone());
        for events in &options.events {
            let bastion = filled(*engine, *events).await;
            measure::all(&bastion, options.rounds, &mut table).await;
        }
        tables.push(table);
    }
    if options.json {
        let all: Vec<_> = tables.iter().map(Table::json).collect();
        println!("{}", serde_json::to_string_pretty(&all).unwrap());
    } else {
        for table in tables {
            println!("{}", table.text());
        }
    }
}
