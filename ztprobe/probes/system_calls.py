"""Which system call opens a file on this machine, and where its name stands."""

from __future__ import annotations

import platform

from ztprobe.errors import PreflightError
from ztprobe.probes.btf import Btf

__all__ = ("system_call_flags",)

# openat's number, and the register of its second argument (asm-generic/unistd.h, syscall_64.tbl).
_OPENAT = {"x86_64": (257, "pt_regs.si", 0), "aarch64": (56, "pt_regs.user_regs", 8)}


def system_call_flags(btf: Btf) -> list[str]:
    """Compiler flags for the program that sees files being opened.

    :raises PreflightError: this is another kind of machine.
    """
    try:
        number, member, offset = _OPENAT[platform.machine()]
        return [f"-DSYSCALL_OPENAT={number}", f"-DOFF_REGS_SECOND={btf.offset(member) + offset}"]
    except KeyError:
        raise PreflightError(
            f"how {platform.machine()} passes system calls is not known here; x86_64 and aarch64 are"
        ) from None
