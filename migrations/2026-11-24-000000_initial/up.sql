-- One schema for SQLite and PostgreSQL. Times are milliseconds since 1970 (UTC), ids are made
-- by the program, flags are 0 or 1, secrets are sealed text (see src/store/seal.rs).

CREATE TABLE users (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    factor TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT,
    -- Grows with every change that must end what was signed in with before it.
    epoch BIGINT NOT NULL,
    password_hash TEXT NOT NULL,
    password_one_time BIGINT NOT NULL,
    password_set_at BIGINT NOT NULL,
    binding_until BIGINT,
    otp_secret TEXT,
    otp_bound_at BIGINT,
    otp_last_step BIGINT NOT NULL,
    otp_last_used_at BIGINT,
    otp_drift_seconds BIGINT
);

CREATE TABLE recovery_codes (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    hash TEXT NOT NULL,
    used_at BIGINT,
    PRIMARY KEY (user_id, hash)
);

CREATE TABLE user_keys (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    public_key TEXT NOT NULL,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, fingerprint)
);

CREATE TABLE user_groups (
    name TEXT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
);

CREATE TABLE group_members (
    group_name TEXT NOT NULL REFERENCES user_groups (name) ON DELETE CASCADE,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (group_name, user_id)
);
CREATE INDEX group_members_user ON group_members (user_id);

CREATE TABLE targets (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    port BIGINT NOT NULL,
    mode TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX targets_address ON targets (host, port);

CREATE TABLE target_labels (
    target_id TEXT NOT NULL REFERENCES targets (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (target_id, key)
);
CREATE INDEX target_labels_label ON target_labels (key, value);

-- Exactly one of (user_id, group_name) and one of (target_id, label) is set.
CREATE TABLE grants (
    id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT REFERENCES users (id) ON DELETE CASCADE,
    group_name TEXT REFERENCES user_groups (name) ON DELETE CASCADE,
    target_id TEXT REFERENCES targets (id) ON DELETE CASCADE,
    label TEXT,
    accounts TEXT NOT NULL,
    allow TEXT NOT NULL,
    hours TEXT,
    sources TEXT NOT NULL,
    until BIGINT,
    created_at BIGINT NOT NULL
);
CREATE INDEX grants_user ON grants (user_id);
CREATE INDEX grants_group ON grants (group_name);
CREATE INDEX grants_target ON grants (target_id);

-- Failures in a row, by the account's name (of ours or not) and the source's network.
CREATE TABLE throttle (
    account TEXT NOT NULL,
    source TEXT NOT NULL,
    failures BIGINT NOT NULL,
    last_failed_at BIGINT NOT NULL,
    locked_until BIGINT,
    PRIMARY KEY (account, source)
);
CREATE INDEX throttle_age ON throttle (last_failed_at);

CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    node TEXT NOT NULL,
    source TEXT NOT NULL,
    client TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    end_reason TEXT,
    bytes_up BIGINT NOT NULL,
    bytes_down BIGINT NOT NULL,
    kill_requested_at BIGINT
);
CREATE INDEX sessions_started ON sessions (started_at);
CREATE INDEX sessions_user ON sessions (user_name, started_at);
CREATE INDEX sessions_open ON sessions (node, ended_at);

CREATE TABLE forwards (
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    destination TEXT NOT NULL,
    target TEXT NOT NULL,
    address TEXT,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT,
    bytes_up BIGINT NOT NULL,
    bytes_down BIGINT NOT NULL,
    end_reason TEXT
);
CREATE INDEX forwards_session ON forwards (session_id, opened_at);

CREATE TABLE audit_events (
    seq BIGINT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    user_name TEXT,
    session_id TEXT,
    body TEXT NOT NULL,
    hash TEXT NOT NULL,
    signature TEXT NOT NULL
);
CREATE INDEX audit_events_at ON audit_events (at);
CREATE INDEX audit_events_kind ON audit_events (kind, seq);
CREATE INDEX audit_events_user ON audit_events (user_name, seq);
CREATE INDEX audit_events_session ON audit_events (session_id, seq);

-- One row: the end of the chain. Updating it first is what puts writers in a line.
CREATE TABLE audit_head (
    id BIGINT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL,
    hash TEXT NOT NULL
);
INSERT INTO audit_head (id, seq, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

-- One row: grows with every change that live sessions must be checked against.
CREATE TABLE revision (
    id BIGINT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO revision (id, value) VALUES (1, 0);
