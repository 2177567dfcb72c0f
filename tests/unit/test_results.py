"""Results outside of the report: DataFrames, files for other programs, tables and figures for papers."""

from __future__ import annotations

import ast
import doctest
import json
import shutil
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2
from prometheus_client.parser import text_string_to_metric_families
from scapy.layers.inet import IP, TCP
from scapy.utils import PcapNgReader

import ztprobe
from analysis.ledger.model import COMPONENTS
from analysis.report.wording import PART_NAMES
from analysis.results.perfetto_trace import perfetto_trace
from tests.otlp_collector import Collector, spans_in
from tests.unit.recorded_run import RECORDED
from ztprobe.cli import main
from ztprobe.paths import REPO_DIR
from ztprobe.rundir.store import load_run

# Perfetto's own program, which its site offers for download and no registry has.
TRACE_PROCESSOR = shutil.which("trace_processor_shell") or shutil.which("trace_processor")
BEGIN = perfetto_trace_pb2.TrackEvent.TYPE_SLICE_BEGIN


@pytest.fixture(scope="module")
def run():
    return ztprobe.load(RECORDED)


def test_the_page_shows_what_python_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO_DIR)
    failed, tried = doctest.testfile(str(REPO_DIR / "docs" / "results.md"), module_relative=False)
    assert (failed, tried > 4) == (0, True)


def test_the_notebook_shows_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell is run in its order, and what its last line comes to is what stands below it."""
    monkeypatch.chdir(REPO_DIR)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((REPO_DIR / "docs" / "runs-in-python.ipynb").read_text())
    names: dict[str, object] = {}
    shown = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        *lines, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(lines, []), "cell", "exec"), names)
        outputs = ["".join(output["data"]["text/plain"]) for output in cell["outputs"]]
        if outputs:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            assert outputs == [repr(value)]
            shown += 1
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    assert shown >= 4


def test_components_add_up_to_rounds(run) -> None:
    totals = run.components.groupby("round")["time_s"].sum()
    assert totals.to_numpy() == pytest.approx(run.rounds["duration_s"].to_numpy(), abs=1e-8)


def test_every_number_has_its_unit(run) -> None:
    unitless = {"round", "exchanges", "lost_events", "coverage", "accuracy", "syn_count"}
    unitless |= {"retransmissions", "needless_retransmissions"}
    unitless |= {"bytes", "packets", "source_port", "target_port"}
    for name, table in run.tables.items():
        for column in table.select_dtypes("number").columns:
            assert column.endswith(("_s", "_bytes")) or column in unitless, f"{name}.{column}"


def test_a_run_without_baseline_has_no_overhead() -> None:
    assert ztprobe.load(RECORDED / "baseline").overhead.empty


def test_messages_are_what_each_round_moves(run) -> None:
    messages = run.messages.dropna(subset=["round"])
    clients = sorted(run.clients["client"].unique())
    model_bytes = run.report["rounds"] and messages["bytes"].max()
    for number in run.rounds["round"]:
        mine = messages[(messages["round"] == number) & (messages["bytes"] > 0.9 * model_bytes)]
        assert sorted(mine.loc[mine["from_pod"] == "fl-server", "to_pod"]) == clients
        assert sorted(mine.loc[mine["to_pod"] == "fl-server", "from_pod"]) == clients
    one_way_s = messages["first_arrived_s"] - messages["first_sent_s"]
    assert one_way_s.min() > 0.0 and one_way_s.median() == pytest.approx(0.08, abs=0.02)  # net2


def test_drops_are_those_of_the_command(run, capsys) -> None:
    assert main(["drops", str(RECORDED), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    packets = told["packets"] if isinstance(told, dict) else told
    assert len(run.drops) == len(packets)
    assert set(run.drops["reason"]) == {one["reason"] for one in packets}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ztprobe.errors.RunDirError, match="no run directory"):
        ztprobe.load(tmp_path)


def test_exported_tables_are_the_loaded_ones(run, tmp_path: Path, capsys) -> None:
    assert main(["export", str(RECORDED), "--format", "csv", "--out", str(tmp_path)]) == 0
    assert main(["export", str(RECORDED), "--format", "parquet", "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(run.tables)
    for name, table in run.tables.items():
        read = pd.read_csv(tmp_path / f"{name}.csv")
        for column in table.select_dtypes("str").columns:  # CSV has no empty text
            read[column] = read[column].astype("str").fillna("")
            table = table.assign(**{column: table[column].fillna("")})
        pd.testing.assert_frame_equal(read, table, check_dtype=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), table)


def test_the_latex_table_has_every_shown_part(tmp_path: Path) -> None:
    assert main(["export", str(RECORDED), "--format", "latex", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "components.tex").read_text()
    body = text.partition("\\midrule")[2].partition("\\end{tabular}")[0]
    rows = [line.removesuffix(" \\\\").split(" & ") for line in body.splitlines() if " & " in line]
    assert {len(row) for row in rows} == {5}
    assert [row[0] for row in rows][-2:] == ["residual", "round"]
    assert text.isascii()
    report = json.loads((RECORDED / "report.json").read_text())
    seen = [name for name in COMPONENTS if report["components"][name]["share"]]
    assert len(rows) >= len(seen) + 2


def test_the_figure_is_a_column_wide_and_the_same_every_time(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        assert main(["export", str(RECORDED), "--format", "pdf", "--out", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "breakdown.pdf").read_bytes())
    assert pages[0] == pages[1]
    assert b"/MediaBox [ 0 0 252 " in pages[0]  # 3.5 inches of 72 points


def test_a_perfetto_trace_can_be_read_back(run, tmp_path: Path) -> None:
    assert main(["export", str(RECORDED), "--format", "perfetto", "--out", str(tmp_path)]) == 0
    trace = perfetto_trace_pb2.Trace()
    trace.ParseFromString((tmp_path / "trace.perfetto-trace").read_bytes())
    tracks = {
        p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")
    }
    pods = {track.process.process_name for track in tracks.values() if track.HasField("process")}
    assert pods == {"rounds", "server", "fl-client-0", "fl-client-1"}
    events = [packet for packet in trace.packet if packet.HasField("track_event")]
    open_slices: dict[int, list[tuple[str, int]]] = defaultdict(list)
    spent_ns: dict[str, int] = defaultdict(int)
    flows: dict[int, int] = defaultdict(int)
    for packet in sorted(events, key=lambda p: (p.timestamp, p.track_event.type == BEGIN)):
        event = packet.track_event
        assert tracks[tracks[event.track_uuid].parent_uuid].HasField("process")
        if event.type == BEGIN:
            assert not open_slices[event.track_uuid], "slices of one track do not overlap"
            open_slices[event.track_uuid].append((event.name, packet.timestamp))
            for flow in event.flow_ids:
                flows[flow] += 1
        else:
            name, begin_ns = open_slices[event.track_uuid].pop()
            spent_ns[name] += packet.timestamp - begin_ns
    assert not any(open_slices.values())
    assert set(flows.values()) == {2}, "every arrow has two ends"
    segments = run.segments.assign(time_s=run.segments["end_s"] - run.segments["start_s"])
    for name, total_s in segments.groupby("component")["time_s"].sum().items():
        assert spent_ns[PART_NAMES[str(name)]] == pytest.approx(total_s * 1e9, abs=1e4)


def critical(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [client for one in report["rounds"] for client in one["clients"] if client["critical"]]


@pytest.mark.skipif(TRACE_PROCESSOR is None, reason="Perfetto's trace_processor is not on this machine")
def test_perfettos_own_trace_processor_takes_the_trace(run, tmp_path: Path) -> None:
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    assert main(["export", str(RECORDED), "--format", "perfetto", "--out", str(tmp_path)]) == 0
    config = TraceProcessorConfig(bin_path=TRACE_PROCESSOR)
    with TraceProcessor(trace=str(tmp_path / "trace.perfetto-trace"), config=config) as processor:

        def count(what: str) -> int:
            return next(iter(processor.query(f"select count(*) as n from {what}"))).n

        assert count("stats where severity != 'info' and value > 0") == 0
        assert count("slice") == len(run.segments) + len(run.rounds)
        assert count("slice where dur < 0 or depth > 0") == 0  # all end, none in another
        assert count("flow") == sum(len(one["segments"]) - 1 for one in critical(run.report))


def test_each_sidecar_is_its_own_pods(run) -> None:
    """The server's sidecar holds the model before the wire has it, and the update after."""
    trace = perfetto_trace_pb2.Trace.FromString(perfetto_trace(run.report))
    tracks = {
        p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")
    }
    events = [p for p in trace.packet if p.HasField("track_event") and p.track_event.type == BEGIN]
    begins: dict[tuple[str, str], list[int]] = defaultdict(list)
    for packet in events:
        track = tracks[packet.track_event.track_uuid]
        pod = tracks[track.parent_uuid].process.process_name
        begins[pod, track.name].append(packet.timestamp)
    model, update = begins["fl-client-0", "wire, model"], begins["fl-client-0", "wire, update"]
    server, client = begins["server", "sidecar, fl-client-0"], begins["fl-client-0", "sidecar, fl-client-0"]
    assert len(server) == len(client) == 2 * len(run.rounds)
    assert server[0] < model[0] < client[0] < begins["fl-client-0", "application"][0] < client[1] < update[0]
    assert update[0] < server[1]


def test_spans_nest_and_are_the_same_every_time(run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["export", str(RECORDED), "--format", "otlp", "--out", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "traces.otlp").read_bytes() for name in ("one", "two"))
    assert first == second
    spans = spans_in(first)
    by_id = {span.span_id: span for _, span in spans}
    assert len(by_id) == len(spans) == len(run.segments) + len(run.clients) + len(run.rounds)
    for _, span in spans:
        if span.parent_span_id:
            parent = by_id[span.parent_span_id]
            assert parent.trace_id == span.trace_id
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
    assert len({span.trace_id for _, span in spans}) == len(run.rounds)
    assert {service for service, _ in spans} == {"server", "fl-client-0", "fl-client-1"}


@pytest.mark.parametrize("path", ["", "/v1/traces"])
def test_a_collector_gets_the_spans(run, capsys, path: str) -> None:
    with Collector() as collector:
        given = ["--endpoint", f"{collector.url}{path}"]
        assert main(["export", str(RECORDED), "--format", "otlp", *given]) == 0
    number = len(run.segments) + len(run.clients) + len(run.rounds)
    assert len(collector.spans) == number
    assert {where for where, _ in collector.requests} == {"/v1/traces"}
    assert f"{number} spans sent to {collector.url}/v1/traces" in capsys.readouterr().out


def test_prometheus_reads_what_a_round_consists_of(run, tmp_path: Path) -> None:
    assert main(["export", str(RECORDED), "--format", "prometheus", "--out", str(tmp_path)]) == 0
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families((tmp_path / "rounds.prom").read_text())
        for sample in family.samples
    }
    parts = [value for (name, *_), value in found.items() if name == "ztprobe_run_component_seconds"]
    assert sum(parts) == pytest.approx(run.rounds["duration_s"].mean())
    assert found["ztprobe_run_rounds",] == len(run.rounds)
    last = run.report["rounds"][-1]
    ended_unix_s = run.report["started_unix_s"] + last["start_s"] + last["duration_s"]
    assert found["ztprobe_run_end_time_seconds",] == pytest.approx(ended_unix_s, abs=1e-3)
    others = ("server", "compute", "task_start", "client_and_return_path")
    for number, client in enumerate(("fl-client-0", "fl-client-1")):
        mine = [one["clients"][number] for one in run.report["rounds"]]
        assert {one["client"] for one in mine} == {client}
        spent_s = [sum(s for part, s in one["components"].items() if part not in others) for one in mine]
        name = "ztprobe_run_communication_seconds"
        told = {what: found[name, client, what] for what in ("mean", "longest")}
        assert told == pytest.approx({"mean": statistics.fmean(spent_s), "longest": max(spent_s)})


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "otlp", "--endpoint", "http://127.0.0.1:9/v1/traces"],
        ["--format", "csv", "--endpoint", "http://127.0.0.1:9/v1/traces"],
        ["--format", "csv"],
        ["--format", "otlp", "--endpoint", "127.0.0.1:4318"],
    ],
    ids=["nobody listens", "csv is not sent", "nowhere to", "no address"],
)
def test_what_cannot_be_exported_is_one_line(words: list[str], capsys) -> None:
    assert main(["export", str(RECORDED), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pcapng_holds_every_recorded_head(tmp_path: Path) -> None:
    assert main(["export", str(RECORDED), "--format", "pcapng", "--out", str(tmp_path)]) == 0
    with PcapNgReader(str(tmp_path / "heads.pcapng")) as reader:
        packets = list(reader)
    events = load_run(RECORDED).events
    assert len(packets) == len(events["packets"]) + len(events["dns"])
    connections = events["connections"].set_index("connection")
    recorded = events["packets"].sort_values("ts_ns", kind="stable")
    segments = [IP(bytes(packet)) for packet in packets if IP(bytes(packet)).proto == 6]
    for row, segment in zip(recorded.itertuples(), segments, strict=True):
        ends = connections.loc[row.connection]
        pair = ((ends.local, ends.local_port), (ends.remote, ends.remote_port))
        source, target = pair if row.direction == "tx" else pair[::-1]
        assert (segment.src, segment.sport, segment.dst, segment.dport) == (*source, *target)
        assert (segment[TCP].seq, segment[TCP].ack, int(segment[TCP].flags)) == (
            row.seq,
            row.ack,
            row.tcp_flags,
        )
        assert bytes(segment[TCP].payload) == row.data
        assert segment.len == 40 + row.payload_bytes
    asked = [packet for packet in packets if b"fl-server" in bytes(packet)]
    assert asked and all(packet.wirelen >= len(packet) for packet in packets)
