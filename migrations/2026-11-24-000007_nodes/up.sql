-- Nodes that share the store, and how often each has said that it lives: the sessions of one that no
-- longer does are closed by the others.

CREATE TABLE nodes (
    node TEXT NOT NULL PRIMARY KEY,
    beats BIGINT NOT NULL
);
