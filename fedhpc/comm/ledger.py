"""The ledger: what was exchanged, how many bytes, how long it took, what was revealed. Nothing crosses without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Literal

from fedhpc.interfaces import ClientId

Operation = Literal["reduce", "mean", "sum", "gather", "placement", "evaluation"]


@dataclass
class Entry:
    """One exchange, as this rank saw it."""

    operation: Operation
    what: str  # names of the blocks, or of the value
    num_bytes: int  # handed to collectives by this rank
    seconds: float  # from hand-over to result, waiting for slower ranks included
    # Names of per-client values that all ranks saw; of `update` each rank saw some coordinates, or all.
    revealed: tuple[str, ...] = ()
    by: tuple[ClientId, ...] = ()  # whose values went in, or were shown
    lost: tuple[ClientId, ...] = ()  # clients that were gone before their values were sent
    masked: bool = False
    mask_bytes: int = 0  # keys and shares, handed to collectives by this rank besides num_bytes
    mask_seconds: float = 0.0  # part of `seconds` that went into keys, shares and masks
    recovery_seconds: float = 0.0  # part of `mask_seconds` that lost clients cost: their keys, and masks against them
    kept: tuple[ClientId, ...] = ()  # whose updates a robust rule chose, of rules that choose
    exact_bytes: int = 0  # of a compressed exchange: what the exact sum would have handed over
    error: float | None = None  # of a compressed exchange: |sent - update| / |update|, mean over clients


class Ledger:
    """Collects entries; `close_round` hands out a round's total and starts the next page."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @contextmanager
    def entry(
        self,
        operation: Operation,
        what: str,
        num_bytes: int,
        revealed: tuple[str, ...] = (),
        by: tuple[ClientId, ...] = (),
    ) -> Iterator[Entry]:
        start = perf_counter()
        entry = Entry(operation, what, num_bytes, 0.0, revealed, by)
        yield entry
        entry.seconds = perf_counter() - start
        self.entries.append(entry)

    def close_round(self, index: int) -> dict[str, Any]:
        """One JSON-ready page: totals of the round and its entries."""
        page = {
            "round": index,
            "bytes": sum(e.num_bytes + e.mask_bytes for e in self.entries),
            "seconds": sum(e.seconds for e in self.entries),
            "revealed": sorted({name for e in self.entries for name in e.revealed}),
            "entries": [asdict(e) for e in self.entries],
        }
        self.entries = []
        return page
