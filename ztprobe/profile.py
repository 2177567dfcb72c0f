"""Network profiles: what a path is asked to do to packets, one YAML file each.

A profile acts on a pod's egress, so a request and its answer each meet it once.
Every key carries its unit, every number names its source, and
``netprofiles/schema.json`` says what a key may hold; the schema's ``description``
of a key is what an error message prints after "expected". A `Profile` cannot
exist with values that contradict each other, so nothing downstream checks again.

What this module does not do: change a link (``ztprobe.emulation``) or compare a
measurement with a profile (``ztprobe.emulation.measured``).
"""

from __future__ import annotations

import functools
import json
import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from ztprobe import distributions
from ztprobe.errors import UsageError
from ztprobe.paths import NETPROFILES_DIR

__all__ = ("DISTRIBUTIONS", "FRAME_BYTES", "GilbertElliott", "Profile", "load_profile", "profile_names")

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
    queue_limit_packets: int = 0  # 0: computed from the bandwidth-delay product
    source: Mapping[str, str] = field(default_factory=dict)  # key -> where its number comes from

    def __post_init__(self) -> None:
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
        """Nothing is emulated."""
        return not (self.delay_ms or self.per_packet or self.rate_mbit is not None)

    @property
    def per_packet(self) -> bool:
        """Jitter or loss must meet every wire-size packet: offloads have to be off on the pods.

        A GSO packet is up to 64 KB; one loss would take 45 segments, one draw delay them all.
        """
        return self.jitter_ms > 0 or self.mean_loss_pct > 0 or self.mutates or self.reorder_pct > 0

    @property
    def burst_is_default(self) -> bool:
        """The token bucket's depth is the computed one."""
        rate_mbit = self.rate_mbit
        return rate_mbit is None or self.burst_bytes == Profile(name="", rate_mbit=rate_mbit).burst_bytes

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


def profile_names() -> list[str]:
    """The profiles that come with ztprobe, sorted."""
    return sorted(path.stem for path in NETPROFILES_DIR.glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile by its name, or from a YAML file (anything with a ``/`` or ending in ``.yaml``).

    :raises UsageError: no such profile, or the file says something that cannot be done;
        names file, line, key and what was expected.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return _load(Path(text))
    if text not in profile_names():
        raise UsageError(f"unknown network profile {text!r}; valid ones: {', '.join(profile_names())}")
    return _load(NETPROFILES_DIR / f"{text}.yaml")


def _load(path: Path) -> Profile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{path}: cannot read this network profile: {reason}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(error, "problem", None) or "something else"
        raise UsageError(f"{path}:{line}: expected YAML, found: {problem}") from error
    if node is None:
        raise UsageError(f"{path}:1: expected a mapping of profile keys, found an empty file")
    lines = _lines(path, node)
    wrong = sorted(_validator().iter_errors(data), key=lambda e: list(map(str, e.absolute_path)))
    if wrong:
        raise UsageError(_explain(path, lines, wrong[0]))
    floats = ("delay_ms", "jitter_ms", "_pct", "_mbit")
    values: dict[str, Any] = {k: float(v) if k.endswith(floats) else v for k, v in data.items()}
    if (model := values.get("loss_gilbert_elliott")) is not None:
        values["loss_gilbert_elliott"] = GilbertElliott(**{k: float(v) for k, v in model.items()})
    if "samples_file" in values:
        values["samples_ms"] = _read_samples(path, lines[("samples_file",)], values.pop("samples_file"), data)
    elif "samples_ms" in values:
        values["samples_ms"] = tuple(float(value) for value in data["samples_ms"])
    try:
        return Profile(**values)
    except ValueError as error:
        key = str(error).partition(":")[0]
        raise UsageError(f"{path}:{lines.get((key,), 1)}: {error}") from error


def _read_samples(path: Path, line: int, name: str, data: Mapping[str, Any]) -> tuple[float, ...]:
    if "samples_ms" in data:
        raise UsageError(f"{path}:{line}: samples_file: expected no samples_ms beside it")
    file = path.parent / name
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(
            f"{path}:{line}: samples_file: expected a readable file, found {file}: {reason}"
        ) from error
    samples = []
    for number, text in enumerate(texts, 1):
        if not text.strip() or text.startswith("#"):
            continue
        try:
            sample = float(text)
        except ValueError:
            sample = math.nan
        if not 0 <= sample <= 10_000:
            found = repr(text.strip())[:40]
            raise UsageError(f"{file}:{number}: expected a delay in milliseconds, 0 to 10000, found {found}")
        samples.append(sample)
    if len(samples) < 16:
        raise UsageError(f"{file}:1: expected at least 16 measured delays, found {len(samples)}")
    return tuple(samples)


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((NETPROFILES_DIR / "schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _lines(path: Path, node: yaml.Node) -> dict[tuple[str | int, ...], int]:
    # Path of keys -> line of the key, from YAML's own marks; a key given twice is an error,
    # which YAML loaders pass over.
    lines: dict[tuple[str | int, ...], int] = {(): node.start_mark.line + 1}

    def walk(current: yaml.Node, where: tuple[str | int, ...]) -> None:
        if isinstance(current, yaml.MappingNode):
            for key, value in current.value:
                here = (*where, str(key.value))
                if here in lines:
                    line = key.start_mark.line + 1
                    raise UsageError(
                        f"{path}:{line}: {key.value}: expected each key once, found on line {lines[here]} too"
                    )
                lines[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(current, yaml.SequenceNode):
            for index, value in enumerate(current.value):
                lines[(*where, index)] = value.start_mark.line + 1
                walk(value, (*where, index))

    walk(node, ())
    return lines


def _explain(path: Path, lines: dict[tuple[str | int, ...], int], error: Any) -> str:
    where = tuple(error.absolute_path)
    schema = error.schema
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        # A conditional part of the schema only says "required"; the words stand beside the key itself.
        described = _validator().schema
        for step in where:
            described = described["properties"][step]
        expected = described["properties"][missing]["description"]
        key = ".".join(map(str, (*where, missing)))
        return f"{path}:{lines.get(where, 1)}: {key}: expected {expected}, found nothing"
    if error.validator == "additionalProperties":
        known = schema["properties"]
        extra = next(key for key in error.instance if key not in known)
        line = lines.get((*where, str(extra)), 1)
        key = ".".join(map(str, (*where, extra)))
        return f"{path}:{line}: {key}: expected one of the keys {', '.join(known)}"
    key = ".".join(map(str, where)) or "profile"
    found = json.dumps(error.instance, default=str, ensure_ascii=False)
    expected = schema.get("description", error.message)
    return f"{path}:{lines.get(where, 1)}: {key}: expected {expected}, found {found[:60]}"
