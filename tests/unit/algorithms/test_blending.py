"""The formulas of ALGORITHMS.md C.2 against its golden values, and where they would explode."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.algorithms.blending import Losses, learning_rates, overfitting, ratio, smoothed, weights, winsorised

BEFORE = {"m": Losses(0.70, 0.69), "i": Losses(0.69, 0.69), "m+i": Losses(0.68, 0.69)}
NOW = {"m": Losses(0.60, 0.66), "i": Losses(0.66, 0.67), "m+i": Losses(0.55, 0.64)}
GOLDEN = {"m": 6.12245, "i": 200.0, "m+i": 7.8125}  # ALGORITHMS.md C.2
WEIGHTS = {"m": 0.0286183, "i": 0.9348636, "m+i": 0.0365181}


def ratios() -> dict[str, float]:
    return {name: ratio(BEFORE[name], NOW[name]) for name in BEFORE}


def test_golden_ratios_and_weights() -> None:
    assert ratios() == pytest.approx(GOLDEN, rel=1e-5)
    assert weights(ratios(), ["m", "i", "m+i"]) == pytest.approx(WEIGHTS, rel=1e-5)


def test_golden_upstream_rates() -> None:
    product = learning_rates(ratios(), ["m", "i"], "m+i", "upstream_product")
    assert product == pytest.approx({"encoder/m": 0.0010451, "encoder/i": 0.0341395, "head/m+i": 0.0365181}, rel=1e-4)
    hook = learning_rates(ratios(), ["m", "i"], "m+i", "upstream_hook")
    assert hook == pytest.approx({"encoder/m": WEIGHTS["m"], "encoder/i": WEIGHTS["i"], "head/m+i": WEIGHTS["m+i"]})


def test_normalized_rates_are_three_times_the_weights_and_clipped() -> None:
    free = learning_rates(ratios(), ["m", "i"], "m+i")
    assert free == pytest.approx({"encoder/m": 0.0858549, "encoder/i": 2.8045908, "head/m+i": 0.1095543}, rel=1e-5)
    assert sum(free.values()) / 3 == pytest.approx(1)
    clipped = learning_rates(ratios(), ["m", "i"], "m+i", clip=(0.1, 2.0))
    assert clipped == pytest.approx({"encoder/m": 0.1, "encoder/i": 2.0, "head/m+i": 0.1095543}, rel=1e-5)


def test_one_modality_keeps_its_rates() -> None:
    for variant in ("normalized", "upstream_product", "upstream_hook"):
        assert learning_rates({"m": 5.0}, ["m"], "m", variant) == {"encoder/m": 1, "head/m": 1}  # type: ignore[arg-type]


def test_what_has_no_ratio_weighs_its_share() -> None:
    """{m} is held by nobody: w_m = 1/|I|, the rest is shared by ratio."""
    assert weights({"i": 3.0, "m+i": 1.0}, ["m", "i", "m+i"]) == pytest.approx({"m": 1 / 3, "i": 0.5, "m+i": 1 / 6})
    assert weights({}, ["m", "i", "m+i"]) == pytest.approx(dict.fromkeys(["m", "i", "m+i"], 1 / 3))
    assert weights({"m": 0.0, "i": 0.0}, ["m", "i"]) == {"m": 0.5, "i": 0.5}


def test_no_overfitting_gives_no_infinite_rate() -> None:
    flat = ratio(Losses(0.7, 0.7), Losses(0.6, 0.6))  # O = 0
    assert flat == math.inf
    assert winsorised({"a": flat, "b": 2.0, "c": 1.0}, 10.0)["a"] == pytest.approx(20.0), "10 times the median, 2"
    assert winsorised({"a": flat, "b": 2.0}, None) == {"a": 2.0, "b": 2.0}
    assert winsorised({"a": flat}, 10.0) == {"a": 1.0}
    assert ratio(Losses(0.7, 0.7), Losses(0.6, 0.6), epsilon=1e-4) == pytest.approx(0.1 / (1e-4 * 0.65**2))
    assert ratio(Losses(0.7, 0.7), Losses(0.7, 0.7)) == 0.0, "neither O nor G"


def test_an_improvement_is_a_fall_of_the_validation_loss() -> None:
    worse, better = Losses(0.5, 0.8), Losses(0.5, 0.6)
    start = Losses(0.6, 0.7)
    assert ratio(start, worse, 1e-4, "improvement") == 0.0 < ratio(start, worse, 1e-4, "absolute")
    assert ratio(start, better, 1e-4, "improvement") == ratio(start, better, 1e-4, "absolute")


def test_overfitting_is_the_growth_of_the_gap() -> None:
    assert overfitting(BEFORE["m"], NOW["m"]) == pytest.approx(0.07)


def test_smoothing_keeps_what_is_new_or_gone() -> None:
    assert smoothed({"a": 1.0, "gone": 4.0}, {"a": 3.0, "new": 2.0}, 0.5) == {"a": 2.0, "gone": 4.0, "new": 2.0}


loss = st.floats(0.0, 20.0)


@given(st.lists(st.tuples(loss, loss, loss, loss), min_size=1, max_size=7), st.sampled_from([0.0, 1e-4]))
def test_rates_are_finite_whatever_the_losses(rows: list[tuple[float, float, float, float]], epsilon: float) -> None:
    names = [f"m{k}" for k in range(len(rows) - 1)] + ["all"]
    raw = {n: ratio(Losses(a, b), Losses(c, d), epsilon) for n, (a, b, c, d) in zip(names, rows, strict=True)}
    cut = winsorised(raw, 10.0)
    for variant in ("normalized", "upstream_product", "upstream_hook"):
        rates = learning_rates(cut, names[:-1] or ["m"], "all", variant, (0.1, 3.0))  # type: ignore[arg-type]
        assert all(math.isfinite(rate) and 0 <= rate <= 3 for rate in rates.values())
