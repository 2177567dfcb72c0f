"""TLS and TCP handshakes read from packets, against what the TLS library itself reports."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from analysis.evidence.reader import read_events
from analysis.ledger.handshakes import Setup, dns_queries
from tests.kernel.pods import TestPod, two_pods
from tests.kernel.watching import Watched, setups_of
from ztprobe.kernelnet.netns import entered

PORT = 50051


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One self-signed certificate that both sides show and trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "probe-test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


def _context(server: bool, pem: Path, version: ssl.TLSVersion, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.check_hostname = False
    context.load_verify_locations(pem)
    if server or mutual:
        context.load_cert_chain(pem)
    if server and mutual:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _handshake(
    pods: tuple[TestPod, TestPod],
    pem: Path,
    version: ssl.TLSVersion,
    *,
    mutual: bool,
    resume: bool,
    delay_s: float,
) -> tuple[list[Setup], list[int], list[int]]:
    """Two connections (the second resumes where asked).

    :returns: setups as read, the client library's handshake times, when the server stopped holding back (ns).
    """
    a, b = pods
    watcher = Watched(pods)
    times_ns: list[int] = []
    released_ns: list[int] = []
    try:
        with entered(b.netns):
            listener = socket.create_server((b.address, PORT))
        server_context = _context(True, pem, version, mutual)

        def serve() -> None:
            for _ in range(2):
                raw, _ = listener.accept()
                time.sleep(delay_s)  # the injected cost: no ServerHello before this ends
                released_ns.append(time.monotonic_ns())
                with server_context.wrap_socket(raw, server_side=True) as tls:
                    tls.recv(1)
                    tls.sendall(b"y")
                    tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        context = _context(False, pem, version, mutual)
        session = None
        for _ in range(2):
            with entered(a.netns):
                raw = socket.create_connection((b.address, PORT))
            begun_ns = time.monotonic_ns()
            with context.wrap_socket(raw, session=session if resume else None) as tls:
                times_ns.append(time.monotonic_ns() - begun_ns)
                tls.sendall(b"x")
                tls.recv(1)
                session = tls.session
        thread.join()
        listener.close()
        time.sleep(0.05)
        tables = watcher.stop()
    finally:
        watcher.close()
    setups = list(setups_of(tables, a, PORT).values())
    assert None not in setups
    return sorted((s for s in setups if s is not None), key=lambda s: s.syn_ns), times_ns, released_ns


@pytest.mark.parametrize("mutual", [False, True], ids=["server-only", "mutual"])
@pytest.mark.parametrize("resume", [False, True], ids=["full", "resumed"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_version_mutuality_and_time(
    certificate: Path, version: ssl.TLSVersion, resume: bool, mutual: bool
) -> None:
    with two_pods() as pods:
        setups, times_ns, released_ns = _handshake(
            pods, certificate, version, mutual=mutual, resume=resume, delay_s=0.031
        )
    assert len(setups) == 2
    for index, (setup, library_ns, free_ns) in enumerate(zip(setups, times_ns, released_ns, strict=True)):
        tls = setup.tls
        assert tls is not None and tls.finished_ns is not None
        assert tls.version == ("1.3" if version == ssl.TLSVersion.TLSv1_3 else "1.2")
        resumed = resume and index == 1
        assert tls.resumed == resumed
        assert tls.mutual == ("not shown again" if resumed else "yes" if mutual else "no")
        assert not tls.alert and setup.syn_count == 1
        assert tls.server_hello_ns is not None and 0 < tls.server_hello_ns - free_ns < 20_000_000
        # The library starts before its first packet and ends after its last (TLS 1.2: the server's).
        seen_ns = tls.finished_ns - tls.client_hello_ns
        assert free_ns - tls.client_hello_ns < seen_ns <= library_ns < seen_ns + 40_000_000


def test_dns_question_and_answer_are_matched() -> None:
    with two_pods() as pods:
        a, b = pods
        watcher = Watched(pods)
        try:
            with entered(b.netns):
                server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                server.bind((b.address, 53))
            with entered(a.netns):
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            question = (
                b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09fl-server\x02fl\x00\x00\x01\x00\x01"
            )
            client.sendto(question, (b.address, 53))
            data, peer = server.recvfrom(512)
            time.sleep(0.017)
            server.sendto(data[:2] + b"\x81\x83" + data[4:], peer)  # NXDOMAIN
            client.recv(512)
            client.close()
            server.close()
            time.sleep(0.05)
            tables = watcher.stop()
        finally:
            watcher.close()
    (query,) = [q for q in dns_queries(read_events(tables).dns) if q.pod == a.name]
    assert (query.name, query.rcode) == ("fl-server.fl", 3)
    assert query.answered_ns is not None and 17_000_000 <= query.answered_ns - query.asked_ns < 27_000_000


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_client_hello_in_the_syn_is_seen(
    pods: tuple[TestPod, TestPod], watched: Watched, certificate: Path, version: ssl.TLSVersion
) -> None:
    """TCP Fast Open (RFC 7413): the handshakes of TCP and TLS begin with the same packet."""
    a, b = pods
    for pod in pods:
        with entered(pod.netns):
            # client, server, data in a SYN without a cookie at both
            Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(0x1 | 0x2 | 0x4 | 0x200))
    with entered(b.netns):
        listener = socket.create_server((b.address, PORT))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)

    def serve() -> None:
        raw, _ = listener.accept()
        with _context(True, certificate, version, True).wrap_socket(raw, server_side=True) as tls:
            tls.recv(1)
            tls.sendall(b"y")

    thread = threading.Thread(target=serve)
    thread.start()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _context(False, certificate, version, True).wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    with entered(a.netns):
        client = socket.socket()
    assert client.sendto(hello, socket.MSG_FASTOPEN, (b.address, PORT)) == len(hello)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.sendall(outgoing.read())
            incoming.write(client.recv(1 << 16))
    tls.write(b"x")
    client.sendall(outgoing.read())
    while True:  # session tickets may come before the answer
        try:
            assert tls.read(1) == b"y"
            break
        except ssl.SSLWantReadError:
            incoming.write(client.recv(1 << 16))
    client.close()
    thread.join()
    listener.close()
    time.sleep(0.05)
    tables = watched.stop()
    packets = tables["packets"]
    syn = packets[(packets["pod"] == a.name) & (packets["tcp_flags"] & 2 > 0)].iloc[0]
    assert syn["payload_bytes"] == len(hello), "the kernel sent no data in the SYN"
    (setup,) = setups_of(tables, a, PORT).values()
    assert setup is not None and setup.tls is not None and setup.syn_count == 1
    assert setup.tls.client_hello_ns == setup.syn_ns
    assert setup.tls.version == ("1.2" if version is ssl.TLSVersion.TLSv1_2 else "1.3")
    assert setup.tls.mutual == "yes" and setup.tls.finished_ns is not None
    assert setup.settings_ns is not None and setup.settings_ns > setup.tls.finished_ns
    # Nothing of it is a message, and no byte was taken for sent twice.
    assert tables["bursts"][tables["bursts"]["hook"] == "eth"].empty
    assert tables["retransmissions"].empty and tables["duplicate_acks"].empty
