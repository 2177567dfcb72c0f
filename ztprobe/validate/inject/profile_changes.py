"""Costs of the wire: another network profile for every round."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

from ztprobe.agent.emulator import Emulator
from ztprobe.errors import EnforcementError
from ztprobe.profile.model import Profile
from ztprobe.validate.inject.scene import POLL_S, Note, Scene

__all__ = ("ProfileSteps",)


class ProfileSteps:
    """Puts another network profile on the pods between rounds, while the server aggregates.

    :param profiles: round -> its profile; it stays until another one comes.
    """

    def __init__(self, profiles: Mapping[int, Profile]) -> None:
        self._profiles = dict(profiles)

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`. :raises EnforcementError: the kernel refuses a profile."""
        current = self._apply(scene, 1, None)
        ended: list[int] = []
        scene.follower.listen(
            lambda _who, event: ended.append(int(event["round"])) if event["event"] == "wait_end" else None
        )
        done = threading.Event()
        emulators = [current]

        def run() -> None:
            while not done.wait(POLL_S):
                while ended:
                    try:
                        emulators[0] = self._apply(scene, ended.pop(0) + 1, emulators[0])
                    except Exception as error:
                        scene.problems.append(f"the profile could not be changed: {error}")
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            if emulators[0] is not None:
                self._end(scene, emulators[0])

    @staticmethod
    def _end(scene: Scene, emulator: Emulator) -> None:
        try:
            emulator.check()
        except EnforcementError as error:
            scene.problems.append(str(error))
        emulator.clear()

    def _apply(self, scene: Scene, number: int, current: Emulator | None) -> Emulator | None:
        profile = self._profiles.get(number)
        if profile is None:
            return current
        if current is not None:
            self._end(scene, current)
        emulator = Emulator(profile, scene.pods, scene.runtime.server.node_netns, scene.state_dir, number)
        begin_ns = time.monotonic_ns()
        emulator.apply()
        end_ns = time.monotonic_ns()
        scene.notes.append(Note(kind="profile", pod="", round=number, begin_ns=begin_ns, end_ns=end_ns))
        return emulator
