DROP TABLE recordings;
DROP TABLE target_keys;
DROP TABLE target_accounts;
