"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020.

Local objective, Eq. (2): h_k(w; w_t) = F_k(w) + mu/2 * ||w - w_t||^2. Its gradient is that of F_k plus mu * (w -
w_t), which is what the engine adds: exact, and without a pass of autograd.
"""

from __future__ import annotations

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.config.algorithms import FedProxConfig
from fedhpc.interfaces import GradientTerm


class FedProx(FedAvg):
    """FedAvg whose local steps are pulled towards the shared weights."""

    def __init__(self, config: FedProxConfig) -> None:
        super().__init__(config)
        self._mu = config.mu

    def gradient(self) -> GradientTerm:
        return GradientTerm(pull=self._mu, toward=self.shared)
