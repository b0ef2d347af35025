-- Who gave too many wrong codes, and what of them is over.
CREATE INDEX code_failures_limited ON code_failures (limited_until) WHERE limited_until IS NOT NULL;
CREATE INDEX code_failures_age ON code_failures (since);
