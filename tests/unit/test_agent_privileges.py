"""What an agent says of capabilities that it does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztprobe.agent.service.privileges import lacking

_ALL = 0x1FF_FFFF_FFFF


@pytest.mark.parametrize(
    ("absent", "kernel", "said"),
    [
        ((), "5.4.0", []),
        ((34,), "6.1.0", ["CAP_SYSLOG"]),
        ((24,), "5.10.0-32-amd64", ["CAP_SYS_RESOURCE"]),
        ((24,), "5.11.0", []),
        ((24, 39), "6.18.44", ["CAP_BPF"]),
    ],
)
def test_what_is_said_to_be_lost(
    tmp_path: Path, absent: tuple[int, ...], kernel: str, said: list[str]
) -> None:
    effective = _ALL
    for number in absent:
        effective &= ~(1 << number)
    status = tmp_path / "status"
    status.write_text(f"Name:\tagent\nCapEff:\t{effective:016x}\nCapBnd:\t{_ALL:016x}\n")
    lines = lacking(status, kernel)
    assert [line.split(":")[0] for line in lines] == [f"without {name}" for name in said]
