"""Which slot hosts which client. Never changes a result, only how long a round takes."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from statistics import median

from fedhpc.interfaces import ClientId

MEMORY = 8  # turns that weigh in a client's cost; older ones fade


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
        self._factor: dict[ClientId, tuple[float, int]] = {}  # seconds a row against the usual, turns behind it
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
        """Measured cost of each client of a round, the same numbers on every rank.

        What is kept is how a client's seconds a row compare with the round's median, so that a slow round (the first
        one warms up) says nothing, and one slow turn says little.
        """
        rates = [cost / max(self._examples[c], 1) for c, cost in zip(cohort, seconds, strict=True)]
        usual = median(rates)
        if usual <= 0:
            return
        for client, rate in zip(cohort, rates, strict=True):
            factor, turns = self._factor.get(client, (1.0, 0))
            self._factor[client] = ((factor * (turns + 1) + rate / usual) / (turns + 2), min(turns + 1, MEMORY))

    def _costs(self, cohort: Sequence[ClientId]) -> dict[ClientId, float]:
        return {c: self._examples[c] * self._factor.get(c, (1.0, 0))[0] for c in cohort}
