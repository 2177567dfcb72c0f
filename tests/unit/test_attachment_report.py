"""What a report names of a deployment that changed while it was traced, and a diagnosis of who was gone."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

from analysis.causes import attached
from analysis.causes.case import case_of
from analysis.causes.diagnosis import diagnose_run
from analysis.causes.findings import Trouble
from analysis.evidence.values import Drop, DuplicateAck, Endpoint, Retransmission, Wire
from analysis.flows.choice import build_ledger_of_attached
from analysis.report.attachment import attachment_lines
from analysis.report.report import build_report, write_report
from analysis.report.text_report import print_report
from tests.schemas import problems
from ztprobe.events.kinds import Hook
from ztprobe.rundir.schema import problem_in
from ztprobe.rundir.store import Run, load_run

RECORDED = Path(__file__).parents[1] / "data" / "attached-hub"
SECOND_NS = 1_000_000_000


def changed(run: Run, **of: dict[str, Any]) -> Run:
    """With facts of participants, by name (``_`` for ``-``)."""
    told = run.meta["attachment"]
    participants = [one | of.get(one["name"].replace("-", "_"), {}) for one in told["participants"]]
    return dataclasses.replace(run, meta={**run.meta, "attachment": {**told, "participants": participants}})


def test_who_came_and_went_and_what_is_not_seen_is_named() -> None:
    run = load_run(RECORDED)
    attached_ns = run.meta["attachment"]["attached_ns"]
    run = changed(
        run,
        client_2={"first_seen_ns": attached_ns + 2 * SECOND_NS},
        client_1={"first_seen_ns": attached_ns - 1, "ended_ns": attached_ns + 5 * SECOND_NS},
    )
    told = run.meta["attachment"]
    sockets = [{"participants": ["client-1", "client-1"], "pids": [1, 2], "name": "/run/task.sock"}]
    run = dataclasses.replace(run, meta={**run.meta, "attachment": {**told, "unix_sockets": sockets}})
    report = build_report(run, build_ledger_of_attached(run), None)
    assert problems("report", report) == []
    lines = dict(attachment_lines(report))
    assert lines["came and went"] == (
        "client-2 came 2.00 s after the trace began; client-1 ended 5.00 s after the trace began"
    )
    assert lines["not seen"] == (
        "what passes over Unix sockets, which are no network: between processes of client-1 (/run/task.sock)."
        " Its time is with whoever held the message"
    )


def test_nothing_is_said_of_what_did_not_change() -> None:
    run = load_run(RECORDED)
    report = build_report(run, build_ledger_of_attached(run), None)
    assert not {"came and went", "not seen"} & dict(attachment_lines(report)).keys()


def test_a_round_that_had_not_ended_when_the_server_did_is_the_servers_doing() -> None:
    run = load_run(RECORDED)
    last = max(event["round"] for event in run.rounds if event["event"] == "round_start")
    kept = [event for event in run.rounds if event.get("round") != last or event["event"] == "round_start"]
    begun_ns = next(event["time_monotonic_ns"] for event in kept if event.get("round") == last)
    run = changed(dataclasses.replace(run, rounds=kept), server={"ended_ns": begun_ns + SECOND_NS})
    found = diagnose_run(run)
    assert [(one["kind"], one["rounds"]) for one in found["troubles"]] == [("unfinished", [last])]
    assert found["causes"][0]["id"] == "application.server_died"
    # Nobody told how it ended, so that is not said.
    assert found["causes"][0]["summary"] == "server ended"


def test_a_trace_that_failed_is_no_trouble_of_the_deployments() -> None:
    run = load_run(RECORDED)
    reason = "the agent has ended before its time (see logs/agent.log)"
    over_ns = run.meta["attachment"]["detached_ns"]
    run = dataclasses.replace(run, meta={**run.meta, "failed": {"reason": reason, "at_ns": over_ns}})
    assert problem_in(run.meta) is None
    found = diagnose_run(run)
    assert (found["troubles"], found["causes"], found["failed"]["reason"]) == ([], [], reason)
    assert found["said"].startswith(f"No cause: the trace failed ({reason})")


def test_a_report_names_the_causes_as_a_diagnosis_does(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(RECORDED, out)
    events = load_run(out).rounds
    last = max(event["round"] for event in events if event["event"] == "round_start")
    kept = [event for event in events if event.get("round") != last or event["event"] == "round_start"]
    (out / "rounds.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in kept))
    meta = json.loads((out / "run.json").read_text())
    meta.pop("digests", None)
    server = next(one for one in meta["attachment"]["participants"] if one["name"] == "server")
    server["ended_ns"] = kept[-1]["time_monotonic_ns"] + SECOND_NS
    (out / "run.json").write_text(json.dumps(meta))
    found, report = diagnose_run(load_run(out)), write_report(out)
    assert problems("report", report) == []
    assert {name: report[name] for name in ("troubles", "causes", "dropped_by_filter")} == {
        name: found[name] for name in ("troubles", "causes", "dropped_by_filter")
    }
    assert found["causes"][0]["id"] == "application.server_died"
    page = (out / "report.html").read_text()
    assert '<h2 id="why">' in page and "1. server ended" in page
    printed = io.StringIO()
    print_report(report, printed)
    assert " ".join(printed.getvalue().split()).rpartition("Why: ")[2].startswith("server ended (")


def test_a_client_that_ends_when_its_part_is_done_is_no_trouble() -> None:
    run = load_run(RECORDED)
    over_ns = max(event["time_monotonic_ns"] for event in run.rounds if event["event"] == "round_end")
    found = diagnose_run(changed(run, client_1={"ended_ns": over_ns - 1}, client_2={"ended_ns": over_ns + 1}))
    assert (found["troubles"], found["causes"]) == ([], [])


def test_packets_that_are_lost_on_the_way_are_a_cause_with_what_dropped_them() -> None:
    """Bytes of the hub's for a client, sent again after three seconds each, which this kernel had dropped."""
    case = case_of(load_run(RECORDED))
    key = next(
        key
        for pod, hook, key in case.events.bursts
        if pod == "client-1" and hook == Hook.ETH and isinstance(key, Wire)
    )
    peer = key.peer_of("client-1")
    begun_ns = case.since_ns + SECOND_NS
    trouble = Trouble(
        kind="slow",
        rounds=(2,),
        from_ns=begun_ns,
        to_ns=begun_ns + 8 * SECOND_NS,
        pods=(),
        words="round 2 took 8.0 s, and its peers 2.0 s",
    )
    sent_again = [
        Retransmission(
            begun_ns + (3 * i + 3) * SECOND_NS, begun_ns + 3 * i * SECOND_NS, 0, 1_000 * i, 1_000, "", 0
        )
        for i in range(2)
    ]
    case.events.retransmissions[peer.address, key] = sent_again
    assert [one.of.id for one in attached.recognise(case, [trouble])] == ["application.packets_lost"]
    ends = Endpoint("client-1", 1), Endpoint(peer.address, 2)
    case.events.drops["client-1"] = [
        Drop("client-1", begun_ns, "NETFILTER_DROP", "tcp", ends[1], ends[0], 16, 0, 1_000, key)
    ]
    (cause,) = attached.recognise(case, [trouble])
    assert cause.strength == 0.9
    assert "held it up for 6.0 s; this kernel dropped 1 of them: NETFILTER_DROP (1)" in cause.summary
    # What the receiver had already was not lost.
    case.events.duplicate_acks["client-1", key] = [DuplicateAck(begun_ns, 0, 5_000)]
    assert list(attached.recognise(case, [trouble])) == []


def with_queues(run: Run, **at: dict[str, Any] | None) -> str:
    """What the report says of them."""
    observed = {name.replace("_", "-"): one for name, one in at.items()}
    run = dataclasses.replace(
        run, meta={**run.meta, "emulation": run.meta["emulation"] | {"observed": observed}}
    )
    assert problem_in(run.meta) is None
    report = build_report(run, build_ledger_of_attached(run), None)
    assert problems("report", report) == []
    assert report["emulation"]["observed"] == observed
    return dict(attachment_lines(report))["queues"]


def qdisc(kind: str, *, interface: str = "net0", drops: int = 0, overlimits: int = 0) -> dict[str, Any]:
    return {"interface": interface, "kind": kind, "packets": 1200, "drops": drops, "overlimits": overlimits}


def test_what_stands_at_interfaces_is_said_as_the_kernel_had_it() -> None:
    run = load_run(RECORDED)
    assert with_queues(run, server=qdisc("noqueue"), client_1=None) == (
        "none at the participants' own interfaces; what shapes packets further on is not seen"
    )
    loopback = qdisc("netem", interface="lo", drops=3)
    said = with_queues(
        run,
        server=qdisc("noqueue") | {"others": [loopback]},
        client_1=qdisc("tbf", drops=12, overlimits=3400),
        client_2=qdisc("fq_codel"),
    )
    assert said == (
        "netem at lo of server held packets back 0 times and dropped 3, and sent 1,200; "
        "tbf at net0 of client-1 held packets back 3,400 times and dropped 12, and sent 1,200; "
        "fq_codel at net0 of client-2, which held none back; what shapes packets further on is not seen"
    )
