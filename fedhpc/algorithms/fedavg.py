"""FedAvg: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, Algorithm 1.

Also the frame of methods that differ from it in the local step (FedProx) or in the server's step (FedOpt).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedhpc.config.algorithms import AlgorithmConfig
from fedhpc.interfaces import Block, Blocks, Client, Contribution, Federation, GradientTerm, Split


class FedAvg:
    """w <- w + sum_k n_k (w_k - w) / sum_k n_k over the cohort's clients k."""

    reveals: ClassVar[frozenset[str]] = frozenset()
    stateful: ClassVar[bool] = False
    losses_on: Split | None = None

    def __init__(self, config: AlgorithmConfig) -> None:
        self.shared: dict[str, Block] = {}
        self._by_examples = getattr(config, "weight", "examples") == "examples"

    def setup(self, fed: Federation) -> None:
        self.shared = {name: block.clone() for name, block in fed.initial.items()}

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        reduced = fed.reduce(self.turn, like=self.shared, metrics=("loss",))
        self.step(reduced.mean)
        return reduced.metrics

    def turn(self, client: Client) -> Contribution:
        """ClientUpdate(k, w): local steps from the shared weights; what leaves is the update."""
        client.load(self.shared)
        report = client.fit(gradient=self.gradient())
        weight = float(client.num_examples) if self._by_examples else 1.0
        return Contribution(client.update(self.shared), weight, {"loss": report.loss})

    def gradient(self) -> GradientTerm | None:
        """What a method adds to local gradients."""
        return None

    def step(self, mean: Blocks) -> None:
        """The server's step on the mean update."""
        for name, update in mean.items():
            self.shared[name].flat.add_(update.flat)

    def personal(self, client: Client) -> Blocks:
        return self.shared

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"{type(self).__name__} keeps no state, got {sorted(state)}"


class Centralised(FedAvg):
    """Reference without privacy: the wiring gives all training rows to one client, which goes on with its optimizer."""

    stateful: ClassVar[bool] = True
