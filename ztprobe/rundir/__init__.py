"""The run directory: what is written there, its schema, and the clock samples that place it in time."""
