"""Many runs as one study: their order, what is kept of them, going on after an interruption."""
