"""DGB + PCW over clients without models: whose losses count, and what the guards do."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhpc.algorithms.dgb_pcw import DgbPcw
from fedhpc.config.blending import DgbPcwConfig
from fedhpc.interfaces import Batch, Block, Blocks, FitReport
from tests.unit.algorithms.fakes import FakeClient, FakeFederation, block

BLOCKS = ("encoder/i", "encoder/m", "head/i", "head/i+m", "head/m")
ROUNDS = [(0.70, 0.69), (0.60, 0.66), (0.55, 0.64), (0.50, 0.63)]


def logits_for(loss: float) -> Tensor:
    """Two classes, the first is right: cross entropy of that much."""
    p = math.exp(-loss)
    return torch.tensor([[math.log(p), math.log1p(-p)]], dtype=torch.float64)


class Held(FakeClient):
    """Holds some modalities; its losses come from a script, its update from `step`."""

    def __init__(
        self, id: int, modalities: str, script: list[tuple[float, float]], step: float = 1.0, examples: int = 10
    ) -> None:
        super().__init__(id, examples, step)
        self.site = f"hospital-{id}"
        self.head = f"head/{'+'.join(modalities)}"
        self.blocks = frozenset({*(f"encoder/{m}" for m in modalities), self.head})
        self.script = list(script)
        self.rates: list[Mapping[str, float] | None] = []
        self.val_rows = 4

    def load(self, shared: Blocks) -> None:
        self.own = {name: b.clone() for name, b in shared.items() if name in self.blocks}

    def update(self, since: Blocks) -> Blocks:
        return {n: Block(self.own[n].flat - b.flat, b.layout) for n, b in since.items() if n in self.blocks}

    def fit(self, *args: Any, objective: Any = None, lr_scale: Any = None, **options: Any) -> FitReport:
        self.rates.append(lr_scale)
        self.now = self.script.pop(0)
        value = objective(lambda batch: {self.head: logits_for(self.now[0])}, {"label": torch.tensor([0])})
        super().fit()
        return FitReport(float(value), 1, self.num_examples, 0.0, 1.0)

    def batches(self, split: str) -> Iterator[Batch]:
        assert split == "val"
        for _ in range(self.val_rows):
            yield {"label": torch.tensor([0])}

    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        return {self.head: logits_for(self.now[1])}

    def dot(self, a: Blocks, b: Blocks) -> float:
        return sum(float((a[name].trainable.double() * b[name].trainable.double()).sum()) for name in a)


class OwnersFederation(FakeFederation):
    """Means by block over its owners."""

    def reduce(self, fn: Any, *inputs: Any, like: Blocks, metrics: Any = ()) -> Any:
        from fedhpc.interfaces import Reduced

        parts = list(self.each(fn, *inputs).values())
        mean, weight = {}, {}
        for name, b in like.items():
            owned = [(p.weight, p.blocks[name].flat.double()) for p in parts if name in p.blocks]
            weight[name] = sum(w for w, _ in owned)
            if owned:
                mean[name] = Block((sum(w * x for w, x in owned) / weight[name]).float(), b.layout)  # type: ignore[union-attr]
        total = sum(p.weight for p in parts)
        return Reduced(mean, weight, {m: sum(p.metrics[m] * p.weight for p in parts) / total for m in metrics})


def federation(*clients: Held) -> OwnersFederation:
    return OwnersFederation(clients, {name: block([0.0, 0.0]) for name in BLOCKS})


def algorithm(fed: FakeFederation, **keys: Any) -> DgbPcw:
    made = DgbPcw(DgbPcwConfig.model_validate({"name": "dgb_pcw", **keys}))
    made.setup(fed)  # type: ignore[arg-type]
    return made


def play(made: DgbPcw, fed: FakeFederation, rounds: int, first: int = 0) -> list[Mapping[str, float]]:
    return [made.round(fed, index) for index in range(first, first + rounds)]  # type: ignore[arg-type]


def test_golden_ratios_become_rates_in_the_third_round() -> None:
    """ALGORITHMS.md C.2, through whole rounds: upstream's form without any of our guards."""
    m = Held(0, "m", [(0.70, 0.69), (0.60, 0.66), (1, 1)])
    i = Held(1, "i", [(0.69, 0.69), (0.66, 0.67), (1, 1)])
    both = Held(2, "im", [(0.68, 0.69), (0.55, 0.64), (1, 1)])
    fed = federation(m, i, both)
    made = algorithm(fed, variant="upstream_product", epsilon=0, winsorise=None, ema=0, similarity=None)
    metrics = play(made, fed, 3)
    assert metrics[1]["dogr_m"] == pytest.approx(6.12245, rel=1e-5)
    assert metrics[1]["dogr_i"] == pytest.approx(200.0, rel=1e-4), "float32 losses"
    assert metrics[1]["dogr_i+m"] == pytest.approx(7.8125, rel=1e-5)
    assert both.rates[:2] == [None, None], "rounds 0 and 1 train as they are"
    assert both.rates[2] == pytest.approx(
        {"encoder/m": 0.0010451, "encoder/i": 0.0341395, "head/i+m": 0.0365181}, rel=1e-4
    )
    assert m.rates[2] == {"encoder/m": 1, "head/m": 1}


def three() -> list[Held]:
    return [
        Held(0, "m", [(0.4, 0.6)], 3.0, 10),
        Held(1, "m", [(0.6, 0.8)], 1.0, 10),
        Held(2, "m", [(5.0, 9.0)], -1.0, 20),
    ]


def test_losses_of_aligned_clients_count() -> None:
    """By hand: updates +3 (10 rows), +1 (10), -1 (20), all weights alike. Mean: (30 + 10 - 20) / 40 = .5, so cosines
    1, 1, -1, weights 10, 10, 0."""
    clients = three()
    fed = federation(*clients)
    (metrics,) = play(algorithm(fed), fed, 1)
    assert (metrics["train_m"], metrics["val_m"]) == pytest.approx((0.5, 0.7), rel=1e-5)
    clients = three()
    fed = federation(*clients)
    (metrics,) = play(algorithm(fed, similarity="dot"), fed, 1)
    # Inner products with the mean .5 over four weights: 6, 2, -2; times rows: 60, 20, 0.
    assert metrics["train_m"] == pytest.approx((60 * 0.4 + 20 * 0.6) / 80, rel=1e-5)
    clients = three()
    fed = federation(*clients)
    (metrics,) = play(algorithm(fed, similarity=None), fed, 1)
    assert metrics["train_m"] == pytest.approx((0.4 + 0.6 + 5.0) / 3, rel=1e-5)


def test_all_against_the_shared_update_weigh_by_rows() -> None:
    """Nobody of this combination is aligned: client 2's rows turn the mean round for both others."""
    clients = [
        Held(0, "m", [(0.2, 0.4)], 1.0, 10),
        Held(1, "m", [(0.8, 1.0)], 1.0, 30),
        Held(2, "im", [(1, 1)], -9.0, 60),
    ]
    fed = federation(*clients)
    made = algorithm(fed)
    # head/m is theirs alone and would be aligned: leave the encoder only.
    for client in clients[:2]:
        client.blocks = frozenset({"encoder/m"})
    (metrics,) = play(made, fed, 1)
    assert metrics["train_m"] == pytest.approx((10 * 0.2 + 30 * 0.8) / 40, rel=1e-5)


def test_each_block_is_averaged_over_its_owners() -> None:
    fed = federation(Held(0, "m", [(1, 1)], 2.0, 10), Held(1, "im", [(1, 1)], -1.0, 30))
    made = algorithm(fed)
    play(made, fed, 1)
    assert made.shared["encoder/m"].flat.tolist() == pytest.approx([(2 * 10 - 30) / 40] * 2)
    assert made.shared["encoder/i"].flat.tolist() == [-1, -1]
    assert made.shared["head/i"].flat.tolist() == [0, 0], "nobody holds i alone"


# ------------------------------------------------------------------------------------------------------------- guards
def finite(client: Held) -> bool:
    return all(math.isfinite(rate) for rates in client.rates for rate in (rates or {}).values())


def test_no_overfitting_at_all_warns_and_stays_finite(caplog: pytest.LogCaptureFixture) -> None:
    flat = [(0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.6, 0.6)]
    m, both = Held(0, "m", ROUNDS), Held(1, "im", flat)
    fed = federation(m, both)
    with caplog.at_level(logging.WARNING):
        # Powers of two would be needed for an exact 0 through logarithms: the guard is tried on the losses themselves.
        made = algorithm(fed, epsilon=0, ema=0)
        play(made, fed, 4)
    assert finite(both) and both.rates[2] is not None
    made.follow({name: loss._replace(train=loss.val) for name, loss in made._losses.items()})
    same = {name: type(loss)(loss.val - 0.25, loss.val - 0.25) for name, loss in made._losses.items()}
    with caplog.at_level(logging.WARNING):
        made.follow(same)
    assert all(math.isfinite(r) for r in made._ratios.values())
    assert "O = 0" in caplog.text


def test_a_combination_that_comes_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    m, both = Held(0, "m", ROUNDS + ROUNDS), Held(1, "im", ROUNDS + ROUNDS)
    fed = federation(m, both)
    made = algorithm(fed)
    play(made, fed, 3)
    before = made._ratios["i+m"]
    fed.cohort = (0,)
    with caplog.at_level(logging.WARNING):
        play(made, fed, 1, 3)
    assert "combination i+m vanishes" in caplog.text
    assert made._ratios["i+m"] == before, "its rate stays"
    fed.cohort = (0, 1)
    with caplog.at_level(logging.WARNING):
        play(made, fed, 1, 4)
    assert "combination i+m appears" in caplog.text
    assert made._ratios["i+m"] == before, "no difference over a gap"
    play(made, fed, 1, 5)
    assert made._ratios["i+m"] != before
    assert finite(m) and finite(both)


def test_a_client_without_validation_rows(caplog: pytest.LogCaptureFixture) -> None:
    one, many = Held(0, "im", ROUNDS, examples=1), Held(1, "m", ROUNDS)
    one.val_rows = 0
    fed = federation(one, many)
    made = algorithm(fed)
    with caplog.at_level(logging.WARNING):
        metrics = play(made, fed, 4)
    assert "client 0 (hospital-0) has no labeled validation row" in caplog.text
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    assert "val_i+m" not in metrics[-1] and finite(one)
    assert one.rates[3] == {"encoder/i": 1, "encoder/m": 1, "head/i+m": 1} or sum(
        one.rates[3].values()
    ) == pytest.approx(3)  # type: ignore[union-attr]


def test_state_goes_on() -> None:
    clients = [Held(0, "m", ROUNDS), Held(1, "im", ROUNDS)]
    fed = federation(*clients)
    made = algorithm(fed)
    play(made, fed, 2)
    again = algorithm(fed)
    again.load_state_dict(made.state_dict())
    again.shared = {name: b.clone() for name, b in made.shared.items()}
    scripts = [list(c.script) for c in clients]
    (first,) = play(made, fed, 1, 2)
    for client, script in zip(clients, scripts, strict=True):
        client.script = script
    (second,) = play(again, fed, 1, 2)
    assert first == second and clients[1].rates[-1] == clients[1].rates[-2] is not None


def test_shuffled_rates_use_the_same_ratios() -> None:
    clients = [
        Held(0, "m", ROUNDS),
        Held(1, "im", ROUNDS),
        Held(2, "i", [(0.7, 0.9), (0.6, 0.8), (0.5, 0.8), (0.4, 0.8)]),
    ]
    fed = federation(*clients)
    made = algorithm(fed, rates="shuffled")
    play(made, fed, 3)
    dealt = made.ratios_of(fed, 3)  # type: ignore[arg-type]
    assert sorted(dealt.values()) == sorted(made._ratios.values())


def test_static_rates_follow_nothing() -> None:
    clients = [Held(0, "m", ROUNDS), Held(1, "im", ROUNDS)]
    fed = federation(*clients)
    made = algorithm(fed, rates="static", static_rates={"encoder/i": 3.0, "encoder/m": 0.5})
    assert set(play(made, fed, 1)[0]) == {"loss"}
    assert clients[0].rates == [None], "it holds one modality, so its rates stay"
    assert clients[1].rates == [{"encoder/i": 3.0, "encoder/m": 0.5}]


def test_nothing_is_revealed() -> None:
    assert DgbPcw.reveals == frozenset()
