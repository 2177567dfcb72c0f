"""What really happened in a run, by observers that share no code with the ledger."""
