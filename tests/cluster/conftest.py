"""The one node that these tests share: up when the first of them asks for it, down at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.real_node import RealNode
from tools.kube_cluster.api import ApiServer
from tools.kube_cluster.credentials import kubeconfig
from tools.kube_cluster.outside import down, is_left, turn, up
from tools.kube_cluster.places import missing_parts
from ztprobe.kernelnet.netns import entered


@pytest.fixture(scope="session")
def _parts() -> None:
    if missing := missing_parts():
        pytest.skip(f"no cluster here: {'; '.join(missing)}")


@pytest.fixture(scope="session")
def node(_parts: None) -> Iterator[RealNode]:
    with turn():
        made = up()
        netns = Path(f"/proc/{made.pid}/ns/net")
        try:
            yield RealNode(made, ApiServer(kubeconfig(made.directory, "admin"), lambda: entered(netns)))
        finally:
            down()
    assert not is_left()
