"""algorithm.name -> the class that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedhpc.algorithms.fedavg import Centralised, FedAvg
from fedhpc.algorithms.feddra import FedDRA
from fedhpc.algorithms.fedopt import FedOpt
from fedhpc.algorithms.fedprox import FedProx
from fedhpc.algorithms.local import Local
from fedhpc.config.algorithms import AlgorithmConfig
from fedhpc.interfaces import Algorithm

ALGORITHMS: Mapping[str, Callable[[Any], Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedopt": FedOpt,
    "feddra": FedDRA,
    "local": Local,
    "centralised": Centralised,
}


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm of a validated section."""
    return ALGORITHMS[config.name](config)
