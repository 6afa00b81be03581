"""Agnostic federated learning: Mohri, Sivek, Suresh, ICML 2019, with local steps as in DRFA: Deng, Kamani, Mahdavi,
"Distributionally Robust Federated Averaging", NeurIPS 2020, Algorithm 1.

min over w, max over lambda on the simplex of sum_c lambda_c F_c(w):

    w <- sum_c lambda_c w_c                                  w_c: after client c's local steps from w
    lambda <- Proj_simplex(lambda + gamma F)                 F_c: loss of a shared model on client c's rows

F is taken of the new w (`loss_at: end`), or as DRFA does of a snapshot: the mean of the w_c after a random number of
local steps, the same share of its steps at every client (`loss_at: random_step`).

DRFA draws the cohort from lambda and takes a plain mean; we draw it uniformly and weigh the mean by lambda, brought to
sum 1 over the cohort. With everyone in the cohort that is DRFA's expectation, without its variance. A client outside
the cohort counts with the cohort's mean loss, which moves it neither up nor down against the others, as the projection
does not see what all have in common; DRFA counts it as 0 and the others N / |S| times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.weighting import project_simplex, uniform
from fedhpc.config.algorithms import AflConfig
from fedhpc.interfaces import Block, BlockName, Blocks, Client, ClientId, Contribution, Federation

SNAPSHOT = "snapshot/"  # prefix of the blocks that carry updates on the way


class Afl(FedAvg):
    """The clients' losses are seen by all: lambda is a function of each. The metric `loss` is weighted by lambda."""

    reveals: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __init__(self, config: AflConfig) -> None:
        super().__init__(config)
        self._config = config
        self.losses_on = config.loss_split
        self.weights = torch.empty(0, dtype=torch.float64)  # lambda, [N] in the order of fed.clients
        self._place: dict[ClientId, int] = {}

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self._place = {client: index for index, client in enumerate(fed.clients)}
        self.weights = uniform(len(fed.clients))

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        moment, like = None, dict(self.shared)
        if self._config.loss_at == "random_step":
            moment = 1 - float(torch.rand((), generator=fed.generator("snapshot"), dtype=torch.float64))  # in (0, 1]
            like |= {SNAPSHOT + name: block for name, block in self.shared.items()}
        reduced = fed.reduce(partial(self.contribute, self.shares(fed), moment), like=like, metrics=("loss",))
        mean = {name: update for name, update in reduced.mean.items() if name in self.shared}
        judged: Blocks = self.shared
        if moment is not None:
            on_the_way = {name: reduced.mean[SNAPSHOT + name] for name in mean}
            judged = {n: Block(self.shared[n].flat + update.flat, update.layout) for n, update in on_the_way.items()}
        self.step(mean)
        losses = fed.gather("loss", fed.each(partial(self.risk, judged))).cpu()
        self.reweigh(fed, losses)
        return {**reduced.metrics, "worst_loss": float(losses.max()), "weight_max": float(self.weights.max())}

    def shares(self, fed: Federation) -> dict[ClientId, float]:
        """Weights of the cohort as multiples of its largest; equal where all are 0."""
        raw = {client: float(self.weights[self._place[client]]) for client in fed.cohort}
        largest = max(raw.values())
        return {client: weight / largest if largest else 1.0 for client, weight in raw.items()}

    def contribute(self, shares: Mapping[ClientId, float], moment: float | None, client: Client) -> Contribution:
        """moment: the share of the local steps after which the snapshot is taken."""
        snapshot: dict[BlockName, Block] = {}

        def look(done: int, steps: int) -> None:
            if moment is not None and done == math.ceil(moment * steps):
                snapshot.update({SNAPSHOT + n: block.clone() for n, block in client.update(self.shared).items()})

        client.load(self.shared)
        report = client.fit(after_step=look)
        return Contribution({**client.update(self.shared), **snapshot}, shares[client.id], {"loss": report.loss})

    def risk(self, judged: Blocks, client: Client) -> Tensor:
        """The shared loss of a client; float64 scalar."""
        client.load(judged)
        loss = client.measure(self._config.loss_split, fraction=self._config.loss_fraction)
        return torch.tensor(loss, dtype=torch.float64)

    def reweigh(self, fed: Federation, losses: Tensor) -> None:
        """losses: float64 [len(cohort)]."""
        everyone = losses.mean().repeat(len(self.weights))
        everyone[[self._place[client] for client in fed.cohort]] = losses
        self.weights = project_simplex(self.weights + self._config.step_size * everyone)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = state["weights"].cpu()
