-- Which factors are enough to sign in: the rule as its text (see src/domain/sign_in.rs). A user's own
-- stands in the place of their groups'; all rules of a user's groups hold together. A target's is for
-- whoever wants to reach it.

CREATE TABLE user_sign_in (
    user_id TEXT NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    rule TEXT NOT NULL
);
CREATE TABLE group_sign_in (
    group_name TEXT NOT NULL PRIMARY KEY REFERENCES user_groups (name) ON DELETE CASCADE,
    rule TEXT NOT NULL
);
CREATE TABLE target_sign_in (
    target_id TEXT NOT NULL PRIMARY KEY REFERENCES targets (id) ON DELETE CASCADE,
    rule TEXT NOT NULL
);
