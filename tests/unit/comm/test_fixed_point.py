"""Exact sums: order, grouping and number of ranks cannot change a bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.comm.fixed_point import CHUNK, FixedPoint, as_float32, mean_into

terms = st.lists(
    st.tuples(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), st.floats(0.001953125, 1000, width=32)),
    min_size=1,
    max_size=8,
)


def total_of(parts: list[tuple[list[float], float]], max_terms: int) -> torch.Tensor:
    fixed = FixedPoint(32, max_terms)
    total = torch.zeros(3, dtype=torch.int64)
    for values, weight in parts:
        fixed.add(total, torch.tensor(values), weight, "block")
    return total


@given(terms, st.randoms())
def test_order_and_grouping_do_not_matter(parts: list[tuple[list[float], float]], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    cut = len(parts) // 2
    whole = total_of(parts, len(parts))
    assert torch.equal(whole, total_of(shuffled, len(parts)))
    assert torch.equal(whole, total_of(parts[:cut], len(parts)) + total_of(parts[cut:], len(parts)))


@given(terms)
def test_the_weighted_mean_is_right(parts: list[tuple[list[float], float]]) -> None:
    fixed = FixedPoint(32, len(parts))
    weight = sum(w for _, w in parts)
    out = torch.empty(3)
    mean_into(out, total_of(parts, len(parts)), fixed.encode_scalar(weight, "weight"))
    expected = torch.tensor([[v * w for v in values] for values, w in parts], dtype=torch.float64).sum(0) / weight
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 3 * CHUNK))
def test_chunks_join_without_a_seam(numel: int) -> None:
    values = torch.linspace(-3, 3, numel)
    total = torch.zeros(numel, dtype=torch.int64)
    FixedPoint(32, 1).add(total, values, 2.0, "block")
    assert torch.equal(total, (values.double() * 2.0**33).round().long())


def test_the_resolution_is_that_of_the_fraction_bits() -> None:
    fixed = FixedPoint(20, 4)
    total = torch.zeros(1, dtype=torch.int64)
    fixed.add(total, torch.tensor([0.3]), 1.0, "block")
    assert abs(float(fixed.decode(total)) - 0.3) <= 2.0**-21 + 1e-8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    total = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="block encoder/image: .*not finite.*learning_rate"):
        FixedPoint(32, 2).add(total, torch.tensor([0.0, value]), 1.0, "block encoder/image")


def test_a_value_out_of_range_is_refused_with_the_cure_that_works() -> None:
    total = torch.zeros(1, dtype=torch.int64)
    value = torch.tensor([1e6])
    with pytest.raises(ValueError, match="block head: .*fraction_bits: (\\d+), or") as error:
        FixedPoint(32, 10).add(total, value, 1000.0, "block head")
    assert int(total) == 0, "refused before anything is encoded"
    bits = int(str(error.value).split("Set aggregation.fraction_bits: ")[1].split(",")[0])
    fixed = FixedPoint(bits, 10)
    for _ in range(10):
        fixed.add(total, value, 1000.0, "block head")
    assert float(fixed.decode(total)) == 10 * 1e9
    with pytest.raises(ValueError):
        FixedPoint(bits + 1, 10).add(total, value, 1000.0, "block head")


@given(st.floats(0, 1e6))
def test_weights_are_rounded_once(weight: float) -> None:
    assert as_float32(weight) == float(torch.tensor(weight, dtype=torch.float32))
