"""How modalities overfit and generalise, and what follows for their learning rates (ALGORITHMS.md C.2). Pure maths.

An index is a single modality ("rna") or a combination ("image+rna"); its losses are a pair (training, validation).

    O = (va - tr) - (va' - tr')     growth of the gap since the last round (primes)
    G = va - va'                    change of the validation loss
    DOGR = |G| / (O^2 + epsilon L^2)      L: mean of the four losses
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Variant = Literal["normalized", "upstream_product", "upstream_hook"]


class Losses(NamedTuple):
    """Mean losses of one index in one round."""

    train: float
    val: float


def overfitting(before: Losses, now: Losses) -> float:
    """O."""
    return (now.val - now.train) - (before.val - before.train)


def ratio(
    before: Losses,
    now: Losses,
    epsilon: float = 0.0,
    generalisation: Literal["absolute", "improvement"] = "absolute",
) -> float:
    """DOGR, 0 or more. O = 0 with epsilon = 0 gives infinity (G = 0: 0), which `winsorised` brings down.

    generalisation: |G|, or how much the validation loss fell (0 where it rose).
    """
    change = now.val - before.val
    gain = abs(change) if generalisation == "absolute" else max(-change, 0.0)
    level = (before.train + before.val + now.train + now.val) / 4
    spread = overfitting(before, now) ** 2 + epsilon * level**2
    if gain == 0:
        return 0.0
    return gain / spread if spread > 0 else float("inf")


def winsorised(ratios: Mapping[str, float], most: float | None) -> dict[str, float]:
    """Ratios cut to `most` times their median. Infinite ones are cut in any case: to the largest finite one, or 1."""
    finite = [value for value in ratios.values() if value != float("inf")]
    bound = float("inf")
    if len(finite) < len(ratios):
        bound = max(finite, default=0.0) or 1.0
    middle = statistics.median(ratios.values()) if ratios else 0.0
    if most is not None and 0 < middle < float("inf"):
        bound = most * middle
    return {name: min(value, bound) for name, value in ratios.items()}


def weights(ratios: Mapping[str, float], index: Sequence[str]) -> dict[str, float]:
    """w_i over an index set, summing to 1. What has no ratio weighs 1/|I|; ratios that are all 0 weigh alike."""
    known = [name for name in index if name in ratios]
    share = len(known) / len(index)
    total = sum(ratios[name] for name in known)
    return {
        name: (share * ratios[name] / total if total > 0 else 1 / len(index)) if name in ratios else 1 / len(index)
        for name in index
    }


def learning_rates(
    ratios: Mapping[str, float],
    modalities: Sequence[str],
    combination: str,
    variant: Variant = "normalized",
    clip: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Factors on the learning rates of a client's blocks: "encoder/<modality>" and "head/<combination>".

    normalized: |I| w, so that they are 1 on average, clipped. upstream_product: w_m w_C and w_C; upstream_hook: w_m and
    w_C. A client with one modality keeps its rates.
    """
    encoders = {f"encoder/{m}": 1.0 for m in modalities}
    if len(modalities) == 1:
        return encoders | {f"head/{combination}": 1.0}
    w = weights(ratios, [*modalities, combination])
    if variant == "normalized":
        low, high = clip or (0.0, float("inf"))
        scaled = {name: min(max(len(w) * value, low), high) for name, value in w.items()}
        return {f"encoder/{m}": scaled[m] for m in modalities} | {f"head/{combination}": scaled[combination]}
    shared = w[combination] if variant == "upstream_product" else 1.0
    return {f"encoder/{m}": w[m] * shared for m in modalities} | {f"head/{combination}": w[combination]}


def smoothed(past: Mapping[str, float], now: Mapping[str, float], keep: float) -> dict[str, float]:
    """keep * past + (1 - keep) * now, by name; what is in one of them only stays as it is."""
    mixed = {name: keep * past[name] + (1 - keep) * value if name in past else value for name, value in now.items()}
    return {**past, **mixed}
