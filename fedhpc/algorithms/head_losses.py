"""Losses of a client's classifiers, one by one: what blending is computed from."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from fedhpc.algorithms.objectives import cross_entropy_loss
from fedhpc.interfaces import Batch, Client, Objective, Split


class Record:
    """The objective of a client's turn: the sum of the losses of all its heads. Keeps their means over the steps."""

    def __init__(self, probed: Collection[str] = (), weights: Mapping[str, float] | None = None) -> None:
        """weights: of indices in the sum; 1 where not given."""
        self._probed = probed
        self._weights = weights or {}
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    @property
    def objective(self) -> Objective:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            parts = head_losses(model(batch), batch)
            self._batches += 1
            for name, value in parts.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
            return torch.stack([value * self._weights.get(index_of(name), 1.0) for name, value in parts.items()]).sum()

        return loss

    def means(self) -> dict[str, float]:
        """Index -> mean loss over the steps."""
        means = {name: float(value) / self._batches for name, value in self._sums.items()}
        return by_index(means, self._probed)


def head_losses(out: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Cross entropies of a batch under all heads and probes that train with it, by block."""
    return {
        name: cross_entropy_loss(logits, batch["label"])
        for name, logits in out.items()
        if name.startswith(("head/", "probe/"))
    }


def index_of(block: str) -> str:
    return block.partition("/")[2]


def by_index(losses: Mapping[str, float], probed: Collection[str]) -> dict[str, float]:
    """Losses by block -> by index. A modality that is probed is measured by its probe, not by the classifier of those
    who hold nothing else."""
    return {
        index_of(name): value
        for name, value in losses.items()
        if name.startswith("probe/") or index_of(name) not in probed
    }


def evaluated(client: Client, probed: Collection[str] = (), split: Split = "val") -> dict[str, float]:
    """Index -> mean loss of a client's present weights over the labeled rows of a split; empty without any."""
    sums: dict[str, float] = {}
    rows = 0
    for batch in client.batches(split):
        labeled = int((batch["label"] >= 0).sum())
        if labeled:
            rows += labeled
            for name, loss in head_losses(client.outputs(batch), batch).items():
                sums[name] = sums.get(name, 0.0) + float(loss) * labeled
    return by_index({name: total / rows for name, total in sums.items()}, probed)
