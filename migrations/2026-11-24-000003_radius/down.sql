DROP TABLE used_codes;
DROP TABLE group_factors;
DROP TABLE user_factors;
