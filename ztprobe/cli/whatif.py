"""``ztprobe whatif``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ztprobe.cli.options import OutPath
from ztprobe.cli.output import say, say_json
from ztprobe.errors import UsageError

if TYPE_CHECKING:
    from analysis.whatif.change import WhatIfChange

__all__ = ("whatif",)

_REMOVABLE = ("mtls", "policy", "profile", "polling")


@click.command(epilog="Example: ztprobe whatif runs/net2-sec3 --without mtls --check runs/smoke")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--without", multiple=True, type=click.Choice(_REMOVABLE), help="Take this away; may be given again."
)
@click.option("--profile", metavar="NAME", help="Another network profile, one of a fixed delay (net4).")
@click.option("--reconnect", is_flag=True, help="A new connection per client and round.")
@click.option("--congestion-control", metavar="NAME", help="cubic or bbr.")
@click.option(
    "--check",
    metavar="STUDY",
    help="A study's directory whose measured cells predictions are held against, or the name of a check"
    " that comes with ztprobe; without RUN, everything that the study can check.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=OutPath(), help="Without RUN: write whatif-check.json, .csv and .svg here.")
def whatif(
    run: Path | None,
    without: tuple[str, ...],
    profile: str | None,
    reconnect: bool,
    congestion_control: str | None,
    check: str | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Predict how long rounds would take without a component.

    Replays the recorded rounds of RUN with components removed or rescaled: every client's way is changed, and
    who is critical is found anew. Nothing is fitted. A question whose answer RUN does not show is refused,
    and so is one that no measured runs check, or that they show to be answered wrongly.
    """
    from analysis.whatif.change import WhatIfChange, check_profile
    from ztprobe.profile.model import load_profile

    change = WhatIfChange(
        without=frozenset(without),
        profile=None if profile is None else check_profile(load_profile(profile)),
        reconnect=reconnect,
        congestion_control=congestion_control,
    )
    if run is None:
        _check(change, check, as_json=as_json, out=out)
        return
    if not change.words:
        raise UsageError(f"{run}: nothing is asked; give --without, --profile, --reconnect or the like")
    if out is not None:
        raise UsageError(f"--out {out}: is for a whole check, without RUN")
    from analysis.whatif.question import answer
    from analysis.whatif.text import print_prediction

    found = answer(run, change, check)
    if as_json:
        say_json(found)
    else:
        print_prediction(found)


def _check(change: WhatIfChange, check: str | None, *, as_json: bool, out: Path | None) -> None:
    if check is None:
        raise UsageError("RUN: is missing, or --check with a study to check predictions on")
    from analysis.whatif.answered import answered_by
    from analysis.whatif.check import check_study, kept_checks
    from analysis.whatif.text import print_check
    from ztprobe.rundir.store import dump_json, write_atomically

    kept = kept_checks()
    found = None if Path(check).is_dir() else kept.get(check)
    found = found or check_study(Path(check), only=change if change.words else None)
    if not found["rows"]:
        raise UsageError(f"--check {check}: no two of its cells differ in what can be asked")
    found |= {"answered": answered_by(found, kept)}
    if out is not None:
        import pandas as pd

        from analysis.whatif.scatter import draw_check

        plain = [key for key, value in found["rows"][0].items() if isinstance(value, str | float)]
        rows = [{key: row[key] for key in plain} for row in found["rows"]]
        write_atomically(out / "whatif-check.json", dump_json(found))
        write_atomically(out / "whatif-check.csv", pd.DataFrame(rows).to_csv(index=False).encode())
        write_atomically(out / "whatif-check.svg", draw_check(found).encode())
    if as_json:
        click.echo(dump_json(found), nl=False)
    else:
        print_check(found)
        if out is not None:
            say(f"figure: {out / 'whatif-check.svg'}")
