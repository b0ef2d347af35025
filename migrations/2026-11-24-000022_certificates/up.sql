-- Certificates that the login CA gave to users, and the sessions that somebody signed in on with one.

CREATE TABLE login_certificates (
    -- As it stands in the certificate; random.
    serial BIGINT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- The fingerprint of the key that it is for.
    key TEXT NOT NULL,
    -- The account's epoch when it was given: it holds no longer than that does.
    epoch BIGINT NOT NULL,
    -- The one address that it holds from.
    source TEXT,
    session_id TEXT NOT NULL,
    issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX login_certificates_user ON login_certificates (user_id, expires_at);
CREATE INDEX login_certificates_age ON login_certificates (expires_at);

CREATE TABLE session_certificates (
    session_id TEXT NOT NULL PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    serial BIGINT NOT NULL
);
CREATE INDEX session_certificates_serial ON session_certificates (serial);
