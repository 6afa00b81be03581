"""CKA against NumPy float64 of E.2's formulas, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.metrics.cka import linear_cka, linear_vector, unbiased_cka, unbiased_vector

Array = np.ndarray


def draw(seed: int, n: int, d: int) -> Array:
    return np.random.default_rng(seed).normal(size=(n, d))


def by_features(x: Array, y: Array) -> float:
    """Kornblith's form over features, O(n d^2)."""
    x, y = x - x.mean(0), y - y.mean(0)
    norm = np.linalg.norm
    return float(norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


def hsic_1(x: Array, y: Array) -> float:
    """E.2 as written."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    mixed = one @ k @ m @ one
    product = (one @ k @ one) * (one @ m @ one)
    return float((np.trace(k @ m) + product / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed) / (n * (n - 3)))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(4, 20), st.integers(1, 12), st.integers(1, 12))
def test_both_are_the_published_formulas(seed: int, n: int, d: int, e: int) -> None:
    x, y = draw(seed, n, d), draw(seed + 1, n, e)
    x[:, 0] += 3  # the unbiased form needs no centring before
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(by_features(x, y), abs=1e-9)
    xs, ys = (x, draw(seed + 2, 7, d)), (y, draw(seed + 3, 7, e))
    cross = sum(hsic_1(a, b) for a, b in zip(xs, ys, strict=True))
    norms = sum(hsic_1(a, a) for a in xs) * sum(hsic_1(b, b) for b in ys)
    found = unbiased_cka([torch.tensor(a) for a in xs], [torch.tensor(b) for b in ys])
    assert found == pytest.approx(cross / norms**0.5, abs=1e-9)


def test_rotation_and_scale_change_nothing() -> None:
    x = draw(0, 30, 8)
    rotation = np.linalg.qr(draw(1, 8, 8))[0]
    a, b = torch.tensor(x), torch.tensor(5 * x @ rotation + 2)
    assert linear_cka(a, b) == pytest.approx(1.0, abs=1e-9)
    assert unbiased_cka([a[:15], a[15:]], [b[:15], b[15:]]) == pytest.approx(1.0, abs=1e-9)


def test_the_biased_estimate_is_inflated_when_samples_are_fewer_than_features() -> None:
    """ALGORITHMS.md D.4: independent Gaussians, n = 64, d = 256: 0.80 biased, 0.00 unbiased."""
    pairs = [(torch.tensor(draw(2 * s, 64, 256)), torch.tensor(draw(2 * s + 1, 64, 256))) for s in range(20)]
    assert np.mean([linear_cka(x, y) for x, y in pairs]) == pytest.approx(0.80, abs=0.01)
    assert np.mean([unbiased_cka([x], [y]) for x, y in pairs]) == pytest.approx(0.0, abs=0.02)


def test_what_cannot_be_compared() -> None:
    assert float(linear_vector(torch.ones(5, 3)).abs().sum()) == 0, "equal rows have nothing in common with anything"
    with pytest.raises(ValueError, match="batches of 4 rows or more, one has 3"):
        unbiased_vector([torch.randn(8, 2), torch.randn(3, 2)])
