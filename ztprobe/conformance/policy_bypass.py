"""A way through a node's NetworkPolicies for our own probes, and for nothing else.

Probes are no traffic of the workload: a policy that knows nothing of them would drop and count
them. For the time of a measurement the policy's table lets pass exactly the flows (both addresses
and both ports) between sockets that are ours and open, before any rule that counts. Nobody else
can send from a port that we hold, so this opens nothing to the workload. Connection tracking does
not see these flows: otherwise they would count as established, and their tuples would stay open
for a while after the sockets are closed.

Rules come and go, the hooks they stand in do not: when a hook goes away, the kernel drops every
packet that a queue of the namespace holds, which a delay line's are.

The flows are elements of a set that the kernel forgets by itself after a while, so a way left open
by SIGKILL closes in any case; what is then left of it in the table, the next command removes
(`sweep`), from what was written down before (``/run/ztprobe/leases/passage-*.json``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ztprobe import paths
from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.kernelnet.netns import entered, inode
from ztprobe.pods.model import still_there
from ztprobe.policy import NFT_TABLE
from ztprobe.process.identity import ProcessIdentity
from ztprobe.process.interrupts import shielded
from ztprobe.rundir import files, state

__all__ = ("Passage", "has_policies", "opened", "sweep")

# source address and port, destination address and port; UDP
Passage = tuple[str, int, str, int]

# Chains of the table (`ztprobe.policy.to_nft`): where policies decide, and one before connection tracking.
_DECIDING, _BEFORE = "forward", "probes"
_TYPE = "ipv4_addr . inet_service . ipv4_addr . inet_service"
_MATCH = "ip saddr . udp sport . ip daddr . udp dport"
_LONGER_S = 30


def has_policies(node: Path) -> bool:
    """Whether NetworkPolicies are in force in the node's namespace."""
    return NFT_TABLE in _nft(node, "list", "tables", "ip", check=False)


@contextlib.contextmanager
def opened(node: Path, flows: Sequence[Passage], seconds: float) -> Iterator[None]:
    """Let these flows pass the policies of a node for the duration of the body, and so long at most.

    Nothing to do where there are none.

    :raises EnforcementError: the kernel refuses.
    """
    if not flows or not has_policies(node):
        yield
        return
    name, number = f"probes_{os.getpid()}", inode(node)
    journal = paths.STATE_DIR / paths.LEASES / f"passage-{os.getpid()}-{number}.json"
    owner = ProcessIdentity.own()
    entry = {"owner": vars(owner), "node": str(node), "node_inode": number, "name": name}
    _write(journal, json.dumps(entry))
    try:
        _nft(node, "-f", "-", text=_opening(name, flows, round(seconds) + _LONGER_S))
        yield
    finally:
        with shielded():
            _close(node, name)
            _forget(journal)


def sweep() -> list[str]:
    """Remove what commands that were killed left open; says what, one line each."""
    report = []
    for journal in sorted((paths.STATE_DIR / paths.LEASES).glob("passage-*.json")):
        try:
            entry = json.loads(journal.read_text())
            owner = ProcessIdentity(**entry["owner"])
            node, name = Path(entry["node"]), str(entry["name"])
            there = still_there(node, entry["node_inode"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # its owner has just removed it
        if owner.alive:
            continue
        if there and _close(node, name):
            report.append(f"the way of a killed verify through the policies of {node.name}")
        _forget(journal)
    return report


def _opening(name: str, flows: Sequence[Passage], seconds: int) -> str:
    elements = ", ".join(f"{a} . {p} . {b} . {q}" for a, p, b, q in dict.fromkeys(flows))
    table = f"ip {NFT_TABLE}"
    return "\n".join(
        [
            f"add set {table} {name} {{ type {_TYPE}; flags timeout; timeout {seconds}s; }}",
            f"add element {table} {name} {{ {elements} }}",
            f"add rule {table} {_BEFORE} {_MATCH} @{name} notrack",
            f"insert rule {table} {_DECIDING} {_MATCH} @{name} accept",
            "",
        ]
    )


def _close(node: Path, name: str) -> bool:
    # One transaction again. A node that is gone has taken its table along.
    try:
        table = f"ip {NFT_TABLE}"
        listed = _nft(node, "-at", "list", "table", *table.split(), check=False)
        lines = [
            f"delete rule {table} {chain} handle {handle}"
            for chain, what in ((_DECIDING, "accept"), (_BEFORE, "notrack"))
            for handle in re.findall(rf"@{name} {what} # handle (\d+)", listed)
        ]
        if not lines:
            return False
        _nft(node, "-f", "-", text="\n".join([*lines, f"delete set {table} {name}", ""]))
    except OSError:
        return False
    return True


def _write(journal: Path, text: str) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            if not journal.parent.exists():
                state.make(paths.LEASES)
        files.write_whole(journal, text.encode(), mode=0o600)
    except OSError as error:
        raise EnforcementError(f"{journal} cannot be written: {error.strerror}") from error


def _forget(journal: Path) -> None:
    journal.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        journal.parent.rmdir()
        state.leave()


def _nft(node: Path, *arguments: str, text: str | None = None, check: bool = True) -> str:
    try:
        with entered(node):
            done = subprocess.run(
                ["nft", *arguments],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
    except FileNotFoundError as error:
        if not check:
            return ""  # no nft: nobody here has put policies in force
        raise PreflightError("nft is missing: apt-get install nftables") from error
    if check and done.returncode != 0:
        raise EnforcementError(
            f"the policies' table refuses the probes' rules: {' '.join(done.stderr.split())}"
        )
    return done.stdout
