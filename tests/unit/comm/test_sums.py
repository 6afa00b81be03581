"""Weighted means on one rank; tests/dist has the same on several."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh, build_mesh
from fedhpc.comm.sums import ArithmeticName, Sums
from fedhpc.interfaces import Block, Contribution, Layout, TensorSpec

CPU = torch.device("cpu")


def block(values: list[float]) -> Block:
    flat = torch.tensor(values, dtype=torch.float32)
    layout = Layout((TensorSpec("w", (len(values),), (1,), 0, True),), len(values), len(values))
    return Block(flat, layout)


def sums(arithmetic: ArithmeticName = "fixed_point", bucket_bytes: int = 1 << 20) -> Sums:
    return Sums(Collectives(Mesh(0, 1, 1, None), Ledger(), bucket_bytes), arithmetic, 32)


LIKE = {"a": block([0.0] * 5), "b": block([0.0] * 3)}
owners = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.floats(0.125, 50, width=32), st.floats(-2, 2, width=32)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("arithmetic", ["fixed_point", "float32"])
@pytest.mark.parametrize("bucket_bytes", [16, 24, 1 << 20])
@given(owners)
def test_each_block_is_averaged_over_its_owners(
    arithmetic: ArithmeticName, bucket_bytes: int, clients: list[tuple[bool, bool, float, float]]
) -> None:
    mean = sums(arithmetic, bucket_bytes).weighted_mean(LIKE, ("loss",), len(clients), CPU, "reduce")
    for owns_a, owns_b, weight, value in clients:
        blocks = {}
        if owns_a:
            blocks["a"] = block([value * (i + 1) for i in range(5)])
        if owns_b:
            blocks["b"] = block([value - i for i in range(3)])
        mean.add(Contribution(blocks, weight, {"loss": value}))
    reduced = mean.finish()
    for name, make, position in (("a", lambda v, i: v * (i + 1), 0), ("b", lambda v, i: v - i, 1)):
        having = [(c[2], c[3]) for c in clients if c[position]]
        total = sum(w for w, _ in having)
        assert reduced.weight[name] == pytest.approx(total)
        if not having:
            assert name not in reduced.mean
            continue
        expected = [sum(w * make(v, i) for w, v in having) / total for i in range(len(LIKE[name].flat))]
        assert reduced.mean[name].flat.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    loss = sum(c[2] * c[3] for c in clients) / sum(c[2] for c in clients)
    assert reduced.metrics["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-5)


def test_buckets_do_not_change_a_bit() -> None:
    results = []
    for bucket_bytes in (8, 40, 1 << 20):
        mean = sums(bucket_bytes=bucket_bytes).weighted_mean(LIKE, (), 2, CPU, "reduce")
        for k in range(2):
            mean.add(Contribution({"a": block([0.1 * k, 0.2, 0.3, 0.4, 0.5]), "b": block([1.0, k, 3.0])}, 1.7 + k))
        results.append(torch.cat([b.flat for b in mean.finish().mean.values()]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


def test_contributions_that_do_not_fit_are_refused() -> None:
    mean = sums().weighted_mean(LIKE, ("loss",), 2, CPU, "reduce")
    with pytest.raises(ValueError, match="weight -1"):
        mean.add(Contribution({}, -1.0, {"loss": 0.0}))
    with pytest.raises(ValueError, match="weight nan"):
        mean.add(Contribution({}, float("nan"), {"loss": 0.0}))
    with pytest.raises(ValueError, match="'c'"):
        mean.add(Contribution({"c": block([1.0])}, 1.0, {"loss": 0.0}))
    with pytest.raises(ValueError, match=r"metrics \[\], announced were \['loss'\]"):
        mean.add(Contribution({}, 1.0))
    with pytest.raises(ValueError, match="no client contributed"):
        mean.finish()


def test_total_is_exact_and_checks_shapes() -> None:
    exchange = sums()
    values = [torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.25, 2.0], dtype=torch.float64)]
    assert exchange.total(values, (2,), 2, CPU).tolist() == [0.75, 1.0]
    assert exchange.total([], (2, 2), 2, CPU).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert exchange.total([torch.tensor(3.0)], (), 1, CPU).shape == ()
    with pytest.raises(ValueError, match=r"shape \(2,\), but shape=\(3,\)"):
        exchange.total(values, (3,), 2, CPU)


def test_the_ledger_counts_what_is_handed_over() -> None:
    exchange = sums()
    mean = exchange.weighted_mean(LIKE, ("loss",), 1, CPU, "reduce")
    mean.add(Contribution({"a": block([1.0] * 5)}, 1.0, {"loss": 0.5}))
    mean.finish()
    page = exchange.collectives.ledger.close_round(3)
    assert page["round"] == 3
    assert page["bytes"] == 8 * (5 + 3 + 3 + 1), "two blocks, two weights and a total, one metric"
    assert page["revealed"] == []
    assert exchange.collectives.ledger.close_round(4)["bytes"] == 0


def test_rows_say_what_they_reveal() -> None:
    collectives = sums().collectives
    table = collectives.all_rows(
        {1: torch.tensor([1.0, 2.0])}, 3, (2,), CPU, operation="gather", what="loss", revealed=("loss",)
    )
    assert table.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert collectives.ledger.close_round(0)["revealed"] == ["loss"]


def test_one_process_is_a_mesh_of_one() -> None:
    mesh = build_mesh(1, "cpu")
    assert (mesh.rank, mesh.world, mesh.num_slots, mesh.slot, mesh.group) == (0, 1, 1, 0, None)
    with pytest.raises(ValueError, match=r"shard\(2\).*WORLD_SIZE = 1.*mesh.shard: 1"):
        build_mesh(2, "cpu")
