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
from fedhpc.algorithms.robust import RobustWeights, excess_loss
from fedhpc.algorithms.stages import Stages
from fedhpc.config.algorithms import FedDRAConfig
from fedhpc.interfaces import Batch, Block, Blocks, Budget, Client, ClientId, Contribution, Federation, Objective, Split

EMBEDDINGS = ("image", "text")
UPSTREAM_FRACTION = 0.1  # of the training rows, for the losses that move q


class FedDRA(FedAvg):
    """The clients' losses are seen by all: q is a function of each."""

    reveals: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __init__(self, config: FedDRAConfig) -> None:
        super().__init__(config)
        self._config = config
        self._stages = Stages(config)
        self._upstream = config.variant == "upstream"
        self._weights: RobustWeights | None = None
        self._factors: Mapping[ClientId, float] = {}  # N q_c of this round's cohort
        self.losses_on: Split | None = None
        if config.dro is not None:
            self.losses_on = "train" if self._upstream else config.dro.loss_split

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if not any(_aligned(name) for name in self.shared):
            raise ValueError("algorithm.name: feddra trains alignment blocks and heads, and the model shares none")
        if self._config.schedule != "joint" and all(_aligned(name) for name in self.shared):
            raise ValueError(
                f"algorithm.schedule: {self._config.schedule} thaws the encoders in stage 2, but both are frozen; set "
                "schedule: joint, or model.image.freeze or model.text.freeze: false"
            )
        if self._config.dro is not None:
            self._weights = RobustWeights(self._config.dro, fed.clients)

    # -------------------------------------------------------------------------------------------------- a round
    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        if self._weights is not None:
            if self._upstream:
                self._weights.reset()  # the released code starts a new process every round
            self._factors = self._weights.factors(fed.cohort)
        stage1, stage2 = self._stages.of(index)
        metrics: dict[str, float] = {}
        anchor: Blocks = _drawn_apart(self.shared) if self._upstream and index == 0 else self.shared
        own: dict[ClientId, Blocks] = {}
        if stage1:
            parts = {name: block for name, block in self.shared.items() if _aligned(name)}
            first = fed.reduce(partial(self.align, anchor, parts, own, stage2), like=parts, metrics=("loss",))
            metrics["stage1_loss"] = metrics["loss"] = first.metrics["loss"]
            moved = {n: Block(parts[n].flat + update.flat, update.layout) for n, update in first.mean.items()}
            anchor = {**anchor, **moved}
        if stage2:
            start = {**self.shared, **anchor} if stage1 and self._config.stage2_start == "shared" else self.shared
            second = fed.reduce(partial(self.train, anchor, start, own), like=self.shared, metrics=("loss",))
            self.step(second.mean)
            metrics["loss"] = second.metrics["loss"]
        else:
            self.step(first.mean)
            self._stages.watch(metrics["stage1_loss"])
        if self._weights is not None:
            losses = fed.gather("loss", fed.each(partial(self.risk, anchor))).cpu()
            self._weights.update(fed.cohort, losses)
            metrics |= self._weights.metrics()
        return metrics

    def align(
        self, anchor: Blocks, parts: Blocks, own: dict[ClientId, Blocks], keep: bool, client: Client
    ) -> Contribution:
        """Stage 1: alignment blocks and heads on frozen encoders. keep: stage 2 goes on from these weights."""
        client.load(self.shared)
        budget = Budget(self._config.stage1.steps, self._config.stage1.epochs)
        objective = self.objective(client, anchor, shares_encoders=True)
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
        scale, mu = self._scale(client), self._config.mu
        if mu == 0:
            return lambda model, batch: client.loss(model(batch), batch) * scale
        target = client.reference(anchor)

        def constrained(model: nn.Module, batch: Batch) -> Tensor:
            out = model(batch)
            seen = {f"{e}_tokens": out[f"{e}_tokens"] for e in EMBEDDINGS} if shares_encoders else {}
            constraint = constraint_loss(out, target({**batch, **seen}), self._config.constraint)
            return (client.loss(out, batch) + mu * constraint) * scale

        return constrained

    def risk(self, anchor: Blocks, client: Client) -> Tensor:
        """The shared model's loss on a client's held-out rows; float64 scalar."""
        dro = self._config.dro
        assert dro is not None
        client.load(self.shared)
        if not self._upstream:
            loss = excess_loss(client.loss) if dro.loss_baseline == "duplicates" else client.loss
            value = client.measure(dro.loss_split, loss, fraction=dro.loss_fraction)
            return torch.tensor(value, dtype=torch.float64)
        target = client.reference(anchor)

        def both(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
            constraint = constraint_loss(out, target(batch), self._config.constraint)
            return client.loss(out, batch) + self._config.mu * constraint

        return torch.tensor(client.measure("train", both, fraction=UPSTREAM_FRACTION), dtype=torch.float64)

    # ------------------------------------------------------------------------------------------ what q acts upon
    def _acts_upon(self) -> str:
        """Aggregate, loss_scale or lr_scale; nothing without robust weights."""
        dro = self._config.dro
        return "nothing" if dro is None else "loss_scale" if self._upstream else dro.apply

    def _share(self, client: Client) -> float:
        """A client's weight in the mean."""
        if self._config.dro is None and self._config.weight == "examples":
            return float(client.num_examples)
        return self._factors[client.id] if self._acts_upon() == "aggregate" else 1.0

    def _scale(self, client: Client) -> float:
        """A client's factor on its loss: N q_c, or q_c as released."""
        if self._acts_upon() != "loss_scale":
            return 1.0
        return self._factors[client.id] / (len(self._factors) if self._upstream else 1)

    def _rate(self, client: Client) -> dict[str, float] | None:
        """A client's factor on its learning rates."""
        return dict.fromkeys(self.shared, self._factors[client.id]) if self._acts_upon() == "lr_scale" else None

    # --------------------------------------------------------------------------------------------------- resume
    def state_dict(self) -> dict[str, Any]:
        weights = {} if self._weights is None else self._weights.state_dict()
        return {"stages": self._stages.state_dict(), "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stages.load_state_dict(state["stages"])
        if self._weights is not None:
            self._weights.load_state_dict(state["weights"])


def constraint_loss(out: Mapping[str, Tensor], anchor: Mapping[str, Tensor], kind: str) -> Tensor:
    """L_con = MSE(z*_x, z_x) + MSE(z*_y, z_y) of embeddings [B,E] (A.3); a scalar.

    kind: "mean" over batch and dimensions as released (at most 8 / E for unit vectors), or "sum" over dimensions.
    """
    first, second = (F.mse_loss(out[e].float(), anchor[e].float()) for e in EMBEDDINGS)
    return (first + second) * (out["image"].shape[1] if kind == "sum" else 1)


def _aligned(block: str) -> bool:
    """Moves in stage 1."""
    return not block.startswith("encoder/")


def _drawn_apart(shared: Blocks) -> Blocks:
    """Upstream's first anchor: alignment blocks and heads that were drawn apart from the model's. Drawn by mixing the
    entries of each tensor: the same distribution in independent places."""
    generator = torch.Generator().manual_seed(0)
    mixed = {name: block.clone() if _aligned(name) else block for name, block in shared.items()}
    for name in filter(_aligned, mixed):
        for spec in mixed[name].layout.specs:
            view = mixed[name].view(spec)
            order = torch.randperm(view.numel(), generator=generator).to(view.device)
            view.copy_(view.reshape(-1)[order].reshape(view.shape).clone())
    return mixed
