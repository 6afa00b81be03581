"""Completion by retrieval: the most similar row of the same client that has both modalities lends the missing one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB = 2**22  # similarities held at once


def nearest_of_class(query: Tensor, pairs: Tensor, classes: Tensor, pair_classes: Tensor) -> Tensor:
    """As `nearest`, among pairs of the query's own class; -1 where there is none. classes: integer [n];
    pair_classes: integer [m]. Features are centred by the mean of all pairs."""
    found = torch.full((len(query),), -1)
    mean = pairs.double().mean(dim=0)
    for one in classes.unique():
        asks, gives = (classes == one).nonzero()[:, 0], (pair_classes == one).nonzero()[:, 0]
        if len(gives):
            found[asks] = gives[nearest(query[asks], pairs[gives], mean)]
    return found


def nearest(query: Tensor, pairs: Tensor, mean: Tensor | None = None) -> Tensor:
    """For each of query [n,d] the place of the row of pairs [m,d] with the highest cosine, the first among equals;
    int64 [n]. Features are centred by `mean` [d], that of `pairs` unless given, first: those of one encoder share a
    large common part, which says nothing. m >= 1.
    """
    mean = pairs.double().mean(dim=0) if mean is None else mean
    keys = F.normalize(pairs.double() - mean, dim=1)
    step = max(1, SLAB // len(keys))
    parts = [(F.normalize(q.double() - mean, dim=1) @ keys.T).argmax(dim=1) for q in query.split(step)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
