"""What the report calls a baseline that did without some of the workload's options."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.report.report import build_report
from tests.unit.synthetic_run import make_ledger, make_run


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({}, {}, "net2-sec3"),
        ({"compression": "int8"}, {"compression": "int8"}, "net2-sec3"),
        ({"compression": "int8"}, {}, "net2-sec3 without --fl-compression int8"),
        ({"inspect": True, "top_k": 5}, {}, "net2-sec3 without --fl-inspect --fl-top-k 5"),
    ],
)
def test_the_baseline_is_called_what_it_was(
    mine: dict[str, Any], theirs: dict[str, Any], expected: str
) -> None:
    ledger = make_ledger()
    run, baseline = (make_run(ledger=ledger, options={"fl": fl}) for fl in (mine, theirs))
    overhead = build_report(run, ledger, (baseline, ledger))["overhead"]
    assert overhead["baseline"] == expected
    assert expected in overhead["method"]
