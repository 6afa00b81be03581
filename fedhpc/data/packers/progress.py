"""How far packing is, with items a second: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

T = TypeVar("T")
LINE_EVERY_S = 60.0


class Bar:
    """`advance` it as items are done; those that an earlier, interrupted pack had done do not count for the speed."""

    def __init__(self, total: int, what: str, *, unit: str = "images") -> None:
        self._total, self._what, self._unit = total, what, unit
        self._done = self._fresh = 0
        self._start = self._last = time.monotonic()
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            pace = TextColumn("{task.fields[pace]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), pace)
            self._progress = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._task = self._progress.add_task(self._what, total=self._total, pace="")
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, count: int, *, counts: bool = True) -> None:
        self._done += count
        self._fresh += count if counts else 0
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, pace=self.pace())
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            print(f"{self._what}: {self._done:,} of {self._total:,}, {self.pace()}", file=sys.stderr, flush=True)

    def pace(self) -> str:
        """Items a second since the start, and the time that is left at that pace."""
        seconds = time.monotonic() - self._start
        if not self._fresh or seconds <= 0:
            return ""
        speed = self._fresh / seconds
        left = round((self._total - self._done) / speed)
        return f"{speed:,.0f} {self._unit}/s, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one by one, under a bar."""
    with Bar(len(items), what, unit=what) as bar:
        for item in items:
            yield item
            bar.advance(1)
