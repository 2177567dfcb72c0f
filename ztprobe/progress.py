"""How a long command says where it is: live on a terminal, plain lines in a log, or not at all.

Progress goes to standard error, so that standard output carries the result alone. A stage
is opened, may take a while, and leaves one line behind. A stage that is still open when
the command ends is named, because that is where it failed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from ztprobe.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars

__all__ = ("LiveProgress", "PlainProgress", "Progress", "QuietProgress", "open_progress")

_SHOW_ELAPSED_S = 2.0
_NAME_WIDTH = 20
# A log reader wants a sign of life from a long step, not a line per percent.
_PLAIN_BAR_STEPS = 4
# Few, because the drawing competes with the rounds that are being measured.
_REFRESH_PER_SECOND = 2


class Progress(Protocol):
    """A context manager; leaving it ends whatever is open."""

    def stage(self, name: str, detail: str = "") -> None:
        """Open a stage (the one before it, if still open, ends as done)."""
        ...

    def done(self, detail: str = "") -> None:
        """Close the open stage with what came of it; it shows its time if that exceeds 2 s."""
        ...

    def round_done(self, k: int, n: int, duration_s: float, detail: str = "") -> None:
        """Round ``k`` of ``n`` has ended."""
        ...

    def note(self, text: str) -> None:
        """One line that belongs to no stage."""
        ...

    def bar(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A step of ``total`` units; the context's value is called with the units done since last time."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class QuietProgress:
    """Says nothing."""

    def stage(self, name: str, detail: str = "") -> None: ...

    def done(self, detail: str = "") -> None: ...

    def round_done(self, k: int, n: int, duration_s: float, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda _units: None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainProgress:
    """One line per finished step, for logs and pipes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._stage: tuple[str, str, float] | None = None

    def stage(self, name: str, detail: str = "") -> None:
        """See `Progress.stage`."""
        self.done()
        self._stage = (name, detail, self._clock())
        self._opened(name, detail)

    def done(self, detail: str = "") -> None:
        """See `Progress.done`."""
        if self._stage is None:
            return
        name, opening_detail, start_s = self._stage
        self._stage = None
        self._closed()
        self._finished(name, detail or opening_detail, self._clock() - start_s)

    def round_done(self, k: int, n: int, duration_s: float, detail: str = "") -> None:
        """See `Progress.round_done`."""
        self._line(f"round {k:>{len(str(n))}} of {n}", f"{duration_s:.2f} s  {detail}".rstrip())

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._write(f"  {text}")

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """See `Progress.bar`."""
        start_s = self._clock()
        seen = 0

        def advance(units: int) -> None:
            nonlocal seen
            before, seen = seen, seen + units
            quarter = seen * _PLAIN_BAR_STEPS // max(total, 1)
            if quarter > before * _PLAIN_BAR_STEPS // max(total, 1) and seen < total:
                self._line(name, f"{seen} of {total}")

        yield advance
        self._finished(name, f"{seen} of {total}", self._clock() - start_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._stage is None:
            self.done()
            return
        name, _, start_s = self._stage
        self._stage = None
        with suppress(OSError):  # the terminal may be gone, which must not hide ``error``
            self._closed()
            self._line(name, f"not finished after {self._clock() - start_s:.1f} s")

    def _finished(self, name: str, detail: str, elapsed_s: float) -> None:
        elapsed = f"{elapsed_s:.1f} s" if elapsed_s >= _SHOW_ELAPSED_S else ""
        self._line(name, f"{detail} ({elapsed})" if detail and elapsed else detail or elapsed or "done")

    def _line(self, name: str, detail: str) -> None:
        self._write(f"{name:<{_NAME_WIDTH}} {detail}")

    # What a live display does differently:

    def _write(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)

    def _opened(self, name: str, detail: str) -> None:
        pass

    def _closed(self) -> None:
        pass


class LiveProgress(PlainProgress):
    """The same lines on a terminal, with a spinner under them for the open stage and moving bars."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        # rich takes a while to import, and only terminals need it.
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)
        self._spinner: RichBars | None = None

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """See `Progress.bar`."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichBars

        self.done()
        start_s = self._clock()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with RichBars(
            *columns, console=self._console, transient=True, refresh_per_second=_REFRESH_PER_SECOND
        ) as bars:
            task = bars.add_task(f"{name:<{_NAME_WIDTH}}", total=total)
            yield lambda units: bars.advance(task, units)
            seen = int(bars.tasks[0].completed)
        self._finished(name, f"{seen} of {total}", self._clock() - start_s)

    def _write(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def _opened(self, name: str, detail: str) -> None:
        from rich.progress import Progress as RichBars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._spinner = RichBars(
            *columns, console=self._console, transient=True, refresh_per_second=_REFRESH_PER_SECOND
        )
        shown = printable(f"{name:<{_NAME_WIDTH}} {detail}").rstrip()
        self._spinner.add_task(shown.replace("[", r"\["), total=None)
        self._spinner.start()

    def _closed(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None


def open_progress(*, quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """The progress display that suits ``stream`` (default: standard error)."""
    if quiet:
        return QuietProgress()
    stream = sys.stderr if stream is None else stream
    return LiveProgress(stream) if stream.isatty() else PlainProgress(stream)
