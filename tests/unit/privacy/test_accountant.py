"""Epsilon against values that others published for the same mechanisms, and against closed forms."""

from __future__ import annotations

import math
import sys

import pytest
from scipy import optimize, stats

from fedhpc.privacy.accountant import Mechanism, epsilon, worst


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang 2018, Theorem 8: the Gaussian mechanism exactly."""

    def found(eps: float) -> float:
        a, b = 1 / (2 * noise_multiplier), eps * noise_multiplier
        return float(stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b)) - delta

    return float(optimize.brentq(found, 0, 200))


def test_the_accountants_own_examples() -> None:
    """From the tests that dp-accounting 0.6.0 and Opacus 1.6.0 ship."""
    # PLD, test_gaussian_basic: three times sigma = sqrt(3) at delta 0.126936 is epsilon 1, to 1e-3.
    assert epsilon({Mechanism(math.sqrt(3)): 3}, 0.126936, "pld") == pytest.approx(1.0, abs=1e-3)
    # PLD, test_poisson_subsampled_gaussian: q = 0.2, sigma = 0.5, three times, delta 0.15594: epsilon 1, to 1e-3.
    assert epsilon({Mechanism(0.5, 0.2): 3}, 0.15594, "pld") == pytest.approx(1.0, abs=1e-3)
    # Opacus, test_rdp_accountant: sigma 1.5, q 0.04, 2250 steps, delta 1e-5: 7.32911117143 (its orders are others).
    assert epsilon({Mechanism(1.5, 0.04): 2250}, 1e-5, "rdp") == pytest.approx(7.32911117143, rel=1e-4)
    # Opacus, test_prv_accountant: the same by privacy loss variables, 6.777395712150674.
    assert epsilon({Mechanism(1.5, 0.04): 2250}, 1e-5, "pld") == pytest.approx(6.777395712150674, rel=2e-3)


@pytest.mark.parametrize(("noise_multiplier", "times"), [(1.0, 1), (4.0, 25), (8.0, 4)])
def test_known_cohorts_are_gaussian_mechanisms(noise_multiplier: float, times: int) -> None:
    spent, delta = {Mechanism(noise_multiplier): times}, 1e-5
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(times), delta)
    assert epsilon(spent, delta, "pld") == pytest.approx(exact, rel=1e-3)
    assert exact <= epsilon(spent, delta, "rdp") < 1.25 * exact + 0.2, "an upper bound, and not a loose one"


def test_a_cohort_of_all_that_nobody_knows_pays_for_a_replaced_client() -> None:
    """Drawn out of all: nothing is gained, and one client in the place of another moves the sum by twice the clip."""
    twice = gaussian_epsilon(1.0, 1e-3)
    assert twice <= epsilon({Mechanism(2.0, 50, 50): 1}, 1e-3, "rdp") < 1.25 * twice + 0.2
    assert epsilon({Mechanism(2.0, 5, 500): 20}, 1e-3, "rdp") < epsilon({Mechanism(2.0, 50, 500): 20}, 1e-3, "rdp")
    with pytest.raises(ValueError, match="amplification: false"):
        epsilon({Mechanism(2.0, 5, 500): 20}, 1e-3, "pld")


def test_the_worst_unit_decides() -> None:
    a, b = {Mechanism(1.0): 3}, {Mechanism(1.0): 5}
    assert worst([a, b, a], 1e-3, "rdp") == epsilon(b, 1e-3, "rdp")
    assert worst([], 1e-3, "rdp") == 0.0
    seldom, often = {Mechanism(1.0, 0.5): 2}, {Mechanism(1.0, 0.01): 900}
    mixed = {Mechanism(1.0, 0.01): 2, Mechanism(2.0): 1}
    each = [epsilon(one, 1e-3, "rdp") for one in (seldom, often, mixed)]
    assert worst([seldom, often, mixed], 1e-3, "rdp") == max(each)
    assert worst([seldom, mixed], 1e-3, "rdp") == max(each[0], each[2])


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"pip install 'fedhpc\[privacy\]'"):
        epsilon({Mechanism(1.25): 1}, 1e-3, "rdp")
