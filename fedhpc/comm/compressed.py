"""Weighted means of updates that cross in fewer bytes (codecs.py). What each rank hands over, with c of its clients in
the exchange, p slots and an update of t trainable weights and b running statistics, which cross as they are:

    exact sum          8 (t + b) in one all_reduce, which sends most of it twice
    bf16, int8         c (payload + 4 b) in an all-to-all of slices, then 4 (t + b) / p: the mean of its slice, for all
    top-k              c (payload + 4 b) in an all-gather; every rank adds up all n clients' values

So bytes grow with the clients of a rank, where a sum's do not: it pays where ranks host few clients each. Weighted
values are sent, so that weights stay with their clients; they are added up as integers like any other contribution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedhpc.comm.codecs import ALIGNMENT, Bf16, Int8, TopK
from fedhpc.comm.sums import Sums
from fedhpc.comm.updates import Announced, UpdateExchange
from fedhpc.interfaces import ClientId, ClientState, Contribution, Reduced

RESIDUAL = "fedhpc/residual"  # in client state: what error feedback still owes, float32 [t]
Codec = Bf16 | Int8 | TopK


class CompressedMean(UpdateExchange):
    """One exchange.

    Args:
        generator: client -> randomness of its own for this exchange, on the CPU.
        state_of: client -> its state, in which what was not sent is kept; None: it is lost.
    """

    def __init__(
        self,
        codec: Codec,
        generator: Callable[[ClientId], torch.Generator],
        state_of: Callable[[ClientId], ClientState] | None,
        sums: Sums,
        announced: Announced,
    ) -> None:
        super().__init__(sums, announced)
        self._codec = codec
        self._generator = generator
        self._state_of = state_of
        slots, shape = self.collectives.mesh.num_slots, self.shape
        granule = ALIGNMENT if isinstance(codec, TopK) else codec.granule
        # Slices of whole blocks, the same blocks on any number of slots.
        self._blocks = -(-shape.trainable // granule) * granule
        self._slice = -(-self._blocks // granule // slots) * granule
        statistics = shape.numel - shape.trainable
        self._statistics = -(-statistics // ALIGNMENT // slots) * ALIGNMENT  # of a slice
        self._payloads: dict[ClientId, Tensor] = {}

    def add(self, contribution: Contribution, client: ClientId) -> None:
        """Raises ValueError: see `accept`."""
        weight = self.accept(contribution, client)
        shape = self.shape
        row = torch.zeros(shape.numel, device=self.device)
        shape.write(row, contribution.blocks)
        values, statistics = row[: shape.trainable], row[shape.trainable :]
        state = None if self._state_of is None else self._state_of(client)
        if state is not None and RESIDUAL in state:
            values.add_(state[RESIDUAL].to(self.device))
        weighted = values * weight
        payload, back = self._encode(weighted, statistics * weight, client)
        if state is not None:
            state[RESIDUAL] = values - back / weight if weight else values.clone()
        if client not in self.posting.lost:
            self._payloads[client] = payload
            norm = float(weighted.double().norm())
            self.note(client, weight, contribution, float((weighted - back).double().norm()) / norm if norm else 0.0)

    def _encode(self, values: Tensor, statistics: Tensor, client: ClientId) -> tuple[Tensor, Tensor]:
        """A client's bytes [width], and what others will make of its values."""
        codec, slots = self._codec, self.collectives.mesh.num_slots
        if isinstance(codec, TopK):
            payload = codec.encode(values)
            back = torch.zeros_like(values)
            places, found = codec.decode(payload)
            back[places] = found
            return torch.cat([payload, statistics.view(torch.uint8)]), back
        grid = values.new_zeros(1, self._blocks)
        grid[0, : len(values)] = values
        payload = codec.encode(grid, self._generator(client))
        back = codec.decode(payload)[0, : len(values)]
        if slots > 1:  # the same blocks, dealt out: rounded values are rounded to themselves
            payload = self._dealt(codec, payload)
        tail = statistics.new_zeros(slots, self._statistics).view(-1)
        tail[: len(statistics)] = statistics
        return torch.cat([payload, tail.view(slots, -1).view(torch.uint8)], dim=1).view(-1), back

    def _dealt(self, codec: Bf16 | Int8, payload: Tensor) -> Tensor:
        """uint8 [slots, bytes of a slice] of the payload [1, bytes] of the whole row."""
        slots = self.collectives.mesh.num_slots
        parts = []
        for width, total in _parts(codec, self._blocks, self._slice):
            own, payload = payload[:, :total], payload[:, total:]
            padded = own.new_zeros(slots * width)
            padded[:total] = own[0]
            parts.append(padded.view(slots, width))
        return torch.cat(parts, dim=1)

    def finish(self) -> Reduced:
        """Every rank calls this."""
        weight, (error,), metrics = self.scalars(1)
        shape, collectives = self.shape, self.collectives
        slots, width = collectives.mesh.num_slots, self._width
        rows = torch.zeros(len(self.here), width, dtype=torch.uint8, device=self.device)
        for place, client in enumerate(self.here):
            rows[place] = self._payloads.pop(client)
        arithmetic = self._sums.arithmetic(self._max_terms)
        with collectives.ledger.entry(self.operation, self.what, rows.nbytes) as entry:
            self.describe(entry)
            entry.error = error
            entry.exact_bytes = shape.numel * arithmetic.dtype.itemsize
            counts = self.posting.counts
            if isinstance(self._codec, TopK):
                entry.num_bytes = max(counts) * width if slots > 1 else rows.nbytes
                found = collectives.gather_rows(rows, counts)[self.posting.order]
                total = self._sums.buffer(shape.numel, arithmetic.dtype, self.device)
                for payload in found:
                    self._add_sparse(self._codec, payload, total)
                whole = torch.empty(shape.numel, device=self.device)
                arithmetic.mean(whole, total, weight)
            else:
                found = collectives.swap_rows(rows, counts)[self.posting.order]
                total = self._sums.buffer(self._slice + self._statistics, arithmetic.dtype, self.device)
                edge = self._codec.slice_bytes(self._slice)
                for payload in found:
                    arithmetic.add(total[: self._slice], self._codec.decode(payload[None, :edge])[0], 1.0, "an update")
                    if self._statistics:
                        tail = payload[edge:].clone().view(torch.float32)
                        arithmetic.add(total[self._slice :], tail, 1.0, "an update")
                mean = torch.empty(len(total), device=self.device)
                arithmetic.mean(mean, total, weight)
                entry.num_bytes += mean.nbytes
                whole = self._unsliced(collectives.join(mean).view(slots, -1))
        return self.reduced(whole, weight, metrics)

    @property
    def _width(self) -> int:
        """Bytes of a client's row."""
        shape, slots = self.shape, self.collectives.mesh.num_slots
        if isinstance(self._codec, TopK):
            return self._codec.payload_bytes(shape.trainable) + 4 * (shape.numel - shape.trainable)
        return slots * (self._codec.slice_bytes(self._slice) + 4 * self._statistics)

    def _add_sparse(self, codec: TopK, payload: Tensor, total: Tensor) -> None:
        """total [t + b] += what a payload says."""
        shape = self.shape
        edge = codec.payload_bytes(shape.trainable)
        places, values = codec.decode(payload[:edge])
        arithmetic = self._sums.arithmetic(self._max_terms)
        sparse = total[places]
        arithmetic.add(sparse, values, 1.0, "an update")
        total[places] = sparse  # a client names no place twice
        if shape.numel > shape.trainable:
            arithmetic.add(total[shape.trainable :], payload[edge:].clone().view(torch.float32), 1.0, "an update")

    def _unsliced(self, slices: Tensor) -> Tensor:
        """A row [t + b] from [slots, slice of weights | slice of statistics]."""
        shape = self.shape
        weights = slices[:, : self._slice].reshape(-1)[: shape.trainable]
        statistics = slices[:, self._slice :].reshape(-1)[: shape.numel - shape.trainable]
        return torch.cat([weights, statistics])


def _parts(codec: Bf16 | Int8, numel: int, slice_numel: int) -> list[tuple[int, int]]:
    """(bytes of a slice, bytes of all) of each part of a payload: values, then scales."""
    if isinstance(codec, Bf16):
        return [(2 * slice_numel, 2 * numel)]
    return [(slice_numel, numel), (4 * slice_numel // codec.granule, 4 * numel // codec.granule)]
