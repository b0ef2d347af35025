DROP TABLE target_sign_in;
DROP TABLE group_sign_in;
DROP TABLE user_sign_in;
