//! `cargo bench --bench micro`: what single hot parts take, each alone on one thread.
//!
//! Always holds: a part is run until a batch takes about 20 ms, then in batches; the table has the median
//! of the batches and their spread, per call. What needs a connection (the pump and its queue) is measured by
//! the `jump` benchmark, as CPU per GiB. Options come after `--`: see `--help`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)] // Nothing outside a benchmark could be reached.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport::audit::chain::{GENESIS, Link, Verifier};
use sallyport::audit::{Context, EndReason, Event, Record};
use sallyport::auth::account::{Account, Otp, Throttle};
use sallyport::auth::machine::{
    Effect, Input, Machine, Methods, RadiusRules, Reply, Request, Rules,
};
use sallyport::auth::{password, totp};
use sallyport::domain::{
    Destination, Factors, Grant, GrantObject, GrantSubject, Id, Mode, Role, SecondFactor,
    SignInPolicy, Source, Target, TimeStep, UnixTime,
};
use sallyport::keys::{self, AuditKey};
use sallyport::policy::{Decision, Subject, authorize};
use sallyport::recording::asciicast::Encoder;
use sallyport::recording::terminal::Sanitizer;

const HELP: &str = "Measures single parts of Sallyport, each alone.

Usage: cargo bench --bench micro -- [OPTIONS]

  --only WORD   only the parts whose names have it
  --json        one JSON object instead of the table
";

/// Batches of a measurement.
const BATCHES: usize = 25;
/// How long a batch is to take at least.
const BATCH: Duration = Duration::from_millis(20);
const NOW: UnixTime = UnixTime(1_795_508_403_000);

struct Row {
    what: &'static str,
    /// Nanoseconds of a call, in each batch, sorted.
    took: Vec<f64>,
    /// What a call goes through, if it is bytes.
    bytes: usize,
}

impl Row {
    fn median(&self) -> f64 {
        self.took[self.took.len() / 2]
    }

    fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / self.median() * 1e9 / 1_048_576.0
    }
}

struct Bench {
    only: Option<String>,
    /// The names of all parts, whether they were asked for or not.
    parts: Vec<&'static str>,
    rows: Vec<Row>,
}

impl Bench {
    fn run<T>(&mut self, what: &'static str, bytes: usize, mut call: impl FnMut() -> T) {
        self.parts.push(what);
        if self.only.as_ref().is_some_and(|word| !what.contains(word.as_str())) {
            return;
        }
        let mut batch = |calls: u32| {
            let began = Instant::now();
            for _ in 0..calls {
                black_box(call());
            }
            began.elapsed()
        };
        let mut calls = 1;
        while batch(calls) < BATCH {
            calls *= 2;
        }
        let took = (0..BATCHES).map(|_| batch(calls).as_nanos() as f64 / f64::from(calls));
        let mut took: Vec<f64> = took.collect();
        took.sort_by(f64::total_cmp);
        self.rows.push(Row { what, took, bytes });
    }
}

fn main() {
    let mut bench = Bench { only: None, parts: Vec::new(), rows: Vec::new() };
    let mut json = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {} // What cargo adds.
            "--only" => match args.next() {
                Some(word) if !word.is_empty() => bench.only = Some(word),
                _ => leave("--only needs a word"),
            },
            "--json" => json = true,
            "--help" | "-h" => return print!("{HELP}"),
            other => leave(&format!("{other} is no option")),
        }
    }
    codes(&mut bench);
    logins(&mut bench);
    decisions(&mut bench);
    audit(&mut bench);
    recordings(&mut bench);
    if let (Some(word), true) = (&bench.only, bench.rows.is_empty()) {
        let parts = bench.parts.join("\n  ");
        leave(&format!("no part has {word:?} in its name; the parts are\n  {parts}"));
    }
    if json { print_json(&bench.rows) } else { print_table(&bench.rows) }
}

fn leave(why: &str) -> ! {
    eprintln!("{why}\n\n{HELP}");
    std::process::exit(64)
}

fn print_table(rows: &[Row]) {
    println!("{:<46} {:>12} {:>26} {:>8}", "", "ns a call", "(least..most)", "MiB/s");
    for row in rows {
        let (least, most) = (row.took[0], row.took[row.took.len() - 1]);
        let spread = format!("({least:.0}..{most:.0})");
        let speed = match row.bytes {
            0 => String::new(),
            _ => format!("{:.0}", row.mib_per_second()),
        };
        println!("{:<46} {:>12.0} {spread:>26} {speed:>8}", row.what, row.median());
    }
}

fn print_json(rows: &[Row]) {
    let row = |row: &Row| {
        let speed = (row.bytes > 0).then(|| row.mib_per_second());
        serde_json::json!({
            "what": row.what,
            "median_ns": row.median(),
            "least_ns": row.took[0],
            "most_ns": row.took[row.took.len() - 1],
            "mib_per_second": speed,
        })
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    println!("{}", serde_json::to_string_pretty(&rows).unwrap());
}

fn secret() -> totp::Secret {
    totp::Secret::from_bytes(&[7; totp::Secret::LEN])
}

fn code() -> String {
    let totp = totp_rs::Builder::new().with_secret(secret().expose().to_vec()).build().unwrap();
    totp.generate(NOW.seconds()).to_string()
}

fn codes(bench: &mut Bench) {
    let (secret, code) = (secret(), code());
    bench.run("TOTP: check a right code", 0, || {
        totp::check(&secret, black_box(&code), NOW, TimeStep(0))
    });
    bench.run("TOTP: check a wrong code", 0, || {
        totp::check(&secret, black_box("000000"), NOW, TimeStep(0))
    });
}

fn account() -> Account {
    Account {
        id: id(1),
        name: "alice".parse().unwrap(),
        role: Role::User,
        factor: SecondFactor::TOTP,
        sign_in: SignInPolicy::default(),
        epoch: 1,
        disabled: false,
        password: String::new(),
        one_time: false,
        password_binds: false,
        binding_until: None,
        otp: Some(Otp { secret: secret(), last_step: TimeStep(0) }),
        keys: vec!["SHA256:alice".into()],
        certificates: Vec::new(),
        remembered: Vec::new(),
        recovery_left: 10,
        drift: None,
    }
}

/// A whole login with a password and a code, without the hash and the store.
fn logins(bench: &mut Bench) {
    let rules = Arc::new(Rules {
        issuer: "Sallyport".into(),
        methods: Methods { password: true, publickey: true, keyboard_interactive: true },
        max_answers: 6,
        password: password::Rules { min_length: 12, min_score: 0 },
        radius: RadiusRules::default(),
        certificates: false,
    });
    let (account, code) = (account(), code());
    let source: IpAddr = "192.0.2.7".parse().unwrap();
    let client = |request| Input::Client("alice".into(), request);
    bench.run("login machine: password and code, to the session", 0, || {
        let mut machine = Machine::new(Arc::clone(&rules), source);
        let mut input = client(Request::Password("gleaming cactus 91".into()));
        loop {
            let (next, effect) = machine.step(input, NOW);
            machine = next;
            input = match effect {
                Effect::LookUp(_) => {
                    Input::Found(Some(Box::new(account.clone())), Throttle::default())
                }
                Effect::CheckPassword(..) => Input::PasswordChecked(true),
                Effect::Reply(Reply::Continue) => client(Request::Interactive),
                Effect::Reply(Reply::Ask(_)) => {
                    client(Request::Answers(vec![code.as_str().into()]))
                }
                Effect::SignIn(attempt) => return attempt, // What is left is the store's.
                other => panic!("{other:?}"),
            };
        }
    });
}

fn id(n: usize) -> Id {
    format!("{n:0>12}").parse().unwrap()
}

/// One destination among so many grants, all of which are the user's.
fn decisions(bench: &mut Bench) {
    let user = "alice".parse().unwrap();
    let group = "dba".parse::<sallyport::domain::GroupName>().unwrap();
    let target = Target {
        id: id(0),
        name: "db1".parse().unwrap(),
        address: "10.0.0.5:22".parse().unwrap(),
        mode: Mode::Tunnel,
        sign_in: None,
        labels: vec!["env=prod".parse().unwrap(), "team=dba".parse().unwrap()],
        created_at: NOW,
    };
    let grant = |n: usize| Grant {
        id: id(n),
        subject: match n % 2 {
            0 => GrantSubject::User("alice".parse().unwrap()),
            _ => GrantSubject::Group(group.clone()),
        },
        object: match n % 3 {
            0 => GrantObject::Target(format!("db{}", n / 3 + 1).parse().unwrap()),
            _ => GrantObject::Label(format!("team=team{n}").parse().unwrap()),
        },
        accounts: Vec::new(),
        allow: Vec::new(),
        hours: (n == 0).then(|| "Mon-Fri 08:00-18:00 Europe/Berlin".parse().unwrap()),
        from: Vec::new(),
        until: None,
        step_up: false,
        created_at: NOW,
    };
    let grants: Vec<Grant> = (0..1000).map(grant).collect();
    let groups = [group.clone()];
    let source = "192.0.2.7".parse().unwrap();
    let who = Subject { user: &user, groups: &groups, source, given: Factors::ALL };
    let destination = Destination::parse("db1", 22).unwrap();
    for (what, count) in [
        ("policy: decide by 1 grant, with hours", 1),
        ("policy: decide by 10 grants", 10),
        ("policy: decide by 1000 grants", 1000),
    ] {
        bench.run(what, 0, || {
            let decision =
                authorize(&who, std::slice::from_ref(&target), &grants[..count], &destination, NOW);
            assert!(matches!(decision, Decision::Permit(_)));
        });
    }
}

fn audit(bench: &mut Bench) {
    let dir = tempfile::tempdir().unwrap();
    let key = AuditKey::new(keys::load_or_create(&dir.path().join("audit_key"), "audit").unwrap());
    let record = Record {
        seq: 1,
        at: NOW,
        node: "bastion1".into(),
        prev: GENESIS.into(),
        context: Context {
            actor: None,
            user: Some("alice".into()),
            source: Some(Source("192.0.2.7:4022".parse().unwrap())),
            client: Some("SSH-2.0-OpenSSH_9.2p1".into()),
            session: Some(id(1)),
        },
        event: Event::SessionEnded { reason: EndReason::ClientClosed, up: 1000, down: 100_000 },
    };
    let sign = |text: &str| key.sign(text).map_err(|e| Failed(e.to_string()));
    bench.run("audit: hash and sign an event", 0, || Link::new(black_box(&record), sign).unwrap());
    let (link, public) = (Link::new(&record, sign).unwrap(), key.public());
    bench.run("audit: verify an event", 0, || {
        Verifier::new(&public, Vec::new()).push(black_box(&link)).unwrap();
    });
}

#[derive(Debug)]
struct Failed(#[allow(dead_code)] String);

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// What a recorded channel carried, as lines of its recording; and such lines made fit to be shown.
fn recordings(bench: &mut Bench) {
    const SIZE: usize = 32 * 1024;
    // Whole pieces, and blanks for what is left: no letter or sequence is cut.
    let filled = |piece: &str| {
        let mut bytes = piece.as_bytes().repeat(SIZE / piece.len());
        bytes.resize(SIZE, b' ');
        bytes
    };
    let text = filled("a line of text as a program writes it, 64 bytes or so, and more\r\n");
    let colours = filled("\x1b[1;32mok\x1b[0m  \x1b[34mtests/suite/login.rs\x1b[0m  \x1b[2K\r");
    let zeros = vec![0; SIZE];
    let umlauts = filled("Grüße aus Köln — größer als 64 Bytes, auf Deutsch\r\n");
    for (what, bytes) in [
        ("asciicast: encode 32 KiB of plain text", &text),
        ("asciicast: encode 32 KiB of coloured text", &colours),
        ("asciicast: encode 32 KiB of umlauts", &umlauts),
        ("asciicast: encode 32 KiB of zeros", &zeros),
    ] {
        let (mut encoder, mut to) = (Encoder::new(), Vec::new());
        bench.run(what, bytes.len(), || {
            to.clear();
            encoder.output(Duration::from_secs(1), black_box(bytes), &mut to);
            to.len()
        });
    }
    let key = b"l";
    let (mut encoder, mut to) = (Encoder::new(), Vec::new());
    bench.run("asciicast: encode one key", 0, || {
        to.clear();
        encoder.output(Duration::from_secs(1), black_box(key), &mut to);
        to.len()
    });
    let (mut sanitizer, mut to) = (Sanitizer::new(), Vec::new());
    bench.run("playback: sanitize 32 KiB of coloured text", colours.len(), || {
        to.clear();
        sanitizer.push(black_box(&colours), &mut to);
        to.len()
    });
}
