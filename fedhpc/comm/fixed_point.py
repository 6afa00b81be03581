"""Fixed point of 64 or 32 bits: sums of integers do not depend on their order, so not on the number of ranks either.

A value x with weight w is encoded as round(w * x * 2^fraction_bits). Whether the sum of all terms fits into 63 (31)
bits is checked before anything is encoded.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

CHUNK = 1 << 16  # elements worked on at a time on a CPU, so that temporaries stay in cache


def as_float32(weight: float) -> float:
    """Weights are rounded to float32 once, so that numerator and denominator of a mean use the same number."""
    return float(struct.unpack("f", struct.pack("f", weight))[0])


class FixedPoint:
    """Encodes terms of a sum of at most `max_terms` terms, in a ring of 2^ring_bits.

    Raises, in `add`, ValueError when a term is not finite or out of range.
    """

    def __init__(self, fraction_bits: int, max_terms: int, ring_bits: int = 64) -> None:
        self.fraction_bits = fraction_bits
        self.ring_bits = ring_bits
        self.dtype = {64: torch.int64, 32: torch.int32}[ring_bits]
        self.scale = math.ldexp(1.0, fraction_bits)
        # Each term stays below its share of the range; the last bit is left for rounding.
        self.limit = math.ldexp(1.0, ring_bits - 2 - fraction_bits) / max(max_terms, 1)

    def add(self, total: Tensor, values: Tensor, weight: float, name: str) -> None:
        """total += encode(weight * values), in place.

        Args:
            total: int64 or int32 [n].
            values: float32 or float64 [n], on the same device.
            weight: a float that float32 holds exactly (see `as_float32`).
            name: of the block, for the error.
        """
        step = CHUNK if total.device.type == "cpu" else max(total.numel(), 1)
        factor = weight * self.scale
        bound = self.limit / abs(weight) if weight else math.inf
        for part, terms in zip(total.split(step), values.split(step), strict=True):
            low, high = torch.aminmax(terms)
            if not (-bound <= float(low) and float(high) <= bound):  # NaN fails here too
                self._refuse(values, weight, name)
            part.add_((terms * factor).round_().to(self.dtype))

    def encode_scalar(self, value: float, name: str) -> int:
        if not abs(value) <= self.limit:
            self._refuse(torch.tensor([value], dtype=torch.float64), 1.0, name)
        return round(value * self.scale)

    def decode(self, total: Tensor) -> Tensor:
        """float64 with the shape of total."""
        return total.to(torch.float64) / self.scale

    def _refuse(self, values: Tensor, weight: float, name: str) -> None:
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"{name}: a contribution to the sum is not finite. Training diverged: "
                "lower fit.optimizer.learning_rate, or set fit.clip_norm"
            )
        largest = float(values.abs().max()) * abs(weight)
        room = self.ring_bits - 2
        bits = math.floor(room - math.log2(largest * math.ldexp(1.0, room - self.fraction_bits) / self.limit))
        wider = "aggregation.ring_bits: 64" if self.ring_bits == 32 else "aggregation.arithmetic: float32"
        raise ValueError(
            f"{name}: a weighted contribution of {largest:.3g} does not fit into the exact sum, whose range at "
            f"aggregation.fraction_bits: {self.fraction_bits} is {self.limit:.3g} a client. "
            f"Set aggregation.fraction_bits: {max(bits, 0)}, or {wider}"
        )


def mean_into(out: Tensor, total: Tensor, weight_total: int) -> None:
    """out = total / weight_total: float32 [n] from integers [n]; both carry the same power of two, so it cancels."""
    step = CHUNK if total.device.type == "cpu" else max(total.numel(), 1)
    for part, encoded in zip(out.split(step), total.split(step), strict=True):
        part.copy_(encoded.to(torch.float64).div_(float(weight_total)))
