ALTER TABLE nodes DROP COLUMN sealing_keys;
