"""A cluster of one node for tests: a real API server, and what kubelet and a CNI plugin do, done here.

The API server (with etcd) is Kubernetes' own, built by ``tools/kube-cluster``. No kubelet and no
container runtime run: what they make of a pod (a network namespace, a veth to the node's bridge,
cgroups named after the UID, a pause process, the pod's status) is made here, for real, in the
layouts of cgroups that this machine has.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kernel.kube_cgroups import places_of
from tests.programs import api_server_programs
from ztprobe.kernelnet.netlink import create_netns, netlink, remove_netns
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR

PORT = 6443
NODE = "node-a"
TOKENS = {"admin": "system:masters", "nobody": "", "agent": ""}
_STARTED_S = 120.0 * float(os.environ.get("ZTPROBE_TEST_PATIENCE", "1"))


@dataclass
class KubePod:
    """One pod, as API server and node have it."""

    name: str
    uid: str
    address: str
    netns: Path
    inode: int
    host_interface: str
    pause: subprocess.Popen[bytes]
    cgroups: list[Path] = field(default_factory=list)
    pinned: str | None = None  # the name under /run/netns


class KubeNode:
    """The node, its API server, and its pods."""

    def __init__(self, directory: Path) -> None:
        self.tag = f"ztp-t{secrets.token_hex(3)}"
        self.directory = directory
        self.state = directory / "state"
        self.netns = create_netns(f"{self.tag}n")
        self.pods: dict[str, KubePod] = {}
        self._servers: list[subprocess.Popen[bytes]] = []
        self._tops: list[Path] = []
        self._players: list[subprocess.Popen[bytes]] = []
        with netlink(self.netns) as ipr:
            ipr.link("set", index=1, state="up")
            ipr.link("add", ifname="cni0", kind="bridge")
            (self._bridge,) = ipr.link_lookup(ifname="cni0")
            ipr.link("set", index=self._bridge, state="up")
            ipr.addr("add", index=self._bridge, address="10.98.0.1", prefixlen=24)

    def start_api(self) -> None:
        """Start etcd and the API server on the node's loopback, and wait until it is ready."""
        apiserver, etcd = api_server_programs()
        here = self.directory
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        (here / "sa.key").write_bytes(key.private_bytes(*pem, serialization.NoEncryption()))
        lines = [
            f"{name}-token,{name},{name}{f',{group}' if group else ''}" for name, group in TOKENS.items()
        ]
        (here / "tokens.csv").write_text("\n".join([*lines, ""]))
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._serve(
            etcd,
            f"--data-dir={here}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            "--log-level=error",
        )
        self._serve(
            apiserver,
            f"--etcd-servers={client}",
            f"--cert-dir={here}/certificates",
            "--bind-address=127.0.0.1",
            f"--secure-port={PORT}",
            "--advertise-address=10.98.0.1",
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={here}/sa.key",
            f"--service-account-signing-key-file={here}/sa.key",
            f"--token-auth-file={here}/tokens.csv",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",  # as every installer has it
            "--disable-admission-plugins=ServiceAccount",  # its controller would have to run
            "--service-cluster-ip-range=10.96.0.0/24",
        )
        deadline = time.monotonic() + _STARTED_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.call("GET", "/readyz", check=False) == "ok":
                    return
            assert all(server.poll() is None for server in self._servers), self._logs()
            time.sleep(0.2)
        raise AssertionError(f"the API server is not ready: {self._logs()}")

    def _serve(self, program: str, *arguments: str) -> None:
        log = self.directory / f"{Path(program).name}.log"
        with entered(self.netns), log.open("wb") as output:
            self._servers.append(
                subprocess.Popen([program, *arguments], stdout=output, stderr=subprocess.STDOUT)
            )

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))

    def call(self, method: str, path: str, body: Any = None, *, check: bool = True) -> Any:
        """Ask the API server as its administrator."""
        with entered(self.netns):
            tls = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", PORT, context=tls, timeout=60)
            connection.connect()
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": "Bearer admin-token", "Content-Type": kind}
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        assert not check or answer.status < 300, (path, text)
        return json.loads(text) if text.startswith("{") else text

    def kubeconfig(self, user: str, *, token: str | None = None, port: int = PORT) -> Path:
        """A file that logs in as that user."""
        path = self.directory / f"kubeconfig-{user}-{port}-{token}"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {
                                "server": f"https://127.0.0.1:{port}",
                                "certificate-authority": f"{self.directory}/certificates/apiserver.crt",
                            },
                        }
                    ],
                    "users": [{"name": user, "user": {"token": token or f"{user}-token"}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
                    "current-context": "test",
                }
            )
        )
        return path

    def create(self, name: str, labels: dict[str, str], *, node: str = NODE, **spec: Any) -> str:
        """Make the API object of a pod, scheduled already; its UID."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}], **spec},
        }
        return str(self.call("POST", "/api/v1/namespaces/fl/pods", pod)["metadata"]["uid"])

    def report(self, name: str, phase: str, address: str | None) -> None:
        """What kubelet says of a pod."""
        status: dict[str, Any] = {"phase": phase}
        if address is not None:
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        self.call("PATCH", f"/api/v1/namespaces/fl/pods/{name}/status", {"status": status})

    def run(
        self,
        name: str,
        labels: dict[str, str],
        number: int,
        *,
        layout: str,
        pinned: bool = True,
        users: bool = False,
        node: str = NODE,
    ) -> KubePod:
        """Create a pod and bring it up on this machine.

        :param layout: v2-systemd | v1-cgroupfs
        :param pinned: have the namespace bound under /run/netns, as CNI runtimes do.
        :param users: with a user namespace of its own, to which its others belong (hostUsers: false).
        :param node: where it is by the API; nodes of other names share this machine's kernel.
        """
        uid = self.create(name, labels, node=node)
        pod = self.bring_up(name, uid, number, layout=layout, pinned=pinned, users=users)
        self.report(name, "Running", pod.address)
        return pod

    def bring_up(
        self, name: str, uid: str, number: int, *, layout: str, pinned: bool = True, users: bool = False
    ) -> KubePod:
        """Make the sandbox of a pod that the API knows already; see `run`."""
        address, host_interface = f"10.98.0.{number}", f"veth{secrets.token_hex(4)}"
        pin = f"cni-{secrets.token_hex(8)}" if pinned and not users else None
        command = [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(3600)"]
        with contextlib.ExitStack() as stack:
            if pin is not None:
                stack.enter_context(entered(create_netns(pin)))
            else:
                own_users = ["--user", "--map-root-user"] if users else []
                command = ["unshare", *own_users, "--net", *command]
            pause = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert pause.stdout is not None
        pause.stdout.readline()
        netns = Path(f"/proc/{pause.pid}/ns/net")
        pod = KubePod(name, uid, address, netns, netns.stat().st_ino, host_interface, pause, pinned=pin)
        self.pods[name] = pod
        pod.cgroups = self.container_cgroups(uid, layout)
        for group in pod.cgroups:
            (group / "cgroup.procs").write_text(str(pause.pid))
        with netlink(self.netns) as ipr:
            peer = {"ifname": "eth0", "net_ns_fd": str(netns)}
            ipr.link("add", ifname=host_interface, kind="veth", peer=peer)
            (index,) = ipr.link_lookup(ifname=host_interface)
            ipr.link("set", index=index, master=self._bridge, state="up")
        with netlink(netns) as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            ipr.link("set", index=1, state="up")
            ipr.addr("add", index=index, address=address, prefixlen=24)
            ipr.link("set", index=index, state="up")
        return pod

    def container_cgroups(self, uid: str, layout: str, container: str | None = None) -> list[Path]:
        """Those of one more container of a pod, below a directory of our own, as in a nested kubelet.

        :param container: its ID; None: any.
        """
        tops, inner = places_of(self.tag, uid, layout, container or secrets.token_hex(32))
        self._tops = list(dict.fromkeys([*self._tops, *tops]))
        made = []
        for top in tops:
            (top / inner).mkdir(parents=True)
            made.append(top / inner)
        return made

    def outside(self, name: str, number: int) -> Path:
        """A namespace on the bridge that is no pod's here: where a pod of another node would send from."""
        netns = create_netns(f"{self.tag}{name}")
        with netlink(self.netns) as ipr:
            peer = {"ifname": "eth0", "net_ns_fd": str(netns)}
            ipr.link("add", ifname=f"veth{name}", kind="veth", peer=peer)
            (index,) = ipr.link_lookup(ifname=f"veth{name}")
            ipr.link("set", index=index, master=self._bridge, state="up")
        with netlink(netns) as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            ipr.addr("add", index=index, address=f"10.98.0.{number}", prefixlen=24)
            ipr.link("set", index=index, state="up")
        return netns

    def play(self, where: str | Path, *arguments: str) -> Path:
        """Start a part of the small federation in a pod or a namespace; its log is as kubelet keeps it."""
        pod = self.pods[where] if isinstance(where, str) else None
        with entered(where if isinstance(where, Path) else self.pods[where].netns):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.small_federation", *arguments],
                cwd=REPO_DIR,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
        self._players.append(process)
        for group in pod.cgroups if pod is not None else ():
            (group / "cgroup.procs").write_text(str(process.pid))
        whose = f"fl_{pod.name}_{pod.uid}" if pod is not None else f"elsewhere_{process.pid}"
        log = self.directory / "log" / "pods" / whose / "c" / "0.log"
        log.parent.mkdir(parents=True)
        log.touch()
        threading.Thread(target=_keep_log, args=(process, log), daemon=True).start()
        return log

    @property
    def with_logs(self) -> tuple[str, ...]:
        """For `ztprobe`: before a command that sees the logs where kubelet keeps them."""
        mount = f'mount --bind {self.directory}/log /var/log && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", mount, "sh")

    def kill(self, name: str) -> None:
        """End a pod's sandbox on the node; its API object stays."""
        pod = self.pods.pop(name)
        pod.pause.kill()
        pod.pause.communicate()
        if pod.pinned is not None:
            remove_netns(pod.pinned)

    def environment(self, user: str = "admin") -> dict[str, str]:
        """Of a command on the node."""
        return {
            **{k: v for k, v in os.environ.items() if k not in ("NODE_NAME", "KUBECONFIG")},
            "ZTPROBE_STATE_DIR": str(self.state),
            "KUBECONFIG": str(self.kubeconfig(user)),
            "NODE_NAME": NODE,
        }

    def ztprobe(
        self,
        *words: str,
        user: str = "admin",
        fails: int | None = 0,
        before: tuple[str, ...] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node; it must exit with that status (None: with any)."""
        with entered(self.netns):
            done = subprocess.run(
                [*before, sys.executable, "-m", "ztprobe", *words],
                capture_output=True,
                text=True,
                check=False,
                cwd=REPO_DIR,
                env={key: value for key, value in (self.environment(user) | environment).items() if value},
            )
        assert fails in (None, done.returncode), (words, done.returncode, done.stdout, done.stderr)
        return done

    def profile(self, *words: str, **options: Any) -> Any:
        """Run `ztprobe profile ... --json`."""
        return json.loads(self.ztprobe("profile", *words, "--json", **options).stdout)

    def qdiscs(self) -> dict[str, str]:
        """Pod (or the host end's ``pod^``) -> its root qdisc, where ztprobe has put one."""
        found = {}
        for name, pod in self.pods.items():
            for label, netns, device in (
                (name, pod.netns, "eth0"),
                (f"{name}^", self.netns, pod.host_interface),
            ):
                with entered(netns):
                    command = ["tc", "qdisc", "show", "dev", device, "root"]
                    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                if "5a71:" in text:
                    found[label] = text.split()[1]
        return found

    def down(self) -> None:
        """Undo everything."""
        with contextlib.suppress(AssertionError):
            self.ztprobe("profile", "clear")
        for player in self._players:
            player.kill()
            player.wait()
        for name in list(self.pods):
            self.kill(name)
        for server in reversed(self._servers):
            server.send_signal(signal.SIGTERM)
        for server in self._servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        for top in self._tops:
            for directory, _, _ in os.walk(top, topdown=False):
                os.rmdir(directory)
        remove_netns(self.netns.name)


def _keep_log(process: subprocess.Popen[bytes], log: Path) -> None:
    """As kubelet writes it: when, which stream, whether the line is whole, the line."""
    assert process.stdout is not None
    with log.open("ab", buffering=0) as kept:
        for line in process.stdout:
            kept.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z stdout F ".encode() + line)


@contextlib.contextmanager
def kube_node(directory: Path) -> Iterator[KubeNode]:
    """A node with an API server that knows the namespace ``fl``, and no pods yet."""
    node = KubeNode(directory)
    try:
        node.start_api()
        node.call("POST", "/api/v1/namespaces", {"metadata": {"name": "fl"}})
        yield node
    finally:
        node.down()
