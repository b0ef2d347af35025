-- Wrong codes of an account after a right first factor, over all sources.
CREATE TABLE code_failures (
    user_id TEXT NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    failures BIGINT NOT NULL,
    -- When the first of them was counted.
    since BIGINT NOT NULL,
    -- Set when there were as many as may be: until then a code is taken from known sources only.
    limited_until BIGINT
);

-- From where somebody signed in as an account with a code: an IPv4 address, or the /64 of an IPv6 one.
CREATE TABLE known_sources (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, source)
);
CREATE INDEX known_sources_age ON known_sources (last_at);

-- The IPv4 addresses of sessions so far. An IPv6 one becomes known with the next sign-in.
INSERT INTO known_sources (user_id, source, last_at)
SELECT user_id, rtrim(rtrim(source, '0123456789'), ':') || '/32', max(started_at)
FROM sessions
WHERE source NOT LIKE '[%' AND user_id IN (SELECT id FROM users)
GROUP BY user_id, rtrim(rtrim(source, '0123456789'), ':') || '/32';
