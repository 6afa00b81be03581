"""Masked sums: right for any drop pattern that leaves enough, refused otherwise, and silent about single clients."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhpc.comm.graph import threshold
from fedhpc.comm.ledger import Entry
from fedhpc.comm.member import ProtocolError
from fedhpc.comm.secure import Contributors, Masks

from .together import ThreadCollectives, together

NUMEL = 40


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def exchange(
    collectives: ThreadCollectives,
    inputs: Mapping[int, Tensor],
    hosts: Mapping[int, int],
    lost: frozenset[int] = frozenset(),
    parts: Mapping[int, tuple[bool, ...]] | None = None,
    seed: int | None = None,
    times: int = 1,
) -> tuple[Tensor, ThreadCollectives, list[Entry]]:
    """One rank of masked sums of whole numbers: client -> values [n], client -> slot."""
    rank = collectives.mesh.slot
    maker = {} if seed is None else {"random": seeded(100 * seed + rank)}
    masks = Masks(collectives, 3, 7, **maker)  # type: ignore[arg-type]
    masks.begin(0)
    mine = [c for c in inputs if hosts[c] == rank]
    entries = []
    for _ in range(times):
        example = next(iter(inputs.values()))
        total = torch.zeros(-(-len(example) // collectives.granule) * collectives.granule, dtype=example.dtype)
        for client in mine:
            if client not in lost:
                total[: len(example)] += inputs[client]
        given = parts or dict.fromkeys(inputs, (True,))
        names = tuple(f"block {place}" for place in range(len(next(iter(given.values())))))
        flags = {c: given[c] for c in mine}
        entry = Entry("sum", "numbers", total.nbytes, 0.0)
        for _ in masks.buckets(total, Contributors(tuple(sorted(inputs)), names, flags, lost), entry):
            pass
        entries.append(entry)
    return total[: len(example)], collectives, entries


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    clients = draw(st.lists(st.integers(0, 1000), min_size=3, max_size=7, unique=True))
    world = draw(st.integers(1, 4))
    return {
        "world": world,
        "hosts": {c: draw(st.integers(0, world - 1)) for c in clients},
        "lost": frozenset(draw(st.sets(st.sampled_from(clients)))),
        "dtype": draw(st.sampled_from([torch.int64, torch.int32])),
        "bucket_bytes": draw(st.sampled_from([64, 1 << 20])),
    }


@settings(max_examples=60)
@given(cases())
def test_any_drop_pattern_that_leaves_enough_gives_the_sum_and_others_are_refused(case: dict[str, Any]) -> None:
    info = torch.iinfo(case["dtype"])
    inputs = {c: torch.randint(info.min, info.max, (NUMEL,), dtype=case["dtype"]) for c in case["hosts"]}
    left = [c for c in inputs if c not in case["lost"]]
    play = lambda ranks: exchange(ranks, inputs, case["hosts"], case["lost"])  # noqa: E731
    if 0 < len(left) < 3:
        with pytest.raises(ProtocolError, match=r"contributors, but aggregation.min_contributors = 3"):
            together(case["world"], play, case["bucket_bytes"])
        return
    needed = threshold(len(inputs))
    if case["world"] > 2:  # and more than any rank has of another's
        sizes = Counter(case["hosts"].values())
        needed = max([needed, *(size + 1 for size in sizes.values() if size < len(inputs))])
    if len(left) < needed:
        with pytest.raises(ProtocolError, match=r"holders of client \d+'s shares are needed, \d are left"):
            together(case["world"], play, case["bucket_bytes"])
        return
    for total, _, entries in together(case["world"], play, case["bucket_bytes"]):
        expected = torch.stack([inputs[c] for c in left]).sum(0, dtype=case["dtype"])
        assert torch.equal(total, expected)
        assert entries[0].by == tuple(sorted(left))
        assert entries[0].lost == tuple(sorted(case["lost"]))


def test_no_rank_holds_enough_shares_of_anothers_client() -> None:
    """Three ranks, of which one hosts three of five clients: it must not be able to look into the others alone."""
    hosts = {0: 0, 1: 1, 2: 2, 3: 2, 4: 2}
    inputs = {c: torch.arange(NUMEL) for c in hosts}
    for total, _, _ in together(3, lambda ranks: exchange(ranks, inputs, hosts, frozenset({4}))):
        assert torch.equal(total, 4 * torch.arange(NUMEL))
    with pytest.raises(ProtocolError, match="4 of the 5 holders of client [01]'s shares are needed, 3 are left"):
        together(3, lambda ranks: exchange(ranks, inputs, hosts, frozenset({3, 4})))


def test_a_sparse_graph_recovers_too() -> None:
    inputs = {c: torch.arange(NUMEL) * (c + 1) for c in range(52)}
    lost = frozenset({0, 7, 8, 21})
    results = together(3, lambda ranks: exchange(ranks, inputs, {c: c % 3 for c in inputs}, lost))
    for total, _, entries in results:
        assert torch.equal(total, torch.arange(NUMEL) * sum(c + 1 for c in inputs if c not in lost))
        assert entries[0].recovery_seconds > 0


# ----------------------------------------------------------------------------------------------- what others learn
def chi_square(words: Tensor) -> float:
    """Of the bytes against equal counts; 255 on average for uniform ones, with standard deviation 22.6."""
    counts = torch.bincount(words.contiguous().view(torch.uint8).long(), minlength=256).double()
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_single_masked_contribution_is_uniform(dtype: torch.dtype) -> None:
    """Three clients on three ranks; what rank 1 receives of client 0, whose values are all the same."""
    inputs = {c: torch.full((3 * 2**16,), 5 + c, dtype=dtype) for c in range(3)}
    results = together(3, lambda ranks: exchange(ranks, inputs, {0: 0, 1: 1, 2: 2}, seed=1))
    for word in results[1][1].sealed_words:
        assert chi_square(word) < 255 + 6 * 22.6
    assert chi_square(inputs[0]) > 1e6, "unmasked values must fail, or the test above shows nothing"


def test_changing_an_input_changes_nothing_that_another_rank_receives_except_the_sum() -> None:
    """Under the same secrets: no key, share or roll call depends on values; of the masked words those of the changed
    client's rank move by just the change, and each is uniform (the test above), so they say nothing."""
    hosts = {0: 0, 1: 0, 2: 1, 3: 2}
    inputs = {c: torch.arange(48) + c for c in hosts}
    change = torch.arange(48) ** 2
    play = lambda values: together(3, lambda ranks: exchange(ranks, values, hosts, seed=2))  # noqa: E731
    before, after = play(inputs), play(inputs | {0: inputs[0] + change})
    swapped = play(inputs | {0: inputs[0] + change, 1: inputs[1] - change})
    for rank in (1, 2):
        old, new, same = before[rank], after[rank], swapped[rank]
        assert torch.equal(new[0], old[0] + change)
        assert len(old[1].open_words) == 8, "announcements, shares, roll call, revealed shares of two others"
        assert all(torch.equal(a, b) for a, b in zip(old[1].open_words, new[1].open_words, strict=True))
        own = change.view(3, -1)[rank]
        moved = [b - a for a, b in zip(old[1].sealed_words, new[1].sealed_words, strict=True)]
        assert torch.equal(moved[0], own) and not moved[1].any()
        # A change that the sum does not show is not seen at all.
        received = zip(old[1].open_words + old[1].sealed_words, same[1].open_words + same[1].sealed_words, strict=True)
        assert all(torch.equal(a, b) for a, b in received)


def test_no_words_are_used_twice() -> None:
    inputs = {c: torch.zeros(48, dtype=torch.int64) for c in range(3)}
    _, ranks, _ = together(3, lambda ranks: exchange(ranks, inputs, {0: 0, 1: 1, 2: 2}, times=3))[0]
    words = torch.cat(ranks.sealed_words)
    assert len(words.unique()) == len(words)


def test_a_block_of_two_owners_is_refused_before_anything_of_it_is_sent() -> None:
    inputs = {c: torch.arange(NUMEL) for c in range(4)}
    parts = {0: (True, True), 1: (True, False), 2: (True, False), 3: (True, True)}
    seen: list[ThreadCollectives] = []

    def play(ranks: ThreadCollectives) -> None:
        seen.append(ranks)
        last = ranks.mesh.world - 1
        exchange(ranks, inputs, {0: 0, 1: 0, 2: last, 3: last}, parts=parts)

    for world in (1, 2):
        with pytest.raises(ProtocolError, match=r"round 0, exchange 0 \(sum\): block 1 has 2 contributors"):
            together(world, play)
    assert not any(ranks.sealed_words for ranks in seen)


def test_a_rank_without_clients_joins() -> None:
    inputs = {c: torch.arange(NUMEL) for c in range(3)}
    for total, _, _ in together(4, lambda ranks: exchange(ranks, inputs, {0: 1, 1: 1, 2: 3})):
        assert torch.equal(total, 3 * torch.arange(NUMEL))


# ------------------------------------------------------------------------------------------------- sharded clients
def test_every_shard_sums_its_own_stretch_without_who_is_lost() -> None:
    """3 slots x 2 shards; a shard's values of client c are c + 1 times its own numbers."""
    hosts = {0: 0, 1: 1, 2: 2, 3: 2, 4: 0}
    stretches = [torch.arange(NUMEL), torch.arange(NUMEL) ** 3]

    def play(ranks: ThreadCollectives) -> Any:
        own = stretches[ranks.mesh.shard_index]
        return exchange(ranks, {c: (c + 1) * own for c in hosts}, hosts, frozenset({3}))

    for rank, (total, _, entries) in enumerate(together(6, play, shard=2)):
        assert torch.equal(total, (1 + 2 + 3 + 5) * stretches[rank % 2])
        assert entries[0].lost == (3,) and entries[0].recovery_seconds > 0


def test_shards_of_a_client_share_no_words_even_under_the_same_secrets() -> None:
    """Two stretches under one stream would give away their difference."""
    inputs = {c: torch.zeros(48, dtype=torch.int64) for c in range(3)}
    hosts = {0: 0, 1: 1, 2: 2}
    results = together(6, lambda ranks: exchange(ranks, inputs, hosts, seed=3, times=2), shard=2)
    words = torch.cat([word for _, ranks, _ in results[:2] for word in ranks.sealed_words])
    assert len(words) == 2 * 2 * 2 * 16
    assert len(words.unique()) == len(words)
