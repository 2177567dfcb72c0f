"""Compiled programs as data: kept, found again, linked with maps."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ztprobe.errors import PreflightError
from ztprobe.probes import compiler
from ztprobe.probes.compiler import CompiledPrograms, MapPlan, compile_programs
from ztprobe.probes.loader import _ctype

PLAN = MapPlan(
    name="pods",
    kind=1,
    key_bytes=4,
    value_bytes=4,
    entries=8,
    flags=0,
    key_type="unsigned int",
    value_type="unsigned int",
)


def load_map(place: int) -> bytes:
    """ldimm64 r1, map[place]"""
    return bytes((0x18, 0x11, 0, 0)) + place.to_bytes(4, "little") + bytes(8)


def load_number(number: int) -> bytes:
    """ldimm64 r1, number, which may look like anything"""
    low, high = number & 0xFFFFFFFF, number >> 32
    first = bytes((0x18, 0x01, 0, 0)) + low.to_bytes(4, "little")
    return first + bytes(4) + high.to_bytes(4, "little")


EXIT = bytes((0x95, 0, 0, 0, 0, 0, 0, 0))
COMPILED = CompiledPrograms(
    maps=(PLAN, PLAN), programs={"one": load_map(1) + load_number(0x1118 << 32 | 1) + load_map(0) + EXIT}
)


def test_only_loads_of_maps_get_descriptors() -> None:
    linked = COMPILED.linked("one", [70, 71])
    assert linked == load_map(71) + load_number(0x1118 << 32 | 1) + load_map(70) + EXIT


def test_what_is_kept_comes_back() -> None:
    assert CompiledPrograms.from_json(COMPILED.as_json()) == COMPILED


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compiler, "COMPILED_DIR", tmp_path / "compiled")
    return tmp_path / "compiled"


def compile_as(monkeypatch: pytest.MonkeyPatch, out: str, said: str = "") -> list[Any]:
    """The compiler's process gives this. :returns: filled with a call's input for each call."""
    calls: list[Any] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        calls.append(how["input"])
        return subprocess.CompletedProcess(command, 0 if out else 3, out, said)

    monkeypatch.setattr(compiler.subprocess, "run", run)
    return calls


def test_the_same_text_and_flags_are_compiled_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compile_as(monkeypatch, COMPILED.as_json())
    for text, flags in (("a", ["-DX=1"]), ("a", ["-DX=1"]), ("a", ["-DX=2"]), ("b", ["-DX=1"])):
        assert compile_programs(text, flags, []) == COMPILED
    assert len(calls) == 3
    assert kept.stat().st_mode & 0o777 == 0o700


def test_a_kept_file_that_is_damaged_is_made_again(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compile_as(monkeypatch, COMPILED.as_json())
    compile_programs("a", [], [])
    (file,) = kept.iterdir()
    file.write_text(file.read_text()[:100])
    assert compile_programs("a", [], []) == COMPILED
    assert compile_programs("a", [], []) == COMPILED
    assert len(calls) == 2


def test_nothing_is_taken_from_where_others_can_write(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compile_as(monkeypatch, COMPILED.as_json())
    kept.mkdir()
    os.chmod(kept, 0o777)
    compile_programs("a", [], [])
    compile_programs("a", [], [])
    assert len(calls) == 2
    assert list(kept.iterdir()) == []


def test_few_are_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_as(monkeypatch, COMPILED.as_json())
    for number in range(12):
        compile_programs(str(number), [], [])
    assert len(list(kept.iterdir())) == 8


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ztprobe: error: the BCC Python bindings are missing\n", "the BCC Python bindings are missing"),
        ("note\nmaps.h:3:1: error: unknown type name 'u65'\n1 error\n", "maps.h:3:1: error: unknown type"),
        ("", "no reason given"),
    ],
)
def test_what_the_compiler_says_is_passed_on(
    kept: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    compile_as(monkeypatch, "", said)
    with pytest.raises(PreflightError, match=f"^{expected}"):
        compile_programs("a", [], [])
    assert not kept.exists()


def test_types_are_read_as_bcc_describes_them() -> None:
    key = ["conn_key", [["netns", "unsigned int"], ["laddr", "unsigned int"]], "struct"]
    conn = [
        "conn",
        [["key", key], ["seen", "unsigned long long", [3]], ["", [["a", "char"]], "union"]],
        "struct",
    ]
    made = _ctype(conn)
    assert ctypes.sizeof(made) == 40
    assert [name for name, *_ in made._fields_] == ["key", "seen", "__anon0"]
    value = made()
    value.key.laddr, value.seen[2], value.a = 5, 7, b"x"
    assert (value.key.laddr, value.seen[2], value.a) == (5, 7, b"x")


def test_an_agent_loads_no_compiler_and_no_pandas() -> None:
    program = (
        "import sys, ztprobe.agent.remote; print({'bcc', 'pandas', 'matplotlib', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
