"""Who takes part in a round: a pure function of (random_seed, round)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedhpc.config.schema import CohortConfig
from fedhpc.interfaces import ClientId


def cohort_size(config: CohortConfig, num_clients: int) -> int:
    """Clients a round."""
    if config.size is not None:
        return config.size
    if config.fraction is not None:
        return max(1, round(config.fraction * num_clients))
    return num_clients


def sample_cohort(
    clients: Sequence[ClientId], config: CohortConfig, random_seed: int, index: int
) -> tuple[ClientId, ...]:
    """Sorted ids, drawn uniformly without replacement.

    Raises:
        ValueError: more are asked for than there are.
    """
    size = cohort_size(config, len(clients))
    if size > len(clients):
        raise ValueError(
            f"cohort.size: {size}, but there are {len(clients)} clients; set cohort.size to at most {len(clients)}"
        )
    if size == len(clients):
        return tuple(sorted(clients))
    rng = np.random.default_rng([random_seed, index, 0xC0407])
    return tuple(sorted(int(c) for c in rng.choice(np.asarray(clients), size=size, replace=False)))
