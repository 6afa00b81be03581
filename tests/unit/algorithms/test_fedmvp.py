"""FedMVP's losses against ALGORITHMS.md D.2 and loops in NumPy; its weights against the gather form of D.4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhpc.algorithms.cka_weights import check_public, importance, mean_likeness, vector, vector_length
from fedhpc.algorithms.fedmvp import FedMvp
from fedhpc.algorithms.mvp_losses import margin_loss, matching_loss, mvp_loss
from fedhpc.config.joint import FedMvpConfig
from fedhpc.interfaces import Block, Layout, TensorSpec
from fedhpc.metrics.cka import linear_cka, unbiased_cka, unit_rows
from tests.unit.algorithms.fakes import FakeClient, FakeFederation

JOINT = torch.eye(2)
IMAGE = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
TEXT = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
PLAIN: dict[str, Any] = {"mcm": 0.0, "ram": 0.0, "temperature": 0.1, "ram_form": "batch", "normalise": True}


def config(**keys: Any) -> FedMvpConfig:
    return FedMvpConfig(name="fedmvp", **keys)


def outputs(joint: Tensor, image: Tensor, text: Tensor, logits: Tensor) -> dict[str, Tensor]:
    scores = {"logits": logits, "logits/image": 2 * logits, "logits/text": -logits}
    return {"joint": joint, "image": image, "text": text, **scores}


# ------------------------------------------------------------------------------------------------------------- losses
def test_matching_golden() -> None:
    """D.2: J = I_2, I = [[.8, .6], [0, 1]], T = [[1, 0], [.6, .8]], temperature .1."""
    found = float(matching_loss(JOINT, IMAGE, 0.1) + matching_loss(JOINT, TEXT, 0.1))
    assert found == pytest.approx(0.1383022, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_matching_is_the_published_double_sum(seed: int, b: int) -> None:
    random = np.random.default_rng(seed)
    joint, single = random.normal(size=(2, b, 4)) / 3
    z = np.concatenate([joint, single])
    total = 0.0
    for i in range(2 * b):
        others = sum(math.exp(z[i] @ z[k] / 0.1) for k in range(2 * b) if k != i)
        total -= math.log(math.exp(joint[i % b] @ single[i % b] / 0.1) / others)
    assert float(matching_loss(torch.tensor(joint), torch.tensor(single), 0.1)) == pytest.approx(total / (2 * b))


def test_margin_by_hand() -> None:
    low, high = torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.6])  # means 0.5 and 0.55
    distance = float((JOINT - IMAGE).norm())
    assert float(margin_loss(JOINT, IMAGE, high, low, "batch")) == pytest.approx(distance / 2)
    assert float(margin_loss(JOINT, IMAGE, low, high, "batch")) == 0
    # Only the first row's single loss is lower: |(1, 0) - (.8, .6)| / 2.
    assert float(margin_loss(JOINT, IMAGE, high, low, "per_sample")) == pytest.approx(math.sqrt(0.4) / 2)


def test_which_end_the_margin_moves() -> None:
    for form, moves in (("batch", True), ("per_sample", False)):
        joint, single = JOINT.clone().requires_grad_(), IMAGE.clone().requires_grad_()
        margin_loss(joint, single, torch.ones(2), torch.zeros(2), form).backward()  # type: ignore[arg-type]
        assert bool(joint.grad.abs().sum() > 0)  # type: ignore[union-attr]
        assert (single.grad is not None and bool(single.grad.abs().sum() > 0)) == moves


def test_equal_representations_have_a_finite_gradient() -> None:
    joint = JOINT.clone().requires_grad_()
    margin_loss(joint, JOINT, torch.ones(2), torch.zeros(2), "per_sample").backward()
    assert bool(torch.isfinite(joint.grad).all())  # type: ignore[arg-type]


def test_the_whole_loss_is_the_sum_of_its_parts() -> None:
    logits, label = torch.tensor([[1.0, 0.0], [0.3, 0.6]]), torch.tensor([0, 1])
    out = outputs(JOINT, IMAGE, TEXT, logits)
    found = float(mvp_loss(out, {"label": label}, **{**PLAIN, "mcm": 0.01, "ram": 0.5}))
    ce = float(F.cross_entropy(logits, label))
    # Logits of the picture are twice as large and right, those of the text wrong: one gate is open.
    assert found == pytest.approx(ce + 0.01 * 0.1383022 + 0.5 * float((JOINT - IMAGE).norm()) / 2, abs=1e-6)


def test_joint_representations_are_normalised_before_matching_if_asked() -> None:
    out = outputs(0.5 * JOINT, IMAGE, TEXT, torch.zeros(2, 2))
    plain = {**PLAIN, "mcm": 1.0}
    ce = math.log(2)
    assert float(mvp_loss(out, {"label": torch.tensor([0, 1])}, **plain)) == pytest.approx(ce + 0.1383022, abs=1e-6)
    released = float(mvp_loss(out, {"label": torch.tensor([0, 1])}, **{**plain, "normalise": False}))
    assert released != pytest.approx(ce + 0.1383022, abs=1e-3)


def test_rows_without_a_modality_count_nowhere_in_its_terms() -> None:
    """Nor do rows without label; B of the means stays that of the batch."""
    torch.manual_seed(0)
    joint, image, text = (F.normalize(torch.randn(6, 3), dim=1) for _ in range(3))
    logits, label = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, -1])
    has = torch.tensor([True, True, False, True, False, True])
    every = torch.ones(6, dtype=torch.bool)
    for options in ({**PLAIN, "mcm": 1.0}, {**PLAIN, "ram": 1.0}, {**PLAIN, "ram": 1.0, "ram_form": "per_sample"}):
        batch = {"label": label, "has_image": every, "has_text": has}
        other = torch.where(has[:, None], text, torch.randn(6, 3))
        base = float(mvp_loss(outputs(joint, image, text, logits), batch, **options))
        assert base == pytest.approx(float(mvp_loss(outputs(joint, image, other, logits), batch, **options)))
        full = float(mvp_loss(outputs(joint, image, text, logits), {**batch, "has_text": every}, **options))
        assert base != pytest.approx(full, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ weights
def gathered(config: FedMvpConfig, seen: list[list[list[Tensor]]], examples: list[int]) -> np.ndarray:
    """D.4 from everybody's representations: S, then its weighted degrees."""
    n, parts = len(seen), len(seen[0])
    s = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            for p in range(parts):
                x, y = ([unit_rows(b) for b in client[p]] for client in (seen[i], seen[j]))
                cka = linear_cka(torch.cat(x), torch.cat(y)) if config.cka == "linear" else unbiased_cka(x, y)
                s[i, j] += cka / parts
    g = s.sum(1) - (0 if config.self_loop else 1)
    w = np.maximum(g, 1e-6) ** config.power * (np.array(examples) if config.prior == "examples" else 1)
    return np.asarray(w / w.sum())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"cka": "unbiased_minibatch"},
        {"self_loop": False, "power": 3.0},
        {"prior": "examples", "representation": "all", "cka": "unbiased_minibatch"},
    ],
)
def test_one_sum_gives_the_weights_of_the_gather_form(keys: dict[str, Any]) -> None:
    options = config(**keys)
    parts, examples = (3 if options.representation == "all" else 1), [10, 20, 30, 5]
    common = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    seen = []
    for k in range(4):
        noise = torch.Generator().manual_seed(k + 1)
        x = [common + 0.3 * (k + 1) * torch.randn(20, 6, generator=noise) for _ in range(parts)]
        seen.append([list(one.split([8, 12])) for one in x])
    vectors = [vector(options, client) for client in seen]
    assert len(vectors[0]) == vector_length(options, [8, 12])
    total = torch.stack(vectors).sum(0)
    found = np.array([importance(options, v, total, n) for v, n in zip(vectors, examples, strict=True)])
    np.testing.assert_allclose(found / found.sum(), gathered(options, seen, examples), atol=1e-6)


def test_effect_of_an_outlier_golden() -> None:
    """D.4: five clients, four mutually .95, one at .6: .160 against .210."""
    s = np.full((5, 5), 0.95)
    s[4], s[:, 4] = 0.6, 0.6
    np.fill_diagonal(s, 1)
    vectors = torch.tensor(np.linalg.cholesky(s))
    total = vectors.sum(0)
    w = np.array([importance(config(), v, total, 1) for v in vectors])
    np.testing.assert_allclose(w / w.sum(), [0.21, 0.21, 0.21, 0.21, 0.16], atol=5e-4)
    assert mean_likeness(total, 5) == pytest.approx((6 * 0.95 + 4 * 0.6) / 10)
    sharp = np.array([importance(config(self_loop=False, power=4.0), v, total, 1) for v in vectors])
    assert (sharp / sharp.sum())[4] < 0.1


def test_clients_that_have_nothing_in_common_weigh_alike() -> None:
    vectors = torch.eye(3, dtype=torch.float64)
    options = config(self_loop=False)
    assert len({importance(options, v, vectors.sum(0), 1) for v in vectors}) == 1


def test_a_public_set_that_is_too_small() -> None:
    with pytest.raises(ValueError, match=r"the public set has 3 rows, .*set public.size: 512"):
        check_public(config(), [3])
    check_public(config(), [4])
    with pytest.raises(ValueError, match=r"a public batch has 2 rows, .*set public.batch_size: 4"):
        check_public(config(cka="unbiased_minibatch"), [4, 2])


class SeeingClient(FakeClient):
    """What it makes of the public set is given."""

    def __init__(self, id: int, step: float, seen: Tensor) -> None:
        super().__init__(id, 10, step)
        self._seen = seen

    def forward(self, batch: dict[str, Tensor], output: str) -> Tensor:
        assert output == "joint"
        return self._seen[batch["row"]]


class MeanFederation(FakeFederation):
    def mean(self, values: Any, weights: dict[int, float], *, like: Any) -> dict[str, Block]:
        total = sum(weights.values())
        return {
            name: Block(sum(weights[c] / total * values[c][name].flat for c in values), b.layout)
            for name, b in like.items()
        }


def test_a_round_takes_the_cka_weighted_mean() -> None:
    first = {"embed": Block(torch.zeros(1), Layout((TensorSpec("embed.weight", (1,), (1,), 0, True),), 1, 1))}
    common = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    seen = [common, common + 0.1, torch.randn(12, 3, generator=torch.Generator().manual_seed(5))]
    fed = MeanFederation([SeeingClient(k, float(k + 1), x) for k, x in enumerate(seen)], first)
    fed.public = [{"row": torch.arange(6)}, {"row": torch.arange(6, 12)}]
    algorithm = FedMvp(config())
    algorithm.setup(fed)  # type: ignore[arg-type]
    metrics = algorithm.round(fed, 0)  # type: ignore[arg-type]
    w = gathered(config(), [[[x[:6], x[6:]]] for x in seen], [10, 10, 10])
    assert w[2] < w[0]
    assert float(algorithm.shared["embed"].flat) == pytest.approx(float(w @ [1.0, 2.0, 3.0]), abs=1e-6)
    assert metrics["loss"] == pytest.approx(1.0)
