-- Record mode: how the bastion signs in on targets, which host keys it trusts, what it recorded.

CREATE TABLE target_accounts (
    target_id TEXT NOT NULL REFERENCES targets (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    auth TEXT NOT NULL,
    -- A private key or a password, sealed.
    secret TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (target_id, name)
);

CREATE TABLE target_keys (
    target_id TEXT NOT NULL REFERENCES targets (id) ON DELETE CASCADE,
    -- "ALGORITHM BASE64", as in authorized_keys.
    key TEXT NOT NULL,
    -- 1: the key of an authority that signs host certificates; 0: a host key.
    authority BIGINT NOT NULL,
    pinned_at BIGINT NOT NULL,
    PRIMARY KEY (target_id, key)
);

CREATE TABLE recordings (
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    node TEXT NOT NULL,
    target TEXT NOT NULL,
    account TEXT NOT NULL,
    kind TEXT NOT NULL,
    command TEXT,
    path TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    outcome TEXT,
    bytes_up BIGINT NOT NULL,
    bytes_down BIGINT NOT NULL,
    -- Of the file, once it is finished.
    size BIGINT,
    sha256 TEXT,
    -- When retention removed the file.
    removed_at BIGINT
);
CREATE INDEX recordings_session ON recordings (session_id, started_at);
CREATE INDEX recordings_started ON recordings (started_at);
CREATE INDEX recordings_open ON recordings (node, ended_at);
