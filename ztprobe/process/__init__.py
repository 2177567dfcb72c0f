"""Processes of this machine: telling one from a later one of the same pid, ending in order on a signal,
reading what the kernel says of them, keeping them on some of its CPUs."""
