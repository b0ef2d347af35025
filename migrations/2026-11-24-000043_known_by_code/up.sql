-- Only a code makes a source known, and who has no authenticator gave none: their sources came from earlier
-- sessions (40), or with an authenticator that they have no more. Whose codes a RADIUS server checks is known
-- again after the next one.
DELETE FROM known_sources WHERE user_id IN (SELECT id FROM users WHERE otp_secret IS NULL);
