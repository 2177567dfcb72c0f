"""``ztprobe export``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ztprobe.cli.options import OutPath
from ztprobe.cli.otlp import traces_url
from ztprobe.errors import UsageError

__all__ = ("export",)

FORMATS = ("csv", "parquet", "perfetto", "otlp", "prometheus", "pcapng", "latex", "pdf")


@click.command(epilog="Example: ztprobe export runs/net2-sec3 --format csv --out tables")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option("--out", type=OutPath(), help="A directory; files of these names are replaced.")
@click.option(
    "--endpoint",
    metavar="URL",
    callback=traces_url,
    help="With otlp: send the spans to this collector (OTLP over HTTP), such as http://127.0.0.1:4318.",
)
def export(run: Path, form: str, out: Path | None, endpoint: str | None) -> None:
    """Write a run's results for other programs and for papers.

    csv and parquet: one tidy file a table (rounds, components, sub_rows, clients, segments, overhead),
    with a unit in every column's name. perfetto: a trace for ui.perfetto.dev, a track for each pod and
    hop. otlp: spans (OpenTelemetry). prometheus: mean times a round by component and client, in its text
    format. pcapng: the heads of packets that were recorded, for Wireshark. latex: the table of
    components. pdf: the breakdown, as wide as a paper's column.
    """
    if endpoint is not None and form != "otlp":
        raise UsageError(f"--endpoint {endpoint}: only --format otlp is sent anywhere")
    if out is None and endpoint is None:
        raise UsageError("--out: is missing, the directory to write to")
    from analysis.results.frames import load
    from ztprobe.rundir.store import write_atomically

    loaded = load(run)
    contents: dict[str, bytes] = {}
    if form in ("csv", "parquet"):
        for name, table in loaded.tables.items():
            if form == "csv":
                contents[f"{name}.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
            else:
                contents[f"{name}.parquet"] = table.to_parquet(index=False)
    elif form == "perfetto":
        from analysis.results.perfetto_trace import perfetto_trace

        contents["trace.perfetto-trace"] = perfetto_trace(loaded.report)
    elif form == "otlp":
        from analysis.results.otlp import encoded, send, spans_of

        spans = spans_of(loaded.report)
        if endpoint is not None:
            send(spans, endpoint)
            click.echo(f"{len(spans)} spans sent to {endpoint}")
        contents["traces.otlp"] = encoded(spans)
    elif form == "prometheus":
        contents["rounds.prom"] = _prometheus(loaded.report)
    elif form == "pcapng":
        from analysis.results.heads_pcapng import heads_pcapng
        from ztprobe.rundir.store import load_run

        contents["heads.pcapng"] = heads_pcapng(load_run(run))
    else:
        from analysis.results.paper import breakdown_pdf, latex_table

        if form == "latex":
            contents["components.tex"] = latex_table(loaded.report).encode()
        else:
            contents["breakdown.pdf"] = breakdown_pdf(loaded.report)
    if out is None:
        return
    for name, content in contents.items():
        write_atomically(out / name, content)
        click.echo(out / name)


def _prometheus(report: Mapping[str, Any]) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest

    from analysis.results.round_figures import round_figures
    from ztprobe.agent.service.round_metrics import counts_of, run_families

    class Figures:
        """A collector in prometheus_client's sense."""

        def collect(self) -> Iterator[Any]:
            return run_families(counts_of(round_figures(report)))

    registry = CollectorRegistry()
    registry.register(Figures())
    return bytes(generate_latest(registry))
