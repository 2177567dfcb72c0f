"""What a shell offers when the Tab key is pressed: names of experiments, profiles, scenarios and leases.

``eval "$(_ZTPROBE_COMPLETE=bash_source ztprobe)"`` (or zsh_source, fish_source) switches it on.
"""

from __future__ import annotations

import contextlib
import os

import click
from click.shell_completion import CompletionItem, shell_complete

__all__ = ("VARIABLE", "answer", "experiments", "leases", "profiles", "scenarios")

VARIABLE = "_ZTPROBE_COMPLETE"


def answer(command: click.Group) -> int | None:
    """Answer the shell, if it is asking; None: it is not."""
    instruction = os.environ.get(VARIABLE)
    return shell_complete(command, {}, "ztprobe", VARIABLE, instruction) if instruction else None


def experiments(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    """Profile and level; once both are there, what may follow."""
    from ztprobe.experiment.names import LEVELS
    from ztprobe.profile.model import profile_names

    names = [f"{profile}-sec{level}" for profile in profile_names() for level in LEVELS]
    if any(begun.startswith(f"{name}-") or begun == name for name in names):
        names += [f"{name}-noniid" for name in names]
    return _beginning(names, begun)


def profiles(_context: click.Context, _argument: click.Parameter, begun: str) -> list[CompletionItem]:
    """Those that come along; anything with a slash is a file."""
    from ztprobe.profile.model import profile_names

    found = _beginning(profile_names(), begun)
    return found or [CompletionItem(begun, type="file")]


def scenarios(context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    """Of `ztprobe validate`; with --faults before it, the faults."""
    if context.params.get("faults"):
        from ztprobe.validate.faults.catalogue import FAULTS

        return _beginning([fault.name for fault in FAULTS], begun)
    from ztprobe.validate.scenarios.catalogue import SCENARIOS

    return _beginning([scenario.name for scenario in SCENARIOS], begun)


def leases(_context: click.Context, _argument: click.Parameter, begun: str) -> list[CompletionItem]:
    """That are in force, as far as this user may know."""
    from ztprobe.leases.records import all_leases

    with contextlib.suppress(OSError):
        return _beginning([lease.id for lease in all_leases()], begun)
    return []


def _beginning(names: list[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]
