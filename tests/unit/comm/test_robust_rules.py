"""Robust rules against numbers by hand and plain NumPy; the exchange around them, on ranks as threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.robust_rules import (
    Rule,
    Slices,
    centred_clipping,
    krum,
    krum_scores,
    median,
    norm_filter,
    trimmed_mean,
)
from fedhpc.comm.sums import Sums
from fedhpc.comm.updates import Announced, Posting, RobustMean, RowShape
from fedhpc.interfaces import Block, Contribution, Layout, Reduced, TensorSpec

from .together import ThreadCollectives, together

CPU = torch.device("cpu")


def whole(rows: list[list[float]], centre: list[float] | None = None) -> Slices:
    """All coordinates on one rank."""
    values = torch.tensor(rows)

    def over(fn: Callable[[Tensor], Tensor], part: Tensor, shape: tuple[int, ...]) -> Tensor:
        return fn(part.double())

    return Slices(values, torch.tensor(centre or [0.0] * values.shape[1]), over)


ROWS = [[1.0, 10.0], [2.0, 30.0], [3.0, 20.0], [100.0, -5.0]]


def test_median_of_an_even_and_an_odd_number() -> None:
    assert median(whole(ROWS)).aggregate.tolist() == [2.5, 15.0]
    assert median(whole(ROWS[:3])).aggregate.tolist() == [2.0, 20.0]


def test_trimmed_mean_leaves_out_both_ends() -> None:
    assert trimmed_mean(1)(whole(ROWS)).aggregate.tolist() == [2.5, 15.0]
    assert trimmed_mean(1)(whole([*ROWS, [4.0, 1.0]])).aggregate.tolist() == [3.0, pytest.approx(31 / 3)]


def test_krum_scores_and_choice() -> None:
    """Five clients on a line at 0, 1, 3, 7, 20, f = 1: squared distances to the n - f - 2 = 2 nearest others."""
    line = [[0.0], [1.0], [3.0], [7.0], [20.0]]
    distances = whole(line).distances()
    assert krum_scores(distances, 1) == [1 + 9, 1 + 4, 4 + 9, 16 + 36, 169 + 289]
    verdict = krum(1)(whole(line))
    assert (verdict.aggregate.tolist(), verdict.kept) == ([1.0], (1,))
    several = krum(1, None)(whole(line))  # n - f = 4: all but the outlier
    assert (several.aggregate.tolist(), several.kept) == ([2.75], (0, 1, 2, 3))
    assert krum(1, 2)(whole(line)).kept == (0, 1)


def test_norm_filter_drops_the_largest() -> None:
    verdict = norm_filter(1)(whole([[3.0, 4.0], [0.0, -5.1], [1.0, 0.0]]))
    assert (verdict.aggregate.tolist(), verdict.kept) == ([2.0, 2.0], (0, 2))
    assert norm_filter(1)(whole([[1.0], [-1.0], [1.0]])).kept == (0, 1), "of equal norms the lower clients stay"


def test_centred_clipping_by_hand() -> None:
    """From v = 0 with tau = 1: (1, 0) stays, (0, 4) is cut to (0, 1), (-3, -4) to (-0.6, -0.8)."""
    rows = [[1.0, 0.0], [0.0, 4.0], [-3.0, -4.0]]
    once = centred_clipping(1.0, 1)(whole(rows)).aggregate
    assert once.tolist() == [pytest.approx(0.4 / 3), pytest.approx(0.2 / 3)]
    v = np.array([2.0, 0.0])  # from elsewhere, two steps, the radius the median distance
    for _ in range(2):
        away = np.array(rows) - v
        norms = np.linalg.norm(away, axis=1)
        v = v + (away * np.minimum(1, np.median(norms) / norms)[:, None]).mean(0)
    assert centred_clipping(None, 2)(whole(rows, [2.0, 0.0])).aggregate.tolist() == pytest.approx(v.tolist())


updates = st.integers(5, 9).flatmap(
    lambda n: st.lists(st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4), min_size=n, max_size=n)
)


@settings(max_examples=60)
@given(updates)
def test_rules_against_plain_numpy(rows: list[list[float]]) -> None:
    x = np.array(rows, np.float64)
    n = len(x)
    assert median(whole(rows)).aggregate.tolist() == pytest.approx(np.median(x, axis=0).tolist(), abs=1e-5)
    trimmed = np.sort(x, axis=0)[1 : n - 1].mean(0)
    assert trimmed_mean(1)(whole(rows)).aggregate.tolist() == pytest.approx(trimmed.tolist(), abs=1e-5)
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    scores = [np.sort(np.delete(d[i], i))[: n - 3].sum() for i in range(n)]
    assert krum_scores(whole(rows).distances(), 1) == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("rule", [median, trimmed_mean(2), krum(2), krum(2, None), norm_filter(2),
                                  centred_clipping(None, 3)])  # fmt: skip
def test_rules_stay_near_the_honest_where_the_mean_does_not(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = 1 + 0.1 * torch.randn(8, 50, generator=generator)
    rows = torch.cat([honest, -20 * honest[:2]])
    found = rule(whole(rows.tolist())).aggregate
    assert torch.nn.functional.cosine_similarity(found, honest.mean(0), dim=0) > 0.9
    assert torch.nn.functional.cosine_similarity(rows.mean(0), honest.mean(0), dim=0) < 0


# --------------------------------------------------------------------------------------------- the exchange
def block(weights: Tensor, statistics: Tensor) -> Block:
    t, b = len(weights), len(statistics)
    layout = Layout((TensorSpec("w", (t,), (1,), 0, True), TensorSpec("s", (b,), (1,), t, False)), t + b, t)
    return Block(torch.cat([weights, statistics]), layout)


def client_update(client: int, scale: float = 1.0) -> dict[str, Block]:
    generator = torch.Generator().manual_seed(client)
    draw = [torch.randn(n, generator=generator) * scale for n in (700, 3, 5000, 16)]
    return {"encoder": block(draw[0], draw[1]), "head": block(draw[2], draw[3])}


def exchange(collectives: Collectives, rule: Rule, placed: list[list[int]], lost: frozenset[int]) -> Reduced:
    sums = Sums(collectives, "fixed_point", 32)
    centre = client_update(99)
    posting = Posting(placed, lost)
    mean = RobustMean(rule, centre, sums, Announced(client_update(0), ("loss",), 8, CPU, "reduce", posting))
    for client in placed[collectives.mesh.slot]:
        scale = -30.0 if client == 4 else 1.0
        mean.add(Contribution(client_update(client, scale), float(client), {"loss": float(client)}), client)
    return mean.finish()


@pytest.mark.parametrize("rule", [median, trimmed_mean(1), krum(1), krum(1, None), norm_filter(1),
                                  centred_clipping(None, 2)])  # fmt: skip
def test_any_number_of_ranks_gives_the_same_bits(rule: Rule) -> None:
    alone = Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20)
    one = exchange(alone, rule, [[5, 0, 1, 2, 3, 4, 7]], frozenset({7}))
    for placed in ([[0, 3, 5], [1, 2, 4, 7]], [[1, 7], [], [0, 2, 5, 4], [3]]):

        def play(collectives: ThreadCollectives, placed: list[list[int]] = placed) -> tuple[Reduced, Any]:
            return exchange(collectives, rule, placed, frozenset({7})), collectives.ledger.entries

        for reduced, entries in together(len(placed), play):
            for name in one.mean:
                assert torch.equal(reduced.mean[name].flat, one.mean[name].flat)
            assert reduced.metrics == one.metrics == {"loss": pytest.approx(15 / 6)}
            assert reduced.weight == {"encoder": 6.0, "head": 6.0}
            shown = [e for e in entries if e.revealed]
            assert [(e.revealed, e.by, e.lost) for e in shown] == [(("update",), (0, 1, 2, 3, 4, 5), (7,))]
            assert 4 not in shown[0].kept


def test_an_update_lies_in_its_row_and_comes_back() -> None:
    shape = RowShape({name: b.layout for name, b in client_update(0).items()})
    assert (shape.trainable, shape.numel) == (5700, 5719)
    row = torch.zeros(6000)
    shape.write(row, client_update(3))
    for name, found in shape.read(row).items():
        assert torch.equal(found.flat, client_update(3)[name].flat)


def test_contributions_that_cannot_be_compared_are_refused() -> None:
    alone = Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20)
    like = client_update(0)
    announced = Announced(like, ("loss",), 3, CPU, "reduce", Posting([[0, 1, 2]]))
    mean = RobustMean(median, None, Sums(alone, "fixed_point", 32), announced)
    with pytest.raises(ValueError, match=r"client 1 contributes the blocks \['head'\], all of"):
        mean.add(Contribution({"head": like["head"]}, 1.0, {"loss": 0.0}), 1)
    spoilt = client_update(2)
    spoilt["head"].flat[5] = float("nan")
    with pytest.raises(ValueError, match="block head: the update of client 2 is not finite"):
        mean.add(Contribution(spoilt, 1.0, {"loss": 0.0}), 2)
    with pytest.raises(ValueError, match=r"has metrics \[\], announced were \['loss'\]"):
        mean.add(Contribution(like, 1.0), 0)
