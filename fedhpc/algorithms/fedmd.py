"""FedMD: Li and Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", NeurIPS workshop 2019,
Algorithm 1.

Every client owns a network of its own. A round: all score the public pictures (communicate), the mean of their logits
is the consensus (aggregate), every client learns it (digest), then its own rows (revisit). Theirs first trains on
labels of the public set; here nobody reads such, and `pretrain_epochs` are local.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhpc.algorithms.noisy_losses import distance_to_rest
from fedhpc.algorithms.own_models import OwnModels, at_least_three, pretrain
from fedhpc.config.distillation import FedMDConfig
from fedhpc.interfaces import Batch, Client, Contribution, Federation, Loss


class FedMD(OwnModels):
    """The sum of all clients' logits is all that anybody sees."""

    def __init__(self, config: FedMDConfig) -> None:
        super().__init__()
        self._config = config

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        at_least_three(len(fed.cohort))
        if index == 0 and self._config.pretrain_epochs:
            fed.each(partial(pretrain, epochs=self._config.pretrain_epochs))
        sizes = [len(batch["row"]) for batch in fed.public]
        scores = fed.each(partial(public_logits, fed.public))
        consensus = fed.sum(scores, shape=(sum(sizes), self.num_classes)) / len(fed.cohort)
        fed.each(partial(self.digest, fed.public, consensus.float().split(sizes)))
        return fed.reduce(self.revisit, like={}, metrics=("loss",)).metrics

    def digest(self, public: Sequence[Batch], consensus: Sequence[Tensor], client: Client) -> None:
        """Steps towards the consensus, logits [B,K] a batch."""
        client.resume()
        for _ in range(self._config.digest_epochs):
            for batch, target in zip(public, consensus, strict=True):
                client.step(batch, towards(target, self._config.loss), rate=self._config.public_learning_rate)

    def revisit(self, client: Client) -> Contribution:
        client.resume()
        report = client.fit()
        return Contribution({}, float(client.num_examples), {"loss": report.loss})


def public_logits(public: Sequence[Batch], client: Client) -> Tensor:
    """What a client's own model makes of all public batches, in eval mode: [rows,K]."""
    client.resume()
    return torch.cat([client.forward(batch, "logits").double() for batch in public])


def towards(target: Tensor, kind: str) -> Loss:
    """Distance of logits to `target` logits [B,K]: "mae", or "kl" of softmaxes."""

    def loss(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
        logits = out["logits"].float()
        if kind == "mae":
            return F.l1_loss(logits, target.to(logits.device))
        return distance_to_rest(logits, target.to(logits.device).softmax(dim=1))

    return loss
