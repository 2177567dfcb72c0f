"""The kernel's events as types and tables, derived from ``ebpf/events.h``."""
