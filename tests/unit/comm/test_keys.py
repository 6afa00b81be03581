"""Keys, streams and shares: published test vectors, and what each must not do."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.comm.graph import degree, neighbours, threshold
from fedhpc.comm.keys import CHUNK_BYTES, KeyPair, add_streams, derive, seal, unseal
from fedhpc.comm.shamir import PRIME, join, split

ZERO_KEY = bytes(32)


def test_two_agree_for_one_purpose() -> None:
    one, two, three = (KeyPair.new(os.urandom) for _ in range(3))
    assert one.agree(two.public, b"a") == two.agree(one.public, b"a")
    assert len({one.agree(two.public, b"a"), one.agree(two.public, b"b"), one.agree(three.public, b"a")}) == 3
    with pytest.raises(ValueError):
        one.agree(bytes(32), b"a")


def test_derivation_is_hkdf_sha256() -> None:
    # RFC 5869, A.3: no salt, no info; the first 32 of 42 bytes.
    assert derive(b"\x0b" * 22, b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_a_seal_binds_key_text_and_header() -> None:
    sealed = seal(b"k" * 32, b"text", b"header")
    assert unseal(b"k" * 32, sealed, b"header") == b"text"
    for key, text, header in (
        (b"l" * 32, sealed, b"header"),
        (b"k" * 32, sealed[:-1] + b"\0", b"header"),
        (b"k" * 32, sealed, b"other"),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            unseal(key, text, header)


def test_streams_are_aes_128_in_counter_mode() -> None:
    # AES-128 of blocks 0 and 1 under the zero key, as in GCM's first test cases (H, and the tag's mask).
    total = torch.zeros(4, dtype=torch.int64)
    add_streams(total, 0, [(ZERO_KEY, 1)])
    words = total.view(torch.uint8).numpy().tobytes().hex()
    assert words[:32] == "66e94bd4ef8a2c3b884cfa59ca342b2e"
    assert words[32:] == "58e2fccefa7e3061367f1d57a4e7455a"


@given(st.integers(1, 3), st.sampled_from([torch.int64, torch.int32]), st.data())
def test_streams_do_not_depend_on_how_they_are_cut(count: int, dtype: torch.dtype, data: st.DataObject) -> None:
    numel = 3 * CHUNK_BYTES // 8 // 2 + 24
    streams = [(bytes([i]) * 32, 1 if i % 2 else -1) for i in range(count)]
    whole = torch.arange(numel, dtype=dtype)
    add_streams(whole, 0, streams)
    parts = torch.arange(numel, dtype=dtype)
    cut = 4 * data.draw(st.integers(0, numel // 4))
    add_streams(parts[:cut], 0, streams)
    add_streams(parts[cut:], cut, streams)
    assert torch.equal(parts, whole)
    assert not torch.equal(whole, torch.arange(numel, dtype=dtype))
    add_streams(whole, 0, [(key, -sign) for key, sign in streams])
    assert torch.equal(whole, torch.arange(numel, dtype=dtype))


# ------------------------------------------------------------------------------------------------------------- shares
def test_shares_lie_on_a_line_where_two_are_needed() -> None:
    seven = lambda n: (7).to_bytes(n)  # noqa: E731
    shares = split((5).to_bytes(32), 2, [1, 2, 10], seven)  # 5 + 7 x
    assert [int.from_bytes(shares[point]) for point in (1, 2, 10)] == [12, 19, 75]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not(secret, needed, spare, random) -> None:  # type: ignore[no-untyped-def]
    points = random.sample(range(1, 2000), needed + spare)
    shares = split(secret, needed, points, os.urandom)
    some = random.sample(points, needed)
    assert join({p: shares[p] for p in some}) == secret
    if needed > 1:
        with contextlib.suppress(ValueError):
            assert join({p: shares[p] for p in some[1:]}) != secret


def test_the_prime_is_one() -> None:
    # Fermat to several bases; a composite would pass them all with negligible probability.
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))


# -------------------------------------------------------------------------------------------------------------- graphs
@pytest.mark.parametrize("count", [2, 3, 32, 34, 50, 100, 1000])
def test_graphs_are_regular_symmetric_and_connected(count: int) -> None:
    clients = [3 * c + 1 for c in range(count)]
    graph = neighbours(clients, b"seed")
    assert {len(set(others)) for others in graph.values()} == {degree(count)}
    assert all(c not in others and all(c in graph[o] for o in others) for c, others in graph.items())
    reached, frontier = {clients[0]}, [clients[0]]
    while frontier:
        frontier = [o for o in graph[frontier.pop()] if o not in reached] + frontier
        reached.update(frontier)
    assert reached == set(clients)
    assert (graph != neighbours(clients, b"other")) == (count >= 50)


def test_degrees_grow_with_the_logarithm() -> None:
    assert [degree(n) for n in (3, 32, 33, 64, 1000, 10**6)] == [2, 31, 32, 48, 80, 160]
    assert [threshold(n) for n in (3, 4, 5, 25)] == [2, 3, 3, 13]
