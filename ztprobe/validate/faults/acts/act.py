"""Doing one thing at a moment of a run, and taking it back.

What is done is a `Do`: it acts on a scene and returns how to take that back (None: it goes with the
pods). `Act` waits for its moment and keeps the note of what was done and when.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ztprobe.errors import EnforcementError, WorkloadError
from ztprobe.validate.inject.scene import POLL_S, Note, Scene

__all__ = ("NODE", "Act", "ActMoment", "Do", "Undo", "namespace_of")

NODE = ""  # in place of a pod: the node's own namespace

Undo = Callable[[], None]
Do = Callable[[Scene], Undo | None]


class ActMoment(NamedTuple):
    """An event in a pod's log, of a round; round 0: the first of that name."""

    pod: str
    event: str
    round: int = 0


class Act:
    """An `Injector` that does one thing at a moment.

    :param at: None: before any client has started.
    """

    def __init__(self, kind: str, do: Do, at: ActMoment | None = None) -> None:
        self.kind = kind
        self._do = do
        self._at = at

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`. What cannot be done is among the scene's problems."""
        undo: list[Undo] = []
        come, over = threading.Event(), threading.Event()

        def on_event(pod: str, event: dict[str, Any]) -> None:
            at = self._at
            if at is not None and (pod, event["event"]) == at[:2] and at.round in (0, event.get("round")):
                come.set()

        def wait() -> None:
            while not over.wait(POLL_S):
                if come.is_set():
                    self._act(scene, undo)
                    return

        thread = threading.Thread(target=wait, daemon=True)
        if self._at is None:
            self._act(scene, undo)
        else:
            scene.follower.listen(on_event)
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()
            for one in undo:
                with contextlib.suppress(OSError):  # the pod has gone, and what was done to it
                    one()

    def _act(self, scene: Scene, undo: list[Undo]) -> None:
        begin_ns = time.monotonic_ns()
        try:
            back = self._do(scene)
        except (OSError, EnforcementError, WorkloadError, KeyError) as error:
            scene.problems.append(f"{self.kind}: could not be done: {error}")
            return
        if back is not None:
            undo.append(back)
        pod = self._at.pod if self._at is not None else ""
        scene.notes.append(
            Note(
                kind=self.kind,
                pod=pod,
                round=scene.follower.round,
                begin_ns=begin_ns,
                end_ns=time.monotonic_ns(),
            )
        )


def namespace_of(scene: Scene, pod: str) -> Path:
    """A pod's network namespace, or the node's (`NODE`)."""
    return scene.runtime.server.node_netns if pod == NODE else scene.pod(pod).netns
