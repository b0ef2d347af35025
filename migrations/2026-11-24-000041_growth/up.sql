-- What is asked for of tables that grow for ever, where only few rows are meant.

-- Live sessions, of all nodes, the newest first.
CREATE INDEX sessions_live ON sessions (started_at) WHERE ended_at IS NULL;
-- Recordings whose files are there: all that retention and searches look at.
CREATE INDEX recordings_kept ON recordings (node, started_at) WHERE removed_at IS NULL;
-- Who is locked now: failures of anybody's, and nobody's, name are counted.
CREATE INDEX throttle_locked ON throttle (locked_until) WHERE locked_until IS NOT NULL;
-- Events of one kind in one session, such as the files of a session that is shown; and all of a session.
CREATE INDEX audit_events_session_kind ON audit_events (session_id, kind, seq);
DROP INDEX audit_events_session;
