"""FedMVP: Che, Wang, Liu, Ma, "Leveraging Foundation Models for Multi-modal Federated Learning with Incomplete
Modality", ECML-PKDD 2024, arXiv 2406.11048. ALGORITHMS.md D.

A round:

    locally      steps on CE + a MCM + b RAM (mvp_losses.py); encoders are frozen, so they cross no wire
    likeness     client i compares what its model makes of a public set, as a unit vector g_i;   T = sum_i g_i
    weights      w_i = <g_i, T> = sum_j CKA(i, j)                                                (cka_weights.py)
    aggregation  shared <- sum_i w_i own_i / sum_i w_i

Missing modalities are completed before training, as part of the data (fedhpc/completion).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedhpc.algorithms.cka_weights import (
    check_public,
    importance,
    mean_likeness,
    representations,
    vector,
    vector_length,
)
from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.own_models import at_least_three
from fedhpc.config.joint import FedMvpConfig
from fedhpc.interfaces import Batch, Block, Blocks, Client, ClientId, Federation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a client keeps of its turn until weights are known."""

    update: Mapping[str, Block]
    vector: Tensor
    loss: float
    examples: int


class FedMvp(FedAvg):
    """CKA-weighted averaging; what clients minimise is the config's objective."""

    def __init__(self, config: FedMvpConfig) -> None:
        super().__init__(config)
        self._config = config

    def setup(self, fed: Federation) -> None:
        """Raises ValueError for fewer than three clients, and for a public set that is too small."""
        super().setup(fed)
        at_least_three(len(fed.clients))
        sizes = [len(batch["row"]) for batch in fed.public]
        check_public(self._config, sizes)
        width = self.shared["embed"]["embed.weight"].shape[0]
        if self._config.cka == "linear" and sum(sizes) < width:
            logger.warning(
                "linear CKA over %d public rows of width %d is inflated: all clients look alike; set public.size: 512 "
                "or more, or algorithm.cka: unbiased_minibatch",
                sum(sizes), width,
            )  # fmt: skip

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        at_least_three(len(fed.cohort))
        trained = fed.each(partial(self.train, fed.public))
        total = self.total(fed, {c: t.vector for c, t in trained.items()})
        weights = {c: self.weight(c, t, total) for c, t in trained.items()}
        updates: Mapping[int, Blocks] = {c: t.update for c, t in trained.items()}
        self.step(fed.mean(updates, weights, like=self.shared))
        losses = {c: torch.tensor([t.loss * t.examples, t.examples]) for c, t in trained.items()}
        loss, examples = fed.sum(losses, shape=(2,)).tolist()
        return {"loss": loss / examples, "cka": mean_likeness(total, len(fed.cohort))}

    def train(self, public: Sequence[Batch], client: Client) -> Trained:
        """Local steps from the shared weights, then what they came to on the public set."""
        client.load(self.shared)
        report = client.fit()
        seen = [[client.forward(batch, name) for batch in public] for name in representations(self._config)]
        update = {name: block.clone() for name, block in client.update(self.shared).items()}
        return Trained(update, vector(self._config, seen), report.loss, client.num_examples)

    def weight(self, client: ClientId, trained: Trained, total: Tensor) -> float:
        """w_i, before all are divided by their sum: known to the client alone."""
        return importance(self._config, trained.vector, total, trained.examples)

    def total(self, fed: Federation, vectors: Mapping[int, Tensor]) -> Tensor:
        """sum_i g_i, float64 [vector_length]: all that is told of a client's representations."""
        sizes = [len(batch["row"]) for batch in fed.public]
        return fed.sum(vectors, shape=(vector_length(self._config, sizes),))
