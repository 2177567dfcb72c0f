"""Frameworks are installed by `make setup-frameworks`; their deployments are watched as root."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail("deployments in namespaces of their own, and the probes, need root", pytrace=False)
