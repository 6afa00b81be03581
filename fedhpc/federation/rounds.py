"""The round loop: resume; for every round cohort, algorithm, evaluation, checkpoint, report; a final evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from fedhpc.client.client import DataClient
from fedhpc.config.schema import RunConfig
from fedhpc.federation.checkpoint import Checkpoints, refuse_other_data
from fedhpc.federation.evaluate import summarise
from fedhpc.federation.federation import SlotFederation
from fedhpc.interfaces import Algorithm, ClientId, Split
from fedhpc.privacy.budget import BudgetSpent, Spending
from fedhpc.runtime import Preempted

__all__ = ["Preempted", "Reporter", "Run", "evaluate", "run_rounds", "summary"]

PRIVACY, DATA = "privacy", "data"  # in a checkpoint's loop.json


class Reporter(Protocol):
    """What the loop tells the outside; does nothing on all ranks but the first."""

    def start(self, rounds_done: int) -> None: ...

    def say(self, line: str) -> None: ...

    def round(self, index: int, metrics: Mapping[str, float], page: Mapping[str, Any]) -> None: ...

    def evaluation(self, rounds_done: int, split: Split, per_client: Sequence[Mapping[str, float]]) -> None: ...


@dataclass
class Run:
    """All that one rank needs to go through the rounds."""

    config: RunConfig
    fed: SlotFederation
    algorithm: Algorithm
    checkpoints: Checkpoints
    reporter: Reporter
    metric_names: Sequence[str]
    evaluated: Sequence[ClientId]
    unseen: frozenset[ClientId]  # those of them that take no part in training
    loop_state: Mapping[str, Any]  # goes into every checkpoint
    must_stop: Callable[[float | None], bool]  # asked to stop, or no time for another round of this many seconds
    locate: Callable[[str], None]  # tells where we are, for errors
    spending: Spending | None = None  # what rounds cost of differential privacy
    accept_changes: bool = False  # resume although the data's content is another


def run_rounds(run: Run) -> list[dict[str, float]]:
    """Every rank calls this. Returns the final metrics of every client (see `evaluate`).

    Raises:
        Preempted: a stop was requested and rounds are left.
        BudgetSpent: the next round would pass privacy.epsilon; those until then are in a checkpoint.
    """
    config, fed, algorithm = run.config, run.fed, run.algorithm
    # 1. Start, or go on where the last checkpoint ends.
    algorithm.setup(fed)
    done = _resume(run)
    run.reporter.start(done)
    if run.spending is not None:
        left = [fed.cohort_of(index) for index in range(done, config.rounds)]
        run.reporter.say(run.spending.outlook(left))
    if done < config.rounds and fed.any_rank(run.must_stop(None)):
        raise Preempted(f"asked to stop before round {done} of {config.rounds} began")
    longest, begun = 0.0, perf_counter()
    for index in range(done, config.rounds):
        run.locate(f"round {index}")
        start = perf_counter()
        # 2. Who takes part, and where.
        fed.begin(index)
        cost = _pay(run, index)
        # 3. The algorithm's round.
        metrics = {**algorithm.round(fed, index), **cost}
        # 4. What clients cost, for the next placement; was any rank asked to stop?
        longest = max(longest, perf_counter() - begun)  # from one such point to the next: evaluation and checkpoint too
        begun = perf_counter()
        stop = fed.end(run.must_stop(longest))
        metrics["seconds"] = perf_counter() - start
        # 5. Evaluate, checkpoint, report.
        every, last = config.evaluation.every, index + 1 == config.rounds
        if every and (index + 1) % every == 0 and not last:
            run.reporter.evaluation(index + 1, config.evaluation.split, evaluate(run, config.evaluation.split))
        if last or stop or (index + 1) % config.checkpoint.every == 0:
            _save(run, index + 1)
        run.reporter.round(index, metrics, fed.collectives.ledger.close_round(index))
        if stop and not last:
            raise Preempted(f"asked to stop: a checkpoint of {index + 1} of {config.rounds} rounds is written")
    # 6. The result.
    run.locate("the final evaluation")
    per_client = evaluate(run, config.evaluation.final_split)
    run.reporter.evaluation(config.rounds, config.evaluation.final_split, per_client)
    return per_client


def _pay(run: Run, index: int) -> dict[str, float]:
    """Count what the round costs, before it is made; metrics that tell it."""
    if run.spending is None:
        return {}
    guard = run.fed.guard
    clip = {} if guard is None else {"clip": guard.clip}
    try:
        return {"epsilon": run.spending.begin(run.fed.cohort), **clip}
    except BudgetSpent as error:
        if index == 0:
            raise BudgetSpent(f"{error}. Set a larger noise_multiplier, or a larger epsilon") from error
        _save(run, index)
        raise BudgetSpent(
            f"{error}. A checkpoint of {index} of {run.config.rounds} rounds is written; resume it with rounds={index} "
            "--accept-changes for its result, or with a larger epsilon for more rounds"
        ) from error


def _save(run: Run, rounds_done: int) -> None:
    """A checkpoint. Every rank calls this."""
    algorithm, loop = run.algorithm, dict(run.loop_state)
    if run.spending is not None:
        guard = run.fed.guard
        clip = {} if guard is None else guard.state_dict()
        loop[PRIVACY] = {"spent": run.spending.state_dict(), "guard": clip}
    kept = {**algorithm.state_dict(), **run.fed.state_dict()}
    run.checkpoints.save(rounds_done, algorithm.shared, kept, run.fed.slot.states, loop)


def evaluate(run: Run, split: Split) -> list[dict[str, float]]:
    """Metrics of every evaluated client, or their mean over clients alone (`evaluation.clients`); on every rank."""

    def score(client: DataClient) -> dict[str, float]:
        client.load(run.algorithm.personal(client))
        return dict(client.evaluate(split).metrics)

    if run.config.shows_clients:
        return run.fed.evaluate(score, run.metric_names, run.evaluated)
    return [run.fed.evaluate_mean(score, run.metric_names, run.evaluated)]


def summary(run: Run, per_client: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and worst of every metric over the clients that train (with ``centralised``: over all). The mean alone,
    and nan for the worst, where clients are not shown."""
    if not run.config.shows_clients:
        (means,) = per_client
        return {name: {"mean": means[name], "worst": math.nan, "best": math.nan} for name in run.metric_names}
    rows = [row for client, row in zip(run.evaluated, per_client, strict=True) if client not in run.unseen]
    return summarise(rows, run.metric_names)


def own_state(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithm's part of what a checkpoint keeps beside shared blocks; the federation's keys begin with
    fedhpc/."""
    return {key: value for key, value in kept.items() if not key.startswith("fedhpc/")}


def _resume(run: Run) -> int:
    """Rounds done according to the newest checkpoint, whose state is now loaded; 0 without one."""
    path = run.checkpoints.latest()
    if path is None:
        return 0
    loop = run.checkpoints.load_loop(path)
    if not run.accept_changes:
        refuse_other_data(path, loop.get(DATA, {}), run.loop_state[DATA])
    for name, block in run.checkpoints.load_shared(path, run.algorithm.shared).items():
        run.algorithm.shared[name].flat.copy_(block.flat)
    kept = run.checkpoints.load_algorithm(path, run.fed.initial)
    run.fed.load_state_dict(kept)
    run.algorithm.load_state_dict(own_state(kept))
    run.fed.slot.states = run.checkpoints.load_states(path, run.fed.clients_living_here(), run.fed.initial)
    if run.spending is not None:
        if PRIVACY not in loop:
            raise ValueError(
                f"{path} is of a run without privacy, whose rounds no noise covers; start anew with --fresh, or remove "
                "the privacy section"
            )
        run.spending.load_state_dict(loop[PRIVACY]["spent"])
        if run.fed.guard is not None:
            run.fed.guard.load_state_dict(loop[PRIVACY]["guard"])
    return int(loop["rounds_done"])
