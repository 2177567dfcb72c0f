"""The same for what commands read that others have made before: studies, reports, captures, kubeconfigs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.utils import PcapNgWriter

from analysis.causes.capture import diagnose_capture
from analysis.results.frames import load
from analysis.results.otlp import spans_of
from analysis.results.paper import latex_table
from analysis.results.samples import load_group
from analysis.results.study import study_report
from analysis.results.study_files import failed_attempts
from tests.unit.recorded_run import RECORDED
from tests.unit.test_fuzzed_inputs import EXAMPLES, VALUES, block_of, changed, numbers, places, value_or_line
from ztprobe.errors import PreflightError, RunDirError, UsageError
from ztprobe.kubernetes.api import Api
from ztprobe.profile.model import profile_names
from ztprobe.rundir.store import dump_json
from ztprobe.study.plan import PLANS_DIR, load_study

PROFILE_NAMES = profile_names()


@numbers
def test_plans_of_studies(tmp_path: Path, block: int) -> None:
    texts = [path.read_bytes() for path in sorted(PLANS_DIR.glob("*.yaml"))]
    for number in block_of(block, 4 * EXAMPLES):
        (tmp_path / "plan.yaml").write_bytes(changed(texts[number % len(texts)], number))
        value_or_line(UsageError, load_study, str(tmp_path / "plan.yaml"), PROFILE_NAMES)


@numbers
def test_what_a_study_keeps(tmp_path: Path, block: int) -> None:
    plan = dump_json(load_study("paper-80", PROFILE_NAMES).as_dict())
    failure = dump_json({"class": "workload", "cause": None, "message": "a pod died", "took_s": 1.5})
    kept = tmp_path / "attempts" / "net0-sec0-r01-1"
    kept.mkdir(parents=True)
    for number in block_of(block, 4 * EXAMPLES):
        (tmp_path / "study.json").write_bytes(changed(plan[:3000] if number % 4 else plan, number))
        (kept / "failure.json").write_bytes(changed(failure, number))
        value_or_line(RunDirError, study_report, tmp_path)
        value_or_line(RunDirError, failed_attempts, tmp_path, "net0-sec0")


@numbers
def test_saved_reports(tmp_path: Path, block: int) -> None:
    """What is no report counts as none, and here is no run either that could be analysed again."""
    whole = (RECORDED / "report.json").read_bytes()
    (tmp_path / "run.json").touch()
    (tmp_path / "report.json").write_bytes(whole)
    assert len(used(tmp_path)) == 8
    text = whole.decode()
    everywhere = [path for path in places(json.loads(text)) if path]
    for number in block_of(block, EXAMPLES):
        if number % 2:
            content = changed(whole, number)
        else:
            chance = random.Random(number)
            *way, last = chance.choice(everywhere)
            exchanged = inner = json.loads(text)
            for key in way:
                inner = inner[key]
            inner[last] = chance.choice(VALUES)
            content = json.dumps(exchanged).encode()
        (tmp_path / "report.json").write_bytes(content)
        value_or_line(RunDirError, used, tmp_path)


def used(run_dir: Path) -> list[str]:
    """What other commands make of report.json."""
    (sample,) = load_group(run_dir).samples
    loaded = load(run_dir)
    assert len(loaded.rounds) >= len(sample.parts_ns)
    tables = [
        loaded.rounds,
        loaded.components,
        loaded.sub_rows,
        loaded.clients,
        loaded.segments,
        loaded.overhead,
    ]
    return [*map(str, map(len, tables)), latex_table(loaded.report), str(len(spans_of(loaded.report)))]


@numbers
def test_kubeconfigs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:9", "tls-server-name": "x"}}],
        "users": [{"name": "u", "user": {"token": "t", "client-certificate-data": "eA=="}}],
    }
    for number in block_of(block, 2 * EXAMPLES):
        (tmp_path / "kubeconfig").write_bytes(changed(yaml.safe_dump(config).encode(), number))
        value_or_line(PreflightError, Api, str(tmp_path / "kubeconfig"))


@numbers
def test_captures(tmp_path: Path, block: int) -> None:
    with PcapNgWriter(str(tmp_path / "whole")) as writer:
        for port in range(40_000, 40_020):
            for flags in ("S", "SA", "A", "PA", "RA"):
                packet = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=port, dport=50051, flags=flags)
                writer.write(packet / b"\x15\x03\x03\x00\x02\x02\x28")
            query = DNS(rd=1, qd=DNSQR(qname="fl-server.fl.svc.cluster.local"))
            writer.write(IP(src="10.0.0.1", dst="10.0.0.3") / UDP(sport=port, dport=53) / query)
    whole = (tmp_path / "whole").read_bytes()
    for number in block_of(block):
        (tmp_path / "x.pcapng").write_bytes(changed(whole, number))
        value_or_line(UsageError, diagnose_capture, tmp_path / "x.pcapng")
