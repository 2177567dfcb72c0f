"""Pods of a Kubernetes cluster that run on this node.

The API says which pods a selector means (it evaluates the selector itself), on which node they
are, their UIDs and addresses. Everything else comes from this node's kernel: the UID leads to a
namespace (`ztprobe.pods.cgroup.find_namespaces`), the address to the interface in it, the interface to
the end of its veth outside (`ztprobe.pods.links`), a process's cgroup to its container. A pod on another
node can be talked to, and is only an address here.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ztprobe.errors import EnforcementError, PreflightError, UsageError, ZtprobeError
from ztprobe.kubernetes.api import Api, Object
from ztprobe.kubernetes.pod_facts import LOGS, NODE_NAME, cgroup_uid, is_over, newest_log
from ztprobe.pods.cgroup import PodNamespaces, find_namespaces, find_processes
from ztprobe.pods.model import NOWHERE, Pod
from ztprobe.pods.placing import placed
from ztprobe.pods.selection import no_match
from ztprobe.pods.selectors import Selector, parse_selector
from ztprobe.pods.source import Found, Processes

__all__ = (
    "Cluster",
    "coming_pod",
    "in_front",
    "matching",
    "named_pod",
    "pods_everywhere",
    "refuse_hosts_network",
    "running_pods",
)

_FEW = 3
_ASK_AGAIN_S = 2.0


class Cluster:
    """A cluster as seen from one of its nodes; a `ztprobe.pods.source.PodSource`.

    :param node: this node's name in the cluster; None: $NODE_NAME, else the host's name.
    :param api: None: of the cluster that the environment names.
    :raises PreflightError: nothing says which cluster, or how to log in.
    """

    def __init__(self, node: str | None = None, api: Api | None = None) -> None:
        self._named = node or os.environ.get(NODE_NAME)
        self._node = self._named or socket.gethostname().lower()
        self._api = api or Api()
        self._namespaces: PodNamespaces | None = None
        self._uids: dict[str, str] = {}  # a pod's UID -> the one that its cgroup is named after
        self._containers: dict[str, str] = {}  # container's ID -> its name
        self._learned_s = 0.0

    def pods(self, selector: Selector, namespace: str, *, option: str = "--selector") -> Found:
        """The running pods that a selector means.

        :param option: for messages.
        :raises UsageError: it means none.
        :raises PreflightError: the API refuses, or a pod's processes cannot be seen from here.
        :raises EnforcementError: a pod is not to be touched (hostNetwork), or nothing of it runs yet.
        """
        running, notes = matching(self._api, selector, namespace, option=option)
        here = [pod for pod in running if self._is_here(pod)]
        elsewhere = [pod for pod in running if not self._is_here(pod)]
        return Found(
            here=tuple(self._resolve(pod) for pod in here),
            elsewhere=tuple(_remote(pod) for pod in elsewhere),
            notes=notes,
        )

    def pods_here(self, selector: Selector, namespace: str) -> Found:
        """Like `pods`, and at least one of them must run on this node.

        :raises UsageError: they run elsewhere; names the nodes.
        """
        found = self.pods(selector, namespace)
        if not found.here:
            pod = found.elsewhere[0]
            how = "--node or NODE_NAME" if self._named else "by the host's name; --node says another"
            raise UsageError(
                f"{pod} is on node {pod.node or 'none yet'}, and this is node {self._node} ({how}):"
                " a profile is applied on the pod's own node"
            )
        if found.elsewhere:
            nodes = _few(sorted({pod.node for pod in found.elsewhere}))
            note = f"{len(found.elsewhere)} more of these pods are on {nodes}, and left alone"
            return Found(here=found.here, elsewhere=(), notes=(*found.notes, note))
        return found

    def peers(self, selector: Selector, namespace: str) -> Found:
        """Whom traffic goes to: pods wherever they are, and the Services in front of them.

        A pod that calls a Service sends to the cluster address; the translation happens after its
        own interface.
        """
        found = self.pods(selector, namespace, option="--to")
        services, notes = in_front(self._api, namespace, [*found.here, *found.elsewhere])
        return Found(here=found.here, elsewhere=(*found.elsewhere, *services), notes=(*found.notes, *notes))

    def neighbours(self, namespace: str) -> list[Pod]:
        """Every pod of a namespace that runs on this node and can be entered."""
        found = []
        for pod in self._api.objects("pods", namespace):
            if pod["status"].get("phase") == "Running" and not _is_ending(pod) and self._is_here(pod):
                try:
                    found.append(self._resolve(pod))
                except ZtprobeError:
                    continue  # hostNetwork, or just starting: nobody to measure with
        return found

    def resolved(self, pod: Object) -> Pod | None:
        """A pod that the API has listed, whatever its phase; None: it is on another node.

        :raises EnforcementError: it is not to be touched (hostNetwork), or has no network yet.
        :raises PreflightError: none of its processes can be seen from here.
        """
        return self._resolve(pod) if self._is_here(pod) else None

    @property
    def node(self) -> str:
        """This node's name, as far as it is known."""
        return self._node

    @property
    def is_named(self) -> bool:
        """Whether somebody has said so; else it is a guess."""
        return self._named is not None

    def look_again(self) -> None:
        """Pods may have come and gone since the namespaces were found."""
        self._namespaces = None

    def processes(self, pods: Iterable[Pod]) -> Processes:
        """See `PodSource`. Asks the API when containers have appeared. :raises PreflightError: it refuses."""
        wanted = {pod.uid: pod for pod in pods if pod.is_here}
        if any(uid not in self._uids for uid in wanted):
            self._learn(wanted.values())
        by_cgroup = {self._uids[uid]: pod.name for uid, pod in wanted.items() if uid in self._uids}
        running = list(find_processes(by_cgroup))
        # What the API does not name is the pause container, or so young that it will be named soon.
        unnamed = any(container not in self._containers for _, _, container in running)
        if unnamed and time.monotonic() - self._learned_s > _ASK_AGAIN_S:
            self._learn(wanted.values())
        return {pid: (pod, self._containers[c]) for pid, pod, c in running if c in self._containers}

    def _learn(self, pods: Iterable[Pod]) -> None:
        self._learned_s = time.monotonic()
        for namespace in sorted({pod.namespace for pod in pods}):
            for found in self._api.objects("pods", namespace):
                metadata, status = found["metadata"], found["status"]
                self._uids[metadata["uid"]] = cgroup_uid(found)
                for kind in ("initContainerStatuses", "containerStatuses"):
                    for container in status.get(kind) or ():
                        # RUNTIME://ID, empty before it is made
                        self._containers[container.get("containerID", "").rpartition("/")[2]] = container[
                            "name"
                        ]

    def log(self, pod: Pod, container: str) -> Path:
        """See `PodSource`: of the container's latest start. Lines are kubelet's (time, stream, tag, text)."""
        return newest_log(LOGS / f"{pod.namespace}_{pod.name}_{pod.uid}" / container)

    def _seen(self) -> PodNamespaces:
        if self._namespaces is None:
            self._namespaces = find_namespaces()
        return self._namespaces

    def _is_here(self, pod: Object) -> bool:
        # A name that was only guessed gives way to the evidence of the pod's own processes.
        if pod["spec"].get("nodeName") == self._node:
            return True
        return self._named is None and self._netns(pod) is not None

    def _netns(self, pod: Object) -> Path | None:
        uids, pods = (cgroup_uid(pod), pod["metadata"]["uid"]), self._seen().pods
        return next((pods[uid] for uid in uids if uid in pods), None)

    def _resolve(self, pod: Object) -> Pod:
        refuse_hosts_network(pod)
        return placed(_remote(pod), (cgroup_uid(pod), pod["metadata"]["uid"]), self._seen())


def matching(
    api: Api, selector: Selector, namespace: str, *, option: str = "--selector"
) -> tuple[list[Object], tuple[str, ...]]:
    """The running pods that a selector means, on whatever node, as the API has them; and notes, for people.

    :param option: for messages.
    :raises UsageError: it means none.
    :raises PreflightError: the API refuses.
    :raises EnforcementError: none of them runs yet.
    """
    listed = api.objects("pods", namespace, selector.text)
    alive = [pod for pod in listed if not is_over(pod)]
    if not alive:
        there = [_words(pod) for pod in api.objects("pods", namespace)]
        raise no_match(selector, namespace, there, option=option)
    running = [p for p in alive if p["status"].get("phase") == "Running" and not _is_ending(p)]
    if not running:
        what = "ending" if _is_ending(alive[0]) else alive[0]["status"].get("phase", "Pending")
        raise EnforcementError(f"{_name(alive[0])} is {what}: wait until it runs")
    left_out = [_name(pod) for pod in alive if pod not in running]
    notes = (f"{_few(left_out)} left out: not running yet, or ending",) if left_out else ()
    return running, notes


def in_front(api: Api, namespace: str, pods: Sequence[Pod]) -> tuple[tuple[Pod, ...], tuple[str, ...]]:
    """The cluster addresses of Services in front of pods, as if they were pods; and notes, for people."""
    try:
        services = [s for s in api.objects("services", namespace) if _is_in_front(s, pods)]
    except PreflightError as error:
        return (), (f"traffic to Services' cluster addresses is not met: {error}",)
    addresses = tuple(
        Pod(
            name=f"service/{service['metadata']['name']}",
            namespace=namespace,
            address=service["spec"]["clusterIP"],
            netns=NOWHERE,
            netns_inode=0,
            interface="",
            host_interface="",
            node_netns=NOWHERE,
        )
        for service in services
    )
    return addresses, ()


def refuse_hosts_network(pod: Object) -> None:
    """:raises EnforcementError: a profile on it would be on its whole node."""
    if pod["spec"].get("hostNetwork"):
        raise EnforcementError(
            f"{_name(pod)} uses its node's own network (hostNetwork): a profile on it would be on the"
            " whole node; narrow the selector"
        )


def pods_everywhere(api: Api, namespace: str) -> list[Pod]:
    """Every pod of a namespace that runs, on whatever node, with its names and address.

    Pods in their node's own network are left out. Each is named by the UID that its cgroup has.

    :raises PreflightError: the API refuses.
    """
    return running_pods(api.objects("pods", namespace))


def running_pods(listed: Iterable[Object]) -> list[Pod]:
    """Those of what the API has listed that run; see `pods_everywhere`."""
    return [
        named_pod(pod)
        for pod in listed
        if pod["status"].get("phase") == "Running"
        and not _is_ending(pod)
        and not pod["spec"].get("hostNetwork")
        and _address(pod) is not None
    ]


def named_pod(pod: Object) -> Pod:
    """A pod with its names and address, and the UID that its cgroup has.

    :raises EnforcementError: it has no IPv4 address.
    """
    return dataclasses.replace(_remote(pod), uid=cgroup_uid(pod))


def coming_pod(pod: Object) -> Pod:
    """Like `named_pod`; its address may be empty, as long as kubelet has not told it."""
    return dataclasses.replace(_without_network(pod, _address(pod) or ""), uid=cgroup_uid(pod))


def _remote(pod: Object) -> Pod:
    address = _address(pod)
    if address is None:
        raise EnforcementError(f"{_name(pod)} has no IPv4 address")
    return _without_network(pod, address)


def _without_network(pod: Object, address: str) -> Pod:
    return Pod(
        name=pod["metadata"]["name"],
        namespace=pod["metadata"]["namespace"],
        labels=pod["metadata"].get("labels") or {},
        address=address,
        netns=NOWHERE,
        netns_inode=0,
        interface="",
        host_interface="",
        node_netns=NOWHERE,
        uid=pod["metadata"]["uid"],
        node=pod["spec"].get("nodeName", ""),
    )


def _is_in_front(service: Object, pods: Sequence[Pod]) -> bool:
    spec = service["spec"]
    address, labels = spec.get("clusterIP") or "None", spec.get("selector") or {}
    if not labels or not _is_ipv4(address):  # "None": headless, its name is the pods' own addresses
        return False
    wanted = parse_selector(",".join(f"{key}={value}" for key, value in labels.items()))
    return any(wanted.matches(pod.labels) for pod in pods)


def _address(pod: Object) -> str | None:
    status = pod["status"]
    listed = [entry.get("ip", "") for entry in status.get("podIPs") or ()] or [status.get("podIP", "")]
    return next((address for address in listed if _is_ipv4(address)), None)


def _is_ipv4(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return False
    return True


def _is_ending(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _words(pod: Object) -> tuple[str, str, Mapping[str, str]]:
    metadata = pod["metadata"]
    return metadata["namespace"], metadata["name"], metadata.get("labels") or {}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
