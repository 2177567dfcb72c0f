"""A real cluster's one node as tests use it (tools/kube_cluster): commands on it, its API, its pods."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.kube_cluster.api import ApiServer, Refused
from tools.kube_cluster.outside import Node
from ztprobe.paths import REPO_DIR

_LONGEST_S = 600.0
OURS = ("5a70:", "5a71:")  # handles of a run's qdiscs and of a lease's
_PATHS = {
    "Namespace": "/api/v1/namespaces",
    "Service": "/api/v1/namespaces/{}/services",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
}


@dataclass(frozen=True)
class RealNode:
    """One that is up."""

    node: Node
    api: ApiServer

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the API server as its administrator."""
        return self.api.call(method, path, body)

    def create(self, documents: Iterable[dict[str, Any]]) -> None:
        """Make objects as anybody would: each was written for this cluster."""
        for one in documents:
            path = _PATHS[one["kind"]].format(one["metadata"].get("namespace"))
            self.call("POST", path, one)

    def words(self, *words: str) -> list[str]:
        """`ztprobe` on the node."""
        return self.node.command([sys.executable, "-m", "ztprobe", *words], REPO_DIR)

    def ztprobe(
        self, *words: str, fails: int | None = 0, user: str = "admin"
    ) -> subprocess.CompletedProcess[str]:
        """Run it; it must exit with that status (None: with any)."""
        done = subprocess.run(
            self.words(*words),
            capture_output=True,
            text=True,
            check=False,
            env=self.node.environment(user),
            timeout=_LONGEST_S,
        )
        assert fails in (None, done.returncode), (words, done.returncode, done.stdout, done.stderr)
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Run it, and look at what it says meanwhile."""
        return subprocess.Popen(
            self.words(*words), env=self.node.environment(), stderr=subprocess.PIPE, text=True
        )

    def profile(self, *words: str) -> Any:
        """`ztprobe profile ... --json`."""
        return json.loads(self.ztprobe("profile", *words, "--json").stdout)

    def pods(self, namespace: str | None = None, selector: str = "") -> list[dict[str, Any]]:
        """As the API lists them."""
        place = f"/namespaces/{namespace}" if namespace else ""
        listed = self.call("GET", f"/api/v1{place}/pods?labelSelector={selector}")
        found: list[dict[str, Any]] = listed["items"]
        return found

    def ready(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """Those pods whose containers all say that they are, and that nobody has told to go."""
        return [
            pod
            for pod in self.pods(namespace, selector)
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in pod["status"].get("conditions") or ()
            )
        ]

    def shaped(self) -> list[str]:
        """Our qdiscs: in every pod's namespace, and at the ends of their links on the node."""
        look = 'for one in /run/netns/*; do nsenter --net="$one" tc qdisc show; done; tc qdisc show'
        said = subprocess.run(
            self.node.command(["sh", "-c", look]), capture_output=True, text=True, check=True
        ).stdout
        return [line for line in said.splitlines() if any(f" {handle} " in line for handle in OURS)]


def wait_for(what: str, condition: Callable[[], object], limit_s: float = 60.0) -> None:
    """Return once it is so; the API may be away meanwhile."""
    until_s = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except (OSError, Refused):
            pass
        assert time.monotonic() < until_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.2)


def namespace_gone(node: RealNode, prefix: str) -> Callable[[], bool]:
    """For `wait_for`: no namespace of this name is there any more."""
    return lambda: (
        not [
            one
            for one in node.call("GET", "/api/v1/namespaces")["items"]
            if one["metadata"]["name"].startswith(prefix)
        ]
    )


def run_directory(out: Path) -> dict[str, Any]:
    """Its run.json."""
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found
