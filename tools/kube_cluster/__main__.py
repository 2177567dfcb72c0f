"""python -m tools.kube_cluster up | down | status | run COMMAND...; see tools/kube-cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.kube_cluster.credentials import kubeconfig
from tools.kube_cluster.outside import Node, down, found, is_left, turn, up
from tools.kube_cluster.places import ClusterError
from ztprobe.process.interrupts import Interrupted, catching, shielded


def main(words: list[str]) -> int:
    """:returns: the exit status; 3: it cannot be done, and one line says why."""
    try:
        with catching(lambda _: print("kube-cluster: it is being ended", file=sys.stderr)):
            return _do(words[0], words[1:])
    except ClusterError as error:
        print(f"kube-cluster: {error}", file=sys.stderr)
        return 3
    except Interrupted as interrupted:
        return interrupted.exit_code


def _do(what: str, words: list[str]) -> int:
    if what == "up":
        with turn():
            _say(up())
    elif what == "down":
        with turn(), shielded():
            print("kube-cluster: down" if down() else "kube-cluster: none was there")
    elif what == "run":
        if (node := found()) is None:
            raise ClusterError("no node is up: tools/kube-cluster up")
        command = node.command(words, Path(os.environ.get("KUBE_CLUSTER_FROM") or Path.cwd()))
        os.execvpe(command[0], command, node.environment())
    elif (node := found()) is not None:
        _say(node)
    else:
        print("kube-cluster: " + ("something is left of one: down ends it" if is_left() else "none is up"))
        return 1
    return 0


def _say(node: Node) -> None:
    print(f"kube-cluster: up (in {node.took_s:.0f} s); KUBECONFIG={kubeconfig(node.directory, 'admin')},")
    print("kube-cluster: which is reached from the node: tools/kube-cluster run COMMAND")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
