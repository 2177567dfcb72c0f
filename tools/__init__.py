"""Programs that a checkout is set up, built and tested with; no part of what is installed."""
