"""What differential privacy a finished run had, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WEAK = 10.0  # an epsilon from which on the bound says little
NEAR = 0.5  # a delta from this share of 1/n on is near it
UNITS = {"client": "one client's rows, all together", "record": "one training row (not one patient's rows)"}


def noise_sentences(privacy: Mapping[str, Any] | None) -> Iterator[str]:
    """privacy: of results.json; None: a run without any."""
    if privacy is None:
        return
    unit, epsilon, delta = privacy["unit"], privacy["epsilon"], privacy["delta"]
    clip = f"{privacy['clip']:g}"
    if privacy["adaptive"]:
        clip = f"{clip} at first, {privacy['last_clip']:.4g} at last (adaptive)"
    yield (
        f"Differential privacy: epsilon = {epsilon:.4g} at delta = {delta:.3g}. Unit: {unit}, that is "
        f"{UNITS[unit]}, there or replaced by zeros. Clip {clip}, noise multiplier {privacy['noise_multiplier']:g}, "
        f"accountant {privacy['accountant']} (dp-accounting)."
    )
    if unit == "client":
        yield (
            f"The noise of a sum was made of {privacy['noise_shares']} clients' shares, which a sum had at least. "
            + (
                "Epsilon holds towards those who do not know who took part in which round."
                if privacy["amplification"]
                else "Epsilon holds although all know who took part in which round."
            )
        )
    else:
        yield "Epsilon holds towards those who do not know which rows a step took; it is that of the worst client."
    if not privacy["secret"]:
        yield (
            "The noise was drawn from random_seed, which config.yaml tells: whoever reads that file can take it off. "
            "So this is a simulation of what privacy costs in accuracy, and protects nobody; set privacy.secret_file."
        )
    if epsilon > WEAK:
        yield f"An epsilon above {WEAK:g} is no protection to speak of."
    units = "clients" if unit == "client" else "training rows of the smallest client"
    if delta * privacy["units"] > NEAR:
        yield (
            f"There are {privacy['units']} {units}: a delta near 1/{privacy['units']} allows one of them to be shown "
            "in the clear with that probability. Set a smaller privacy.delta, or have more of them."
        )
    yield (
        "Epsilon does not cover: metrics of evaluations, numbers of rows, which blocks and modalities a client has, "
        "and choices that people make after looking at these."
    )
