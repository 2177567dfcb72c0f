"""A Service's address between a client and its server: one connection, by what each end says of the other."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.evidence.identity import Connections
from analysis.evidence.translation import untranslated

CLIENT, HUB, OTHER = ("10.98.0.23", 44276), ("10.98.0.24", 9000), ("10.98.0.25", 9000)
SERVICE, OUTSIDE = ("10.96.0.137", 9000), ("192.0.2.7", 443)


def connections(*ends: tuple[str, tuple[str, int], tuple[str, int]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "ts_ns": 10 + number,
                "pod": pod,
                "connection": number,
                "opened_ns": 0,
                "first_seq": 0,
                "local": local[0],
                "local_port": local[1],
                "remote": remote[0],
                "remote_port": remote[1],
            }
            for number, (pod, local, remote) in enumerate(ends)
        ]
    )


def remotes(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(table["remote"], table["remote_port"], strict=True))


def test_both_ends_are_one_connection() -> None:
    table = connections(("worker", CLIENT, SERVICE), ("hub", HUB, CLIENT))
    assert len(set(Connections(table).key_of.values())) == 2
    found = untranslated({"connections": table, "owners": table, "turns": table})
    assert len(set(Connections(found["connections"]).key_of.values())) == 1
    assert remotes(found["connections"]) == remotes(found["owners"]) == [HUB, CLIENT]
    assert found["turns"] is table
    assert remotes(table) == [SERVICE, CLIENT]  # what was recorded is left as it was


@pytest.mark.parametrize(
    "ends",
    [
        [("worker", CLIENT, HUB), ("hub", HUB, CLIENT)],  # nothing was translated
        [("worker", CLIENT, OUTSIDE)],  # whose other end nobody has seen
        [("hub", HUB, CLIENT)],  # a client elsewhere
        [("worker", CLIENT, OTHER), ("hub", HUB, CLIENT), ("other", OTHER, HUB)],  # a pod has that address
        [("worker", CLIENT, SERVICE), ("hub", HUB, CLIENT), ("other", OTHER, CLIENT)],  # two answer for it
        [("worker", CLIENT, HUB), ("hub", HUB, CLIENT), ("worker", CLIENT, SERVICE)],  # taken already
    ],
)
def test_what_is_not_plain_is_left_as_it_stands(
    ends: list[tuple[str, tuple[str, int], tuple[str, int]]],
) -> None:
    table = connections(*ends)
    assert remotes(untranslated({"connections": table})["connections"]) == remotes(table)


def test_two_clients_of_a_service_are_two_connections() -> None:
    second = ("10.98.0.26", 44276)
    table = connections(
        ("worker-0", CLIENT, SERVICE),
        ("worker-1", second, SERVICE),
        ("hub", HUB, CLIENT),
        ("hub", HUB, second),
    )
    found = untranslated({"connections": table})["connections"]
    assert remotes(found) == [HUB, HUB, CLIENT, second]
    assert len(set(Connections(found).key_of.values())) == 2
