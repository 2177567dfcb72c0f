"""From the C of ``ebpf/`` to programs and maps as plain data: the door to BCC.

BCC is a compiler of 200 MB and a second of work; what comes out of it are some 20 kB of instructions.
So it works in a process of its own, which ends with its work, and what it made is kept under
``/run`` until the machine restarts: for the same text and the same flags (which hold every offset and
every number of this kernel) it would be made again just so. `ztprobe.probes.loader` makes programs and maps
of it.

No distribution headers are used: ``ebpf/include`` holds the few things that BCC's prelude asks for.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ztprobe.errors import PreflightError
from ztprobe.paths import COMPILED_DIR, EBPF_DIR, REPO_DIR
from ztprobe.probes.casts import mark_casts
from ztprobe.rundir import files

__all__ = ("CompiledPrograms", "MapPlan", "compile_programs")

_KEPT = 8
_INSTRUCTION_BYTES = 8
_LOAD_64, _MAP_FD = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW; BPF_PSEUDO_MAP_FD as source register


@dataclass(frozen=True, kw_only=True)
class MapPlan:
    """A map to be made."""

    name: str
    kind: int  # enum bpf_map_type
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int
    key_type: Any  # as BCC describes C types
    value_type: Any


@dataclass(frozen=True, kw_only=True)
class CompiledPrograms:
    """Maps, and programs in whose instructions a map's place in the list stands for its descriptor."""

    maps: tuple[MapPlan, ...]
    programs: Mapping[str, bytes]

    def linked(self, program: str, descriptors: Sequence[int]) -> bytes:
        """A program's instructions with the descriptors of the maps that were made."""
        code = bytearray(self.programs[program])
        for at in _map_loads(code):
            place = int.from_bytes(code[at + 4 : at + 8], "little")
            code[at + 4 : at + 8] = descriptors[place].to_bytes(4, "little")
        return bytes(code)

    def as_json(self) -> str:
        """To be kept."""
        programs = {name: base64.b64encode(code).decode() for name, code in self.programs.items()}
        return json.dumps({"maps": [asdict(each) for each in self.maps], "programs": programs})

    @classmethod
    def from_json(cls, text: str) -> CompiledPrograms:
        """:raises (ValueError, KeyError, TypeError): not what `as_json` gives."""
        said = json.loads(text)
        return cls(
            maps=tuple(MapPlan(**each) for each in said["maps"]),
            programs={name: base64.b64decode(code) for name, code in said["programs"].items()},
        )


def compile_programs(text: str, flags: Sequence[str], casts: Sequence[str]) -> CompiledPrograms:
    """Compile, unless the same has been compiled since the machine started.

    :param casts: those of the flags that `ztprobe.probes.casts` gave.
    :raises PreflightError: BCC is missing, or does not accept the text.
    """
    asked = json.dumps([text, [*flags], [*casts]])
    kept = COMPILED_DIR / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        files.checked(COMPILED_DIR)  # what is loaded into the kernel must not come from somebody else
        return CompiledPrograms.from_json(kept.read_text())
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO_DIR,
    )
    try:
        compiled = CompiledPrograms.from_json(done.stdout)
    except (ValueError, KeyError, TypeError) as error:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        # The child's own words, or else the compiler's first complaint.
        said = next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason given")
        raise PreflightError(said.removeprefix("ztprobe: error: ")) from error
    _keep(kept, done.stdout)
    return compiled


def _keep(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # then it is compiled again the next time
        files.write_whole(path, text.encode(), mode=0o600, make=0o700)
        by_age = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in by_age[:-_KEPT]:
            old.unlink()


def _map_loads(code: bytes | bytearray) -> list[int]:
    """Where instructions load a map's descriptor."""
    found, at = [], 0
    while at < len(code):
        wide = code[at] == _LOAD_64
        if wide and code[at + 1] >> 4 == _MAP_FD:
            found.append(at)
        at += 2 * _INSTRUCTION_BYTES if wide else _INSTRUCTION_BYTES
    return found


def _compile(text: str, flags: Sequence[str], casts: list[str]) -> CompiledPrograms:
    # BCC reads the variable when it compiles; its own fallback wants a full header tree.
    os.environ["BCC_KERNEL_SOURCE"] = str(EBPF_DIR / "include")
    try:
        import bcc
    except ImportError as error:
        raise PreflightError(
            f"the BCC Python bindings are missing ({error}); apt-get install python3-bpfcc "
            "and use a virtual environment that sees system packages (make setup)"
        ) from error
    try:
        made = bcc.BPF(text=text.encode(), cflags=[*flags])
    except Exception as error:  # BCC raises bare Exception
        raise PreflightError(f"BCC could not compile the probes ({error}); run `ztprobe doctor`") from error
    lib, module = _declared(bcc.libbcc.lib), made.module
    maps, places = [], {}
    for place in range(lib.bpf_num_tables(module)):
        descriptor = lib.bpf_table_fd_id(module, place)
        places[descriptor] = place
        maps.append(_planned(lib, module, place, descriptor))
    programs = {}
    for number in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, number)
        start, size = lib.bpf_function_start(module, name), lib.bpf_function_size(module, name)
        mark_casts(casts, start, size)
        code = bytearray(ctypes.string_at(start, size))
        for at in _map_loads(code):
            place = places[int.from_bytes(code[at + 4 : at + 8], "little")]
            code[at + 4 : at + 8] = place.to_bytes(4, "little")
        programs[name.decode()] = bytes(code)
    return CompiledPrograms(maps=tuple(maps), programs=programs)


def _declared(lib: Any) -> Any:
    """BCC's own binding, with the types of functions that it does not use itself."""
    for name in ("bpf_table_name", "bpf_table_key_desc_id", "bpf_table_leaf_desc_id"):
        getattr(lib, name).restype = ctypes.c_char_p
        getattr(lib, name).argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    lib.bpf_num_tables.restype, lib.bpf_num_tables.argtypes = ctypes.c_size_t, (ctypes.c_void_p,)
    lib.bpf_table_fd_id.restype = ctypes.c_int
    lib.bpf_table_fd_id.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return lib


def _planned(lib: Any, module: Any, place: int, descriptor: int) -> MapPlan:
    # As the kernel has it: BCC itself changes some of what the text says.
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    made = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return MapPlan(
        name=lib.bpf_table_name(module, place).decode(),
        kind=int(made["map_type"]),
        key_bytes=int(made["key_size"]),
        value_bytes=int(made["value_size"]),
        entries=int(made["max_entries"]),
        flags=int(made["map_flags"], 16),
        key_type=json.loads(lib.bpf_table_key_desc_id(module, place) or b"null"),
        value_type=json.loads(lib.bpf_table_leaf_desc_id(module, place) or b"null"),
    )


def main() -> int:
    """Compile what standard input asks for."""
    text, flags, casts = json.load(sys.stdin)
    try:
        print(_compile(text, flags, casts).as_json())
    except PreflightError as error:
        print(f"ztprobe: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
