"""Mutual TLS that does not come about: real certificates, real settings of the proxies."""

from __future__ import annotations

import datetime

from ztprobe.validate.faults.acts.act import Act
from ztprobe.validate.faults.acts.processes import kill
from ztprobe.validate.faults.catalogue.words import SERVER, TARGET, amid_round, without_startup_probes
from ztprobe.validate.faults.certificates import misissued
from ztprobe.validate.faults.model import Fault, Preparation, Variant
from ztprobe.validate.faults.objects import Edit, EditedObjects

__all__ = ("FAULTS",)

_DAY = datetime.timedelta(days=1)
_CLIENT_ACCOUNT, _SERVER_ACCOUNT = "fl-client", "fl-server"
_CLIENT_PROXY, _SERVER_PROXY = "fl-client-proxy", "fl-server-proxy"
_OWN_CERTIFICATE = "crt /run/fl/tls/tls.crt "
_HOST = "fl-server.fl.svc.cluster.local"
_OTHER = "fl-aggregator.fl.svc.cluster.local"
_NEWEST_ONLY = "ssl-min-ver TLSv1.3"
_BIND = (
    "ssl crt /run/fl/tls/tls.crt ca-file /run/fl/tls/ca.crt"
    " verify required ssl-min-ver TLSv1.3 no-tls-tickets"
)
_REFUSED = r'"tls_error":"(?!-")[^"]+|"verify_error":[1-9]|"end":"SC"|handshake failure'
_DIED = r"ended: .*/proxy was killed by SIG"


def _words(config: str, *changes: tuple[str, str]) -> Edit:
    def edit(objects: EditedObjects) -> None:
        for old, new in changes:
            objects.replace(config, old, new)

    return edit


def _both(*edits: Edit) -> Edit:
    def edit(objects: EditedObjects) -> None:
        for one in edits:
            one(objects)

    return edit


def _issued(cause: str, *variants: tuple[str, int, Preparation]) -> Fault:
    return Fault(
        cause=f"tls.{cause}",
        variants=tuple(
            Variant(what=what, level=level, prepare=(prepare,), shows=_REFUSED)
            for what, level, prepare in variants
        ),
    )


def _edited(cause: str, shows: str, *variants: tuple[str, int, Edit]) -> Fault:
    return Fault(
        cause=f"tls.{cause}",
        variants=tuple(
            Variant(what=what, level=level, edit=edit, shows=shows) for what, level, edit in variants
        ),
    )


def _past_the_sidecar(objects: EditedObjects) -> None:
    objects.set_env("fl-client", "client", {"FL_SERVER": f"{_HOST}:50051"})


def _plain_server(objects: EditedObjects) -> None:
    # Whatever comes is passed on to the application as it is.
    text = objects.config(_SERVER_PROXY)["haproxy.cfg"].replace(f" {_BIND}", "")
    kept = [line for line in text.splitlines() if "from_client" not in line and "log-format" not in line]
    objects.config(_SERVER_PROXY)["haproxy.cfg"] = "\n".join([*kept, ""])


def _plain_client(objects: EditedObjects) -> None:
    lines = objects.config(_CLIENT_PROXY)["haproxy.cfg"].splitlines()
    at = next(n for n, line in enumerate(lines) if line.strip().startswith("server fl-server"))
    head, _, _ = lines[at].partition(" ssl ")
    lines[at] = head
    objects.config(_CLIENT_PROXY)["haproxy.cfg"] = "\n".join([*lines, ""])


def _to_application(objects: EditedObjects) -> None:
    # The application listens for other pods as well, and the sidecars call it instead of their like.
    objects.set_env("fl-server", "server", {"FL_LISTEN": "0.0.0.0:15051"})
    objects.replace(_CLIENT_PROXY, f"{_HOST}:50051", f"{_HOST}:15051")


def _late(owner: str, seconds: int) -> Edit:
    def edit(objects: EditedObjects) -> None:
        without_startup_probes(objects)
        container = objects.container(owner, "proxy")
        container["command"] = ["bash", "-c", f"sleep {seconds}; exec {' '.join(container['command'])}"]

    return edit


def _inspecting(config: str, frontend: str, seconds: int) -> Edit:
    # Waits for bytes that tell the protocol, and there are never enough.
    rules = f"\n        tcp-request inspect-delay {seconds}s\n        tcp-request content accept if WAIT_END"
    return _words(config, (frontend, f"{frontend}{rules}"))


_SERVERS_FRONTEND, _CLIENTS_FRONTEND = "frontend mtls", "frontend application"

FAULTS = (
    _issued(
        "expired_certificate",
        ("the server's certificate has expired", 2, misissued(_SERVER_ACCOUNT, valid=(-2 * _DAY, -_DAY))),
        ("the clients' certificate has expired", 2, misissued(_CLIENT_ACCOUNT, valid=(-2 * _DAY, -_DAY))),
        (
            "the server's certificate expired a minute ago",
            3,
            misissued(_SERVER_ACCOUNT, valid=(-_DAY, -_DAY / 1440)),
        ),
    ),
    _issued(
        "not_yet_valid_certificate",
        (
            "the server's certificate is valid from tomorrow on",
            2,
            misissued(_SERVER_ACCOUNT, valid=(_DAY, 2 * _DAY)),
        ),
        (
            "the clients' certificate is valid from tomorrow on",
            2,
            misissued(_CLIENT_ACCOUNT, valid=(_DAY, 2 * _DAY)),
        ),
        (
            "the server's certificate is valid in an hour",
            3,
            misissued(_SERVER_ACCOUNT, valid=(_DAY / 24, _DAY)),
        ),
    ),
    _issued(
        "unknown_ca",
        ("the server's certificate is another authority's", 2, misissued(_SERVER_ACCOUNT, stranger=True)),
        ("the clients' certificate is another authority's", 2, misissued(_CLIENT_ACCOUNT, stranger=True)),
        ("the clients know another authority only", 3, misissued(_CLIENT_ACCOUNT, distrusts=True)),
    ),
    _edited(
        "no_client_certificate",
        _REFUSED,
        (
            "the clients' sidecars show no certificate",
            2,
            _words(_CLIENT_PROXY, (f" {_OWN_CERTIFICATE}", " ")),
        ),
        (
            "the clients' sidecars show no certificate, and policies",
            3,
            _words(_CLIENT_PROXY, (f" {_OWN_CERTIFICATE}", " ")),
        ),
        (
            "the clients' sidecars show no certificate, over TLS 1.2",
            2,
            _both(
                _words(_CLIENT_PROXY, (f" {_OWN_CERTIFICATE}", " "), (_NEWEST_ONLY, "ssl-max-ver TLSv1.2")),
                _words(_SERVER_PROXY, (_NEWEST_ONLY, "ssl-min-ver TLSv1.2")),
            ),
        ),
    ),
    Fault(
        cause="tls.wrong_name",
        variants=(
            Variant(
                what="the server's certificate is for another host",
                level=2,
                prepare=(misissued(_SERVER_ACCOUNT, names=["aggregator.example.org"]),),
                shows=_REFUSED,
            ),
            Variant(
                what="the server's certificate is for no host",
                level=3,
                prepare=(misissued(_SERVER_ACCOUNT, names=[]),),
                shows=_REFUSED,
            ),
            Variant(
                what="the clients' sidecars expect another host",
                level=2,
                edit=_words(
                    _CLIENT_PROXY,
                    (f"sni str({_HOST}) verifyhost {_HOST}", f"sni str({_OTHER}) verifyhost {_OTHER}"),
                ),
                shows=_REFUSED,
            ),
        ),
    ),
    _edited(
        "plaintext_to_tls_port",
        r'"tls_error":"(?!-")[^"]+|"end":"SC"|said: .*error',
        ("the clients' applications go past their sidecars", 2, _past_the_sidecar),
        ("the clients' sidecars speak no TLS", 2, _plain_client),
        ("the clients' applications go past their sidecars, and policies", 3, _past_the_sidecar),
    ),
    _edited(
        "tls_to_plaintext_port",
        r'"end":"S[CD]"|still trying|"tls":"-"',
        ("the server's sidecar speaks no TLS", 2, _plain_server),
        ("the clients' sidecars call the application itself", 2, _to_application),
        ("the server's sidecar speaks no TLS, and policies", 3, _plain_server),
    ),
    _edited(
        "version_mismatch",
        _REFUSED,
        (
            "the clients' sidecars know TLS 1.2 only",
            2,
            _words(_CLIENT_PROXY, (_NEWEST_ONLY, "ssl-max-ver TLSv1.2")),
        ),
        (
            "the server's sidecar knows TLS 1.2 only",
            2,
            _words(_SERVER_PROXY, (_NEWEST_ONLY, "ssl-max-ver TLSv1.2")),
        ),
        (
            "the clients' sidecars know TLS 1.2 only, and policies",
            3,
            _words(_CLIENT_PROXY, (_NEWEST_ONLY, "ssl-max-ver TLSv1.2")),
        ),
    ),
    _edited(
        "cipher_mismatch",
        _REFUSED,
        (
            "the ends have no cipher suite in common",
            2,
            _both(
                _words(
                    _CLIENT_PROXY, (_NEWEST_ONLY, f"{_NEWEST_ONLY} ciphersuites TLS_CHACHA20_POLY1305_SHA256")
                ),
                _words(_SERVER_PROXY, (_NEWEST_ONLY, f"{_NEWEST_ONLY} ciphersuites TLS_AES_256_GCM_SHA384")),
            ),
        ),
        (
            "the ends have no cipher suite in common, and policies",
            3,
            _both(
                _words(_CLIENT_PROXY, (_NEWEST_ONLY, f"{_NEWEST_ONLY} ciphersuites TLS_AES_128_GCM_SHA256")),
                _words(
                    _SERVER_PROXY, (_NEWEST_ONLY, f"{_NEWEST_ONLY} ciphersuites TLS_CHACHA20_POLY1305_SHA256")
                ),
            ),
        ),
        (
            "the ends have no cipher in common, over TLS 1.2",
            2,
            _both(
                _words(
                    _CLIENT_PROXY, (_NEWEST_ONLY, "ssl-max-ver TLSv1.2 ciphers ECDHE-ECDSA-AES128-GCM-SHA256")
                ),
                _words(
                    _SERVER_PROXY, (_NEWEST_ONLY, "ssl-min-ver TLSv1.2 ciphers ECDHE-ECDSA-CHACHA20-POLY1305")
                ),
            ),
        ),
    ),
    Fault(
        cause="tls.sidecar_down",
        variants=(
            Variant(
                what="a client's sidecar is killed in round 2",
                level=2,
                acts=(Act("kill", kill(TARGET, "proxy"), amid_round(2)),),
                shows=_DIED,
            ),
            Variant(
                what="the server's sidecar is killed in round 2",
                level=3,
                acts=(Act("kill", kill(SERVER, "proxy"), amid_round(2)),),
                shows=_DIED,
            ),
            Variant(
                what="a client's sidecar is killed before the client starts",
                level=2,
                acts=(Act("kill", kill(TARGET, "proxy")),),
                shows=_DIED,
            ),
        ),
    ),
    Fault(
        cause="tls.sidecar_not_ready",
        variants=tuple(
            Variant(
                what=f"{whose} start {seconds} s after the applications",
                level=level,
                edit=_late(owner, seconds),
                shows="counts (AttemptFails|OutRsts)",
                deadline_s=45,
            )
            for whose, owner, seconds, level in (
                ("the clients' sidecars", "fl-client", 25, 2),
                ("the server's sidecars", "fl-server", 26, 2),
                ("the clients' sidecars, with policies,", "fl-client", 24, 3),
            )
        ),
    ),
    _edited(
        "detection_stall",
        "came within",
        (
            "the server's sidecar inspects each connection for 20 s",
            2,
            _inspecting(_SERVER_PROXY, _SERVERS_FRONTEND, 20),
        ),
        (
            "the clients' sidecars inspect each connection for 15 s",
            2,
            _inspecting(_CLIENT_PROXY, _CLIENTS_FRONTEND, 15),
        ),
        (
            "the server's sidecar inspects each connection for 20 s, and policies",
            3,
            _inspecting(_SERVER_PROXY, _SERVERS_FRONTEND, 20),
        ),
    ),
)
