-- How often signing in as an account (ours or not) failed from anywhere, since when: administrators are
-- told of many failures from many sources, of which none is locked.

CREATE TABLE attacks (
    account TEXT NOT NULL PRIMARY KEY,
    failures BIGINT NOT NULL,
    since BIGINT NOT NULL
);
CREATE INDEX attacks_age ON attacks (since);
