"""Who trains on what: the training set's indices split among the clients.

Both splits depend on the seed, lose no sample, give none twice and leave no client
without one. Each side computes the whole split and takes its part, so nothing about
it travels.
"""

from __future__ import annotations

import numpy as np

from fl.data import Indices, Labels
from fl.errors import ConfigError

__all__ = ("DIRICHLET_ALPHA", "DISTRIBUTIONS", "partition")

DISTRIBUTIONS = ("iid", "noniid")
DIRICHLET_ALPHA = 0.5


def partition(labels: Labels, *, clients: int, seed: int, distribution: str) -> list[Indices]:
    """One sorted index array per client, client 0 first.

    :raises ConfigError: unknown distribution, or fewer samples than clients.
    """
    if not 1 <= clients <= len(labels):
        raise ConfigError(f"{clients} clients cannot share {len(labels)} training samples")
    rng = np.random.default_rng(
        [seed, DISTRIBUTIONS.index(distribution) if distribution in DISTRIBUTIONS else 9]
    )
    if distribution == "iid":
        parts = np.array_split(rng.permutation(len(labels)), clients)
    elif distribution == "noniid":
        parts = _dirichlet(labels, clients, rng)
    else:
        raise ConfigError(f"distribution {distribution!r}: expected one of {', '.join(DISTRIBUTIONS)}")
    return [np.sort(part) for part in parts]


def _dirichlet(labels: Labels, clients: int, rng: np.random.Generator) -> list[Indices]:
    # Each class is shared out by proportions of its own, drawn from Dirichlet(alpha, ..., alpha).
    shares: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(clients, DIRICHLET_ALPHA))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for share, piece in zip(shares, np.split(members, cuts), strict=True):
            share.append(piece)
    parts = [np.concatenate(share) for share in shares]
    # Many clients on a small set can leave one with nothing; drawing again might never end.
    for poor in range(clients):
        if len(parts[poor]) == 0:
            rich = max(range(clients), key=lambda client: len(parts[client]))
            parts[poor], parts[rich] = parts[rich][-1:], parts[rich][:-1]
    return parts
