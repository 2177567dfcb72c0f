"""Cluster DNS: dnsmasq in a pod of its own, which knows the services and nothing else.

It answers ``SERVICE.NAMESPACE.svc.cluster.local`` with the addresses of the service's
pods, "no such name" to the completions that the resolver's search list makes of it
(real cost, which a cluster has too), and refuses the rest of the world. Every query is
logged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ztprobe.errors import WorkloadError
from ztprobe.kernelnet.netns import entered

__all__ = (
    "LABELS",
    "NAMESPACE",
    "POD",
    "PORT",
    "addresses",
    "command",
    "nameservers",
    "query",
    "question",
    "resolv_conf",
    "wait_until_answering",
)

POD = "kube-dns"
NAMESPACE = "kube-system"
LABELS = {"k8s-app": "kube-dns"}
# CoreDNS's default for cluster names in kubeadm clusters.
_TTL_S = 30
_READY_S = 5.0
PORT = 53
_LONGEST_ANSWER = 1 << 16


def command(address: str, names: PurePosixPath, user: str = "root") -> tuple[str, ...]:
    """dnsmasq's command line.

    :param address: the DNS pod's own.
    :param names: a file like /etc/hosts, read again on SIGHUP.
    :param user: as whom it runs; changing it would make it forget to die with its parent.
    """
    return (
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        f"--user={user}",
        f"--group={user}",
        f"--listen-address={address}",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        f"--addn-hosts={names}",
        "--no-poll",
        # Authoritative for the cluster: what is not a record does not exist, and a name
        # without an IPv6 address is answered at once with none.
        "--local=/cluster.local/",
        f"--local-ttl={_TTL_S}",
        "--cache-size=0",
        "--log-queries=extra",
        "--log-facility=-",
    )


def resolv_conf(nameserver: str, namespace: str, options: Sequence[str] = ()) -> str:
    """A pod's /etc/resolv.conf as the kubelet writes it."""
    return (
        f"search {namespace}.svc.cluster.local svc.cluster.local cluster.local\n"
        f"nameserver {nameserver}\n"
        f"options {' '.join(['ndots:5', *options])}\n"
    )


def nameservers(pid: int) -> list[str]:
    """IPv4 addresses of the resolvers that a container's process would ask, by its /etc/resolv.conf."""
    try:
        text = Path(f"/proc/{pid}/root/etc/resolv.conf").read_text(errors="replace")
    except OSError:
        return []
    return re.findall(r"^nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*$", text, re.MULTILINE)


def question(name: str) -> bytes:
    """A query for the IPv4 addresses of a name."""
    import dns.message

    return dns.message.make_query(name, "A").to_wire()


def addresses(asked: bytes, answer: bytes) -> list[str]:
    """The IPv4 addresses in an answer; empty if there are none, or it answers something else."""
    import dns.exception
    import dns.message
    import dns.rdatatype

    try:
        query, found = dns.message.from_wire(asked), dns.message.from_wire(answer)
    except dns.exception.DNSException:
        return []
    if not query.is_response(found):
        return []
    records = [r for r in found.answer if r.rdtype == dns.rdatatype.A]
    return [item.address for record in records for item in record]


def query(netns: Path, nameserver: str, name: str, timeout_s: float) -> list[str]:
    """The IPv4 addresses of ``name``, asked from inside ``netns`` over UDP; empty if there are none.

    :raises TimeoutError: no answer.
    """
    import socket

    with entered(netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(timeout_s)
        asked = question(name)
        try:
            sock.connect((nameserver, PORT))  # others' answers are none
            sock.send(asked)
            return addresses(asked, sock.recv(_LONGEST_ANSWER))
        except OSError as error:
            raise TimeoutError(f"{nameserver} does not answer for {name}") from error


def wait_until_answering(netns: Path, nameserver: str, name: str) -> None:
    """Return once the server answers for ``name``.

    :raises WorkloadError: it does not.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            if query(netns, nameserver, name, timeout_s=0.05):
                return
        except TimeoutError as error:
            if time.monotonic() > deadline:
                raise WorkloadError(f"the DNS pod does not answer: {error}") from error
        time.sleep(0.005)
