"""The one door to pyroute2: rtnetlink and sock_diag inside any network namespace.

``setns`` plus a plain ``IPRoute`` costs 0.7 ms a namespace, where pyroute2's own
``NetNS`` object (a process of its own) costs 7 ms.

``import pyroute2`` loads all of it, databases and Wi-Fi included: 6 MiB more than what is wanted here. An
agent is to be small on every node, so the package's own ``__init__`` waits until somebody asks for what is in
none of its modules.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.netns import entered


def _empty_package(name: str) -> None:
    """A package whose modules can be imported each by itself; nothing if it has been loaded."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return  # the imports below say what is missing
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def wanted(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        try:
            return importlib.import_module(f"{name}.{attribute}")
        except ModuleNotFoundError:
            del package.__dict__["__getattr__"]
            loader.exec_module(package)
            return getattr(package, attribute)

    package.__dict__["__getattr__"] = wanted
    sys.modules[name] = package


_empty_package("pyroute2")
from pyroute2 import netns as pyroute2_netns  # noqa: E402
from pyroute2.iproute.linux import IPRoute  # noqa: E402
from pyroute2.netlink.diag import DiagSocket  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402

__all__ = ("DiagSocket", "IPRoute", "NetlinkError", "create_netns", "netlink", "remove_netns", "sock_diag")


@contextmanager
def netlink(netns: Path | None = None) -> Iterator[IPRoute]:
    """An rtnetlink socket inside ``netns`` (None: the current namespace), closed on exit.

    The socket is opened inside and used from outside: it keeps its namespace.
    """
    with entered(netns):
        ipr = IPRoute()
    try:
        yield ipr
    finally:
        ipr.close()


@contextmanager
def sock_diag(netns: Path | None = None) -> Iterator[DiagSocket]:
    """A socket that tells of other sockets inside ``netns``, closed on exit. :raises OSError: it is gone."""
    with entered(netns):
        diag = DiagSocket()
    try:
        yield diag
    finally:
        diag.close()


def create_netns(name: str) -> Path:
    """Create the namespace ``name`` (exclusively) and return its path.

    :raises FileExistsError: a namespace of that name is there already.
    """
    pyroute2_netns.create(name)
    return Path("/run/netns") / name


def remove_netns(name: str) -> None:
    """Unmount and delete ``/run/netns/NAME``; links inside it go with it."""
    pyroute2_netns.remove(name)
