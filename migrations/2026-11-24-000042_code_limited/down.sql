DROP INDEX code_failures_age;
DROP INDEX code_failures_limited;
