"""AFL and DRFA: weights by hand, the snapshot, and lambda on the simplex whatever the losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.algorithms.afl import Afl
from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.config.algorithms import AflConfig, FedAvgConfig
from tests.unit.algorithms.fakes import FakeFederation, QuadraticClient, block

CURVATURES, OPTIMA, RATES = (1.0, 3.0, 0.5), (-1.0, 2.0, 6.0), (0.1, 0.05, 0.2, 0.1)


def federation() -> FakeFederation:
    clients = [QuadraticClient(i, a, b, RATES, 10 + i) for i, (a, b) in enumerate(zip(CURVATURES, OPTIMA, strict=True))]
    return FakeFederation(clients, {"net": block([0.5], [3.0])})


def afl(fed: FakeFederation, **options: object) -> Afl:
    algorithm = Afl(AflConfig.model_validate({"name": "afl", **options}))
    algorithm.setup(fed)  # type: ignore[arg-type]
    return algorithm


def after(w: float, client: int, steps: int) -> float:
    """A client's weights after so many of its steps from w."""
    for rate in RATES[:steps]:
        w -= rate * CURVATURES[client] * (w - OPTIMA[client])
    return w


def loss(w: float, client: int) -> float:
    return CURVATURES[client] / 2 * (w - OPTIMA[client]) ** 2


def projected(v: list[float]) -> list[float]:
    """On the simplex, by bisection on eta of sum (v - eta)_+ = 1."""
    low, high = min(v) - 1, max(v)
    for _ in range(100):
        eta = (low + high) / 2
        low, high = (eta, high) if sum(max(x - eta, 0) for x in v) > 1 else (low, eta)
    return [max(x - low, 0) for x in v]


def test_lambda_by_hand() -> None:
    """1/3 + 0.1 * (1, 2, 3) sums to 1.6: 0.2 off each. A client outside the cohort counts as the mean, 2."""
    fed = federation()
    algorithm = afl(fed, step_size=0.1)
    algorithm.reweigh(fed, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))  # type: ignore[arg-type]
    assert algorithm.weights.tolist() == pytest.approx([7 / 30, 1 / 3, 13 / 30])
    algorithm = afl(fed, step_size=0.1)
    fed.cohort = (0, 2)
    algorithm.reweigh(fed, torch.tensor([1.0, 3.0], dtype=torch.float64))  # type: ignore[arg-type]
    assert algorithm.weights.tolist() == pytest.approx([7 / 30, 1 / 3, 13 / 30])
    algorithm = afl(fed, step_size=10.0)
    algorithm.reweigh(fed, torch.tensor([1.0, 3.0], dtype=torch.float64))  # type: ignore[arg-type]
    assert algorithm.weights.tolist() == [0, 0, 1]


@given(
    rounds=st.lists(
        st.tuples(st.sets(st.integers(0, 2), min_size=1), st.lists(st.floats(0, 1e4), min_size=3, max_size=3)),
        max_size=5,
    ),
    step_size=st.floats(1e-4, 1e3),
)
def test_lambda_stays_on_the_simplex(rounds: list[tuple[set[int], list[float]]], step_size: float) -> None:
    fed = federation()
    algorithm = afl(fed, step_size=step_size)
    for cohort, losses in rounds:
        fed.cohort = tuple(sorted(cohort))
        seen = torch.tensor([losses[c] for c in fed.cohort], dtype=torch.float64)
        algorithm.reweigh(fed, seen)  # type: ignore[arg-type]
        assert algorithm.weights.min() >= 0
        assert float(algorithm.weights.sum()) == pytest.approx(1, abs=1e-8)
        shares = algorithm.shares(fed)  # type: ignore[arg-type]
        assert max(shares.values()) == 1


def reference(cohorts: list[tuple[int, ...]], step_size: float, moment: float | None) -> tuple[float, list[float]]:
    w, weights = 0.5, [1 / 3] * 3
    for cohort in cohorts:
        total = sum(weights[c] for c in cohort)
        steps = len(RATES) if moment is None else math.ceil(moment * len(RATES))
        judged = sum(weights[c] / total * after(w, c, steps) for c in cohort)
        w = sum(weights[c] / total * after(w, c, len(RATES)) for c in cohort)
        losses = [loss(judged, c) for c in cohort]
        everyone = [sum(losses) / len(losses)] * 3
        for c, value in zip(cohort, losses, strict=True):
            everyone[c] = value
        weights = projected([q + step_size * x for q, x in zip(weights, everyone, strict=True)])
    return w, weights


@pytest.mark.parametrize("loss_at", ["end", "random_step"])
@pytest.mark.parametrize("seed", range(4))
def test_rounds_follow_the_papers(loss_at: str, seed: int) -> None:
    cohorts = [(0, 1, 2), (0, 2), (1, 2), (0, 1, 2)]
    fed = federation()
    fed.random_seed = seed
    algorithm = afl(fed, step_size=0.02, loss_at=loss_at, loss_split="val", loss_fraction=0.5)
    for index, cohort in enumerate(cohorts):
        fed.cohort = cohort
        metrics = algorithm.round(fed, index)  # type: ignore[arg-type]
    moment = 1 - float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    w, weights = reference(cohorts, 0.02, moment if loss_at == "random_step" else None)
    assert float(algorithm.shared["net"].trainable) == pytest.approx(w, rel=1e-5)
    assert algorithm.weights.tolist() == pytest.approx(weights, rel=1e-4)
    assert metrics["weight_max"] == pytest.approx(max(weights), rel=1e-4)
    assert algorithm.shared["net"].buffers.tolist() == [3.0 + 4]
    assert {seen for c in fed._clients.values() for seen in c.measured} == {("val", 0.5)}  # type: ignore[attr-defined]


def test_the_seeds_above_look_at_different_steps() -> None:
    moments = [torch.rand((), generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(4)]
    assert len({math.ceil((1 - float(m)) * len(RATES)) for m in moments}) > 1


def test_the_first_round_is_fedavg_with_uniform_weights() -> None:
    fed, other = federation(), federation()
    algorithm, plain = afl(fed), FedAvg(FedAvgConfig(name="fedavg", weight="uniform"))
    plain.setup(other)  # type: ignore[arg-type]
    algorithm.round(fed, 0)  # type: ignore[arg-type]
    plain.round(other, 0)  # type: ignore[arg-type]
    assert torch.equal(algorithm.shared["net"].flat, plain.shared["net"].flat)


def test_a_cohort_without_weight_weighs_alike() -> None:
    fed = federation()
    algorithm = afl(fed)
    algorithm.weights = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    fed.cohort = (0, 1)
    assert algorithm.shares(fed) == {0: 1.0, 1: 1.0}  # type: ignore[arg-type]
    fed.cohort = (1, 2)
    assert algorithm.shares(fed) == {1: 0.0, 2: 1.0}  # type: ignore[arg-type]


def test_lambda_goes_on_from_its_state() -> None:
    whole, half = federation(), federation()
    algorithm = afl(whole, step_size=0.02)
    for index in range(4):
        algorithm.round(whole, index)  # type: ignore[arg-type]
    first = afl(half, step_size=0.02)
    for index in range(2):
        first.round(half, index)  # type: ignore[arg-type]
    half.initial = first.shared
    again = afl(half, step_size=0.02)
    again.load_state_dict(first.state_dict())
    for index in (2, 3):
        again.round(half, index)  # type: ignore[arg-type]
    assert torch.equal(again.weights, algorithm.weights)
    assert torch.equal(again.shared["net"].flat, algorithm.shared["net"].flat)
