"""Compiled programs and maps in the kernel, by libbpf.

Maps are made, programs linked with them and loaded; `KernelMap` reads and writes a map's entries as
ctypes values. Everything goes when the descriptors are closed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

from ztprobe.errors import PreflightError
from ztprobe.probes.compiler import CompiledPrograms, MapPlan

__all__ = ("KernelMap", "Loaded")

_SCALARS: dict[str, Any] = {
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "unsigned char": ctypes.c_ubyte,
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "unsigned long long": ctypes.c_ulonglong,
}
_NAME_BYTES = 15  # BPF_OBJ_NAME_LEN without its end


class _MapOptions(ctypes.Structure):
    # struct bpf_map_create_opts of libbpf's bpf.h; it only ever grows, and `sz` says how much of it we know.
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


def _ctype(described: Any) -> Any:
    """The ctypes type of what BCC describes: a scalar's name, or [NAME, MEMBERS, "struct" | "union"]."""
    if isinstance(described, str):
        return _SCALARS[described]
    name, members, *kind = described
    fields: list[tuple[str, Any]] = []
    anonymous: list[str] = []
    for member in members:
        if len(member) == 2:
            fields.append((member[0], _ctype(member[1])))
        elif isinstance(member[2], list):  # an array
            fields.append((member[0], _ctype(member[1]) * member[2][0]))
        else:  # a struct or union in place, named or not
            inner = member[0] or f"__anon{len(anonymous)}"
            if not member[0]:
                anonymous.append(inner)
            fields.append((inner, _ctype(member)))
    base = ctypes.Union if kind == ["union"] else ctypes.Structure
    body: dict[str, Any] = {"_anonymous_": anonymous, "_fields_": fields}
    if kind == ["struct_packed"]:
        body["_pack_"] = 1
    return type(str(name), (base,), body)


class KernelMap:
    """A map's entries, like a dictionary's; keys and values are of the types `Key` and `Leaf`."""

    def __init__(self, libbpf: Any, fd: int, plan: MapPlan) -> None:
        self._libbpf = libbpf
        self.fd = fd
        self.Key: Any = _ctype(plan.key_type) if plan.key_type else None
        self.Leaf: Any = _ctype(plan.value_type) if plan.value_type else None

    def __getitem__(self, key: Any) -> Any:
        """:raises KeyError: there is no such entry."""
        value = self.Leaf()
        if self._libbpf.bpf_map_lookup_elem(self.fd, ctypes.byref(key), ctypes.byref(value)) < 0:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        """:raises OSError: the kernel refuses, e.g. because the map is full."""
        failed = self._libbpf.bpf_map_update_elem(self.fd, ctypes.byref(key), ctypes.byref(value), 0)
        if failed < 0:
            raise OSError(-failed, os.strerror(-failed))

    def __delitem__(self, key: Any) -> None:
        """:raises KeyError: there is no such entry."""
        if self._libbpf.bpf_map_delete_elem(self.fd, ctypes.byref(key)) < 0:
            raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        key = None
        while True:
            following = self.Key()
            last = None if key is None else ctypes.byref(key)
            if self._libbpf.bpf_map_get_next_key(self.fd, last, ctypes.byref(following)) < 0:
                return
            yield following
            key = following

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All entries; one that is deleted meanwhile is left out."""
        for key in list(self):
            try:
                yield key, self[key]
            except KeyError:
                continue

    def values(self) -> Iterator[Any]:
        """The values of all entries."""
        for _, value in self.items():
            yield value

    def clear(self) -> None:
        """Delete all entries."""
        for key in list(self):
            self._libbpf.bpf_map_delete_elem(self.fd, ctypes.byref(key))


class Loaded:
    """The maps of `CompiledPrograms` in the kernel, and its programs as they are asked for.

    :param libbpf: libbpf.so.1, opened with ``use_errno``.
    :raises PreflightError: the kernel refuses a map.
    """

    def __init__(self, compiled: CompiledPrograms, libbpf: Any) -> None:
        self._compiled = compiled
        self._libbpf = libbpf
        _declare(libbpf)
        self._fds: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        try:
            for plan in compiled.maps:
                self._fds[plan.name] = self._make(plan)
        except BaseException:
            self.close()
            raise
        self._tables = {plan.name: KernelMap(libbpf, self._fds[plan.name], plan) for plan in compiled.maps}

    def _make(self, plan: MapPlan) -> int:
        options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=plan.flags)
        fd = int(
            self._libbpf.bpf_map_create(
                plan.kind,
                plan.name[:_NAME_BYTES].encode(),
                plan.key_bytes,
                plan.value_bytes,
                plan.entries,
                ctypes.byref(options),
            )
        )
        if fd < 0:
            raise PreflightError(f"the kernel does not make the map {plan.name}: {os.strerror(-fd)}")
        return fd

    def __getitem__(self, name: bytes) -> KernelMap:
        return self._tables[name.decode()]

    def map_fd(self, name: str) -> int:
        """A map's descriptor."""
        return self._fds[name]

    def code(self, program: str) -> ctypes.Array[ctypes.c_char]:
        """A program's instructions, linked with the maps."""
        places = [self._fds[plan.name] for plan in self._compiled.maps]
        linked = self._compiled.linked(program, places)
        return ctypes.create_string_buffer(linked, len(linked))

    def load(self, program: str, kind: int) -> int:
        """Load a program, once. :returns: its descriptor.

        :param kind: enum bpf_prog_type.
        :raises PreflightError: the kernel does not take it.
        """
        if program not in self._programs:
            code = self.code(program)
            name = program[:_NAME_BYTES].encode()
            fd = int(self._libbpf.bpf_prog_load(kind, name, b"GPL", code, len(code) // 8, None))
            if fd < 0:
                raise PreflightError(
                    f"the kernel does not load {program} ({os.strerror(-fd)}); run `ztprobe doctor`"
                )
            self._programs[program] = fd
        return self._programs[program]

    def close(self) -> None:
        """Give everything up; idempotent."""
        for fd in (*self._programs.values(), *self._fds.values()):
            os.close(fd)
        self._programs.clear()
        self._fds.clear()


def _declare(libbpf: Any) -> None:
    pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
    libbpf.bpf_map_create.argtypes = (ctypes.c_int, ctypes.c_char_p, u32, u32, u32, pointer)
    libbpf.bpf_map_lookup_elem.argtypes = (ctypes.c_int, pointer, pointer)
    libbpf.bpf_map_update_elem.argtypes = (ctypes.c_int, pointer, pointer, ctypes.c_uint64)
    libbpf.bpf_map_delete_elem.argtypes = (ctypes.c_int, pointer)
    libbpf.bpf_map_get_next_key.argtypes = (ctypes.c_int, pointer, pointer)
