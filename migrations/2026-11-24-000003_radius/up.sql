-- RADIUS as a second factor: for whom, and which codes were used.

-- What was said for a user or a group. A user's own goes first, then the groups' by name, then
-- users.factor. The mode is "code", "both" or "challenge"; without one, the configured one.
CREATE TABLE user_factors (
    user_id TEXT NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    factor TEXT NOT NULL,
    radius_mode TEXT
);
CREATE TABLE group_factors (
    group_name TEXT NOT NULL PRIMARY KEY REFERENCES user_groups (name) ON DELETE CASCADE,
    factor TEXT NOT NULL,
    radius_mode TEXT
);

-- What a RADIUS server accepted, as a keyed hash (see src/store/radius.rs).
CREATE TABLE used_codes (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    hash TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, hash)
);
CREATE INDEX used_codes_age ON used_codes (expires_at);
