"""Train, val and test by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split_by_patient(
    patients: Sequence[str], stratum: np.ndarray, fractions: tuple[float, float, float], random_seed: int
) -> np.ndarray:
    """int8 [N] split codes; whole patients, drawn at random within each stratum (int [N]: a site or a class).

    A patient belongs to the stratum of its first row. Counts are rounded so that over all strata each split comes
    within one patient of its fraction; a stratum with three patients or more has one to train on.
    """
    check_fractions(fractions)
    names, first, of_row = np.unique(np.asarray(patients, dtype=str), return_index=True, return_inverse=True)
    group = np.asarray(stratum)[first]
    random = np.random.default_rng((random_seed, 0x5B117))
    code = np.zeros(len(names), np.int8)
    carry = np.zeros(3)
    for value in np.unique(group):
        members = random.permutation(np.flatnonzero(group == value))
        exact = len(members) * np.asarray(fractions) + carry
        count = np.clip(np.rint(exact).astype(int), 0, len(members))
        train_floor = 1 if len(members) >= 3 else 0
        count[2] = min(count[2], len(members) - train_floor)
        count[1] = min(count[1], len(members) - train_floor - count[2])
        count[0] = len(members) - count[1] - count[2]
        carry = exact - count
        code[members] = np.repeat(np.arange(3, dtype=np.int8), count)
    return code[of_row]


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise ValueError unless these are train, val and test, and add up to 1."""
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"a split is three fractions train,val,test that add up to 1, not {','.join(map(str, fractions))}"
        )
