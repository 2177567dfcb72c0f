"""The pods of a node that a selector means, from the moment that the API has bound them to it.

The API is asked every second, and at once when somebody has seen a pod that it has not told of yet; a thread
of its own does that, so that nobody waits. An API that is away is asked again: what it said last still holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ztprobe.errors import ZtprobeError
from ztprobe.kubernetes.api import Api, Object
from ztprobe.kubernetes.pod_facts import is_over
from ztprobe.kubernetes.pod_source import coming_pod, in_front
from ztprobe.pods.model import Pod

__all__ = ("FollowedPods", "SaidPods")

_ASK_AGAIN_S = 1.0
_AFTER_FAILURE_S = 2.0
_PAUSE_S = 0.03


@dataclass(frozen=True, kw_only=True)
class SaidPods:
    """What the API has said."""

    # By the UIDs that their cgroups are named after; what runs in them may be nothing yet.
    pods: dict[str, Pod] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # pod -> why it is none that a profile may be on
    relabelled: frozenset[str] = frozenset()  # UIDs of pods that the selector meant, and does not any more
    peers: tuple[Pod, ...] | None = None  # None: towards anyone
    asked_s: float = 0.0  # CLOCK_MONOTONIC: when it was asked


class FollowedPods:
    """See the module; a context manager.

    :param connect: makes an `Api`: anew after each failure, because what one logs in with may have changed.
    :param selector: as text, which the API reads itself.
    :param node: the node's name.
    :param to: of the peers; None: towards anyone.
    :param services: in front of the peers, as known so far.
    """

    def __init__(
        self,
        connect: Callable[[], Api],
        namespace: str,
        selector: str,
        *,
        node: str,
        to: str | None,
        services: tuple[Pod, ...] = (),
    ) -> None:
        self._connect, self._namespace, self._node = connect, namespace, node
        self._selector, self._to, self._services = selector, to, services
        self._api: Api | None = None
        self._wanted, self._ended = threading.Event(), threading.Event()
        self.said: SaidPods | None = None  # None: it has not answered yet
        self.problem = ""  # why it does not answer; empty: it does

    def __enter__(self) -> FollowedPods:
        # Nothing can end a read that an API drips, and it hinders nobody.
        threading.Thread(target=self._work, name="followed-pods", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._wanted.set()

    def ask_now(self) -> None:
        """Somebody has seen a pod that the API has not told of."""
        self._wanted.set()

    def _work(self) -> None:
        while not self._ended.is_set():
            self._wanted.clear()
            self.look()
            # An API that is away is not asked for each pod that comes, nor one that answers without a pause.
            self._ended.wait(_AFTER_FAILURE_S if self.problem else _PAUSE_S)
            if not self.problem:
                self._wanted.wait(_ASK_AGAIN_S)

    def look(self) -> None:
        """Ask, and keep the answer."""
        try:
            if self._api is None:
                self._api = self._connect()
            self.said = self._asked(self._api)
            self.problem = ""
        except ZtprobeError as error:
            self._api = None
            self.problem = str(error)

    def _asked(self, api: Api) -> SaidPods:
        asked_s, before = time.monotonic(), self.said
        alive = [pod for pod in api.objects("pods", self._namespace, self._selector) if not is_over(pod)]
        here = [pod for pod in alive if pod["spec"].get("nodeName") == self._node]
        hosted = [pod for pod in here if pod["spec"].get("hostNetwork")]
        pods = [coming_pod(pod) for pod in here if pod not in hosted]
        found = {pod.uid: pod for pod in pods}
        known = before.pods.keys() | before.relabelled if before is not None else set()
        return SaidPods(
            pods=found,
            refused={str(coming_pod(pod)): "it uses its node's own network (hostNetwork)" for pod in hosted},
            relabelled=self._still_there(api, frozenset(known - found.keys())),
            peers=self._peers(api),
            asked_s=asked_s,
        )

    def _still_there(self, api: Api, missing: frozenset[str]) -> frozenset[str]:
        """Of those that were meant: which are there still, so that their labels are others."""
        if not missing:
            return missing
        there: list[Object] = [pod for pod in api.objects("pods", self._namespace) if not is_over(pod)]
        return missing & {coming_pod(pod).uid for pod in there}

    def _peers(self, api: Api) -> tuple[Pod, ...] | None:
        if self._to is None:
            return None
        listed = (
            coming_pod(pod) for pod in api.objects("pods", self._namespace, self._to) if not is_over(pod)
        )
        peers = [pod for pod in listed if pod.address]  # those that are ending still have traffic
        services, problems = in_front(api, self._namespace, peers)
        if not problems:  # else those that are known stay
            self._services = services
        return (*peers, *self._services)
