"""Masked sums and client dropout against the rest of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedhpc.config.algorithms import POOLED
from fedhpc.config.checks_robust import known_clients
from fedhpc.config.distillation import FedDFConfig
from fedhpc.config.schema import ClassifierConfig, ColumnPartition, FusionConfig, RunConfig

MOST_BITS_OF_32 = 20  # behind the point: 10 bits are left for weights, values and clients


def check_secure(config: RunConfig) -> Iterator[str]:
    """Problems, one line each."""
    aggregation = config.aggregation
    ring, bits = aggregation.ring_bits, aggregation.fraction_bits
    if ring == 32 and aggregation.arithmetic == "fixed_point" and bits > MOST_BITS_OF_32:
        yield (
            f"aggregation.ring_bits = 32 with fraction_bits = {bits} leaves no range for sums; "
            f"set fraction_bits: 16 ({MOST_BITS_OF_32} or less)"
        )
    yield from _evaluation(config)
    if not aggregation.secure:
        return
    if aggregation.arithmetic == "float32":
        yield (
            "aggregation.secure = true with arithmetic = float32: masks cancel in sums of integers only; "
            "set arithmetic: fixed_point"
        )
    if isinstance(config.algorithm, POOLED):
        yield (
            f"aggregation.secure = true with algorithm.name = {config.algorithm.name}, where one client holds all "
            "rows: there is nothing to hide; set secure: false"
        )
        return
    least, size, clients = aggregation.min_contributors, config.cohort.size, known_clients(config)
    too_few = f"and a sum over fewer than aggregation.min_contributors = {least} clients is refused under secure"
    if size is not None and size < least:
        yield f"cohort.size = {size}, {too_few}; set cohort.size: {least} or more"
    elif clients is not None and clients < least:
        yield f"the partition has {clients} clients that train, {too_few}; set a partition of {least} or more"
    elif isinstance(config.algorithm, FedDFConfig) and isinstance(config.model, ClassifierConfig):
        networks = len(config.model.networks or "1")
        if clients is not None and clients // networks < least:
            yield (
                f"algorithm.name = feddf averages the models of one network, and of {clients} clients {networks} "
                f"networks have {clients // networks} each, {too_few}; set {networks * least} clients, or fewer "
                "model.networks"
            )


def _evaluation(config: RunConfig) -> Iterator[str]:
    """What an evaluation that shows no client cannot do."""
    if config.shows_clients:
        return
    cause = "evaluation.clients = mean" if config.evaluation.clients else "aggregation.secure = true"
    cure = "set evaluation.clients: shown, which shows every client's metrics to all"
    partition = config.partition
    if isinstance(config.model, FusionConfig):
        yield (
            f"{cause} with model.kind = fusion, whose combinations are scored on the held-out rows of all clients "
            f"together: no mean over clients; {cure}"
        )
    elif isinstance(partition, ColumnPartition) and partition.leave_out:
        yield f"{cause} with partition.leave_out, whose sites would be scored and never shown; {cure}"


def idle_in_secure(config: RunConfig, add: Callable[[str, str, str], None]) -> None:
    """Adds keys without effect."""
    if not config.aggregation.secure:
        add("aggregation", "min_contributors", "without aggregation.secure")
    if config.aggregation.arithmetic == "float32":
        add("aggregation", "ring_bits", "with arithmetic: float32")
