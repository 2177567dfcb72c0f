"""Telling the verifier what a pointer is, with a function of the kernel that BCC cannot call.

``bpf_rdonly_cast`` (Linux 6.2) makes a ``struct tcp_sock`` of a socket and leaves no instruction
behind; the helper that does the same is a call, and a run of a program has few calls of 20 ns to
spare. A call of a kernel function is one of a helper with a mark in its source register. BCC knows
only helpers, so the programs call the function's number, and the mark is set before they are loaded.
Where the function is missing they use the helper.
"""

from __future__ import annotations

import ctypes
import mmap
import platform

from ztprobe.probes.btf import Btf

__all__ = ("cast_flags", "mark_casts")

_CALL, _KERNEL_FUNCTION = 0x85, 0x20  # BPF_JMP | BPF_CALL; BPF_PSEUDO_KFUNC_CALL as source register
_MACHINES = ("x86_64", "aarch64")  # whose compilers in the kernel take such calls


def cast_flags(btf: Btf) -> list[str]:
    """Compiler flags with which the programs cast; none where they cannot."""
    function, tcp_sock, sk_buff = (
        btf.function_id("bpf_rdonly_cast"),
        btf.struct_id("tcp_sock"),
        btf.struct_id("sk_buff"),
    )
    if platform.machine() not in _MACHINES or not (function and tcp_sock and sk_buff):
        return []
    return [f"-DKFUNC_RDONLY_CAST={function}", f"-DTYPE_TCP_SOCK={tcp_sock}", f"-DTYPE_SK_BUFF={sk_buff}"]


def mark_casts(flags: list[str], instructions: int, instruction_bytes: int) -> None:
    """Make a compiled program's calls of the cast calls of a kernel function.

    :param flags: those that `cast_flags` gave.
    :param instructions: address of the program, which is changed in place.
    """
    if not flags:
        return
    number = int(flags[0].split("=")[1])
    page = instructions & -mmap.PAGESIZE
    length = ctypes.c_size_t(instructions + instruction_bytes - page)
    # BCC's memory is writable already; where a later one protects it, it is data all the same.
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), length, mmap.PROT_READ | mmap.PROT_WRITE)
    program = (ctypes.c_uint8 * instruction_bytes).from_address(instructions)
    for at in range(0, instruction_bytes, 8):
        if program[at] == _CALL and int.from_bytes(program[at + 4 : at + 8], "little") == number:
            program[at + 1] = _KERNEL_FUNCTION
