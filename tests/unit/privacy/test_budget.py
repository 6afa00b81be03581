"""Rounds are paid for by those who took part; the round that would pass the budget is refused and costs nothing."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from fedhpc.config.privacy import Privacy, default_delta, split_noise
from fedhpc.privacy.accountant import Mechanism, epsilon
from fedhpc.privacy.budget import BudgetSpent, Spending

CLIENTS = (0, 1, 2, 3)
ROWS = {0: 100, 1: 400, 2: 50, 3: 1000}
STEPS = {0: 10, 1: 40, 2: 5, 3: 100}


def spending(**options: Any) -> Spending:
    section = {"unit": "client", "clip": 1.0, "noise_multiplier": 2.0, **options}
    kind: TypeAdapter[Privacy] = TypeAdapter(Annotated[Privacy, Field(discriminator="unit")])
    return Spending(
        kind.validate_python(section),
        CLIENTS,
        2,
        ROWS,
        STEPS,
        20,
    )


def test_a_client_pays_for_its_own_rounds() -> None:
    made = spending(delta=1e-3)
    cohorts = [(0, 1), (1, 2), (2, 3), (1, 3)]
    told = [made.begin(cohort) for cohort in cohorts]
    expected = [epsilon({Mechanism(2.0): times}, 1e-3, "rdp") for times in (1, 2, 2, 3)]
    assert told == expected and made.epsilon == expected[-1]


def test_cohorts_that_nobody_knows_cost_all_the_same() -> None:
    made = spending(delta=1e-3, amplification=True)
    made.begin((0, 1))
    assert made.begin((0, 1)) == epsilon({Mechanism(2.0, 2, 4): 2}, 1e-3, "rdp")


def test_rows_pay_for_the_steps_of_their_client() -> None:
    made = spending(unit="record", delta=1e-4)
    found = made.begin((1, 2))
    large = epsilon({Mechanism(2.0, 20 / 400): 40}, 1e-4, "rdp")
    small = epsilon({Mechanism(2.0, 20 / 50): 5}, 1e-4, "rdp")
    assert found == max(large, small)
    assert made.num_units == 50


def test_the_round_past_the_budget_is_refused_and_costs_nothing() -> None:
    allowed = epsilon({Mechanism(2.0): 2}, 1e-3, "rdp")
    made = spending(delta=1e-3, epsilon=allowed)
    five = epsilon({Mechanism(2.0): 5}, 1e-3, "rdp")
    assert made.planned([(0, 1)] * 5) == (five, 2)
    assert made.planned([(0, 1), (2, 3), (1, 2)]) == (allowed, 3)
    assert f"after 5 more rounds; privacy.epsilon = {allowed:g} allows 2 of them" in made.outlook([(0, 1)] * 5)
    assert made.outlook([(0, 1)]).endswith("after 1 more rounds")
    assert spending(delta=1e-3, epsilon=0.01).planned([(0, 1)] * 5) == (five, 0)
    assert made.epsilon == 0.0, "planning spends nothing"
    made.begin((0, 1))
    made.begin((0, 1))
    with pytest.raises(BudgetSpent, match=rf"privacy.epsilon = {allowed:g} at delta = 0.001 does not allow another"):
        made.begin((0, 1))
    assert made.begin((2, 3)) == allowed, "others have not paid yet"


def test_what_was_spent_goes_through_a_checkpoint() -> None:
    made = spending(unit="record", delta=1e-4)
    made.begin((0, 1))
    other = spending(unit="record", delta=1e-4, noise_multiplier=1.0)
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert other.epsilon == made.epsilon
    both = {Mechanism(2.0, 0.2): 10, Mechanism(1.0, 0.2): 10}
    assert other.begin((0,)) == max(epsilon(both, 1e-4, "rdp"), made.epsilon), "earlier rounds keep their noise"


def test_delta_follows_the_number_of_units() -> None:
    assert spending().delta == pytest.approx(4**-1.1)
    assert spending(unit="record").delta == pytest.approx(50**-1.1)
    assert default_delta(1000) == pytest.approx(5.01e-4, rel=1e-2)
    with pytest.raises(ValueError, match=r"privacy.delta = 0.25 with 4 clients: .* set delta: 0.22 or less"):
        spending(delta=0.25)
    with pytest.raises(ValueError, match=r"privacy.delta = 0.02 with 50 training rows of the smallest client"):
        spending(unit="record", delta=0.02)


def test_a_count_takes_its_part_of_the_noise() -> None:
    """Andrew et al. 2021, section 3.1: z = 1 and 100 clients, so a count with noise 5, need 1.005 on updates."""
    assert split_noise(1.0, 5.0) == pytest.approx(1 / (1 - 0.01) ** 0.5)
    with pytest.raises(ValueError, match="set count_noise above 0.5"):
        split_noise(1.0, 0.5)
    # Together they are one Gaussian mechanism with the whole noise multiplier.
    update, count = split_noise(1.0, 0.8), 2 * 0.8
    assert (update**-2 + count**-2) ** -0.5 == pytest.approx(1.0)
