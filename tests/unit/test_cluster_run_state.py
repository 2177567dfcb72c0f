"""A run's pods that somebody removes while it goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ztprobe.errors import WorkloadError
from ztprobe.runtime.cluster.run_state import RunState

POD = "fl-server"
EVICTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "EvictionByEvictionAPI",
    "message": "Eviction API: evicting",
}


def pod(*, ended: int | None = None, going: bool = False, condition: dict[str, str] | None = None) -> Any:
    state = {"running": {}} if ended is None else {"terminated": {"exitCode": ended}}
    return {
        "metadata": {"name": POD, "namespace": "fl-1"} | ({"deletionTimestamp": "now"} if going else {}),
        "spec": {"nodeName": "node-b", "containers": [{"name": "server"}, {"name": "ztprobe-hold"}]},
        "status": {
            "conditions": [condition] if condition else [],
            "containerStatuses": [
                {"name": "server", "state": state},
                {"name": "ztprobe-hold", "state": {"running": {}}},
            ],
        },
    }


class Told:
    """What the API says, look by look."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.objects: dict[str, Any] = {POD: pod()}

    def look(self) -> None:
        if self._answers:
            answer = self._answers.pop(0)
            self.objects = {} if answer is None else {POD: answer}


def state(*answers: Any) -> tuple[RunState, Told]:
    told = Told(*answers)
    application = SimpleNamespace(name="server")
    workload: Any = SimpleNamespace(pods=[SimpleNamespace(name=POD, application=application)])
    source: Any = SimpleNamespace(look=lambda: None)
    return RunState(workload, "fl-1", lambda: told, source), told  # type: ignore[arg-type, return-value]


def test_one_that_stays_is_nothing() -> None:
    made, _ = state(pod())
    made.check()


def test_how_the_containers_of_one_that_goes_end_is_waited_for() -> None:
    going = pod(going=True, condition=EVICTED)
    made, _ = state(going, going, pod(ended=143, going=True))
    with pytest.raises(
        WorkloadError,
        match=r"^fl-1/fl-server is removed from node node-b"
        r" \(EvictionByEvictionAPI: Eviction API: evicting\): nothing goes on$",
    ):
        made.check()
    assert made.exits() == {"fl-server/server": -15}


@pytest.mark.parametrize("last", [None, pod(ended=0, going=True)])
def test_who_removes_it_may_not_be_known(last: Any) -> None:
    made, _ = state(last)
    with pytest.raises(WorkloadError, match=r"^fl-1/fl-server is removed by somebody: nothing goes on$"):
        made.check()
