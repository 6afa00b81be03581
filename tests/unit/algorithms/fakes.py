"""A federation of one rank and clients without models: what an algorithm does to numbers, by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhpc.interfaces import Block, Blocks, Contribution, FitReport, GradientTerm, Layout, Reduced, TensorSpec


def block(values: Sequence[float], buffers: Sequence[float] = ()) -> Block:
    """Trainable "w" and, where given, a buffer "b"."""
    specs = [TensorSpec("w", (len(values),), (1,), 0, True)]
    if buffers:
        specs.append(TensorSpec("b", (len(buffers),), (1,), len(values), False))
    layout = Layout(tuple(specs), len(values) + len(buffers), len(values))
    return Block(torch.tensor([*values, *buffers], dtype=torch.float32), layout)


class FakeClient:
    """Its training adds `step` to every weight it has."""

    site, modalities = "x", frozenset({"image"})

    def __init__(self, id: int, num_examples: int, step: float) -> None:
        self.id, self.num_examples, self._step = id, num_examples, step
        self.blocks = frozenset({"net"})
        self.state: dict[str, Any] = {}
        self.own: dict[str, Block] = {}
        self.terms: list[GradientTerm | None] = []

    def load(self, shared: Blocks) -> None:
        self.own = {name: b.clone() for name, b in shared.items()}

    def read(self) -> Blocks:
        return self.own

    def update(self, since: Blocks) -> Blocks:
        return {name: Block(self.own[name].flat - b.flat, b.layout) for name, b in since.items()}

    def fit(self, *args: Any, gradient: GradientTerm | None = None, **options: Any) -> FitReport:
        self.terms.append(gradient)
        for b in self.own.values():
            b.flat.add_(self._step)
        return FitReport(float(self.id), 1, self.num_examples, 0.0, 1.0)


class FakeFederation:
    """Plain float64 means over all clients."""

    public: Sequence[Mapping[str, Tensor]] = ()

    def __init__(self, clients: Sequence[FakeClient], initial: Blocks) -> None:
        self._clients = clients
        self.clients = self.cohort = tuple(c.id for c in clients)
        self.initial = initial

    def reduce(
        self, fn: Callable[..., Contribution], *inputs: Any, like: Blocks, metrics: Sequence[str] = ()
    ) -> Reduced:
        parts = [fn(client) for client in self._clients]
        total = sum(p.weight for p in parts)
        mean = {
            name: Block(
                sum((p.blocks[name].flat.double() * p.weight for p in parts), torch.zeros(())).div(total).float(),
                b.layout,
            )
            for name, b in like.items()
        }
        values = {m: sum(p.metrics[m] * p.weight for p in parts) / total for m in metrics}
        return Reduced(mean, dict.fromkeys(like, total), values)
