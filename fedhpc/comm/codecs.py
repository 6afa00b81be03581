"""Updates as fewer bytes, and back. What comes back is a function of the bytes alone: the same on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

ALIGNMENT = 16  # elements; bytes of all parts then begin where their type wants them


@dataclass(frozen=True)
class Bf16:
    """bfloat16, rounded to nearest even: 8 bits of precision."""

    granule: ClassVar[int] = ALIGNMENT

    def slice_bytes(self, numel: int) -> int:
        return 2 * numel

    def encode(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [slices, slice_bytes(s)] of float32 [slices, s], s a multiple of `granule`."""
        return values.bfloat16().view(torch.uint8)

    def decode(self, payload: Tensor) -> Tensor:
        """float32 [slices, s]."""
        return payload.contiguous().view(torch.bfloat16).float()


@dataclass(frozen=True)
class Int8:
    """Integers -127..127 times a scale for each block of values, the largest of which is 127 scales. A value between
    two levels goes to either, with the probabilities that make it right in expectation."""

    granule: int = 256  # values of a block

    def slice_bytes(self, numel: int) -> int:
        return numel + 4 * (numel // self.granule)

    def encode(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """As Bf16's. generator: on the CPU, so that the same bits are drawn wherever the values are."""
        blocks = values.reshape(-1, self.granule)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        scale = (largest / 127).clamp_(min=torch.finfo(torch.float32).tiny)
        draws = torch.rand(blocks.shape, generator=generator).to(values.device)
        levels = (blocks / scale).add_(draws).floor_().clamp_(-127, 127).to(torch.int8)
        slices = len(values)
        return torch.cat([levels.view(torch.uint8).view(slices, -1), scale.view(torch.uint8).view(slices, -1)], dim=1)

    def decode(self, payload: Tensor) -> Tensor:
        slices, width = payload.shape
        numel = width * self.granule // (self.granule + 4)
        levels = payload[:, :numel].contiguous().view(torch.int8).view(-1, self.granule)
        scale = payload[:, numel:].contiguous().view(torch.float32).view(-1, 1)
        return (levels.float() * scale).view(slices, numel)


@dataclass(frozen=True)
class TopK:
    """The values of largest size alone, with their places."""

    ratio: float

    def count(self, numel: int) -> int:
        """Values that are sent of `numel`."""
        return min(numel, max(1, math.ceil(self.ratio * numel)))

    def payload_bytes(self, numel: int) -> int:
        return 8 * self.count(numel)

    def encode(self, values: Tensor) -> Tensor:
        """uint8 [payload_bytes(n)] of float32 [n]."""
        places = values.abs().topk(self.count(len(values))).indices.sort().values
        return torch.cat([places.int().view(torch.uint8), values[places].view(torch.uint8)])

    def decode(self, payload: Tensor) -> tuple[Tensor, Tensor]:
        """(places int64 [k], values float32 [k])."""
        half = len(payload) // 2
        places = payload[:half].clone().view(torch.int32).long()
        return places, payload[half:].clone().view(torch.float32)
