"""What torch allocates on the CPU while something runs, to the byte and whatever the machine is short of: resident
sets depend on what the kernel takes away and on what the heap keeps. And which tensors there are."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

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


def model_state_bytes(engine: Any) -> int:
    """Of all tensors that are alive on this rank: weights, gradients, moments, batches. What an engine keeps for
    an exchange is given back first; DeepSpeed's bucket for gradients on their way is not counted."""
    engine.weights.load(dict(engine.weights.shared.items()))  # gives back what the last forward pass gathered
    engine._difference.clear()
    gc.collect()
    alive: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == engine.device.type:
            storage = thing.untyped_storage()
            alive[storage.data_ptr()] = storage.nbytes()
    optimizer = engine._deepspeed.optimizer
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        buffers = bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
        for buffer in buffers:
            if isinstance(buffer, torch.Tensor):
                alive.pop(buffer.untyped_storage().data_ptr(), None)
    return sum(alive.values())


def largest_tensor(fn: Callable[[], Any]) -> int:
    """Elements of the largest tensor that any operation of fn makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else [out]:
                if isinstance(tensor, torch.Tensor):
                    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                    Largest.elements = max(Largest.elements, elements)
            return out

    with Largest():
        fn()
    return Largest.elements
