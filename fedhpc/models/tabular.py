"""Encoders of tabular modalities (DGB + PCW, arXiv 2401.03609; widths: ALGORITHMS.md C.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedhpc.config.fusion import TabularConfig
from fedhpc.models.dropout import dropout


class Mlp(nn.Module):
    """[B,widths[0]] -> [B,widths[-1]]: linear layers, with ReLU and dropout after each but - where `last` is set - the
    last."""

    def __init__(self, widths: Sequence[int], rate: float, *, last: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.rate = rate
        self._bare = len(self.layers) - 1 if last else len(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place != self._bare:
                x = dropout(x.relu(), self.rate, self.training)
        return x


def build_tabular_encoder(config: TabularConfig, num_columns: int, width: int) -> Mlp:
    """[B,num_columns] -> [B,width], features that are 0 or more."""
    return Mlp((num_columns, *config.hidden, width), config.rate)
