"""Which slot hosts which client. Never changes a result, only how long a round takes."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from fedhpc.interfaces import ClientId


def longest_first(costs: Mapping[ClientId, float], num_slots: int) -> list[list[ClientId]]:
    """Longest processing time first (Graham 1969): each client, costliest first, goes to the slot with the least to do.

    Returns:
        One sorted list a slot; equal costs are dealt by id, so that every rank finds the same answer.
    """
    slots: list[list[ClientId]] = [[] for _ in range(num_slots)]
    heap = [(0.0, index) for index in range(num_slots)]
    for client in sorted(costs, key=lambda c: (-costs[c], c)):
        load, index = heapq.heappop(heap)
        slots[index].append(client)
        heapq.heappush(heap, (load + costs[client], index))
    return [sorted(slot) for slot in slots]


class Placement:
    """Places each round's cohort by what clients cost so far; clients with state stay where their state is.

    Args:
        examples: training rows of every client, the first guess of its cost.
        stateful: clients never move.
    """

    def __init__(self, examples: Mapping[ClientId, int], num_slots: int, stateful: bool) -> None:
        self._examples = examples
        self._num_slots = num_slots
        self._seconds: dict[ClientId, float] = {}
        self._home: dict[ClientId, int] = {}
        if stateful:
            for slot, clients in enumerate(longest_first({c: float(n) for c, n in examples.items()}, num_slots)):
                self._home |= dict.fromkeys(clients, slot)

    def place(self, cohort: Sequence[ClientId]) -> list[list[ClientId]]:
        """One list of clients a slot, each sorted."""
        if self._home:
            return [[c for c in cohort if self._home[c] == slot] for slot in range(self._num_slots)]
        return longest_first(self._costs(cohort), self._num_slots)

    def residents(self, slot: int) -> list[ClientId]:
        """Clients that never leave `slot`; none where clients move freely."""
        return [c for c, home in self._home.items() if home == slot]

    def learn(self, cohort: Sequence[ClientId], seconds: Sequence[float]) -> None:
        """Measured cost of each client of a round, the same numbers on every rank."""
        for client, cost in zip(cohort, seconds, strict=True):
            old = self._seconds.get(client, cost)
            self._seconds[client] = 0.5 * old + 0.5 * cost

    def _costs(self, cohort: Sequence[ClientId]) -> dict[ClientId, float]:
        known = [c for c in cohort if c in self._seconds]
        rows = sum(self._examples[c] for c in known)
        per_row = sum(self._seconds[c] for c in known) / rows if rows else 1.0
        return {c: self._seconds.get(c, per_row * self._examples[c]) for c in cohort}
