"""What communication costs, in words and as a table: `analysis.report.communication` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.report.wording import PART_NAMES, human_percent, human_time, plural
from analysis.rounds.timeouts import LEAST_MARGIN, warnings_of

__all__ = ("client_columns", "communication_lines")

_NAMES = {
    "transfer": "transfer",
    "polling": "polling",
    "hubs": "hubs and nodes",
    "process_starts": "process starts",
    "training": "training",
    "server": "server",
    "set_up": "connection set-up",
    "client_and_return_path": "client and return path",
}
_COLUMNS = {
    "communication": "communication",
    "transfer": "transfer",
    "polling": "poll waits",
    "hubs": "hubs",
    "set_up": "set-up",
    "process_starts": "starts",
    "training": "training",
    "client_and_return_path": "client, way back",
}
_SHOWN_SHARE = 0.0005
_FEW = 4


def client_columns(communication: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(part, title) of what clients spent time on, communication first; without what took nobody any."""
    return [
        (part, title)
        for part, title in _COLUMNS.items()
        if part in ("communication", "transfer")
        or any(one[f"{part}_s"] > 0 for one in communication["rounds"])
    ]


def communication_lines(communication: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and sentence, for people."""
    if not communication:
        return
    yield "path", " → ".join(communication["path"]) + " and back"
    shares = sorted(communication["shares"].items(), key=lambda item: -item[1])
    said = [
        f"{_NAMES.get(part, PART_NAMES.get(part, part))} {human_percent(share)}"
        for part, share in shares
        if share >= _SHOWN_SHARE
    ]
    yield "a round is", ", ".join(said)
    yield "communication", "by client above, by client and round in communication.csv"
    for number, one in enumerate(communication["pollers"]):
        yield (
            "polls" if number == 0 else "",
            f"{one['who']} asks {one['of']} {one['polls_per_round']:.1f} times a round, "
            f"{human_time(one['pause_s'])} apart",
        )
    if (decides := communication["decides"]) is not None:
        yield "who decides", _decides_words(decides)
    if communication["one_sided"]:
        yield "one-sided", _one_sided_words(communication["clients"])
    yield from _timeout_lines(communication)


def _decides_words(decides: Mapping[str, Any]) -> str:
    words = f"{decides['client']} decides {decides['rounds']} of {plural(decides['of'], 'round')}"
    if decides["ties"]:
        words += f" ({decides['ties']} of them by less than 1 ms)"
    if decides["because"] == "server":
        more = f"{human_time(decides['more_s'])} a round longer than the others"
        return f"{words}; nothing of its own takes it longer: the server keeps it waiting {more}"
    if decides["because"] is None:
        return f"{words}; nothing takes it longer than the others in the mean"
    more = f"{_NAMES[decides['because']]}, {human_time(decides['more_s'])} a round"
    return f"{words}; what it spends more on than the others is {more}"


def _one_sided_words(clients: Sequence[Mapping[str, Any]]) -> str:
    elsewhere = [one for one in clients if one["round_trip_s"] is not None]
    names = [one["client"] for one in elsewhere]
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    whose = f"{', '.join(names[:_FEW])}{more}: " if names else ""
    bounds = ""
    if elsewhere:
        longest_s = max(one["round_trip_s"] for one in elsewhere)
        bounds = (
            "; propagation is half of the shortest round trip, and lies between nothing and all of it, "
            f"{human_time(longest_s)} at most"
        )
    return (
        f"{whose}on other machines, where nobody watches. When they had the model is told by their "
        "acknowledgements; from then to the first byte of the update all is one row, client and return path"
        f"{bounds}. An agent there would tell training, waits and the way back from each other"
    )


def _timeout_lines(communication: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every limit beside what was measured; those that are near as warnings, first."""
    known = [one for one in communication["timeouts"] if one["margin"] is not None]
    said = warnings_of(known)
    said += [
        f"{one['name']}: {human_time(one['limit_s'])}; {one['bounds']} took up to "
        f"{human_time(one['longest_s'])}, so {one['margin']:,.0f} times as long would fit"
        for one in known
        if one["margin"] >= LEAST_MARGIN
    ]
    if not communication["timeouts"] and communication["longest"]["message_s"] is not None:
        longest = communication["longest"]
        said.append(
            "the deployment's own are not known. To hold against them: a whole model or update took up to "
            f"{human_time(longest['message_s'])}"
            + (
                f", from a model to its update it took up to {human_time(longest['exchange_s'])}"
                if longest["exchange_s"] is not None
                else ""
            )
        )
    for number, words in enumerate(said):
        yield "timeouts" if number == 0 else "", words
