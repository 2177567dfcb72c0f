"""Frameworks are installed by `make setup-frameworks`; their deployments are watched as root."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure() -> None:
    """A run that is ended (by timeout, for one) takes its deployments with it, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail("deployments in namespaces of their own, and the probes, need root", pytrace=False)
