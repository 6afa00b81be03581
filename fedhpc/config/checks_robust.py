"""Robust client weights (FedDRA, AFL) and two-stage schedules that a run would never come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedhpc.config.algorithms import AflConfig, DroConfig, FedDRAConfig
from fedhpc.config.schema import ColumnPartition, GroupsPartition, RunConfig


def known_clients(config: RunConfig) -> int | None:
    """Clients that train, where the config alone tells."""
    partition, phantom = config.partition, config.data.phantom
    if isinstance(partition, GroupsPartition):
        return None
    if not isinstance(partition, ColumnPartition):
        return partition.num_clients
    if phantom is not None and partition.column == "site":
        return phantom.num_sites - len(set(partition.leave_out))
    return None


def _plateau(config: RunConfig) -> Iterator[str]:
    """The first round sets the mark, `plateau_patience` rounds do not pass it, and one more has stage 2."""
    algorithm, rounds = config.algorithm, config.rounds
    if not isinstance(algorithm, FedDRAConfig) or algorithm.schedule != "plateau":
        return
    needed = algorithm.plateau_patience + 2
    if rounds < needed:
        lower = f"algorithm.plateau_patience: {rounds - 2} or less, or " if rounds > 2 else ""
        yield (
            f"algorithm.schedule = plateau with plateau_patience = {algorithm.plateau_patience} and rounds = {rounds}: "
            f"stage 2 begins in round {needed} at the earliest; set {lower}rounds: {needed} or more"
        )


def _first_baseline(config: RunConfig) -> Iterator[str]:
    """Round 1 sets the baseline, round 2 moves the weights, round 3 uses them."""
    dro = _dro(config)
    if dro is not None and dro.loss_baseline == "first" and config.rounds < 3:
        yield (
            f"algorithm.dro.loss_baseline = first but rounds = {config.rounds}: losses are compared with the first "
            "round's, so the weights first act in round 3; set rounds: 3 or more, or dro.loss_baseline: none"
        )


def _trim(config: RunConfig) -> Iterator[str]:
    clients = known_clients(config)
    if clients is not None:
        yield from trim_problem(config, clients, "there are")


def _lonely(config: RunConfig) -> Iterator[str]:
    clients = known_clients(config)
    size = config.cohort.size
    if size is None and clients is None:
        return
    yield from lonely_cohort(config, clients)


def trim_problem(config: RunConfig, clients: int, source: str) -> Iterator[str]:
    """`dro.trim` against the number of clients that train."""
    dro = config.algorithm.dro if isinstance(config.algorithm, FedDRAConfig) else None
    if dro is not None and dro.trim >= clients > 0:
        cure = f"set trim: {clients - 1} or less" if clients > 1 else "set algorithm.dro: null"
        yield f"algorithm.dro.trim = {dro.trim} leaves nobody to lead: {source} {clients} clients that train; {cure}"


def lonely_cohort(config: RunConfig, clients: int | None) -> Iterator[str]:
    """Robust weights in rounds of one client: weighed against nobody, it counts 1 whatever its weight."""
    algorithm = config.algorithm
    dro = _dro(config)
    if isinstance(algorithm, FedDRAConfig) and dro is not None:
        if dro.update == "exact" and dro.apply != "aggregate":
            return  # a scaled loss or learning rate is felt alone too
        section, other = "algorithm.dro", "algorithm.dro: null"
    elif isinstance(algorithm, AflConfig):
        section, other = "algorithm.name = afl", "algorithm.name: fedavg"
    else:
        return
    size, fraction = config.cohort.size, config.cohort.fraction
    if size == 1:
        cause, cure = "cohort.size = 1", "cohort.size: 2 or more"
    elif clients is not None and clients > 1 and fraction is not None and round(fraction * clients) <= 1:
        cause, cure = f"cohort.fraction = {fraction:g} of {clients} clients", f"cohort.size: 2 or more of {clients}"
    elif clients == 1:
        cause, cure = "one client that trains", "a partition of more clients"
    else:
        return
    yield (
        f"{cause} with {section}: in a round of one client there is nothing to weigh, so robust weights would do "
        f"nothing; set {cure}, or {other}"
    )


def _dro(config: RunConfig) -> DroConfig | None:
    """The section, where its keys act."""
    algorithm = config.algorithm
    if isinstance(algorithm, FedDRAConfig) and algorithm.variant == "sound":
        return algorithm.dro
    return None


ROBUST_CHECKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (_plateau, _first_baseline, _trim, _lonely)
