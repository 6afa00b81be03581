"""Row gradients: against one backward pass a row, each clipped by hand; noise and draws as stated; what is refused."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from scipy import stats
from torch import nn

from fedhpc.algorithms.objectives import cross_entropy
from fedhpc.client.engine import Engine
from fedhpc.client.private_rows import RowGradients, refuse_layers
from fedhpc.comm.noise import NoiseSource
from fedhpc.config.schema import ClassifierConfig, DataConfig, FitConfig, PhantomConfig
from fedhpc.data.batches import BatchMaker, Source
from fedhpc.interfaces import Batch, DataSpec
from fedhpc.models.zoo import build_model

CPU = torch.device("cpu")
SPEC = DataSpec(image_channels=2, image_size=(12, 12), num_classes=3)
SOURCE = NoiseSource(bytes(range(32)))
QUIET = 1e-12  # a noise multiplier that leaves the rest to be seen


def engine(clip: float = 0.5, noise_multiplier: float = QUIET, channels_last: bool = True) -> Engine:
    torch.manual_seed(0)
    image = {"name": "cnn_tiny"}
    config = ClassifierConfig.model_validate({"kind": "classifier", "image": image, "head_dropout": 0.0})
    fit = FitConfig.model_validate(
        {
            "steps": 1,
            "batch_size": 8,
            "channels_last": channels_last,
            "optimizer": {"name": "sgd", "learning_rate": 1.0},
        }
    )
    made = Engine(build_model(config, SPEC), cross_entropy, fit, CPU)
    made.rows = RowGradients(made.module, made.loss, clip, noise_multiplier, SOURCE)
    return made


def maker(rows: int, channels_last: bool = True) -> BatchMaker:
    generator = torch.Generator().manual_seed(5)
    given = {
        "image": torch.randint(0, 256, (rows, 12, 12, 2), dtype=torch.uint8, generator=generator),
        "label": torch.randint(-1, 3, (rows,), generator=generator),
    }
    source = Source(None, {name: name for name in given}, 1, given)  # type: ignore[arg-type]
    return BatchMaker(source, DataConfig(phantom=PhantomConfig()), CPU, channels_last)


def drawn(made: Engine, rows: int, batch_size: int, steps: int, purpose: str = "p") -> list[Batch]:
    assert made.rows is not None
    generator = torch.Generator().manual_seed(0)
    return list(made.rows.batches(maker(rows), torch.arange(rows), batch_size, steps, purpose, generator))


def eval_dropout(module: nn.Module) -> None:
    """The benchmark network's own dropout, off: rows are then functions of themselves alone."""
    module.encoder.training = False  # type: ignore[union-attr]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("clip", [0.05, 0.5, 100.0])
def test_gradients_are_sums_of_clipped_rows(clip: float, channels_last: bool) -> None:
    """Also in the memory format in which Opacus takes wrong ones of convolutions."""
    made, by_hand = engine(clip, channels_last=channels_last), engine()
    by_hand.rows = None
    (batch,) = drawn(made, rows=20, batch_size=20, steps=1)
    for one in (made, by_hand):
        one.module.train()
        eval_dropout(one.module)
    assert made.rows is not None
    value = made.rows.backward(batch)
    expected = [torch.zeros_like(p) for p in by_hand.module.parameters()]
    losses, scaled = [], 0
    for row in range(20):
        single = {name: column[row : row + 1] for name, column in batch.items()}
        if int(single["label"]) < 0:
            continue  # no label: no loss, no gradient
        by_hand.module.zero_grad()
        loss = cross_entropy(by_hand.module(single), single)
        loss.backward()  # type: ignore[no-untyped-call]
        own = [p.grad for p in by_hand.module.parameters()]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in own if g is not None))
        scaled += norm > clip
        losses.append(loss.item())
        for total, g in zip(expected, own, strict=True):
            assert g is not None
            total += g * min(1.0, clip / norm)
    assert 0 < len(losses) < 20 and (scaled > 0) == (clip < 100)
    assert float(value) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for parameter, total in zip(made.module.parameters(), expected, strict=True):
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, total / 20, rtol=1e-4, atol=1e-6)


def test_noise_has_the_stated_deviation_and_empty_batches_are_all_noise() -> None:
    made = engine(clip=0.5, noise_multiplier=3.0)
    batches = drawn(made, rows=40, batch_size=2, steps=30)
    sizes = [len(batch["row"]) for batch in batches]
    assert 0 in sizes and max(sizes) > 2 and len(sizes) == 30
    assert made.rows is not None
    empty = next(batch for batch in batches if not len(batch["row"]))
    seen = []
    for _ in range(2):
        assert float(made.rows.backward(empty)) == 0.0
        gradients = [p.grad for p in made.module.parameters()]
        seen.append(torch.cat([g.flatten() for g in gradients if g is not None]).double() / (3.0 * 0.5 / 2))
    n = len(seen[0])
    low, high = stats.chi2(n).ppf([0.005, 0.995])
    assert n > 9_000 and all(low < float(one.square().sum()) < high for one in seen)
    assert abs(float((seen[0] * seen[1]).mean())) < 4 / math.sqrt(n), "each step has its own"


def test_rows_are_drawn_one_by_one_at_the_stated_rate() -> None:
    batches = drawn(engine(), rows=50, batch_size=10, steps=400)
    taken = torch.stack([torch.zeros(50).index_fill(0, batch["row"], 1.0) for batch in batches])
    assert abs(float(taken.mean()) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / taken.numel())
    variance = float(taken.sum(1).var())
    assert 0.75 * 8 < variance < 1.25 * 8, "binomial: 50 * 0.2 * 0.8; batches of a fixed size would have 0"
    again, other = drawn(engine(), 50, 10, 3), drawn(engine(), 50, 10, 3, "another fit")
    assert all(torch.equal(a["row"], b["row"]) for a, b in zip(again, batches, strict=False))
    assert any(not torch.equal(a["row"], b["row"]) for a, b in zip(again, other, strict=True))
    everyone = drawn(engine(), rows=5, batch_size=10, steps=2)
    assert [len(batch["row"]) for batch in everyone] == [5, 5], "a client of fewer rows gives all of them"


def test_a_fit_steps_by_them_and_evaluation_is_left_alone() -> None:
    made = engine(clip=0.1)
    before = made.weights.flat.clone()
    made.fit(drawn(made, rows=20, batch_size=20, steps=1), lambda step: 1.0)
    moved = float((made.weights.flat - before).norm())
    assert 0 < moved <= 0.1, "twenty rows of norm 0.1 at most, averaged, rate 1"
    batch = next(iter(maker(20).ordered(torch.arange(20), 20)))
    outputs = made.forward(batch)
    assert outputs["logits"].shape == (20, 3)
    assert all(getattr(p, "grad_sample", None) is None for p in made.module.parameters())


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.net = nn.Parameter(torch.zeros(1)), nn.Linear(2, 2)


def test_layers_without_row_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch normalisation \(0.1\), which mixes the rows"):
        refuse_layers(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    with pytest.raises(ValueError, match="with Token, which holds cls_token beside its layers"):
        refuse_layers(nn.Sequential(Token()))
    refuse_layers(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2)))


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ValueError, match=r"needs Opacus.*pip install 'fedhpc\[privacy\]'"):
        engine()
