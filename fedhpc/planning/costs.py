"""What was measured of a round: plain numbers that travel as JSON from the measuring process to the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedhpc.interfaces import ClientId


@dataclass(frozen=True)
class Call:
    """A loop over batches within a client's turn: one fit, or one pass over a split.

    Seconds of a call = offset + rate * planned; `planned` is its batches in a whole round, known for the clients that
    were measured.
    """

    kind: Literal["fit", "pass"]
    rate: float  # seconds a batch
    offset: float  # seconds, whatever the number of batches
    planned: Mapping[ClientId, int]


@dataclass(frozen=True)
class Phase:
    """A part of the round that ends in an exchange (`each` or `reduce`); every client of the cohort has a turn."""

    fixed: float  # seconds of a turn outside its calls: load, difference, encode
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        model_state: weights, gradients and optimizer state of the resident model: what shards when several ranks train
            one client together.
        exchange: shared blocks, updates and the buffer of the sum.
        data: columns of the packed file that are held.
        rest: the process itself, activations, kernels' scratch: the measured peak less all of the above.
        state_of_client: what a client keeps between rounds, on the rank where it lives.
    """

    model_state: int
    exchange: int
    data: int
    rest: int
    state_of_client: int

    def per_rank(self, clients_here: int, shard: int = 1) -> int:
        """Where `shard` ranks train one client together (``mesh.shard``, ZeRO-3), each holds its part of the model's
        state, of what is exchanged and of what clients keep."""
        parts = self.model_state + self.exchange + clients_here * self.state_of_client
        return parts // shard + self.data + self.rest


@dataclass(frozen=True)
class Link:
    """An all-reduce of n bytes over p ranks takes 2 (p - 1) latency + 2 (p - 1) / p * n / bandwidth (a ring: Patarasu
    and Yuan, 2009)."""

    latency: float  # seconds a message
    bandwidth: float  # bytes a second

    def all_reduce(self, num_bytes: float, ranks: int) -> float:
        if ranks == 1:
            return 0.0
        return 2 * (ranks - 1) * (self.latency + num_bytes / ranks / self.bandwidth)


@dataclass(frozen=True)
class Costs:
    """One round, as one rank alone made it."""

    phases: tuple[Phase, ...]
    rest: float  # seconds a round outside turns: what every rank does, whatever the number of ranks
    exchanges: tuple[int, ...]  # bytes of every sum of the round, in order
    memory: Memory
    rows: Mapping[ClientId, int]  # training rows of the clients that train
    stateful: bool
    device: str
    steps_measured: int  # batches a fit, at most


@dataclass(frozen=True)
class Machine:
    """Nodes alike, joined by `between`.

    Attributes:
        capacity: ranks that a node can run at full speed: GPUs, or cores / threads.
        within: the link between ranks of one node.
    """

    capacity: int
    slowdown: float  # of a step when `capacity` ranks run side by side
    within: Link
    between: Link
    notes: tuple[str, ...] = field(default=())

    def slowed(self, ranks: int) -> float:
        """Seconds of a step among `ranks` busy ranks of a node, against one rank alone."""
        busy = min(ranks, self.capacity)
        side_by_side = 1 + (self.slowdown - 1) * (busy - 1) / (self.capacity - 1) if self.capacity > 1 else 1.0
        return side_by_side * max(1.0, ranks / self.capacity)


def to_json(value: Any) -> Any:
    return dataclasses.asdict(value)


def costs_from_json(data: Mapping[str, Any]) -> Costs:
    def call(c: Mapping[str, Any]) -> Call:
        return Call(c["kind"], c["rate"], c["offset"], {int(k): v for k, v in c["planned"].items()})

    phases = tuple(Phase(p["fixed"], tuple(call(c) for c in p["calls"])) for p in data["phases"])
    return Costs(**{
        **data, "phases": phases, "exchanges": tuple(data["exchanges"]), "memory": Memory(**data["memory"]),
        "rows": {int(k): v for k, v in data["rows"].items()},
    })  # fmt: skip
