"""Debian's Prometheus, and the dashboard's queries as Grafana would ask them of it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import program
from ztprobe.paths import MANIFESTS_DIR

__all__ = ("DASHBOARD", "asked", "by_label", "free_port", "prometheus", "queries")

DASHBOARD = json.loads((MANIFESTS_DIR / "dashboard/ztprobe-agent.json").read_text())


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def prometheus(directory: Path, target: int) -> Iterator[int]:
    """One that scrapes a port of this machine every second. :returns: its own port."""
    port = free_port()
    (directory / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: agents, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
    )
    process = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(directory / "prometheus.log").open("wb"),
        cwd=directory,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


def asked(port: int, query: str) -> list[dict[str, Any]]:
    """The series that a query gives now. :raises AssertionError: it is none that Prometheus can read."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:  # it does not listen yet
        return []
    return list(found["data"]["result"])


def queries() -> dict[str, str]:
    """Panel and letter -> query, as Grafana would ask it for the last minute and every agent."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$node", ".*")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }


def by_label(series: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    """Values by the labels that are the agent's own."""
    own = ("direction", "pod", "reason", "component", "client", "statistic")
    return {
        tuple(one["metric"][label] for label in own if label in one["metric"]): float(one["value"][1])
        for one in series
    }
