"""Mutual TLS that does not come about: real certificates, real settings of the proxies."""

from __future__ import annotations

import datetime

from ztprobe.validate.faults.catalogue.words import SERVER
from ztprobe.validate.faults.certificates import misissued
from ztprobe.validate.faults.model import Fault, Variant

__all__ = ("FAULTS",)

_DAY = datetime.timedelta(days=1)

FAULTS = (
    Fault(
        cause="tls.expired_certificate",
        variants=(
            Variant(
                what="the server's certificate has expired",
                level=2,
                prepare=(misissued(SERVER, valid=(-2 * _DAY, -_DAY)),),
                shows="certificate verify failed|certificate expired",
            ),
        ),
    ),
)
