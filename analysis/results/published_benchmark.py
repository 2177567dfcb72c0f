"""The published figures that paper-80 continues, as they were printed: to be shown beside ours, never used.

"ZeroTrust-FLBench: A Comprehensive Evaluation Framework for Zero Trust Federated Learning Environments"
(Nguyen Nhat Huy and Phan Luu Tung), in the version whose NET2 is 80 ± 20 ms one way: Table I (completed
experiments; 158 attempts in all, of how many in a cell is not told) and Table III (means over 10 runs of 50
rounds, with 95 % intervals over runs). Another version of it gives 6.47 s and 8.59 s for the p99 of NET0 with
SEC0 and SEC3, and 8.64 s and 10.05 s for NET2. The overhead that it prints is that of the p99 over SEC0 under
the same network. No raw data could be found.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("PUBLISHED", "PUBLISHED_ATTEMPTS", "PUBLISHED_ROUNDS", "Published")

PUBLISHED_ATTEMPTS = 158
PUBLISHED_ROUNDS = 50  # of each run


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of the published tables."""

    completed: int  # Table I
    median_s: float
    median_ci95_s: tuple[float, float]
    p99_s: float
    p99_ci95_s: tuple[float, float]
    overhead_pct: float | None  # of the p99 over sec0's, as it is printed; None: of sec0


def _cell(
    completed: int, median_s: tuple[float, ...], p99_s: tuple[float, ...], overhead_pct: float | None = None
) -> Published:
    """:param median_s: value and interval, as Table III prints them; so is p99_s."""
    return Published(
        completed=completed,
        median_s=median_s[0],
        median_ci95_s=(median_s[1], median_s[2]),
        p99_s=p99_s[0],
        p99_ci95_s=(p99_s[1], p99_s[2]),
        overhead_pct=overhead_pct,
    )


PUBLISHED = {
    "net0-sec0": _cell(34, (5.09, 4.92, 5.27), (6.13, 5.92, 6.33)),
    "net0-sec1": _cell(20, (5.90, 5.80, 6.02), (7.08, 6.89, 7.28), 15.4),
    "net0-sec2": _cell(21, (6.66, 6.49, 6.84), (7.74, 7.54, 7.98), 26.3),
    "net0-sec3": _cell(22, (7.09, 6.81, 7.35), (8.22, 7.98, 8.46), 34.1),
    "net2-sec0": _cell(15, (6.82, 6.58, 7.10), (7.91, 7.65, 8.19)),
    "net2-sec1": _cell(16, (7.81, 7.67, 7.96), (8.94, 8.71, 9.15), 13.1),
    "net2-sec2": _cell(15, (8.23, 8.02, 8.42), (9.33, 9.19, 9.49), 18.1),
    "net2-sec3": _cell(15, (8.53, 8.33, 8.74), (9.60, 9.41, 9.83), 21.5),
}
