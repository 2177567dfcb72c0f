"""What ``ztprobe policy matrix`` and ``simulate`` print: lines, a page, dictionaries for --json."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ztprobe.printable import printable

if TYPE_CHECKING:
    from ztprobe.policy.matrix import Matrix, MatrixCell
    from ztprobe.policy.simulation import Simulated

__all__ = (
    "matrix_dict",
    "matrix_html",
    "matrix_lines",
    "simulation_dict",
    "simulation_lines",
)

_CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SIGNS = {"allowed": "+", "denied": "-", "not applicable": ".", "undecidable": "?"}
_COLORS = {"allowed": "#cfe8cf", "denied": "#f2c6c2", "not applicable": "#eeeeee", "undecidable": "#fbe7b2"}
_ORDER = ("allowed", "not applicable", "undecidable", "denied")


def _shown(text: str) -> str:
    return html.escape(printable(text, len(text)))


def _port(cell: MatrixCell) -> str:
    return f"{cell.port or 'other'}/{cell.protocol}"


def _by_target(matrix: Matrix) -> dict[int, dict[str, dict[int, str]]]:
    # target -> port -> source -> verdict
    found: dict[int, dict[str, dict[int, str]]] = {}
    for cell in matrix.cells:
        found.setdefault(cell.target, {}).setdefault(_port(cell), {})[cell.source] = cell.verdict
    return found


def matrix_lines(matrix: Matrix) -> Iterator[str]:
    """For each target and port, who reaches it and who does not."""
    names = [group.name for group in matrix.groups]
    for target, ports in _by_target(matrix).items():
        yield f"to {names[target]}"
        for port, verdicts in ports.items():
            said = []
            for word in _ORDER:
                sources = [names[source] for source, verdict in verdicts.items() if verdict == word]
                if len(sources) == len(verdicts) and len(sources) > 1:
                    said.append(f"{word}: everyone")
                elif sources:
                    said.append(f"{word}: {', '.join(sources)}")
            yield f"  {port}  {'; '.join(said)}"


def matrix_dict(matrix: Matrix) -> dict[str, Any]:
    """The same for programs; port null stands for those that nobody names."""
    return {
        "groups": [{"name": group.name, "pods": list(group.pods)} for group in matrix.groups],
        "verdicts": [
            {
                "source": matrix.groups[cell.source].name,
                "target": matrix.groups[cell.target].name,
                "port": cell.port or None,
                "protocol": cell.protocol,
                "verdict": cell.verdict,
            }
            for cell in matrix.cells
        ],
    }


def matrix_html(matrix: Matrix) -> str:
    """A page with one table: sources in rows, targets and their ports in columns."""
    found = _by_target(matrix)
    columns = [(target, port) for target, ports in found.items() for port in ports]
    head = "".join(
        f'<th colspan="{len(ports)}">{_shown(matrix.groups[target].name)}</th>'
        for target, ports in found.items()
    )
    ports = "".join(f"<th>{_shown(port)}</th>" for _, port in columns)
    rows = []
    for source, group in enumerate(matrix.groups):
        cells = []
        for target, port in columns:
            verdict = found[target][port].get(source)
            if verdict is None:
                cells.append("<td></td>")
                continue
            title = f"{group.name} -> {matrix.groups[target].name} {port}: {verdict}"
            cells.append(f'<td class="{verdict[:3]}" title="{_shown(title)}">{_SIGNS[verdict]}</td>')
        rows.append(f"<tr><th>{_shown(group.name)}</th>{''.join(cells)}</tr>")
    legend = ", ".join(f"{sign} {word}" for word, sign in _SIGNS.items())
    colors = "".join(f".{word[:3]} {{ background: {color} }}\n" for word, color in _COLORS.items())
    members = "".join(
        f"<li>{_shown(group.name)}: {_shown(', '.join(group.pods))}</li>\n"
        for group in matrix.groups
        if len(group.pods) > 1
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CSP}">
<title>Who reaches whom</title><style>
body {{ font: 14px sans-serif; margin: 2em }}
table {{ border-collapse: collapse }}
th, td {{ border: 1px solid #bbb; padding: 2px 6px; text-align: center; white-space: nowrap }}
tbody th {{ text-align: left; position: sticky; left: 0; background: white }}
{colors}</style></head><body>
<h1>Who reaches whom</h1>
<p>From the pods in rows to the pods and ports in columns: {legend}. "other" stands for the ports that
neither a container nor a rule names, "outside" for an address that no network in a rule means.</p>
<table><thead><tr><th rowspan="2">from \\ to</th>{head}</tr><tr>{ports}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table>
<ul>
{members}</ul>
</body></html>
"""


def simulation_lines(found: Sequence[Simulated], policies: int) -> Iterator[str]:
    """What would be denied and by what, then what was not answered anyway, then how many would pass."""
    answered = [one for one in found if one.recorded.answered]
    for word in ("denied", "undecidable"):
        for one in answered:
            if one.explanation.verdict == word:
                yield f"{word}: {_connection(one)}, {_times(one.recorded.answered)}"
                for side in one.explanation.sides:
                    if side.verdict == word:
                        yield f"  {side.direction} of {side.end.name}: {side.reason}"
                yield from (f"  not known: {fact}" for fact in one.explanation.missing)
    for one in found:
        if not one.recorded.answered and one.explanation.verdict in ("denied", "undecidable"):
            yield f"not answered in the run, {one.explanation.verdict} here: {_connection(one)}"
    passing = [one for one in answered if one.explanation.verdict in ("allowed", "not applicable")]
    total = sum(one.recorded.answered for one in answered)
    kept = sum(one.recorded.answered for one in passing)
    yield f"{kept} of {total} connections would pass under {policies} policies"


def _connection(one: Simulated) -> str:
    recorded = one.recorded
    return f"{recorded.source} -> {recorded.target} {recorded.port}/{recorded.protocol}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def simulation_dict(found: Sequence[Simulated]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "source": one.recorded.source,
            "target": one.recorded.target,
            "protocol": one.recorded.protocol,
            "port": one.recorded.port,
            "answered": one.recorded.answered,
            "unanswered": one.recorded.unanswered,
            "verdict": one.explanation.verdict,
            "denied_by": [
                *(str(rule) for side in one.explanation.sides for rule in side.denied_by),
                *(policy for side in one.explanation.sides for policy in side.isolated_by),
            ],
            "missing_facts": list(one.explanation.missing),
        }
        for one in found
    ]
