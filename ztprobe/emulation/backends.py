"""Which backend does a profile, and what each of them cannot do: pure.

What a backend cannot do is refused before anything is changed, never left out. Where the
preferred backend cannot, and another can, the other is taken. A profile that changes over time
gets one that does all of its steps.
"""

from __future__ import annotations

from ztprobe.errors import PreflightError
from ztprobe.profile.model import Profile

__all__ = ("BACKENDS", "choose_backend", "only_rate", "refusal")

_MOST_MBIT = 34_359  # 2**32 - 1 bytes a second
BACKENDS = ("none", "netem", "nfqueue", "nfqueue+tbf", "tbf")


def only_rate(profile: Profile) -> bool:
    """Nothing but a rate is asked for (or nothing at all)."""
    return not (profile.widest.delay_ms or profile.per_packet)


def refusal(profile: Profile, backend: str) -> str | None:
    """Why this backend cannot do the profile, naming the key; None: it can."""
    profile = profile.widest
    if profile.rate_mbit is not None and profile.rate_mbit > _MOST_MBIT:
        return f"no backend can do rate_mbit above {_MOST_MBIT}: the kernel's request holds 32 bits of it"
    if backend == "netem":
        if profile.delay_correlation_pct:
            return (
                "netem cannot do delay_correlation_pct: the kernel takes a correlated draw modulo the"
                " table's size, which leaves no correlation"
            )
        if not profile.burst_is_default:
            return "netem cannot do burst_bytes: its rate has no token bucket"
    if "nfqueue" in backend and profile.mutates:
        key = "duplicate_pct" if profile.duplicate_pct else "corrupt_pct"
        return f"the delay line cannot do {key}: it decides when a packet passes and cannot alter or copy it"
    if backend == "tbf" and not only_rate(profile):
        return "tbf can do rate_mbit alone"
    if backend == "nfqueue" and profile.rate_mbit is not None:
        return "the delay line cannot do rate_mbit alone: take nfqueue+tbf"
    return None


def choose_backend(profile: Profile, *, netem: bool) -> str:
    """The kernel's best for this profile.

    :param netem: whether the kernel has it.
    :raises PreflightError: none of them can; says why.
    """
    if profile.is_empty:
        return "none"
    if only_rate(profile):
        # The same on every kernel, and segments GSO packets, which netem's rate does not.
        if (reason := refusal(profile, "tbf")) is not None:
            raise PreflightError(f"{profile.name}: {reason}")
        return "tbf"
    delay_line = "nfqueue" if profile.widest.rate_mbit is None else "nfqueue+tbf"
    candidates = ["netem", delay_line] if netem else [delay_line]
    reasons = [refusal(profile, backend) for backend in candidates]
    for backend, reason in zip(candidates, reasons, strict=True):
        if reason is None:
            return backend
    without = "" if netem else ", and this kernel has no netem (CONFIG_NET_SCH_NETEM)"
    raise PreflightError(f"{profile.name}: {'; '.join(r for r in reasons if r)}{without}")
