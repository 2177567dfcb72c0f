"""docs/events.md, written from the list of tables: ``python -m ztprobe.events.documentation``."""

from __future__ import annotations

from ztprobe.events.tables import RINGS, TABLES, Table

__all__ = ("events_page",)

_HEAD = """\
# Events

What the probes saw of a run, as tables in `events/*.parquet` of its directory. This page is written from
`ebpf/events.h` and `ztprobe/events/tables.py` (`python -m ztprobe.events.documentation > docs/events.md`),
and a test keeps it so. Each file says the same of itself: its key-value metadata holds `description`, and
as `columns` a JSON object of column and description.

    import pandas, pyarrow.parquet, json
    bursts = pandas.read_parquet("runs/net2-sec3/events/bursts.parquet")
    json.loads(pyarrow.parquet.read_metadata("runs/net2-sec3/events/bursts.parquet").metadata[b"columns"])

    select b.pod, c.remote, b.bytes, (b.last_ns - b.first_ns) / 1e6 as ms
    from 'events/bursts.parquet' b join 'events/connections.parquet' c using (connection)   -- duckdb

- Times end in `_ns`: CLOCK_MONOTONIC nanoseconds of the node (`clock_samples` of run.json tie them to the
  wall clock). Sequence numbers are TCP's own: 32 bits that wrap.
- `connection` is the row of `connections` that an event belongs to. Each end has a row of its own; the same
  addresses, ports and `first_seq` are the same connection. Two connections may have the same addresses and
  ports one after the other, but not the same `first_seq`.
- `local` is the pod's own end; on loopback, where both ends are the pod's, the one that listens (by the
  lower port).
- `hook` is `eth` (the pod's interface), `lo` (its loopback) or `sock` (the application's reads and writes).
- How many rows each table had when it was written stands in run.json (`table_rows`), and so does what was
  lost on the way, with the ring buffer that it was lost from (`loss`, `loss_log`).

| table | ring buffer | what a row is |
| --- | --- | --- |
"""


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".").removesuffix(";")


def _section(table: Table) -> str:
    columns = "".join(
        f"| `{column.name}` | {column.kind} | {_cell(column.description, column.values)} |\n"
        for column in table.columns
    )
    order = f"Ordered by `{table.order}`." if table.order != "pod" else "Written when the run ends."
    head = f"## {table.name}\n\n{table.description} {order}\n\n"
    return f"{head}| column | type | |\n| --- | --- | --- |\n{columns}"


def _cell(description: str, values: frozenset[str] | None) -> str:
    text = description.replace("|", "\\|")
    return f"{text} ({', '.join(f'`{value}`' for value in sorted(values))})" if values else text


def events_page() -> str:
    """The whole page."""
    ring_of = {name: ring for ring, names in RINGS.items() for name in names}
    overview = "".join(
        f"| [`{table.name}`](#{table.name}) | {ring_of.get(table.name, 'none: read from a map at the end')} "
        f"| {_first_sentence(table.description)} |\n"
        for table in TABLES.values()
    )
    return _HEAD + overview + "\n" + "\n".join(_section(table) for table in TABLES.values())


if __name__ == "__main__":
    print(events_page(), end="")
