"""algorithm.name -> the class that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedhpc.algorithms.afl import Afl
from fedhpc.algorithms.creamfl import CreamFl
from fedhpc.algorithms.dgb_pcw import DgbPcw
from fedhpc.algorithms.fedavg import Centralised, FedAvg
from fedhpc.algorithms.feddf import FedDF
from fedhpc.algorithms.feddra import FedDRA
from fedhpc.algorithms.fedmd import FedMD
from fedhpc.algorithms.fedmvp import FedMvp
from fedhpc.algorithms.fedopt import FedOpt
from fedhpc.algorithms.fedproto import FedProto
from fedhpc.algorithms.fedprox import FedProx
from fedhpc.algorithms.gblend import GBlend
from fedhpc.algorithms.hgb import Hgb
from fedhpc.algorithms.local import Local
from fedhpc.algorithms.mdhfl import Mdhfl
from fedhpc.algorithms.moon import Moon
from fedhpc.algorithms.qffl import Qffl
from fedhpc.algorithms.scaffold import Scaffold
from fedhpc.config.algorithms import AlgorithmConfig
from fedhpc.interfaces import Algorithm

ALGORITHMS: Mapping[str, Callable[[Any], Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedopt": FedOpt,
    "scaffold": Scaffold,
    "moon": Moon,
    "qffl": Qffl,
    "afl": Afl,
    "feddra": FedDRA,
    "mdhfl": Mdhfl,
    "rhfl": Mdhfl,
    "fedmd": FedMD,
    "feddf": FedDF,
    "fedproto": FedProto,
    "dgb_pcw": DgbPcw,
    "hgb": Hgb,
    "gblend": GBlend,
    "fedmvp": FedMvp,
    "creamfl": CreamFl,
    "local": Local,
    "centralised": Centralised,
}


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm of a validated section."""
    return ALGORITHMS[config.name](config)
