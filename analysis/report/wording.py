"""Names, numbers and rows as people meet them, the same in table, page, figures and diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = (
    "CPU_ROW_NAMES",
    "NOTHING",
    "PART_NAMES",
    "SUB_ROW_NAMES",
    "emulation_pairs",
    "human_percent",
    "human_time",
    "interval_words",
    "listed",
    "plural",
    "schedule_words",
    "setting_pairs",
    "shown_components",
    "shown_sub_rows",
    "tls_words",
)

NOTHING = "–"  # where a value would stand

PART_NAMES = {
    "server": "server",
    "compute": "compute",
    "dns": "DNS",
    "tcp_handshake": "TCP handshake",
    "tls_handshake": "TLS handshake",
    "http2_setup": "HTTP/2 set-up",
    "proxy": "proxy",
    "propagation": "propagation",
    "transmission": "transmission",
    "retransmission": "retransmission",
    "policy_drop": "policy drop",
    "store_and_forward": "store and forward",
    "poll_wait": "poll wait",
    "task_start": "task start",
    "client_and_return_path": "client and return path",
    "residual": "residual",
}

# Shown even when nothing was measured: their absence would read as "not looked at".
_ALWAYS_SHOWN = ("server", "compute", "propagation", "transmission")
_NOT_A_VALUE = ("name", "description", "source")
_UNITS = {"ns": "ns", "us": "µs", "ms": "ms", "s": "s", "pct": "%", "mbit": "Mbit/s", "bytes": "bytes"}

CPU_ROW_NAMES = {"emulator": "emulator", "agent": "agent with probes", "probes": "of that, probes"}

SUB_ROW_NAMES = {
    "send_preparation": "send preparation",
    "behind_other_clients": "behind other clients",
    "aggregation": "aggregation",
    "evaluation": "evaluation",
    "cpu_wait": "waiting for a CPU",
    "rate_or_queue": "rate or queue",
    "congestion_window": "congestion window",
    "receive_or_http2_window": "receive or HTTP/2 window",
    "shared_egress": "shared egress",
    "jitter": "jitter",
    "imports": "loading code",
}


def human_time(seconds: float | None, *, signed: bool = False) -> str:
    """Three digits with a unit: ``12.3 s``, ``1.90 s``, ``160 ms``, ``0.42 ms``; an en dash for None."""
    if seconds is None:
        return NOTHING
    size = abs(seconds)
    if size >= 0.9995:
        digits, unit, value = (2 if size < 9.995 else 1 if size < 99.95 else 0), "s", size
    else:
        value, unit = size * 1e3, "ms"
        digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return f"0 {unit}"
    sign = "−" if seconds < 0 else "+" if signed else ""
    return f"{sign}{text} {unit}"


def interval_words(entry: Mapping[str, Any]) -> str:
    """The interval of one of overhead's entries, or why there is none: ``+0.89 s … +3.60 s``."""
    if entry.get("withheld"):
        return f"withheld: {entry['withheld']}"
    if entry["ci95"] is None:
        return "too few rounds"
    return " … ".join(human_time(edge, signed=True) for edge in entry["ci95"])


def human_percent(share: float | None) -> str:
    """A share as per cent with one digit; an en dash for None."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def plural(count: int, word: str) -> str:
    """``1 event``, ``2 events``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listed(words: Sequence[str], most: int | None = None) -> str:
    """``a``, ``a and b``, ``a, b and c``; of more than ``most``: ``a, b, c and 7 more``."""
    if most is not None and len(words) > most:
        return f"{', '.join(words[: most - 1])} and {len(words) - most + 1} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def shown_components(report: Mapping[str, Any]) -> list[str]:
    """The components worth a row, in path order: those with time in this run or in its baseline."""
    baseline = report["overhead"]["baseline_components"] if report["overhead"] else {}
    return [
        name
        for name, part in report["components"].items()
        if name in _ALWAYS_SHOWN or part["mean_s"] or baseline.get(name, {}).get("mean_s")
    ]


def shown_sub_rows(report: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sub-rows of component ``name`` in which any time was spent."""
    for row, part in report["sub_rows"].get(name, {}).items():
        if part["mean_s"]:
            yield row, part


def emulation_pairs(emulation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, requested, measured), with units, of every value that either side has (and is not zero)."""
    sides = [
        emulation[key] if isinstance(emulation[key], Mapping) else {} for key in ("requested", "measured")
    ]
    pairs = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        if key in _NOT_A_VALUE or not any(side.get(key) for side in sides):
            continue
        name, unit = _name_and_unit(key)
        requested, measured = (_with_unit(side.get(key), unit) for side in sides)
        pairs.append((name, requested, measured))
    return pairs


def setting_pairs(*groups: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value with its unit) of every recorded setting that says something, each once."""
    pairs: dict[tuple[str, str], None] = {}  # a set that keeps its order
    for key, value in (item for group in groups for item in group.items()):
        if value in ("", [], {}):
            continue
        name, unit = _name_and_unit(key)
        if unit and isinstance(value, Mapping):
            pairs[f"{name} ({unit})", _setting_words(value)] = None
        else:
            number = f"{value:.4g}" if isinstance(value, float) else _setting_words(value)
            pairs[name, f"{number} {unit}".rstrip()] = None
    return list(pairs)


def _setting_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting_words(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value is None else str(value)


def _name_and_unit(key: str) -> tuple[str, str]:
    stem, _, last = key.rpartition("_")
    known = bool(stem) and last in _UNITS
    return (stem if known else key).replace("_", " "), _UNITS[last] if known else ""


def schedule_words(emulation: Mapping[str, Any]) -> str:
    """``12 changes (8 steps of 60 s, again and again): delay 15 … 60 ms``; empty without a schedule."""
    schedule = emulation.get("schedule")
    if not schedule:
        return ""
    steps = schedule["steps"]
    turns = f", again after {schedule['period_s']:g} s" if schedule["repeat"] else ""
    came = [change for change in schedule["changes"] if change["at_ns"] is not None]
    ranges = []
    for key, name, unit in (
        ("delay_ms", "delay", "ms"),
        ("loss_pct", "loss", "%"),
        ("rate_mbit", "rate", "Mbit/s"),
    ):
        known = [step[key] for step in steps if step[key] is not None]
        if any(known):
            low, high = min(known), max(known)
            ranges.append(
                f"{name} {low:.4g} {unit}" if low == high else f"{name} {low:.4g} … {high:.4g} {unit}"
            )
    return f"{plural(len(came) - 1, 'change')} over {plural(len(steps), 'step')}{turns}: {', '.join(ranges)}"


def tls_words(client: Mapping[str, Any]) -> str:
    """``TLS 1.3, mutual: yes`` of one client's connection; empty without TLS."""
    if not client["tls_version"]:
        return ""
    mutual = client["mutual"] or "not seen"
    return f"TLS {client['tls_version']}, mutual: {mutual}{', resumed' if client['resumed'] else ''}"


def _with_unit(value: Any, unit: str) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_with_unit(one, unit)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_with_unit(one, unit) for one in value)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".rstrip()
