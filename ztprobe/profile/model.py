"""Network profiles: what a path is asked to do to packets, one YAML file each.

A profile acts on a pod's egress, so a request and its answer each meet it once.
Every key carries its unit, every number names its source, and
``netprofiles/schema.json`` says what a key may hold; the schema's ``description``
of a key is what an error message prints after "expected". A `Profile` cannot
exist with values that contradict each other, so nothing downstream checks again.

A profile may change over time. Its five changing values are then those of its schedule's
first step, `Profile.steps` has a plain profile for each step, and `Profile.widest` is one
that asks for whatever any step asks for: backends and structures are chosen by it, so that
no step needs another one.

What this module does not do: read files (``ztprobe.profile.file``), change a link
(``ztprobe.emulation``) or compare a measurement with a profile (``ztprobe.conformance.judgement``).
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ztprobe.errors import PreflightError, UsageError
from ztprobe.paths import NETPROFILES_DIR
from ztprobe.profile import distributions
from ztprobe.profile.schedule import CHANGING, Schedule, Step

__all__ = (
    "DISTRIBUTIONS",
    "FRAME_BYTES",
    "GilbertElliott",
    "Profile",
    "load_profile",
    "profile_from_dict",
    "profile_names",
)

DISTRIBUTIONS = ("none", "uniform", "normal", "pareto", "paretonormal", "samples")
FRAME_BYTES = 1514  # a full Ethernet frame without its check sequence, as qdiscs count it

# The queue limit has to hold rate x time. Where a profile sets no rate, a pair of
# namespaces on one machine reaches about this much with offloads on.
_UNSHAPED_MBIT = 10_000.0
_NUMBERS = (
    "delay_ms",
    "jitter_ms",
    "delay_correlation_pct",
    "loss_pct",
    "loss_correlation_pct",
    "duplicate_pct",
    "corrupt_pct",
    "reorder_pct",
    "rate_mbit",
)
# What means nothing without another value.
_BELONGS = {
    "delay_correlation_pct": "jitter_ms",
    "loss_correlation_pct": "loss_pct",
    "reorder_pct": "delay_ms",
    "burst_bytes": "rate_mbit",
}
# What a shaped link may queue beyond the bandwidth-delay product: a small router's buffer.
_QUEUE_MS = 100.0


@dataclass(frozen=True, kw_only=True)
class GilbertElliott:
    """Loss in bursts: a path that is in a good or a bad state, and changes before each packet."""

    good_to_bad_pct: float
    bad_to_good_pct: float
    loss_in_bad_pct: float = 100.0
    loss_in_good_pct: float = 0.0

    @property
    def mean_pct(self) -> float:
        """The share lost in the long run (it starts in the good state)."""
        leaving = self.good_to_bad_pct + self.bad_to_good_pct
        bad = self.good_to_bad_pct / leaving if leaving else 0.0
        return bad * self.loss_in_bad_pct + (1 - bad) * self.loss_in_good_pct


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One network condition, for each direction once.

    :raises ValueError: values that contradict each other.
    """

    name: str
    description: str = ""
    delay_ms: float = 0.0  # one way; the mean where there is jitter
    jitter_ms: float = 0.0  # standard deviation (normal), half width (uniform), tc's scale (the others)
    distribution: str = "none"
    samples_ms: tuple[float, ...] = ()  # a measured distribution: gives delay_ms and jitter_ms
    delay_correlation_pct: float = 0.0  # of a packet's draw with the one before
    loss_pct: float = 0.0  # independent, per packet, unless correlated
    loss_correlation_pct: float = 0.0  # of being lost with the packet before being lost
    loss_gilbert_elliott: GilbertElliott | None = None
    duplicate_pct: float = 0.0
    corrupt_pct: float = 0.0
    reorder_pct: float = 0.0  # leave at once, ahead of what is delayed
    rate_mbit: float | None = None  # of Ethernet frames, headers included; None: not limited
    burst_bytes: int = 0  # token bucket depth; 0: computed from the rate
    queue_limit_packets: int = 0  # 0: computed from the bandwidth-delay product, the largest of all steps
    schedule: Schedule | None = None  # over time; gives delay, jitter, distribution, loss and rate
    source: Mapping[str, str] = field(default_factory=dict)  # key -> where its number comes from

    def __post_init__(self) -> None:
        if self.schedule is not None:
            self._take_schedule(self.schedule)
            return
        for key in _NUMBERS:
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{key}: expected a finite number of at least 0, found {value}")
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution: expected one of {', '.join(DISTRIBUTIONS)}")
        self._check_samples()
        if self.jitter_ms > 0 and self.distribution == "none":
            raise ValueError("jitter_ms: expected a distribution (normal, uniform, ...) beside it")
        if self.jitter_ms == 0 and self.distribution != "none":
            raise ValueError(f"distribution: expected jitter_ms above 0 with {self.distribution}")
        if self.jitter_ms > self.delay_ms and self.distribution != "samples":
            raise ValueError("jitter_ms: expected at most delay_ms (no packet arrives before it was sent)")
        if self.delay_correlation_pct and not self.jitter_ms:
            raise ValueError("delay_correlation_pct: expected jitter_ms beside it")
        if self.loss_pct and self.loss_gilbert_elliott is not None:
            raise ValueError("loss_gilbert_elliott: expected no loss_pct beside it")
        if self.loss_correlation_pct and not self.loss_pct:
            raise ValueError("loss_correlation_pct: expected loss_pct beside it")
        if self.reorder_pct and not self.delay_ms:
            raise ValueError("reorder_pct: expected delay_ms beside it")
        if self.burst_bytes and self.rate_mbit is None:
            raise ValueError("burst_bytes: expected rate_mbit beside it")
        if self.rate_mbit is not None and not self.burst_bytes:
            # One millisecond's worth, so that the bucket neither releases a visible burst nor
            # starves between timer interrupts; never less than three full frames.
            one_ms_bytes = math.ceil(self.rate_mbit * 1e6 / 8 / 1000)
            object.__setattr__(self, "burst_bytes", max(3 * FRAME_BYTES, one_ms_bytes))
        if not self.queue_limit_packets:
            object.__setattr__(self, "queue_limit_packets", math.ceil(self.queue_limit_bytes / FRAME_BYTES))

    def _take_schedule(self, schedule: Schedule) -> None:
        if self.samples_ms or self.distribution == "samples":
            raise ValueError("schedule: expected no measured samples beside it")
        steps = []
        for index, step in enumerate(schedule.steps):
            try:
                steps.append(self._at(step))
            except ValueError as error:
                raise ValueError(f"schedule.steps.{index}.{error}") from error
        # What belongs to a value that no step has would never do anything.
        for key, needed in _BELONGS.items():
            if getattr(self, key) and not any(getattr(step, needed) for step in steps):
                raise ValueError(f"{key}: expected {needed} in a step of the schedule")
        own_burst = not self.burst_is_default
        for key in CHANGING if own_burst else (*CHANGING, "burst_bytes"):
            object.__setattr__(self, key, getattr(steps[0], key))
        # A buffer does not shrink with the rate, and a limit below what is under way would drop it.
        largest = max(step.queue_limit_packets for step in steps)
        object.__setattr__(self, "queue_limit_packets", largest)

    def _at(self, step: Step) -> Profile:
        # This profile while a step is in force; what belongs to a value that is 0 then rests.
        changes = {key: getattr(step, key) for key in CHANGING}
        for key, needed in _BELONGS.items():
            if not changes[needed]:
                changes[key] = 0
        if self.burst_is_default:
            changes["burst_bytes"] = 0
        return replace(self, schedule=None, **changes)

    @functools.cached_property
    def steps(self) -> tuple[Profile, ...]:
        """What is in force one after another; this profile itself where it has no schedule."""
        if self.schedule is None:
            return (self,)
        return tuple(self._at(step) for step in self.schedule.steps)

    @functools.cached_property
    def widest(self) -> Profile:
        """One profile that asks for all that any step asks for; this profile where it has no schedule."""
        if self.schedule is None:
            return self
        steps = self.schedule.steps
        return self._at(
            Step(
                at_ns=0,
                delay_ms=max(step.delay_ms for step in steps),
                jitter_ms=max(step.jitter_ms for step in steps),
                distribution=next((step.distribution for step in steps if step.jitter_ms), "none"),
                loss_pct=max(step.loss_pct for step in steps),
                rate_mbit=max((step.rate_mbit for step in steps if step.rate_mbit is not None), default=None),
            )
        )

    def _check_samples(self) -> None:
        if bool(self.samples_ms) != (self.distribution == "samples"):
            raise ValueError("distribution: expected samples, with samples_ms or samples_file beside it")
        if self.samples_ms:
            if self.delay_ms or self.jitter_ms:
                raise ValueError("distribution: expected no delay_ms and no jitter_ms beside samples")
            shape = distributions.shape_of_samples(self.samples_ms)
            object.__setattr__(self, "delay_ms", shape.mean_ms)
            object.__setattr__(self, "jitter_ms", shape.scale_ms)

    @property
    def is_empty(self) -> bool:
        """Nothing is emulated, at any time."""
        most = self.widest
        return not (most.delay_ms or most.per_packet or most.rate_mbit is not None)

    @property
    def per_packet(self) -> bool:
        """Jitter or loss must meet every wire-size packet: offloads have to be off on the pods.

        A GSO packet is up to 64 KB; one loss would take 45 segments, one draw delay them all.
        """
        most = self.widest
        return most.jitter_ms > 0 or most.mean_loss_pct > 0 or most.mutates or most.reorder_pct > 0

    @property
    def burst_is_default(self) -> bool:
        """The token bucket's depth is the computed one."""
        rate_mbit = self.rate_mbit
        if rate_mbit is None:
            return not self.burst_bytes
        return self.burst_bytes in (0, Profile(name="", rate_mbit=rate_mbit).burst_bytes)

    @property
    def mutates(self) -> bool:
        """Packets are duplicated or corrupted, which takes more than deciding when they pass."""
        return self.duplicate_pct > 0 or self.corrupt_pct > 0

    @property
    def mean_loss_pct(self) -> float:
        """The share of packets that is lost in the long run."""
        return self.loss_pct if self.loss_gilbert_elliott is None else self.loss_gilbert_elliott.mean_pct

    @property
    def loss_states(self) -> GilbertElliott | None:
        """The loss model as a chain of two states; None: each packet is lost independently.

        A correlated loss is the chain with that share lost and that correlation between neighbours.
        (netem's own correlation averages uniform draws and changes the share: 10 % with a
        correlation of 50 % loses 5 %.)
        """
        if self.loss_gilbert_elliott is not None or not self.loss_correlation_pct:
            return self.loss_gilbert_elliott
        leaving, lost = 1 - self.loss_correlation_pct / 100, self.loss_pct / 100
        return GilbertElliott(
            good_to_bad_pct=100 * leaving * lost, bad_to_good_pct=100 * leaving * (1 - lost)
        )

    @property
    def delay_samples(self) -> tuple[int, ...]:
        """The shape of the jitter: a packet's delay is delay_ms + jitter_ms * sample / 8192."""
        if self.distribution == "samples":
            return distributions.shape_of_samples(self.samples_ms).samples
        return (0,) if self.distribution == "none" else distributions.table(self.distribution)

    @property
    def sd_ms(self) -> float:
        """Standard deviation that the delay should show."""
        return statistics.pstdev(self.expected_delays_ms) if self.jitter_ms or self.reorder_pct else 0.0

    @property
    def mean_ms(self) -> float:
        """Mean of the delay, with what leaves at once and what tables cut off."""
        return statistics.fmean(self.expected_delays_ms)

    @property
    def kurtosis(self) -> float:
        """Fourth moment over the squared variance: how much a sample's deviation varies; 3 if normal."""
        mean_ms, variance = self.mean_ms, statistics.pvariance(self.expected_delays_ms)
        if not variance:
            return 3.0
        return statistics.fmean((d - mean_ms) ** 4 for d in self.expected_delays_ms) / variance**2

    @property
    def missing_pct(self) -> float:
        """The share of datagrams that never reaches an application (a corrupted one fails its checksum)."""
        return 100 - (100 - self.mean_loss_pct) * (100 - self.corrupt_pct) / 100

    @functools.cached_property
    def expected_delays_ms(self) -> tuple[float, ...]:
        """Delays at equal steps of probability, ascending: what a large sample should look like."""
        unit_ms = self.jitter_ms / distributions.SCALE
        delays = [max(0.0, self.delay_ms + unit_ms * sample) for sample in self.delay_samples]
        if self.reorder_pct:
            # As many steps again at no delay as makes their share right.
            delays = delays * max(1, 4096 // len(delays))
            at_once = self.reorder_pct / 100
            kept = round(len(delays) * (1 - at_once))
            delays = [0.0] * (len(delays) - kept) + random.Random(0).sample(delays, kept)
        return tuple(sorted(delays))

    @property
    def queue_limit_bytes(self) -> int:
        """Bandwidth x (delay + 4 sigma), plus 100 ms of queue where there is a rate.

        With less, the queue would drop packets that are merely under way, which is the
        classic mistake of netem's default of 1000 packets.
        """
        in_flight_ms = self.delay_ms + 4 * self.jitter_ms
        if self.rate_mbit is None:
            return max(1000 * FRAME_BYTES, math.ceil(_UNSHAPED_MBIT * 1e3 / 8 * in_flight_ms))
        queue_bytes = math.ceil(self.rate_mbit * 1e3 / 8 * (in_flight_ms + _QUEUE_MS))
        return self.burst_bytes + max(queue_bytes, 32 * FRAME_BYTES)


def profile_from_dict(data: Mapping[str, Any]) -> Profile:
    """A profile as `dataclasses.asdict` and JSON leave it.

    :raises (KeyError, TypeError, ValueError): it is none.
    """
    values = dict(data)
    if values["loss_gilbert_elliott"] is not None:
        values["loss_gilbert_elliott"] = GilbertElliott(**values["loss_gilbert_elliott"])
    values["samples_ms"] = tuple(values["samples_ms"])
    if values["samples_ms"]:
        values |= {"delay_ms": 0.0, "jitter_ms": 0.0}  # which follow from the samples
    if (schedule := values.get("schedule")) is not None:
        steps = tuple(Step(**step) for step in schedule["steps"])
        values["schedule"] = Schedule(steps=steps, period_ns=schedule["period_ns"])
    return Profile(**values)


def profile_names() -> list[str]:
    """The profiles that come with ztprobe, sorted.

    :raises PreflightError: there are none, so something is wrong with this installation.
    """
    if not (found := sorted(path.stem for path in NETPROFILES_DIR.glob("*.yaml"))):
        raise PreflightError(
            f"{NETPROFILES_DIR} holds no profiles: this installation is incomplete, install it again"
        )
    return found


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile by its name, or from a YAML file (anything with a ``/`` or ending in ``.yaml``).

    :raises UsageError: no such profile, or the file says something that cannot be done;
        names file, line, key and what was expected.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return _load(Path(text))
    if text not in profile_names():
        valid = ", ".join(profile_names())
        raise UsageError(f"unknown network profile {text!r}; valid ones: {valid}, or a YAML file's path")
    return _load(NETPROFILES_DIR / f"{text}.yaml")


def _load(path: Path) -> Profile:
    # Whoever is only given profiles, as an agent is, needs no readers and schemas (8 MiB).
    from ztprobe.profile.file import read_profile_file

    file = read_profile_file(path)
    values = file.values
    if (model := values.get("loss_gilbert_elliott")) is not None:
        values["loss_gilbert_elliott"] = GilbertElliott(**{k: float(v) for k, v in model.items()})
    try:
        return Profile(**values)
    except ValueError as error:
        raise UsageError(f"{file.place(str(error).partition(':')[0])}: {error}") from error
