DROP TABLE remembered_logins;
DROP TABLE group_remember;
