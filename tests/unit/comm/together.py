"""Several ranks as threads of one process, and all that each of them receives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh


class Wire:
    """Hands what each rank brings to all of them."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world)
        self.items: list[Any] = [None] * world

    def swap(self, rank: int, item: Any) -> list[Any]:
        self.items[rank] = item
        self.barrier.wait(20)
        found = list(self.items)
        self.barrier.wait(20)
        return found


class ThreadCollectives(Collectives):
    """Of ranks with the same shard. `open_words`: from other ranks, in sums that all see; `sealed_words`: from other
    ranks, slices under masks."""

    def __init__(self, rank: int, world: int, wire: Wire, bucket_bytes: int = 1 << 20, shard: int = 1) -> None:
        super().__init__(Mesh(rank, world, shard, None), Ledger(), bucket_bytes)
        self._wire = wire
        self.open_words: list[Tensor] = []
        self.sealed_words: list[Tensor] = []

    def all_sum(self, tensor: Tensor) -> Tensor:
        parts = self._wire.swap(self.mesh.slot, tensor.clone())
        self.open_words += [p for rank, p in enumerate(parts) if rank != self.mesh.slot]
        return tensor.copy_(torch.stack(parts).sum(0, dtype=tensor.dtype))

    def all_sum_buckets(self, flat: Tensor) -> Iterator[Tensor]:
        for bucket in flat.split(self.bucket_numel(flat)):
            yield self.all_sum(bucket)

    def sum_slices(self, bucket: Tensor) -> Tensor:
        parts = self._wire.swap(self.mesh.slot, bucket.clone())
        own = [p.view(self.mesh.num_slots, -1)[self.mesh.slot] for p in parts]
        self.sealed_words += [p for rank, p in enumerate(own) if rank != self.mesh.slot]
        return torch.stack(own).sum(0, dtype=bucket.dtype)

    def swap_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        width = rows.shape[1] // self.mesh.world
        parts = self._wire.swap(self.mesh.rank, rows.clone())
        return torch.cat([p[:, self.mesh.rank * width : (self.mesh.rank + 1) * width] for p in parts])

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.cat(self._wire.swap(self.mesh.rank, rows.clone()))

    def join(self, own: Tensor) -> Tensor:
        return torch.cat(self._wire.swap(self.mesh.rank, own.clone()))

    def join_slices(self, bucket: Tensor, own: Tensor) -> None:
        bucket.copy_(torch.cat(self._wire.swap(self.mesh.slot, own.clone())))


def together(
    world: int, fn: Callable[[ThreadCollectives], Any], bucket_bytes: int = 1 << 20, shard: int = 1
) -> list[Any]:
    """fn on every rank; their results by rank. Raises what the first failing rank raised."""
    wires = [Wire(world // shard) for _ in range(shard)]  # of each shard
    results: list[Any] = [None] * world
    errors: list[BaseException] = []

    def play(rank: int) -> None:
        try:
            results[rank] = fn(ThreadCollectives(rank, world, wires[rank % shard], bucket_bytes, shard))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)
            for wire in wires:
                wire.barrier.abort()

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
