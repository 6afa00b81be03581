"""FedOpt: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (FedAdam, FedYogi); and FedAvgM:
Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019.

The mean update D_t takes the place of a negative gradient:

    m_t = beta1 m + (1 - beta1) D_t                       Adam and Yogi, line 10
    v_t = beta2 v + (1 - beta2) D_t^2                     Adam, line 13
    v_t = v - (1 - beta2) D_t^2 sign(v - D_t^2)           Yogi, line 12
    w  <- w + eta m_t / (sqrt(v_t) + tau)                 line 14
    m_t = beta1 m + D_t;  w <- w + eta m_t                momentum (FedAvgM)

No bias correction, as in the paper; v starts at tau^2, the smallest that it allows. Running statistics are averaged
plainly: adaptive steps could make a variance negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.config.algorithms import FedOptConfig
from fedhpc.interfaces import Block, Blocks, Federation


class FedOpt(FedAvg):
    """FedAvg whose mean update goes through a server optimizer."""

    def __init__(self, config: FedOptConfig) -> None:
        super().__init__(config)
        self._config = config
        self._m: dict[str, Block] = {}
        self._v: dict[str, Block] = {}

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self._m = {name: block.new_zeros() for name, block in self.shared.items()}
        if self._config.server_optimizer != "momentum":
            self._v = {name: block.new_zeros() for name, block in self.shared.items()}
            for block in self._v.values():
                block.trainable.fill_(self._config.tau**2)

    def step(self, mean: Blocks) -> None:
        config = self._config
        for name, update in mean.items():
            self.shared[name].buffers.add_(update.buffers)
            delta, m, w = update.trainable, self._m[name].trainable, self.shared[name].trainable
            if config.server_optimizer == "momentum":
                w.add_(m.mul_(config.beta1).add_(delta), alpha=config.learning_rate)
                continue
            m.mul_(config.beta1).add_(delta, alpha=1 - config.beta1)
            v, square = self._v[name].trainable, delta * delta
            if config.server_optimizer == "adam":
                v.mul_(config.beta2).add_(square, alpha=1 - config.beta2)
            else:
                v.sub_(square * torch.sign(v - square), alpha=1 - config.beta2)
            w.addcdiv_(m, v.sqrt().add_(config.tau), value=config.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return {"m": self._m, "v": self._v}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own, stored in ((self._m, state["m"]), (self._v, state["v"])):
            for name, block in stored.items():
                own[name].flat.copy_(block.flat)  # onto the device
