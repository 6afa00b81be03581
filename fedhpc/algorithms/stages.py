"""Which stages a FedDRA round has: when encoders thaw (ALGORITHMS.md A.4; the paper leaves the timing open)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhpc.config.algorithms import FedDRAConfig


class Stages:
    """Stage 1 moves alignment blocks and heads, stage 2 everything."""

    def __init__(self, config: FedDRAConfig) -> None:
        self._config = config
        self._best: float | None = None  # plateau: lowest mean stage 1 loss
        self._stale = 0  # rounds since
        self._thawed = False

    def of(self, index: int) -> tuple[bool, bool]:
        """(stage 1, stage 2) of round `index`."""
        if self._config.schedule == "alternate":
            return True, True
        if self._config.schedule == "joint":
            return False, True
        if self._config.schedule == "sequential":
            assert self._config.stage1_rounds is not None, "checked with the config"
            warming = index < self._config.stage1_rounds
        else:
            warming = not self._thawed
        return warming, not warming

    def watch(self, loss: float) -> None:
        """Tell a stage 1 round's mean loss, the same on every rank. Decides when a plateau is reached."""
        if self._best is None or loss < self._best * (1 - self._config.plateau_min_delta):
            self._best, self._stale = loss, 0
        else:
            self._stale += 1
            self._thawed = self._stale >= self._config.plateau_patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "stale": self._stale, "thawed": self._thawed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._stale, self._thawed = state["best"], state["stale"], state["thawed"]
