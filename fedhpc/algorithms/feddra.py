"""FedDRA: distributionally robust alignment for federated vision-language pre-training, arXiv 2404.03854 (TMLR 2025).

min over theta, max over q in U_rho of sum_c q_c L_c(theta), in rounds of two stages (ALGORITHMS.md A.4, A.5):

    stage 1   alignment blocks and heads move, encoders stand:  L_c = L_ITA + mu L_con, anchor = shared
              anchor <- sum_c q_c of their alignment blocks and heads
    stage 2   everything moves, from the client's own stage 1 weights, against that anchor
              shared <- sum_c q_c theta_c
    weights   q <- Proj_U(q_c exp(gamma l_c) / sum), l_c the shared model's loss at client c

What is not the released code's, as that has no effect there or leaks (ALGORITHMS.md 0.1, 0.2): q weighs the mean rather
than the loss, is kept from round to round, and follows losses on validation rows. `variant: upstream` has its ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.stages import Stages
from fedhpc.algorithms.weighting import chi_square, uniform, updated
from fedhpc.config.algorithms import FedDRAConfig
from fedhpc.interfaces import (
    Batch,
    Block,
    Blocks,
    Budget,
    Client,
    ClientId,
    Contribution,
    Federation,
    Loss,
    Objective,
    Split,
)

EMBEDDINGS = ("image", "text")
UPSTREAM_FRACTION = 0.1  # of the training rows, for the losses that move q
NAMED_WEIGHTS = 32  # up to as many clients have their weight in the metrics


class FedDRA(FedAvg):
    """The clients' losses are seen by all: q is a function of each."""

    reveals: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __init__(self, config: FedDRAConfig) -> None:
        super().__init__(config)
        self._config = config
        self._upstream = config.variant == "upstream"
        self.losses_on: Split | None = None
        if config.dro is not None:
            self.losses_on = "train" if self._upstream else config.dro.loss_split
        self.q = torch.empty(0, dtype=torch.float64)
        self._losses = torch.empty(0, dtype=torch.float64)  # last seen; nan before
        self._first = torch.empty(0, dtype=torch.float64)  # each client's first one
        self._stages = Stages(config)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if not any(self._aligned(name) for name in self.shared):
            raise ValueError("algorithm.name: feddra trains alignment blocks and heads, and the model shares none")
        if self._config.schedule != "joint" and all(self._aligned(name) for name in self.shared):
            raise ValueError(
                f"algorithm.schedule: {self._config.schedule} thaws the encoders in stage 2, but both are frozen; set "
                "schedule: joint, or model.image.freeze or model.text.freeze: false"
            )
        self._place = {client: index for index, client in enumerate(fed.clients)}
        self.q = uniform(len(fed.clients))
        self._losses = torch.full_like(self.q, float("nan"))
        self._first = self._losses.clone()

    # -------------------------------------------------------------------------------------------------- a round
    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        if self._upstream:
            self.q = uniform(len(self._place))  # the released code starts a new process every round
        stage1, stage2 = self._stages.of(index)
        factors = {client: len(self.q) * float(self.q[self._place[client]]) for client in fed.cohort}
        self._factors = factors if any(factors.values()) else dict.fromkeys(factors, 1.0)
        metrics: dict[str, float] = {}
        anchor: Blocks = self._apart() if self._upstream and index == 0 else self.shared
        own: dict[ClientId, Blocks] = {}
        if stage1:
            parts = {name: block for name, block in self.shared.items() if self._aligned(name)}
            first = fed.reduce(partial(self.align, anchor, parts, own, stage2), like=parts, metrics=("loss",))
            metrics["stage1_loss"] = first.metrics["loss"]
            moved = {n: Block(parts[n].flat + update.flat, update.layout) for n, update in first.mean.items()}
            anchor = {**anchor, **moved}
        if stage2:
            start = {**self.shared, **anchor} if self._config.stage2_start == "shared" and stage1 else self.shared
            second = fed.reduce(partial(self.train, anchor, start, own), like=self.shared, metrics=("loss",))
            self.step(second.mean)
            metrics["loss"] = second.metrics["loss"]
        else:
            self.step(first.mean)
            metrics["loss"] = metrics["stage1_loss"]
            self._stages.watch(metrics["stage1_loss"])
        if self._config.dro is not None:
            self._reweigh(fed, anchor)
        return metrics | self._weight_metrics()

    def align(
        self, anchor: Blocks, parts: Blocks, own: dict[ClientId, Blocks], keep: bool, client: Client
    ) -> Contribution:
        """Stage 1: alignment blocks and heads on frozen encoders."""
        client.load(self.shared)
        stage = self._config.stage1
        objective = self.objective(client, anchor, shares_encoders=True)
        budget = Budget(stage.steps, stage.epochs)
        report = client.fit(budget, objective, train=tuple(parts), lr_scale=self._rate(client))
        if keep and self._config.stage2_start == "own":
            present = client.read()
            own[client.id] = {name: present[name].clone() for name in parts}
        return Contribution(client.update(parts), self._share(client), {"loss": report.loss})

    def train(self, anchor: Blocks, start: Blocks, own: Mapping[ClientId, Blocks], client: Client) -> Contribution:
        """Stage 2: everything."""
        client.load({**start, **own.get(client.id, {})})
        report = client.fit(objective=self.objective(client, anchor), lr_scale=self._rate(client))
        return Contribution(client.update(self.shared), self._share(client), {"loss": report.loss})

    # --------------------------------------------------------------------------------------------------- losses
    def objective(self, client: Client, anchor: Blocks, shares_encoders: bool = False) -> Objective:
        """L_c = L_ITA + mu L_con, scaled where q scales losses. Encoders that stand still are run once, for the model
        and its anchor."""
        scale = self._scale(client)
        if self._config.mu == 0:
            return lambda model, batch: client.loss(model(batch), batch) * scale
        target = client.reference(anchor)

        def constrained(model: nn.Module, batch: Batch) -> Tensor:
            out = model(batch)
            seen = {f"{e}_tokens": out[f"{e}_tokens"] for e in EMBEDDINGS} if shares_encoders else {}
            constraint = constraint_loss(out, target({**batch, **seen}), self._config.constraint)
            return (client.loss(out, batch) + self._config.mu * constraint) * scale

        return constrained

    def risk(self, anchor: Blocks, client: Client) -> Tensor:
        """The shared model's loss on a client's held-out rows; float64 scalar."""
        client.load(self.shared)
        dro = self._config.dro
        assert dro is not None
        if not self._upstream:
            loss = excess_loss(client.loss) if dro.loss_baseline == "duplicates" else client.loss
            value = client.measure(dro.loss_split, loss, fraction=dro.loss_fraction)
            return torch.tensor(value, dtype=torch.float64)
        target = client.reference(anchor)

        def both(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
            constraint = constraint_loss(out, target(batch), self._config.constraint)
            return client.loss(out, batch) + self._config.mu * constraint

        return torch.tensor(client.measure("train", both, fraction=UPSTREAM_FRACTION), dtype=torch.float64)

    # -------------------------------------------------------------------------------------------------- weights
    def _reweigh(self, fed: Federation, anchor: Blocks) -> None:
        """Losses of the cohort move q. A client outside it counts as the cohort's mean (a step), or with the last loss
        that was seen of it (the exact maximum)."""
        dro = self._config.dro
        assert dro is not None
        seen = fed.gather("loss", fed.each(partial(self.risk, anchor))).cpu()
        place = torch.tensor([self._place[client] for client in fed.cohort])
        new = self._first[place].isnan()
        self._first[place[new]] = seen[new]
        if dro.loss_baseline == "first":
            seen = seen - self._first[place]
        self._losses[place] = seen
        losses = torch.full_like(self.q, float("nan")).scatter(0, place, seen)
        if dro.update == "exact":
            losses = self._losses
        losses = torch.where(losses.isnan(), seen.mean(), losses)
        self.q = updated(self.q, losses, dro.set, dro.rho, dro.update, dro.step_size)

    def _factor(self, client: Client) -> float:
        """N q_c: 1 for uniform weights. A cohort without any weight (possible on the simplex) counts alike."""
        return self._factors[client.id]

    def _share(self, client: Client) -> float:
        """A client's weight in the mean."""
        dro = self._config.dro
        if dro is None:
            return float(client.num_examples) if self._config.weight == "examples" else 1.0
        return self._factor(client) if dro.apply == "aggregate" and not self._upstream else 1.0

    def _scale(self, client: Client) -> float:
        """A client's factor on its loss."""
        if self._config.dro is None:
            return 1.0
        if self._upstream:
            return self._factor(client) / len(self.q)
        return self._factor(client) if self._config.dro.apply == "loss_scale" else 1.0

    def _rate(self, client: Client) -> dict[str, float] | None:
        """A client's factor on its learning rates."""
        if self._config.dro is None or self._config.dro.apply != "lr_scale" or self._upstream:
            return None
        return dict.fromkeys(self.shared, self._factor(client))

    def _weight_metrics(self) -> dict[str, float]:
        if self._config.dro is None:
            return {}
        metrics = {"weight_max": float(self.q.max()), "weight_chi_square": chi_square(self.q)}
        if len(self.q) <= NAMED_WEIGHTS:
            metrics |= {f"weight_{c}": float(self.q[i]) for c, i in self._place.items()}
            metrics |= {f"risk_{c}": loss for c, i in self._place.items() if (loss := float(self._losses[i])) == loss}
        return metrics

    @staticmethod
    def _aligned(name: str) -> bool:
        return not name.startswith("encoder/")

    def _apart(self) -> Blocks:
        """Upstream's first anchor: alignment blocks and heads that were drawn apart from the model's. Drawn by mixing
        the entries of each tensor: the same distribution, independent places."""
        generator = torch.Generator().manual_seed(0)
        mixed: dict[str, Block] = {}
        for name, block in self.shared.items():
            mixed[name] = block.clone() if self._aligned(name) else block
            for spec in block.layout.specs if self._aligned(name) else ():
                view = mixed[name].view(spec)
                order = torch.randperm(view.numel(), generator=generator).to(view.device)
                view.copy_(view.reshape(-1)[order].reshape(view.shape).clone())
        return mixed

    # --------------------------------------------------------------------------------------------------- resume
    def state_dict(self) -> dict[str, Any]:
        return {"q": self.q, "losses": self._losses, "first": self._first, "stages": self._stages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.q, self._losses, self._first = state["q"].cpu(), state["losses"].cpu(), state["first"].cpu()
        self._stages.load_state_dict(state["stages"])


def constraint_loss(out: Mapping[str, Tensor], anchor: Mapping[str, Tensor], kind: str) -> Tensor:
    """L_con = MSE(z*_x, z_x) + MSE(z*_y, z_y) of embeddings [B,E] (A.3); a scalar.

    kind: "mean" over batch and dimensions as released (at most 8 / E for unit vectors), or "sum" over dimensions.
    """
    total = sum((F.mse_loss(out[e].float(), anchor[e].float()) for e in EMBEDDINGS), torch.zeros(()))
    return total * out["image"].shape[1] if kind == "sum" else total


def excess_loss(loss: Loss) -> Loss:
    """What of L_ITA a better model could save: rows of identical text cannot be told apart, by either direction, which
    costs a perfect model log m for a text that m rows of the batch share. Clients differ in m more than in difficulty.
    """

    def excess(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
        _, member, count = torch.unique(batch["tokens"], dim=0, return_inverse=True, return_counts=True)
        return loss(out, batch) - 2 * count[member].float().log().mean()

    return excess
