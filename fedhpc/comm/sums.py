"""Weighted means over clients: contributions of a rank's clients are added into one buffer, which is summed over ranks.

The buffer of an exchange is [block 1 | block 2 | ... | a weight per block | metrics | their weight], so that weights
travel inside the same sum as what they weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.fixed_point import FixedPoint, as_float32, mean_into
from fedhpc.comm.ledger import Operation
from fedhpc.interfaces import Block, Blocks, Contribution, Reduced

ArithmeticName = Literal["fixed_point", "float32"]


class Arithmetic(Protocol):
    """How numbers are added: exactly, or fast."""

    dtype: torch.dtype

    def add(self, total: Tensor, values: Tensor, weight: float, name: str) -> None: ...

    def mean(self, out: Tensor, total: Tensor, weight_total: float) -> None: ...

    def decode(self, total: Tensor) -> Tensor: ...


class ExactArithmetic:
    """64-bit fixed point."""

    dtype = torch.int64

    def __init__(self, fraction_bits: int, max_terms: int) -> None:
        self._fixed = FixedPoint(fraction_bits, max_terms)
        self.add = self._fixed.add
        self.decode = self._fixed.decode

    def mean(self, out: Tensor, total: Tensor, weight_total: float) -> None:
        mean_into(out, total, round(weight_total * self._fixed.scale))


class FloatArithmetic:
    """Plain float32: half the bytes, and results that change in the last bits with the number of ranks."""

    dtype = torch.float32

    def add(self, total: Tensor, values: Tensor, weight: float, name: str) -> None:
        total.add_(values, alpha=weight)

    def mean(self, out: Tensor, total: Tensor, weight_total: float) -> None:
        torch.div(total, weight_total, out=out)

    def decode(self, total: Tensor) -> Tensor:
        return total.to(torch.float64)


class Sums:
    """Makes exchanges; keeps their buffer between rounds, because fresh memory costs more than the addition."""

    def __init__(self, collectives: Collectives, arithmetic: ArithmeticName, fraction_bits: int) -> None:
        self.collectives = collectives
        self._arithmetic_name = arithmetic
        self._fraction_bits = fraction_bits
        self._buffer: Tensor | None = None

    def arithmetic(self, max_terms: int) -> Arithmetic:
        if self._arithmetic_name == "float32":
            return FloatArithmetic()
        return ExactArithmetic(self._fraction_bits, max_terms)

    def buffer(self, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros [numel]; valid until the next exchange."""
        old = self._buffer
        if old is None or old.numel() < numel or old.dtype != dtype or old.device != device:
            old = self._buffer = torch.empty(numel, dtype=dtype, device=device)
        return old[:numel].zero_()

    def weighted_mean(
        self, like: Blocks, metrics: Sequence[str], max_terms: int, device: torch.device, operation: Operation
    ) -> WeightedMean:
        return WeightedMean(self, like, metrics, self.arithmetic(max_terms), device, operation)

    def total(self, values: Sequence[Tensor], shape: Sequence[int], max_terms: int, device: torch.device) -> Tensor:
        """Sum of the values of all ranks: float64 [*shape].

        Raises:
            ValueError: a value of another shape, not finite, or out of range.
        """
        arithmetic = self.arithmetic(max_terms)
        numel = int(torch.Size(shape).numel())
        total = self.buffer(numel, arithmetic.dtype, device)
        for value in values:
            if tuple(value.shape) != tuple(shape):
                raise ValueError(f"sum: a value has shape {tuple(value.shape)}, but shape={tuple(shape)} was announced")
            arithmetic.add(total, value.to(device).reshape(-1), 1.0, "sum")
        with self.collectives.ledger.entry("sum", "x".join(map(str, shape)) or "scalar", total.nbytes):
            self.collectives.all_sum(total)
        return arithmetic.decode(total).reshape(tuple(shape))


class WeightedMean:
    """One exchange: `add` each contribution of this rank, then `finish` on every rank."""

    def __init__(
        self,
        sums: Sums,
        like: Blocks,
        metrics: Sequence[str],
        arithmetic: Arithmetic,
        device: torch.device,
        operation: Operation,
    ) -> None:
        self._sums = sums
        self._like = like
        self._metrics = tuple(metrics)
        self._arithmetic = arithmetic
        self._device = device
        self._operation = operation
        num_weights = len(like) + 1
        body = sum(block.layout.numel for block in like.values())
        self._total = sums.buffer(body + num_weights + len(self._metrics), arithmetic.dtype, device)
        sizes = [block.layout.numel for block in like.values()]
        *parts, self._weights, self._metric_sums = self._total.split([*sizes, num_weights, len(self._metrics)])
        self._parts = dict(zip(like, parts, strict=True))

    def add(self, contribution: Contribution) -> None:
        """Raises ValueError for a negative weight, unknown blocks, or metrics other than the announced ones."""
        weight = as_float32(contribution.weight)
        if not weight >= 0:
            raise ValueError(f"a contribution has weight {contribution.weight}; weights are finite and at least 0")
        if unknown := [name for name in contribution.blocks if name not in self._like]:
            raise ValueError(f"a contribution has blocks {unknown}, which `like` does not list: {list(self._like)}")
        if set(contribution.metrics) != set(self._metrics):
            raise ValueError(
                f"a contribution has metrics {sorted(contribution.metrics)}, announced were {sorted(self._metrics)}"
            )
        row = torch.zeros(len(self._like) + 1, dtype=torch.float64)
        for index, name in enumerate(self._like):
            if name in contribution.blocks:
                self._arithmetic.add(self._parts[name], contribution.blocks[name].flat, weight, f"block {name}")
                row[index] = weight
        row[-1] = weight
        self._arithmetic.add(self._weights, row.to(self._device), 1.0, "weights")
        if self._metrics:
            values = torch.tensor([contribution.metrics[m] for m in self._metrics], dtype=torch.float64)
            self._arithmetic.add(self._metric_sums, values.to(self._device), weight, "metrics")

    def finish(self) -> Reduced:
        """Every rank calls this. Raises ValueError when no client contributed at all."""
        collectives = self._sums.collectives
        with collectives.ledger.entry(self._operation, ",".join(self._like) or "metrics", self._total.nbytes):
            # The tail (weights) is needed to decode the first bucket; it is small, so it is summed first.
            tail_start = self._total.numel() - self._weights.numel() - self._metric_sums.numel()
            collectives.all_sum(self._total[tail_start:])
            weights = self._arithmetic.decode(self._weights).tolist()
            if not weights[-1] > 0:
                raise ValueError("no client contributed to the weighted mean: all weights are 0")
            flat = torch.empty(tail_start, dtype=torch.float32, device=self._device)
            pieces = self._pieces(flat, weights)
            done = 0
            for bucket in collectives.all_sum_buckets(self._total[:tail_start]):
                done += bucket.numel()
                while pieces and pieces[0][2] <= done:
                    start, out, stop, weight_total = pieces.pop(0)
                    self._arithmetic.mean(out, self._total[start:stop], weight_total)
        mean = {}
        offset = 0
        for (name, block), weight in zip(self._like.items(), weights, strict=False):
            if weight > 0:
                mean[name] = Block(flat[offset : offset + block.layout.numel], block.layout)
            offset += block.layout.numel
        metrics = (self._arithmetic.decode(self._metric_sums) / weights[-1]).tolist()
        return Reduced(
            mean, dict(zip(self._like, weights, strict=False)), dict(zip(self._metrics, metrics, strict=True))
        )

    def _pieces(self, flat: Tensor, weights: Sequence[float]) -> list[tuple[int, Tensor, int, float]]:
        """(start, output, stop, weight) of stretches that lie in one block and in one bucket."""
        bucket = max(self._sums.collectives.bucket_bytes // self._total.element_size(), 1)
        pieces = []
        offset = 0
        for block, weight in zip(self._like.values(), weights, strict=False):
            start, end = offset, offset + block.layout.numel
            while weight > 0 and start < end:
                stop = min(end, (start // bucket + 1) * bucket)
                pieces.append((start, flat[start:stop], stop, weight))
                start = stop
            offset = end
        return pieces
