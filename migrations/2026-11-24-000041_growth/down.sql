CREATE INDEX audit_events_session ON audit_events (session_id, seq);
DROP INDEX audit_events_session_kind;
DROP INDEX throttle_locked;
DROP INDEX recordings_kept;
DROP INDEX sessions_live;
