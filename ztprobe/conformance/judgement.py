"""What UDP probes between the pods saw, and whether that is the profile: pure.

A figure fails only when its 99.9 % interval, corrected for the number of figures compared
(Bonferroni), excludes the tolerance, so that healthy pods do not fail by chance.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ztprobe.profile.model import Profile
from ztprobe.profile.tolerance import mean_tolerance_ms

__all__ = ("Allowance", "Measured", "OneWay", "Rate", "direction", "requested", "shape_distance")

_CONFIDENCE = 0.999
_SD_TOLERANCE = 0.05
_SD_TOLERANCE_MS = 0.2
_SHAPE_TOLERANCE = 0.03  # Kolmogorov-Smirnov distance
# Half of the packets of a profile without jitter lie within about this, on a busy machine.
_STEADY_MS = 1.0
_STEADY = 0.05
_LOSS_TOLERANCE_PCT = 0.1
_RATE_TOLERANCE = 0.02
_TOO_FEW = 20


def requested(profile: Profile) -> dict[str, Any]:
    """What a profile asks for (a schedule's first step), with units; None: not asked."""
    first = profile.steps[0]
    return {
        "delay_ms": first.delay_ms or None,
        "jitter_ms": first.jitter_ms or None,
        "distribution": None if first.distribution == "none" else first.distribution,
        "loss_pct": first.loss_pct or None,
        "rate_mbit": first.rate_mbit,
    }


@dataclass(frozen=True, kw_only=True)
class OneWay:
    """One-way delay from one pod to another."""

    sender: str
    receiver: str
    sent: int
    received: int
    mean_ms: float
    sd_ms: float
    spread_ms: float  # interquartile range / 1.349: the sd of a normal sample, without its outliers
    min_ms: float
    duplicates: int = 0
    shape_distance: float | None = None  # Kolmogorov-Smirnov, from the profile's distribution

    @property
    def loss_pct(self) -> float:
        """Share of the probes that never came."""
        return 100 * (1 - self.received / self.sent)

    def __str__(self) -> str:
        return f"{self.sender} -> {self.receiver}"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one pod got out when it offered more, in Ethernet frames without check sequence."""

    sender: str
    goodput_mbit: float | None  # None: the sender could not offer enough to tell
    frames: int
    seconds: float = 0.0  # from the first of them to the last

    def __str__(self) -> str:
        return self.sender


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All directions and all senders of one measurement."""

    directions: tuple[OneWay, ...]
    rates: tuple[Rate, ...] = ()
    attempts: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Overall values, under the names that `requested` uses."""
        arrived = [d for d in self.directions if d.received]
        received = sum(d.received for d in arrived)
        sent = sum(d.sent for d in self.directions)
        rates = [r.goodput_mbit for r in self.rates if r.goodput_mbit is not None]

        def mean(value: Callable[[OneWay], float]) -> float | None:
            return sum(value(d) * d.received for d in arrived) / received if received else None

        variance = mean(lambda d: d.sd_ms**2)
        return {
            "delay_ms": _rounded(mean(lambda d: d.mean_ms)),
            "jitter_ms": _rounded(math.sqrt(variance) if variance is not None else None),
            "loss_pct": _rounded(100 * (1 - received / sent) if sent else None),
            "rate_mbit": _rounded(statistics.fmean(rates) if rates else None),
        }

    def details(self) -> dict[str, Any]:
        """Every direction and sender, for the record."""
        return {
            "directions": [asdict(d) for d in self.directions],
            "rates": [asdict(r) for r in self.rates],
            "attempts": self.attempts,
        }

    def summary(self) -> str:
        """A few words for the progress line."""
        values = self.as_dict()
        if values["delay_ms"] is None:
            return "no probe arrived"
        words = [f"{values['delay_ms']:.2f} ± {values['jitter_ms']:.2f} ms one way"]
        if values["loss_pct"]:
            words.append(f"{values['loss_pct']:.2f} % lost")
        if values["rate_mbit"] is not None:
            words.append(f"{values['rate_mbit']:.2f} Mbit/s")
        return f"{', '.join(words)} ({sum(d.sent for d in self.directions)} probes)"

    def _doubt(self) -> tuple[float, float]:
        figures = max(5 * len(self.directions) + len(self.rates), 1)
        doubt = (1 - _CONFIDENCE) / figures
        return doubt, statistics.NormalDist().inv_cdf(1 - doubt / 2)

    def allowances(self, d: OneWay, profile: Profile) -> dict[str, Allowance]:
        """What `problems` allows of one direction, by figure: mean_ms, sd_ms, shape_distance, loss_pct.

        Figures that are not judged in this way are left out.
        """
        doubt, z = self._doubt()
        low, high = _loss_interval_pct(d, profile, z)
        found = {
            "loss_pct": Allowance(
                asked=profile.missing_pct,
                tolerance=_loss_tolerance_pct(profile.missing_pct),
                sampling_error=(high - low) / 2,
            )
        }
        if d.received < _TOO_FEW:
            return found
        wanted = profile.mean_ms
        found["mean_ms"] = Allowance(
            asked=wanted,
            tolerance=mean_tolerance_ms(wanted),
            sampling_error=_mean_half_ms(d, profile, z),
        )
        if profile.sd_ms:
            found["sd_ms"] = Allowance(
                asked=profile.sd_ms,
                tolerance=_sd_tolerance_ms(profile.sd_ms),
                sampling_error=_sd_half_ms(d, profile, z),
            )
        if d.shape_distance is not None:
            chance = _chance_distance(d, profile, doubt)
            found["shape_distance"] = Allowance(asked=0, tolerance=_SHAPE_TOLERANCE, sampling_error=chance)
        return found

    def problems(self, profile: Profile) -> list[str]:
        """Why the profile is evidently not in force, one line per kind; empty: nothing says so."""
        doubt, z = self._doubt()
        found: dict[str, list[str]] = {}

        def note(kind: str, text: str) -> None:
            found.setdefault(kind, []).append(text)

        for d in self.directions:
            if problem := _loss_problem(d, profile, z):
                note("loss", f"{d}: {problem}")
            if problem := _duplicate_problem(d, profile, z):
                note("duplication", f"{d}: {problem}")
            if d.received < _TOO_FEW:
                continue
            if problem := _shape_problem(d, profile, doubt):
                note("shape", f"{d}: {problem}")
            if problem := _delay_problem(d, profile, z):
                note("delay", f"{d}: {problem}")
            if problem := _jitter_problem(d, profile, z):
                note("jitter", f"{d}: {problem}")
        for rate in self.rates:
            if problem := _rate_problem(rate, profile, z):
                note("rate", f"{rate}: {problem}")
        return [
            texts[0] if len(texts) == 1 else f"{texts[0]} (and {len(texts) - 1} more like it)"
            for texts in found.values()
        ]


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How a figure is judged: it may be off by the tolerance, and by what chance does in so few probes."""

    asked: float
    tolerance: float
    sampling_error: float  # of a 99.9 % interval over all figures together; half its width

    def __str__(self) -> str:
        return f"{self.asked:.4g} ± {self.tolerance:.2g} ± {self.sampling_error:.2g}"


def direction(
    sender: str,
    receiver: str,
    sent: int,
    delays_ms: Sequence[float],
    *,
    duplicates: int = 0,
    profile: Profile | None = None,
) -> OneWay:
    """Summarise the one-way delays of the probes that arrived, each counted once.

    :param profile: compare their distribution with this one's.
    """
    distance = None
    if profile is not None and (profile.jitter_ms or profile.reorder_pct) and delays_ms:
        ordered, expected = sorted(delays_ms), profile.expected_delays_ms
        slack_ms = 0.0
        if profile.reorder_pct or profile.samples_ms:
            # Where many packets share one value, the path's own delay would pass for another shape.
            tolerance_ms = mean_tolerance_ms(profile.mean_ms)
            slack_ms = tolerance_ms + max(0.0, ordered[0] - expected[0])
        distance = shape_distance(ordered, expected, slack_ms)
    nothing = math.nan
    quartiles = statistics.quantiles(delays_ms, n=4) if len(delays_ms) > 1 else [nothing] * 3
    return OneWay(
        sender=sender,
        receiver=receiver,
        sent=sent,
        received=len(delays_ms),
        mean_ms=statistics.fmean(delays_ms) if delays_ms else nothing,
        sd_ms=statistics.stdev(delays_ms) if len(delays_ms) > 1 else nothing,
        spread_ms=(quartiles[2] - quartiles[0]) / 1.349,
        min_ms=min(delays_ms, default=nothing),
        duplicates=duplicates,
        shape_distance=None if distance is None else round(distance, 5),
    )


def shape_distance(measured: Sequence[float], expected: Sequence[float], slack: float = 0.0) -> float:
    """The Kolmogorov-Smirnov distance of two ascending samples, which may be apart by ``slack``."""
    count, steps = len(measured), len(expected)
    largest = 0.0
    for i, value in enumerate(measured):
        below = bisect.bisect_right(expected, value - slack) / steps
        up_to = bisect.bisect_right(expected, value + slack) / steps
        largest = max(largest, (i + 1) / count - up_to, below - i / count)
    return largest


def _mean_half_ms(d: OneWay, profile: Profile, z: float) -> float:
    return z * d.sd_ms / math.sqrt(_independent(d.received, profile.delay_correlation_pct / 100))


def _sd_half_ms(d: OneWay, profile: Profile, z: float) -> float:
    # The spread of a sample's standard deviation grows with the tails (kurtosis 3 if normal).
    count = _independent(d.received - 1, profile.delay_correlation_pct / 100)
    return z * d.sd_ms * math.sqrt((profile.kurtosis - 1) / 4 / count)


def _sd_tolerance_ms(wanted: float) -> float:
    return max(_SD_TOLERANCE * wanted, _SD_TOLERANCE_MS)


def _chance_distance(d: OneWay, profile: Profile, doubt: float) -> float:
    count = _independent(d.received, profile.delay_correlation_pct / 100)
    return math.sqrt(math.log(2 / doubt) / (2 * count))


def _loss_tolerance_pct(wanted: float) -> float:
    return max(_LOSS_TOLERANCE_PCT, 0.05 * wanted)


def _loss_interval_pct(d: OneWay, profile: Profile, z: float) -> tuple[float, float]:
    memory = 0.0
    if (states := profile.loss_states) is not None:
        memory = max(0.0, 1 - (states.good_to_bad_pct + states.bad_to_good_pct) / 100)
    weight = _independent(d.sent, memory) / d.sent
    low, high = _wilson((d.sent - d.received) * weight, d.sent * weight, z)
    return 100 * low, 100 * high


def _delay_problem(d: OneWay, profile: Profile, z: float) -> str | None:
    wanted = profile.mean_ms
    if abs(d.mean_ms - wanted) - _mean_half_ms(d, profile, z) <= mean_tolerance_ms(wanted):
        return None
    cause = "something else delays packets too, or this CPU is too busy to tell"
    if d.mean_ms < 0.1 * wanted:
        cause = "the profile is not on the path"
    elif wanted and abs(d.mean_ms / wanted - 2) < 0.15:
        cause = "twice the delay: applied twice, or at both ends"
    elif d.mean_ms < wanted:
        cause = "less than asked for"
    return f"mean delay {d.mean_ms:.2f} ms instead of {wanted:g} ms: {cause}"


def _jitter_problem(d: OneWay, profile: Profile, z: float) -> str | None:
    wanted = profile.sd_ms
    if not wanted:
        # Outliers of a busy machine are no jitter, a wide body of the distribution is.
        if profile.reorder_pct:
            return None
        jittery = d.spread_ms > max(_STEADY_MS, _STEADY * profile.delay_ms)
        return f"spread {d.spread_ms:.2f} ms where no jitter is asked for" if jittery else None
    if abs(d.sd_ms - wanted) - _sd_half_ms(d, profile, z) <= _sd_tolerance_ms(wanted):
        return None
    uniform = profile.jitter_ms / math.sqrt(3)
    cause = ""
    if profile.distribution == "normal" and abs(d.sd_ms - uniform) < 0.1 * uniform:
        cause = ": it looks uniform, so the distribution table is not in force"
    return f"standard deviation {d.sd_ms:.2f} ms instead of {wanted:.2f} ms{cause}"


def _shape_problem(d: OneWay, profile: Profile, doubt: float) -> str | None:
    if d.shape_distance is None:
        return None
    if d.shape_distance - _chance_distance(d, profile, doubt) <= _SHAPE_TOLERANCE:
        return None
    return f"the delays are not distributed as asked (Kolmogorov-Smirnov distance {d.shape_distance:.3f})"


def _duplicate_problem(d: OneWay, profile: Profile, z: float) -> str | None:
    low, high = (100 * p for p in _wilson(d.duplicates, d.sent, z))
    tolerance = max(_LOSS_TOLERANCE_PCT, 0.05 * profile.duplicate_pct)
    if low <= profile.duplicate_pct + tolerance and high >= profile.duplicate_pct - tolerance:
        return None
    return f"{d.duplicates} of {d.sent} probes came twice instead of {profile.duplicate_pct:g} %"


def _independent(count: float, correlation: float) -> float:
    # So many independent draws tell as much as that many correlated ones.
    return max(count * (1 - correlation) / (1 + correlation), 1.0)


def _loss_problem(d: OneWay, profile: Profile, z: float) -> str | None:
    wanted = profile.missing_pct
    low, high = _loss_interval_pct(d, profile, z)
    tolerance = _loss_tolerance_pct(wanted)
    if low <= wanted + tolerance and high >= wanted - tolerance:
        return None
    if not d.received:
        return f"none of {d.sent} probes arrived: no path between them, or a filter is in force already"
    lost = f"{d.sent - d.received} of {d.sent} probes lost ({d.loss_pct:.2f} %)"
    return f"{lost} instead of {wanted:.4g} %"


def _rate_problem(rate: Rate, profile: Profile, z: float) -> str | None:
    if profile.rate_mbit is None or rate.goodput_mbit is None:
        return None
    allowed = _RATE_TOLERANCE
    if rate.seconds > 0:
        # Standard error of a regression's slope, for arrivals that the profile's own jitter spreads.
        allowed += z * profile.jitter_ms / 1e3 * math.sqrt(12 / rate.frames) / rate.seconds
    if abs(rate.goodput_mbit / profile.rate_mbit - 1) <= allowed:
        return None
    return f"rate {rate.goodput_mbit:.2f} Mbit/s instead of {profile.rate_mbit:g} Mbit/s"


def _wilson(lost: float, sent: float, z: float) -> tuple[float, float]:
    share, z2 = lost / sent, z * z
    centre = (share + z2 / (2 * sent)) / (1 + z2 / sent)
    half = z / (1 + z2 / sent) * math.sqrt(share * (1 - share) / sent + z2 / (4 * sent * sent))
    return max(0.0, centre - half), min(1.0, centre + half)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
