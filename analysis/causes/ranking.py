"""Which of the recognised causes comes first: the one place where causes are held against each other.

1. Causes of one class are one cause, with the pods and the evidence of all.
2. A cause has to act in a trouble: some of its evidence lies in it, or up to `LEAD_S` before it. One that
   acts in none is no cause, however sure its evidence is.
3. Its confidence is its strength, times `_PARTLY` where it acts in some troubles and not in others, times
   `_ELSEWHERE` where a trouble names the clients that are missing and it is about other clients.
4. What another cause brings about (`EFFECTS`) and that did not begin before it counts times `_AS_EFFECT`:
   who was killed by the kernel listens no longer, and is not what went wrong first.
5. The most certain comes first; of equally certain ones the one that began first. What is less certain than
   `LEAST` is not said.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from analysis.causes.findings import Cause, Moment, Trouble

__all__ = ("EFFECTS", "LEAD_S", "LEAST", "acts_in", "ranked")

LEAD_S = 10.0
_SET_UP_LEAD_S = 30.0
LEAST = 0.2
_PARTLY = 0.9
_ELSEWHERE = 0.85
_AS_EFFECT = 0.4
_SLACK_NS = (
    3_000_000_000  # two clocks of one story: packets at once, exits and counters when they are looked at
)
_MOST_MOMENTS = 14

_GONE = (
    *("application.nothing_listens", "application.half_open", "application.peer_unreachable"),
    *("application.connection_reset", "application.slow_client", "application.deadline_too_short"),
    *("tls.handshake_failed", "tls.sidecar_not_ready", "tls.detection_stall"),
    *("application.idle_connection_dropped", "application.packets_lost"),
    *(
        "emulation.mtu_black_hole",
        "emulation.rate_too_low",
        "emulation.delay_too_long",
        "emulation.loss_profile",
    ),
)
_SLOWED = (
    *("application.slow_client", "application.deadline_too_short", "application.peer_unreachable"),
    *("application.half_open", "resources.accept_queue_overflow", "resources.receive_buffer_full"),
    *("emulation.rate_too_low", "emulation.delay_too_long", "emulation.loss_profile"),
)
_DIED = (
    *("application.server_died", "application.edge_died", "application.client_died"),
    "tls.sidecar_down",
)
_POLICY = (
    *("policy.dns_blocked", "policy.dns_blocked_udp", "policy.dns_blocked_tcp", "policy.port_denied_egress"),
    *("policy.port_denied_ingress", "policy.default_deny", "policy.wrong_label", "policy.wrong_namespace"),
    *("policy.wrong_port", "policy.wrong_port_name", "policy.wrong_port_range", "policy.ip_block_except"),
    *("policy.sidecar_port_blocked", "policy.denied_by_rule", "policy.added_mid_run", "policy.rejected"),
    "policy.filter_without_policy",
)
_REFUSED = (
    *("tls.expired_certificate", "tls.not_yet_valid_certificate", "tls.unknown_ca", "tls.wrong_name"),
    *("tls.no_client_certificate", "tls.bad_certificate", "tls.plaintext_to_tls_port"),
    *("tls.tls_to_plaintext_port", "tls.version_mismatch", "tls.cipher_mismatch"),
)
# Cause -> what it brings about.
EFFECTS: Mapping[str, tuple[str, ...]] = {
    "resources.oom_kill": (*_DIED, *_GONE),
    "application.server_died": (
        *(*_GONE, "application.edge_died", "application.client_died", "tls.sidecar_down"),
    ),
    "application.edge_died": (*_GONE, "application.server_died", "application.client_died"),
    "application.client_died": (*_GONE, "application.server_died", "application.edge_died"),
    "tls.sidecar_down": (
        *_GONE,
        "application.server_died",
        "application.edge_died",
        "application.client_died",
        "tls.plaintext_to_tls_port",
    ),
    "application.pod_restarted": (*_DIED, *_GONE),
    "application.process_stopped": (*_SLOWED, "application.nothing_listens", "tls.detection_stall"),
    "resources.receive_buffer_full": ("application.deadline_too_short", "application.slow_client"),
    "resources.disk_full": (
        *("application.server_died", "application.edge_died", "application.client_died"),
    ),
    **dict.fromkeys(
        ("application.too_many_pings", "application.keepalive", "application.message_too_large"),
        (*_DIED, *_GONE, *_SLOWED, "application.idle_connection_dropped"),
    ),
    "application.idle_connection_dropped": (
        *(*_DIED, "application.slow_client", "application.half_open", "application.connection_reset"),
    ),
    **dict.fromkeys(
        ("resources.accept_queue_overflow", "resources.syn_queue_overflow", "resources.ephemeral_ports"),
        (
            *(*_DIED, "application.peer_unreachable", "application.slow_client", "tls.detection_stall"),
            *("application.idle_connection_dropped", "application.nothing_listens"),
            *("application.connection_reset", "tls.handshake_failed", "tls.sidecar_not_ready"),
        ),
    ),
    # A proxy that cannot connect closes what waits for it.
    **dict.fromkeys(
        ("tls.sidecar_not_ready", "application.nothing_listens"),
        ("application.idle_connection_dropped", "tls.handshake_failed", "tls.detection_stall"),
    ),
    "resources.cpu_throttling": (
        *(*_SLOWED, "resources.cpu_contention", "application.idle_connection_dropped"),
        *("application.connection_reset", "tls.detection_stall", "tls.handshake_failed"),
    ),
    "resources.cpu_contention": _SLOWED,
    "resources.descriptors": (*_DIED, *_SLOWED, "tls.detection_stall", "application.nothing_listens"),
    "resources.conntrack_full": (*_POLICY, *_GONE, *_DIED),
    "emulation.mtu_black_hole": (
        *("policy.cut_established", "policy.filter_without_policy", "application.half_open"),
        *("application.deadline_too_short", "application.slow_client", "emulation.queue_overflow"),
    ),
    "emulation.queue_overflow": (
        *("application.deadline_too_short", "application.slow_client", "application.half_open"),
        *(*_DIED, "application.connection_reset"),
    ),
    "emulation.loss_profile": (
        *(*_DIED, "application.half_open", "application.peer_unreachable", "application.slow_client"),
        *("application.deadline_too_short", "application.connection_reset", "tls.handshake_failed"),
        *("tls.detection_stall", "emulation.mtu_black_hole"),
    ),
    "policy.cut_established": (*_POLICY, *_GONE, *_SLOWED),
    "application.half_open": (
        *(*_DIED, "application.deadline_too_short", "application.slow_client"),
        *("application.idle_connection_dropped", "application.connection_reset"),
    ),
    "emulation.rate_too_low": ("emulation.queue_overflow", "application.half_open"),
    **dict.fromkeys(_POLICY, (*_GONE, *_SLOWED, *_DIED, "application.no_such_name")),
    **dict.fromkeys(_REFUSED, (*_GONE, *_SLOWED, *_DIED)),
    "application.no_such_name": (*_GONE, *_DIED),
    "application.wrong_address": (*_GONE, *_DIED),
}


def ranked(
    causes: Iterable[Cause], troubles: Sequence[Trouble], clients: Iterable[str] = ()
) -> list[tuple[Cause, float]]:
    """Causes with their confidence (0..1), the most certain first.

    :param clients: of whom one that is missing says something about the others.
    """
    together = [one for one in _together(causes) if acts_in(one, troubles)]
    found = []
    for cause in together:
        confidence = cause.strength * _fit(cause, troubles, set(clients))
        if any(_brings_about(other, cause) for other in together if other is not cause):
            confidence *= _AS_EFFECT
        if confidence >= LEAST:
            found.append((cause, round(confidence, 3)))
    return sorted(found, key=lambda one: (-one[1], one[0].began_ns, one[0].of.id))


def acts_in(cause: Cause, troubles: Sequence[Trouble]) -> list[Trouble]:
    """The troubles in which some of its evidence lies."""
    return [
        trouble
        for trouble in troubles
        if any(
            trouble.from_ns - _lead_ns(trouble) <= m.ts_ns <= trouble.to_ns + _SLACK_NS for m in cause.moments
        )
    ]


def _lead_ns(trouble: Trouble) -> int:
    # Sidecars are started before the clients, and ask for names then.
    return int((_SET_UP_LEAD_S if trouble.kind == "set-up" else LEAD_S) * 1e9)


def _together(causes: Iterable[Cause]) -> list[Cause]:
    by_class: dict[str, list[Cause]] = defaultdict(list)
    for cause in causes:
        by_class[cause.of.id].append(cause)
    return [_merged(alike) for alike in by_class.values()]


def _merged(alike: Sequence[Cause]) -> Cause:
    first = min(alike, key=lambda one: (-one.strength, one.began_ns))
    others = [one for one in alike if one is not first]
    if not others:
        return dataclasses.replace(first, moments=_shown(first.moments))
    summaries = list(dict.fromkeys(one.summary for one in (first, *others)))
    more = f" (and {len(summaries) - 1} more like it)" if len(summaries) > 1 else ""
    objects = [o for one in (first, *others) for o in one.remedial.objects]
    unique = tuple(o for number, o in enumerate(objects) if o not in objects[:number])
    return dataclasses.replace(
        first,
        summary=first.summary + more,
        moments=_shown([m for one in (first, *others) for m in one.moments]),
        remedial=dataclasses.replace(first.remedial, objects=unique),
        pods=tuple(dict.fromkeys(pod for one in (first, *others) for pod in one.pods)),
        from_ns=min(one.began_ns for one in alike),
    )


def _shown(moments: Iterable[Moment]) -> tuple[Moment, ...]:
    ordered = sorted(set(moments))
    if len(ordered) <= _MOST_MOMENTS:
        return tuple(ordered)
    return (*ordered[: _MOST_MOMENTS - 2], *ordered[-2:])


def _fit(cause: Cause, troubles: Sequence[Trouble], clients: set[str]) -> float:
    acting = acts_in(cause, troubles)
    fit = 1.0 if len(acting) == len(troubles) else _PARTLY
    named = {pod for trouble in acting for pod in trouble.pods}
    # What is wrong at the server or between pods keeps any client.
    if named and cause.pods and clients.issuperset(cause.pods) and named.isdisjoint(cause.pods):
        fit *= _ELSEWHERE
    return fit


def _brings_about(root: Cause, effect: Cause) -> bool:
    if effect.of.id not in EFFECTS.get(root.of.id, ()) or root.strength < effect.strength - 0.3:
        return False
    mutual = root.of.id in EFFECTS.get(effect.of.id, ())
    if mutual and effect.strength > root.strength:
        return False
    return root.began_ns <= effect.began_ns + _SLACK_NS
