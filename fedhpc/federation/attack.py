"""FOR STUDIES: clients that send something else than their update, on purpose (config.attack)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedhpc.client.client import derived_seed
from fedhpc.config.byzantine import Attack, LabelFlipAttack, NoiseAttack, SignFlipAttack
from fedhpc.data.attack import attackers
from fedhpc.interfaces import Block, ClientId, Contribution


@dataclass(frozen=True)
class UpdateAttack:
    """Changes what attackers contribute. Trainable weights alone: a model whose running variance is negative could not
    be evaluated, and the study would be over."""

    config: Attack
    clients: frozenset[ClientId]
    random_seed: int

    def sent(self, contribution: Contribution, client: ClientId, index: int) -> Contribution:
        """What the client contributes in round `index`; the rest stays as it is."""
        if client not in self.clients:
            return contribution
        generator = torch.Generator().manual_seed(derived_seed(self.random_seed, index, client, "attack"))
        blocks = {}
        for name, block in contribution.blocks.items():
            blocks[name] = Block(block.flat.clone(), block.layout)
            blocks[name].trainable.copy_(self._changed(block.trainable, generator))
        return replace(contribution, blocks=blocks)

    def _changed(self, update: Tensor, generator: torch.Generator) -> Tensor:
        config = self.config
        if isinstance(config, NoiseAttack):
            return torch.randn(update.shape, generator=generator) * config.std
        assert not isinstance(config, LabelFlipAttack), "such clients send what they trained"
        return update * (-config.scale if isinstance(config, SignFlipAttack) else config.scale)


def build_attack(config: Attack | None, trainers: Sequence[ClientId], random_seed: int) -> UpdateAttack | None:
    """None: everybody sends its update. Raises ValueError: see `attackers`."""
    if config is None:
        return None
    who = attackers(config, trainers, random_seed)
    return None if isinstance(config, LabelFlipAttack) else UpdateAttack(config, who, random_seed)
