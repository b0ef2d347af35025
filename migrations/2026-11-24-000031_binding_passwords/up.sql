-- Whose own password may bind an authenticator while the window is open, because it was set for that.
-- A one-time password always may; any other may not: somebody else could know it by now.
CREATE TABLE binding_passwords (
    user_id TEXT NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE
);
