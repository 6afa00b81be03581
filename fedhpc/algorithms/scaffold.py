"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, Algorithm 1 with option II.

    y_i <- y_i - eta_l (g_i(y_i) - c_i + c)              line 10, K steps from y_i = x
    c_i+ = c_i - c + (x - y_i) / (K eta_l)               line 12, option II
    x <- x + eta_g mean_S (y_i - x)                      lines 16, 17; means over the cohort S, uniform
    c <- c + |S| / N mean_S (c_i+ - c_i)

K eta_l is the sum of the rates of the steps that were made, so that a schedule keeps (x - y_i) / (K eta_l) a mean of
gradients. That holds for plain SGD, which the config demands; with fit.clip_norm it is the mean of what the clipped
steps went by. Variates cover trainable tensors; running statistics are averaged plainly, whatever eta_g.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.config.algorithms import ScaffoldConfig
from fedhpc.interfaces import Block, BlockName, Blocks, Client, Contribution, Federation, GradientTerm

VARIATE = "variate"  # client.state: c_i
PREFIX = "variate/"  # of the blocks that carry c_i+ - c_i


class Scaffold(FedAvg):
    """Two blocks travel for each one of the model: its update, and the change of its variate."""

    stateful: ClassVar[bool] = True

    def __init__(self, config: ScaffoldConfig) -> None:
        super().__init__(config)
        self._server_rate = config.server_learning_rate
        self._variate: dict[BlockName, Block] = {}  # c

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        learning = {n: b for n, b in self.shared.items() if any(spec.trainable for spec in b.layout.specs)}
        self._variate = {name: _zeros(block) for name, block in learning.items()}

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        like = {**self.shared, **{PREFIX + name: c for name, c in self._variate.items()}}
        reduced = fed.reduce(self.turn, like=like, metrics=("loss",))
        self.step({name: update for name, update in reduced.mean.items() if name in self.shared})
        share = len(fed.cohort) / len(fed.clients)
        for name, c in self._variate.items():
            c.flat.add_(reduced.mean[PREFIX + name].flat, alpha=share)
        return reduced.metrics

    def turn(self, client: Client) -> Contribution:
        client.load(self.shared)
        own: Blocks = client.state.get(VARIATE, {})
        correction: dict[BlockName, Block] = {}  # c - c_i
        for name, c in self._variate.items():
            correction[name] = Block(c.flat - own[name].flat.to(c.flat.device), c.layout) if name in own else c
        report = client.fit(gradient=GradientTerm(offset=correction))
        update = client.update(self.shared)
        after: dict[BlockName, Block] = {}
        change: dict[BlockName, Block] = {}
        for name, c in self._variate.items():
            gradient = update[name].trainable / -report.rate_sum
            after[name] = Block(gradient - correction[name].flat, c.layout)
            change[PREFIX + name] = Block(gradient - c.flat, c.layout)
        client.state[VARIATE] = after
        return Contribution({**update, **change}, 1.0, {"loss": report.loss})

    def step(self, mean: Blocks) -> None:
        for name, update in mean.items():
            self.shared[name].trainable.add_(update.trainable, alpha=self._server_rate)
            self.shared[name].buffers.add_(update.buffers)

    def state_dict(self) -> dict[str, Any]:
        return {VARIATE: self._variate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, c in state[VARIATE].items():
            self._variate[name].flat.copy_(c.flat)


def _zeros(block: Block) -> Block:
    """Zeros in the shape of a block's trainable part."""
    return Block(torch.zeros_like(block.trainable), block.layout.trainable())
