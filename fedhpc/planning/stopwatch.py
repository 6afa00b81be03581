"""Times the turns of a real round whose loops over batches are cut short, and counts what they would have been."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from fedhpc.data.batches import BatchMaker, batch_sizes
from fedhpc.federation.federation import SlotFederation
from fedhpc.interfaces import Batch, ClientId


@dataclass
class TimedCall:
    """One loop over batches."""

    kind: str  # fit, pass
    planned: int
    done: int = 0
    seconds: float = 0.0


@dataclass
class Turn:
    """One client's turn in one phase."""

    seconds: float = 0.0
    calls: list[TimedCall] = field(default_factory=list)


class Stopwatch:
    """Wraps the parts of one rank. `limit` batches of every loop are made; the algorithm notices nothing else.

    `turns` has (phase, client) -> turn of the present round. Start each round with `begin`.
    """

    def __init__(self, fed: SlotFederation) -> None:
        self.limit = 1
        self.turns: dict[tuple[int, ClientId], Turn] = {}
        self._phase = -1
        self._turn = Turn()
        self._seconds: dict[int, float] = defaultdict(float)
        slot, engine = fed.slot, fed.slot.engine
        self._accumulate = engine.config.accumulate
        slot._batch_maker = _CutShort(slot._batch_maker, self)  # type: ignore[assignment]
        engine.fit = self._timed_fit(engine.fit)  # type: ignore[method-assign]
        turn, release = slot.turn, slot.release

        def begin_turn(client: ClientId) -> Any:
            self._turn = self.turns.setdefault((self._phase, client), Turn())
            self._start = perf_counter()
            return turn(client)

        def end_turn(client: Any) -> None:
            release(client)
            self._turn.seconds += perf_counter() - self._start

        slot.turn, slot.release = begin_turn, end_turn  # type: ignore[method-assign]
        for name in ("each", "reduce"):
            setattr(fed, name, self._phased(getattr(fed, name)))

    def begin(self, limit: int) -> None:
        self.limit, self.turns, self._phase = limit, {}, -1

    def passing(self, planned: int) -> TimedCall:
        self._turn.calls.append(TimedCall("pass", planned))
        return self._turn.calls[-1]

    def fitting(self, planned: int) -> None:
        self._turn.calls.append(TimedCall("fit", planned))

    def _phased(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._phase += 1
            return method(*arguments, **options)

        return wrapped

    def _timed_fit(self, fit: Callable[..., tuple[float, int, int]]) -> Callable[..., tuple[float, int, int]]:
        def wrapped(*arguments: Any, **options: Any) -> tuple[float, int, int]:
            calls = len(self._turn.calls)
            start = perf_counter()
            loss, steps, examples = fit(*arguments, **options)
            seconds = perf_counter() - start
            fits = [call for call in self._turn.calls[-1:] if call.kind == "fit" and not call.done]
            if calls and fits:  # its batches came from the client's rows: the plan knows how many there would be
                fits[0].seconds, fits[0].done = seconds, steps * self._accumulate
            return loss, steps, examples

        return wrapped


class _CutShort:
    """A BatchMaker that stops early."""

    def __init__(self, inner: BatchMaker, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    def only(self, columns: frozenset[str]) -> _CutShort:
        return _CutShort(self._inner.only(columns), self._watch)

    def training(
        self, rows: torch.Tensor, batch_size: int, num_batches: int, drop_last: bool, generator: torch.Generator
    ) -> Iterator[Batch]:
        self._watch.fitting(num_batches)
        cut = min(num_batches, self._watch.limit * self._watch._accumulate)
        return self._inner.training(rows, batch_size, cut, drop_last, generator)

    def ordered(self, rows: torch.Tensor, batch_size: int) -> Iterator[Batch]:
        call = self._watch.passing(len(batch_sizes(len(rows), batch_size, drop_last=False)))
        start = perf_counter()
        for batch in self._inner.ordered(rows[: self._watch.limit * batch_size], batch_size):
            yield batch
            call.done += 1
            call.seconds = perf_counter() - start
