"""The plan as a table, and in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from fedhpc.config.schema import RunConfig
from fedhpc.planning.model import Prediction
from fedhpc.planning.plan import Plan
from fedhpc.planning.shards import RankMemory, lines, rank_memory, whole

SUMS = ("model states", "in all")


def table(plan: Plan, rounds: int) -> Table:
    """A line for each number of ranks that was asked for."""
    view = Table(title=f"one round of {rounds}")
    for name in ("ranks", "nodes x ranks", "clients a rank", "idle", "s a round", "of it exchange", "speed-up",
                 "whole run", "rank-hours", "sent a rank", "memory a rank"):  # fmt: skip
        view.add_column(name, justify="right")
    for p in plan.predictions:
        fewest, most = p.clients_per_rank
        hours = p.seconds * rounds / 3600
        view.add_row(
            str(p.ranks),
            f"{p.nodes} x {-(-p.ranks // p.nodes)}",
            str(most) if fewest == most else f"{fewest}-{most}",
            f"{p.idle:.0%}",
            f"{p.seconds:.3g}",
            f"{p.exchanging / p.seconds:.0%}",
            f"{plan.alone.seconds / p.seconds:.1f}",
            duration(p.seconds * rounds),
            f"{hours * p.ranks:.2g}",
            size(p.bytes_per_link),
            size(p.memory),
        )
    return view


def sentences(plan: Plan, given: bool) -> Iterator[str]:
    """What the numbers rest on, and where more ranks stop paying. given: the network between nodes was given."""
    costs, machine = plan.workload.measured, plan.machine
    yield (
        f"{len(costs.rows)} clients train, {plan.workload.cohort_size} a round; {plan.step_seconds:.3g} s a step on "
        f"{costs.device}; every rank hands {size(sum(costs.exchanges))} a round to {len(costs.exchanges)} sums."
    )
    yield (
        f"A node has room for {machine.capacity} rank{'s' if machine.capacity > 1 else ''}"
        + (f"; side by side a step takes {machine.slowdown:.2f} times as long." if machine.capacity > 1 else ".")
    )
    if any(p.ranks > 1 for p in plan.predictions):
        yield f"Within a node: {_link(machine.within.latency, machine.within.bandwidth)}."
        several = any(p.nodes > 1 for p in plan.predictions)
        if several and given:
            yield f"Between nodes: {_link(machine.between.latency, machine.between.bandwidth)}."
        elif several:
            yield "Between nodes: taken to be as within one; give --latency-us and --bandwidth-gbit of your network."
    yield from machine.notes
    yield _enough(plan.enough, plan)


def memory_table(memory: RankMemory) -> Table:
    """What the model takes on each rank."""
    view = Table(title="memory of a rank, by shapes")
    for name in ("", "device", "host"):
        view.add_column(name, justify="right" if name else "left")
    for name, device, host in lines(memory):
        view.add_row(name, size(device), size(host) if host else "", style="bold" if name in SUMS else None)
    return view


def memory_sentences(config: RunConfig, memory: RankMemory) -> Iterator[str]:
    """What the table is of, and what it leaves out."""
    sharding, shard = config.sharding, config.mesh.shard
    ranks = f"{shard} ranks a client" if shard > 1 else "one rank a client"
    zero = "" if sharding is None else f", ZeRO-{sharding.zero}"
    yield f"{memory.elements.parameters:,} parameters, {ranks}{zero}, {config.fit.precision}, {config.algorithm.name}."
    if shard > 1:
        alone = rank_memory(whole(config), memory.elements)
        yield f"On one rank: {size(alone.model_states)} of model states, {size(alone.total)} in all."
    yield "Not in it: activations, layers while they are gathered, DeepSpeed's buckets, data, the process itself."


def _enough(enough: Prediction, plan: Plan) -> str:
    reason = (
        "every client of a round then has a rank of its own"
        if enough.ranks >= plan.workload.cohort_size
        else "the longest turns, and the exchange, then rule"
    )
    return (
        f"More than {enough.ranks} rank{'s do' if enough.ranks > 1 else ' does'} not pay: no larger number makes a "
        f"round 5 % faster than {enough.seconds:.3g} s ({reason})."
    )


def _link(latency: float, bandwidth: float) -> str:
    return f"{latency * 1e6:.0f} us and {bandwidth / 1e9:.2f} GB/s a message"


def size(num_bytes: float) -> str:
    """In binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 or unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Days, hours, minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"
