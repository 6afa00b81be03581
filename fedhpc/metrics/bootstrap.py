"""Percentile bootstrap over clusters: patients are drawn with replacement, and all rows of a patient with them.

Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979; rows of one patient are alike, so
that resampling rows would give intervals that are too narrow (Field and Welsh, JRSS B 2007).

A resample is a weight for each row: how often its patient was drawn. Statistics take many resamples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

# weight float64 [R,N], at least one > 0 in each row -> name of a metric -> float64 [R], nan where it is not defined
Statistic = Callable[[Tensor], Mapping[str, Tensor]]
CHUNK = 2**21  # weights held at once: 16 MiB


def resample_weights(cluster: Tensor, num_resamples: int, random_seed: int) -> Iterator[Tensor]:
    """float64 [r,N] weights, in chunks that add up to `num_resamples` resamples.

    cluster: integer [N]; rows of one number are drawn together. The same seed gives the same weights.
    """
    names, member = np.unique(cluster.cpu().numpy(), return_inverse=True)
    random = np.random.default_rng((random_seed, 0xB007))
    per_chunk = max(1, CHUNK // max(1, len(member), len(names)))
    for first in range(0, num_resamples, per_chunk):
        count = min(per_chunk, num_resamples - first)
        drawn = random.integers(0, len(names), (count, len(names)))
        times = np.zeros((count, len(names)), np.float64)
        np.add.at(times, (np.arange(count)[:, None], drawn), 1.0)
        yield torch.from_numpy(times[:, member.reshape(-1)])


def bootstrap_intervals(
    statistic: Statistic, cluster: Tensor, num_resamples: int, confidence: float, random_seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each metric: quantiles (1 - confidence) / 2 and (1 + confidence) / 2, linear between
    resamples.

    Resamples where a metric is not defined (nan: a class is missing) are left out of its interval; it is nan when more
    than half of them are. Raises ValueError without rows or resamples.
    """
    if len(cluster) == 0 or num_resamples < 1:
        raise ValueError(f"a bootstrap needs rows and resamples; got {len(cluster)} rows, {num_resamples} resamples")
    found: dict[str, list[Tensor]] = {}
    for weight in resample_weights(cluster, num_resamples, random_seed):
        for name, values in statistic(weight).items():
            found.setdefault(name, []).append(values.double())
    return {name: _interval(torch.cat(parts).numpy(), confidence) for name, parts in found.items()}


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
