"""What a cluster's levels are held to, where no cluster is needed: versions, rights, certificates."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.unit.test_deploy import options
from ztprobe.documents.problem import DocumentError
from ztprobe.errors import PreflightError
from ztprobe.kubernetes.answers import version_of
from ztprobe.pods.model import NOWHERE, Pod
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.cluster.hardening import prove_hardening
from ztprobe.runtime.cluster.refusals import refuse_old
from ztprobe.runtime.cluster.run_certificates import RunCertificates
from ztprobe.runtime.local.certificates import spiffe_id
from ztprobe.runtime.tls_attempts import TlsWay, saw_identity, tls_attempts

RUN = "ab12cd"
NAMESPACE = f"fl-{RUN}"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({"major": "1", "minor": "35", "gitVersion": "v1.35.1"}, (1, 35)),
        ({"major": "1", "minor": "20+", "gitVersion": "v1.20.2-vendor"}, (1, 20)),
    ],
)
def test_a_version_is_read_whoever_built_it(said: dict[str, str], version: tuple[int, int]) -> None:
    assert version_of(json.dumps(said).encode()) == (version, said["gitVersion"])


@pytest.mark.parametrize("said", [b"{}", b"[]", b"\xff", b'{"major": "", "minor": "2"}', b'{"major": 1}'])
def test_what_names_no_version_is_said(said: bytes) -> None:
    with pytest.raises(DocumentError, match="names no version"):
        version_of(said)


class Versioned:
    """An API of a version."""

    def __init__(self, *version: int) -> None:
        self._version = version
        self.asked = 0

    def version(self) -> tuple[tuple[int, ...], str]:
        self.asked += 1
        return self._version, f"v{self._version[0]}.{self._version[1]}.0"


def test_sidecars_need_a_version_that_knows_them() -> None:
    old, new = Versioned(1, 28), Versioned(1, 29)
    refuse_old(old, [0, 1])  # type: ignore[arg-type]
    assert old.asked == 0
    refuse_old(new, [0, 3])  # type: ignore[arg-type]
    with pytest.raises(PreflightError) as raised:
        refuse_old(old, [0, 3])  # type: ignore[arg-type]
    assert str(raised.value) == (
        "sec3: this cluster's API server is Kubernetes v1.28.0, and sidecars (init containers that go on)"
        " need 1.29 or newer; sec0 and sec1 run there"
    )


class Decides:
    """An API server that admits pods and knows rights."""

    def __init__(self, refusal: str, rights: dict[tuple[str, str], bool]) -> None:
        self._refusal, self._rights = refusal, rights
        self.tried: list[dict[str, Any]] = []

    def refusal(self, document: dict[str, Any]) -> str:
        self.tried.append(document)
        return self._refusal

    def may(self, account: str, namespace: str, verb: str, resource: str, name: str) -> bool:
        assert (account, namespace) == ("fl-client", NAMESPACE)
        return self._rights[verb, resource]


RIGHTS = {("list", "pods"): False, ("get", "configmaps"): True}
VIOLATES = (
    f"the Kubernetes API refuses to create Pod {NAMESPACE}/ztprobe-privileged (403): pods"
    ' "ztprobe-privileged" is forbidden: violates PodSecurity "restricted:latest": privileged (container'
    ' "tried" must not set securityContext.privileged=true)'
)


def hardening(refusal: str, rights: dict[tuple[str, str], bool]) -> list[bool]:
    decides = Decides(refusal, rights)
    proofs = prove_hardening(decides, NAMESPACE, ["fl-client", "fl-client"], "x/fl:1")  # type: ignore[arg-type]
    (tried,) = decides.tried
    assert tried["spec"]["containers"][0]["securityContext"] == {"privileged": True}
    return [one.passed for one in proofs]


def test_sec3_s_further_controls_are_proven_or_not() -> None:
    assert hardening(VIOLATES, RIGHTS) == [True, True, True]
    # Admitted; refused for something else; refused as not restricted, and privileged would do.
    others = (
        "",
        "pods is forbidden: exceeded quota: none",
        VIOLATES.replace(": privileged (", ": seccomp ("),
    )
    for said in others:
        said = said.replace("securityContext.privileged=true", "seccompProfile")
        assert hardening(said, RIGHTS) == [False, True, True]
    assert hardening(VIOLATES, RIGHTS | {("list", "pods"): True}) == [True, False, True]
    # An account that may do nothing at all shows nothing.
    assert hardening(VIOLATES, RIGHTS | {("get", "configmaps"): False}) == [True, True, False]


def test_a_run_s_certificates_are_files_that_tls_takes(tmp_path: Path) -> None:
    certificates = RunCertificates(experiment_documents(RUN, options(3)))
    certificates.write(tmp_path)
    own, server = certificates.of("fl-client-tls"), certificates.of("fl-server-tls")
    foreign = certificates.foreign(NAMESPACE, "fl-client")
    names = {}
    for directory in (own, server, foreign):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
        assert (directory / "tls.key").stat().st_mode & 0o077 == 0
        found = x509.load_pem_x509_certificate((directory / "tls.crt").read_bytes())
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (names[directory],) = alternative.get_values_for_type(x509.UniformResourceIdentifier)
    identity = spiffe_id(NAMESPACE, "fl-client")
    assert names == {own: identity, foreign: identity, server: spiffe_id(NAMESPACE, "fl-server")}
    assert (own / "ca.crt").read_bytes() == (server / "ca.crt").read_bytes()
    assert (own / "ca.crt").read_bytes() != (foreign / "ca.crt").read_bytes()


def pod(name: str) -> Pod:
    return Pod(
        name=name,
        namespace=NAMESPACE,
        address="10.0.0.1",
        netns=NOWHERE,
        netns_inode=0,
        interface="",
        host_interface="",
        node_netns=NOWHERE,
    )


def test_every_certificate_that_must_not_do_is_tried(tmp_path: Path) -> None:
    way = TlsWay(
        client=pod("fl-client-0"),
        server=pod("fl-server"),
        port=50051,
        application_port=15051,
        service_name="fl-server",
        server_identity="spiffe://s",
        own=tmp_path,
        foreign={"another account's": tmp_path, "another authority's": tmp_path},
    )
    attempts = {one.name.partition(" -> ")[0].removeprefix("fl-client-0 "): one for one in tls_attempts(way)}
    assert list(attempts) == [
        "with its certificate",
        "without a certificate",
        "with another account's certificate",
        "with another authority's certificate",
        "in plain HTTP/2",
        "past the sidecar",
    ]
    own = attempts["with its certificate"]
    assert own.judged("TLSv1.3 with spiffe://s, accepted").passed
    assert not own.judged("TLSv1.3 with spiffe://other, accepted").passed
    for name in ("with another account's certificate", "with another authority's certificate"):
        assert attempts[name].judged("refused: tlsv1 alert unknown ca").passed
        assert attempts[name].judged("closed without an answer").passed
        # A port that nobody listens on has refused no certificate.
        for seen in ("TLSv1.3 with spiffe://s, accepted", "Connection refused", "timed out"):
            assert not attempts[name].judged(seen).passed


def test_the_proxy_says_whom_it_let_in() -> None:
    lines = [
        '{"error": "handshake failed", "peer_identity": "unknown"}',
        "haproxy says hello",
        '{"tls": "TLSv1.3", "peer_identity": "spiffe://c"}',
    ]
    assert saw_identity("fl-server", "fl-client-0", "spiffe://c", lambda: "\n".join(lines)).passed
