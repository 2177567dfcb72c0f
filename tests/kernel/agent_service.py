"""The agent's service as tests use it: real certificates, a process, and a wire between that can be cut."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.agent.service.privileges import lacking
from ztprobe.agent.service.wire import SERVER_NAME, TlsFiles
from ztprobe.paths import MANIFESTS_DIR, REPO_DIR
from ztprobe.runtime.local.certificates import Authority, spiffe_id
from ztprobe.runtime.local.kustomize import render

COLLECTOR = spiffe_id("ztprobe", "collector")


def certificates(directory: Path, authority: Authority | None = None) -> dict[str, TlsFiles]:
    """The agent's, the collector's, and one of the same authority for somebody else."""
    authority = authority or Authority("test")
    found = {}
    for account, names in (("agent", [SERVER_NAME]), ("collector", []), ("stranger", [])):
        authority.issue(directory / account, "ztprobe", account, names)
        found[account] = TlsFiles(
            certificate=directory / account / "tls.crt",
            key=directory / account / "tls.key",
            authority=directory / account / "ca.crt",
        )
    return found


@dataclass
class Service:
    """`ztprobe agent serve`."""

    process: subprocess.Popen[str]
    port: int
    state: Path
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.port}"

    def end(self) -> str:
        """As a kubelet does it.

        :returns: what it has said since it began to listen, but for what this machine does not let it do.
        """
        self.process.terminate()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stdout.read()
        assert self.process.wait(30) == 143, self.process.stderr.read()
        return "".join(line for line in said.splitlines(True) if not line.startswith("without CAP_"))


@contextlib.contextmanager
def service(
    tls: TlsFiles,
    state: Path,
    *options: str,
    ztprobe_state: Path | None = None,
    before: Sequence[str] = (),
    listen: str = "127.0.0.1:0",
    **environment: str,
) -> Iterator[Service]:
    """Begin to serve; whatever is left of it is killed at the end.

    :param before: a program that runs it, with its arguments.
    """
    command = [*before, sys.executable, "-m", "ztprobe", "agent", "serve", "--listen", listen]
    command += ["--cert", str(tls.certificate), "--key", str(tls.key), "--client-ca", str(tls.authority)]
    command += ["--state", str(state), "--caller", COLLECTOR, *options]
    environment = {**os.environ, **environment}
    if ztprobe_state is not None:
        environment["ZTPROBE_STATE_DIR"] = str(ztprobe_state)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO_DIR,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        listens = re.search(r"listens on (\S+):(\d+)$", line)
        assert listens is not None, line + process.stderr.read()
        yield Service(process, int(listens[2]), state, listens[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def least_privilege() -> tuple[str, ...]:
    """Before a service: it has the capabilities of the least-privilege manifest that are had here."""
    (daemon,) = (d for d in render(MANIFESTS_DIR / "agent/least-privilege") if d["kind"] == "DaemonSet")
    context = daemon["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    not_here = lacking(kernel="5.10")  # of all that the oldest kernels ask for
    absent = {line.split()[1].strip(":").removeprefix("CAP_") for line in not_here}
    added = ",".join(f"+{name.lower()}" for name in context["capabilities"]["add"] if name not in absent)
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    return setpriv, "--no-new-privs", f"--bounding-set=-all,{added}", "--inh-caps=-all"


class Wire:
    """Forwards connections to a port, until it is cut; a context manager."""

    def __init__(self, port: int) -> None:
        self.to_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    @property
    def address(self) -> str:
        """Of this end."""
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection, and let none through until `mend`."""
        with self._lock:
            self._is_cut = True
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._is_cut = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with self._lock:
                    try:
                        if self._is_cut:
                            raise ConnectionRefusedError
                        far = socket.create_connection(("127.0.0.1", self.to_port))
                    except OSError:
                        near.close()
                        continue
                    self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
