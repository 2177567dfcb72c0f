"""Whether pods may use a congestion control, from the kernel's two lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztprobe.errors import PreflightError
from ztprobe.runtime.local import transport


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("_AVAILABLE", "reno bbr cubic"), ("_ALLOWED", "reno bbr")):
        (tmp_path / name).write_text(f"{content}\n")
        monkeypatch.setattr(transport, name, tmp_path / name)


@pytest.mark.usefixtures("lists")
def test_one_that_the_kernel_lacks_is_refused() -> None:
    with pytest.raises(PreflightError, match="no congestion control vegas, only reno, bbr, cubic: modprobe"):
        transport.check("vegas")


@pytest.mark.usefixtures("lists")
def test_in_a_container_the_list_of_those_allowed_has_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    transport.check("cubic")  # the list can be written
    monkeypatch.setattr("os.access", lambda *_arguments: False)
    transport.check("reno")
    with pytest.raises(PreflightError, match=r"sysctl net\.ipv4\.\w+='reno bbr cubic'"):
        transport.check("cubic")
