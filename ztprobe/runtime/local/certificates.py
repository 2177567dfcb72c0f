"""A certificate authority for one run, and the workload's certificates from it.

Identities are SPIFFE names of the Kubernetes service accounts. Everything is ECDSA
P-256 (what service meshes use), is valid for the run's day at most, and is written
where only root reads; the authority's own key never reaches the disk.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztprobe.rundir import files
from ztprobe.runtime.local.workload import Workload

__all__ = ("LIFETIME", "Authority", "Issuer", "issue_all", "spiffe_id")

LIFETIME = datetime.timedelta(hours=24)
# Clocks of one machine agree; this is for the second that validity is rounded to.
_BACKDATE = datetime.timedelta(minutes=1)


def spiffe_id(namespace: str, service_account: str) -> str:
    """The identity that a certificate carries as its URI name."""
    return f"spiffe://cluster.local/ns/{namespace}/sa/{service_account}"


class Issuer(Protocol):
    """Who hands out the workload's certificates."""

    def issue(self, directory: Path, namespace: str, service_account: str, dns_names: Sequence[str]) -> None:
        """Write tls.crt, tls.key and ca.crt, as a Secret of type kubernetes.io/tls holds them."""
        ...


def issue_all(issuer: Issuer, workload: Workload, secrets: Path) -> None:
    """One for each service account, in the directory of every Secret that its pods see."""
    for pod in {p.service_account: p for p in workload.pods}.values():
        names = workload.served_names(pod.service_account)
        for mount in (m for c in pod.containers for m in c.mounts if m.secret is not None):
            issuer.issue(secrets / str(mount.secret), pod.namespace, pod.service_account, names)


class Authority:
    """Signs certificates as long as this object lives."""

    def __init__(self, name: str, lifetime: datetime.timedelta = LIFETIME) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(f"ztprobe run {name}")
        self.not_after = _now() + lifetime
        builder = self._builder(self._subject, self._key.public_key())
        self._certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own certificate, as ca.crt holds it."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        valid: tuple[datetime.timedelta, datetime.timedelta] | None = None,
    ) -> x509.CertificateBuilder:
        since, until = (
            (_now() + offset for offset in valid) if valid else (_now() - _BACKDATE, self.not_after)
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(until)
        )

    def issue(
        self,
        directory: Path,
        namespace: str,
        service_account: str,
        dns_names: Sequence[str],
        *,
        valid: tuple[datetime.timedelta, datetime.timedelta] | None = None,
    ) -> None:
        """Write what `sign` gives.

        :param valid: from when until when, against now; None: as long as the authority.
        """
        for name, content in self.sign(namespace, service_account, dns_names, valid=valid).items():
            files.write_whole(directory / name, content, mode=0o400, make=0o700)

    def sign(
        self,
        namespace: str,
        service_account: str,
        dns_names: Sequence[str],
        *,
        valid: tuple[datetime.timedelta, datetime.timedelta] | None = None,
    ) -> dict[str, bytes]:
        """tls.crt, tls.key and ca.crt, as a Secret of type kubernetes.io/tls holds them."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(spiffe_id(namespace, service_account)),
            *(x509.DNSName(name) for name in dns_names),
        ]
        certificate = (
            self._builder(_name(service_account), key.public_key(), valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "tls.crt": certificate.public_bytes(serialization.Encoding.PEM),
            "tls.key": private,
            "ca.crt": self.certificate_pem,
        }


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
