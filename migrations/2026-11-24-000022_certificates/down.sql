DROP TABLE session_certificates;
DROP TABLE login_certificates;
