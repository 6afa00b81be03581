"""HGB: Chen, Li, "Towards Optimal Multi-modal Federated Learning on Non-IID Data with Hierarchical Gradient Blending",
IEEE INFOCOM 2022; formulas from its code in TL-System/plato (ALGORITHMS.md C.4).

    at client k   L_k = sum_i v_i L_i over its single modalities and its combination, v_i = G_i / O_i^2, normalised
    in the mean   weight of client k ~ G_k / (2 O_k^2), of the loss of its combination

G and O come from a client's own two last turns, and stay with it. Weights enter relative to their mean over the cohort,
which is a sum, and are bounded. Left out: plato's local merge by |O / G|, whose formula is not in the sources we have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedhpc.algorithms.blending import Losses, ratio, weights, winsorised
from fedhpc.algorithms.dgb_pcw import combination_of
from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.head_losses import Record, evaluated
from fedhpc.config.blending import HgbConfig
from fedhpc.interfaces import Blocks, Client, Federation

LOSSES, RATIOS = "losses", "ratios"  # in client state: of its last turn, by index


@dataclass
class Trained:
    """A client's turn."""

    update: Blocks
    loss: float
    examples: int
    ratio: float  # of its combination; 0: not known yet

    def row(self) -> Tensor:
        """What it adds to sums: loss by rows, rows, its ratio, whether it has one."""
        values = [self.examples * self.loss, self.examples, self.ratio, float(self.ratio > 0)]
        return torch.tensor(values, dtype=torch.float64)


class Hgb(FedAvg):
    """FedAvg whose clients blend losses, and weigh by how they generalise."""

    stateful: ClassVar[bool] = True

    def __init__(self, config: HgbConfig) -> None:
        super().__init__(config)
        self._config = config

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        self._blends = index >= self._config.start_round
        turns = fed.each(self.train)
        rows = {c: t.row() for c, t in turns.items()}
        loss, examples, total, count = fed.sum(rows, shape=(4,)).tolist()
        usual = total / count if count else 0.0
        shares = {c: self.share(t, usual) for c, t in turns.items()}
        self.step(fed.mean({c: t.update for c, t in turns.items()}, shares, like=self.shared))
        return {"loss": loss / examples}

    def train(self, client: Client) -> Trained:
        """Local steps on blended losses; the client remembers its losses and ratios."""
        client.load(self.shared)
        blended = client.state.get(RATIOS, {}) if self._blends else {}
        indices = [name.removeprefix("head/") for name in sorted(client.blocks) if name.startswith("head/")]
        record = Record(weights=weights(blended, indices) if indices else None)
        report = client.fit(objective=record.objective)
        update = {name: block.clone() for name, block in client.update(self.shared).items()}
        train, val = record.means(), evaluated(client)
        now = {name: Losses(train[name], val[name]) for name in train if name in val}
        before = {name: Losses(*pair) for name, pair in client.state.get(LOSSES, {}).items()}
        raw = {name: ratio(before[name], loss, self._config.epsilon) for name, loss in now.items() if name in before}
        client.state[LOSSES] = {name: list(loss) for name, loss in now.items()}
        client.state[RATIOS] = ratios = winsorised(raw, self._config.winsorise)
        return Trained(update, report.loss, client.num_examples, ratios.get(combination_of(client) or "", 0.0))

    def share(self, trained: Trained, usual: float) -> float:
        """Weight in the mean: G / (2 O^2) against the cohort's mean, within [1 / max, max]; 1 where it is not known.
        The factor 1/2 cancels."""
        if self._config.client_weight == "examples" or not self._blends:
            return float(trained.examples)
        most = self._config.max_client_weight
        return min(max(trained.ratio / usual, 1 / most), most) if trained.ratio > 0 and usual > 0 else 1.0
