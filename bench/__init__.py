"""What watching costs, measured: `make bench`. Nothing here is a test; a machine's figures are its own."""
