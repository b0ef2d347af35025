DROP TABLE known_sources;
DROP TABLE code_failures;
