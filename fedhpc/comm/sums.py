"""Weighted means over clients: contributions of a rank's clients are added into one buffer, which is summed over ranks.

The buffer of an exchange is [a weight per block | their whole weight | metrics | block 1 | block 2 | ...]: weights
travel inside the same sum as what they weigh, and first, so that the first bucket can be decoded when it arrives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.fixed_point import FixedPoint, as_float32, mean_into
from fedhpc.comm.ledger import Entry, Operation
from fedhpc.comm.privacy import ClientGuard
from fedhpc.comm.secure import Contributors, Masks
from fedhpc.interfaces import Block, Blocks, ClientId, Contribution, Reduced

ArithmeticName = Literal["fixed_point", "float32"]


class Arithmetic(Protocol):
    """How numbers are added: exactly, or fast."""

    dtype: torch.dtype

    def add(self, total: Tensor, values: Tensor, weight: float, name: str) -> None: ...

    def encode_scalar(self, value: float, name: str) -> int | float: ...

    def mean(self, out: Tensor, total: Tensor, weight_total: float) -> None: ...

    def decode(self, total: Tensor) -> Tensor: ...


class ExactArithmetic:
    """Fixed point."""

    def __init__(self, fraction_bits: int, max_terms: int, ring_bits: int) -> None:
        self._fixed = FixedPoint(fraction_bits, max_terms, ring_bits)
        self.dtype = self._fixed.dtype
        self.add = self._fixed.add
        self.encode_scalar = self._fixed.encode_scalar
        self.decode = self._fixed.decode

    def mean(self, out: Tensor, total: Tensor, weight_total: float) -> None:
        mean_into(out, total, round(weight_total * self._fixed.scale))


class FloatArithmetic:
    """Plain float32: half the bytes, and results that change in the last bits with the number of ranks."""

    dtype = torch.float32

    def add(self, total: Tensor, values: Tensor, weight: float, name: str) -> None:
        total.add_(values, alpha=weight)

    def encode_scalar(self, value: float, name: str) -> int | float:
        return value

    def mean(self, out: Tensor, total: Tensor, weight_total: float) -> None:
        torch.div(total, weight_total, out=out)

    def decode(self, total: Tensor) -> Tensor:
        return total.to(torch.float64)


class Sums:
    """Makes exchanges; keeps their buffer between rounds, because fresh memory costs more than the addition.

    Args:
        masks: hide what a rank sends; then every contribution is given with its client.
        guard: clips updates and adds noise to them; likewise.
        withhold: metrics stay with the clients: they are not in weighted means.
    """

    def __init__(
        self,
        collectives: Collectives,
        arithmetic: ArithmeticName,
        fraction_bits: int,
        ring_bits: int = 64,
        masks: Masks | None = None,
        guard: ClientGuard | None = None,
        withhold: bool = False,
    ) -> None:
        assert (masks is None and guard is None) or arithmetic == "fixed_point", "masks hide integers"
        self.collectives = collectives
        self.masks = masks
        self.guard = guard
        self.withhold = withhold or guard is not None
        self._arithmetic_name = arithmetic
        self._fraction_bits = fraction_bits
        self._ring_bits = ring_bits
        self._buffer: Tensor | None = None

    def arithmetic(self, max_terms: int) -> Arithmetic:
        if self._arithmetic_name == "float32":
            return FloatArithmetic()
        return ExactArithmetic(self._fraction_bits, max_terms, self._ring_bits)

    def buffer(self, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros [numel], or some more that travel masked (`Collectives.granule`); valid until the next exchange."""
        if self.masks is not None:
            numel = -(-numel // self.collectives.granule) * self.collectives.granule
        old = self._buffer
        if old is None or old.numel() < numel or old.dtype != dtype or old.device != device:
            old = self._buffer = torch.empty(numel, dtype=dtype, device=device)
        return old[:numel].zero_()

    def weighted_mean(
        self,
        like: Blocks,
        metrics: Sequence[str],
        max_terms: int,
        device: torch.device,
        operation: Operation,
        everyone: Sequence[ClientId] = (),
        lost: frozenset[ClientId] = frozenset(),
    ) -> WeightedMean:
        """everyone: the clients that may contribute, the same on every rank. lost: those of them whose contributions
        never arrive."""
        who = Contributors(everyone, ("the sum", *(f"block {name}" for name in like)), lost=lost)
        if self.withhold:
            metrics = ()
        if self.guard is not None:
            self.guard.open(like)
            metrics, max_terms = self.guard.metrics, 2 * max_terms  # noise is a term of its own
        return WeightedMean(self, like, metrics, self.arithmetic(max_terms), device, operation, who)

    def buckets(self, total: Tensor, who: Contributors, entry: Entry) -> Iterator[Tensor]:
        """`total`, from `buffer`, summed over slots in place; yields each bucket when it is complete."""
        if self.masks is None:
            entry.by = tuple(client for client in who.everyone if client not in who.lost)
            entry.lost = tuple(sorted(who.lost))
            return self.collectives.all_sum_buckets(total)
        entry.masked = True
        return self.masks.buckets(total, who, entry)

    def total(
        self,
        values: Sequence[Tensor],
        shape: Sequence[int],
        max_terms: int,
        device: torch.device,
        who: Contributors | None = None,
        *,
        operation: Operation = "sum",
        what: str = "",
    ) -> Tensor:
        """Sum of the values of all ranks: float64 [*shape].

        who: whose they are; values of those that are lost are not among `values`. operation, what: for the ledger.

        Raises:
            ValueError: a value of another shape, not finite, or out of range.
        """
        arithmetic = self.arithmetic(max_terms)
        numel = int(torch.Size(shape).numel())
        buffer = self.buffer(numel, arithmetic.dtype, device)
        total = buffer[:numel]
        for value in values:
            if tuple(value.shape) != tuple(shape):
                raise ValueError(f"sum: a value has shape {tuple(value.shape)}, but shape={tuple(shape)} was announced")
            arithmetic.add(total, value.to(device).reshape(-1), 1.0, "sum")
        who = who or Contributors((), ())
        label = what or "x".join(map(str, shape)) or "scalar"
        with self.collectives.ledger.entry(operation, label, buffer.nbytes) as entry:
            for _ in self.buckets(buffer, who, entry):
                pass
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
        who: Contributors,
    ) -> None:
        self._sums = sums
        self._like = like
        self._metrics = tuple(metrics)
        self._arithmetic = arithmetic
        self._device = device
        self._operation = operation
        self._scalars: list[int | float] = [0] * (len(like) + 1 + len(self._metrics))
        sizes = [block.layout.numel for block in like.values()]
        self._total = sums.buffer(len(self._scalars) + sum(sizes), arithmetic.dtype, device)
        self._size = len(self._scalars) + sum(sizes)
        self._head, *parts = self._total[: self._size].split([len(self._scalars), *sizes])
        self._parts = dict(zip(like, parts, strict=True))
        self._who = who
        self._guard = sums.guard

    def add(self, contribution: Contribution, client: ClientId | None = None) -> None:
        """client: whose it is; masks and lost clients need it.

        Raises:
            ValueError: a negative weight, unknown blocks, or metrics other than the announced ones.
        """
        if self._guard is not None:
            assert client is not None, "noise is drawn for each client"
            contribution = self._guard.clipped(contribution, client, self._like)
        elif self._sums.withhold:
            contribution = Contribution(contribution.blocks, contribution.weight)
        weight = checked_weight(contribution, self._metrics)
        if unknown := [name for name in contribution.blocks if name not in self._like]:
            raise ValueError(f"a contribution has blocks {unknown}, which `like` does not list: {list(self._like)}")
        scalars = [weight if name in contribution.blocks else 0.0 for name in self._like]
        if client is not None:
            self._who.mine[client] = (weight > 0, *(share > 0 for share in scalars))
        if client in self._who.lost:
            return
        scalars += [weight, *(weight * contribution.metrics[name] for name in self._metrics)]
        names = [*(f"weight of {name}" for name in self._like), "weight", *(f"metric {m}" for m in self._metrics)]
        encoded = [self._arithmetic.encode_scalar(value, name) for value, name in zip(scalars, names, strict=True)]
        for name, block in contribution.blocks.items():
            if block.layout.numel:  # a shard of a small block may be empty
                self._arithmetic.add(self._parts[name], block.flat, weight, f"block {name}")
                if self._guard is not None and client is not None:
                    noise = self._guard.share(client, name, block).to(self._device)
                    self._arithmetic.add(self._parts[name], noise, 1.0, f"noise on block {name}")
        self._scalars = [total + one for total, one in zip(self._scalars, encoded, strict=True)]

    def finish(self) -> Reduced:
        """Every rank calls this. Raises ValueError when no client contributed at all."""
        self._head.copy_(torch.tensor(self._scalars, dtype=self._arithmetic.dtype))
        collectives = self._sums.collectives
        head = len(self._scalars)
        flat = torch.empty(self._size - head, dtype=torch.float32, device=self._device)
        what = ",".join(self._like) or "metrics"
        with collectives.ledger.entry(self._operation, what, self._total.nbytes) as entry:
            done = 0
            weights: list[float] = []
            pieces: list[tuple[int, int, float]] = []
            for bucket in self._sums.buckets(self._total, self._who, entry):
                done += bucket.numel()
                if done - bucket.numel() < head <= done:
                    scalars = self._arithmetic.decode(self._head).tolist()
                    weights, weight = scalars[: len(self._like)], scalars[len(self._like)]
                    metrics = scalars[len(self._like) + 1 :]
                    if not weight > 0:
                        raise ValueError("no client contributed to the weighted mean: all weights are 0")
                    pieces = self._pieces(weights)
                while pieces and pieces[0][1] <= done:
                    start, stop, share = pieces.pop(0)
                    self._arithmetic.mean(flat[start - head : stop - head], self._total[start:stop], share)
        mean = {}
        offset = 0
        for (name, block), share in zip(self._like.items(), weights, strict=True):
            if share > 0:
                mean[name] = Block(flat[offset : offset + block.layout.numel], block.layout)
            offset += block.layout.numel
        return Reduced(
            mean,
            dict(zip(self._like, weights, strict=True)),
            {name: value / weight for name, value in zip(self._metrics, metrics, strict=True)},
        )

    def _pieces(self, weights: Sequence[float]) -> list[tuple[int, int, float]]:
        """(start, stop, weight) of stretches of the buffer that lie in one block and in one bucket."""
        bucket = self._sums.collectives.bucket_numel(self._total)
        pieces = []
        offset = len(self._scalars)
        for block, weight in zip(self._like.values(), weights, strict=True):
            start, end = offset, offset + block.layout.numel
            while weight > 0 and start < end:
                stop = min(end, (start // bucket + 1) * bucket)
                pieces.append((start, stop, weight))
                start = stop
            offset = end
        return pieces


def checked_weight(contribution: Contribution, metrics: Sequence[str]) -> float:
    """A contribution's weight, as float32 has it.

    Raises:
        ValueError: a negative weight, or metrics other than the announced ones.
    """
    weight = as_float32(contribution.weight)
    if not weight >= 0:
        raise ValueError(f"a contribution has weight {contribution.weight}; weights are finite and at least 0")
    if set(contribution.metrics) != set(metrics):
        raise ValueError(f"a contribution has metrics {sorted(contribution.metrics)}, announced were {sorted(metrics)}")
    return weight
