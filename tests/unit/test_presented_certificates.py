"""What a run records of the certificates that its pods present to each other."""

from __future__ import annotations

import datetime
from pathlib import Path

from ztprobe.runtime.local.certificates import Authority
from ztprobe.runtime.local.presented_certificates import presented
from ztprobe.validate.faults.certificates import misissued

HOST = "fl-server.fl.svc.cluster.local"
DAY = datetime.timedelta(days=1)


class Runtime:
    """As much of one as a preparation needs."""

    def __init__(self) -> None:
        self.authority = Authority("test")


def issued(tmp_path: Path, **wrong: object) -> dict[str, dict[str, object]]:
    """The record, by pod; ``wrong``: of the server's certificate."""
    runtime = Runtime()
    if wrong:
        misissued("fl-server", **wrong)(runtime, tmp_path)  # type: ignore[arg-type]
    places = {pod: tmp_path / pod for pod in ("fl-server", "fl-client")}
    for pod, place in places.items():
        runtime.authority.issue(place, "fl", pod, [HOST] if pod == "fl-server" else [])
    found = presented(places | {"fl-edge": tmp_path / "nothing"})
    return {one["pod"]: one for one in found}


def now_s() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def test_certificates_as_they_should_be(tmp_path: Path) -> None:
    found = issued(tmp_path)
    assert set(found) == {"fl-server", "fl-client"}
    server = found["fl-server"]
    assert server["names"] == [HOST, "spiffe://cluster.local/ns/fl/sa/fl-server"]
    assert server["trusted_by"] == ["fl-client", "fl-server"]
    assert server["not_before_unix_s"] < now_s() < server["not_after_unix_s"]  # type: ignore[operator]
    assert server["issuer"] == "CN=ztprobe run test"


def test_certificates_that_are_really_wrong(tmp_path: Path) -> None:
    expired = issued(tmp_path / "a", valid=(-2 * DAY, -DAY))["fl-server"]
    assert expired["not_after_unix_s"] < now_s()  # type: ignore[operator]
    early = issued(tmp_path / "b", valid=(DAY, 2 * DAY))["fl-server"]
    assert early["not_before_unix_s"] > now_s()  # type: ignore[operator]
    assert issued(tmp_path / "c", names=["other"])["fl-server"]["names"][0] == "other"  # type: ignore[index]
    stranger = issued(tmp_path / "d", stranger=True)
    assert stranger["fl-server"]["trusted_by"] == []
    assert stranger["fl-client"]["trusted_by"] == ["fl-client", "fl-server"]
    distrustful = issued(tmp_path / "e", distrusts=True)
    assert distrustful["fl-client"]["trusted_by"] == ["fl-client"]
    assert distrustful["fl-server"]["trusted_by"] == ["fl-client"]
