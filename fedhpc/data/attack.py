"""FOR STUDIES: which clients attack (config.attack), and the labels that they train on when they flip them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedhpc.config.byzantine import Attack
from fedhpc.data.partition import ClientRows
from fedhpc.interfaces import ClientId

_PURPOSE = 0xBAD  # keeps this draw apart from others of the same random seed


def attackers(attack: Attack, trainers: Sequence[ClientId], random_seed: int) -> frozenset[ClientId]:
    """Of the clients that train; the same in every round.

    Raises:
        ValueError: a client that does not train is named, or nobody honest is left.
    """
    if attack.clients is not None:
        chosen = frozenset(attack.clients)
        if unknown := sorted(chosen - set(trainers)):
            raise ValueError(f"attack.clients: client {unknown[0]} does not train; those that do are {list(trainers)}")
    else:
        assert attack.fraction is not None, "the schema demands one of them"
        count = max(1, round(attack.fraction * len(trainers)))
        draw = np.random.default_rng([random_seed, _PURPOSE]).permutation(sorted(trainers))
        chosen = frozenset(draw[:count].tolist())
    if len(chosen) == len(trainers):
        raise ValueError(f"attack: all {len(trainers)} clients would attack; leave an honest one")
    return chosen


def flip_labels(
    labels: np.ndarray, num_classes: int, clients: Sequence[ClientRows], who: frozenset[ClientId]
) -> np.ndarray:
    """A copy of labels (integer [rows of the file]) in which class i of the attackers' training rows is C - 1 - i; -1
    stays."""
    given = labels.copy()
    for client in clients:
        if client.id in who:
            rows = client.train[labels[client.train] >= 0]
            given[rows] = num_classes - 1 - labels[rows]
    return given
