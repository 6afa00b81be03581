"""Plays a few cut rounds of a real run on this machine and writes what they cost: python -m fedhpc.planning.probe ...

One process measures everything; several ranks side by side measure what they do to each other, and the link.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fedhpc.build import build
from fedhpc.client.engine import Engine
from fedhpc.config.load import load_config
from fedhpc.config.schema import CohortConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.federation.cohort import cohort_size
from fedhpc.federation.rounds import Run
from fedhpc.interfaces import Block, ClientId
from fedhpc.planning.costs import Call, Costs, Link, Memory, Phase, to_json
from fedhpc.planning.stopwatch import Stopwatch, Turn
from fedhpc.runtime import Runtime, settle
from fedhpc.task import data_path

BUDGET_S = 20.0  # for the measured rounds
REPEATS = 3
MOST_STEPS = 8
MOST_CLIENTS = 16  # of a cohort: the others cost alike
SMALL, SMALL_TIMES, LARGE_TIMES = 8, 50, 5  # bytes, sums of the link's measurement

Turns = Mapping[tuple[int, ClientId], Turn]


@dataclass
class Round:
    """One cut round."""

    limit: int
    seconds: float
    turns: Turns
    exchanges: tuple[int, ...]


def probe(config: RunConfig, limit: int | None) -> dict[str, Any] | None:
    """The costs, and with several ranks what they do to each other; None on ranks but the first. Every rank calls this.

    limit: batches of a loop that are made; chosen by their cost when None, which one rank alone can do.
    Sharded clients are measured unsharded: each rank's part of memory is worked out from the whole.
    """
    config = config.model_copy(update={"mesh": config.mesh.model_copy(update={"shard": 1}), "sharding": None})
    with Runtime.start(config.runtime, config.mesh) as runtime, tempfile.TemporaryDirectory() as folder:
        path = data_path(config)
        with PackedFile(path) as packed:
            run, _, close = build(config, packed, runtime, Path(folder))
            settle()
            try:
                rounds = _play(run, limit)
                costs = _costs(run, rounds)
                answer: dict[str, Any] = {"costs": to_json(costs)}
                if runtime.mesh.world > 1:
                    answer["link"] = to_json(_link(run, max(costs.exchanges)))
                return answer if runtime.is_first else None
            finally:
                close()


def _play(run: Run, limit: int | None) -> list[Round]:
    """A round to warm up, then short and longer ones in turns."""
    fed, watch = run.fed, Stopwatch(run.fed)
    size = cohort_size(run.config.cohort, len(fed.clients))
    fed._cohort_config = CohortConfig(size=min(size, MOST_CLIENTS, len(fed.clients)))
    run.algorithm.setup(fed)
    rounds: list[Round] = []

    def play(steps: int) -> float:
        index = len(rounds) % run.config.rounds
        watch.begin(steps)
        start = perf_counter()
        fed.begin(index)
        run.algorithm.round(fed, index)
        fed.end(False)
        seconds = perf_counter() - start
        sent = tuple(entry.num_bytes for entry in fed.collectives.ledger.entries)
        fed.collectives.ledger.close_round(index)
        rounds.append(Round(steps, seconds, watch.turns, sent))
        return seconds

    play(1)
    once = play(1)
    if limit is None:
        limit = min(MOST_STEPS, max(2, int(BUDGET_S / (REPEATS * max(once, 1e-6))) - 1))
    play(limit)
    for _ in range(REPEATS - 1):
        play(1)
        play(limit)
    return rounds[1:]


# ------------------------------------------------------------------------------------------------------- arithmetic
def _costs(run: Run, rounds: Sequence[Round]) -> Costs:
    fed = run.fed
    longest = max(entry.limit for entry in rounds)
    num_phases = 1 + max((phase for entry in rounds for phase, _ in entry.turns), default=-1)
    phases = tuple(_phase(phase, rounds) for phase in range(num_phases))
    rest = statistics.median(
        max(0.0, entry.seconds - sum(turn.seconds for turn in entry.turns.values())) for entry in rounds
    )
    records = fed.slot.records
    return Costs(
        phases, rest, rounds[-1].exchanges, _memory(run), {c: len(records[c].rows.train) for c in fed.clients},
        bool(fed.clients_living_here()), fed.slot.engine.device.type, longest,
    )  # fmt: skip


def _phase(phase: int, rounds: Sequence[Round]) -> Phase:
    turns = [(entry, client, turn) for entry in rounds for (p, client), turn in entry.turns.items() if p == phase]
    if not turns:
        return Phase(0.0, ())
    fixed = statistics.median(max(0.0, t.seconds - sum(c.seconds for c in t.calls)) for _, _, t in turns)
    num_calls = min(len(turn.calls) for _, _, turn in turns)
    calls = []
    for place in range(num_calls):
        made = [(entry.limit, client, turn.calls[place]) for entry, client, turn in turns]
        rate, offset = line([(call.done, call.seconds) for _, _, call in made if call.done])
        kind = "fit" if made[0][2].kind == "fit" else "pass"
        calls.append(Call(kind, rate, offset, {client: call.planned for _, client, call in made}))  # type: ignore[arg-type]
    return Phase(fixed, tuple(calls))


def line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(slope, intercept) through the medians of the shortest and of the longest loops; neither is below 0."""
    if not points:
        return 0.0, 0.0
    by_length: dict[int, list[float]] = {}
    for done, seconds in points:
        by_length.setdefault(done, []).append(seconds)
    short, long = min(by_length), max(by_length)
    first, last = statistics.median(by_length[short]), statistics.median(by_length[long])
    if short == long:
        return last / long, 0.0
    rate = max(0.0, (last - first) / (long - short))
    return rate, max(0.0, first - rate * short)


# ----------------------------------------------------------------------------------------------------------- memory
def _memory(run: Run) -> Memory:
    fed, engine = run.fed, run.fed.slot.engine
    assert isinstance(engine, Engine), "`probe` takes out sharding"
    weights = sum(p.nbytes for p in engine.module.parameters()) + sum(b.nbytes for b in engine.module.buffers())
    gradients = sum(p.nbytes for p in engine.module.parameters() if p.requires_grad)
    model = weights + gradients + tensor_bytes(list(engine._last.state.values()))
    shared = tensor_bytes(run.algorithm.shared)
    buffer = 0 if fed._sums._buffer is None else fed._sums._buffer.nbytes
    # Shared and the decoded mean, what they were at first, a client's update, the buffer of the sum.
    exchange = 2 * shared + tensor_bytes([fed.initial, engine._difference]) + buffer
    states = [tensor_bytes(state) for state in fed.slot.states.values()]
    state = int(statistics.mean(states)) if states else 0
    if engine.device.type == "cuda":  # data and states are parked in the memory of the node
        peak = torch.cuda.max_memory_allocated(engine.device)
        return Memory(model, exchange, 0, max(0, peak - model - exchange), 0)
    data = tensor_bytes(fed.slot._batch_maker._inner._source._memory)  # type: ignore[attr-defined]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Memory(model, exchange, data, max(0, peak - model - exchange - data - sum(states)), state)


def tensor_bytes(value: Any) -> int:
    if isinstance(value, Block):
        return value.flat.nbytes
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(tensor_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(tensor_bytes(item) for item in value)
    return 0


# ------------------------------------------------------------------------------------------------------------- link
def _link(run: Run, num_bytes: int) -> Link:
    """From small sums and sums of the round's largest exchange. Every rank calls this."""
    collectives, device = run.fed.collectives, run.fed.slot.engine.device
    small = torch.zeros(SMALL // 8, dtype=torch.int64, device=device)
    large = torch.zeros(max(num_bytes // 8, 1 << 17), dtype=torch.int64, device=device)

    def seconds(tensor: torch.Tensor, times: int) -> float:
        collectives.all_sum(tensor)
        taken = []
        for _ in range(times):
            collectives.barrier()
            start = perf_counter()
            collectives.all_sum(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(perf_counter() - start)
        return statistics.median(taken)

    ranks = collectives.mesh.world
    latency = seconds(small, SMALL_TIMES) / (2 * (ranks - 1))
    slow = seconds(large, LARGE_TIMES) / (2 * (ranks - 1)) - latency
    return Link(latency, large.nbytes / ranks / max(slow, 1e-9))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args(arguments)
    try:
        answer = probe(load_config(given.config), given.limit)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"fedhpc: {error}")
    if answer is not None:
        given.out.write_text(json.dumps(answer))
    os._exit(0)  # nothing is left to do, and some libraries are noisy when they are taken down


if __name__ == "__main__":
    main()
