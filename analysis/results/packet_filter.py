"""tcpdump's filter language over packets' first bytes, by libpcap (through scapy's binding of it)."""

from __future__ import annotations

import ctypes
import logging
from ctypes.util import find_library
from typing import Any

from ztprobe.errors import PreflightError, UsageError
from ztprobe.events.heads import packet_bytes
from ztprobe.printable import printable

__all__ = ("PacketFilter",)

_RAW_IP = 12  # DLT_RAW: packets begin with their IP header
_MOST_CHARACTERS = 10_000


class PacketFilter:
    """An expression, compiled.

    :raises UsageError: it is none, or asks for what lies before the IP header.
    :raises PreflightError: libpcap is not installed.
    """

    def __init__(self, expression: str) -> None:
        if len(expression) > _MOST_CHARACTERS or "\0" in expression:
            raise UsageError(f"--filter: expected at most {_MOST_CHARACTERS} characters of tcpdump's syntax")
        # scapy tells on its own that there is no route to the internet, or no libpcap.
        logging.getLogger("scapy").setLevel(logging.CRITICAL)
        try:
            from scapy.arch.common import compile_filter
            from scapy.error import Scapy_Exception
            from scapy.libs import winpcapy
        except (ImportError, OSError) as error:
            raise PreflightError(f"--filter needs libpcap ({error}): apt-get install libpcap0.8") from error
        self._header: Any = winpcapy.pcap_pkthdr()
        # scapy binds this one on Windows alone. int pcap_offline_filter(program, header, bytes)
        self._match: Any = ctypes.CDLL(find_library("pcap")).pcap_offline_filter
        try:
            self._program = compile_filter(expression, linktype=_RAW_IP)
        except Scapy_Exception as error:
            reason = str(error).rpartition("(")[2].removesuffix(")")
            raise UsageError(
                f"--filter {printable(expression)}: {reason}; expected tcpdump's syntax, such as"
                " 'tcp dst port 50051 and host 10.244.0.3' (packets begin with their IP header)"
            ) from error

    def matches(self, head: bytes) -> bool:
        """Whether a packet does; one whose bytes are not known does not.

        :param head: its first bytes, from the IP header on.
        """
        if not head:
            return False
        self._header.caplen, self._header.len = len(head), packet_bytes(head)
        data = (ctypes.c_ubyte * len(head)).from_buffer_copy(head)
        return bool(self._match(ctypes.byref(self._program), ctypes.byref(self._header), data))
