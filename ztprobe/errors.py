"""The one error tree.

Every message says what failed, what was seen and what to do, in one line: the
command line prints it after ``ztprobe:`` and exits with ``exit_code``, so a user
never meets a traceback for something that they can mend. Library exceptions are
translated where the library is called, with ``raise ... from``.
"""

from __future__ import annotations

__all__ = (
    "EnforcementError",
    "PreflightError",
    "RunDirError",
    "UsageError",
    "WorkloadError",
    "ZtprobeError",
)


class ZtprobeError(Exception):
    """Anything that ends a command with one clear line."""

    exit_code = 1


class UsageError(ZtprobeError):
    """The command line, a profile or a manifest says something that cannot be done."""

    exit_code = 2


class PreflightError(ZtprobeError):
    """This machine lacks something that the command needs."""

    exit_code = 3


class RunDirError(ZtprobeError):
    """A run directory is incomplete, damaged or of a newer schema."""

    exit_code = 4


class EnforcementError(ZtprobeError):
    """A policy, mutual TLS or a network profile was not in force, so nothing was measured."""

    exit_code = 5


class WorkloadError(ZtprobeError):
    """A pod of the experiment died or a round failed."""

    exit_code = 6
