"""Ask the kernel itself what bpf(2) lets us do, with a program of two instructions.

The loader in ztprobe.probes compiles C through BCC, which takes 0.2 s and may be missing;
a question about the kernel should depend on neither.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = (
    "RAW_TRACEPOINT",
    "SCHED_CLS",
    "TCX_EGRESS",
    "TCX_INGRESS",
    "attach_tcx",
    "can_attach_raw_tracepoint",
    "trivial_program",
)

SCHED_CLS = 3  # enum bpf_prog_type, include/uapi/linux/bpf.h
RAW_TRACEPOINT = 17
TCX_INGRESS, TCX_EGRESS = 46, 47  # enum bpf_attach_type

_PROG_LOAD = 5  # enum bpf_cmd
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE = 28
_SYSCALL_NR = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

_MOV64_IMM_R0 = 0xB7
_EXIT = 0x95

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALL_NR.get(platform.machine())
    if number is None:
        raise OSError(f"no bpf(2) number known for {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    fd: int = _libc.syscall(number, command, buffer, len(attributes))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


@contextmanager
def trivial_program(kind: int) -> Iterator[int]:
    """The descriptor of a program that returns 0 at once, unloaded on exit.

    :param kind: ``SCHED_CLS`` or ``RAW_TRACEPOINT``.
    :raises OSError: the kernel refuses (ENOSYS, EPERM, EINVAL for an unknown kind).
    """
    instructions = ctypes.create_string_buffer(
        struct.pack("=BBhi", _MOV64_IMM_R0, 0, 0, 0) + struct.pack("=BBhi", _EXIT, 0, 0, 0), 16
    )
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII", kind, 2, ctypes.addressof(instructions), ctypes.addressof(licence), 0, 0, 0, 0, 0
    )
    fd = _bpf(_PROG_LOAD, attributes)
    try:
        yield fd
    finally:
        os.close(fd)


def attach_tcx(program_fd: int, ifindex: int) -> None:
    """Attach to what leaves a link of this network namespace, and detach again.

    :raises OSError: the kernel (before Linux 6.6) refuses.
    """
    os.close(_bpf(_LINK_CREATE, struct.pack("=IIII48x", program_fd, ifindex, TCX_EGRESS, 0)))


def can_attach_raw_tracepoint(name: str, program_fd: int) -> bool:
    """Attach to the tracepoint ``name`` and detach again."""
    text = ctypes.create_string_buffer(name.encode())
    try:
        os.close(_bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QII", ctypes.addressof(text), program_fd, 0)))
    except OSError:
        return False
    return True
