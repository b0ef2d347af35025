DROP TABLE binding_passwords;
