"""Who may do what on the cluster: keys, tokens, and a kubeconfig for each; new for every cluster."""

from __future__ import annotations

import datetime
import json
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.kube_cluster.places import API, NODE

__all__ = ("KUBELET_CLIENT", "SERVICE_ACCOUNT_KEY", "TOKENS", "kubeconfig", "write_credentials")

SERVICE_ACCOUNT_KEY, TOKENS, KUBELET_CLIENT = "service-accounts.key", "tokens.csv", "kubelet-client"
_AUTHORITY = "certificates/apiserver.crt"  # the API server makes it when it starts
_LIFETIME = datetime.timedelta(days=2)
# Kubeconfig -> user, group.
_USERS = {
    "admin": ("admin", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "nobody": ("nobody", ""),
}


def kubeconfig(directory: Path, user: str) -> Path:
    """Of admin, scheduler, proxy, kubelet, or nobody, who may do nothing."""
    return directory / f"{user}.kubeconfig"


def write_credentials(directory: Path) -> None:
    """Make all of them."""
    (directory / SERVICE_ACCOUNT_KEY).write_bytes(_pem(_key()))
    _client_certificate(directory / KUBELET_CLIENT)
    lines = []
    for name, (user, group) in _USERS.items():
        token = secrets.token_hex(16)
        lines.append(f'{token},{user},{name},"{group}"' if group else f"{token},{user},{name}")
        kubeconfig(directory, name).write_text(json.dumps(_config(directory, name, token), indent=1))
    (directory / TOKENS).write_text("\n".join([*lines, ""]))


def _config(directory: Path, name: str, token: str) -> dict[str, object]:
    cluster = {"server": API, "certificate-authority": str(directory / _AUTHORITY)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "current-context": "test",
    }


def _client_certificate(path: Path) -> None:
    """What the API server shows to kubelet (logs, exec); its own authority."""
    key = _key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(_pem(key))


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(*encoding, serialization.NoEncryption())
