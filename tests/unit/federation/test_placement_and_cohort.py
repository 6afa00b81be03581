"""Who takes part, and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.schema import CohortConfig
from fedhpc.federation.cohort import cohort_size, sample_cohort
from fedhpc.federation.placement import Placement, longest_first

costs = st.dictionaries(st.integers(0, 50), st.floats(0.01, 100), min_size=1, max_size=20)


@given(costs, st.integers(1, 6))
def test_everybody_is_placed_once_and_the_load_is_near_the_best(cost: dict[int, float], slots: int) -> None:
    placed = longest_first(cost, slots)
    assert len(placed) == slots
    assert sorted(c for slot in placed for c in slot) == sorted(cost)
    longest = max(sum(cost[c] for c in slot) for slot in placed)
    floor = max(sum(cost.values()) / slots, max(cost.values()))
    assert longest <= floor * (4 / 3) + sum(cost.values()) / slots / 3 + 1e-9  # Graham's bound, against a lower bound


@given(costs, st.integers(1, 6), st.data())
def test_clients_with_state_never_move(cost: dict[int, float], slots: int, data: st.DataObject) -> None:
    placement = Placement({c: int(v) + 1 for c, v in cost.items()}, slots, stateful=True)
    homes: dict[int, int] = {}
    for _ in range(3):
        cohort = data.draw(st.lists(st.sampled_from(sorted(cost)), unique=True, min_size=1))
        for slot, clients in enumerate(placement.place(cohort)):
            for client in clients:
                assert homes.setdefault(client, slot) == slot
        placement.learn(cohort, [1.0] * len(cohort))


def test_measured_cost_beats_the_number_of_rows() -> None:
    placement = Placement({0: 10, 1: 10, 2: 10, 3: 10}, 2, stateful=False)
    for _ in range(3):
        placement.learn([0, 1, 2, 3], [9.0, 1.0, 1.0, 1.0])
    assert placement.place([0, 1, 2, 3]) == [[0], [1, 2, 3]]
    other = Placement({0: 90, 1: 10, 2: 10, 3: 10}, 2, stateful=False)
    assert other.place([0, 1, 2, 3]) == [[0], [1, 2, 3]], "rows are the first guess"


def test_a_slow_round_or_a_single_slow_turn_moves_little() -> None:
    placement = Placement(dict.fromkeys(range(8), 10), 2, stateful=False)
    placement.learn([0, 1, 2, 3], [30.0, 31.0, 29.0, 30.0])  # the first round warms up
    placement.learn([4, 5, 6, 7], [1.0, 1.0, 1.0, 2.0])  # one turn was disturbed
    assert [len(slot) for slot in placement.place(range(8))] == [4, 4]
    assert [len(slot) for slot in placement.place([0, 1, 4, 5])] == [2, 2]


@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 1000), st.data())
def test_a_cohort_is_a_pure_function_of_seed_and_round(n: int, seed: int, index: int, data: st.DataObject) -> None:
    config = CohortConfig(size=data.draw(st.integers(1, n)))
    cohort = sample_cohort(range(n), config, seed, index)
    assert cohort == sample_cohort(range(n), config, seed, index)
    assert len(set(cohort)) == config.size and list(cohort) == sorted(cohort) and set(cohort) <= set(range(n))


def test_cohorts_differ_between_rounds_and_meet_everybody() -> None:
    config = CohortConfig(fraction=0.3)
    cohorts = [sample_cohort(range(10), config, 0, index) for index in range(40)]
    assert len(set(cohorts)) > 10
    assert {c for cohort in cohorts for c in cohort} == set(range(10))
    assert cohort_size(config, 10) == 3 and cohort_size(CohortConfig(fraction=0.01), 10) == 1
    assert sample_cohort((4, 7), CohortConfig(), 0, 0) == (4, 7)
    with pytest.raises(ValueError, match="cohort.size: 5, but there are 2 clients"):
        sample_cohort((1, 2), CohortConfig(size=5), 0, 0)
