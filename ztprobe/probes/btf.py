"""Struct offsets and enum names of the running kernel, from its own type information (BTF).

Kernel headers are neither needed nor trusted: what `/sys/kernel/btf/vmlinux` says is
what runs. libbpf (Debian's libbpf1, which iproute2 needs anyway) parses it in
milliseconds; we only walk members by name, through anonymous structs and unions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ztprobe.errors import PreflightError

__all__ = ("VMLINUX_BTF", "Btf")

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")

# include/uapi/linux/btf.h
_KIND_STRUCT, _KIND_UNION, _KIND_ENUM, _KIND_TYPEDEF, _KIND_FUNCTION = 4, 5, 6, 8, 12
_QUALIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type_tag


class _Type(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32))


class _Member(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class _Enum(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("value", ctypes.c_int32))


class Btf:
    """The kernel's types.

    :raises PreflightError: the kernel has no BTF, or libbpf is not installed.
    """

    def __init__(self, path: Path = VMLINUX_BTF) -> None:
        if not path.exists():
            raise PreflightError(
                f"no kernel type information: {path} does not exist; "
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution kernel is)"
            )
        try:
            lib = ctypes.CDLL("libbpf.so.1")
        except OSError as error:
            raise PreflightError(f"libbpf is missing ({error}); apt-get install libbpf1") from error
        lib.btf__parse.restype = ctypes.c_void_p
        lib.btf__parse.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
        lib.btf__type_by_id.restype = ctypes.POINTER(_Type)
        lib.btf__type_by_id.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        lib.btf__find_by_name_kind.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
        lib.btf__name_by_offset.restype = ctypes.c_char_p
        lib.btf__name_by_offset.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        lib.btf__free.argtypes = (ctypes.c_void_p,)
        self._lib = lib
        self._btf = lib.btf__parse(str(path).encode(), None)
        if not self._btf:
            raise PreflightError(
                f"cannot parse {path}: libbpf does not accept it; is the kernel newer than libbpf?"
            )

    def close(self) -> None:
        """Free the parsed types."""
        if self._btf:
            self._lib.btf__free(self._btf)
            self._btf = None

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, name: str) -> bool:
        """Whether a struct or typedef of that name exists (``btf_trace_X`` is tracepoint X)."""
        return any(self._find(name, kind) > 0 for kind in (_KIND_STRUCT, _KIND_TYPEDEF))

    def function_id(self, name: str) -> int:
        """Type id of a function of the kernel; 0: it has none of that name."""
        return max(0, self._find(name, _KIND_FUNCTION))

    def struct_id(self, name: str) -> int:
        """Type id of a struct; 0: there is none of that name."""
        return max(0, self._find(name, _KIND_STRUCT))

    def tracepoint_id(self, name: str) -> int:
        """Type id of ``btf_trace_NAME``. :raises KeyError: this kernel has no such tracepoint."""
        type_id = self._find(f"btf_trace_{name}", _KIND_TYPEDEF)
        if type_id <= 0:
            raise KeyError(name)
        return type_id

    def tracepoint_arguments(self, name: str) -> int:
        """How many arguments a tracepoint's programs get. :raises KeyError: no such tracepoint."""
        pointer = self._type(self.tracepoint_id(name))
        for _ in range(2):  # typedef -> pointer -> function
            pointer = self._type(pointer.contents.size_or_type)
        return int(pointer.contents.info & 0xFFFF) - 1  # without the tracepoint's own data

    def offset(self, path: str) -> int:
        """Byte offset of ``struct.member[.member...]``.

        :raises KeyError: this kernel has no such member.
        """
        struct, *members = path.split(".")
        type_id = self._find(struct, _KIND_STRUCT)
        if type_id <= 0:
            raise KeyError(path)
        total_bytes = 0
        for member in members:
            found = self._member(type_id, member)
            if found is None:
                raise KeyError(path)
            bits, type_id = found
            total_bytes += bits // 8
        return total_bytes

    def size(self, struct: str) -> int:
        """Size of a struct in bytes. :raises KeyError: no such struct."""
        type_id = self._find(struct, _KIND_STRUCT)
        if type_id <= 0:
            raise KeyError(struct)
        return int(self._type(type_id).contents.size_or_type)

    def enum(self, name: str) -> dict[int, str]:
        """Value -> enumerator name (first name wins); empty where the kernel has no such enum."""
        type_id = self._find(name, _KIND_ENUM)
        if type_id <= 0:
            return {}
        pointer = self._type(type_id)
        names: dict[int, str] = {}
        for entry in self._tail(pointer, _Enum):
            names.setdefault(entry.value, self._name(entry.name_off))
        return names

    def drop_reasons(self) -> dict[int, str]:
        """The kernel's reasons for dropping a packet, without their common prefix."""
        return {k: v.removeprefix("SKB_DROP_REASON_") for k, v in self.enum("skb_drop_reason").items()}

    def _find(self, name: str, kind: int) -> int:
        return int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind))

    def _type(self, type_id: int) -> Any:
        return self._lib.btf__type_by_id(self._btf, type_id)

    def _name(self, offset: int) -> str:
        return bytes(self._lib.btf__name_by_offset(self._btf, offset)).decode()

    @staticmethod
    def _tail(pointer: Any, entry: Any) -> Iterator[Any]:
        # Members or enumerators stand behind the type's 12 bytes; vlen is info's low 16 bits.
        start = ctypes.addressof(pointer.contents) + ctypes.sizeof(_Type)
        yield from (entry * (pointer.contents.info & 0xFFFF)).from_address(start)

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """(bit offset, type) of a member, searched through anonymous members and qualifiers."""
        pointer = self._type(type_id)
        while (kind := pointer.contents.info >> 24 & 0x1F) in _QUALIFIERS:
            pointer = self._type(pointer.contents.size_or_type)
        if kind not in (_KIND_STRUCT, _KIND_UNION):
            return None
        has_bitfields = pointer.contents.info >> 31
        for member in self._tail(pointer, _Member):
            bits = member.offset & 0xFFFFFF if has_bitfields else member.offset
            found_name = self._name(member.name_off)
            if found_name == name:
                return bits, member.type
            if not found_name and (inner := self._member(member.type, name)) is not None:
                return bits + inner[0], inner[1]
        return None
