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
        self.first: Blocks = {}  # what it starts from
        self.terms: list[GradientTerm | None] = []

    def load(self, shared: Blocks) -> None:
        self.own = {name: b.clone() for name, b in shared.items()}

    def resume(self) -> None:
        """Its own model is there already, or is the first one."""
        self.own = self.own or {name: b.clone() for name, b in self.first.items()}

    def read(self) -> Blocks:
        return self.own

    def update(self, since: Blocks) -> Blocks:
        return {name: Block(self.own[name].flat - b.flat, b.layout) for name, b in since.items()}

    def fit(self, *args: Any, gradient: GradientTerm | None = None, **options: Any) -> FitReport:
        self.terms.append(gradient)
        for b in self.own.values():
            b.flat.add_(self._step)
        return FitReport(float(self.id), 1, self.num_examples, 0.0, 1.0)


class QuadraticClient(FakeClient):
    """Its loss is curvature / 2 * |w - optimum|^2. Trains by plain SGD, a step for each of `rates`; a turn adds `step`
    to running statistics."""

    def __init__(
        self,
        id: int,
        curvature: float,
        optimum: float,
        rates: Sequence[float],
        num_examples: int = 1,
        step: float = 1.0,
    ) -> None:
        super().__init__(id, num_examples, step)
        self.curvature, self.optimum, self.rates = curvature, optimum, rates
        self.measured: list[tuple[str, float]] = []

    def fit(
        self,
        *args: Any,
        gradient: GradientTerm | None = None,
        after_step: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> FitReport:
        self.terms.append(gradient)
        term = gradient or GradientTerm()
        losses = []
        for done, rate in enumerate(self.rates, start=1):
            losses.append(self._loss())
            for name, b in self.own.items():
                grad = self.curvature * (b.trainable - self.optimum)
                if term.toward is not None:
                    grad += term.pull * (b.trainable - term.toward[name].trainable)
                if term.offset is not None:
                    grad += term.offset[name]["w"]
                b.trainable.sub_(rate * grad)
                b.buffers.add_(self._step if done == 1 else 0.0)
            if after_step is not None:
                after_step(done, len(self.rates))
        return FitReport(sum(losses) / len(losses), len(self.rates), self.num_examples, 0.0, sum(self.rates))

    def measure(self, split: str, loss: Any = None, *, fraction: float = 1.0) -> float:
        self.measured.append((split, fraction))
        return self._loss()

    def dot(self, a: Blocks, b: Blocks) -> float:
        return sum(float((a[name].trainable.double() * b[name].trainable.double()).sum()) for name in a)

    def _loss(self) -> float:
        return self.curvature / 2 * sum(float(((b.trainable - self.optimum) ** 2).sum()) for b in self.own.values())


class FakeFederation:
    """Plain float64 means over the cohort: all clients, unless a test sets `cohort`."""

    public: Sequence[Mapping[str, Tensor]] = ()

    def __init__(self, clients: Sequence[FakeClient], initial: Blocks) -> None:
        self._clients = {c.id: c for c in clients}
        self.clients: tuple[int, ...] = tuple(c.id for c in clients)
        self.cohort = self.clients
        self.initial = initial
        for client in clients:
            client.first = initial
        self.random_seed = 0

    def generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.random_seed)

    def each(self, fn: Callable[..., Any], *inputs: Mapping[int, Any]) -> dict[int, Any]:
        return {c: fn(self._clients[c], *(values[c] for values in inputs)) for c in self.cohort}

    def sum(self, values: Mapping[int, Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        return torch.stack([values[c].double().reshape(tuple(shape)) for c in self.cohort]).sum(0)

    def gather(self, what: str, values: Mapping[int, Tensor], *, shape: Sequence[int] = ()) -> Tensor:
        return torch.stack([values[c].double().reshape(tuple(shape)) for c in self.cohort])

    def reduce(
        self, fn: Callable[..., Contribution], *inputs: Any, like: Blocks, metrics: Sequence[str] = ()
    ) -> Reduced:
        parts = list(self.each(fn, *inputs).values())
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
