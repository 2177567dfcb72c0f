"""Rounds that no application told: from the traffic alone, or named by a log and timed by it. Pure."""
