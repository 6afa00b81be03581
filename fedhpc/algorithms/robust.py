"""Robust client weights q of FedDRA, from round to round (ALGORITHMS.md A.5): who has them, what moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhpc.algorithms.weighting import chi_square, uniform, updated
from fedhpc.config.algorithms import DroConfig
from fedhpc.interfaces import Batch, ClientId, Loss

NAMED_WEIGHTS = 32  # up to as many clients have their weight in the metrics


class RobustWeights:
    """q over all clients, the same on every rank.

    Raises ValueError when `trim` leaves no client.
    """

    def __init__(self, config: DroConfig, clients: Sequence[ClientId]) -> None:
        if config.trim >= len(clients):
            raise ValueError(
                f"algorithm.dro.trim: {config.trim} leaves none of {len(clients)} clients; set a smaller one"
            )
        self._config = config
        self._place = {client: index for index, client in enumerate(clients)}
        self.q = uniform(len(clients))
        self._losses = torch.full_like(self.q, float("nan"))  # last seen of each client
        self._first = self._losses.clone()  # its first one

    def factors(self, cohort: Sequence[ClientId]) -> dict[ClientId, float]:
        """N q_c of the cohort's clients: 1 for uniform weights. A cohort without any weight (possible on the simplex)
        counts alike."""
        factors = {client: len(self.q) * float(self.q[self._place[client]]) for client in cohort}
        return factors if any(factors.values()) else dict.fromkeys(cohort, 1.0)

    def update(self, cohort: Sequence[ClientId], losses: Tensor) -> None:
        """The cohort's losses, float64 [len(cohort)], move q. A client outside it counts as the cohort's mean (a step),
        or with the last loss that was seen of it (the exact maximum)."""
        config = self._config
        place = torch.tensor([self._place[client] for client in cohort])
        new = self._first[place].isnan()
        self._first[place[new]] = losses[new]
        if config.loss_baseline == "first":
            losses = losses - self._first[place]
        self._losses[place] = losses
        known = self._losses
        if config.update == "exponentiated":
            known = torch.full_like(self.q, float("nan")).scatter(0, place, losses)
        known = trimmed(torch.where(known.isnan(), losses.mean(), known), config.trim)
        self.q = updated(self.q, known, config.set, config.rho, config.update, config.step_size)

    def reset(self) -> None:
        """Back to uniform."""
        self.q = uniform(len(self.q))

    def metrics(self) -> dict[str, float]:
        """The largest weight and the divergence from uniform; of few clients each one's weight and last loss."""
        metrics = {"weight_max": float(self.q.max()), "weight_chi_square": chi_square(self.q)}
        if len(self.q) <= NAMED_WEIGHTS:
            metrics |= {f"weight_{client}": float(self.q[i]) for client, i in self._place.items()}
            seen = {client: float(self._losses[i]) for client, i in self._place.items() if not self._losses[i].isnan()}
            metrics |= {f"risk_{client}": loss for client, loss in seen.items()}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"q": self.q, "losses": self._losses, "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.q, self._losses, self._first = (state[name].cpu() for name in ("q", "losses", "first"))


def trimmed(losses: Tensor, count: int) -> Tensor:
    """The `count` highest of losses [N] replaced by the mean of the others."""
    if not count:
        return losses
    order = losses.argsort(stable=True)
    return losses.index_fill(0, order[-count:], float(losses[order[:-count]].mean()))


def excess_loss(loss: Loss) -> Loss:
    """What of L_ITA a better model could save: rows of identical text cannot be told apart, by either direction, which
    costs a perfect model log m for a text that m rows of the batch share. Clients differ in m more than in difficulty.
    """

    def excess(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
        _, member, count = torch.unique(batch["tokens"], dim=0, return_inverse=True, return_counts=True)
        return loss(out, batch) - 2 * count[member].float().log().mean()

    return excess
