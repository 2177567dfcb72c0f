"""Client-level differential privacy: what a client may contribute, and what the noise hides of it."""
