-- Whether a fresh code is asked for at each connection that the grant has a part in: 0 or 1.

ALTER TABLE grants ADD COLUMN step_up BIGINT NOT NULL DEFAULT 0;
