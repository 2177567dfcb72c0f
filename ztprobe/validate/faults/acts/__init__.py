"""What is done to a run from outside to break it: at a moment, and undone when the rounds are over."""
