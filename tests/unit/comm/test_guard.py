"""Client-level privacy inside a sum: the clip holds for the integers that are summed, the noise is as stated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.noise import NoiseSource
from fedhpc.comm.privacy import ClientGuard, update_norm
from fedhpc.comm.secure import Masks
from fedhpc.comm.sums import Sums
from fedhpc.interfaces import Block, Contribution, Layout, Reduced, TensorSpec

from .together import together

CPU = torch.device("cpu")
KEY = bytes(range(32))


def guard(**options: Any) -> ClientGuard:
    plain = {"clip": 0.5, "noise_multiplier": 2.0, "shares": 4, "fraction_bits": 32}
    return ClientGuard(NoiseSource(KEY), **{**plain, **options})


def block(values: torch.Tensor, padding: int = 0) -> Block:
    n = len(values)
    layout = Layout((TensorSpec("w", (n,), (1,), 0, True),), n + padding, n + padding)
    return Block(torch.cat([values, torch.zeros(padding)]), layout)


def round_of(updates: dict[int, torch.Tensor], world: int, secure: bool, lost: frozenset[int], **options: Any) -> Any:
    """One private mean over ranks; client -> update. What every rank has of it, all the same."""

    def play(collectives: Any) -> Reduced:
        masks = Masks(collectives, 3, 7) if secure else None
        if masks is not None:
            masks.begin(0)
        made = guard(**options)
        made.begin(0)
        sums = Sums(collectives, "fixed_point", 32, 64, masks, made)
        like = {"net": block(torch.zeros_like(next(iter(updates.values()))), padding=3)}
        mean = sums.weighted_mean(like, ("loss",), len(updates), CPU, "reduce", tuple(sorted(updates)), lost)
        for client in sorted(updates):
            if client % world == collectives.mesh.rank:
                mean.add(Contribution({"net": block(updates[client], padding=3)}, 1.0, {"loss": 9.0}), client)
        return mean.finish()

    results = together(world, play)
    assert all(torch.equal(r.mean["net"].flat, results[0].mean["net"].flat) for r in results)
    return results[0]


@pytest.mark.parametrize(("secure", "world"), [(False, 1), (True, 2)])
@pytest.mark.parametrize(("shares", "lost"), [(4, frozenset()), (3, frozenset({2}))], ids=["all", "one lost"])
def test_noise_has_the_stated_deviation_through_the_sum(
    secure: bool, world: int, shares: int, lost: frozenset[int]
) -> None:
    """Of n normal numbers, sum of squares over variance is chi-square with n degrees of freedom. Seeds are fixed."""
    n = 20_000
    updates = {c: torch.zeros(n) for c in range(4)}
    reduced = round_of(updates, world, secure, lost, shares=shares)
    arrived = 4 - len(lost)
    assert reduced.weight == {"net": arrived}
    noise = reduced.mean["net"].flat.double()[:n] * arrived
    stated = 2.0 * 0.5 * math.sqrt(arrived / shares)
    assert stats.kstest((noise / stated).numpy(), "norm").pvalue > 0.01
    square = float((noise / stated).square().sum())
    low, high = stats.chi2(n).ppf([0.005, 0.995])
    assert low < square < high, "2.6 standard deviations, each 0.5 % of the deviation"
    assert reduced.mean["net"].flat[n:].tolist() == [0, 0, 0], "padding stays zero"
    assert reduced.metrics == {}, "the clients' losses stay with them"


def test_masks_and_ranks_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = {c: torch.randn(500, generator=generator) for c in range(6)}
    ways = [(1, False), (1, True), (2, False), (2, True), (4, False), (4, True)]
    found = [round_of(updates, world, secure, frozenset(), shares=6).mean["net"].flat for world, secure in ways]
    assert all(torch.equal(one, found[0]) for one in found)


def test_no_rank_receives_a_sum_without_noise() -> None:
    """What travels between two ranks, without masks: each rank's own sum, with its own clients' shares in it."""
    n, updates = 5000, {c: torch.zeros(5000) for c in range(4)}

    def play(collectives: Any) -> list[torch.Tensor]:
        made = guard()
        made.begin(0)
        mean = Sums(collectives, "fixed_point", 32, guard=made).weighted_mean(
            {"net": block(updates[0])}, (), 4, CPU, "reduce", (0, 1, 2, 3)
        )
        for client in range(4):
            if client % 2 == collectives.mesh.rank:
                mean.add(Contribution({"net": block(updates[client])}, 1.0), client)
        mean.finish()
        return list(collectives.open_words)

    for words in together(2, play):
        (seen,) = words
        deviation = float(seen[2 : 2 + n].double().std()) / 2**32
        assert deviation == pytest.approx(1.0 * math.sqrt(2 / 4), rel=0.05), "two of four shares"


norms = st.floats(1e-6, 1e6)


@given(norms, st.integers(1, 400), st.integers(10, 40), st.integers(0, 2**31))
def test_the_clip_holds_for_the_integers(norm: float, numel: int, fraction_bits: int, seed: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    update = {"net": block(values * (norm / float(values.norm())))}
    made = guard(fraction_bits=fraction_bits)
    if math.sqrt(numel) * 2.0 ** -(fraction_bits + 1) >= 0.05:
        with pytest.raises(ValueError, match=r"too small for sums in steps of .* Set more aggregation.fraction_bits"):
            made.open(update)
        return
    made.open(update)
    clipped = made.clipped(Contribution(update, 1.0, {"loss": 1.0}), 0, update).blocks["net"].flat
    integers = (clipped * 2.0**fraction_bits).round().double()
    assert float(integers.norm()) <= 0.5 * 2.0**fraction_bits
    if norm < 0.4:
        assert torch.equal(clipped, update["net"].flat), "small updates stay as they are"
    elif norm > 0.5:
        assert float(clipped.norm()) > 0.44, "and large ones lose no more than they must"


def test_norms_go_over_all_blocks() -> None:
    assert update_norm({"a": block(torch.tensor([3.0, 0.0])), "b": block(torch.tensor([-4.0]))}) == 5.0


def test_what_has_no_bounded_norm_is_refused() -> None:
    made, like = guard(), {"net": block(torch.zeros(3))}
    with pytest.raises(ValueError, match="client 7 has weight 2 and 1 of 1 blocks"):
        made.clipped(Contribution(like, 2.0), 7, like)
    with pytest.raises(ValueError, match="0 of 1 blocks"):
        made.clipped(Contribution({}, 1.0), 7, like)
    spec = TensorSpec("var", (3,), (1,), 0, False)
    with pytest.raises(ValueError, match=r"running statistics of net.*local_blocks: \[batch_norm\]"):
        made.open({"net": Block(torch.zeros(3), Layout((spec,), 3, 0))})
    alone = Sums(Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20), "fixed_point", 32, guard=guard())
    mean = alone.weighted_mean(like, (), 1, CPU, "reduce", (0,))
    with pytest.raises(ValueError, match="not finite"):
        mean.add(Contribution({"net": block(torch.tensor([1.0, math.nan, 0.0]))}, 1.0), 0)


def test_the_clip_moves_to_the_quantile() -> None:
    """Norms 1 to 9, quantile 0.5: by hand, C <- C exp(-0.2 (b - 0.5)), b the share of norms within C; to 5 or near it.
    Without noise on the count, which is tested by itself below."""
    made, clip = guard(clip=0.5, shares=9, count_noise=1e-12, quantile=0.5, step_size=0.2), 0.5
    updates = {c: {"net": block(torch.tensor([float(c + 1)]))} for c in range(9)}
    for index in range(60):
        made.begin(index)
        made.open(updates[0])
        inside = [made.clipped(Contribution(u, 1.0), c, u).metrics["within"] for c, u in updates.items()]
        made.learn({"within": sum(inside) / 9})
        clip *= math.exp(-0.2 * (sum(c + 1 <= clip for c in range(9)) / 9 - 0.5))
        assert made.clip == pytest.approx(clip, rel=1e-6)
    assert 4.5 < made.clip < 5.5
    other = guard()
    other.load_state_dict(made.state_dict())
    assert other.clip == made.clip


def test_the_count_has_its_noise_in_shares() -> None:
    made, like = guard(shares=16, count_noise=3.0), {"net": block(torch.tensor([0.1]))}
    made.begin(0)
    bits = torch.tensor([made.clipped(Contribution(like, 1.0), c, like).metrics["within"] for c in range(1000)])
    noise = (bits.double() - 0.5) / (3.0 / math.sqrt(16))
    assert stats.kstest(noise.numpy(), "norm").pvalue > 0.01
    assert guard().metrics == () and made.metrics == ("within",)
