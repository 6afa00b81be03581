"""Reference without exchange: every client trains its own model on its own rows, all from the same start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedhpc.config.algorithms import LocalConfig
from fedhpc.interfaces import Block, Blocks, Client, Contribution, Federation, Split

MODEL = "model"


class Local:
    """Only the mean training loss leaves a client."""

    reveals: ClassVar[frozenset[str]] = frozenset()
    stateful: ClassVar[bool] = True
    losses_on: Split | None = None

    def __init__(self, config: LocalConfig) -> None:
        self.shared: dict[str, Block] = {}
        self._start: Blocks = {}

    def setup(self, fed: Federation) -> None:
        self._start = fed.initial

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        return fed.reduce(self.turn, like={}, metrics=("loss",)).metrics

    def turn(self, client: Client) -> Contribution:
        client.load(self.personal(client))
        report = client.fit()
        client.state[MODEL] = {name: block.clone() for name, block in client.read().items()}
        return Contribution({}, float(client.num_examples), {"loss": report.loss})

    def personal(self, client: Client) -> Blocks:
        own: Blocks = client.state.get(MODEL, self._start)
        return own

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"local keeps no shared state, got {sorted(state)}"
