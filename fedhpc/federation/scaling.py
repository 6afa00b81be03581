"""Statistics of tabular columns over the training rows of all clients, as exact sums: no client shows its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedhpc.comm.sums import Sums
from fedhpc.data.tabular import Scaling
from fedhpc.interfaces import ClientId


def federated_scaling(
    values: np.ndarray, owners: Mapping[ClientId, Tensor], clip: float | None, sums: Sums, device: torch.device
) -> Scaling:
    """Scaling by the mean and deviation of the owners' training rows; twice, as the first bounds clip the second.

    values: float [rows of the file, D], NaN where missing. owners: the training rows (int64) of all clients that hold
    the modality, the same mapping on every rank; each rank adds up some of them. clip: bounds, in deviations.
    Every rank calls this. Raises ValueError when the sums leave the range of fixed point.
    """
    num_columns = values.shape[1]
    everything = torch.full((num_columns,), torch.inf, dtype=torch.float64)
    low, high = -everything, everything
    mean, deviation = _moments(values, owners, low, high, sums, device)
    if clip is not None:
        low, high = mean - clip * deviation, mean + clip * deviation
        mean, deviation = _moments(values, owners, low, high, sums, device)
    return Scaling(low, high, mean, deviation)


def _moments(
    values: np.ndarray,
    owners: Mapping[ClientId, Tensor],
    low: Tensor,
    high: Tensor,
    sums: Sums,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by column of what is not missing; float64 [D], deviation 0 without spread."""
    mesh = sums.collectives.mesh
    mine = [client for place, client in enumerate(owners) if place % mesh.num_slots == mesh.slot]
    terms = []
    for client in mine:
        x = torch.from_numpy(np.asarray(values[owners[client].numpy()], np.float64))
        known = ~x.isnan()
        x = torch.where(known, torch.maximum(torch.minimum(x, high), low), 0.0)
        terms.append(torch.stack([known.double().sum(0), x.sum(0), (x * x).sum(0)]))
    total = sums.total(terms, (3, values.shape[1]), len(owners), device).cpu()
    count = total[0].clamp(min=1)
    mean = total[1] / count
    variance = (total[2] / count - mean * mean).clamp(min=0)
    # What cancels to rounding errors of fixed point is no spread.
    variance[variance < 1e-9 * (1e-6 + total[2] / count)] = 0
    return mean, variance.sqrt()
