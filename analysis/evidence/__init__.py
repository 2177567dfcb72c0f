"""A run's events as the analysis sees them: read in one place, and passed on as values of its own types."""
