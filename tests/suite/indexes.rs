//! No query that somebody waits for reads the whole of a table that grows: the plans of the very
//! statements that the store runs, on a store with much in it, on both engines.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use diesel::connection::{Instrumentation, InstrumentationEvent, set_default_instrumentation};
use diesel::prelude::*;
use sallyport::audit::{Context, EndReason, Event, Refusal, Step};
use sallyport::auth::account::{Remembered, ThrottleRules};
use sallyport::auth::machine::{Attempt, Claim};
use sallyport::auth::totp;
use sallyport::domain::{
    Destination, Factors, Id, IdPrefix, Source, TimeStep, UnixTime, UserName, Verifier,
};
use sallyport::store::{
    Carried, Carrier, EventFilter, FailureNote, NewAuthenticator, NewCertificate, NewRecording,
    RecordingEnd, SessionFilter, SignIn, Throttled,
};

use crate::support::bastion::{Engine, Person, TestBastion};
use crate::support::filled::{Size, statements};
use crate::support::on_both_engines;
use crate::support::postgres::PASSWORD;

on_both_engines!(no_query_that_somebody_waits_for_reads_all_of_what_grows);

/// The tables of which an installation has a handful of rows.
const SMALL: [&str; 4] = ["audit_head", "revision", "nodes", "store_keys"];

/// The indexes that hold only the rows that are meant.
const PARTIAL: [&str; 4] =
    ["sessions_live", "recordings_kept", "throttle_locked", "code_failures_limited"];

/// Every statement that diesel ran in this process since it was last emptied.
static RUN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn write_down() -> Option<Box<dyn Instrumentation>> {
    Some(Box::new(|event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            RUN.lock().unwrap().push(query.to_string());
        }
    }))
}

/// A statement as the store ran it: its SQL, and what diesel says was bound.
struct Statement {
    sql: String,
    binds: String,
}

impl Statement {
    /// Whether it is done with so many rows of those that it goes through, whichever they are: with others
    /// it could go through all of them for the few that are meant.
    fn stops_early(&self) -> bool {
        self.sql.contains("LIMIT") && !self.sql.contains("WHERE")
    }
}

/// Those that ran since the last time, without those that read nothing by themselves.
fn take() -> Vec<Statement> {
    let run = std::mem::take(&mut *RUN.lock().unwrap());
    let read = ["SELECT", "UPDATE", "DELETE"];
    // "(1=0)" is what diesel makes of a value among none: SQLite looks at that first, and reads nothing.
    let run = run.iter().filter(|text| read.iter().any(|verb| text.starts_with(verb)));
    let run = run.filter(|text| !text.contains("WHERE (1=0) "));
    run.map(|text| {
        // Text that is run as it is has none behind it.
        let (sql, binds) = text.rsplit_once(" -- binds: ").unwrap_or((text, "[]"));
        Statement { sql: sql.to_owned(), binds: binds.to_owned() }
    })
    .collect()
}

/// Where plans are asked for.
enum Planner {
    Sqlite(Box<SqliteConnection>),
    Postgres(tokio_postgres::Client),
}

impl Planner {
    async fn of(bastion: &TestBastion) -> Self {
        let Some(postgres) = &bastion.postgres else {
            let path = bastion.path("data/sallyport.db");
            let conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
            return Self::Sqlite(Box::new(conn));
        };
        let mut config: tokio_postgres::Config = postgres.url().parse().unwrap();
        config.password(PASSWORD);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        #[allow(clippy::disallowed_methods)] // Ends with the client.
        tokio::spawn(connection);
        Self::Postgres(client)
    }

    /// What is wrong with the plan of a statement, a line each.
    async fn faults(&mut self, statement: &Statement) -> Vec<String> {
        match self {
            Self::Sqlite(conn) => {
                let plan = sqlite_plan(conn, &statement.sql);
                sqlite_faults(&plan, statement.stops_early())
            }
            Self::Postgres(client) => {
                let mut found = BTreeSet::new();
                for plan in postgres_plans(client, statement).await {
                    postgres_faults(&plan, false, statement.stops_early(), &mut found);
                }
                found.into_iter().collect()
            }
        }
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = diesel::sql_types::Text)]
    detail: String,
}

fn sqlite_plan(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let lines: Vec<Line> = diesel::sql_query(format!("EXPLAIN QUERY PLAN {sql}"))
        .load(conn)
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    lines.into_iter().map(|line| line.detail).collect()
}

/// "SCAN t" reads all of t; so does "SCAN t USING INDEX i", unless it stops early, for which rows have to
/// come in the order that is asked for.
fn sqlite_faults(plan: &[String], stops_early: bool) -> Vec<String> {
    let sorts = plan.iter().any(|line| line == "USE TEMP B-TREE FOR ORDER BY");
    let is_fault = |line: &&String| {
        let Some(scanned) = line.strip_prefix("SCAN ") else { return false };
        let mut words = scanned.split(' ');
        let table = words.next().unwrap_or_default().trim_matches('`');
        let by_index = scanned.contains(" USING ") && !sorts;
        let is_meant = PARTIAL.iter().any(|index| scanned.ends_with(index));
        !SMALL.contains(&table) && !(by_index && (stops_early || is_meant)) && table != "CONSTANT"
    };
    plan.iter().filter(is_fault).cloned().collect()
}

/// As a connection of the store's plans it: with what is bound at first, and from the sixth time on
/// without, if that seems to cost no more (PREPARE(7), Notes).
async fn postgres_plans(
    client: &tokio_postgres::Client,
    statement: &Statement,
) -> Vec<serde_json::Value> {
    let sql = &statement.sql;
    let run = match values(&statement.binds) {
        values if values.is_empty() => "EXPLAIN (FORMAT JSON) EXECUTE asked;".to_owned(),
        values => format!("EXPLAIN (FORMAT JSON) EXECUTE asked({values});"),
    };
    let all = format!("PREPARE asked AS {sql}; {} DEALLOCATE asked", run.repeat(8));
    let answer = client.simple_query(&all).await.unwrap_or_else(|e| panic!("{all}: {e:?}"));
    let plan = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let text: serde_json::Value = serde_json::from_str(row.get(0).unwrap()).unwrap();
            Some(text[0]["Plan"].clone())
        }
        _ => None,
    };
    let plans: Vec<_> = answer.iter().filter_map(plan).collect();
    assert_eq!(plans.len(), 8, "{sql}");
    plans
}

/// What diesel says was bound, as SQL: `["a", 5, None, Some("x"), ["b"]]` is `'a', 5, NULL, 'x', '{"b"}'`.
fn values(binds: &str) -> String {
    let inner = binds.strip_prefix('[').and_then(|b| b.strip_suffix(']')).unwrap();
    assert!(!inner.contains(['\\', '\'']), "{inner}");
    let (mut sql, mut in_array, mut in_text) = (String::new(), false, false);
    for c in inner.chars() {
        in_text ^= c == '"';
        match c {
            '[' if !in_text => {
                in_array = true;
                sql.push_str("'{");
            }
            ']' if !in_text => {
                in_array = false;
                sql.push_str("}'");
            }
            ')' if !in_text => {} // Of "Some(".
            '"' if !in_array => sql.push('\''),
            c => sql.push(c),
        }
    }
    sql.replace("Some(", "").replace("None", "NULL")
}

/// A "Seq Scan" reads all of a table; so does an index scan without a condition, unless it stops early.
fn postgres_faults(
    plan: &serde_json::Value,
    sorted: bool,
    stops_early: bool,
    faults: &mut BTreeSet<String>,
) {
    let kind = plan["Node Type"].as_str().unwrap();
    if let Some(table) = plan["Relation Name"].as_str() {
        let by_all = match kind {
            "Seq Scan" => true,
            "Index Scan" | "Index Only Scan" => {
                plan["Index Cond"].is_null() && (sorted || !stops_early) && !is_partial(plan)
            }
            _ => false,
        };
        if by_all && !SMALL.contains(&table) {
            faults.insert(format!("{kind} of {table}"));
        }
    }
    let sorted = sorted || kind == "Sort";
    for part in plan["Plans"].as_array().into_iter().flatten() {
        postgres_faults(part, sorted, stops_early, faults);
    }
}

/// Whether a scan is of an index that holds only the rows that are meant.
fn is_partial(plan: &serde_json::Value) -> bool {
    PARTIAL.contains(&plan["Index Name"].as_str().unwrap_or_default())
}

#[test]
fn what_was_bound_is_written_as_sql() {
    let bound = r#"["a)", 5, None, Some("x"), Some(7), ["b", "c"], []]"#;
    assert_eq!(values(bound), r#"'a)', 5, NULL, 'x', 7, '{"b", "c"}', '{}'"#);
    assert_eq!(values("[]"), "");
}

#[test]
fn a_plan_that_reads_everything_is_found() {
    let sqlite = |lines: &[&str], limit| {
        sqlite_faults(&lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>(), limit).len()
    };
    assert_eq!(sqlite(&["SCAN users"], true), 1);
    assert_eq!(sqlite(&["SCAN users USING INDEX a"], false), 1);
    assert_eq!(sqlite(&["SCAN users USING INDEX a"], true), 0);
    assert_eq!(sqlite(&["SCAN users USING INDEX a", "USE TEMP B-TREE FOR ORDER BY"], true), 1);
    assert_eq!(sqlite(&["SEARCH users USING INDEX a (name=?)", "SCAN revision"], false), 0);
    let postgres = |plan: serde_json::Value, limit| {
        let mut faults = BTreeSet::new();
        postgres_faults(&plan, false, limit, &mut faults);
        faults.len()
    };
    let scan = |kind: &str| serde_json::json!({"Node Type": kind, "Relation Name": "users"});
    let under = |kind: &str, part| serde_json::json!({"Node Type": kind, "Plans": [part]});
    assert_eq!(postgres(under("Limit", scan("Seq Scan")), true), 1);
    assert_eq!(postgres(scan("Index Scan"), false), 1);
    assert_eq!(postgres(under("Limit", scan("Index Scan")), true), 0);
    assert_eq!(postgres(under("Limit", under("Sort", scan("Index Scan"))), true), 1);
    let by =
        serde_json::json!({"Node Type": "Index Scan", "Relation Name": "users", "Index Cond": "x"});
    assert_eq!(postgres(under("Sort", by), false), 0);
}

/// Looks at the plans of what ran, and says of which use of the store it is.
struct Watch {
    planner: Planner,
    faults: Vec<String>,
    seen: usize,
}

impl Watch {
    async fn look(&mut self, what: &str) {
        let run = take();
        assert!(!run.is_empty(), "{what} ran no statement");
        self.seen += run.len();
        for statement in run {
            for fault in self.planner.faults(&statement).await {
                self.faults.push(format!("{what}: {fault}\n    {}", statement.sql));
            }
        }
    }
}

fn source() -> Source {
    Source("192.0.2.7:4022".parse().unwrap())
}

fn rules() -> ThrottleRules {
    ThrottleRules {
        lock_after: 3,
        site_lock_after: 5,
        attack_after: 7,
        code_failures_max: 4,
        lock_for: Duration::from_secs(600),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
    }
}

async fn no_query_that_somebody_waits_for_reads_all_of_what_grows(engine: Engine) {
    set_default_instrumentation(write_down).unwrap();
    let mut bastion = TestBastion::start(engine).await;
    bastion.stop().await;
    let now = bastion.now();
    let size =
        Size { users: 20_000, targets: 5_000, grants: 20_000, sessions: 40_000, events: 100_000 };
    for statement in statements(size, now) {
        bastion.tamper(&statement).await;
    }
    if bastion.postgres.is_some() {
        bastion.tamper("ANALYZE").await;
    }
    let alice = add_alice(&bastion).await;
    let mut watch = Watch { planner: Planner::of(&bastion).await, faults: Vec::new(), seen: 0 };
    take();
    let session = sign_in(&bastion, &alice, &mut watch).await;
    fail_and_bind(&bastion, &alice, &mut watch).await;
    go_somewhere(&bastion, &alice, &session, &mut watch).await;
    list(&bastion, &alice, &session, &mut watch).await;
    keep_house(&bastion, &mut watch).await;
    assert!(watch.seen > 100, "{}", watch.seen);
    assert!(watch.faults.is_empty(), "{}", watch.faults.join("\n"));
}

/// Somebody to sign in: behind the log that is there already, which this process did not write.
async fn add_alice(bastion: &TestBastion) -> Person {
    let alice = bastion.person("alice").await;
    let context = Context::default();
    for group in ["group1", "group2"] {
        let group = group.parse().unwrap();
        bastion.store().join_group(&group, &alice.name, &context, bastion.now()).await.unwrap();
    }
    bastion.add_grant("alice", "target1", |_| {}).await;
    alice
}

async fn sign_in(bastion: &TestBastion, alice: &Person, watch: &mut Watch) -> Id {
    let (store, now, rules) = (bastion.store(), bastion.now(), rules());
    let whose = Throttled::new("alice", &source());
    let nobody = Throttled::new("nobody", &source());
    let name: UserName = "nobody".parse().unwrap();
    let (found, _) = store.account(Some(&alice.name), &whose, &rules, now).await.unwrap();
    watch.look("look up an account").await;
    store.account(Some(&name), &nobody, &rules, now).await.unwrap();
    watch.look("look up nobody").await;
    let found = found.unwrap();
    let mut last = None;
    let remembered =
        Remembered { id: Id::random().unwrap(), key: "SHA256:x".into(), source: source().ip() };
    let by_key = Factors::KEY.with(Factors::OTP);
    for (what, claim, given, works) in [
        ("a code", Claim::Code(now.step()), Factors::PASSWORD.with(Factors::OTP), true),
        ("a recovery code", Claim::RecoveryCode("x".into()), by_key, false),
        ("a certificate", Claim::Certificate(1), by_key, false),
        ("a remembered login", Claim::Remembered(remembered), by_key, false),
    ] {
        let attempt = Attempt {
            account: alice.id.clone(),
            epoch: found.epoch,
            factor: Verifier::Totp,
            claim,
            key: Some("SHA256:x".into()),
            given,
            steps: vec![Step::Password, Step::Code],
            notes: Vec::new(),
        };
        let session = Id::random().unwrap();
        let source = source();
        let new = SignIn { session: &session, source: &source, client: "SSH-2.0-test" };
        let context = within(&session);
        let signed = store.sign_in(attempt, &new, &whose, &rules, &context, now).await.unwrap();
        assert_eq!(signed.is_ok(), works, "{what}: {signed:?}");
        watch.look(&format!("sign in with {what}")).await;
        last = last.or(Some(session));
    }
    last.unwrap()
}

fn within(session: &Id) -> Context {
    Context { user: Some("alice".into()), session: Some(session.clone()), ..Context::default() }
}

async fn fail_and_bind(bastion: &TestBastion, alice: &Person, watch: &mut Watch) {
    let (store, now, context) = (bastion.store(), bastion.now(), Context::default());
    let whose = Throttled::new("alice", &Source("[2001:db8::7]:4022".parse().unwrap()));
    let failure = FailureNote {
        account: Some(alice.id.clone()),
        reason: Refusal::WrongCode,
        counts: true,
        code: true,
        drift: Some(60),
    };
    store.fail(failure, Vec::new(), &whose, &rules(), &context, now).await.unwrap();
    watch.look("write a failure down").await;
    let secret = totp::Secret::generate().unwrap();
    let new = NewAuthenticator { account: &alice.id, epoch: 2, secret: &secret, step: TimeStep(9) };
    store.bind(&new, Vec::new(), &context, now).await.unwrap().unwrap_err();
    watch.look("bind an authenticator").await;
    store.rehash(&alice.id, "old", "new").await.unwrap();
    watch.look("store a hash anew").await;
}

async fn go_somewhere(bastion: &TestBastion, alice: &Person, session: &Id, watch: &mut Watch) {
    let (store, now, context) = (bastion.store(), bastion.now(), within(session));
    let destination = Destination::parse("target1", 22).unwrap();
    let access = store.access_to(&alice.id, &destination).await.unwrap();
    assert_eq!((access.targets.len(), access.grants.is_empty()), (1, false));
    watch.look("authorize").await;
    assert!(!store.recorded_at(22).await.unwrap().is_empty());
    watch.look("find what is recorded at a port").await;
    assert!(!store.access_of(&alice.id).await.unwrap().targets.is_empty());
    watch.look("open the menu").await;
    store.access_explained(&alice.id, &destination).await.unwrap();
    watch.look("explain").await;
    let target = access.targets[0].id.clone();
    store.account_secret(&target, &"root".parse().unwrap()).await.unwrap();
    store.trusted_keys(&target).await.unwrap();
    watch.look("sign in on a target").await;

    let forward = Id::random().unwrap();
    let what = (&destination, &access.targets[0].name, &access.grants[0].id);
    store.open_forward(&forward, what, &context, now).await.unwrap();
    let recording = Id::random().unwrap();
    let new = NewRecording {
        id: &recording,
        target: &access.targets[0].name,
        account: &"root".parse().unwrap(),
        kind: "shell",
        command: None,
        path: "x",
        grants: &[],
    };
    store.start_recording(&new, &context, now).await.unwrap();
    let open = vec![
        (Carrier::Forward(forward.clone()), (1, 2)),
        (Carrier::Recording(recording.clone()), (1, 2)),
    ];
    let carried = Carried { session: session.clone(), bytes: (1, 2), open };
    store.write_carried(&[carried]).await.unwrap();
    watch.look("write down what is carried").await;
    let end = RecordingEnd { outcome: "0", bytes: (1, 2), file: Some(("x", 1, "y")) };
    store.end_recording(&recording, &end, &context, now).await.unwrap();
    let event = Event::ServerStopped; // Any: which one it is makes no other statement.
    store.close_forward(&forward, (1, 2), (None, "done"), event, &context, now).await.unwrap();
    watch.look("close a forward").await;
    let new = NewCertificate {
        serial: 1 << 40,
        account: &alice.id,
        epoch: 2,
        key: "SHA256:x",
        source: None,
        session,
        until: now.plus(Duration::from_secs(60)),
    };
    store.issue_certificate(&new, &context, now).await.unwrap().unwrap();
    watch.look("give a certificate").await;
}

async fn list(bastion: &TestBastion, alice: &Person, session: &Id, watch: &mut Watch) {
    let (store, now) = (bastion.store(), bastion.now());
    let all = SessionFilter::default();
    let user = Some("user8".to_owned());
    for (what, filter) in [
        ("sessions", all.clone()),
        ("live sessions", SessionFilter { live: true, ..all.clone() }),
        ("sessions of a user", SessionFilter { user: user.clone(), ..all.clone() }),
        (
            "one's own sessions",
            SessionFilter { user: user.clone(), account: Some(alice.id.clone()), live: false },
        ),
    ] {
        let rows = store.sessions(&filter, 50).await.unwrap();
        assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row.started_at)));
        assert_eq!(rows.is_empty(), filter.account.is_some(), "{what}");
        let ids: Vec<String> = rows.into_iter().map(|row| row.id).collect();
        store.forwards_of_all(&ids).await.unwrap();
        store.recordings_of_all(&ids).await.unwrap();
        watch.look(what).await;
    }
    let prefix: IdPrefix = session.as_str()[..4].parse().unwrap();
    let whole: IdPrefix = session.as_str().parse().unwrap();
    assert!(!store.sessions_by_prefix(&prefix).await.unwrap().is_empty());
    store.recordings_by_prefix(&prefix).await.unwrap();
    watch.look("a session by its id").await;
    store.last_accounts(&"user8".parse().unwrap(), &alice.id).await.unwrap();
    watch.look("where somebody was last").await;

    let all = EventFilter::default();
    let hours = |n: i64| Some(UnixTime(now.0 - n * 3_600_000));
    for (what, filter) in [
        ("events", all.clone()),
        ("events of a user", EventFilter { user: user.clone(), ..all.clone() }),
        ("events of a kind", EventFilter { kind: Some("group-joined".into()), ..all.clone() }),
        ("events since", EventFilter { since: hours(100), ..all.clone() }),
        ("events until", EventFilter { until: hours(4000), ..all.clone() }),
        ("events between", EventFilter { since: hours(4010), until: hours(4000), ..all.clone() }),
        (
            "events of a user since",
            EventFilter { user: user.clone(), since: hours(8000), ..all.clone() },
        ),
        ("events of a session", EventFilter { session: Some(whole.clone()), ..all.clone() }),
        (
            "events of a kind in a session",
            EventFilter { session: Some(whole), kind: Some("signed-in".into()), ..all.clone() },
        ),
    ] {
        let rows = store.events(&filter, 50).await.unwrap();
        assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row.seq)), "{what}");
        assert!(!rows.is_empty(), "{what}");
        watch.look(what).await;
    }
    store.audit_end().await.unwrap();
    store.audit_head().await.unwrap();
    store.events_after(50_000, 500).await.unwrap();
    watch.look("verify").await;
    store.user(&"user8".parse().unwrap()).await.unwrap();
    store.remembered(Some(&"user8".parse().unwrap()), now).await.unwrap();
    store.certificates(Some(&"user8".parse().unwrap()), now).await.unwrap();
    watch.look("show a user").await;
    store.locked(now).await.unwrap();
    watch.look("who is locked").await;
}

/// What the server does by itself.
async fn keep_house(bastion: &TestBastion, watch: &mut Watch) {
    let (store, now) = (bastion.store(), bastion.now());
    store.revision().await.unwrap();
    let live = store.live().await.unwrap();
    assert!(live.open.len() >= 20, "{}", live.open.len());
    watch.look("look after live sessions").await;
    store.beat().await.unwrap();
    watch.look("say that this node lives").await;
    assert!(!store.recordings().await.unwrap().is_empty());
    watch.look("apply retention").await;
    let recording = Id::random().unwrap();
    store.remove_recording(&recording, "old", &Context::default(), now).await.unwrap();
    watch.look("remove a recording").await;
    let before = UnixTime(now.0 - 86_300_000);
    store.forget_old_failures(before).await.unwrap();
    store.forget_old_logins(before).await.unwrap();
    store.forget_old_certificates(before).await.unwrap();
    store.forget_used_codes(now).await.unwrap();
    store.forget_old_sources(now).await.unwrap();
    watch.look("forget what is over").await;
    store.open_recordings().await.unwrap();
    watch.look("find interrupted recordings").await;
    let session = Id::random().unwrap();
    let reason = EndReason::ALL[0];
    store.close_session(&session, reason, (1, 2), &Context::default(), now).await.unwrap();
    store.close_interrupted(now).await.unwrap();
    watch.look("close sessions").await;
}
