"""Tracing what somebody else has brought up: who takes part, a run of it, and detaching without a trace."""
