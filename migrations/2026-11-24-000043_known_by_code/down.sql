-- What was deleted was not to be there.
SELECT 1;
