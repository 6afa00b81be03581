"""FedDF: Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020,
Algorithm 3 (clients of several networks).

A round: every client trains the shared model of its network; the models of one network are averaged (FedAvg); each
mean then learns softmax(mean of all clients' logits) on public pictures. Theirs does so on the server; here one client
of each network does it, on public data only, and what it comes to is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedhpc.algorithms.fedmd import towards
from fedhpc.algorithms.own_models import OwnModels, at_least_three
from fedhpc.config.distillation import FedDFConfig
from fedhpc.interfaces import Batch, Block, Blocks, Budget, Client, ClientId, Contribution, Federation


class FedDF(OwnModels):
    """shared: "<network>/<block>", a model for each network."""

    stateful = False

    def __init__(self, config: FedDFConfig) -> None:
        super().__init__()
        self._config = config
        self._networks = 1

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self._networks = len(fed.networks)
        self.shared = {
            f"{network}/{name}": block.clone()
            for network, blocks in enumerate(fed.networks)
            for name, block in blocks.items()
        }

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        at_least_three(len(fed.cohort))
        logits: dict[ClientId, Tensor] = {}
        local = fed.reduce(partial(self.train, fed.public, index, logits), like=self.shared, metrics=("loss",))
        self._move(local.mean)
        sizes = [len(batch["row"]) for batch in fed.public]
        mean = fed.sum(logits, shape=(sum(sizes), self.num_classes)) / len(fed.cohort)
        player = {c % self._networks: c for c in sorted(fed.cohort, reverse=True)}
        owners = Counter(c % self._networks for c in fed.cohort)
        distill = partial(self.distill, fed.public, mean.float().split(sizes), player, owners)
        distilled = fed.reduce(distill, like=self.shared)
        self._move(distilled.mean)
        return local.metrics

    def train(
        self, public: Sequence[Batch], index: int, logits: dict[ClientId, Tensor], client: Client
    ) -> Contribution:
        """Local training from the shared model of its network; what the result makes of public pictures goes into
        `logits`."""
        client.load(self.personal(client))
        if index == 0 and self._config.pretrain_epochs:
            client.fit(Budget(epochs=self._config.pretrain_epochs))
        report = client.fit()
        logits[client.id] = torch.cat([client.forward(batch, "logits").double() for batch in public])
        return Contribution(self._update(client), float(client.num_examples), {"loss": report.loss})

    def distill(
        self,
        public: Sequence[Batch],
        targets: Sequence[Tensor],
        player: Mapping[int, ClientId],
        owners: Mapping[int, int],
        client: Client,
    ) -> Contribution:
        """The mean model of a network learns what all say. One client of those that have it does so, for all of them:
        the others send zeros, so that the sum has as many parts as masks ask for."""
        network = client.id % self._networks
        shared = self.personal(client)
        if client.id != player[network]:
            nothing = {name: Block(torch.zeros_like(b.flat), b.layout) for name, b in shared.items()}
            return Contribution(self._named(client, nothing), 1.0)
        client.load(shared)
        for _ in range(self._config.distill_epochs):
            for batch, target in zip(public, targets, strict=True):
                client.step(batch, towards(target, "kl"), rate=self._config.public_learning_rate)
        update = client.update(shared)
        whole = {name: Block(b.flat * owners[network], b.layout) for name, b in update.items()}
        return Contribution(self._named(client, whole), 1.0)

    def personal(self, client: Client) -> Blocks:
        prefix = self._prefix(client)
        return {name.removeprefix(prefix): b for name, b in self.shared.items() if name.startswith(prefix)}

    def _update(self, client: Client) -> dict[str, Block]:
        return self._named(client, client.update(self.personal(client)))

    def _named(self, client: Client, blocks: Blocks) -> dict[str, Block]:
        return {self._prefix(client) + name: block for name, block in blocks.items()}

    def _prefix(self, client: Client) -> str:
        return f"{client.id % self._networks}/"

    def _move(self, mean: Blocks) -> None:
        for name, update in mean.items():
            self.shared[name].flat.add_(update.flat)
