"""Who takes part, and with how many ranks."""

from __future__ import annotations

import pytest

from fedhpc.comm.mesh import Mesh
from fedhpc.population import idle_ranks


@pytest.mark.parametrize(
    ("world", "shard", "cohort", "said"),
    [
        (4, 1, 4, None),
        (2, 2, 1, None),
        (8, 1, 5, "3 of 8 ranks have nothing to train: 5 clients train in a round; 5 ranks would train as fast"),
        (8, 2, 3, "2 of 8 ranks have nothing to train: 3 clients train in a round; 6 ranks would train as fast"),
        (2, 1, 1, "1 of 2 ranks have nothing to train: 1 client trains in a round; 1 rank would train as fast"),
    ],
)
def test_ranks_without_a_client_are_said(world: int, shard: int, cohort: int, said: str | None) -> None:
    assert idle_ranks(Mesh(0, world, shard, None), cohort) == said
