"""Tracepoint programs whose arguments the verifier knows by type (BTF tracepoints, Linux 5.5).

They fire where raw tracepoints do, but may follow pointers with plain loads where a raw
tracepoint needs a helper call of 30 ns each, which is half of what a busy program costs.
BCC 0.26 compiles such programs but cannot load them; libbpf can.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
from pathlib import Path
from typing import Any

from ztprobe.errors import PreflightError

__all__ = ("attach_kprobe", "attach_tracing_program")

_BPF_PROG_TYPE_TRACING = 26  # include/uapi/linux/bpf.h
_BPF_TRACE_RAW_TP = 23
_LOG_BYTES = 1 << 16


class _LoadOptions(ctypes.Structure):
    # struct bpf_prog_load_opts of libbpf's bpf.h; it only ever grows, and `sz` says how much of it we know.
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


class _PerfEvent(ctypes.Structure):
    # struct perf_event_attr (include/uapi/linux/perf_event.h), its first version that has what we set.
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("kprobe_func", ctypes.c_uint64),
        ("probe_offset", ctypes.c_uint64),
    )


_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408


def attach_tracing_program(
    libbpf: Any, *, name: str, instructions: int, instruction_bytes: int, tracepoint: str, btf_id: int
) -> tuple[int, int]:
    """Load a program and attach it. :returns: file descriptors of the program and of the link.

    :param libbpf: libbpf.so.1, opened with ``use_errno``.
    :param instructions: address of the instructions, maps already resolved.
    :param btf_id: type id of ``btf_trace_TRACEPOINT`` in the kernel's BTF.
    :raises PreflightError: the kernel does not take it.
    """
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions), expected_attach_type=_BPF_TRACE_RAW_TP, attach_btf_id=btf_id
    )
    libbpf.bpf_prog_load.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.POINTER(_LoadOptions),
    )

    def load() -> int:
        return int(
            libbpf.bpf_prog_load(
                _BPF_PROG_TYPE_TRACING,
                name[:15].encode(),  # BPF_OBJ_NAME_LEN
                b"GPL",
                instructions,
                instruction_bytes // 8,
                ctypes.byref(options),
            )
        )

    program_fd = load()
    if program_fd < 0:
        # once more, for the verifier's reason
        options.log_level, options.log_size, options.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
        program_fd = load()
    if program_fd < 0:
        lines = log.value.decode(errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if not line.startswith("processed")), "")
        raise PreflightError(
            f"the kernel does not load {name} ({os.strerror(-program_fd)}): {reason or 'no reason given'}; "
            "run `ztprobe doctor`"
        )
    link_fd = int(libbpf.bpf_raw_tracepoint_open(None, program_fd))
    if link_fd < 0:
        os.close(program_fd)
        raise PreflightError(f"cannot attach {name} to {tracepoint}: {os.strerror(-link_fd)}")
    return program_fd, link_fd


def attach_kprobe(program_fd: int, function: str, *, at_return: bool) -> int:
    """Run a program at a function of the kernel. :returns: a descriptor; closing it ends that.

    :raises PreflightError: the kernel refuses.
    """
    # perf_event_open(2) on the kprobe PMU (Linux 4.17), which needs no name in tracefs.
    pmu = Path("/sys/bus/event_source/devices/kprobe")
    name = ctypes.create_string_buffer(function.encode())
    return_bit = int((pmu / "format" / "retprobe").read_text().strip().removeprefix("config:"))
    attributes = _PerfEvent(
        type=int((pmu / "type").read_text()),
        size=ctypes.sizeof(_PerfEvent),
        config=1 << return_bit if at_return else 0,
        kprobe_func=ctypes.addressof(name),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    everybody, first_cpu, no_group = -1, 0, -1
    fd = int(
        libc.syscall(
            _PERF_EVENT_OPEN[platform.machine()],
            ctypes.byref(attributes),
            everybody,
            first_cpu,
            no_group,
            ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
        )
    )
    if fd < 0:
        raise PreflightError(f"cannot put a kprobe on {function}: {os.strerror(ctypes.get_errno())}")
    try:
        fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError as error:
        os.close(fd)
        raise PreflightError(f"cannot attach to a kprobe on {function}: {error.strerror}") from error
    return fd
