"""MDH-FL: Madni, Umer, Foresti, "Federated Learning for Data and Model Heterogeneity in Medical Imaging", arXiv
2308.00155, on the ground of RHFL (Fang and Ye, CVPR 2022) and RHFL+ (2024). ALGORITHMS.md B.

Every client k owns a network of its own, f_k. A round:

    confidence   w_k from how client k's loss on its own rows falls                    (confidence.py)
    alignment    for every public batch B
                     R_k = softmax(f_k(B)),   S = sum_k w_k R_k
                     one step of client k on KL(S - w_k R_k | R_k)                     = sum_{j != k} w_j KL(R_j | R_k)
    locally      epochs of symmetric cross-entropy, or of RHFL+'s refined labels       (noisy_losses.py)

S is all that a client sees of the others: the gradient depends on them through it alone (B.5), so nothing is gathered.
Two options of ours: `targets: round` takes R and S of all public batches before the steps, in eval mode, and
`last: alignment` turns the two halves of a round around. `variant: upstream` has the ways of the released code, but its
evaluation: that scores the training rows' noisy labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedhpc.algorithms.confidence import ConfidenceWeights
from fedhpc.algorithms.fedmd import public_logits
from fedhpc.algorithms.noisy_losses import distance_to_rest, refined_loss, sce_loss
from fedhpc.algorithms.own_models import OwnModels, at_least_three, objective_of, pretrain
from fedhpc.config.distillation import MdhflConfig
from fedhpc.interfaces import Batch, Client, ClientId, Contribution, Federation, Loss, PerClient, Split


class Mdhfl(OwnModels):
    """MDH-FL; with other defaults RHFL."""

    def __init__(self, config: MdhflConfig) -> None:
        super().__init__()
        self._config = config
        upstream = config.variant == "upstream"
        self._fresh = config.fresh_adam or upstream
        self._sce = sce_loss(config.sce)
        ccr = "rhfl" if upstream else config.ccr
        self._confidence = ConfidenceWeights(ccr, config.eta, self._sce, config.loss_fraction)
        self.losses_on: Split | None = None if ccr == "none" else "train"

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        at_least_three(len(fed.cohort))
        loss = self.local_loss(index / fed.rounds)
        if index == 0 and self._config.pretrain_epochs:
            fed.each(partial(pretrain, epochs=self._config.pretrain_epochs, objective=objective_of(loss)))
        train = partial(fed.reduce, partial(self.train, loss), like={}, metrics=("loss",))
        if self._config.last == "alignment":
            local = train()
            distance = self.align(fed, self._confidence.weights(fed))
        else:
            distance = self.align(fed, self._confidence.weights(fed))
            local = train()
        return {"loss": local.metrics["loss"], "public_kl": distance}

    # ------------------------------------------------------------------------------------------------- alignment
    def align(self, fed: Federation, weights: PerClient[float]) -> float:
        """Once through the public batches; the mean KL to the others before each step."""
        distance: dict[ClientId, float] = dict.fromkeys(weights, 0.0)
        for batches in [fed.public] if self._config.targets == "round" else [[batch] for batch in fed.public]:
            shares = fed.each(partial(self.share, batches), weights)
            total = fed.sum(shares, shape=(sum(len(batch["row"]) for batch in batches), self.num_classes))
            for client, value in fed.each(partial(self.approach, batches, total), shares).items():
                distance[client] += value
        summed = float(fed.sum({c: torch.tensor(d, dtype=torch.float64) for c, d in distance.items()}))
        return summed / (len(fed.cohort) * len(fed.public))

    def share(self, batches: Sequence[Batch], client: Client, weight: float) -> Tensor:
        """w_k R_k: [rows,K], float64."""
        if self._config.targets == "round":
            logits = public_logits(batches, client)
        else:
            client.resume()
            [batch] = batches
            logits = client.respond(batch, "logits").double()  # the very forward pass that the step goes back through
        return weight * logits.softmax(dim=1)

    def approach(self, batches: Sequence[Batch], total: Tensor, client: Client, share: Tensor) -> float:
        """A step for each batch towards the others, S - w_k R_k; the summed KL before each."""
        client.resume()
        rest = (total.to(share.device) - share).clamp(min=0).float()
        distance = 0.0
        for batch, target in zip(batches, rest.split([len(batch["row"]) for batch in batches]), strict=True):
            loss = partial(distance_to, target)
            distance += client.step(batch, loss, rate=self._config.public_learning_rate, fresh=self._fresh)
        return distance

    # --------------------------------------------------------------------------------------------------- locally
    def train(self, loss: Loss, client: Client) -> Contribution:
        """Epochs on its own rows."""
        client.resume()
        report = client.fit(objective=objective_of(loss))
        return Contribution({}, float(client.num_examples), {"loss": report.loss})

    def local_loss(self, progress: float) -> Loss:
        """progress: rounds done, as a share of all."""
        if self._config.refinement is not None:
            return refined_loss(self._config.refinement, progress)
        return self._sce


def distance_to(target: Tensor, out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """KL(target | scores), a mean over rows."""
    return distance_to_rest(out["logits"], target)
