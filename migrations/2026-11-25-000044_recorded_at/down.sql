DROP INDEX targets_by_port_and_mode;
