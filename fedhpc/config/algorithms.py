"""One section per algorithm, told apart by `name`. Defaults are the published setting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedhpc.config.section import Section

ClientWeight = Literal["examples", "uniform"]


class FedAvgConfig(Section):
    """Federated averaging (McMahan et al. 2017, Algorithm 1)."""

    name: Literal["fedavg"]
    weight: ClientWeight = "examples"
    """A client's weight in the mean: its number of training rows, or 1."""


class FedProxConfig(Section):
    """FedAvg with a proximal term (Li et al. 2020, Algorithm 2)."""

    name: Literal["fedprox"]
    mu: float = Field(0.01, ge=0)
    """Strength of the pull mu/2 * ||w - w_shared||^2 towards the round's start."""
    weight: ClientWeight = "examples"


class FedOptConfig(Section):
    """A server optimizer steps on the mean update (Reddi et al. 2021, Algorithm 2; momentum: Hsu et al. 2019)."""

    name: Literal["fedopt"]
    server_optimizer: Literal["momentum", "adam", "yogi"] = "adam"
    server_learning_rate: float | None = Field(None, gt=0)
    """Step size eta of the server. Default: 1 for momentum (then beta1: 0 is FedAvg), 0.01 for Adam and Yogi."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment; the momentum of `momentum`."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of the second moment. Adam and Yogi only."""
    tau: float = Field(1e-3, gt=0)
    """Degree of adaptivity: added to the root of the second moment. Adam and Yogi only."""
    weight: ClientWeight = "examples"

    @property
    def learning_rate(self) -> float:
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return 1.0 if self.server_optimizer == "momentum" else 0.01


class LocalConfig(Section):
    """Reference without exchange: every client trains its own model, all from the same start."""

    name: Literal["local"]


class CentralisedConfig(Section):
    """Reference without privacy: one client holds the training rows of all."""

    name: Literal["centralised"]


AlgorithmConfig = Annotated[
    FedAvgConfig | FedProxConfig | FedOptConfig | LocalConfig | CentralisedConfig, Field(discriminator="name")
]
