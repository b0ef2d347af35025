-- Which key files belong to this store: the audit key's fingerprint and the sealing key's id.

CREATE TABLE store_keys (
    -- "audit" or "sealing".
    kind TEXT NOT NULL PRIMARY KEY,
    key TEXT NOT NULL
);
