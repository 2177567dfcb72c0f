"""Which certificates the pods present to each other, read from what is mounted into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtensionOID

__all__ = ("presented",)


def presented(directories: Mapping[str, Path]) -> list[dict[str, Any]]:
    """For run.json: whose it is, for which names, of which authority, until when, and who knows that one.

    :param directories: pod's name -> where its tls.crt and ca.crt are; a pod without them is left out.
    """
    found = {pod: _read(directory) for pod, directory in directories.items()}
    own = {pod: certificate for pod, (certificate, _) in found.items() if certificate is not None}
    known = {pod: authority for pod, (_, authority) in found.items() if authority is not None}
    return [
        {
            "pod": pod,
            "names": _names(certificate),
            "issuer": certificate.issuer.rfc4514_string(),
            "not_before_unix_s": certificate.not_valid_before_utc.timestamp(),
            "not_after_unix_s": certificate.not_valid_after_utc.timestamp(),
            "trusted_by": sorted(
                other for other, authority in known.items() if _is_signed(certificate, authority)
            ),
        }
        for pod, certificate in own.items()
    ]


def _read(directory: Path) -> tuple[x509.Certificate | None, x509.Certificate | None]:
    try:
        own, authority = (
            x509.load_pem_x509_certificate((directory / name).read_bytes()) for name in ("tls.crt", "ca.crt")
        )
    except (OSError, ValueError):
        return None, None
    return own, authority


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(names, x509.SubjectAlternativeName)
    kinds = (x509.DNSName, x509.UniformResourceIdentifier)
    return [name for kind in kinds for name in names.get_values_for_type(kind)]


def _is_signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
