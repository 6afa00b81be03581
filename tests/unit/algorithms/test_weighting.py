"""Robust weights against golden values of ALGORITHMS.md (A.5, E.1), slow searches, and what holds for any losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhpc.algorithms.weighting import (
    chi_square,
    exponentiated,
    kl_divergence,
    project,
    project_simplex,
    uniform,
    updated,
    worst_case,
)
from fedhpc.config.algorithms import UncertaintySet

LOSSES = torch.tensor([2.0, 2.5, 3.0, 4.0, 2.0], dtype=torch.float64)
SETS: tuple[UncertaintySet, ...] = ("chi2", "simplex", "kl")


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- golden
def test_exponentiated_step_golden() -> None:
    q = exponentiated(uniform(5), LOSSES, 0.5)
    torch.testing.assert_close(q, vector(0.130701, 0.167824, 0.215490, 0.355283, 0.130701), atol=1e-6, rtol=0)
    assert chi_square(q) == pytest.approx(0.08748, abs=1e-5)
    for rho in (0.1, 1.0):
        assert torch.equal(project(q, "chi2", rho), project_simplex(q)), "inside the ball nothing changes"


@pytest.mark.parametrize(
    ("q", "rho", "expected"),
    [
        ((0.9, 0.05, 0.03, 0.01, 0.01), 1.0, (0.765178, 0.078890, 0.062742, 0.046595, 0.046595)),
        ((0.9, 0.05, 0.03, 0.01, 0.01), 0.1, (0.378725, 0.161702, 0.156595, 0.151489, 0.151489)),
        ((0.5, 0.3, 0.1, 0.05, 0.05), 0.1, (0.3524, 0.2508, 0.1492, 0.1238, 0.1238)),
    ],
)
def test_projection_on_the_chi_square_ball_golden(
    q: tuple[float, ...], rho: float, expected: tuple[float, ...]
) -> None:
    torch.testing.assert_close(project(vector(*q), "chi2", rho), vector(*expected), atol=6e-5, rtol=0)


def test_exact_maximum_golden() -> None:
    q = worst_case(LOSSES, "chi2", 0.05)
    torch.testing.assert_close(q, vector(0.140839, 0.183097, 0.225355, 0.309870, 0.140839), atol=1e-6, rtol=0)
    assert float((q * LOSSES).sum()) == pytest.approx(2.93664, abs=1e-5)
    closed = 1 / 5 + math.sqrt(2 * 0.05 / 5) * (LOSSES - LOSSES.mean()) / (LOSSES - LOSSES.mean()).norm()
    torch.testing.assert_close(q, closed)


def test_five_clients_leave_no_room_outside_a_radius_of_two() -> None:
    alone = vector(0, 0, 0, 1, 0)
    assert chi_square(alone) == 2
    assert torch.equal(project(alone, "chi2", 2.0), alone)
    assert torch.equal(worst_case(LOSSES, "chi2", 2.0), alone)


# --------------------------------------------------------------------------------------------------- any losses
losses = st.lists(st.floats(-50, 50), min_size=2, max_size=12).map(lambda x: torch.tensor(x, dtype=torch.float64))
radii = st.floats(0, 3)


@settings(max_examples=60, deadline=None)
@given(losses, radii, st.sampled_from(SETS), st.sampled_from(["exponentiated", "exact"]), st.floats(0.01, 20))
def test_weights_stay_on_the_simplex_and_in_the_set(
    values: Tensor, rho: float, kind: UncertaintySet, update: str, step: float
) -> None:
    q = uniform(len(values))
    for _ in range(3):
        q = updated(q, values, kind, rho, update, step)  # type: ignore[arg-type]
        assert bool((q >= 0).all())
        assert float(q.sum()) == pytest.approx(1, abs=1e-9)
        if kind == "chi2":
            assert chi_square(q) <= rho + 1e-9
        if kind == "kl":
            assert kl_divergence(q) <= rho + 1e-9
    order = values.argsort()
    assert bool((q[order].diff() >= -1e-9).all()), "a higher loss never weighs less, from equal weights on"


@settings(max_examples=25, deadline=None)
@given(losses, st.floats(0, 1), st.sampled_from(SETS))
@example(torch.tensor([0.0, 9.8e-166, -1.0], dtype=torch.float64), 0.125, "chi2")  # two losses that nearly tie
@example(torch.tensor([0.0, 5e-320, -1.0], dtype=torch.float64), 0.125, "chi2")
@example(torch.tensor([0.0, 5e-320, -1.0], dtype=torch.float64), 0.125, "kl")
def test_no_random_point_of_the_set_has_a_higher_mean_loss(values: Tensor, rho: float, kind: UncertaintySet) -> None:
    best = float((worst_case(values, kind, rho) * values).sum())
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = torch.rand(len(values), generator=generator, dtype=torch.float64).pow(4)
        other = project(other / other.sum(), kind, rho)
        assert float((other * values).sum()) <= best + 1e-7 * (1 + values.abs().max())


@settings(max_examples=25, deadline=None)
@given(losses, radii, st.sampled_from(["chi2", "simplex"]))
def test_the_projection_is_the_nearest_point(values: Tensor, rho: float, kind: UncertaintySet) -> None:
    point = torch.softmax(values / 5, 0)
    nearest = project(point, kind, rho)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        other = project(torch.softmax(torch.randn(len(values), generator=generator, dtype=torch.float64), 0), kind, rho)
        assert (nearest - point).norm() <= (other - point).norm() + 1e-7


@settings(max_examples=30, deadline=None)
@given(losses)
def test_equal_losses_and_a_radius_of_zero_mean_uniform_weights(values: Tensor) -> None:
    n = len(values)
    for kind in SETS:
        torch.testing.assert_close(worst_case(torch.ones(n, dtype=torch.float64), kind, 0.5), uniform(n))
    for kind in ("chi2", "kl"):
        torch.testing.assert_close(updated(uniform(n), values, kind, 0.0, "exponentiated", 1.0), uniform(n))


def test_an_outlier_moves_a_weight_by_a_bounded_factor() -> None:
    q = exponentiated(uniform(3), vector(0, 0, 1e9), 1.0)
    assert float(q[2] / q[0]) == pytest.approx(math.exp(10), rel=1e-6)
    assert bool(torch.isfinite(exponentiated(q, vector(-1e9, 0, 1e9), 100.0)).all())
