"""Pods whose processes come and go while their network is looked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from ztprobe.errors import EnforcementError
from ztprobe.pods import placing
from ztprobe.pods.cgroup import PodNamespaces
from ztprobe.pods.model import NOWHERE, Pod

UID = "5f0c9d3e-0000-4000-8000-000000000001"
POD = Pod(
    name="client-0",
    namespace="fl",
    node="a",
    uid=UID,
    address="10.0.0.2",
    labels={},
    netns=NOWHERE,
    netns_inode=0,
    interface="",
    host_interface="",
    node_netns=NOWHERE,
)


def test_a_network_whose_process_has_ended_is_looked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first container's process is seen, and ends before its network is entered."""
    ended = PodNamespaces(pods={UID: Path("/proc/0/ns/net")}, others=())
    here = PodNamespaces(pods={UID: Path("/proc/self/ns/net")}, others=())
    looked: list[PodNamespaces] = []

    def found(pod: Pod, uids: Iterable[str], seen: PodNamespaces) -> Pod:
        looked.append(seen)
        assert UID in tuple(uids)
        seen.pods[UID].stat()
        return pod

    monkeypatch.setattr(placing, "_found", found)
    monkeypatch.setattr(placing, "find_namespaces", lambda: here)
    assert placing.placed(POD, iter((UID,)), ended) is POD
    assert looked == [ended, here]
    monkeypatch.setattr(placing, "find_namespaces", lambda: ended)
    with pytest.raises(EnforcementError, match="cannot be entered"):
        placing.placed(POD, (UID,), ended)
