"""What run.py measures of a rank: memory, bytes handed to torch.distributed, tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def resident(key: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


class Counted:
    """Bytes that a rank hands to torch.distributed, by call, while it is entered."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from deepspeed.comm import comm

        self.bytes: dict[str, int] = {}
        positions = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 0, "broadcast": 0}
        positions |= {"all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
        self._calls = [(dist, name, name, position) for name, position in positions.items()]
        # DeepSpeed keeps these two from its start.
        self._calls += [(comm.cdb, "all_gather_function", "all_gather_into_tensor", 1)]
        self._calls += [(comm.cdb, "reduce_scatter_function", "reduce_scatter_tensor", 1)]
        self._originals = [getattr(owner, attribute) for owner, attribute, _, _ in self._calls]

    def __enter__(self) -> Counted:
        for (owner, attribute, name, position), call in zip(self._calls, self._originals, strict=True):
            setattr(owner, attribute, self._counting(name, call, position))
        return self

    def __exit__(self, *error: object) -> None:
        for (owner, attribute, _, _), call in zip(self._calls, self._originals, strict=True):
            setattr(owner, attribute, call)

    def _counting(self, name: str, call: Any, position: int) -> Any:
        names = ("tensor", "input_tensor", "input", "input_list")

        def counting(*given: Any, **named: Any) -> Any:
            sent = given[position] if len(given) > position else next(named[n] for n in names if n in named)
            sent = sent if isinstance(sent, list | tuple) else [sent]
            self.bytes[name] = self.bytes.get(name, 0) + sum(tensor.nbytes for tensor in sent)
            return call(*given, **named)

        return counting


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
