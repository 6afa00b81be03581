"""Exchanges that keep the clients' updates apart until they have arrived: robust rules (`RobustMean`), compressed
updates (compressed.py). Memory grows with the clients of a rank, and every client's own update leaves it.

An update lies in a row: trainable weights of all blocks, then their running statistics, then padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Entry, Operation
from fedhpc.comm.robust_rules import Rule, Slices
from fedhpc.comm.secure import Contributors
from fedhpc.comm.sums import Sums, checked_weight
from fedhpc.interfaces import Block, BlockName, Blocks, ClientId, Contribution, Layout, Reduced

NUM_CHUNKS = 256  # that sums over coordinates are cut into at most, on however many ranks
ALIGNMENT = 16  # elements; of chunks


@dataclass(frozen=True)
class RowShape:
    """Where the blocks of an update lie in its row."""

    layouts: dict[BlockName, Layout]

    @property
    def trainable(self) -> int:
        return sum(layout.trainable_numel for layout in self.layouts.values())

    @property
    def numel(self) -> int:
        return sum(layout.numel for layout in self.layouts.values())

    def write(self, row: Tensor, blocks: Blocks) -> None:
        """Copy an update into the first `numel` elements of a row."""
        head, tail = row[: self.trainable], row[self.trainable : self.numel]
        sizes = [(x.trainable_numel, x.numel - x.trainable_numel) for x in self.layouts.values()]
        parts = zip(head.split([a for a, _ in sizes]), tail.split([b for _, b in sizes]), strict=True)
        for (name, _), (weights, statistics) in zip(self.layouts.items(), parts, strict=True):
            weights.copy_(blocks[name].trainable)
            statistics.copy_(blocks[name].buffers)

    def read(self, row: Tensor) -> dict[BlockName, Block]:
        """The blocks in a row, in memory of their own."""
        weights, statistics = 0, self.trainable
        blocks = {}
        for name, layout in self.layouts.items():
            more = layout.numel - layout.trainable_numel
            flat = torch.cat([row[weights : weights + layout.trainable_numel], row[statistics : statistics + more]])
            weights, statistics = weights + layout.trainable_numel, statistics + more
            blocks[name] = Block(flat, layout)
        return blocks


@dataclass
class Posting:
    """Who is in an exchange, and where: the same on every rank.

    Attributes:
        placed: the clients of each slot, in the order of their turns.
        lost: those whose updates never arrive.
    """

    placed: Sequence[Sequence[ClientId]]
    lost: frozenset[ClientId] = frozenset()
    arriving: list[list[ClientId]] = field(init=False)

    def __post_init__(self) -> None:
        self.arriving = [[c for c in here if c not in self.lost] for here in self.placed]

    @property
    def everyone(self) -> list[ClientId]:
        return sorted(c for here in self.placed for c in here)

    @property
    def counts(self) -> list[int]:
        return [len(here) for here in self.arriving]

    @property
    def present(self) -> list[ClientId]:
        """In the order of clients."""
        return sorted(c for here in self.arriving for c in here)

    @property
    def order(self) -> list[int]:
        """Where rows that come slot by slot belong: place i of the ordered rows has row order[i]."""
        found = [c for here in self.arriving for c in here]
        return sorted(range(len(found)), key=found.__getitem__)


@dataclass(frozen=True)
class Announced:
    """An exchange as all ranks know it before its first contribution.

    Attributes:
        like: the blocks of an update.
        max_terms: clients in an exchange at most.
    """

    like: Blocks
    metrics: Sequence[str]
    max_terms: int
    device: torch.device
    operation: Operation
    posting: Posting


class UpdateExchange(ABC):
    """What `add` and the small sums of such exchanges share."""

    reveals: ClassVar[frozenset[str]] = frozenset({"update"})  # each client's own value, to the ranks of an exchange

    def __init__(self, sums: Sums, announced: Announced) -> None:
        self.collectives: Collectives = sums.collectives
        self.shape = RowShape({name: block.layout for name, block in announced.like.items()})
        self.device = announced.device
        self.operation = announced.operation
        self.posting = announced.posting
        self.here = self.posting.arriving[self.collectives.mesh.slot]
        self._sums = sums
        self._metrics = tuple(announced.metrics)
        self._max_terms = announced.max_terms
        self._scalars: dict[ClientId, Tensor] = {}

    def accept(self, contribution: Contribution, client: ClientId) -> float:
        """Check a contribution. Returns its weight.

        Raises:
            ValueError: a negative weight, blocks or metrics other than the announced ones, a value that is not finite.
        """
        weight = checked_weight(contribution, self._metrics)
        if set(contribution.blocks) != set(self.shape.layouts):
            raise ValueError(
                f"client {client} contributes the blocks {sorted(contribution.blocks)}, all of "
                f"{sorted(self.shape.layouts)} are needed: updates are laid side by side"
            )
        for name, block in contribution.blocks.items():
            if not bool(torch.isfinite(block.flat).all()):
                raise ValueError(
                    f"block {name}: the update of client {client} is not finite. Training diverged: lower "
                    "fit.optimizer.learning_rate, or set fit.clip_norm"
                )
        return weight

    @abstractmethod
    def add(self, contribution: Contribution, client: ClientId) -> None:
        """Called once for each client of this rank, in any order."""

    @abstractmethod
    def finish(self) -> Reduced:
        """Every rank calls this."""

    def note(self, client: ClientId, weight: float, contribution: Contribution, *more: float) -> None:
        """Scalars of a client that only their sum over clients tells: its weight, `more`, weighted metrics."""
        values = [weight, *more, *(weight * contribution.metrics[name] for name in self._metrics)]
        self._scalars[client] = torch.tensor(values, dtype=torch.float64)

    def scalars(self, num_more: int = 0) -> tuple[float, list[float], dict[str, float]]:
        """(summed weight, means over clients of `more`, weighted means of metrics). Every rank calls this.

        Raises:
            ValueError: all weights are 0.
        """
        who = Contributors(self.posting.everyone, (), lost=self.posting.lost)
        values = [self._scalars[c] for c in self.here]
        shape = (1 + num_more + len(self._metrics),)
        what = ",".join(["weight", *self._metrics])
        found = self._sums.total(
            values, shape, self._max_terms, self.device, who, operation=self.operation, what=what
        ).tolist()
        weight, more, metrics = found[0], found[1 : 1 + num_more], found[1 + num_more :]
        if not weight > 0:
            raise ValueError("no client contributed to the weighted mean: all weights are 0")
        clients = len(self.posting.present)
        return (
            weight,
            [value / clients for value in more],
            {name: value / weight for name, value in zip(self._metrics, metrics, strict=True)},
        )

    def reduced(self, row: Tensor, weight: float, metrics: dict[str, float]) -> Reduced:
        return Reduced(self.shape.read(row), dict.fromkeys(self.shape.layouts, weight), metrics)

    def describe(self, entry: Entry) -> None:
        """Who was in it, for the ledger."""
        entry.by, entry.lost = tuple(self.posting.present), tuple(sorted(self.posting.lost))
        entry.revealed = tuple(sorted(self.reveals))

    @property
    def what(self) -> str:
        return ",".join(self.shape.layouts)


class RobustMean(UpdateExchange):
    """A robust rule in place of the weighted mean. Coordinates are dealt out to the slots, so that none holds all.

    Args:
        centre: the last aggregate, for rules that start from it; None before the first.
    """

    def __init__(self, rule: Rule, centre: Blocks | None, sums: Sums, announced: Announced) -> None:
        super().__init__(sums, announced)
        self._rule = rule
        self._centre = centre
        # As many chunks on one rank as on many, each on one rank.
        chunks = -(-self.shape.numel // ALIGNMENT)
        self._chunk = -(-chunks // NUM_CHUNKS) * ALIGNMENT
        self._num_chunks = -(-self.shape.numel // self._chunk)
        slots = self.collectives.mesh.num_slots
        self._chunks_here = -(-self._num_chunks // slots)
        self._slice = self._chunks_here * self._chunk
        self._rows = torch.zeros(len(self.here), slots * self._slice, device=self.device)

    def add(self, contribution: Contribution, client: ClientId) -> None:
        """Whatever its weight, the client counts as any other.

        Raises:
            ValueError: see `accept`.
        """
        self.accept(contribution, client)
        if client not in self.posting.lost:
            self.shape.write(self._rows[self.here.index(client)], contribution.blocks)
            self.note(client, 1.0, contribution)

    def finish(self) -> Reduced:
        """Every rank calls this."""
        weight, _, metrics = self.scalars()
        collectives = self.collectives
        with collectives.ledger.entry(self.operation, self.what, self._rows.nbytes) as entry:
            self.describe(entry)
            rows = collectives.swap_rows(self._rows, self.posting.counts)[self.posting.order]
            self._rows = rows.new_empty(0)  # let go of what was sent
            slices = Slices(rows, self._own(self._centre), self._adder(entry))
            verdict = self._rule(slices)
            whole = collectives.join(verdict.aggregate)
            entry.num_bytes += verdict.aggregate.nbytes
            if verdict.kept is not None:
                entry.kept = tuple(self.posting.present[place] for place in verdict.kept)
        return self.reduced(whole, weight, metrics)

    def _own(self, blocks: Blocks | None) -> Tensor:
        """This slot's coordinates of a whole update."""
        mesh = self.collectives.mesh
        row = torch.zeros(mesh.num_slots * self._slice, device=self.device)
        if blocks is not None:
            self.shape.write(row, blocks)
        return row[mesh.slot * self._slice : (mesh.slot + 1) * self._slice]

    def _adder(self, entry: Entry) -> Callable[[Callable[[Tensor], Tensor], Tensor, tuple[int, ...]], Tensor]:
        """Slices.over_ranks: a table with a row a chunk, which one rank fills in, and then its sum in order."""

        def over_ranks(fn: Callable[[Tensor], Tensor], values: Tensor, shape: tuple[int, ...]) -> Tensor:
            table = torch.zeros(self._num_chunks, *shape, dtype=torch.float64, device=self.device)
            first = self.collectives.mesh.slot * self._chunks_here
            for place in range(first, min(first + self._chunks_here, self._num_chunks)):
                start = place * self._chunk
                length = min(self._chunk, self.shape.trainable - start)
                if length > 0:
                    begin = start - first * self._chunk
                    table[place] = fn(values[:, begin : begin + length].double().contiguous())
            entry.num_bytes += table.nbytes
            return self.collectives.all_sum(table).sum(0)

        return over_ranks
