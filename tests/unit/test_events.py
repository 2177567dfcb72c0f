"""The numpy types are the C structs, and tables say by name what the kernel says by number."""

from __future__ import annotations

import ctypes
import ipaddress
import json
import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztprobe.events import heads, kinds, layout, tables
from ztprobe.events.documentation import events_page
from ztprobe.paths import EBPF_DIR, REPO_DIR
from ztprobe.probes.kallsyms import Kallsyms
from ztprobe.rundir.store import create_run_dir

_C_TYPES = {"u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64}
_TEXT = re.sub(r"/\*.*?\*/", "", (EBPF_DIR / "events.h").read_text(), flags=re.DOTALL)
_PREFIX = ["ts_ns", "connection", "netns", "tid", "tgid", "kind"]


def _c_struct(name: str) -> type[ctypes.Structure]:
    """Read independently of the package: the macro's body in place of its name."""
    macro = re.search(r"#define EVENT_PREFIX(.*?[^\\])\n", _TEXT, re.DOTALL)
    body = re.search(rf"struct {name} \{{(.*?)\}};", _TEXT, re.DOTALL)
    assert macro is not None and body is not None
    fields = []
    for line in body[1].replace("EVENT_PREFIX", macro[1].replace("\\", "")).split(";"):
        if not (words := line.split()):
            continue
        kind, member = words
        array = re.match(r"(\w+)\[(\d+)\]", member)
        if array:
            fields.append((array.group(1), _C_TYPES[kind] * int(array.group(2))))
        else:
            fields.append((member, _C_TYPES[kind]))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


STRUCTS = re.findall(r"^struct (\w+) \{", _TEXT, re.MULTILINE)


@pytest.mark.parametrize("name", STRUCTS)
def test_types_agree_with_the_c_structs(name: str) -> None:
    c_struct, dtype = _c_struct(name), layout.dtype_of(name)
    assert list(dtype.names or ()) == [field[0] for field in c_struct._fields_]
    assert list(dtype.names or ())[: len(_PREFIX)] == _PREFIX
    assert dtype.itemsize == ctypes.sizeof(c_struct)
    for member in dtype.names or ():
        assert dtype.fields is not None
        assert dtype.fields[member][1] == getattr(c_struct, member).offset


def test_records_of_a_ring_have_one_size() -> None:
    for ring, names in tables.RINGS.items():
        assert len({layout.dtype_of(tables.TABLES[name].struct or "").itemsize for name in names}) == 1, ring


def test_every_kind_has_its_table_and_every_struct_is_read() -> None:
    assert sorted(kind for table in tables.TABLES.values() for kind in table.kinds) == list(kinds.EventKind)
    assert {table.struct for table in tables.TABLES.values() if table.struct} == set(STRUCTS)


def test_enums_agree() -> None:
    found = layout.enums()
    assert {member.name.lower(): int(member) for member in kinds.EventKind} == dict(found["event_kind"])
    assert set(found["hook"]) == set(kinds.Hook) and set(found["direction"]) == set(kinds.Direction)


def test_every_column_is_described() -> None:
    for table in tables.TABLES.values():
        assert table.description and table.order in [column.name for column in table.columns]
        for column in table.columns:
            assert column.description and "enum" not in column.description.split()[:1], (
                table.name,
                column.name,
            )


NAMES = tables.Names(
    pods={7: "fl-server"},
    processes={42: "fl-server/app"},
    reasons={3: "NO_SOCKET"},
    symbol={9: "udp_rcv"}.__getitem__,
)


def test_a_rings_records_come_apart_by_kind() -> None:
    rows = np.zeros(3, layout.dtype_of("gap"))
    rows["kind"] = (kinds.EventKind.GAP, kinds.EventKind.CPU_WAIT, kinds.EventKind.GAP)
    rows["ts_ns"], rows["since_ns"], rows["netns"] = (20, 15, 10), (11, 12, 9), (7, 0, 8)
    rows["tgid"], rows["hook"], rows["direction"] = (0, 42, 0), (1, 0, 2), (1, 0, 0)
    found = tables.decode("points", rows, NAMES)
    assert found["gaps"][["ts_ns", "since_ns", "pod", "hook", "direction"]].to_numpy().tolist() == [
        [10, 9, "", "lo", "tx"],
        [20, 11, "fl-server", "eth", "rx"],
    ]
    assert found["gaps"]["ts_ns"].dtype == np.int64
    assert found["cpu_waits"][["process", "since_ns", "ts_ns"]].to_numpy().tolist() == [
        ["fl-server/app", 12, 15]
    ]
    assert found["retransmissions"].empty and list(found["retransmissions"]) == [
        column.name for column in tables.TABLES["retransmissions"].columns
    ]


def _ipv4(protocol: int, transport: bytes, payload: int) -> bytes:
    total = 20 + len(transport) + payload
    return (
        struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, total, 0, 0, 64, protocol, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])
        )
        + transport
    )


def test_a_drop_is_read_off_its_head() -> None:
    rows = np.zeros(1, layout.dtype_of("drop"))
    tcp = struct.pack(">HHIIBBHHH", 40_000, 50_051, 99, 0, 8 << 4, 0x12, 0, 0, 0) + bytes(12)
    head = _ipv4(6, tcp, 1448)
    rows["kind"], rows["reason"], rows["location"], rows["head_bytes"] = kinds.EventKind.DROP, 3, 9, len(head)
    rows["head"] = np.void((head + b"what lay behind it").ljust(128, b"?"))
    found = tables.decode("drops", rows, NAMES)["drops"].iloc[0].to_dict()
    assert found | {
        "reason": "NO_SOCKET", "location": "udp_rcv", "protocol": "tcp", "source": "10.0.0.2",
        "target": "10.0.0.3", "source_port": 40_000, "target_port": 50_051, "tcp_flags": 0x12,
        "seq": 99, "payload_bytes": 1448, "head": head,
    } == found  # fmt: skip


def test_heads_of_other_protocols() -> None:
    assert heads.read_head(_ipv4(17, struct.pack(">HHHH", 5, 53, 0, 0), 30))[:4] == (
        *("udp", "10.0.0.2", "10.0.0.3", 5),
    )
    assert heads.read_head(_ipv4(1, bytes(8), 7)).payload_bytes == 7
    six = struct.pack(">IHBB", 6 << 28, 20 + 5, 6, 64) + ipaddress.ip_address("fd00::1").packed * 2
    six += struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 2, 0, 0, 0)
    assert heads.read_head(six) == heads.Head("tcp", "fd00::1", "fd00::1", 1, 2, 2, 3, 5)


@given(st.binary(max_size=128))
def test_a_head_may_hold_anything(head: bytes) -> None:
    assert heads.read_head(head).payload_bytes >= 0


@given(st.ip_addresses())
def test_addresses_read_as_people_write_them(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    assert heads.address_text(heads.address_bytes(str(address))) == str(mapped or address)


def test_a_saved_table_says_what_it_holds(tmp_path: Path) -> None:
    import pyarrow.parquet

    run_dir = create_run_dir(tmp_path / "run")
    for name, table in tables.empty_tables().items():
        run_dir.write_events(name, table)
        schema = pyarrow.parquet.read_schema(tmp_path / "run" / "events" / f"{name}.parquet")
        assert schema.metadata[b"description"].decode() == tables.TABLES[name].description
        said = json.loads(schema.metadata[b"columns"])
        assert said == {column.name: column.description for column in tables.TABLES[name].columns}
        assert list(said) == schema.names


def test_the_page_on_events_is_what_the_source_says() -> None:
    page = (REPO_DIR / "docs" / "events.md").read_text()
    assert page == events_page(), "python -m ztprobe.events.documentation > docs/events.md"


def test_pairs_name_the_proxys_pod() -> None:
    table = tables.pairs_table({(2, 1): 5, (1, 2): 7}, {1: "fl-server", 2: "fl-server"})
    assert table.to_numpy().tolist() == [["fl-server", 5, 2, 1], ["fl-server", 7, 1, 2]]
    assert isinstance(tables.pairs_table({}, {}), pd.DataFrame)


def test_addresses_in_the_kernel_get_their_functions_name(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text("0000000000001000 T first\n0000000000001800 d data\n0000000000002000 t second [module]\n")
    names = Kallsyms(path)
    assert [names.name_of(at) for at in (0, 0xFFF, 0x1000, 0x1FFF, 0x2001)] == [
        "",
        "",
        "first",
        "first",
        "second",
    ]
    path.write_text("0000000000000000 T hidden\n")
    assert Kallsyms(path).name_of(0x1000) == ""
