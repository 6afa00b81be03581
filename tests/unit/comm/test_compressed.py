"""Updates in fewer bytes: what codecs keep, what crosses, what error feedback owes; ranks are threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedhpc.comm.codecs import Bf16, Int8, TopK
from fedhpc.comm.collectives import Collectives
from fedhpc.comm.compressed import RESIDUAL, Codec, CompressedMean
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.sums import Sums
from fedhpc.comm.updates import Announced, Posting
from fedhpc.interfaces import Contribution, Reduced

from .test_robust_rules import CPU, block, client_update
from .together import ThreadCollectives, together

WEIGHTS, STATISTICS = 5700, 19  # of client_update


def alone() -> Collectives:
    return Collectives(Mesh(0, 1, 1, None), Ledger(), 1 << 20)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bf16_keeps_8_bits_and_sends_2_bytes() -> None:
    values = torch.tensor([[1.0, -2.5, 1 + 2**-7, 1 + 2**-9, 3e-20, -1e30, 0.0, 0.1] * 2])
    payload = Bf16().encode(values, drawn(0))
    assert payload.shape == (1, Bf16().slice_bytes(16)) == (1, 32)
    back = Bf16().decode(payload)
    assert back[0, :4].tolist() == [1.0, -2.5, 1 + 2**-7, 1.0]
    assert torch.all((back - values).abs() <= values.abs() * 2**-8)


def test_int8_is_right_in_expectation_and_never_off_by_a_level() -> None:
    codec = Int8(16)
    values = torch.stack([torch.linspace(-1, 0.7, 16), torch.zeros(16), torch.linspace(0, 1e-3, 16)]).view(1, 48)
    payloads = [codec.encode(values, drawn(k)) for k in range(2000)]
    assert payloads[0].shape == (1, codec.slice_bytes(48)) == (1, 48 + 3 * 4)
    found = torch.stack([codec.decode(p)[0] for p in payloads])
    scale = torch.tensor([1 / 127, 0.0, 1e-3 / 127]).repeat_interleave(16)
    assert torch.all((found - values).abs() <= scale * 1.0001)
    # A draw's standard deviation is half a level at most: 5 of the mean's are 5 * 0.5 / sqrt(2000) = 0.056 levels.
    assert torch.all((found.mean(0) - values[0]).abs() <= 0.056 * scale + 1e-12)
    assert torch.any((found.amax(0) - found.amin(0)) > 0.9 * scale), "rounding is random"
    assert torch.equal(found[:, 0], torch.full((2000,), -1.0)), "the largest value is a level itself"


def test_top_k_sends_the_largest() -> None:
    codec = TopK(0.3)
    places, values = codec.decode(codec.encode(torch.tensor([0.1, -5.0, 2.0, 0.0, 3.0, -0.2, 1.0])))
    assert (places.tolist(), values.tolist()) == ([1, 2, 4], [-5.0, 2.0, 3.0])
    assert codec.payload_bytes(7) == 24


def exchange(
    collectives: Collectives,
    codec: Codec,
    placed: list[list[int]],
    states: dict[int, dict[str, Any]] | None = None,
    lost: frozenset[int] = frozenset(),
    index: int = 0,
) -> Reduced:
    mean = CompressedMean(
        codec,
        lambda client: drawn(1000 * index + client),
        None if states is None else states.__getitem__,
        Sums(collectives, "fixed_point", 32),
        Announced(client_update(0), ("loss",), 8, CPU, "reduce", Posting(placed, lost)),
    )
    for client in placed[collectives.mesh.slot]:
        mean.add(Contribution(client_update(client + 10 * index), float(client + 1), {"loss": float(client)}), client)
    return mean.finish()


@pytest.mark.parametrize("codec", [Bf16(), Int8(256), Int8(16), TopK(0.01), TopK(1.0)])
def test_any_number_of_ranks_gives_the_same_bits(codec: Codec) -> None:
    one = exchange(alone(), codec, [[5, 0, 1, 2, 3, 4, 7]], lost=frozenset({7}))
    for placed in ([[0, 3, 5], [1, 2, 4, 7]], [[1, 7], [], [0, 2, 5, 4], [3]]):

        def play(collectives: ThreadCollectives, placed: list[list[int]] = placed) -> Reduced:
            return exchange(collectives, codec, placed, lost=frozenset({7}))

        for reduced in together(len(placed), play):
            for name in one.mean:
                assert torch.equal(reduced.mean[name].flat, one.mean[name].flat)
            assert (reduced.metrics, reduced.weight) == (one.metrics, one.weight)


@pytest.mark.parametrize(
    ("codec", "error"), [(Bf16(), 2**-8), (Int8(256), 0.02), (TopK(0.25), 0.75), (TopK(1.0), 1e-6)]
)
def test_the_mean_is_near_that_of_the_updates_and_the_ledger_says_how_near(codec: Codec, error: float) -> None:
    collectives = alone()
    reduced = exchange(collectives, codec, [list(range(6))])
    weights = {c: (c + 1) / 21 for c in range(6)}
    gap = norm = 0.0
    for name, found in reduced.mean.items():
        expected = sum(w * client_update(c)[name].flat for c, w in weights.items())
        layout = found.layout
        gap += float((found.trainable - expected[: layout.trainable_numel]).square().sum())
        norm += float(expected.square().sum())
        torch.testing.assert_close(found.buffers, expected[layout.trainable_numel :], atol=1e-6, rtol=1e-5)
    assert (gap / norm) ** 0.5 < error
    (entry,) = [e for e in collectives.ledger.entries if e.revealed]
    assert (entry.revealed, entry.by) == (("update",), tuple(range(6)))
    assert entry.error is not None and entry.error < error
    assert codec == TopK(1.0) or entry.error > error / 20
    assert entry.exact_bytes == 8 * (WEIGHTS + STATISTICS)


def test_the_ledger_counts_what_each_rank_hands_over() -> None:
    placed = [[0, 1], [2]]

    def sent(codec: Codec) -> list[int]:
        def play(collectives: ThreadCollectives) -> int:
            exchange(collectives, codec, placed)
            (entry,) = [e for e in collectives.ledger.entries if e.revealed]
            return entry.num_bytes

        return together(2, play)

    k = 57  # 1 % of 5700
    assert sent(TopK(0.01)) == [2 * (8 * k + 4 * STATISTICS)] * 2, "padded to the rank with the most clients"
    weights, statistics = 12 * 256, 16  # of each of the two slices: 5700 weights are 23 blocks of 256
    row = 2 * (weights + 4 * weights // 256 + 4 * statistics)
    down = 4 * (weights + statistics)
    assert sent(Int8(256)) == [2 * row + down, row + down]
    weights = 2864  # 5700 are 357 granules of 16
    row = 2 * (2 * weights + 4 * statistics)
    assert sent(Bf16()) == [2 * row + 4 * (weights + statistics), row + 4 * (weights + statistics)]


def test_error_feedback_owes_what_was_not_sent() -> None:
    """What was sent in all rounds and what is owed at the end come to all updates; without a state it is lost."""
    states: dict[int, dict[str, Any]] = {0: {}}
    sent = torch.zeros(WEIGHTS)
    updates = torch.zeros(WEIGHTS)
    for index in range(4):
        reduced = exchange(alone(), TopK(0.05), [[0]], states, index=index)
        sent += torch.cat([b.trainable for b in reduced.mean.values()])
        updates += torch.cat([b.trainable for b in client_update(10 * index).values()])
    torch.testing.assert_close(sent + states[0][RESIDUAL], updates, atol=1e-5, rtol=0)
    assert float((sent - updates).norm() / updates.norm()) > 0.3
    plain = [exchange(alone(), TopK(0.05), [[0]], index=i) for i in range(2)]
    fed = [exchange(alone(), TopK(0.05), [[0]], {0: {}} if i == 0 else states, index=i) for i in range(2)]
    assert torch.equal(plain[0].mean["head"].flat, fed[0].mean["head"].flat)
    assert not torch.equal(plain[1].mean["head"].flat, fed[1].mean["head"].flat)


def test_a_client_of_weight_0_owes_all_of_its_update() -> None:
    states: dict[int, dict[str, Any]] = {0: {}, 1: {}}
    like = {"net": block(torch.zeros(32), torch.zeros(0))}
    announced = Announced(like, (), 2, CPU, "reduce", Posting([[0, 1]]))
    mean = CompressedMean(TopK(0.1), drawn, states.__getitem__, Sums(alone(), "fixed_point", 32), announced)
    update = {"net": block(torch.arange(32.0), torch.zeros(0))}
    mean.add(Contribution(update, 0.0), 0)
    mean.add(Contribution(update, 2.0), 1)
    assert mean.finish().mean["net"].flat[-4:].tolist() == [28.0, 29.0, 30.0, 31.0]
    assert torch.equal(states[0][RESIDUAL], torch.arange(32.0))
    assert states[1][RESIDUAL].tolist() == [*range(28), 0, 0, 0, 0]
