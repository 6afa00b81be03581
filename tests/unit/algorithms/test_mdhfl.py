"""MDH-FL's formulas against ALGORITHMS.md B and float64 by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.algorithms.confidence import (
    LOSS,
    ConfidenceWeights,
    efficiency,
    leaning,
    mean_distance,
)
from fedhpc.algorithms.fedmd import towards
from fedhpc.algorithms.noisy_losses import (
    distance_to_rest,
    refined_cross_entropy,
    sce_loss,
    symmetric_cross_entropy,
)
from fedhpc.config.distillation import Confidence, MdhflConfig, SceConfig
from tests.unit.algorithms.fakes import FakeClient, FakeFederation, block

LOGITS, LABEL = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])


# -------------------------------------------------------------------------------------------- symmetric cross-entropy
@pytest.mark.parametrize(
    ("A", "reverse", "both"), [(math.log(1e-4), 3.0832447, 3.1240053), (-4.0, 1.3390362, 1.3797968)]
)
def test_symmetric_cross_entropy_golden(A: float, reverse: float, both: float) -> None:
    loss = partial(symmetric_cross_entropy, LOGITS, LABEL, A=A)
    assert float(loss(alpha=1.0, beta=0.0)) == pytest.approx(0.4076060, abs=1e-6)
    assert float(loss(alpha=0.0, beta=1.0)) == pytest.approx(reverse, abs=1e-6)
    assert float(loss(alpha=0.1, beta=1.0)) == pytest.approx(both, abs=1e-6)


def test_the_published_setting_is_the_default() -> None:
    loss = sce_loss(MdhflConfig(name="mdhfl").sce)
    assert float(loss({"logits": LOGITS}, {"label": LABEL})) == pytest.approx(3.1240053, abs=1e-6)


def test_symmetric_cross_entropy_is_the_released_sum_over_classes() -> None:
    """-sum_c clamp(p_c, 1e-7, 1) log clamp(y_c, 1e-4, 1), in NumPy."""
    random = np.random.default_rng(0)
    logits, label = random.normal(0, 6, (50, 8)), random.integers(0, 8, 50)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    onehot = np.eye(8)[label]
    reverse = -(np.clip(p, 1e-7, 1) * np.log(np.clip(onehot, 1e-4, 1))).sum(1).mean()
    expected = 0.1 * -np.log(p[np.arange(50), label]).mean() + reverse
    found = symmetric_cross_entropy(torch.tensor(logits), torch.tensor(label), 0.1, 1.0, math.log(1e-4))
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_rows_without_a_label_do_not_count() -> None:
    more, label = torch.cat([LOGITS, torch.randn(3, 3)]), torch.tensor([0, -1, -1, -1])
    for loss in (
        partial(symmetric_cross_entropy, alpha=0.1, beta=1.0, A=-4.0),
        partial(refined_cross_entropy, progress=0.5, alpha=0.4, beta=0.9, temperature=4.0, mu=10.0),
    ):
        assert float(loss(more, label)) == pytest.approx(float(loss(LOGITS, LABEL)), abs=1e-6)


@pytest.mark.parametrize("t", [0, 5, 40])
def test_label_refinement_by_hand(t: int) -> None:
    z = np.array([2.0, 1.0, 0.0]) / 4
    p = np.exp(z) / np.exp(z).sum()
    v = t / (10 * 40 + t)
    y = (1 - v) * np.clip([1.0, 0, 0], 1e-4, 1) + v * p
    expected = -0.4 * (y * np.log(p)).sum() - 0.9 * (p * np.log(y)).sum()
    found = refined_cross_entropy(LOGITS, LABEL, t / 40, alpha=0.4, beta=0.9, temperature=4.0, mu=10.0)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_refined_labels_are_not_differentiated() -> None:
    logits = LOGITS.clone().requires_grad_()
    refined_cross_entropy(logits, LABEL, 0.5, 1.0, 0.0, 1.0, 1.0).backward()
    v = 0.5 / 1.5
    p = LOGITS.softmax(1)
    y = (1 - v) * torch.tensor([[1.0, 1e-4, 1e-4]]) + v * p
    torch.testing.assert_close(logits.grad, p * y.sum() - y)


# --------------------------------------------------------------------------------------------------------- alignment
@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(3, 6))
def test_the_sum_gives_the_gradient_of_all_single_terms(seed: int, clients: int) -> None:
    """sum_{j != k} w_j KL(R_j | R_k), batchmean, from everybody's rows; and from S - w_k R_k alone."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(clients, 5, 8, generator=generator)
    scores = logits.softmax(2)
    w = torch.rand(clients, generator=generator).softmax(0)
    total = (w[:, None, None] * scores).double().sum(0)
    for k in range(clients):
        mine = logits[k].clone().requires_grad_()
        gathered = sum(
            w[j] * F.kl_div(mine.log_softmax(1), scores[j], reduction="batchmean") for j in range(clients) if j != k
        )
        [expected] = torch.autograd.grad(gathered, mine)  # type: ignore[arg-type]
        rest = (total - (w[k] * scores[k]).double()).float()
        [found] = torch.autograd.grad(distance_to_rest(mine, rest), mine)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_distance_is_zero_where_all_agree() -> None:
    rest = 0.75 * LOGITS.softmax(1)
    assert float(distance_to_rest(LOGITS, rest)) == pytest.approx(0, abs=1e-7)
    assert float(distance_to_rest(LOGITS.flip(1), rest)) > 0.1


def test_consensus_distances() -> None:
    out = {"logits": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    target = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert float(towards(target, "mae")(out, {})) == pytest.approx(0.75)
    kl = F.kl_div(out["logits"].log_softmax(1), target.softmax(1), reduction="batchmean")
    assert float(towards(target, "kl")(out, {})) == pytest.approx(float(kl))


# -------------------------------------------------------------------------------------------------------- confidence
class Measured(FakeClient):
    """Has the losses that it is given, one a round."""

    def __init__(self, id: int, losses: list[float]) -> None:
        super().__init__(id, 1, 0.0)
        self.losses = losses
        self.own = {"net": block([0.0])}

    def resume(self) -> None: ...

    def measure(self, split: str, loss: object = None, *, fraction: float = 1.0) -> float:
        assert split == "train"
        return self.losses.pop(0)


def two_rounds(kind: Confidence, first: list[float], second: list[float]) -> list[list[float]]:
    clients = [Measured(k, [a, b]) for k, (a, b) in enumerate(zip(first, second, strict=True))]
    fed = FakeFederation(clients, {})
    weights = ConfidenceWeights(kind, None, sce_loss(SceConfig()), 1.0)
    return [list(weights.weights(fed).values()) for _ in range(2)]


FIRST, SECOND = [2.0] * 4, [1.5, 1.6, 1.9, 1.8]


def test_confidence_golden() -> None:
    F_k = [efficiency(a, b) for a, b in zip(FIRST, SECOND, strict=True)]
    assert F_k == pytest.approx([0.333333, 0.25, 0.052632, 0.111111], abs=1e-6)
    a = [leaning(f, sum(F_k), sum(F_k), 4, "rhfl", 0.5) for f in F_k]
    assert a == pytest.approx([0.556425, 0.500652, 0.368558, 0.407697], abs=1e-6)
    for kind in ("rhfl", "stable"):
        uniform, w = two_rounds(kind, FIRST, SECOND)  # type: ignore[arg-type]
        assert uniform == [1 / 3] * 4
        assert w == pytest.approx([0.275006, 0.260088, 0.227904, 0.237001], abs=1e-6)


def test_mixed_signs_flip_as_released_and_not_in_the_stable_form() -> None:
    """Client 0 improves most; with a small negative sum of F the released code gives it the smallest weight."""
    second = [1.9, 2.0, 2.06, 2.06]
    _, released = two_rounds("rhfl", FIRST, second)
    _, stable = two_rounds("stable", FIRST, second)
    assert released[0] == min(released)
    assert stable[0] == max(stable) and stable[3] == min(stable)


def test_rhfl_plus_by_hand() -> None:
    """|F| in the denominator, F divided by 1 + the move, no exponential; a model that stands still does not divide."""
    _, w = two_rounds("rhfl_plus", FIRST, SECOND)
    F_k = np.array([0.5 / 1.5, 0.4 / 1.6, 0.1 / 1.9, 0.2 / 1.8])
    a = 1 / 3 + 1.2 * F_k / np.abs(F_k).sum()
    assert w == pytest.approx((a / a.sum()).tolist())
    assert efficiency(2.0, 1.0, moved=1.0) == 0.5
    assert mean_distance({"net": block([3.0, 4.0], [9.0])}, {"net": block([0.0, 0.0], [1.0])}) == 5.0, "no statistics"


def test_none_counts_all_alike_and_measures_nothing() -> None:
    clients = [Measured(k, []) for k in range(4)]
    weights = ConfidenceWeights("none", None, sce_loss(SceConfig()), 1.0)
    assert list(weights.weights(FakeFederation(clients, {})).values()) == [1 / 3] * 4
    assert not any(LOSS in client.state for client in clients)


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 9), min_size=4, max_size=4), st.lists(st.floats(0.01, 9), min_size=4, max_size=4))
def test_stable_weights_are_shares(first: list[float], second: list[float]) -> None:
    _, w = two_rounds("stable", first, second)
    assert sum(w) == pytest.approx(1)
    assert min(w) > 0
    assert max(w) / min(w) <= math.e + 1e-6, "eta 0.5 and shares of |F| bound how far weights lie apart"
