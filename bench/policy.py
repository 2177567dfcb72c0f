"""Policy verdicts in bulk: how fast a cluster's objects are indexed, asked, and kept up to date.

10,000 policies over 10,000 pods in 500 namespaces, each namespace with default denies, rules between
its own pods by label, by port number, range and name, from other namespaces and from networks; and
25 ClusterNetworkPolicies over all of them. Connections are drawn at random, half of them within a
namespace, so most rows of the index are found in the measured time, too (`cold`); `warm` asks again.
"""

from __future__ import annotations

import copy
import ipaddress
import random
import statistics
import time
from typing import Any

import numpy as np

from ztprobe.policy.bulk import ALLOWED, DENIED, Verdicts
from ztprobe.policy.manifests import Document
from ztprobe.policy.objects import read_objects

__all__ = ("documents", "measure")

NAMESPACES = 500
PODS_EACH = 20
APPS = ("web", "api", "db", "cache", "queue")
PORTS = (53, 80, 443, 5432, 6379, 8080, 9090)
CLUSTER_POLICIES = 25


def documents(seed: int = 1) -> list[dict[str, Any]]:
    """A cluster of 10,000 pods and 10,000 policies."""
    draw = random.Random(seed)
    found = []
    for n in range(NAMESPACES):
        labels = {"team": f"team-{n % 40}", "stage": draw.choice(("dev", "test", "live"))}
        metadata = {"name": f"ns-{n}", "labels": labels}
        found.append({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        found += [_pod(n, k, draw) for k in range(PODS_EACH)]
        found += [_policy(n, k, draw) for k in range((10_000 - CLUSTER_POLICIES) // NAMESPACES + (n < 475))]
    found += [_cluster_policy(k, draw) for k in range(CLUSTER_POLICIES)]
    return found


def _pod(namespace: int, number: int, draw: random.Random) -> dict[str, Any]:
    app = APPS[number % len(APPS)]
    port = draw.choice(PORTS)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{app}-{number}",
            "namespace": f"ns-{namespace}",
            "labels": {
                "app": app,
                "pod-template-hash": f"{draw.randrange(1 << 32):08x}",
                "zone": f"z{number % 3}",
            },
        },
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": port, "name": app}]}]},
        "status": {"podIP": str(ipaddress.ip_address("10.0.0.0") + namespace * 32 + number + 1)},
    }


def _policy(namespace: int, number: int, draw: random.Random) -> dict[str, Any]:
    def app() -> dict[str, Any]:
        return {"matchLabels": {"app": draw.choice(APPS)}}

    peers: list[dict[str, Any]] = [{"podSelector": app()}]
    if draw.random() < 0.3:
        peers.append({"namespaceSelector": {"matchLabels": {"team": f"team-{draw.randrange(40)}"}}})
    if draw.random() < 0.2:
        second = draw.randrange(4)
        excepted = {"except": ["10.0.3.0/24"]} if second == 0 else {}
        peers.append({"ipBlock": {"cidr": f"10.{second}.0.0/16", **excepted}})
    first = draw.choice(PORTS)
    ports: list[dict[str, Any]] = [
        {"port": first},
        {"port": first, "endPort": first + 10},
        {"port": draw.choice(APPS)},
    ]
    rule = {"ports": draw.sample(ports, draw.randint(1, 2))}
    spec: dict[str, Any] = {"podSelector": app()}
    if number == 0:
        spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    elif number % 2:
        spec["ingress"] = [{"from": peers, **rule}]
    else:
        spec |= {"policyTypes": ["Egress"], "egress": [{"to": peers, **rule}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"p-{number}", "namespace": f"ns-{namespace}"},
        "spec": spec,
    }


def _cluster_policy(number: int, draw: random.Random) -> dict[str, Any]:
    team = {"matchLabels": {"team": f"team-{draw.randrange(40)}"}}
    rule = {"action": draw.choice(("Accept", "Deny", "Pass")), "from": [{"namespaces": team}]}
    if draw.random() < 0.5:
        rule["protocols"] = [{"tcp": {"destinationPort": {"number": draw.choice(PORTS)}}}]
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": f"cnp-{number}"},
        "spec": {
            "tier": "Admin" if number % 2 else "Baseline",
            "priority": number,
            "subject": {"namespaces": {"matchLabels": {"stage": draw.choice(("dev", "test", "live"))}}},
            "ingress": [rule],
        },
    }


def measure(count: int = 2_000_000, changes: int = 100) -> dict[str, Any]:
    """What it takes, on one core; times in seconds and milliseconds."""
    found = documents()
    started = time.perf_counter()
    objects = read_objects(Document(one, "bench") for one in found)
    read_s = time.perf_counter() - started
    started = time.perf_counter()
    verdicts = Verdicts(objects)
    index_s = time.perf_counter() - started

    numbers = np.random.default_rng(1)
    pods = len(objects.pods)
    sources = numbers.integers(0, pods, count)
    near = sources // PODS_EACH * PODS_EACH + numbers.integers(0, PODS_EACH, count)
    targets = np.where(numbers.random(count) < 0.5, near, numbers.integers(0, pods, count))
    protocols, ports = np.zeros(count, int), numbers.choice(PORTS, count)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        codes = verdicts.verdicts(sources, targets, protocols, ports)
        seconds.append(time.perf_counter() - started)

    policies = [one for one in found if one["kind"].endswith("Policy")]
    members = [one for one in found if one["kind"] == "Pod"]
    draw = random.Random(2)
    taken_ms: dict[str, list[float]] = {"policy": [], "pod": []}
    for n in range(2 * changes):
        kind = ("policy", "pod")[n % 2]
        document = copy.deepcopy(draw.choice(policies if kind == "policy" else members))
        if kind == "pod":
            document["metadata"]["labels"]["app"] = draw.choice(APPS)
        elif document["kind"] == "NetworkPolicy":
            document["spec"].setdefault("ingress", []).append({"ports": [{"port": draw.choice(PORTS)}]})
        changed = read_objects([Document(document, "bench")])
        started = time.perf_counter()
        if kind == "policy":
            verdicts.put_policy(changed.policies[0])
        else:
            verdicts.put_pod(changed.pods[0])
        verdicts.verdicts(sources[:1], targets[:1], protocols[:1], ports[:1])
        taken_ms[kind].append((time.perf_counter() - started) * 1e3)
    return {
        "policies": len(objects.policies),
        "pods": pods,
        "read_s": read_s,
        "index_s": index_s,
        "cold_per_s": count / seconds[0],
        "warm_per_s": count / statistics.median(seconds[1:]),
        "allowed": float(np.mean(codes == ALLOWED)),
        "denied": float(np.mean(codes == DENIED)),
        **{
            f"{kind}_ms_{word}": found_ms
            for kind, ms in taken_ms.items()
            for word, found_ms in (
                ("median", statistics.median(ms)),
                ("p99", float(np.percentile(ms, 99))),
                ("max", max(ms)),
            )
        },
    }
