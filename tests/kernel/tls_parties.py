"""Who shakes hands in the TLS tests: certificates whose flights span packets, servers and clients."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.kernel.pods import TestPod
from tests.programs import program
from ztprobe.kernelnet.netns import entered

NAME = "probe-test"


@dataclass(frozen=True)
class Files:
    """PEM files: a leaf with two intermediates (about 6 KB on the wire), its key, the root."""

    chain: Path
    key: Path
    both: Path
    root: Path


def make_files(directory: Path) -> Files:
    """An RSA chain padded with names."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(4)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{NAME}-{i}")]) for i in range(4)]
    certificates = []
    for i, key in enumerate(keys):
        issuer = max(0, i - 1)
        alternatives = [NAME] + [f"padding-{i}-{n}.some.long.domain.example" for n in range(30)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[i])
            .issuer_name(names[issuer])
            .public_key(key.public_key())
            .serial_number(i + 1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=i < 3, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(n) for n in alternatives]), critical=False
            )
        )
        certificates.append(builder.sign(keys[issuer], hashes.SHA256()))
    pem = [c.public_bytes(serialization.Encoding.PEM) for c in certificates]
    key_pem = keys[3].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = Files(*(directory / name for name in ("chain.pem", "key.pem", "both.pem", "root.pem")))
    files.chain.write_bytes(pem[3] + pem[2] + pem[1])
    files.key.write_bytes(key_pem)
    files.both.write_bytes(files.chain.read_bytes() + key_pem)
    files.root.write_bytes(pem[0])
    return files


@dataclass
class Case:
    """One configuration, recognised by its server port."""

    name: str
    port: int
    version: str
    mutual: bool
    # handshakes that were made, and how many of them were resumed, as the library says
    done: int = 0
    resumed: int = 0
    # client port -> (resumed, the library's own handshake time)
    told: dict[int, tuple[bool, int]] = field(default_factory=dict)


_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def server_context(
    files: Files, case: Case, *, verify: ssl.VerifyMode, retry: bool = False
) -> ssl.SSLContext:
    """OpenSSL's server side; ``retry`` makes it ask for a second ClientHello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = _VERSIONS[case.version]
    context.load_cert_chain(files.both)
    context.load_verify_locations(files.root)
    context.verify_mode = verify
    if retry:
        context.set_ecdh_curve("secp521r1")
    return context


@contextlib.contextmanager
def openssl_server(
    pod: TestPod,
    case: Case,
    context: ssl.SSLContext,
    *,
    answer: bytes = b"y",
    reused: list[bool | None] | None = None,
) -> Iterator[None]:
    """Answers every message until the client hangs up; ``reused`` is filled with whether each session was."""
    with entered(pod.netns):
        listener = socket.create_server((pod.address, case.port), backlog=64)
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                raw, _ = listener.accept()
                raw.settimeout(5)
                with raw, context.wrap_socket(raw, server_side=True) as tls:
                    if reused is not None:
                        reused.append(tls.session_reused)
                    while tls.recv(4096):
                        tls.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listener.close()


def openssl_clients(
    pods: tuple[TestPod, TestPod],
    files: Files,
    case: Case,
    times: int,
    *,
    resume: bool,
    large_hello: bool = False,
) -> None:
    """Python's ssl, one connection after the other; notes what the library says."""
    a, b = pods
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = _VERSIONS[case.version]
    context.check_hostname = False
    context.load_verify_locations(files.root)
    if case.mutual:
        context.load_cert_chain(files.both)
    if large_hello:
        context.set_alpn_protocols([f"{n}-{'x' * 200}" for n in range(12)])
    session = None
    for _ in range(times):
        with entered(a.netns):
            raw = socket.create_connection((b.address, case.port))
        raw.settimeout(5)
        port = raw.getsockname()[1]
        begun_ns = time.monotonic_ns()
        with context.wrap_socket(raw, session=session if resume else None) as tls:
            took_ns = time.monotonic_ns() - begun_ns
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            tls.recv(64)
            case.done += 1
            case.resumed += bool(tls.session_reused)
            case.told[port] = (bool(tls.session_reused), took_ns)
            session = tls.session


_GRPC_CLIENT = """
import sys, grpc
target, root, chain, key, times, name = sys.argv[1:7]
read = lambda path: open(path, "rb").read()
for _ in range(int(times)):
    mine = (read(key), read(chain)) if chain else (None, None)
    options = (("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(read(root), *mine), options) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        print("ready")
"""


def grpc_clients(pods: tuple[TestPod, TestPod], files: Files, case: Case, times: int) -> None:
    """gRPC's own TLS (BoringSSL) on both ends; the client is another process, because its threads dial."""
    a, b = pods
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.chain.read_bytes())],
        root_certificates=files.root.read_bytes() if case.mutual else None,
        require_client_auth=case.mutual,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    with entered(b.netns):
        server.add_secure_port(f"{b.address}:{case.port}", credentials)
    server.start()
    try:
        command = [sys.executable, "-c", _GRPC_CLIENT, f"{b.address}:{case.port}", str(files.root)]
        command += [str(files.chain) if case.mutual else "", str(files.key), str(times), NAME]
        with entered(a.netns):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        server.stop(None).wait()
    case.done = done.stdout.count("ready")


_RUSTLS_CLIENT = """
import sys
from pyreqwest.client import SyncClientBuilder
address, port, root, both, version, times, resume, name = sys.argv[1:9]
read = lambda path: open(path, "rb").read()

def client():
    builder = SyncClientBuilder().add_root_certificate_pem(read(root)).resolve(name, address, int(port))
    builder = builder.http1_only().pool_max_idle_per_host(0)
    builder = builder.min_tls_version(f"TLSv{version}").max_tls_version(f"TLSv{version}")
    return (builder.identity_pem(read(both)) if both else builder).build()

shared = client() if resume else None
for _ in range(int(times)):
    (shared or client()).get(f"https://{name}:{port}/").build().send()
    print("answered")
"""

_HTTP_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def rustls_clients(
    pods: tuple[TestPod, TestPod], files: Files, case: Case, times: int, *, resume: bool
) -> None:
    """rustls (reqwest's), which sends a post-quantum key share: its ClientHello takes two segments.

    A process of its own, because its threads dial. It does not tell what it resumed; the server does.
    """
    a, b = pods
    context = server_context(files, case, verify=ssl.CERT_REQUIRED if case.mutual else ssl.CERT_NONE)
    command = [sys.executable, "-c", _RUSTLS_CLIENT, b.address, str(case.port), str(files.root)]
    command += [str(files.both) if case.mutual else "", case.version, str(times), "1" if resume else "", NAME]
    reused: list[bool | None] = []
    with openssl_server(b, case, context, answer=_HTTP_ANSWER, reused=reused), entered(a.netns):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    case.done = done.stdout.count("answered")
    case.resumed = sum(map(bool, reused))


def gnutls_clients(
    pods: tuple[TestPod, TestPod], files: Files, case: Case, times: int, *, resume: bool
) -> None:
    """gnutls-cli, which makes a full handshake and then, where asked, a resumed one."""
    a, b = pods
    command = [program("gnutls-cli"), "--insecure", "--port", str(case.port), b.address]
    command += ["--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{case.version}"]
    if case.mutual:
        command += ["--x509certfile", str(files.chain), "--x509keyfile", str(files.key)]
    if resume:
        command += ["--resume", "--waitresumption"]
    for _ in range(times):
        with entered(a.netns):
            done = subprocess.run(command, input="x", capture_output=True, text=True, timeout=30)
        case.done += done.stdout.count("Handshake was completed")
        case.resumed += done.stdout.count("This is a resumed session")


@contextlib.contextmanager
def gnutls_server(pod: TestPod, files: Files, case: Case) -> Iterator[None]:
    """gnutls-serv."""
    command = [program("gnutls-serv"), "--echo", "--quiet", "--port", str(case.port)]
    command += ["--x509certfile", str(files.chain), "--x509keyfile", str(files.key)]
    command += ["--x509cafile", str(files.root), "--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{case.version}"]
    command += ["--require-client-cert"] if case.mutual else ["--disable-client-cert"]
    with entered(pod.netns):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


_HAPROXY = """
global
  log stdout format raw local0
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  log global
  timeout client 5s
  timeout connect 5s
  timeout server 5s
frontend f
  bind {address}:{port} ssl crt {both} ca-file {root} verify {verify} {versions}
  log-format "%cp %Th %[ssl_fc_is_resumed] %sslv"
  http-request return status 200
"""


@contextlib.contextmanager
def haproxy_server(
    pod: TestPod, files: Files, case: Case, log: dict[int, tuple[int, bool]]
) -> Iterator[None]:
    """haproxy; ``log`` is filled with client port -> (its handshake time in ms, resumed)."""
    config = files.both.parent / f"haproxy-{case.port}.cfg"
    config.write_text(
        _HAPROXY.format(
            address=pod.address,
            port=case.port,
            both=files.both,
            root=files.root,
            versions=f"ssl-min-ver TLSv{case.version} ssl-max-ver TLSv{case.version}",
            verify="required" if case.mutual else "none",
        )
    )
    with entered(pod.netns):
        process = subprocess.Popen(["haproxy", "-db", "-f", config], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.5)
        yield
        time.sleep(0.3)
    finally:
        process.kill()
        out, _ = process.communicate()
    for line in out.splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdigit():
            log[int(words[0])] = (int(words[1]), words[2] == "1")
