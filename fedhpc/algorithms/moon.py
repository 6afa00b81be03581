"""MOON: Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021.

    l_con = -log exp(sim(z, z_glob) / tau) / (exp(sim(z, z_glob) / tau) + exp(sim(z, z_prev) / tau))     Eq. 3
    l = l_sup + mu l_con                                                                                Eq. 4

z, z_glob, z_prev: what the model makes of a picture under its present weights, the round's shared ones, and those that
the client itself came to in its last turn; sim: cosine. A client's first turn takes the shared weights for both, so
that l_con is log 2 and moves nothing. z is the projected embedding: of a dual encoder those of pictures and of texts,
whose l_con are averaged; of a classifier, which has no projection head, what its last layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.config.algorithms import MoonConfig
from fedhpc.interfaces import Batch, Client, Contribution, Objective

PREVIOUS = "previous"  # client.state: the weights that its last turn ended with
Outputs = Mapping[str, Tensor]


class Moon(FedAvg):
    """FedAvg whose local models stay near the shared one in what they see, and away from where they were."""

    stateful: ClassVar[bool] = True

    def __init__(self, config: MoonConfig) -> None:
        super().__init__(config)
        self._mu = config.mu
        self._temperature = config.temperature

    def turn(self, client: Client) -> Contribution:
        client.load(self.shared)
        shared = client.reference(self.shared, "shared")
        previous = client.reference(client.state[PREVIOUS], PREVIOUS) if PREVIOUS in client.state else None
        report = client.fit(objective=self.objective(client, shared, previous))
        client.state[PREVIOUS] = {name: block.clone() for name, block in client.read().items()}
        weight = float(client.num_examples) if self._by_examples else 1.0
        return Contribution(client.update(self.shared), weight, {"loss": report.loss})

    def objective(
        self, client: Client, shared: Callable[[Batch], Outputs], previous: Callable[[Batch], Outputs] | None
    ) -> Objective:
        """Eq. 4. Without previous weights the shared ones stand in for them."""

        def constrained(model: nn.Module, batch: Batch) -> Tensor:
            out, near = model(batch), shared(batch)
            far = near if previous is None else previous(batch)
            contrast = model_contrastive_loss(out, near, far, self._temperature)
            return client.loss(out, batch) + self._mu * contrast

        return constrained


def model_contrastive_loss(out: Outputs, shared: Outputs, previous: Outputs, temperature: float) -> Tensor:
    """l_con, Eq. 3: mean over the batch, and over "image" and "text" [B,E] where there are such, else of
    "image_features" [B,width]; a scalar."""
    names = [name for name in ("image", "text") if name in out] or ["image_features"]
    with torch.autocast(out[names[0]].device.type, enabled=False):  # cosines / 0.5 are too coarse in bfloat16
        terms = []
        for name in names:
            z = out[name].float()
            near = F.cosine_similarity(z, shared[name].float(), dim=-1)
            far = F.cosine_similarity(z, previous[name].float(), dim=-1)
            terms.append(F.softplus((far - near) / temperature).mean())  # -log e^a / (e^a + e^b) = log(1 + e^(b - a))
        return torch.stack(terms).mean()
