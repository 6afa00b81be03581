"""`fedhpc plan`: measure on this machine, then predict."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedhpc.config.load import dump_config
from fedhpc.config.schema import RunConfig
from fedhpc.planning.costs import Costs, Link, Machine, Phase, costs_from_json
from fedhpc.planning.model import (
    Prediction,
    Workload,
    candidates,
    client_costs,
    default_ranks_per_node,
    predict,
    worthwhile,
)
from fedhpc.runtime import child_environment
from fedhpc.spawn import spawn_ranks

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        ranks_per_node: None: as many as this machine runs at full speed, or all where they are few.
        capacity: ranks that a node runs at full speed; None: as this machine.
        step_seconds: of an optimizer step on the machine that is meant, instead of this one's.
        latency, bandwidth: of the network between nodes, in seconds and bytes a second.
    """

    ranks: Sequence[int]
    ranks_per_node: int | None = None
    capacity: int | None = None
    step_seconds: float | None = None
    latency: float | None = None
    bandwidth: float | None = None


@dataclass(frozen=True)
class Plan:
    """The answer."""

    predictions: Sequence[Prediction]
    enough: Prediction  # the rank count past which more stop paying
    alone: Prediction  # one rank
    machine: Machine
    workload: Workload
    step_seconds: float


def make_plan(config: RunConfig, asked: Asked) -> Plan:
    """Raises ValueError when the run cannot be measured here, with what to set."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What a round costs does not depend on these, and they would write files.
        report = config.report.model_copy(update={"tensorboard": False, "plots": False})
        quiet = config.model_copy(update={"report": report})
        if asked.step_seconds is not None and config.runtime.device != "cpu":
            quiet = quiet.model_copy(update={"runtime": config.runtime.model_copy(update={"device": "cpu"})})
        (folder / "config.yaml").write_text(dump_config(quiet))
        costs = costs_from_json(_measure(folder, 1, None, config)["costs"])
        capacity_here = _capacity(costs.device, config.runtime.threads_per_rank)
        side_by_side = max(2, min(capacity_here, *asked.ranks)) if max(asked.ranks) > 1 else 1
        if costs.device == "cuda":
            side_by_side = min(side_by_side, capacity_here)
        slowdown, link, notes = 1.0, Link(0.0, float("inf")), []
        if side_by_side > 1:
            together = _measure(folder, side_by_side, costs.steps_measured, config)
            link = Link(**together["link"])
            if capacity_here > 1:
                slowdown = relative_cost(costs, costs_from_json(together["costs"]), side_by_side)
            elif side_by_side > capacity_here:  # two ranks on one core: their exchange had half a core each
                link = Link(link.latency / side_by_side, link.bandwidth * side_by_side)
    step = max((call.rate for phase in costs.phases for call in phase.calls if call.kind == "fit"), default=0.0)
    if asked.step_seconds is not None:
        if step <= 0:
            raise ValueError("--step-seconds has no effect: this algorithm makes no optimizer steps of its own")
        costs = scaled(costs, asked.step_seconds / step)
        slowdown, step = 1.0, asked.step_seconds
        notes.append("--step-seconds: ranks of one node are taken not to slow each other")
    between = Link(
        link.latency if asked.latency is None else asked.latency,
        link.bandwidth if asked.bandwidth is None else asked.bandwidth,
    )
    capacity = asked.capacity or capacity_here
    machine = Machine(capacity, slowdown, link, between, tuple(notes))
    batch = config.fit.batch_size

    def batches_per_epoch(rows: int) -> int:
        return max(1, rows // batch if config.fit.drop_last else -(-rows // batch))

    workload = Workload(
        client_costs(costs, batches_per_epoch), costs, config.cohort, config.random_seed, config.rounds,
        config.mesh.shard,
    )  # fmt: skip

    def at(ranks: int) -> Prediction:
        per_node = asked.ranks_per_node or default_ranks_per_node(ranks, capacity, costs.device)
        return predict(workload, machine, ranks, per_node)

    asked_for = [at(ranks) for ranks in sorted(set(asked.ranks))]
    others = [at(ranks) for ranks in candidates(workload.cohort_size, asked.ranks, config.mesh.shard)]
    return Plan(asked_for, worthwhile(others), at(1), machine, workload, step)


def _measure(folder: Path, ranks: int, limit: int | None, config: RunConfig) -> dict[str, Any]:
    """The probe's answer, from `ranks` processes of this machine."""
    out = folder / f"{ranks}.json"
    command = [sys.executable, "-m", "fedhpc.planning.probe", str(folder / "config.yaml"), str(out)]
    command += ["--limit", str(limit)] if limit is not None else []
    threads = config.runtime.threads_per_rank
    if ranks == 1:
        environment = child_environment({"OMP_NUM_THREADS": str(threads)})
        run = subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, text=True)
        code, said = run.returncode, run.stderr
    else:
        code, said = spawn_ranks(command, ranks, folder / "logs", threads, PATIENCE_S, hope="Nothing was lost"), ""
    if code or not out.exists():
        why = said.strip().removeprefix("fedhpc: ") or f"exit code {code}"
        raise ValueError(f"the run cannot be measured here: {why}")
    answer: dict[str, Any] = json.loads(out.read_text())
    return answer


def _capacity(device: str, threads: int) -> int:
    """Ranks that this machine runs at full speed."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    from fedhpc.runtime import usable_cpus

    return max(1, usable_cpus() // threads)


def relative_cost(alone: Costs, together: Costs, ranks: int) -> float:
    """How much slower loops over batches are among `ranks` ranks; from 1 to `ranks`."""
    mine = theirs = 0.0
    for one, other in zip(alone.phases, together.phases, strict=False):
        for a, b in zip(one.calls, other.calls, strict=False):
            planned = sum(a.planned.values())
            mine += a.rate * planned
            theirs += b.rate * planned
    return min(float(ranks), max(1.0, theirs / mine)) if mine and theirs else 1.0


def scaled(costs: Costs, factor: float) -> Costs:
    """Loops over batches take `factor` as long; the rest of a turn stays."""
    phases = tuple(
        Phase(p.fixed, tuple(replace(c, rate=c.rate * factor, offset=c.offset * factor) for c in p.calls))
        for p in costs.phases
    )
    return replace(costs, phases=phases)
