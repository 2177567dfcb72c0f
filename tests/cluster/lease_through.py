"""python -m tests.cluster.lease_through ADDRESS TLS POD...: a rate on pods of a node through its agent.

:param POD: as JSON of `ztprobe.pods.model.Pod.as_dict`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from ztprobe.agent.interface import LeaseRequest
from ztprobe.agent.service.client import AgentClient, Connection
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.pods.model import Pod
from ztprobe.profile.model import Profile


def main(address: str, tls_dir: str, *pods: str) -> None:
    """Begin it, print its name, and go."""
    names = {"certificate": "tls.crt", "key": "tls.key", "authority": "ca.crt"}
    tls = TlsFiles(**{what: Path(tls_dir) / name for what, name in names.items()})
    found = tuple(Pod.from_dict(json.loads(pod)) for pod in pods)
    with tempfile.TemporaryDirectory() as batches:
        connection = Connection(address, tls, patience_s=20)
        with AgentClient(connection, Path(batches) / "batches", run="lease", probes=False) as agent:
            slow, namespace = Profile(name="slow", rate_mbit=20), found[0].namespace
            wanted = LeaseRequest(profile=slow, pods=found, lasts_s=600, namespace=namespace)
            lease = agent.plan_lease(wanted)
            agent.begin_lease(lease)
            print(lease.id)


if __name__ == "__main__":
    main(*sys.argv[1:])
