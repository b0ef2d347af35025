//! Somebody who can write to the database, but has no audit key: `audit verify` names the first
//! event that is damaged, on the store itself and on an export of it.

use std::time::Duration;

use sallyport::admin::output::Format;
use sallyport::admin::{self, Out, Verbs};
use sallyport::audit::chain::{Anchor, GENESIS, Link};
use sallyport::audit::{Context, Event, Record, Refusal};
use sallyport::auth::password::{Cost, Rules};
use sallyport::store::Store;

use crate::support::bastion::{Engine, TestBastion};
use crate::support::on_both_engines;

on_both_engines!(
    the_first_damaged_event_is_named,
    what_was_cut_off_with_its_head_is_told_by_an_anchor,
    a_chain_made_anew_is_told_by_its_signatures,
    columns_that_say_something_else_are_told,
    what_is_cut_back_while_it_is_written_is_not_signed_anew,
);

/// A log that is cut back behind the back of a process that writes to it does not get a new end.
async fn what_is_cut_back_while_it_is_written_is_not_signed_anew(engine: Engine) {
    let (bastion, head) = log(engine).await;
    let store = bastion.store();
    let other = bastion.other_store().await;
    let write_as = async |store: &Store, reason: Refusal| {
        let event = Event::SignInRefused { reason };
        store.record(bastion.now(), &Context::default(), event).await.map_err(|e| e.to_string())
    };
    let write = async |store: &Store| write_as(store, Refusal::WrongCode).await;
    // Another process's events are no sign of it.
    write(&other).await.unwrap();
    write(store).await.unwrap();
    let cut = |seq: i64| {
        format!(
            "DELETE FROM audit_events WHERE seq > {seq}; UPDATE audit_head SET seq = {seq}, hash = \
             (SELECT hash FROM audit_events WHERE seq = {seq});"
        )
    };
    bastion.tamper(&cut(head.seq + 1)).await;
    let error = write(store).await.unwrap_err();
    assert!(error.contains("ends with event 15") && error.contains("at event 16"), "{error}");
    assert!(write(store).await.is_err(), "it forgot");
    let (end, newest) = store.audit_end().await.unwrap();
    assert_eq!((end.seq, newest), (15, 15), "something was written");
    // Of the same length, and another all the same.
    write_as(&other, Refusal::WrongPassword).await.unwrap();
    let error = write(store).await.unwrap_err();
    assert!(error.contains("ends with event 16") && error.contains("at event 16"), "{error}");
}

/// A bastion whose log has 14 events, and its end.
async fn log(engine: Engine) -> (TestBastion, Anchor) {
    let mut bastion = TestBastion::start(engine).await;
    bastion.stop().await; // Nothing else writes from here on.
    let store = bastion.store();
    let mut n = 0;
    while store.audit_head().await.unwrap().seq < 14 {
        n += 1;
        let context = Context { user: Some(format!("user{n}")), ..Context::default() };
        let event = Event::SignInRefused { reason: Refusal::WrongCode };
        store.record(bastion.now(), &context, event).await.unwrap();
    }
    let head = store.audit_head().await.unwrap();
    whole(&bastion, &[]).await;
    (bastion, head)
}

/// Runs a verb of an administrator's on a store; gives what came of it and its output.
pub async fn with_verbs<T>(
    store: &Store,
    run: impl AsyncFnOnce(&Verbs<'_>, &mut Out<'_>) -> T,
) -> (T, String) {
    let (context, rules) = (Context::default(), Rules::default());
    let verbs = Verbs {
        store,
        context: &context,
        now: sallyport::domain::UnixTime(1),
        format: Format::Table { width: None },
        cost: Cost::default(),
        rules: &rules,
        binding_window: Duration::ZERO,
        radius: None,
        recordings: std::path::Path::new(""),
    };
    let mut sink = Vec::new();
    let mut out = Out::new(&mut sink);
    let result = run(&verbs, &mut out).await;
    out.send().await.unwrap();
    drop(out);
    (result, String::from_utf8(sink).unwrap())
}

/// What `audit verify` says of the store, and of an export of it.
async fn verdicts(bastion: &TestBastion, anchors: &[Anchor]) -> (String, String) {
    let (verified, said) = with_verbs(bastion.store(), async |verbs, out| {
        admin::verify_store(verbs, anchors.to_vec(), out).await
    })
    .await;
    let in_store = verified.map_or_else(|error| error.to_string(), |()| said);
    let (exported, text) =
        with_verbs(bastion.store(), async |verbs, out| admin::export(verbs, out).await).await;
    exported.unwrap();
    (in_store, offline(bastion, &text, anchors))
}

/// What `audit verify FILE` says of an export, with the key that the bastion's owner has noted.
fn offline(bastion: &TestBastion, export: &str, anchors: &[Anchor]) -> String {
    let key = bastion.store().audit_key().public();
    match admin::verify_file(export.as_bytes(), Some(&key), anchors.to_vec()) {
        Ok((_, end)) => format!("whole: {}", end.map_or(0, |end| end.seq)),
        Err(error) => error.to_string(),
    }
}

async fn whole(bastion: &TestBastion, anchors: &[Anchor]) {
    let (in_store, exported) = verdicts(bastion, anchors).await;
    assert!(in_store.starts_with("the audit log is whole: 14 events"), "{in_store}");
    assert_eq!(exported, "whole: 14");
}

/// Both say that the log is damaged, and where.
async fn damaged(bastion: &TestBastion, what: &str, anchors: &[Anchor], expected: &str) {
    let said = |said: &str| format!("the audit log is not as it was written: {said}");
    let (in_store, exported) = verdicts(bastion, anchors).await;
    // An export has no numbers but those in the texts; one that is no JSON has a line only.
    let (store_says, export_says) = expected.split_once(" / ").unwrap_or((expected, expected));
    assert_eq!(in_store, said(store_says), "{what}, in the store");
    assert_eq!(exported, said(export_says), "{what}, exported");
}

/// Does damage, looks what is said of it, and takes it back.
async fn after(bastion: &TestBastion, sql: &str, anchors: &[Anchor], said: &str) {
    bastion
        .tamper(
            "CREATE TABLE kept AS SELECT * FROM audit_events;
             CREATE TABLE kept_head AS SELECT * FROM audit_head;",
        )
        .await;
    bastion.tamper(sql).await;
    damaged(bastion, sql, anchors, said).await;
    bastion
        .tamper(
            "DELETE FROM audit_events; INSERT INTO audit_events SELECT * FROM kept;
             DELETE FROM audit_head; INSERT INTO audit_head SELECT * FROM kept_head;
             DROP TABLE kept; DROP TABLE kept_head;",
        )
        .await;
    whole(bastion, anchors).await;
}

async fn the_first_damaged_event_is_named(engine: Engine) {
    let (bastion, head) = log(engine).await;
    let swap = "UPDATE audit_events SET seq = -1 WHERE seq = 6;
        UPDATE audit_events SET seq = 6 WHERE seq = 9; UPDATE audit_events SET seq = 9 WHERE seq = -1;";
    for (sql, said) in [
        ("UPDATE audit_events SET body = replace(body, 'wrong-code', 'wrong-pass') WHERE seq = 7",
            "event 7 was edited"),
        ("UPDATE audit_events SET body = replace(body, 'user', 'resu') WHERE seq IN (14, 9)",
            "event 9 was edited"),
        ("UPDATE audit_events SET body = 'nonsense' WHERE seq = 1", "event 1 was edited / line 1 is not an exported event"),
        ("UPDATE audit_events SET body = '' WHERE seq = 14", "event 14 was edited / line 14 is not an exported event"),
        ("UPDATE audit_events SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE seq = 8",
            "event 8 was edited"),
        ("UPDATE audit_events SET signature = 'x' WHERE seq = 14",
            "event 14 is not signed by the audit key: it was forged, or the key is another one"),
        ("DELETE FROM audit_events WHERE seq = 1", "event 1 was dropped"),
        ("DELETE FROM audit_events WHERE seq IN (5, 6, 11)", "event 5 was dropped"),
        ("DELETE FROM audit_events WHERE seq = 14", "event 14 and what follows was cut off"),
        ("DELETE FROM audit_events WHERE seq > 9", "event 10 and what follows was cut off"),
        ("DELETE FROM audit_events", "event 1 and what follows was cut off"),
        (swap, "event 9 stands where event 6 should: events were reordered"),
        ("UPDATE audit_events SET signature = (SELECT signature FROM audit_events WHERE seq = 4)
          WHERE seq = 5", "event 5 is not signed by the audit key: it was forged, or the key is another one"),
        // Numbers closed up behind a dropped one.
        ("DELETE FROM audit_events WHERE seq = 4;
          UPDATE audit_events SET seq = 4 WHERE seq = 5; UPDATE audit_events SET seq = 5 WHERE seq = 6",
            "event 4 was dropped"),
    ] {
        after(&bastion, sql, &[], said).await;
        after(&bastion, sql, std::slice::from_ref(&head), said).await;
    }
}

async fn what_was_cut_off_with_its_head_is_told_by_an_anchor(engine: Engine) {
    let (bastion, head) = log(engine).await;
    let set_back =
        "UPDATE audit_head SET seq = 9, hash = (SELECT hash FROM audit_events WHERE seq = 9)";
    let anchors = std::slice::from_ref(&head);
    let cut = format!("DELETE FROM audit_events WHERE seq > 9; {set_back}");
    after(&bastion, &cut, anchors, "event 10 and what follows was cut off").await;
    let all =
        format!("DELETE FROM audit_events; UPDATE audit_head SET seq = 0, hash = '{GENESIS}'");
    after(&bastion, &all, anchors, "event 1 and what follows was cut off").await;
    // A head that does not fit what it counts needs no anchor.
    let forged = format!("UPDATE audit_head SET hash = '{GENESIS}'");
    bastion.tamper(&forged).await;
    let (in_store, exported) = verdicts(&bastion, &[]).await;
    assert!(in_store.ends_with("event 14 was edited"), "{in_store}");
    assert!(exported.ends_with("event 14 was edited"), "{exported}");
    bastion.tamper(&format!("UPDATE audit_head SET hash = '{}'", head.hash)).await;
    // Nor does one that was set back before events that are still there.
    bastion.tamper(set_back).await;
    let (in_store, _) = verdicts(&bastion, &[]).await;
    assert!(in_store.ends_with("event 10 lies behind the end of the log: the end was set back"));
    // What the next event is worth then: it cannot be written over one that is there.
    let event = Event::ServerStarted { version: "x".into() };
    let write = bastion.store().record(bastion.now(), &Context::default(), event).await;
    assert!(write.is_err());

    // An export that is cut, put together from two, or has its checkpoint exchanged.
    bastion.tamper(&format!("UPDATE audit_head SET seq = 14, hash = '{}'", head.hash)).await;
    let export = async || {
        let run = async |verbs: &Verbs<'_>, out: &mut Out<'_>| admin::export(verbs, out).await;
        with_verbs(bastion.store(), run).await.1
    };
    let first = export().await;
    let event = Event::ServerStarted { version: "x".into() };
    bastion.store().record(bastion.now(), &Context::default(), event).await.unwrap();
    let second = export().await;
    let lines: Vec<&str> = first.lines().collect();
    let later: Vec<&str> = second.lines().collect();
    assert_eq!((lines.len(), later.len()), (15, 16));
    let say = |lines: &[&str]| offline(&bastion, &(lines.join("\n") + "\n"), &[]);
    assert_eq!(say(&lines), "whole: 14");
    assert!(say(&lines[..14]).contains("cut off after event 14"));
    assert!(
        say(&[&lines[..14], &later[15..]].concat())
            .ends_with("event 15 and what follows was cut off")
    );
    let behind = say(&[&later[..15], &lines[14..]].concat());
    assert!(behind.contains("event 15 lies behind the end of the log"), "{behind}");
    let behind = say(&[&lines[..], &later[14..]].concat());
    assert!(behind.contains("line 16 stands behind the checkpoint"), "{behind}");
    // A copy, and two that changed places.
    let copied = say(&[&lines[..9], &lines[4..5], &lines[9..]].concat());
    assert!(copied.contains("event 5 stands again after event 9: a copy"), "{copied}");
    let swapped = say(&[&lines[..5], &lines[6..7], &lines[5..6], &lines[7..]].concat());
    assert!(swapped.contains("event 7 stands where event 6 should"), "{swapped}");
    assert!(say(&lines[3..]).ends_with("event 1 was dropped"));
    assert!(offline(&bastion, "", &[]).contains("its last line, the checkpoint, is missing"));
    assert!(say(&["", lines[0]]).contains("line 1 is not an exported event"));
}

async fn a_chain_made_anew_is_told_by_its_signatures(engine: Engine) {
    let (bastion, head) = log(engine).await;
    let rows = bastion.store().events_after(0, 100).await.unwrap();
    // From event 6 on everything is made to fit; only signatures cannot be made.
    let mut prev = rows[4].hash.clone();
    let mut sql = String::new();
    let mut last = String::new();
    for row in &rows[5..] {
        let mut record: Record = serde_json::from_str(&row.body).unwrap();
        record.prev = prev;
        if record.seq == 6 {
            record.event = Event::SignInRefused { reason: Refusal::Locked };
        }
        let signature = row.signature.clone();
        let link = Link::new::<serde_json::Error>(&record, |_| Ok(signature)).unwrap();
        let body = link.body.replace('\'', "''");
        sql += &format!(
            "UPDATE audit_events SET body = '{body}', hash = '{}' WHERE seq = {};",
            link.hash, link.seq
        );
        prev = link.hash.clone();
        last = link.hash;
    }
    sql += &format!("UPDATE audit_head SET hash = '{last}';");
    let said = "event 6 is not signed by the audit key: it was forged, or the key is another one";
    after(&bastion, &sql, &[], said).await;
    after(&bastion, &sql, &[head], said).await;
    // Another column that lies further behind does not draw the eye off.
    let more = format!("{sql} UPDATE audit_events SET kind = 'x' WHERE seq = 9;");
    bastion.tamper(&more).await;
    let (in_store, _) = verdicts(&bastion, &[]).await;
    assert!(in_store.ends_with(said), "{in_store}");
}

async fn columns_that_say_something_else_are_told(engine: Engine) {
    let (bastion, _) = log(engine).await;
    for (column, value) in [
        ("kind", "'x'"),
        ("user_name", "'mallory'"),
        ("user_name", "NULL"),
        ("session_id", "'x'"),
        ("at", "5"),
    ] {
        // The events would not be listed under what they are about.
        let old =
            format!("CREATE TABLE old AS SELECT {column} AS value FROM audit_events WHERE seq = 8");
        bastion.tamper(&old).await;
        bastion.tamper(&format!("UPDATE audit_events SET {column} = {value} WHERE seq = 8")).await;
        let (in_store, exported) = verdicts(&bastion, &[]).await;
        assert!(in_store.ends_with("event 8 was edited"), "{column}: {in_store}");
        assert_eq!(exported, "whole: 14"); // Its text is what was written.
        let back = format!(
            "UPDATE audit_events SET {column} = (SELECT value FROM old) WHERE seq = 8; DROP TABLE old"
        );
        bastion.tamper(&back).await;
        whole(&bastion, &[]).await;
    }
}
