"""The entry point: whatever a command raises becomes one line on standard error and an exit code.

0 done, 1-6 see ztprobe.errors, 2 also for a wrong command line, 4 also for a full disk, 7 `validate`
found a cost beyond its bound, 70 a bug in ztprobe, 129 the terminal was closed, 130 Ctrl-C, 141 nobody
reads what we print any more, 143 SIGTERM. Commands import what they need when they run: help
has to appear at once, and pandas, bcc and pyroute2 take their time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

import click

from ztprobe import __version__
from ztprobe.cli import completion
from ztprobe.cli.command_names import EPILOG, HELP
from ztprobe.cli.commands import CommandGroup
from ztprobe.cli.libraries import heard
from ztprobe.cli.overview import MOST_COLUMNS
from ztprobe.cli.streams import (
    drop_buffered,
    end_as_sigpipe_would,
    open_standard_streams,
    readers_have_gone,
    why_starved,
    why_unwritable,
)
from ztprobe.errors import PreflightError, RunDirError, ZtprobeError
from ztprobe.paths import LEASES, STATE_DIR, unknown_variables
from ztprobe.printable import printable_lines
from ztprobe.process.interrupts import Interrupted, catching
from ztprobe.rundir import state, temporary

__all__ = ("main", "ztprobe")

_EX_SOFTWARE = 70  # sysexits.h


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MOST_COLUMNS},
    help=HELP,
    epilog="\n\n".join(EPILOG),
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def ztprobe(context: click.Context) -> None:
    """Whatever the command is."""
    for line in unknown_variables(os.environ):
        _say(line)
    if context.invoked_subcommand != "clean":  # which says what it removes in its own words
        _sweep_leases()


def _sweep_leases() -> None:
    # Whatever the command is: a profile that nobody keeps any more must not stay on pods.
    if os.geteuid() == 0 and state.trusted() and (STATE_DIR / LEASES).is_dir():
        from ztprobe.agent.lease_keeper import sweep
        from ztprobe.conformance import policy_bypass

        for line in sweep() + policy_bypass.sweep():
            _say(f"left behind, now removed: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; raises nothing but SystemExit.

    :param arguments: without the program's name (default: ``sys.argv``).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    open_standard_streams()
    if (answered := completion.answer(ztprobe)) is not None:
        return answered
    try:
        with (
            heard(_say),
            catching(_say),
            state.telling(_say),
            ztprobe.make_context("ztprobe", arguments) as context,
        ):
            ztprobe.invoke(context)
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(OSError):
            print(error.format_message(), file=sys.stderr, flush=True)
        return error.exit_code
    except click.ClickException as error:
        _say(_one_line(error))
        return error.exit_code
    except ZtprobeError as error:
        _say(str(error))
        return error.exit_code
    except Interrupted as interrupt:
        _say(f"interrupted ({interrupt}); everything has been cleaned up")
        return interrupt.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and readers_have_gone():
            return end_as_sigpipe_would()
        if (reason := why_unwritable(error)) is not None:
            _say(reason)
            drop_buffered(sys.stdout)
            return RunDirError.exit_code
        if (reason := next(filter(None, map(why_starved, _chain(error))), None)) is not None:
            _say(reason)
            return PreflightError.exit_code
        _say(f"unexpected {type(error).__name__}: {_first_line(error)}; {_save_traceback()}")
        return _EX_SOFTWARE
    return 0


def _chain(error: BaseException | None) -> Iterator[Exception]:
    # Libraries raise an error of their own while they handle the system's.
    while error is not None:
        if isinstance(error, Exception):
            yield error
        error = error.__cause__ or error.__context__


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have been closed
        for line in printable_lines(text.rstrip("\n")).split("\n"):
            print(f"ztprobe: {line}", file=sys.stderr, flush=True)


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} (see '{context.command_path} --help')" if context is not None else message


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _save_traceback() -> str:
    # Called while the exception is being handled.
    try:
        path = temporary.keep_traceback(traceback.format_exc())
    except OSError:
        traceback.print_exc()
        return "the traceback is above"
    return f"please report it with {path}"
