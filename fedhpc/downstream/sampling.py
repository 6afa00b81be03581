"""Sub-samples of labelled training rows, stratified by class."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def share_of_patients(patient: Array, label: Array, fraction: float, random: np.random.Generator) -> Array:
    """Places (sorted int64) of about `fraction` of the rows: whole patients, in every class, at least one of each.

    patient: integer [N]. label: integer [N], none missing. A patient belongs to the rarest class among its rows; in
    each class patients come in random order until the fraction of its rows is reached. From equal generators a larger
    fraction takes all that a smaller one does.
    """
    classes, code, size = np.unique(label, return_inverse=True, return_counts=True)
    names, member = np.unique(patient, return_inverse=True)
    order = random.permutation(len(names))
    rarity = np.argsort(np.argsort(size, kind="stable"), kind="stable")  # of each class: 0 is the rarest
    stratum = np.full(len(names), len(classes))
    np.minimum.at(stratum, member, rarity[code])
    num_rows = np.bincount(member, minlength=len(names))
    chosen = np.zeros(len(names), bool)
    for place in range(len(classes)):
        mine = order[stratum[order] == place]
        if len(mine):
            reached = np.cumsum(num_rows[mine])
            target = fraction * reached[-1] - 1e-9
            chosen[mine[: int(np.searchsorted(reached, target)) + 1]] = True
        else:  # all its patients have a rarer class too: one of them, so that the class is there
            has = np.zeros(len(names), bool)
            has[member[rarity[code] == place]] = True
            chosen[order[has[order]][:1]] = True
    return np.flatnonzero(chosen[member])


def shots_of_classes(patient: Array, label: Array, shots: int, random: np.random.Generator) -> Array:
    """Places (sorted int64) of `shots` rows of each class that has as many, of all its rows where there are fewer; from
    as many patients as possible. patient, label: integer [N]."""
    chosen = []
    for name in np.unique(label):
        places = random.permutation(np.flatnonzero(label == name))
        seen: dict[int, int] = {}
        turn = np.empty(len(places), np.int64)  # a patient's first row, its second, ...
        for index, place in enumerate(places):
            turn[index] = seen[int(patient[place])] = seen.get(int(patient[place]), -1) + 1
        chosen.append(places[np.argsort(turn, kind="stable")[:shots]])
    return np.sort(np.concatenate(chosen))
