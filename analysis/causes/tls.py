"""Mutual TLS: handshakes that were refused, by whom, and for which certificate; TLS to those who speak none.

Who refused whom is read from the records (`analysis.causes.refusals`). Why a certificate was refused is then
read from the certificates themselves where the run recorded them, or from the proxy's log.
"""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.causes.attempts import Attempt
from analysis.causes.case import Case
from analysis.causes.closes import recognise_waiting_proxies
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.refusals import Refusal, hello_of, refusal_of, server_hello_of
from analysis.causes.troubles import acts

__all__ = ("recognise",)

_FEW = 4
# OpenSSL's verify errors, as a proxy logs them -> cause.
_VERIFY_ERRORS = {
    **dict.fromkeys((9,), "tls.not_yet_valid_certificate"),
    **dict.fromkeys((10, 12), "tls.expired_certificate"),
    **dict.fromkeys((2, 7, 18, 19, 20, 21), "tls.unknown_ca"),
    62: "tls.wrong_name",
}


def recognise(case: Case, troubles: Sequence[Trouble]) -> Iterator[Cause]:
    """Every connection whose TLS did not come about, alike ones together."""
    found: dict[tuple[str, str, str], list[Refusal]] = defaultdict(list)
    speaks_tls = {(a.target, a.port) for a in case.attempts if hello_of(a) and server_hello_of(a)}
    for attempt in case.attempts:
        if attempt.answered_ns is None or not _is_ours(case, attempt):
            continue
        refusal = refusal_of(case, attempt, (attempt.target, attempt.port) in speaks_tls)
        if refusal is not None and acts(refusal.moment.ts_ns, troubles):
            found[refusal.identifier, attempt.pod, attempt.target].append(refusal)
    refused = {(pod, target) for _, pod, target in found}
    yield from recognise_waiting_proxies(case, troubles, refused)
    for (_, pod, target), refusals in found.items():
        if not _came_through(case, pod, target, refusals[-1].moment.ts_ns):
            yield _cause(case, pod, target, refusals)


def _is_ours(case: Case, attempt: Attempt) -> bool:
    if not case.since_ns and case.mtls_failed:
        return attempt.pod in case.clients and attempt.target == case.server
    return case.is_ours(attempt.pod, attempt.target, "tcp", attempt.port, attempt.syns_ns[0])


def _came_through(case: Case, pod: str, target: str, after_ns: int) -> bool:
    """Whether a later connection carried a message: then this was over."""
    if not case.since_ns:
        return False
    from ztprobe.events.kinds import Hook

    wires = {a.key for a in case.attempts if (a.pod, a.target) == (pod, target) and a.syns_ns[0] > after_ns}
    return any(
        burst.bytes >= 8 << 10
        for (owner, hook, key), bursts in case.events.bursts.items()
        if owner == pod and hook == Hook.ETH and key in wires
        for found in bursts.values()
        for burst in found
    )


def _cause(case: Case, pod: str, target: str, refusals: Sequence[Refusal]) -> Cause:
    first = refusals[0]
    identifier, why, moments = first.identifier, "", [one.moment for one in refusals[:_FEW]]
    until_unix_s: float | None = None
    if identifier == "tls.bad_certificate":
        identifier, why, until_unix_s = _reason(case, first)
    elif identifier in ("tls.expired_certificate", "tls.unknown_ca"):
        # The alert has told; the certificate adds until when it was valid, or whose it is.
        told, words, until_unix_s = _reason(case, first)
        why = words if told == identifier else ""
    certificate = _certificate(case, first.whose)
    if (said := _proxy_line(case, first.by)) is not None:
        at_ns = moments[-1].ts_ns
        moments.append(
            Moment(ts_ns=at_ns, pod=first.by, event=f"its proxy's log: {said[:200]}", shows="its own words")
        )
    names = f" ({', '.join(certificate['names'][:2])})" if certificate and certificate["names"] else ""
    words = {
        "tls.no_client_certificate": f"{pod} shows {target} no certificate, and {target} requires one",
        "tls.plaintext_to_tls_port": f"{pod} speaks plaintext to {target}, which expects TLS",
        "tls.tls_to_plaintext_port": f"{pod} speaks TLS to {target}, which speaks plaintext there",
        "tls.version_mismatch": f"{pod} and {target} have no TLS version in common",
        "tls.cipher_mismatch": f"{pod} and {target} have no TLS cipher in common",
        "tls.handshake_failed": f"the TLS handshake of {pod} with {target} fails",
    }.get(identifier, f"{first.by} refuses {first.whose}'s certificate{names}{why}")
    return cause_of(
        identifier,
        summary=words,
        strength=0.75 if identifier in ("tls.handshake_failed", "tls.bad_certificate") else 0.95,
        moments=tuple(sorted(moments)),
        remedial=Remedial(words=_remedy(identifier, first, pod, target)),
        pods=(first.whose,),
        component="tls_handshake",
        details={
            "refused_by": first.by,
            "certificate_of": first.whose,
            **({"not_after_unix_s": until_unix_s} if until_unix_s is not None else {}),
        },
    )


def _remedy(identifier: str, first: Refusal, pod: str, target: str) -> str:
    return {
        "tls.expired_certificate": f"renew {first.whose}'s certificate",
        "tls.not_yet_valid_certificate": f"set {first.by}'s clock, or issue {first.whose}'s certificate anew",
        "tls.unknown_ca": f"let the authority that {first.by} trusts sign {first.whose}'s certificate "
        f"(or give {first.by} that authority)",
        "tls.wrong_name": f"issue {first.whose}'s certificate for the name that {first.by} asks for",
        "tls.no_client_certificate": f"give {pod}'s proxy its certificate (Secret, `crt`)",
        "tls.plaintext_to_tls_port": f"let {pod} go through its sidecar, or speak TLS",
        "tls.tls_to_plaintext_port": f"let {target} speak TLS at that port, or {pod} plaintext",
        "tls.version_mismatch": "let both ends allow a common TLS version",
        "tls.cipher_mismatch": "let both ends allow a common cipher (or group)",
    }.get(
        identifier,
        f"compare {first.whose}'s certificate and {first.by}'s settings; the proxies' logs say more",
    )


def _certificate(case: Case, pod: str) -> Mapping[str, Any] | None:
    recorded = case.run.meta.get("facts", {}).get("certificates", ())
    return next((one for one in recorded if one["pod"] == pod), None)


def _reason(case: Case, refusal: Refusal) -> tuple[str, str, float | None]:
    """Why a certificate was refused, by what it says, or by what the one who refused it wrote down."""
    certificate = _certificate(case, refusal.whose)
    now_s = case.clock.unix_ns(refusal.moment.ts_ns) / 1e9
    if certificate is not None:
        not_before, not_after = certificate["not_before_unix_s"], certificate["not_after_unix_s"]
        if now_s > not_after:
            return "tls.expired_certificate", f": it was valid until {_date(not_after)}", not_after
        if now_s < not_before:
            return "tls.not_yet_valid_certificate", f": it is valid from {_date(not_before)}", not_after
        if refusal.by not in certificate["trusted_by"]:
            who = f": {refusal.by} does not know its authority ({certificate['issuer']})"
            return "tls.unknown_ca", who, not_after
        asked = _asked_name(case, refusal)
        if asked and asked not in certificate["names"]:
            return "tls.wrong_name", f": it is not for {asked}", not_after
        if asked:  # whose date and authority are right: what a client verifies besides is the name
            return (
                "tls.wrong_name",
                ": it is in date and its authority is known; what is left is its name",
                not_after,
            )
    line = _proxy_line(case, refusal.by) or ""
    if (code := re.search(r'"verify_error":(\d+)', line)) and int(code[1]) in _VERIFY_ERRORS:
        return _VERIFY_ERRORS[int(code[1])], f": its proxy's verify error is {code[1]}", None
    return "tls.bad_certificate", "", None


def _date(unix_s: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _asked_name(case: Case, refusal: Refusal) -> str | None:
    """The server's name in the client's hello (RFC 6066), if the server's certificate was refused."""
    for attempt in case.attempts:
        if attempt.pod == refusal.by and attempt.target == refusal.whose and (hello := hello_of(attempt)):
            return _server_name(hello.data)
    return None


def _server_name(data: bytes) -> str | None:
    try:
        at = 9 + 2 + 32
        at += 1 + data[at]
        at += 2 + struct.unpack_from(">H", data, at)[0]
        at += 1 + data[at] + 2
        while at + 4 <= len(data):
            kind, length = struct.unpack_from(">HH", data, at)
            if kind == 0:
                size = struct.unpack_from(">H", data, at + 7)[0]
                return data[at + 9 : at + 9 + size].decode("ascii")
            at += 4 + length
    except (struct.error, IndexError, UnicodeDecodeError):
        pass
    return None


def _proxy_line(case: Case, pod: str) -> str | None:
    line = case.log_line(pod, '"tls_error":"error', '"verify_error":', "certificate verify failed")
    if line is None:
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return line
    keep = ("error", "tls_error", "verify_error", "peer")
    return json.dumps({key: said[key] for key in keep if said.get(key)}, separators=(",", ":"))
