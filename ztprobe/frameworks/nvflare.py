"""NVIDIA FLARE's log: rounds, results, and the transfer times that it measured itself.

Read in the wheel of nvflare 2.9 (app_common/workflows/fedavg.py, scatter_and_gather.py, cyclic.py,
scaffold.py; private/fed/client/communicator.py; fuel/utils/log_config.json). Lines begin with local time to
the millisecond. FedAvg says when a round starts and not when it ends: it ends where the next begins, or
with `Finished FedAvg.`; scatter and gather says both. FedAvg's own words are framed, and stand on lines of
their own below the one with the time.
"""

from __future__ import annotations

import json
import re

from ztprobe.frameworks.log_source import FrameworkLog, Word
from ztprobe.frameworks.stamps import ASCTIME, LineStamp, asctime_stamp

__all__ = ("NvflareLog",)

_LEVEL = r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)"
# "TIME - LOGGER - LEVEL - [identity=..., run=...] - TEXT", the bracket only where there is a context.
_LINE = re.compile(
    rf"{ASCTIME} - (?P<logger>[\w.]+) - {_LEVEL} - (?:\[(?P<context>[^]]*)\](?: -|:) )?(?P<text>.*)"
)
_ASCTIME = re.compile(ASCTIME + "$")
# Only NVFlare's lines have such a context or come from such loggers.
_CONTEXT = re.compile(r"identity=(?P<identity>[^,\]]*)")
_LOGGERS = frozenset(
    (
        *("BaseModelController", "Cell", "ClientManager", "ClientRunner", "Communicator", "FederatedClient"),
        *("FederatedServer", "FedAvg", "FLServer", "JobRunner", "ScatterAndGather", "ServerEngine"),
        *("ServerRunner", "SimulatorRunner", "WFCommServer"),
    )
)

_START = re.compile(r"-*\s*Round (?P<round>\d{1,9}) started\.")
_END = re.compile(r"-*\s*Round (?P<round>\d{1,9}) finished\b")
_AGGREGATED = re.compile(r"Aggregated (?P<results>\d{1,9})/(?P<of>\d{1,9}) results")
_RESULT = re.compile(r"got result from client (?P<client>\S{1,200}) for task: name=(?P<task>[^,]{1,200}),")
_FINISHED = re.compile(
    r"-*\s*(?:Finished (?:FedAvg|Cyclic|Scaffold|ScatterAndGather\w*)\b|Stopping at round=\d+)", re.IGNORECASE
)
_TRANSFER = re.compile(
    r"(?:Received from \S+ getTask: (?P<task>\S+) size: .*?|SubmitUpdate to: \S+ size: .*?)"
    r"\((?P<bytes>\d{1,15}) Bytes\)\.? time: (?P<seconds>\d{1,9}\.\d{1,9}) seconds"
)


class NvflareLog(FrameworkLog):
    """A RoundSource of a server's (or a client's) log.txt, its console, or log.json."""

    framework = "NVFlare"
    # Of the last line that had a time, for lines that belong to it; None: it was not NVFlare's.
    _above: LineStamp | None = None

    def read(self, text: str) -> tuple[LineStamp | None, bool, Word | None]:
        """See `FrameworkLog.read`."""
        if text.startswith("{"):
            return self._read_json(text)
        found = _LINE.match(text)
        if found is None:
            word = _word(text.strip(), "") if self._above is not None else None
            return (self._above, True, word) if word is not None else (None, False, None)
        context = _CONTEXT.search(found["context"] or "")
        is_ours = context is not None or found["logger"].rsplit(".", 1)[-1] in _LOGGERS
        word = _word(found["text"].strip(), context["identity"] if context is not None else "")
        self._above = asctime_stamp(found) if is_ours else None
        return asctime_stamp(found), is_ours, word if is_ours else None

    def _read_json(self, text: str) -> tuple[LineStamp | None, bool, Word | None]:
        try:
            record = json.loads(text)
            asctime = _ASCTIME.match(record["asctime"])
            name, said = str(record["fullName"]), str(record["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, False, None
        if asctime is None or not name.startswith("nvflare."):
            return None, False, None
        return asctime_stamp(asctime), True, _word(said.strip(), str(record.get("identity", "")))


def _word(said: str, identity: str) -> Word | None:
    if (found := _START.match(said)) is not None:
        return Word("round_start", int(found["round"]))
    if (found := _END.match(said)) is not None:
        return Word("round_end", int(found["round"]), closes=True)
    if (found := _AGGREGATED.match(said)) is not None:
        return Word("update_aggregated", facts={"results": int(found["results"]), "of": int(found["of"])})
    if (found := _RESULT.match(said)) is not None:
        return Word("update_received", facts={"client_id": found["client"], "task": found["task"]})
    if _FINISHED.match(said):
        return Word("round_end", closes=True)
    if (found := _TRANSFER.match(said)) is not None:
        facts = {"bytes": int(found["bytes"]), "duration_ns": round(float(found["seconds"]) * 1e9)}
        who = {"client_id": identity} if identity else {}
        return Word("get_task" if found["task"] else "submit_update", facts={**who, **facts})
    return None
