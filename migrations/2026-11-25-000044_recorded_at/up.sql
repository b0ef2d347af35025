-- Every tunnel asks which targets are recorded at the port that it leads to.
CREATE INDEX targets_by_port_and_mode ON targets (port, mode);
