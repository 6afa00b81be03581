"""FedProto: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "Federated Prototype Learning across Heterogeneous Clients",
AAAI 2022.

    C_j = sum over clients and their rows of class j of the features, divided by the number of such rows    Eq. 6
    l = l_sup + lambda |features - C_label|^2 / width                                                      Eq. 7, 8

Features are what the last layer reads. Prototypes cross as sums over clients, of a class that one client alone has too:
then the sum is that client's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedhpc.algorithms.own_models import OwnModels, at_least_three, objective_of, pretrain
from fedhpc.config.distillation import FedProtoConfig
from fedhpc.interfaces import Batch, Client, Contribution, Federation, Loss


class FedProto(OwnModels):
    """Every client owns its model; prototypes are the same on every rank."""

    def __init__(self, config: FedProtoConfig) -> None:
        super().__init__()
        self._config = config
        self._prototypes = torch.zeros(0)  # float32 [classes, width]
        self._known = torch.zeros(0)  # float32 [classes]: 1 where there is one

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if not self.width:
            raise ValueError("algorithm.name: fedproto compares features of one width; set model.embed_dim")
        self._prototypes = torch.zeros(self.num_classes, self.width)
        self._known = torch.zeros(self.num_classes)

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        at_least_three(len(fed.cohort))
        if index == 0 and self._config.pretrain_epochs:
            fed.each(partial(pretrain, epochs=self._config.pretrain_epochs))
            self.collect(fed)
        metrics = fed.reduce(self.train, like={}, metrics=("loss",)).metrics
        self.collect(fed)
        return metrics

    def train(self, client: Client) -> Contribution:
        client.resume()
        report = client.fit(objective=objective_of(self.loss(client)))
        return Contribution({}, float(client.num_examples), {"loss": report.loss})

    def loss(self, client: Client) -> Loss:
        """l_sup and the distance to the prototype of the label, where there is one."""

        def pulled(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
            features, label = out["image_features"].float(), batch["label"]
            prototypes, known = self._prototypes.to(features.device), self._known.to(features.device)
            counts = known[label.clamp(min=0)] * (label >= 0)
            distance = (features - prototypes[label.clamp(min=0)]).square().mean(dim=1)
            return client.loss(out, batch) + self._config.weight * (distance * counts).mean()

        return pulled

    def collect(self, fed: Federation) -> None:
        """New prototypes from all clients' sums; classes that nobody has keep theirs."""
        total = fed.sum(fed.each(self.sums), shape=(self.num_classes, self.width + 1)).cpu()
        count = total[:, -1:]
        seen = count[:, 0] > 0
        self._prototypes[seen] = (total[seen, :-1] / count[seen]).float()
        self._known[seen] = 1.0

    def sums(self, client: Client) -> Tensor:
        """Features of its training rows summed by label, and how many there are: float64 [classes, width + 1]."""
        client.resume()
        total = torch.zeros(self.num_classes, self.width + 1, dtype=torch.float64)
        for batch in client.batches("train"):
            features, label = client.forward(batch, "image_features").double().cpu(), batch["label"].cpu()
            labeled = label >= 0
            rows = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
            total.index_add_(0, label[labeled], rows[labeled])
        return total

    def state_dict(self) -> dict[str, Any]:
        return {"prototypes": self._prototypes, "known": self._known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._prototypes, self._known = state["prototypes"].cpu(), state["known"].cpu()
