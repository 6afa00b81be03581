"""Who takes part in a round: a pure function of (random_seed, round)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedhpc.comm.graph import degree, threshold
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


def dropped(cohort: Sequence[ClientId], config: CohortConfig, random_seed: int, index: int) -> frozenset[ClientId]:
    """Those of a round's cohort that are lost in it, each with `cohort.dropout.probability`."""
    if config.dropout is None:
        return frozenset()
    draws = np.random.default_rng([random_seed, index, 0xD709]).random(len(cohort))
    return frozenset(c for c, draw in zip(cohort, draws, strict=True) if draw < config.dropout.probability)


def refuse_short_rounds(
    clients: Sequence[ClientId], config: CohortConfig, random_seed: int, rounds: int, least: int, masked: bool
) -> None:
    """Dropout is drawn from the seed, so a round that could not be finished is known before the first one.

    Args:
        least: clients that must be left in every round.
        masked: sums are masked, so that clients lost after masking must be outnumbered by the others.

    Raises:
        ValueError: too few clients are left in some round.
    """
    if config.dropout is None:
        return
    for index in range(rounds):
        cohort = sample_cohort(clients, config, random_seed, index)
        left = len(cohort) - len(dropped(cohort, config, random_seed, index))
        after = config.dropout.when == "after"
        needed = (
            max(least, threshold(len(cohort))) if masked and after and degree(len(cohort)) == len(cohort) - 1 else least
        )
        if left < needed:
            reason = "; aggregation.secure takes masks off with more than half of them" if needed > least else ""
            raise ValueError(
                f"cohort.dropout.probability = {config.dropout.probability:g} leaves {left} of {len(cohort)} clients "
                f"in round {index}, {needed} are needed{reason}. Set a lower probability, a larger cohort, or another "
                "random_seed"
            )
