"""What run.py measures of a rank: memory and bytes handed to torch.distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
