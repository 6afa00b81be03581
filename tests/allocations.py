"""What torch allocates on the CPU while something runs, to the byte and whatever the machine is short of: resident
sets depend on what the kernel takes away and on what the heap keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

R = TypeVar("R")


class Allocated(NamedTuple):
    """Bytes on top of what was allocated before."""

    peak: int  # at the worst moment
    after: int  # at the end
    largest: int  # of one allocation


def allocations(fn: Callable[[], R]) -> tuple[R, Allocated]:
    """fn's result, and what torch's CPU allocator did meanwhile, in all threads."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = fn()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    taken = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = largest = 0
    for _, nbytes in taken:
        now += nbytes
        peak, largest = max(peak, now), max(largest, nbytes)
    assert taken, "the profiler saw no allocation"
    return result, Allocated(peak, now, largest)
