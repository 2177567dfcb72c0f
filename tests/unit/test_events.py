"""The numpy types are the C structs: same names, same order, no padding that C would add."""

import ctypes
import re

import numpy as np
import pytest

from ztprobe.events import tables
from ztprobe.paths import EBPF_DIR

_C_TYPES = {"u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64}
_TEXT = re.sub(r"/\*.*?\*/", "", (EBPF_DIR / "events.h").read_text(), flags=re.DOTALL)


def _c_struct(name: str) -> type[ctypes.Structure]:
    body = re.search(rf"struct {name} \{{(.*?)\}};", _TEXT, re.DOTALL)
    assert body is not None
    fields = []
    for line in body.group(1).split(";"):
        if not (words := line.split()):
            continue
        kind, member = words
        array = re.match(r"(\w+)\[(\d+)\]", member)
        if array:
            fields.append((array.group(1), _C_TYPES[kind] * int(array.group(2))))
        else:
            fields.append((member, _C_TYPES[kind]))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.parametrize("name", ["burst", "packet", "point"])
def test_types_agree_with_the_c_structs(name: str) -> None:
    struct, dtype = _c_struct(name), tables.dtype_of(name)
    assert list(dtype.names or ()) == [field[0] for field in struct._fields_]
    assert dtype.itemsize == ctypes.sizeof(struct)
    for member in dtype.names or ():
        assert dtype.fields is not None
        assert dtype.fields[member][1] == getattr(struct, member).offset


@pytest.mark.parametrize(
    ("enum", "cls"),
    [
        ("hook", tables.Hook),
        ("direction", tables.Direction),
        ("packet_kind", tables.PacketKind),
        ("point_kind", tables.PointKind),
    ],
)
def test_enums_agree(enum: str, cls: type) -> None:
    body = re.search(rf"enum {enum} \{{(.*?)\}};", _TEXT, re.DOTALL)
    assert body is not None
    values = {
        name.split("_", 1)[1]: int(value) for name, value in re.findall(r"(\w+) = (\d+)", body.group(1))
    }
    assert {member.name: member.value for member in cls} == values


def test_table_splits_ports_and_names_pods() -> None:
    rows = np.zeros(2, tables.dtype_of("point"))
    rows["ts_ns"] = (20, 10)
    rows["ports"] = 40000 << 16 | 50051
    rows["netns"] = (7, 8)
    table = tables.table_of("point", rows, {7: "fl-server"})
    assert list(table["ts_ns"]) == [10, 20]
    assert list(table["pod"]) == ["", "fl-server"]
    assert set(table["lport"]) == {40000} and set(table["rport"]) == {50051}
    assert table["ts_ns"].dtype == np.int64


def test_addresses_are_network_order() -> None:
    assert tables.address_number("10.244.0.3") == int.from_bytes(bytes([10, 244, 0, 3]), "little")
