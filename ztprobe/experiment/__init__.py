"""What is run: an experiment's name, the request of a command, one traced run, a pair with its baseline."""
