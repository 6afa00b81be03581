"""The few collectives that all else is built on. With one rank each is a no-op: one code path for 1 and N ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from fedhpc.comm.ledger import Ledger, Operation
from fedhpc.comm.mesh import Mesh
from fedhpc.interfaces import Block, ClientId, TensorSpec

SLICE = 4  # elements: 16 bytes of 32-bit words, the block of AES


class RankLost(RuntimeError):
    """A collective failed because a rank is gone or silent."""


class Collectives:
    """Sums along axis "client", rows of all slots. Called by every rank, in the same order."""

    def __init__(self, mesh: Mesh, ledger: Ledger, bucket_bytes: int) -> None:
        self.mesh = mesh
        self.ledger = ledger
        self.bucket_bytes = bucket_bytes

    def all_sum(self, tensor: Tensor) -> Tensor:
        """In-place sum over slots, of any dtype."""
        for _ in self.all_sum_buckets(tensor):
            pass
        return tensor

    def all_sum_buckets(self, flat: Tensor) -> Iterator[Tensor]:
        """In-place sum of a 1-D tensor; yields each bucket once complete, while later ones are under way."""
        buckets = flat.reshape(-1).split(self.bucket_numel(flat)) if flat.numel() else ()
        if self.mesh.group is None:
            yield from buckets
            return
        try:
            works = [dist.all_reduce(b, group=self.mesh.group, async_op=True) for b in buckets]
            for bucket, work in zip(buckets, works, strict=True):
                work.wait()
                yield bucket
        except RuntimeError as error:  # gloo and nccl report a lost peer so
            raise RankLost(f"a collective over {self.mesh.world} ranks failed: {error}") from error

    def all_rows(
        self,
        rows: dict[int, Tensor],
        num_rows: int,
        shape: Sequence[int],
        device: torch.device,
        *,
        operation: Operation,
        what: str,
        revealed: tuple[str, ...] = (),
        by: tuple[ClientId, ...] = (),
        own_rows: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Everybody's rows at their places: float64 [num_rows, *shape]. Each row is known to one rank alone, so adding
        the others' zeros is exact.

        rows: what all ranks of a slot know; its first one speaks. own_rows: what this rank alone knows. by: the clients
        whose values `revealed` names, for the ledger.
        """
        table = torch.zeros(num_rows, *shape, dtype=torch.float64, device=device)
        spoken = rows if self.mesh.shard_index == 0 else {}
        for index, row in {**spoken, **(own_rows or {})}.items():
            table[index] = row
        with self.ledger.entry(operation, what, table.numel() * table.element_size(), revealed, by):
            self.all_ranks_sum(table)
        return table

    def all_ranks_sum(self, tensor: Tensor) -> Tensor:
        """In-place sum over all ranks. Shards of a slot must not differ in what they then know."""
        if self.mesh.shard == 1:
            return self.all_sum(tensor)
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise RankLost(f"a collective over {self.mesh.world} ranks failed: {error}") from error
        return tensor

    def whole(self, block: Block, spec: TensorSpec) -> Tensor:
        """One tensor of a block in its shape, on every rank of the slot: its pieces are put together when the block is
        sharded. Every rank of a slot calls this."""
        if block.layout.pieces is None:
            return block.view(spec)
        piece = block.layout.pieces[block.layout.specs.index(spec)]
        flat = torch.zeros(prod(piece.shape), dtype=block.flat.dtype, device=block.flat.device)
        flat[piece.start : piece.start + spec.shape[0]] = block.view(spec)
        if self.mesh.shard > 1:
            # Added as integers: each place is known to one rank alone, and -0.0 stays what it is.
            bits = flat.view(torch.int32)
            try:
                dist.all_reduce(bits, group=self.mesh.shard_group)
            except RuntimeError as error:
                raise RankLost(f"a collective over {self.mesh.shard} shards failed: {error}") from error
        return flat.view(piece.shape)

    def all_bytes(self, rows: Mapping[int, bytes], num_rows: int, width: int, device: torch.device) -> list[bytes]:
        """Messages of `width` bytes for all slots: each row is written by one of them at most, else it is zeros."""
        words = -(-width // 8)
        table = torch.zeros(num_rows, words * 8, dtype=torch.uint8)
        for index, row in rows.items():
            assert len(row) == width, (len(row), width)
            table[index, :width] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
        found = self.all_sum(table.view(torch.int64).to(device)).cpu().view(torch.uint8).numpy()
        return [row[:width].tobytes() for row in found]

    def sum_slices(self, bucket: Tensor) -> Tensor:
        """Slice number `slot` of the sum over slots: [n / num_slots] of [n]. A slot is sent only what belongs to it."""
        slots = self.mesh.num_slots
        received = torch.empty_like(bucket)
        try:
            dist.all_to_all_single(received, bucket, group=self.mesh.group)
        except RuntimeError as error:
            raise RankLost(f"a collective over {self.mesh.world} ranks failed: {error}") from error
        own, *others = received.view(slots, -1).unbind()
        for other in others:
            own.add_(other)
        return own

    def join_slices(self, bucket: Tensor, own: Tensor) -> None:
        """Fill `bucket` [n] with every slot's slice [n / num_slots]."""
        try:
            dist.all_gather_into_tensor(bucket, own, group=self.mesh.group)
        except RuntimeError as error:
            raise RankLost(f"a collective over {self.mesh.world} ranks failed: {error}") from error

    def swap_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The own columns of all slots' rows, in the order of slots: [sum(counts), width / num_slots] from this slot's
        rows [counts[slot], width]. A slot is sent only what belongs to it."""
        slots, (here, width) = self.mesh.num_slots, rows.shape
        assert here == counts[self.mesh.slot] and width % slots == 0, (rows.shape, counts)
        if self.mesh.group is None:
            return rows
        sent = rows.view(here, slots, width // slots).transpose(0, 1).contiguous().view(slots * here, -1)
        received = sent.new_empty(sum(counts), width // slots)
        try:
            dist.all_to_all_single(received, sent, list(counts), [here] * slots, group=self.mesh.group)
        except RuntimeError as error:
            raise RankLost(f"a collective over {self.mesh.world} ranks failed: {error}") from error
        return received

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """All slots' rows in the order of slots: [sum(counts), width] from this slot's [counts[slot], width]. Each slot
        sends as many rows as the fullest one has."""
        if self.mesh.group is None:
            return rows
        sent = rows.new_zeros(max(counts), rows.shape[1])
        sent[: len(rows)] = rows
        received = sent.new_empty(self.mesh.num_slots * max(counts), rows.shape[1])
        try:
            dist.all_gather_into_tensor(received, sent, group=self.mesh.group)
        except RuntimeError as error:
            raise RankLost(f"a collective over {self.mesh.world} ranks failed: {error}") from error
        tables = received.split(max(counts))
        return torch.cat([table[:count] for table, count in zip(tables, counts, strict=True)])

    def join(self, own: Tensor) -> Tensor:
        """Every slot's slice [n], end to end: [num_slots * n]."""
        if self.mesh.group is None:
            return own
        whole = own.new_empty(self.mesh.num_slots * own.numel())
        self.join_slices(whole, own)
        return whole

    @property
    def granule(self) -> int:
        """Buckets are multiples of this many elements: a slice for each slot that begins at a whole block of cipher."""
        return SLICE * self.mesh.num_slots

    def bucket_numel(self, tensor: Tensor) -> int:
        """Elements of a bucket."""
        return max(self.bucket_bytes // tensor.element_size() // self.granule, 1) * self.granule

    def barrier(self) -> None:
        """Of all ranks."""
        if self.mesh.group is not None:
            try:
                dist.barrier(group=self.mesh.group if self.mesh.shard == 1 else None)
            except RuntimeError as error:
                raise RankLost(f"a barrier over {self.mesh.world} ranks failed: {error}") from error
