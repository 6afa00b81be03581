"""G-Blend: Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020, on pooled
data.

    L = sum_i w_i L_i over the classifiers of all combinations,  w_i = (1/Z) G_i / O_i^2, sum 1

G_i = L*_n - L*_N, what the validation loss fell, and O_i = O_N - O_n, what the gap grew, over a super-epoch of rounds
(online G-Blend); weights are then those of the next super-epoch. The paper has single modalities and their full
combination; here every combination that some client holds has a classifier too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedhpc.algorithms.blending import Losses, ratio, weights, winsorised
from fedhpc.algorithms.fedavg import Centralised
from fedhpc.algorithms.head_losses import Record, evaluated
from fedhpc.config.blending import GBlendConfig
from fedhpc.interfaces import Client, Contribution, Federation


class GBlend(Centralised):
    """The wiring gives all training and validation rows to one client."""

    def __init__(self, config: GBlendConfig) -> None:
        super().__init__(config)
        self._config = config
        self._losses: dict[str, Losses] = {}  # at the end of the last super-epoch
        self._weights: dict[str, float] = {}

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self._indices = sorted(name.removeprefix("head/") for name in self.shared if name.startswith("head/"))

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        kept: dict[str, Losses] = {}
        reduced = fed.reduce(partial(self.train, kept), like=self.shared, metrics=("loss",))
        self.step(reduced.mean)
        if (index + 1) % self._config.super_epoch == 0:
            rows = fed.each(lambda client: torch.tensor([kept[name] for name in self._indices], dtype=torch.float64))
            self.follow(fed.sum(rows, shape=(len(self._indices), 2)))  # of the only client: its own numbers
        return {**reduced.metrics, **{f"weight_{name}": value for name, value in self._weights.items()}}

    def train(self, kept: dict[str, Losses], client: Client) -> Contribution:
        """A round of the pooled rows."""
        client.load(self.shared)
        record = Record(weights=self._weights or dict.fromkeys(self._indices, 1 / len(self._indices)))
        report = client.fit(objective=record.objective)
        train, val = record.means(), evaluated(client)
        kept.update({name: Losses(train[name], val.get(name, train[name])) for name in self._indices})
        return Contribution(client.update(self.shared), 1.0, {"loss": report.loss})

    def follow(self, table: Tensor) -> None:
        """New weights from the losses of this super-epoch's end, [indices, 2], and the last one's."""
        now = {name: Losses(*row) for name, row in zip(self._indices, table.tolist(), strict=True)}
        if self._losses:
            raw = {name: ratio(self._losses[name], now[name], self._config.epsilon, "improvement") for name in now}
            self._weights = weights(winsorised(raw, None), self._indices)
        self._losses = now

    def state_dict(self) -> dict[str, Any]:
        return {"losses": {name: list(loss) for name, loss in self._losses.items()}, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = {name: Losses(*loss) for name, loss in state["losses"].items()}
        self._weights = dict(state["weights"])
