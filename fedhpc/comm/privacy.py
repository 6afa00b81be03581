"""Client-level differential privacy around a sum: clip each client's update, add each client's share of the noise.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018; the clip follows
a quantile as in Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS
2021, Algorithm 1. Shares go into the same exact sum as the updates, as terms of their own, so whoever adds up values of
other ranks sees them with noise only.

What is summed is integers, so the sensitivity is theirs: rounding to multiples of 2^-fraction_bits may add up to half a
step in every number, and rounding of float32 a little more; updates are scaled down to what leaves room for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedhpc.comm.noise import NoiseSource
from fedhpc.interfaces import Block, BlockName, Blocks, ClientId, Contribution

WITHIN = "within"  # the metric that a contribution has in place of its own: norm <= clip, less 1/2
FLOAT32_ROOM = 2.0**-20  # relative: a float32 product rounds by 2^-24
MOST_ROUNDING = 0.1  # of the clip, that may be lost to rounding


class ClientGuard:
    """What every update passes on its way into a sum. The same on every rank, but for the clients that it guards.

    Args:
        noise_multiplier: standard deviation of an update's noise, as a multiple of the clip.
        shares: that make up the noise.
        fraction_bits: of the exact sum.
        count_noise: standard deviation of the noise on the count of updates within the clip; None: the clip stays.
    """

    def __init__(
        self,
        source: NoiseSource,
        clip: float,
        noise_multiplier: float,
        shares: int,
        fraction_bits: int,
        count_noise: float | None = None,
        quantile: float = 0.5,
        step_size: float = 0.0,
    ) -> None:
        self.clip = clip
        self.shares = shares
        self._source = source
        self._noise_multiplier = noise_multiplier
        self._step = math.ldexp(1.0, -fraction_bits)
        self._count_noise = count_noise
        self._quantile = quantile
        self._step_size = step_size
        self._masks: dict[BlockName, Tensor] = {}
        self._round = -1
        self._exchanges = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of every contribution."""
        return () if self._count_noise is None else (WITHIN,)

    def begin(self, index: int) -> None:
        """A round begins."""
        self._round, self._exchanges = index, 0

    def open(self, like: Blocks) -> None:
        """A sum begins.

        Raises:
            ValueError: running statistics are in it, or it is too coarse for the clip.
        """
        assert self._exchanges == 0, "the accountant counts one exchange a round"
        self._exchanges += 1
        if kept := [name for name, block in like.items() if block.layout.numel > block.layout.trainable_numel]:
            raise ValueError(
                f"privacy.unit: client would put noise on the running statistics of {', '.join(kept[:3])}, and a "
                "variance could become negative; set aggregation.local_blocks: [batch_norm], or a model that "
                "normalises otherwise (model.head_norm: layer in a dual encoder)"
            )
        if self._room(like) <= 0:
            raise ValueError(
                f"a clip of {self.clip:.3g} is too small for sums in steps of {self._step:.3g}: rounding alone could "
                f"add {self._rounding(like):.3g} to a norm. Set more aggregation.fraction_bits, or a larger "
                "privacy.clip"
            )

    def clipped(self, contribution: Contribution, client: ClientId, like: Blocks) -> Contribution:
        """The update, scaled down to the clip; its own metrics stay with the client.

        Raises:
            ValueError: weights other than 1, blocks that are missing.
        """
        if contribution.weight != 1.0 or contribution.blocks.keys() != like.keys():
            raise ValueError(
                f"under privacy.unit: client every client contributes all blocks with weight 1, but client {client} "
                f"has weight {contribution.weight:g} and {len(contribution.blocks)} of {len(like)} blocks"
            )
        norm = update_norm(contribution.blocks)
        factor = min(1.0, self._room(like) / norm) if norm > 0 else 1.0
        blocks = contribution.blocks
        if factor != 1.0:  # a norm that is not a number leaves it at 1: the sum refuses such values
            blocks = {name: Block(block.flat * factor, block.layout) for name, block in blocks.items()}
        if self._count_noise is None:
            return Contribution(blocks, 1.0)
        share = float(self._source.gaussian(self._purpose(client, "count"), 1))
        within = float(factor == 1.0) - 0.5 + share * self._count_noise / math.sqrt(self.shares)
        return Contribution(blocks, 1.0, {WITHIN: within})

    def share(self, client: ClientId, name: BlockName, block: Block) -> Tensor:
        """A client's share of the noise on a block: float64 [numel] on the CPU, zero in its padding."""
        drawn = self._source.gaussian(self._purpose(client, f"block {name}"), block.layout.numel)
        return drawn.mul_(self._mask(name, block)).mul_(self._noise_multiplier * self.clip / math.sqrt(self.shares))

    def learn(self, metrics: Mapping[str, float]) -> None:
        """The clip follows what the sum's metrics tell: C <- C exp(-eta (b - gamma))."""
        if self._count_noise is not None:
            share = metrics[WITHIN] + 0.5
            self.clip *= math.exp(-self._step_size * (share - self._quantile))

    def state_dict(self) -> dict[str, Any]:
        return {"clip": self.clip}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.clip = float(state["clip"])

    def _purpose(self, client: ClientId, what: str) -> str:
        return f"round {self._round}, client {client}, {what}"

    def _rounding(self, like: Blocks) -> float:
        """The most that rounding adds to a norm."""
        return math.sqrt(sum(block.layout.numel for block in like.values())) * self._step / 2

    def _room(self, like: Blocks) -> float:
        """The norm that an update may have before it is rounded; 0 where too much is lost to rounding."""
        lost = self._rounding(like)
        return (self.clip - lost) * (1 - FLOAT32_ROOM) if lost < MOST_ROUNDING * self.clip else 0.0

    def _mask(self, name: BlockName, block: Block) -> Tensor:
        """1 where a tensor has elements, 0 in the padding between them."""
        if name not in self._masks:
            mask = torch.zeros(block.layout.numel, dtype=torch.float64)
            for spec in block.layout.specs:
                mask[spec.offset : spec.offset + math.prod(spec.shape)] = 1.0
            self._masks[name] = mask
        return self._masks[name]


def update_norm(blocks: Blocks) -> float:
    """L2 norm over all blocks, in float64."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(b.flat, dtype=torch.float64)) ** 2 for b in blocks.values()))
