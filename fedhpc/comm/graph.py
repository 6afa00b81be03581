"""Who masks against whom: everyone against everyone in small exchanges, a random regular graph in large ones.

A client masks against its neighbours and leaves shares of its secrets with them, so an exchange of n clients costs n k
agreements. k grows with log n (SecAgg+: Bell et al. 2020, CCS). Of 1,000 clients each has 80 neighbours: where 200 are
lost, some secret cannot be put together again with a probability below 1e-7 (union bound, hypergeometric tails). The
same holds for 200 curious clients that together hold enough shares of some client's secret.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from fedhpc.interfaces import ClientId

COMPLETE = 32  # clients up to which all are neighbours, whatever the degree
DEGREE_PER_BIT = 8  # neighbours for each doubling of the number of clients


def degree(num_clients: int) -> int:
    """Neighbours of each client."""
    if num_clients <= COMPLETE:
        return num_clients - 1
    return min(DEGREE_PER_BIT * math.ceil(math.log2(num_clients)), num_clients - 1)


def neighbours(clients: Sequence[ClientId], seed: bytes) -> dict[ClientId, tuple[ClientId, ...]]:
    """Each client's neighbours, sorted: in a ring in an order drawn from `seed`, the nearest on both sides. Who knows
    the seed (it is public) can tell the graph, so it must not be of any one client's choosing."""
    count = len(clients)
    if degree(count) == count - 1:
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
