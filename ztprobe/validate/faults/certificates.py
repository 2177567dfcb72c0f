"""Certificates that are really issued, and really wrong."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from ztprobe.rundir import files
from ztprobe.runtime.local.certificates import Authority, Issuer
from ztprobe.runtime.local.runtime import LocalRuntime
from ztprobe.validate.faults.model import Preparation

__all__ = ("misissued",)


class _Misissuing:
    """Issues as the run's authority does, but for one account."""

    def __init__(
        self, usual: Issuer, account: str, issue: Callable[[Path, str, str, Sequence[str]], None]
    ) -> None:
        self._usual = usual
        self._account = account
        self._issue = issue

    def issue(self, directory: Path, namespace: str, service_account: str, dns_names: Sequence[str]) -> None:
        if service_account == self._account:
            self._issue(directory, namespace, service_account, dns_names)
        else:
            self._usual.issue(directory, namespace, service_account, dns_names)


def misissued(
    account: str,
    *,
    valid: tuple[datetime.timedelta, datetime.timedelta] | None = None,
    names: Sequence[str] | None = None,
    stranger: bool = False,
    distrusts: bool = False,
) -> Preparation:
    """A preparation that gives one account's pods another certificate.

    :param valid: from when until when, against now.
    :param names: the host names that it is for, instead of the right ones.
    :param stranger: signed by an authority that nobody else knows.
    :param distrusts: the pods themselves know that other authority only.
    """

    def prepare(runtime: LocalRuntime, _: Path) -> None:
        usual = runtime.authority
        other = Authority("of somebody else")

        def issue(directory: Path, namespace: str, service_account: str, right: Sequence[str]) -> None:
            signer = other if stranger else usual
            assert isinstance(signer, Authority)
            signer.issue(
                directory, namespace, service_account, right if names is None else names, valid=valid
            )
            known = other if distrusts else usual
            assert isinstance(known, Authority)
            files.write_whole(directory / "ca.crt", known.certificate_pem, mode=0o400)

        runtime.authority = _Misissuing(usual, account, issue)

    return prepare
