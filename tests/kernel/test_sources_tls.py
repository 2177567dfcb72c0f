"""TLS handshakes by five libraries: every one found, mutual or not told right, as long as the ends say."""

from __future__ import annotations

import ssl
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, product

import pytest

from analysis.ledger.handshakes import Setup
from tests.kernel import tls_parties as tls
from tests.kernel.pods import TestPod, two_pods
from tests.kernel.watching import Watched, setups_of, with_ports
from ztprobe.events.kinds import Direction, Hook

_PORTS = count(46000)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tls.Files:
    return tls.make_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def pods() -> Iterator[tuple[TestPod, TestPod]]:
    # Flights must span packets here as they do on a network.
    with two_pods(gso=False) as made:
        yield made


@dataclass
class Score:
    """What was read from the packets, against what the libraries said."""

    made: int = 0
    found: int = 0
    version: int = 0
    full: int = 0
    mutual: int = 0  # of the full ones
    resumed: int = 0  # off by so many
    not_messages: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, case: tls.Case, setups: dict[tuple[int, int], Setup | None]) -> None:
        """Judge the connections to one server."""
        shaken = [s.tls for s in setups.values() if s is not None and s.tls is not None]
        shaken = [t for t in shaken if t.finished_ns is not None and t.server_hello_ns is not None]
        self.made += case.done
        self.found += min(case.done, len(shaken))
        self.version += sum(t.version == case.version for t in shaken)
        full = [t for t in shaken if not t.resumed]
        self.full += case.done - case.resumed
        self.mutual += sum(t.mutual == ("yes" if case.mutual else "no") for t in full)
        self.resumed += abs(case.resumed - (len(shaken) - len(full)))
        assert all(t.mutual == "not shown again" for t in shaken if t.resumed)

    def verify(self) -> None:
        """The bounds."""
        print(self)
        assert self.found >= 0.995 * self.made
        assert self.version >= 0.995 * self.made
        assert self.mutual >= 0.99 * self.full
        assert self.resumed == 0
        assert self.not_messages == []


def _case(name: str, version: str, mutual: bool) -> tls.Case:
    return tls.Case(name, next(_PORTS), version, mutual)


def _judge(watcher: Watched, pods: tuple[TestPod, TestPod], cases: list[tls.Case]) -> Score:
    time.sleep(0.05)
    tables = watcher.stop()
    assert watcher.loss == dict.fromkeys(watcher.loss, 0)
    score = Score()
    for case in cases:
        before = Score(**vars(score))
        score.add(case, setups_of(tables, pods[0], case.port))
        assert case.done, f"{case.name}: no handshake at all"
        if (score.found, score.mutual, score.resumed) != (
            before.found + case.done,
            before.mutual + case.done - case.resumed,
            before.resumed,
        ):
            print(case.name, case.done, case.resumed, vars(before), vars(score))
    # Flights of several kilobytes went by, and none of it is a message.
    bursts = with_ports(tables, "bursts")
    wire = bursts[(bursts["hook"] == Hook.ETH) & bursts["remote_port"].isin([c.port for c in cases])]
    names = {case.port: case.name for case in cases}
    packets = tables["packets"]
    over = packets[(packets["pod"] == pods[0].name) & (packets["tcp_flags"] & 5 > 0)]
    ends = over.groupby("connection")["ts_ns"].min()
    score.not_messages = [
        (names[b.remote_port], b.direction, b.bytes)
        for b in wire.itertuples()
        if b.first_ns
        < ends.get(b.connection, b.last_ns)  # what comes in for a socket that is gone is nobody's
    ]
    return score


def test_openssl(pods: tuple[TestPod, TestPod], watched: Watched, files: tls.Files) -> None:
    """Versions, certificates, resumption, a ClientHello in several segments, a second ClientHello."""
    cases = []
    kinds = ("plain", "resumed", "large hello", "asked in vain", "retry")
    for version, mutual, kind in product(("1.2", "1.3"), (False, True), kinds):
        if (kind == "asked in vain" and mutual) or (kind == "retry" and version == "1.2"):
            continue
        case = _case(f"openssl {version} {mutual} {kind}", version, mutual)
        verify = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
        if kind == "asked in vain":
            verify = ssl.CERT_OPTIONAL
        context = tls.server_context(files, case, verify=verify, retry=kind == "retry")
        with tls.openssl_server(pods[1], case, context):
            tls.openssl_clients(
                pods, files, case, 12, resume=kind == "resumed", large_hello=kind == "large hello"
            )
        assert (case.resumed > 0) == (kind == "resumed")
        cases.append(case)
    score = _judge(watched, pods, cases)
    score.verify()
    late_ns = []
    for case in cases:
        for (port, _), setup in setups_of(watched.tables, pods[0], case.port).items():
            assert setup is not None and setup.tls is not None and setup.tls.finished_ns is not None
            resumed, library_ns = case.told[port]
            assert setup.tls.resumed == resumed
            late_ns.append(library_ns - (setup.tls.finished_ns - setup.tls.client_hello_ns))
    # The library begins before its first packet and ends after its last.
    assert min(late_ns) > 0
    assert statistics.median(late_ns) < 3_000_000


def test_boringssl(pods: tuple[TestPod, TestPod], watched: Watched, files: tls.Files) -> None:
    cases = [_case(f"grpc {mutual}", "1.3", mutual) for mutual in (False, True)]
    for case in cases:
        tls.grpc_clients(pods, files, case, 15)
        assert case.done == 15
    _judge(watched, pods, cases).verify()


def test_rustls(pods: tuple[TestPod, TestPod], watched: Watched, files: tls.Files) -> None:
    """Versions, certificates, resumption; in TLS 1.3 the first ClientHello to a server spans segments."""
    cases = []
    for version, mutual, resume in product(("1.2", "1.3"), (False, True), (False, True)):
        case = _case(f"rustls {version} {mutual} {resume}", version, mutual)
        tls.rustls_clients(pods, files, case, 15, resume=resume)
        assert case.done == 15
        assert case.resumed == (14 if resume else 0)
        cases.append(case)
    _judge(watched, pods, cases).verify()
    packets = with_ports(watched.tables, "packets")
    modern = packets["remote_port"].isin(
        [case.port for case in cases if case.version == "1.3" and not case.resumed]
    )
    first = packets[modern & (packets["pod"] == pods[0].name) & (packets["kind"] == "payload")]
    hellos = (
        first[first["direction"] == Direction.TX]
        .groupby(["remote_port", "connection"])[["tls_record0", "payload_bytes"]]
        .first()
    )
    assert ((hellos["tls_record0"] & 0xFFFFFF) > hellos["payload_bytes"]).all()
    assert len(hellos) == 15 * 2


def test_gnutls(pods: tuple[TestPod, TestPod], watched: Watched, files: tls.Files) -> None:
    """GnuTLS is a third library to compare with."""
    cases = []
    for version, mutual, resume in product(("1.2", "1.3"), (False, True), (False, True)):
        case = _case(f"gnutls-cli {version} {mutual} {resume}", version, mutual)
        context = tls.server_context(files, case, verify=ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE)
        with tls.openssl_server(pods[1], case, context):
            tls.gnutls_clients(pods, files, case, 4, resume=resume)
        cases.append(case)
    for version, mutual in product(("1.2", "1.3"), (False, True)):
        case = _case(f"gnutls-serv {version} {mutual}", version, mutual)
        with tls.gnutls_server(pods[1], files, case):
            tls.openssl_clients(pods, files, case, 8, resume=False)
        cases.append(case)
    _judge(watched, pods, cases).verify()


def test_the_proxys_own_log(pods: tuple[TestPod, TestPod], watched: Watched, files: tls.Files) -> None:
    """haproxy logs its handshakes in whole milliseconds, from accept to the client's Finished."""
    cases, logs = [], {}
    for version, mutual, resume in product(("1.2", "1.3"), (False, True), (False, True)):
        case = _case(f"haproxy {version} {mutual} {resume}", version, mutual)
        log: dict[int, tuple[int, bool]] = {}
        with tls.haproxy_server(pods[1], files, case, log):
            tls.openssl_clients(pods, files, case, 8, resume=resume)
        assert set(log) == set(case.told), case.name
        cases.append(case)
        logs[case.port] = log
    _judge(watched, pods, cases).verify()
    errors_ms = []
    for case in cases:
        for (port, _), setup in setups_of(watched.tables, pods[0], case.port).items():
            assert setup is not None and setup.tls is not None and setup.tls.finished_ns is not None
            logged_ms, resumed = logs[case.port][port]
            assert setup.tls.resumed == resumed
            errors_ms.append((setup.tls.finished_ns - setup.syn_ns) / 1e6 - logged_ms)
    print("difference to the log, ms: median", statistics.median(errors_ms))
    assert abs(statistics.median(errors_ms)) <= 1.0
