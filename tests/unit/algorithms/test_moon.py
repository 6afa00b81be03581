"""MOON's loss against Eq. 3 in plain numbers, and what its turns compare with what."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.moon import PREVIOUS, Moon, model_contrastive_loss
from fedhpc.config.algorithms import FedAvgConfig, MoonConfig
from fedhpc.interfaces import Blocks, FitReport
from tests.unit.algorithms.fakes import FakeClient, FakeFederation, block

X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


def eq_3(near: float, far: float, temperature: float) -> float:
    a, b = math.exp(near / temperature), math.exp(far / temperature)
    return -math.log(a / (a + b))


def at(cosine: float) -> list[float]:
    """A vector of that cosine with (1, 0), of length 2."""
    return [2 * cosine, 2 * math.sqrt(1 - cosine**2)]


def test_loss_golden_value() -> None:
    z = {"image_features": torch.tensor([[1.0, 0.0], [5.0, 0.0]])}
    shared = {"image_features": torch.tensor([at(0.8), at(0.3)])}
    previous = {"image_features": torch.tensor([at(0.2), at(0.7)])}
    loss = model_contrastive_loss(z, shared, previous, 0.5).item()
    assert loss == pytest.approx((eq_3(0.8, 0.2, 0.5) + eq_3(0.3, 0.7, 0.5)) / 2, abs=1e-6)
    assert loss == pytest.approx(0.7171916, abs=1e-6)  # (log(1 + e^-1.2) + log(1 + e^0.8)) / 2
    assert model_contrastive_loss(z, shared, shared, 0.1).item() == pytest.approx(math.log(2))


def test_both_embeddings_of_a_dual_encoder_count() -> None:
    z = {name: torch.tensor([[1.0, 0.0]]) for name in ("image", "text", "image_features")}
    shared = {"image": torch.tensor([at(0.8)]), "text": torch.tensor([at(0.5)])}
    previous = {"image": torch.tensor([at(0.2)]), "text": torch.tensor([at(0.6)])}
    expected = (eq_3(0.8, 0.2, 0.5) + eq_3(0.5, 0.6, 0.5)) / 2
    assert model_contrastive_loss(z, shared, previous, 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_equal_references_move_nothing() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    other = {"image_features": torch.ones(4, 3)}
    model_contrastive_loss({"image_features": z}, other, other, 0.5).backward()
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-8


class SeeingClient(FakeClient):
    """Sees X * w. Writes down its objective, then adds `step`."""

    def __init__(self, id: int, num_examples: int, step: float) -> None:
        super().__init__(id, num_examples, step)
        self.objectives: list[float] = []
        self.asked: list[tuple[str, list[float]]] = []

    def loss(self, out: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return out["image_features"].sum()

    def reference(self, blocks: Blocks, name: str = "anchor") -> Callable[[Any], Mapping[str, Tensor]]:
        w = blocks["net"].flat.clone()
        self.asked.append((name, w.tolist()))
        return lambda batch: {"image_features": batch["x"] * w}

    def fit(self, budget: Any = None, objective: Any = None, **options: Any) -> FitReport:
        if objective is not None:
            w = self.own["net"].flat
            self.objectives.append(float(objective(lambda batch: {"image_features": batch["x"] * w}, {"x": X})))
        return super().fit(**options)


def test_a_turn_compares_present_shared_and_previous_weights() -> None:
    clients = [SeeingClient(0, 3, 1.0), SeeingClient(1, 1, -3.0)]
    fed = FakeFederation(clients, {"net": block([1.0, 2.0])})
    algorithm = Moon(MoonConfig(name="moon", mu=5.0, temperature=0.5))
    algorithm.setup(fed)  # type: ignore[arg-type]
    algorithm.round(fed, 0)  # type: ignore[arg-type]
    assert clients[0].asked == [("shared", [1.0, 2.0])]
    assert clients[0].objectives == [pytest.approx(float((X * torch.tensor([1.0, 2.0])).sum()) + 5 * math.log(2))]
    assert clients[0].state[PREVIOUS]["net"].flat.tolist() == [2.0, 3.0], "its own weights after the turn"
    assert algorithm.shared["net"].flat.tolist() == [1.0, 2.0], "(3 * 1 - 1 * 3) / 4"

    algorithm.round(fed, 1)  # type: ignore[arg-type]
    assert clients[1].asked[1:] == [("shared", [1.0, 2.0]), (PREVIOUS, [-2.0, -1.0])]
    now, old = X.double() * torch.tensor([1.0, 2.0]), X.double() * torch.tensor([-2.0, -1.0])
    far = [float(a @ b / a.norm() / b.norm()) for a, b in zip(now, old, strict=True)]
    expected = float(now.sum()) + 5 * sum(eq_3(1.0, cosine, 0.5) for cosine in far) / 2
    assert clients[1].objectives[1] == pytest.approx(expected, rel=1e-5)


def test_mu_0_is_fedavg() -> None:
    def play(algorithm: FedAvg) -> tuple[list[float], list[float]]:
        clients = [SeeingClient(0, 3, 1.0), SeeingClient(1, 1, -2.0)]
        fed = FakeFederation(clients, {"net": block([1.0, 2.0])})
        algorithm.setup(fed)  # type: ignore[arg-type]
        for index in range(2):
            algorithm.round(fed, index)  # type: ignore[arg-type]
        return algorithm.shared["net"].flat.tolist(), clients[0].objectives

    weights, objectives = play(Moon(MoonConfig(name="moon", mu=0.0)))
    assert weights == play(FedAvg(FedAvgConfig(name="fedavg")))[0]
    assert objectives == [pytest.approx(float((X * torch.tensor(w)).sum())) for w in ([1.0, 2.0], [1.25, 2.25])]
