"""Seconds, bytes and memory of a round on any number of ranks, from the measured costs of one.

The makespan of a phase comes from the placement that the run itself uses. Ranks of one node share its cores: while n of
them are busy, each goes at 1 / slowed(n) of its speed, and the others speed up when one is done. An exchange is a ring
over all ranks, as fast as its slowest link.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedhpc.config.schema import CohortConfig
from fedhpc.federation.cohort import cohort_size, sample_cohort
from fedhpc.federation.placement import Placement
from fedhpc.interfaces import ClientId
from fedhpc.planning.costs import Costs, Machine

SIMULATED_ROUNDS = 8  # cohorts differ from round to round, and so does what placement knows of their costs
PAYS = 1.05  # more ranks stop paying when none of them would make a round 5 % faster


@dataclass(frozen=True)
class Prediction:
    """A round on `ranks` ranks, a mean over rounds."""

    ranks: int
    nodes: int
    seconds: float
    computing: float  # seconds of the busiest rank's turns, and of what every rank does
    exchanging: float  # seconds
    clients_per_rank: tuple[int, int]  # fewest and most, of a cohort
    idle: float  # share of rank-seconds in which a rank of equal speed waits for others' turns
    bytes_summed: int  # of a round, handed to sums by each rank
    bytes_per_link: int  # sent by each rank to its neighbour in the ring
    memory: int  # bytes of the fullest rank


@dataclass(frozen=True)
class Workload:
    """What the config says of rounds.

    costs: by phase, client -> seconds of its turn on a rank that is alone on its node.
    """

    costs: Sequence[Mapping[ClientId, float]]
    measured: Costs
    cohort: CohortConfig
    random_seed: int
    rounds: int
    shard: int = 1

    @property
    def cohort_size(self) -> int:
        return cohort_size(self.cohort, len(self.measured.rows))


def client_costs(measured: Costs, batches_per_epoch: Callable[[int], int]) -> list[dict[ClientId, float]]:
    """By phase: seconds of every client's turn, those that were not measured included.

    batches_per_epoch: rows -> batches. What a budget comes to for others is the same number of batches, or the same
    number of passes.
    """
    result = []
    for phase in measured.phases:
        seconds = dict.fromkeys(measured.rows, phase.fixed)
        for call in phase.calls:
            alike = len(set(call.planned.values())) == 1
            passes = statistics.median(
                count / max(1, batches_per_epoch(measured.rows[c])) for c, count in call.planned.items()
            )
            for client, rows in measured.rows.items():
                guess = next(iter(call.planned.values())) if alike else math.ceil(passes * batches_per_epoch(rows))
                seconds[client] += call.offset + call.rate * call.planned.get(client, guess)
        result.append(seconds)
    return result


def predict(workload: Workload, machine: Machine, ranks: int, ranks_per_node: int) -> Prediction:
    """A round on `ranks` ranks, `ranks_per_node` on a node (fewer on the last)."""
    measured = workload.measured
    shard = min(workload.shard, ranks)  # one rank alone, which others are compared with, has no one to share with
    num_slots = ranks // shard
    placement = Placement(measured.rows, num_slots, measured.stateful)
    per_node = min(ranks_per_node, ranks)
    nodes = math.ceil(ranks / per_node)
    computing: list[float] = []
    idle: list[float] = []
    counts: list[int] = []
    for index in range(min(SIMULATED_ROUNDS, max(workload.rounds, 1)) + 1):
        cohort = sample_cohort(sorted(measured.rows), workload.cohort, workload.random_seed, index)
        slots = placement.place(cohort)
        if index:  # the first round is placed by rows alone, before any cost is known
            total = busy = longest = 0.0
            for phase in workload.costs:
                loads = [sum(phase[c] for c in slot) for slot in slots for _ in range(shard)]
                total += max(makespan(loads[start : start + per_node], machine) for start in range(0, ranks, per_node))
                busy += sum(loads) / ranks
                longest += max(loads)
            computing.append(total)
            idle.append(1 - busy / longest if longest else 0.0)
            counts += [len(slot) for slot in slots]
        placement.learn(cohort, [sum(phase[c] for phase in workload.costs) for c in cohort])
    # Shards travel side by side, each along the slots: together as much as a whole model over each link.
    slots_per_node = max(1, per_node // shard)
    exchanging = sum(exchange_seconds(size, num_slots, slots_per_node, machine) for size in measured.exchanges)
    everywhere = measured.rest * machine.slowed(per_node)
    bytes_summed = sum(measured.exchanges) // shard
    compute = statistics.mean(computing) + everywhere
    living = max((len(placement.residents(slot)) for slot in range(num_slots)), default=0)
    return Prediction(
        ranks, nodes, compute + exchanging, compute, exchanging, (min(counts), max(counts)), statistics.mean(idle),
        bytes_summed, round(2 * (num_slots - 1) / num_slots * bytes_summed), measured.memory.per_rank(living, shard),
    )  # fmt: skip


def exchange_seconds(num_bytes: int, ranks: int, per_node: int, machine: Machine) -> float:
    """A sum over all ranks; ranks that share cores share them for the exchange as well."""
    if per_node >= ranks:
        return machine.within.all_reduce(num_bytes, ranks) * max(1.0, per_node / machine.capacity)
    slowest = max(machine.within.all_reduce(num_bytes, ranks), machine.between.all_reduce(num_bytes, ranks))
    return slowest * max(1.0, per_node / machine.capacity)


def makespan(loads: Sequence[float], machine: Machine) -> float:
    """Seconds until the last of a node's ranks is done, each with its seconds of work; idle ranks slow nobody."""
    seconds = done = 0.0
    busy = sorted(load for load in loads if load > 0)
    for place, load in enumerate(busy):
        seconds += (load - done) * machine.slowed(len(busy) - place)
        done = load
    return seconds


def default_ranks_per_node(ranks: int, capacity: int, device: str) -> int:
    """One node as long as it is not badly crowded; GPUs are never shared."""
    most = capacity if device == "cuda" else 2 * capacity
    return ranks if ranks <= most else capacity


def worthwhile(predictions: Iterable[Prediction]) -> Prediction:
    """The fewest ranks that no larger number beats by 5 %."""
    ordered = sorted(predictions, key=lambda p: p.ranks)
    best = min(p.seconds for p in ordered)
    return next(p for p in ordered if p.seconds <= PAYS * best)


def candidates(cohort: int, asked: Iterable[int], shard: int = 1) -> list[int]:
    """Numbers of ranks worth a look: where the most clients a rank has goes down by one."""
    useful = {math.ceil(cohort / clients) for clients in range(1, cohort + 1)}
    return sorted({n * shard for n in useful} | set(asked))
