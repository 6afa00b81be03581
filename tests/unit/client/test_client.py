"""What a turn reports: the rates it went by, and a look after each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedhpc.client.client import ClientRecord, DataClient, Rows, Turn
from fedhpc.client.engine import Engine
from fedhpc.client.residence import Residence
from fedhpc.config.schema import FitConfig
from fedhpc.interfaces import Batch


class Line(nn.Module):
    """x * w, started at w = 0."""

    block_prefixes = {"net": ("net.",)}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"y": self.net(batch["x"])}


class Ones:
    """Batches of ones, as many as asked for."""

    def training(self, rows: Any, batch_size: int, num_batches: int, drop_last: bool, generator: Any) -> list[Batch]:
        return [{"x": torch.ones(2, 1)}] * num_batches


def client(round_: int, rounds: int, **fit: Any) -> DataClient:
    """Its loss is -w, so that a step of plain SGD adds the learning rate to w."""
    config = FitConfig.model_validate({"channels_last": False, **fit})
    engine = Engine(Line(), lambda out, batch: -out["y"].mean(), config, torch.device("cpu"))
    rows = Rows(torch.arange(4), torch.arange(0), torch.arange(0))
    record = ClientRecord(0, "x", rows, frozenset({"image"}))
    turn = Turn(0, round_, rounds)
    residence = Residence(engine, {})
    return DataClient(record, residence, Ones(), {}, turn, keep_optimizer=False, pools={}, score=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("round_", "total"), [(0, 1.5), (1, 0.5)])
def test_rate_sum_follows_the_schedule(round_: int, total: float) -> None:
    """Linear decay over 2 rounds of 2 steps: rates 7/8, 5/8, then 3/8, 1/8."""
    one = client(round_, 2, steps=2, optimizer={"name": "sgd", "learning_rate": 1.0, "schedule": "linear"})
    report = one.fit()
    assert report.rate_sum == pytest.approx(total)
    assert float(one.read()["net"]["net.weight"]) == pytest.approx(total), "the sum of what the steps really used"


def test_rate_sum_counts_steps_and_not_batches() -> None:
    one = client(0, 1, steps=3, accumulate=2, optimizer={"name": "sgd", "learning_rate": 0.5})
    assert one.fit().rate_sum == pytest.approx(1.5)
    assert one.fit(batches=[{"x": torch.ones(2, 1)}] * 3).rate_sum == pytest.approx(1.0), "the last step has one batch"


def test_after_step_sees_the_weights_on_the_way() -> None:
    one = client(0, 1, steps=3, accumulate=2, optimizer={"name": "sgd", "learning_rate": 0.5})
    seen: list[tuple[int, int, float]] = []
    one.fit(after_step=lambda done, steps: seen.append((done, steps, float(one.read()["net"]["net.weight"]))))
    assert seen == [(1, 3, 0.5), (2, 3, 1.0), (3, 3, 1.5)]
