"""Statistics of tabular columns over the training rows of all clients, as exact sums: no client shows its own.

Columns come in any unit, and fixed point has one range for all. So a first sum finds each column's typical magnitude (a
power of two near the geometric mean of its values), and moments are then summed in units of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedhpc.comm.secure import Contributors
from fedhpc.comm.sums import Sums
from fedhpc.data.tabular import Scaling
from fedhpc.interfaces import ClientId

MAX_EXPONENT = 100.0  # magnitudes from 2^-100 to 2^100
BOUND = 1000.0  # in magnitudes: values beyond it are pulled in, whatever the clipping


def federated_scaling(
    values: np.ndarray, owners: Mapping[ClientId, Tensor], clip: float | None, sums: Sums, device: torch.device
) -> Scaling:
    """Scaling by the mean and deviation of the owners' training rows; twice, as the first bounds clip the second.

    values: float [rows of the file, D], NaN where missing. owners: the training rows (int64) of all clients that hold
    the modality, the same mapping on every rank; each rank adds up some of them. clip: bounds, in deviations.
    Every rank calls this.
    """
    mesh = sums.collectives.mesh
    mine = {c: rows for place, (c, rows) in enumerate(owners.items()) if place % mesh.num_slots == mesh.slot}
    parts = [torch.from_numpy(np.asarray(values[rows.numpy()], np.float64)) for rows in mine.values()]
    columns = values.shape[1]

    def total(terms: list[Tensor], kinds: int) -> Tensor:
        who = Contributors(tuple(owners), ("the scaling of columns",), dict.fromkeys(mine, (True,)))
        return sums.total(terms, (kinds, columns), len(owners), device, who, what="scaling").cpu()

    count, nonzero, exponents = total([_magnitudes(x) for x in parts], 3)
    unit = torch.exp2((exponents / nonzero.clamp(min=1)).round())
    low, high = torch.full((columns,), -BOUND).double(), torch.full((columns,), BOUND).double()
    for first in (True, False):
        mean, square = total([_moments(x / unit, low, high, count) for x in parts], 2)
        variance = (square - mean * mean).clamp(min=0)
        variance[variance < 1e-9 * square] = 0  # what cancels to rounding errors is no spread
        deviation = variance.sqrt()
        if first and clip is not None:
            low, high = (mean - clip * deviation).clamp(min=-BOUND), (mean + clip * deviation).clamp(max=BOUND)
    return Scaling(low * unit, high * unit, mean * unit, deviation * unit)


def _magnitudes(x: Tensor) -> Tensor:
    """x [n,D] -> [3,D]: how many values there are, how many of them are not 0, the sum of log2 of their magnitudes."""
    known = ~x.isnan()
    nonzero = known & (x != 0)
    exponent = torch.where(nonzero, x.abs().log2().clamp(-MAX_EXPONENT, MAX_EXPONENT), 0.0)
    return torch.stack([known.double().sum(0), nonzero.double().sum(0), exponent.sum(0)])


def _moments(x: Tensor, low: Tensor, high: Tensor, count: Tensor) -> Tensor:
    """x [n,D] -> [2,D]: its share in the mean and in the mean square of `count` values within bounds."""
    x = torch.where(x.isnan(), torch.zeros_like(x), torch.maximum(torch.minimum(x, high), low))
    return torch.stack([x.sum(0), (x * x).sum(0)]) / count.clamp(min=1)
