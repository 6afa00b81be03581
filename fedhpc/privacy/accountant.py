"""Epsilon by Google's dp-accounting: what mechanisms on the same data come to together.

Neighbouring data sets differ in one client (or row) that is there or is replaced by zeros: the numbers of clients, of
rows and of steps are taken as known. A mechanism's noise multiplier is its standard deviation over the clip.

Fixed-size cohorts that nobody knows are accounted for as Wang, Balle, Kasiviswanathan, "Subsampled Renyi Differential
Privacy and Analytical Moments Accountant", AISTATS 2019 do, where one client is replaced by another: that moves a sum
by up to twice the clip, so half the noise multiplier counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

AccountantName = Literal["rdp", "pld"]


@dataclass(frozen=True, order=True)
class Mechanism:
    """One sum with Gaussian noise.

    Attributes:
        noise_multiplier: of the clip.
        sampled: of units, those that took part, unknown to all: a rate under Poisson sampling; 1: who took part is
            known, or all did.
        out_of: above 0: `sampled` is a number of units, drawn without replacement out of so many.
    """

    noise_multiplier: float
    sampled: float = 1.0
    out_of: int = 0


Profile = tuple[tuple[Mechanism, int], ...]
Spent = Mapping[Mechanism, int]  # how often each was used on one unit's data


def epsilon(spent: Spent, delta: float, accountant: AccountantName) -> float:
    """Of all that was spent on one unit; 0 for nothing.

    Raises:
        ValueError: dp-accounting is missing, or `pld` is asked for cohorts of a fixed size that nobody knows.
    """
    return _epsilon(tuple(sorted((m, n) for m, n in spent.items() if n)), delta, accountant)


@cache
def _epsilon(spent: Profile, delta: float, accountant: AccountantName) -> float:
    if not spent:
        return 0.0
    dp = dp_accounting()
    replace = any(mechanism.out_of for mechanism, _ in spent)
    relation = dp.NeighboringRelation.REPLACE_ONE if replace else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if replace and accountant == "pld":
        raise ValueError(
            "privacy.accountant = pld knows no cohorts of a fixed size that nobody knows; set accountant: rdp, or "
            "amplification: false"
        )
    if replace and any(m.sampled < 1 for m, _ in spent if not m.out_of):
        raise ValueError("rows sampled at random and cohorts of a fixed size are not accounted for together")
    if accountant == "pld":
        made: Any = dp.pld.PLDAccountant(relation)
    else:
        made = dp.rdp.RdpAccountant(neighboring_relation=relation)
    for mechanism, count in spent:
        made.compose(_event(dp, mechanism, replace), count)
    return float(made.get_epsilon(delta))


def _event(dp: Any, mechanism: Mechanism, replace: bool) -> Any:
    gaussian = dp.GaussianDpEvent(mechanism.noise_multiplier / 2 if replace else mechanism.noise_multiplier)
    if mechanism.out_of:
        return dp.SampledWithoutReplacementDpEvent(mechanism.out_of, int(mechanism.sampled), gaussian)
    return gaussian if mechanism.sampled == 1 else dp.PoissonSampledDpEvent(mechanism.sampled, gaussian)


def worst(spent: Iterable[Spent], delta: float, accountant: AccountantName) -> float:
    """The largest epsilon of any unit."""
    single: dict[tuple[float, int], list[tuple[float, int]]] = {}
    others: set[Profile] = set()
    for one in spent:
        profile = tuple(sorted(one.items()))
        if len(profile) == 1:
            ((mechanism, count),) = profile
            single.setdefault((mechanism.noise_multiplier, mechanism.out_of), []).append((mechanism.sampled, count))
        else:
            others.add(profile)
    # Of units that were sampled at a lower rate, only those count that were so more often.
    for (noise_multiplier, out_of), uses in single.items():
        most = 0
        for sampled, count in sorted(set(uses), reverse=True):
            if count > most:
                most = count
                others.add(((Mechanism(noise_multiplier, sampled, out_of), count),))
    return max((epsilon(dict(profile), delta, accountant) for profile in others), default=0.0)


def dp_accounting() -> Any:
    """The package. Imported when first needed: it takes seconds."""
    try:
        import dp_accounting as package
    except ImportError as error:
        raise ValueError(
            f"privacy needs dp-accounting, which cannot be imported ({error}); pip install 'fedhpc[privacy]', or "
            "remove the privacy section"
        ) from error
    # It warns of every order that it leaves out, once for each; leaving some out makes epsilon no smaller.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return package
