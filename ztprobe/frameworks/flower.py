"""Flower's log: `[ROUND i/n]` and what its strategies say between.

Read in the wheels of flwr 1.36 to 1.42 (flwr/serverapp/strategy/strategy.py and fedavg.py, flwr/supercore/
logger.py) and, for apps with the legacy strategies, flwr/server/server.py and workflow/default_workflows.py.
A round has no line at its end: it ends where the next begins or where the strategy says that it has finished.

The console has no time, except under FLWR_LOG_LEVEL=DEBUG; a log file has one. The ServerApp's lines often
reach nobody but `flwr run --stream` and `flwr log`, in batches: a process uploads what it printed at most
every 0.2 s (LOG_UPLOAD_INTERVAL), and the SuperLink hands on what it has every 0.5 s (LOG_STREAM_INTERVAL;
flwr/common/constant.py).
"""

from __future__ import annotations

import re

from ztprobe.frameworks.log_source import FrameworkLog, Word
from ztprobe.frameworks.stamps import ASCTIME, LineStamp, asctime_stamp

__all__ = ("BATCHED_NS", "FlowerLog")

LOG_UPLOAD_INTERVAL_NS = 200_000_000
LOG_STREAM_INTERVAL_NS = 500_000_000
# And what both requests take on a machine that is busy with training.
BATCHED_NS = LOG_UPLOAD_INTERVAL_NS + LOG_STREAM_INTERVAL_NS + 50_000_000

_LEVEL = r"(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL)"
# On the console "INFO :      TEXT" or, with a time, "INFO 2026-11-28 10:40:06,759:      TEXT".
_CONSOLE = re.compile(rf"{_LEVEL} (?:{ASCTIME})? ?: +(?P<text>.*)")
# In a file "INFO flwr TIME | strategy.py:101 | TEXT", with an identifier before it where one was given.
_FILE = re.compile(rf"(?:[^|]{{0,200}}\| )?{_LEVEL} flwr {ASCTIME} \| [\w.]+:\d+ \| (?P<text>.*)")
# flwr.common.logger's JSON console.
_JSON = re.compile(rf"\{{lvl='{_LEVEL}', time='{ASCTIME}', msg='(?P<text>.*)'\}}")

_ROUND = re.compile(r"\[ROUND (?P<round>\d{1,9})(?:/(?P<of>\d{1,9}))?\]$")
_SAMPLED = re.compile(
    r"configure_(?P<what>train|fit|evaluate): (?:Sampled|strategy sampled) (?P<clients>\d{1,9}) "
    r"(?:nodes|clients) \(out of (?P<of>\d{1,9})\)"
)
_RECEIVED = re.compile(
    r"aggregate_(?P<what>train|fit|evaluate): [Rr]eceived (?P<results>\d{1,9}) results "
    r"and (?P<failures>\d{1,9}) failures"
)
_ERROR = re.compile(r"> Received error in reply from node (?P<node>-?\d{1,20}): (?P<reason>.*)")
_FINISHED = re.compile(r"Strategy execution finished in [\d.]+s|Run finished \d+ round\(s\) in [\d.]+s")


class FlowerLog(FrameworkLog):
    """A RoundSource of a ServerApp's log, of `flwr run --stream`, or of `flwr log`."""

    framework = "Flower"
    # Of lines without a clock nobody can tell whether they came through the SuperLink.
    batched_ns = BATCHED_NS

    def read(self, text: str) -> tuple[LineStamp | None, bool, Word | None]:
        """See `FrameworkLog.read`."""
        found = _CONSOLE.match(text) or _FILE.match(text) or _JSON.match(text)
        if found is None:
            return None, False, None
        stamp = asctime_stamp(found) if found["date"] else None
        said = found["text"].strip()
        word = _word(said)
        # Other programs log by level, too; Flower's own is what only Flower says.
        return stamp, word is not None or _is_flowers(said), word


def _is_flowers(said: str) -> bool:
    ours = ("Starting Flower ", "Starting logstream for run_id", "[Fleet.", "SuperLinkLifespan")
    return said.startswith(ours) or (said.startswith("Starting ") and said.endswith(" strategy:"))


def _word(said: str) -> Word | None:
    if (found := _ROUND.match(said)) is not None:
        of = {"of": int(found["of"])} if found["of"] else {}
        return Word("round_start", int(found["round"]), of)
    if (found := _SAMPLED.match(said)) is not None:
        facts = {"clients": int(found["clients"]), "clients_connected": int(found["of"])}
        # What is evaluated has been aggregated.
        return Word("aggregate_end" if found["what"] == "evaluate" else "send_start", facts=facts)
    if (found := _RECEIVED.match(said)) is not None:
        facts = {"results": int(found["results"]), "failures": int(found["failures"])}
        return Word("evaluate_end" if found["what"] == "evaluate" else "wait_end", facts=facts)
    if (found := _ERROR.match(said)) is not None:
        return Word("client_error", facts={"node_id": found["node"], "reason": found["reason"]})
    if _FINISHED.match(said):
        return Word("round_end", closes=True)
    return None
