"""The cluster's names: dnsmasq, told by the API of every Service.

A name's addresses are the Service's own, or those of the pods behind a headless one.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tools.kube_cluster.api import ApiServer, Refused
from tools.kube_cluster.places import NODE_ADDRESS
from ztprobe.runtime.local import dns

__all__ = ("Names", "hosts")


def hosts(services: Iterable[Mapping[str, Any]], endpoints: Iterable[Mapping[str, Any]]) -> str:
    """As lines of /etc/hosts; what the API lists of each. Pure."""
    behind = {_place(one): list(_addresses(one)) for one in endpoints}
    lines = []
    for service in services:
        namespace, name = _place(service)
        full = f"{name}.{namespace}.svc.cluster.local"
        address = service["spec"].get("clusterIP") or "None"
        if address != "None":
            lines.append(f"{address} {full}")
            continue
        for pod_address, hostname in behind.get((namespace, name), []):
            lines.append(f"{pod_address} {full}")
            if hostname:
                lines.append(f"{pod_address} {hostname}.{full}")
    return "".join(f"{line}\n" for line in sorted(lines))


def _place(document: Mapping[str, Any]) -> tuple[str, str]:
    return document["metadata"]["namespace"], document["metadata"]["name"]


def _addresses(endpoints: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for subset in endpoints.get("subsets") or ():
        for one in subset.get("addresses") or ():
            yield one["ip"], one.get("hostname") or ""


class Names:
    """The name server, kept up to date by whoever calls `look`.

    :param names: the file that it reads.
    """

    def __init__(self, api: ApiServer, names: Path) -> None:
        self._api, self._names, self._said = api, names, ""
        names.touch()
        with names.with_suffix(".log").open("wb") as log:
            command = dns.command(NODE_ADDRESS, PurePosixPath(names))
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def look(self) -> None:
        """Ask the API once, and tell what is new; a server that is away is asked again the next time."""
        try:
            # By version 0: from what the server has in memory.
            services, endpoints = (
                self._api.call("GET", f"/api/v1/{kind}?resourceVersion=0")["items"]
                for kind in ("services", "endpoints")
            )
        except (OSError, Refused):
            return
        if (text := hosts(services, endpoints)) != self._said:
            self._names.write_text(text)
            self.process.send_signal(signal.SIGHUP)
            self._said = text
