-- The ids of the sealing keys that a node holds, with spaces between: no key seals that one of them
-- does not hold.

ALTER TABLE nodes ADD COLUMN sealing_keys TEXT NOT NULL DEFAULT '';
