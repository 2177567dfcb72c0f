"""The node's programs and their configuration, as files and command lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tools.kube_cluster.credentials import KUBELET_CLIENT, SERVICE_ACCOUNT_KEY, TOKENS, kubeconfig
from tools.kube_cluster.places import (
    API,
    CGROUP,
    CRI,
    NODE,
    NODE_ADDRESS,
    PAUSE_IMAGE,
    POD_RANGE,
    SERVICE_RANGE,
    bin_dir,
)

__all__ = ("KERNEL_DEFAULTS", "Component", "components", "write_configuration")

_ETCD = "http://127.0.0.1:2379"
# What kubelet insists on, or would set: files of the node's own stand in their places, for the machine
# keeps what it has.
KERNEL_DEFAULTS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True)
class Component:
    """A program that is kept running."""

    name: str
    argv: tuple[str, ...]


def components(directory: Path) -> dict[str, Component]:
    """By name, in the order in which they are started."""
    made = [_etcd(), _containerd(directory), _api_server(directory), *_clients(directory)]
    return {one.name: one for one in made}


def _component(name: str, *arguments: str) -> Component:
    return Component(name, (str(bin_dir() / name), *arguments))


def _etcd() -> Component:
    peer = "http://127.0.0.1:2380"
    return _component(
        "etcd",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=error",
    )


def _containerd(directory: Path) -> Component:
    return _component("containerd", f"--config={directory}/containerd.toml")


def _api_server(directory: Path) -> Component:
    return _component(
        "kube-apiserver",
        f"--etcd-servers={_ETCD}",
        f"--cert-dir={directory}/certificates",
        f"--bind-address={NODE_ADDRESS}",
        f"--advertise-address={NODE_ADDRESS}",
        f"--secure-port={API.rpartition(':')[2]}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={directory}/{SERVICE_ACCOUNT_KEY}",
        f"--service-account-signing-key-file={directory}/{SERVICE_ACCOUNT_KEY}",
        f"--token-auth-file={directory}/{TOKENS}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",  # as every installer has it
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--kubelet-client-certificate={directory}/{KUBELET_CLIENT}.crt",
        f"--kubelet-client-key={directory}/{KUBELET_CLIENT}.key",
        "--kubelet-preferred-address-types=InternalIP",
    )


def _clients(directory: Path) -> list[Component]:
    """Those that take their orders from the API server."""
    return [
        _component(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig(directory, 'admin')}",
            "--leader-elect=false",
            "--port=0",
            "--bind-address=127.0.0.1",
            f"--service-account-private-key-file={directory}/{SERVICE_ACCOUNT_KEY}",
            f"--root-ca-file={directory}/certificates/apiserver.crt",
            "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",
        ),
        _component(
            "kube-scheduler",
            f"--kubeconfig={kubeconfig(directory, 'scheduler')}",
            "--leader-elect=false",
            "--port=0",
            "--bind-address=127.0.0.1",
        ),
        _component(
            "kube-proxy",
            f"--kubeconfig={kubeconfig(directory, 'proxy')}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_RANGE}",
            f"--hostname-override={NODE}",
            f"--bind-address={NODE_ADDRESS}",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            # Limits of the whole machine, which stay what they are.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ),
        _component(
            "kubelet",
            f"--config={directory}/kubelet.json",
            f"--kubeconfig={kubeconfig(directory, 'kubelet')}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/var/lib/kubelet/pki",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{CRI}",
            f"--pod-infra-container-image={PAUSE_IMAGE}",
        ),
    ]


def write_configuration(directory: Path) -> None:
    """Write the files that the command lines name."""
    (directory / "containerd.toml").write_text(_containerd_toml(directory))
    (directory / "kubelet.json").write_text(json.dumps(_kubelet(directory), indent=1))
    (directory / "resolv.conf").write_text(f"nameserver {NODE_ADDRESS}\n")
    (directory / "cni").mkdir()
    (directory / "cni/10-node.conflist").write_text(json.dumps(_cni(), indent=1))
    for name, value in KERNEL_DEFAULTS.items():
        path = directory / "sysctls" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def _kubelet(directory: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{directory}/{KUBELET_CLIENT}.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},  # nobody but the API server gets so far
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{directory}/resolv.conf",
        "protectKernelDefaults": True,
        "failSwapOn": False,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # The machine's disk is not this node's, and its images cannot be had again.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _cni() -> dict[str, object]:
    """The plainest of all networks: a bridge, which enforces no policy."""
    return {
        "cniVersion": "0.4.0",
        "name": "node",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/var/lib/cni/networks",
                },
            }
        ],
    }


def _containerd_toml(directory: Path) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    others = ("aufs", "btrfs", "devmapper", "zfs")
    unused = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in others)
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [{unused}]

[grpc]
address = "{CRI}"

[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
stream_server_address = "127.0.0.1"
disable_hugetlb_controller = true
restrict_oom_score_adj = true

[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
BinaryName = "{bin_dir()}/runc"
SystemdCgroup = false

[{cri}.cni]
bin_dir = "{bin_dir()}/cni"
conf_dir = "{directory}/cni"
"""
