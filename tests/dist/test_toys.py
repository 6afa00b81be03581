"""Toys of the methods to come, over the real federation: the interface carries each, the same bits on 1 and 3 ranks.

Not the methods themselves: each toy makes the exchanges that its paper needs (ALGORITHMS.md A to D) in few lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.objectives import image_text_alignment
from fedhpc.interfaces import Batch, Blocks, Client, Contribution, Federation
from tests.dist.runs import QUIET, SMOKE
from tests.ranks import on_ranks


def public_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2, 12, 1, 32, 32, generator=generator).contiguous()
    tokens = torch.randint(4, 40, (2, 12, 20), generator=generator)
    return [
        {"image": i.to(memory_format=torch.channels_last), "tokens": t} for i, t in zip(images, tokens, strict=True)
    ]


class TwoStages(FedAvg):
    """FedDRA's exchanges: part of the blocks, then all with an anchor; per-client losses are revealed; they weigh."""

    reveals: ClassVar[frozenset[str]] = frozenset({"loss"})

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        parts = {name: b for name, b in self.shared.items() if not name.startswith("encoder")}
        first = fed.reduce(lambda client: self.stage(client, parts, tuple(parts), None), like=parts, metrics=("loss",))
        anchor = {**self.shared, **{n: type(b)(b.flat + first.mean[n].flat, b.layout) for n, b in parts.items()}}
        losses = fed.gather("loss", fed.each(self.loss))
        weights = dict(zip(fed.cohort, torch.softmax(losses, 0).tolist(), strict=True))
        second = fed.reduce(
            lambda client: self.stage(client, self.shared, None, anchor, weights[client.id]),
            like=self.shared,
            metrics=("loss",),
        )
        self.step(second.mean)
        return second.metrics

    def stage(
        self, client: Client, blocks: Blocks, train: tuple[str, ...] | None, anchor: Blocks | None, weight: float = 1.0
    ) -> Contribution:
        client.load(self.shared)
        if anchor is None:
            report = client.fit(train=train)
        else:
            target = client.reference(anchor)

            def objective(model: nn.Module, batch: Batch) -> Tensor:
                goal, own = target(batch), model(batch)
                return image_text_alignment(own, batch) + functional.mse_loss(own["image"], goal["image"])

            report = client.fit(objective=objective)
        return Contribution(client.update(blocks), weight, {"loss": report.loss})

    def loss(self, client: Client) -> Tensor:
        client.load(self.shared)
        similar = [(client.forward(b, "image") * client.forward(b, "text")).sum() for b in client.batches("val")]
        return torch.stack(similar).mean().double()


class Distil(FedAvg):
    """MDH-FL's exchanges: own models, predictions on public batches as one sum, a step against (sum - own share)."""

    stateful: ClassVar[bool] = True

    def setup(self, fed: Federation) -> None:
        self._start, self._public = fed.initial, public_batches()

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        for batch in self._public:
            own = fed.each(lambda client, batch=batch: self.predict(client, batch))
            total = fed.sum(own, shape=(12, 12))
            fed.each(lambda client, mine, batch=batch, total=total: self.align(client, batch, total - mine), own)
        return {"total": float(total.sum())}

    def predict(self, client: Client, batch: Batch) -> Tensor:
        client.load(self.personal(client))
        similarity = client.forward(batch, "image") @ client.forward(batch, "text").T
        return torch.softmax(similarity, 1).double()

    def align(self, client: Client, batch: Batch, others: Tensor) -> None:
        client.load(self.personal(client))

        def objective(model: nn.Module, batch: Batch) -> Tensor:
            out = model(batch)
            return -(others.float() * torch.log_softmax(out["image"] @ out["text"].T, 1)).sum(1).mean()

        client.fit(batches=[batch], objective=objective)
        client.state["own"] = {name: b.clone() for name, b in client.read().items()}

    def personal(self, client: Client) -> Blocks:
        return client.state.get("own", self._start)


class Owners(FedAvg):
    """DGB + PCW's exchanges: a block is averaged over its owners, at its own learning rates, weighed by alignment."""

    stateful: ClassVar[bool] = True

    def turn(self, client: Client) -> Contribution:
        owned = {n: b for n, b in self.shared.items() if client.id % 3 == 0 or n.endswith("image")}
        client.load(self.shared)
        report = client.fit(train=tuple(owned), lr_scale={"encoder/image": 0.3})
        update = client.update(owned)
        last = client.state.get("last", update)
        alignment = client.dot(update, last) / (client.dot(last, last) + 1e-12)
        client.state["last"] = {name: b.clone() for name, b in update.items()}
        return Contribution(update, 1.0 + min(abs(alignment), 1.0), {"loss": report.loss})


class Agreement(FedAvg):
    """FedMVP's exchanges: blocks are kept, Gram matrices on public pictures are summed, their inner products weigh."""

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        batch = public_batches()[0]
        kept = fed.each(lambda client: self.train(client, batch))
        grams = {c: gram for c, (_, gram) in kept.items()}
        total = fed.sum(grams, shape=(12, 12))
        weights = {c: float((gram * total).sum().clamp(min=0)) for c, gram in grams.items()}
        self.step(fed.mean({c: blocks for c, (blocks, _) in kept.items()}, weights, like=self.shared))
        return {"agreement": float((total * total).sum())}

    def train(self, client: Client, batch: Batch) -> tuple[Blocks, Tensor]:
        client.load(self.shared)
        client.fit()
        features = client.forward(batch, "image").double()
        features = features - features.mean(0)
        gram = features @ features.T
        return {n: b.clone() for n, b in client.update(self.shared).items()}, gram / gram.norm()


def play(folder: str, toy: type[FedAvg]) -> tuple[str, list[str]]:
    import os

    from fedhpc.algorithms import registry
    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    os.chdir(folder)
    registry.ALGORITHMS["fedavg"] = toy  # type: ignore[index]
    config = load_config(SMOKE / "fedavg.yaml", [*QUIET, "data.path=phantom.h5", "cohort.size=null", "rounds=2"])
    result: dict[str, Any] = RunTask(config, Path("run_" + os.environ.get("WORLD_SIZE", "1")))()
    pages = Path("run_" + os.environ.get("WORLD_SIZE", "1"), "ledger.jsonl").read_text()
    return result["sha256"], sorted({word for word in ("gather", "reduce", "sum", "mean") if f'"{word}"' in pages})


@pytest.mark.parametrize(
    ("toy", "operations"),
    [
        (TwoStages, ["gather", "reduce"]),
        (Distil, ["sum"]),
        (Owners, ["reduce"]),
        (Agreement, ["mean", "sum"]),
    ],
    ids=["FedDRA", "MDH-FL", "DGB+PCW", "FedMVP"],
)
def test_the_interface_carries_it(toy: type[FedAvg], operations: list[str], tmp_path: Path) -> None:
    (alone,) = on_ranks(1, play, str(tmp_path), toy)
    three = on_ranks(3, play, str(tmp_path), toy)
    assert {sha for sha, _ in [alone, *three]} == {alone[0]}
    assert alone[1] == operations
