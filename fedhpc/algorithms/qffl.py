"""q-FedAvg: Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, Algorithm 2,
which minimises q-FFL: sum_k F_k^(q + 1) / (q + 1), Eq. 2.

    D_k = L (w - w_k)                                        w_k: after client k's local steps from w
    Delta_k = F_k^q D_k                                      F_k: loss of w on client k's training rows
    h_k = q F_k^(q - 1) |D_k|^2 + L F_k^q
    w <- w - sum_k Delta_k / sum_k h_k                       sums over the cohort

Divided by L F_k^q, h_k is 1 + q L |w - w_k|^2 / F_k, so the step is a weighted mean of updates over 1 + a weighted mean
of numbers, with weights F_k^q: q = 0 is FedAvg with uniform weights. A common factor of the F_k in the weights cancels;
their mean is divided out, so that weights stay near 1 in exact sums. Only sums leave a client.

L is 1 / learning rate, the mean rate of the steps where a schedule changes it. Cohorts are drawn uniformly. Running
statistics are averaged plainly, with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.config.algorithms import QfflConfig
from fedhpc.interfaces import Blocks, Client, Contribution, Federation, Split

TINY = 1e-10  # a loss of 0 counts as this


class Qffl(FedAvg):
    """The metrics `loss` and `damping` are weighted by F_k^q; `start_loss` is the plain mean of F_k."""

    losses_on: Split | None = "train"

    def __init__(self, config: QfflConfig) -> None:
        super().__init__(config)
        self._config = config

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        losses = fed.each(self.risk)
        mean = float(fed.sum(losses)) / len(fed.cohort)
        reduced = fed.reduce(partial(self.contribute, mean), losses, like=self.shared, metrics=("loss", "damping"))
        self.damped_step(reduced.mean, reduced.metrics["damping"])
        return {**reduced.metrics, "start_loss": mean}

    def risk(self, client: Client) -> Tensor:
        """F_k; float64 scalar."""
        client.load(self.shared)
        loss = client.measure("train", fraction=self._config.loss_fraction)
        return torch.tensor(max(loss, TINY), dtype=torch.float64)

    def contribute(self, mean_loss: float, client: Client, loss: Tensor) -> Contribution:
        """The update, weighted by (F_k / mean F)^q; damping: h_k / (L F_k^q) - 1."""
        client.load(self.shared)
        report = client.fit()
        update = client.update(self.shared)
        q, lipschitz = self._config.q, self._config.lipschitz or report.steps / report.rate_sum
        damping = q * lipschitz * client.dot(update, update) / float(loss)
        return Contribution(update, (float(loss) / mean_loss) ** q, {"loss": report.loss, "damping": damping})

    def damped_step(self, mean: Blocks, damping: float) -> None:
        """w <- w + mean / (1 + damping)."""
        for name, update in mean.items():
            self.shared[name].trainable.add_(update.trainable, alpha=1 / (1 + damping))
            self.shared[name].buffers.add_(update.buffers)
