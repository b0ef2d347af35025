//! A store with much in it, put there past the program by SQL that both engines understand.
//!
//! Always holds: every row is one that the program could have written and reads back, but for the audit
//! log's hashes and signatures, which no list looks at (`audit verify` fails on such a store); ids are
//! spread as random ones are; sessions and events come evenly over the year before `now`.

use sallyport::domain::UnixTime;

/// How much is in it.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub users: u64,
    pub targets: u64,
    pub grants: u64,
    pub sessions: u64,
    pub events: u64,
}

/// Rows that one statement writes.
const BATCH: u64 = 200_000;
/// Milliseconds of a year.
const YEAR: u64 = 365 * 86_400_000;
/// What stands in the place of a hash, and of a signature.
const HASH: &str = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9";

/// An id that begins with `kind`, of the number that `n` is in SQL.
fn id(kind: char, n: &str) -> String {
    // The factor has no divisor in common with the modulus: no two are alike.
    format!(
        "'{kind}' || substr(CAST(100000000000 + (({n}) * 2654435761) % 100000000000 AS TEXT), 2, 11)"
    )
}

/// Statements that put `count` rows into `table`, of which `columns` (name and SQL in `i`, from 1) say
/// what is in them, as far as `filter` holds.
fn rows(table: &str, count: u64, filter: &str, columns: &[(&str, &str)]) -> Vec<String> {
    let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let values = columns.iter().map(|(_, sql)| *sql).collect::<Vec<_>>().join(", ");
    let batch = |from: u64| {
        let to = count.min(from + BATCH - 1);
        format!(
            "WITH RECURSIVE n(i) AS (SELECT CAST({from} AS BIGINT) UNION ALL SELECT i + 1 FROM n \
             WHERE i < {to}) INSERT INTO {table} ({names}) SELECT {values} FROM n WHERE {filter};"
        )
    };
    (1..=count).step_by(BATCH as usize).map(batch).collect()
}

/// The statements that fill an otherwise new store. Users are `user1` and so on, targets `target1`.
pub fn statements(size: Size, now: UnixTime) -> Vec<String> {
    let groups = (size.users / 10).max(10);
    let at = |n: &str, of: u64| format!("{} + {n} * {}", now.0 - YEAR as i64, YEAR / of.max(1));
    let user = id('q', "i");
    // Those of setting it up would be in the way of the numbers.
    let mut all = vec!["DELETE FROM audit_events;".to_owned()];
    all.extend(rows(
        "user_groups",
        groups,
        "1 = 1",
        &[("name", "'group' || i"), ("created_at", "0")],
    ));
    all.extend(people(size, groups, &user, now));
    all.extend(targets(size, groups));
    all.extend(sessions(size, now, &at("i", size.sessions)));
    all.extend(events(size, &at("i", size.events)));
    let head =
        format!("UPDATE audit_head SET seq = {}, hash = '{HASH}' WHERE id = 1;", size.events);
    all.push(head);
    all
}

fn people(size: Size, groups: u64, user: &str, now: UnixTime) -> Vec<String> {
    let now = now.0;
    let member = format!("'group' || (1 + i % {groups})");
    let other = format!("'group' || (1 + (i / {groups} + i * 7 + 1) % {groups})");
    let code = |n: &str| format!("'code{n}-' || i");
    let today = format!("{now} - i % 86400000");
    let later = format!("{now} + i % 86400000");
    let network =
        "'10.' || (i / 65536 % 256) || '.' || (i / 256 % 256) || '.' || (i % 256) || '/32'";
    let mut all = rows(
        "users",
        size.users,
        "1 = 1",
        &[
            ("id", user),
            ("name", "'user' || i"),
            ("role", "'user'"),
            ("factor", "'totp'"),
            ("created_at", "0"),
            ("epoch", "1"),
            ("password_hash", "'$argon2id$v=19$m=19456,t=2,p=1$none$none'"),
            ("password_one_time", "0"),
            ("password_set_at", "0"),
            ("otp_last_step", "0"),
        ],
    );
    for n in ["1", "2", "3"] {
        let columns = [("user_id", user), ("hash", &code(n))];
        all.extend(rows("recovery_codes", size.users, "1 = 1", &columns));
    }
    let key = [
        ("user_id", user),
        ("fingerprint", "'SHA256:of-user-' || i"),
        ("public_key", "'ssh-ed25519 none'"),
        ("added_at", "0"),
    ];
    all.extend(rows("user_keys", size.users, "1 = 1", &key));
    for (group, filter) in [(&member, "1 = 1".to_owned()), (&other, format!("{member} <> {other}"))]
    {
        let columns = [("group_name", group.as_str()), ("user_id", user)];
        all.extend(rows("group_members", size.users, &filter, &columns));
    }
    let tenth = "i % 10 = 0";
    all.extend(rows("binding_passwords", size.users, tenth, &[("user_id", user)]));
    let factor = [("user_id", user), ("factor", "'totp'")];
    all.extend(rows("user_factors", size.users, tenth, &factor));
    let rule = [("user_id", user), ("rule", "'password+otp'")];
    all.extend(rows("user_sign_in", size.users, "1 = 1", &rule));
    let used = [("user_id", user), ("hash", "'used-' || i"), ("expires_at", &later)];
    all.extend(rows("used_codes", size.users, tenth, &used));
    let login = id('m', "i");
    let remembered = [
        ("id", login.as_str()),
        ("user_id", user),
        ("key", "'SHA256:of-user-' || i"),
        ("source", "'192.0.2.7'"),
        ("epoch", "1"),
        ("code_at", &today),
    ];
    all.extend(rows("remembered_logins", size.users, tenth, &remembered));
    let certificate = [
        ("serial", "i"),
        ("user_id", user),
        ("key", "'SHA256:of-user-' || i"),
        ("epoch", "1"),
        ("session_id", "'none'"),
        ("issued_at", &today),
        ("expires_at", &later),
    ];
    all.extend(rows("login_certificates", size.users, "1 = 1", &certificate));
    let failures = [
        ("account", "'user' || i"),
        ("source", network),
        ("failures", "1 + i % 3"),
        ("last_failed_at", &today),
    ];
    all.extend(rows("throttle", size.users, "1 = 1", &failures));
    let attacks = [("account", "'user' || i"), ("failures", "1"), ("since", &today)];
    all.extend(rows("attacks", size.users, "1 = 1", &attacks));
    let codes = [("user_id", user), ("failures", "1"), ("since", &today)];
    all.extend(rows("code_failures", size.users, "1 = 1", &codes));
    let known = [("user_id", user), ("source", "'192.0.2.7/32'"), ("last_at", &today)];
    all.extend(rows("known_sources", size.users, "1 = 1", &known));
    for (table, columns) in [
        ("group_sign_in", [("group_name", "'group' || i"), ("rule", "'password+otp,key+otp'")]),
        ("group_factors", [("group_name", "'group' || i"), ("factor", "'totp'")]),
        ("group_remember", [("group_name", "'group' || i"), ("millis", "28800000")]),
    ] {
        all.extend(rows(table, groups, "i % 2 = 0", &columns));
    }
    all
}

fn targets(size: Size, groups: u64) -> Vec<String> {
    let target = id('t', "i");
    let host = "'10.' || (i / 65536 % 256) || '.' || (i / 256 % 256) || '.' || (i % 256)";
    let mut all = rows(
        "targets",
        size.targets,
        "1 = 1",
        &[
            ("id", &target),
            ("name", "'target' || i"),
            ("host", host),
            ("port", "22"),
            // One of a hundred is recorded, and found by its port.
            ("mode", "CASE WHEN i % 100 = 50 THEN 'record' ELSE 'tunnel' END"),
            ("created_at", "0"),
        ],
    );
    for (key, value) in [("'env'", "'env' || (i % 10)"), ("'team'", "'team' || (i % 1000)")] {
        let columns = [("target_id", &*target), ("key", key), ("value", value)];
        all.extend(rows("target_labels", size.targets, "1 = 1", &columns));
    }
    let rule = [("target_id", &*target), ("rule", "'password+otp'")];
    all.extend(rows("target_sign_in", size.targets, "1 = 1", &rule));
    let account =
        [("target_id", &*target), ("name", "'root'"), ("auth", "'ca'"), ("created_at", "0")];
    all.extend(rows("target_accounts", size.targets, "1 = 1", &account));
    let key = [
        ("target_id", &*target),
        ("key", "'ssh-ed25519 of-target-' || i"),
        ("authority", "0"),
        ("pinned_at", "0"),
    ];
    all.extend(rows("target_keys", size.targets, "1 = 1", &key));
    all.extend(grants(size, groups));
    all
}

/// Of four grants, two are a user's for a target, one a group's for one, one a group's for a label.
fn grants(size: Size, groups: u64) -> Vec<String> {
    let user = id('q', &format!("1 + i % {}", size.users));
    let target = id('t', &format!("1 + i * 13 % {}", size.targets));
    let user = format!("CASE WHEN i % 4 < 2 THEN {user} END");
    let group = format!("CASE WHEN i % 4 >= 2 THEN 'group' || (1 + i % {groups}) END");
    let to = format!("CASE WHEN i % 4 < 3 THEN {target} END");
    let label = "CASE WHEN i % 4 = 3 THEN 'team=team' || (i % 1000) END";
    rows(
        "grants",
        size.grants,
        "1 = 1",
        &[
            ("id", &id('g', "i")),
            ("user_id", &user),
            ("group_name", &group),
            ("target_id", &to),
            ("label", label),
            ("accounts", "''"),
            ("allow", "''"),
            ("sources", "''"),
            ("created_at", "i"),
        ],
    )
}

/// The last forty are live, on two nodes; each has a forward, every fifth a recording, and of the
/// recordings the files of the last twentieth are there.
fn sessions(size: Size, now: UnixTime, started: &str) -> Vec<String> {
    let (session, last) = (id('s', "i"), size.sessions.saturating_sub(40));
    let ended = format!("CASE WHEN i <= {last} THEN {started} + 60000 END");
    let user = id('q', &format!("1 + i * 7 % {}", size.users));
    let name = format!("'user' || (1 + i * 7 % {})", size.users);
    let node = "CASE WHEN i % 2 = 0 THEN 'test' ELSE 'other' END";
    let mut all = rows(
        "sessions",
        size.sessions,
        "1 = 1",
        &[
            ("id", &session),
            ("user_id", &user),
            ("user_name", &name),
            ("node", node),
            ("source", "'192.0.2.7:4022'"),
            ("client", "'SSH-2.0-OpenSSH_9.2p1'"),
            ("started_at", started),
            ("ended_at", &ended),
            ("end_reason", "'client-closed'"),
            ("bytes_up", "1000"),
            ("bytes_down", "100000"),
        ],
    );
    let target = format!("'target' || (1 + i % {})", size.targets);
    let to = format!("{target} || ':22'");
    all.extend(rows(
        "forwards",
        size.sessions,
        "1 = 1",
        &[
            ("id", &id('f', "i")),
            ("session_id", &session),
            ("destination", &to),
            ("target", &target),
            ("opened_at", started),
            ("closed_at", &ended),
            ("bytes_up", "1000"),
            ("bytes_down", "100000"),
        ],
    ));
    let removed = format!("CASE WHEN i <= {} THEN {} END", size.sessions / 20 * 19, now.0);
    all.extend(rows(
        "recordings",
        size.sessions,
        "i % 5 = 0",
        &[
            ("id", &id('r', "i")),
            ("session_id", &session),
            ("node", "'test'"),
            ("target", &target),
            ("account", "'root'"),
            ("kind", "'shell'"),
            ("path", "'2026-01-01/' || i || '.cast.zst'"),
            ("started_at", started),
            ("ended_at", &format!("CASE WHEN i <= {last} THEN {started} + 60000 END")),
            ("bytes_up", "1000"),
            ("bytes_down", "100000"),
            ("size", "20000"),
            ("removed_at", &removed),
        ],
    ));
    let by = [("session_id", &*session), ("serial", "1 + i % 1000")];
    all.extend(rows("session_certificates", size.sessions, "1 = 1", &by));
    all
}

fn events(size: Size, at: &str) -> Vec<String> {
    let session = id('s', &format!("1 + i % {}", size.sessions));
    let name = format!("'user' || (1 + i % {} * 7 % {})", size.sessions, size.users);
    let kind = "CASE i % 4 WHEN 0 THEN 'session-ended' WHEN 1 THEN 'signed-in' \
                WHEN 2 THEN 'forward-refused' ELSE 'sign-in-refused' END";
    let what = "CASE i % 4 WHEN 0 THEN '\"reason\":\"client-closed\",\"up\":1000,\"down\":100000' \
                WHEN 1 THEN '\"steps\":[\"password\",\"code\"]' \
                WHEN 2 THEN '\"destination\":\"db1:22\",\"reason\":\"not-granted\"' \
                ELSE '\"reason\":\"wrong-code\"' END";
    let body = format!(
        "'{{\"seq\":' || i || ',\"at\":' || ({at}) || ',\"node\":\"test\",\"prev\":\"{HASH}\",\"user\":\"' \
         || {name} || '\",\"source\":\"192.0.2.7:4022\",\"client\":\"SSH-2.0-OpenSSH_9.2p1\",\"session\":\"' \
         || {session} || '\",\"kind\":\"' || {kind} || '\",' || {what} || '}}'"
    );
    let signature = format!("'{HASH}{}'", &HASH[..24]);
    rows(
        "audit_events",
        size.events,
        "1 = 1",
        &[
            ("seq", "i"),
            ("at", at),
            ("kind", kind),
            ("user_name", &name),
            ("session_id", &session),
            ("body", &body),
            ("hash", &format!("'{HASH}'")),
            ("signature", &signature),
        ],
    )
}
