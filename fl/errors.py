"""What can end the workload with one line on stderr; `main` functions print it and return `exit_code`."""

from __future__ import annotations

__all__ = ("ConfigError", "DataError", "FLError", "RoundError", "Terminated", "TransportError", "WireError")


class FLError(Exception):
    """Anything that ends a server or a client with one clear line."""

    exit_code = 1


class ConfigError(FLError):
    """An environment variable is missing or says something that cannot be done."""

    exit_code = 2


class DataError(FLError):
    """A data set is not there, or a file is not what its name says."""


class WireError(FLError):
    """Bytes from the other side are not a message of this protocol and version."""


class TransportError(FLError):
    """The port is taken, or an established stream broke."""


class RoundError(FLError):
    """Too few clients arrived before the deadline."""


class Terminated(FLError):
    """SIGTERM arrived; 143 is what a shell reports for it (128 + 15)."""

    exit_code = 143
