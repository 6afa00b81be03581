"""Scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Scalars:
    """One event file a start; `purge_from` hides what a killed run wrote of rounds that are made again."""

    def __init__(self, folder: Path, purge_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, only where it is wanted

        self._writer = SummaryWriter(str(folder), purge_step=purge_from or None)

    def write(self, section: str, index: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{section}/{name}", value, index)

    def close(self) -> None:
        self._writer.close()
