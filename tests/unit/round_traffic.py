"""Traffic of deployments that are made up, with the truth about their rounds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.rounds.messages import TrafficTransfer
from analysis.rounds.traffic_pattern import InferredRound, infer_rounds

MS, SECOND = 1_000_000, 1_000_000_000
MODEL_BYTES = 4_800_000


@dataclass
class Traffic:
    """Makes transfers of a deployment up, and keeps the truth about its rounds."""

    clients: Sequence[str]
    seed: int = 1
    down_bytes: int = MODEL_BYTES
    up_bytes: int = MODEL_BYTES
    parts: int = 1
    transfers: list[TrafficTransfer] = field(default_factory=list)
    truth: list[tuple[int, int]] = field(default_factory=list)
    now_ns: int = 100 * SECOND

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def send(self, client: str, at_ns: int, down: bool, size: int) -> int:
        """:returns: when all of it was there"""
        for _ in range(self.parts):
            end_ns = at_ns + self.random.randrange(20, 60) * MS
            self.transfers.append(TrafficTransfer(at_ns, end_ns, client, down, size // self.parts))
            at_ns = end_ns + self.random.randrange(1, 30) * MS
        return end_ns

    def poll(self, seconds: float, every_s: float = 3.0) -> None:
        """Idle time: clients ask, the server answers, and sometimes a new TLS connection is made for it."""
        for client in self.clients:
            for i in range(int(seconds / every_s)):
                at_ns = self.now_ns + int(i * every_s * SECOND) + self.random.randrange(SECOND)
                self.transfers.append(
                    TrafficTransfer(at_ns, at_ns + MS, client, False, self.random.choice((420, 3200)))
                )
                self.transfers.append(
                    TrafficTransfer(at_ns + MS, at_ns + 2 * MS, client, True, self.random.choice((310, 4100)))
                )
        self.now_ns += int(seconds * SECOND)

    def round(
        self,
        takes_part: Sequence[str] | None = None,
        *,
        fails: Sequence[str] = (),
        evaluates: bool = False,
        spread_ms: int = 200,
        pause_ms: int = 50,
    ) -> None:
        """``spread_ms``: how far apart clients begin; ``pause_ms``: until the next round."""
        start_ns, ends = self.now_ns, [self.now_ns]
        chosen = list(self.clients if takes_part is None else takes_part)
        for client in self.random.sample(chosen, len(chosen)):
            had_ns = self.send(
                client, start_ns + self.random.randrange(spread_ms) * MS, True, self.down_bytes
            )
            if client not in fails:
                trained_ns = had_ns + self.random.randrange(300, 900) * MS
                ends.append(self.send(client, trained_ns, False, self.up_bytes))
        self.now_ns = max(ends) + 20 * MS
        if evaluates:
            for client in chosen:
                had_ns = self.send(
                    client, self.now_ns + self.random.randrange(spread_ms) * MS, True, self.down_bytes
                )
                result_ns = had_ns + 700 * MS
                self.transfers.append(TrafficTransfer(result_ns, result_ns + MS, client, False, 1_900))
                ends.append(result_ns)
            self.now_ns = max(ends) + 20 * MS
        self.truth.append((start_ns, self.now_ns))
        self.now_ns += pause_ms * MS

    def found(self) -> list[InferredRound]:
        """What is made of it; as many as there were, and each where it was."""
        rounds = infer_rounds(self.transfers)
        assert len(rounds) == len(self.truth)
        for (start_ns, end_ns), one in zip(self.truth, rounds, strict=True):
            assert one.start_ns < end_ns and one.end_ns > start_ns
            assert abs(one.start_ns - start_ns) <= one.start_uncertainty_ns + 250 * MS
            assert abs(one.end_ns - end_ns) <= one.end_uncertainty_ns + 250 * MS
        return rounds


FIVE = [f"client-{i}" for i in range(5)]
