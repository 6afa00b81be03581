"""Sub-samples keep patients whole, have every class, and grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.downstream.sampling import share_of_patients, shots_of_classes


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(8, 80))
def test_shares_are_whole_patients_of_every_class_and_nested(seed: int, num_classes: int, count: int) -> None:
    random = np.random.default_rng(seed)
    patient = random.integers(0, max(2, count // 3), count)
    label = random.choice(num_classes, count, p=random.dirichlet(np.full(num_classes, 0.5)))
    before: set[int] = set()
    for fraction in (0.01, 0.1, 0.5, 1.0):
        chosen = share_of_patients(patient, label, fraction, np.random.default_rng(seed))
        assert set(label[chosen]) == set(label)
        assert set(patient[chosen]).isdisjoint(set(patient) - set(patient[chosen]))
        assert len(chosen) == np.isin(patient, patient[chosen]).sum()
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())
    assert len(before) == count


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_shares_have_their_size_in_every_class(fraction: float) -> None:
    label = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = share_of_patients(np.arange(1000), label, fraction, np.random.default_rng(0))
    assert np.bincount(label[chosen]).tolist() == [600 * fraction, 300 * fraction, 100 * fraction]
    other = share_of_patients(np.arange(1000), label, fraction, np.random.default_rng(1))
    assert not np.array_equal(chosen, other)


def test_shots_come_from_as_many_patients_as_there_are() -> None:
    label = np.repeat([0, 1], [9, 3])
    patient = np.asarray([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4])
    for seed in range(20):
        chosen = shots_of_classes(patient, label, 4, np.random.default_rng(seed))
        zero = chosen[label[chosen] == 0]
        assert len(zero) == 4 and set(patient[zero]) == {0, 1, 2}
        assert chosen[label[chosen] == 1].tolist() == [9, 10, 11]  # all that there are
