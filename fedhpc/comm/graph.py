"""Who masks against whom: everyone against everyone in small exchanges, a random regular graph in large ones.

A client masks against its neighbours and leaves shares of its secrets with them, so an exchange of n clients costs n k
agreements. k grows with log n (SecAgg+: Bell et al. 2020, CCS): enough that no client's neighbours are all curious, and
that too many of them are lost, only with small probability.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from fedhpc.interfaces import ClientId

COMPLETE = 32  # clients up to which all are neighbours
DEGREE_PER_BIT = 4  # neighbours for each doubling of the number of clients


def degree(num_clients: int) -> int:
    """Neighbours of each client."""
    if num_clients <= COMPLETE:
        return num_clients - 1
    return DEGREE_PER_BIT * math.ceil(math.log2(num_clients))


def neighbours(clients: Sequence[ClientId], seed: bytes) -> dict[ClientId, tuple[ClientId, ...]]:
    """Each client's neighbours, sorted: in a ring in an order drawn from `seed`, the nearest on both sides. Who knows
    the seed (it is public) can tell the graph, so it must not be of any one client's choosing."""
    count = len(clients)
    if count <= COMPLETE:
        return {client: tuple(sorted(c for c in clients if c != client)) for client in clients}
    ring = sorted(clients, key=lambda client: hashlib.sha256(seed + client.to_bytes(8)).digest())
    reach = degree(count) // 2
    offsets = [*range(-reach, 0), *range(1, reach + 1)]
    return {
        client: tuple(sorted(ring[(place + offset) % count] for offset in offsets)) for place, client in enumerate(ring)
    }


def threshold(num_holders: int) -> int:
    """Shares that give a secret back: more than half, so that two disjoint groups of holders never both can."""
    return num_holders // 2 + 1
