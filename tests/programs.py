"""Programs that tests compare with or take traffic from.

Set-up installs them (tools/setup-system, group "tests"; tools/kubectl, tools/prometheus), so that one that is
missing is set-up's mistake and fails the test: a skip would hide it. The API server alone takes
minutes to build and is left to `make test-cluster`; where it is not, tests/conftest.py leaves
its tests out and says so.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = ("api_server_programs", "has_api_server", "program")

_BUILT = Path(os.environ.get("KUBE_CACHE", Path("~/.cache/ztprobe-kube").expanduser())) / "bin"
_API_SERVER = ("kube-apiserver", "etcd")


def program(name: str) -> str:
    """Where the program is; fails the test, by the program's name, where it is nowhere."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        pytest.fail(f"{name} is missing: make setup-tests should have installed it", pytrace=False)
    return found


def has_api_server() -> bool:
    """Whether kube-apiserver and etcd are there."""
    return all(_built(name) for name in _API_SERVER)


def api_server_programs() -> tuple[str, str]:
    """Where kube-apiserver and etcd are; fails the test where they are nowhere."""
    found = [_built(name) for name in _API_SERVER]
    if None in found:
        pytest.fail("no kube-apiserver with etcd: tools/kube-cluster build makes them", pytrace=False)
    return str(found[0]), str(found[1])


def _built(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(_BUILT))
