-- Logins that are remembered for a while: the same user, key and address are not asked for a code.

CREATE TABLE group_remember (
    group_name TEXT NOT NULL PRIMARY KEY REFERENCES user_groups (name) ON DELETE CASCADE,
    -- For how long, in milliseconds; 0: members are not remembered, whatever other groups say.
    millis BIGINT NOT NULL
);

CREATE TABLE remembered_logins (
    id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- The fingerprint of the key, and the address.
    key TEXT NOT NULL,
    source TEXT NOT NULL,
    -- The account's epoch then: it is remembered no longer than that holds.
    epoch BIGINT NOT NULL,
    -- When the code was given.
    code_at BIGINT NOT NULL,
    last_used_at BIGINT,
    UNIQUE (user_id, key, source)
);
CREATE INDEX remembered_logins_age ON remembered_logins (code_at);
