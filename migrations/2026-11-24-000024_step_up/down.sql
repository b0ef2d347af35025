ALTER TABLE grants DROP COLUMN step_up;
