"""What the delay line's process is asked to do, as it travels: a JSON file, and changes as lines of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ztprobe.emulation.delay_line.impairment import Condition

__all__ = ("Config", "change_to_json", "from_json", "to_json")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the parent asks for; travels as JSON."""

    netns: str
    pods: dict[str, int]  # pod name -> queue number
    condition: Condition
    whole_gso: bool  # of every condition to come
    max_packets: int  # per queue
    seed: int
    stats_path: str
    parent_pid: int


def to_json(config: Config) -> str:
    """The configuration file's text."""
    return json.dumps(asdict(config), indent=1)


def change_to_json(condition: Condition) -> str:
    """What to write to the process, as one line."""
    return json.dumps(asdict(condition))


def from_json(text: str) -> Config:
    """What `to_json` wrote."""
    asked = json.loads(text)
    return Config(**asked | {"condition": Condition(**asked["condition"])})
