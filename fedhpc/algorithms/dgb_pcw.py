"""DGB + PCW: "Distributed gradient blending" with "proximity-aware client weighting", arXiv 2401.03609 (IEEE JBHI).

Clients hold different combinations C of modalities: encoders theta_m (m in C) and a classifier phi_C. A round
(ALGORITHMS.md C.1 to C.3):

    turn    theta_n, phi_n <- K local steps from the shared blocks, block b at rate eta * scale_b
            L_tr: mean loss of the steps; L_va: loss of the result on validation rows
    mean    every block <- mean over its owners, weighted by D_n
    PCW     s_n = <Delta_n, Delta_shared> over the blocks that n owns, r_n = D_n max(s_n, 0)
            L_C = sum r_n L_n / sum r_n over the clients n with combination C; D_n in place of r_n where all are 0
    DGB     O_i, G_i, DOGR_i of every index i (combinations and single modalities) from L_i of this round and the last;
            scale_m = |I| w_m, scale_C = |I| w_C with w = DOGR / sum over I = {m in C} and C

Everything that leaves a client is a sum: s_n is computed where Delta_n is, and three sums an index are all that DGB
needs. Scales act as learning rates: Adam would cancel a factor on gradients (0.1). What is not the released code's, as
it leaks or explodes there, is in docs/dgb_pcw.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedhpc.algorithms.blending import Losses, learning_rates, ratio, smoothed, winsorised
from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.head_losses import Record, evaluated
from fedhpc.config.blending import DgbPcwConfig
from fedhpc.interfaces import Blocks, Client, ClientId, Contribution, Federation

logger = logging.getLogger(__name__)
PER_INDEX = 7  # clients, then sum of weights, weighted training losses, weighted validation losses: for r_n and for D_n


@dataclass
class Trained:
    """What a client keeps of its turn until the end of the round."""

    update: Blocks
    train: dict[str, float] = field(default_factory=dict)  # index -> mean loss of the steps
    val: dict[str, float] = field(default_factory=dict)  # index -> loss afterwards; empty without validation rows


class DgbPcw(FedAvg):
    """FedAvg over what is shared (CM-FL), with learning rates that follow the losses of combinations."""

    reveals: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: DgbPcwConfig) -> None:
        super().__init__(config)
        self._config = config
        self._losses: dict[str, Losses] = {}  # of the last round in which an index was held
        self._fresh: frozenset[str] = frozenset()  # indices of the last round
        self._ratios: dict[str, float] = {}
        self._warned: set[str] = set()

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        probed = {name.removeprefix("probe/") for name in self.shared if name.startswith("probe/")}
        heads = {name.removeprefix("head/") for name in self.shared if name.startswith("head/")}
        self._indices = sorted(heads | probed)
        self._probed = probed

    # -------------------------------------------------------------------------------------------------- a round
    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        ratios = self.ratios_of(fed, index)
        kept: dict[ClientId, Trained] = {}
        reduced = fed.reduce(partial(self.train, ratios, kept), like=self.shared, metrics=("loss",))
        self.step(reduced.mean)
        if self._config.rates == "static":
            return reduced.metrics
        table = fed.sum(fed.each(partial(self.report, kept, reduced.mean)), shape=(len(self._indices), PER_INDEX))
        losses = self.losses_of(table.cpu())
        self.follow(losses)
        return {**reduced.metrics, **self._metrics(losses)}

    def train(self, ratios: Mapping[str, float], kept: dict[ClientId, Trained], client: Client) -> Contribution:
        """A client's turn."""
        client.load(self.shared)
        record = Record(self._probed)
        report = client.fit(objective=record.objective, lr_scale=self.scales(ratios, client))
        update = client.update(self.shared)
        if self._config.rates != "static":
            val = evaluated(client, self._probed)
            if not val:
                self._warn(f"client {client.id} ({client.site})", "has no labeled validation row: losses go without it")
            own = {name: block.clone() for name, block in update.items() if not name.startswith("probe/")}
            kept[client.id] = Trained(own, record.means(), val)
        weight = float(client.num_examples) if self._by_examples else 1.0
        return Contribution(update, weight, {"loss": report.loss})

    def report(self, kept: Mapping[ClientId, Trained], mean: Blocks, client: Client) -> Tensor:
        """What a client adds to the sums: float64 [indices, 7]."""
        trained, examples = kept[client.id], float(client.num_examples)
        closeness = self.closeness(client, trained.update, mean)
        rows = torch.zeros(len(self._indices), PER_INDEX, dtype=torch.float64)
        for place, name in enumerate(self._indices):
            if name in trained.train and name in trained.val:  # it is the client's, and can be measured
                losses = torch.tensor([1.0, trained.train[name], trained.val[name]], dtype=torch.float64)
                rows[place, 0] = 1
                rows[place, 1:4], rows[place, 4:7] = closeness * losses, examples * losses
        return rows

    # ------------------------------------------------------------------------------------------------------ PCW
    def closeness(self, client: Client, update: Blocks, mean: Blocks) -> float:
        """r_n: 1 without PCW, else D_n max(s_n, 0)."""
        if self._config.similarity is None:
            return 1.0
        shared = {name: block for name, block in mean.items() if name in update}
        product = client.dot(update, shared)
        if self._config.similarity == "cosine":
            norms = (client.dot(update, update) * client.dot(shared, shared)) ** 0.5
            product = product / norms if norms > 0 else 0.0
        return float(client.num_examples) * max(product, 0.0)

    def losses_of(self, table: Tensor) -> dict[str, Losses]:
        """Weighted mean losses of every index that somebody holds in this round."""
        losses = {}
        for name, (count, *sums) in zip(self._indices, table.tolist(), strict=True):
            if count == 0:
                continue
            weight, train, val = sums[:3] if sums[0] > 0 else sums[3:]
            losses[name] = Losses(train / weight, val / weight)
        return losses

    # ------------------------------------------------------------------------------------------------------ DGB
    def follow(self, losses: Mapping[str, Losses]) -> None:
        """New ratios from this round's losses and the last one's. An index that was not held then, or is not now,
        keeps its ratio: differences over a gap compare other clients and another model."""
        config, past = self._config, self._losses
        for name in sorted(losses.keys() ^ self._fresh) if self._fresh else []:
            change = "appears" if name in losses else "vanishes"
            self._warn(
                f"combination {name} {change}", "between rounds: its rate stays until two rounds follow each other"
            )
        now = {
            name: Losses(
                *(config.loss_ema * a + (1 - config.loss_ema) * b for a, b in zip(past[name], loss, strict=True))
            )
            if name in self._fresh
            else loss
            for name, loss in losses.items()
        }
        raw = {
            name: ratio(past[name], loss, config.epsilon, config.generalisation)
            for name, loss in now.items()
            if name in self._fresh
        }
        if flat := [name for name, value in raw.items() if value == float("inf")]:
            self._warn("O = 0", f"for {', '.join(flat)}: the ratio is cut; set algorithm.epsilon above 0")
        self._ratios = smoothed(self._ratios, winsorised(raw, config.winsorise), config.ema)
        self._losses = {**past, **now}
        self._fresh = frozenset(losses)

    def ratios_of(self, fed: Federation, index: int) -> Mapping[str, float]:
        """Ratios that this round's learning rates come from; none in the first rounds."""
        if index < self._config.start_round:
            return {}
        if self._config.rates == "shuffled":
            names = sorted(self._ratios)
            order = torch.randperm(len(names), generator=fed.generator("shuffled rates")).tolist()
            return {name: self._ratios[names[place]] for name, place in zip(names, order, strict=True)}
        return self._ratios

    def scales(self, ratios: Mapping[str, float], client: Client) -> dict[str, float] | None:
        """Factors on a client's learning rates, by block."""
        modalities = [name.removeprefix("encoder/") for name in sorted(client.blocks) if name.startswith("encoder/")]
        if self._config.rates == "static":
            static = {name: rate for name, rate in self._config.static_rates.items() if name in client.blocks}
            return static if static and len(modalities) > 1 else None
        combination = combination_of(client)
        if not ratios or combination is None:
            return None
        rates = learning_rates(ratios, modalities, combination, self._config.variant, self._config.clip)
        return {name: rate for name, rate in rates.items() if name in client.blocks}

    # ------------------------------------------------------------------------------------------------- bookkeeping
    def _metrics(self, losses: Mapping[str, Losses]) -> dict[str, float]:
        """Curves by index: do modalities converge together?"""
        return {
            **{f"train_{name}": loss.train for name, loss in losses.items()},
            **{f"val_{name}": loss.val for name, loss in losses.items()},
            **{f"dogr_{name}": value for name, value in self._ratios.items()},
        }

    def _warn(self, what: str, why: str) -> None:
        """Once a run and rank."""
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("dgb_pcw: %s %s", what, why)

    def state_dict(self) -> dict[str, Any]:
        losses = {name: list(loss) for name, loss in self._losses.items()}
        return {"losses": losses, "fresh": sorted(self._fresh), "ratios": dict(self._ratios)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = {name: Losses(*loss) for name, loss in state["losses"].items()}
        self._fresh, self._ratios = frozenset(state["fresh"]), dict(state["ratios"])


def combination_of(client: Client) -> str | None:
    """The combination whose classifier a client shares; None where it stays at home."""
    heads = [name.removeprefix("head/") for name in client.blocks if name.startswith("head/")]
    return max(heads, key=lambda name: name.count("+"), default=None)
