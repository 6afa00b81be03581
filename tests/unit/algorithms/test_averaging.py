"""FedAvg, FedProx, FedOpt and the references against their formulas, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.registry import ALGORITHMS, build_algorithm
from fedhpc.config.algorithms import FedOptConfig
from fedhpc.config.schema import RunConfig
from tests.unit.algorithms.fakes import FakeClient, FakeFederation, block


def config(**section: Any) -> Any:
    base = {
        "name": "x",
        "rounds": 1,
        "data": {"phantom": {}},
        "partition": {"kind": "iid", "num_clients": 2},
        "model": {"kind": "classifier", "image": {"name": "cnn"}},
        "fit": {"steps": 1, "optimizer": {"learning_rate": 0.1}},
    }
    return RunConfig.model_validate({**base, "algorithm": section}).algorithm


def play(section: dict[str, Any], rounds: int = 1) -> tuple[Any, list[FakeClient], dict[str, float]]:
    clients = [FakeClient(0, 30, 1.0), FakeClient(1, 10, -2.0)]
    fed = FakeFederation(clients, {"net": block([1.0, 2.0], [5.0])})
    algorithm = build_algorithm(config(**section))
    algorithm.setup(fed)  # type: ignore[arg-type]
    metrics: dict[str, float] = {}
    for index in range(rounds):
        metrics = dict(algorithm.round(fed, index))  # type: ignore[arg-type]
    return algorithm, clients, metrics


def test_every_name_of_the_config_has_an_algorithm() -> None:
    names = {v.model_fields["name"].annotation.__args__[0] for v in _variants()}
    assert names == set(ALGORITHMS)


def _variants() -> tuple[Any, ...]:
    from typing import get_args

    from fedhpc.config.algorithms import AlgorithmConfig

    return get_args(get_args(AlgorithmConfig)[0])


def test_fedavg_weighs_by_examples_or_not() -> None:
    algorithm, _, metrics = play({"name": "fedavg"})
    assert algorithm.shared["net"].flat.tolist() == [1.25, 2.25, 5.25]  # (30 * 1 - 10 * 2) / 40
    assert metrics == {"loss": pytest.approx(0.25)}
    algorithm, _, metrics = play({"name": "fedavg", "weight": "uniform"})
    assert algorithm.shared["net"].flat.tolist() == [0.5, 1.5, 4.5]
    assert metrics == {"loss": pytest.approx(0.5)}


def test_initial_blocks_are_copied() -> None:
    fed = FakeFederation([FakeClient(0, 1, 1.0)], {"net": block([1.0])})
    algorithm = FedAvg(config(name="fedavg"))
    algorithm.setup(fed)  # type: ignore[arg-type]
    algorithm.round(fed, 0)  # type: ignore[arg-type]
    assert fed.initial["net"].flat.tolist() == [1.0]


def test_fedprox_pulls_towards_the_shared_weights() -> None:
    algorithm, clients, _ = play({"name": "fedprox", "mu": 0.7})
    term = clients[0].terms[0]
    assert term is not None and term.pull == 0.7 and term.toward is algorithm.shared and term.offset is None
    assert play({"name": "fedavg"})[1][0].terms == [None]


def reference(kind: str, deltas: list[float], beta1: float, beta2: float, tau: float, eta: float) -> float:
    """Reddi et al. 2021, Algorithm 2, and FedAvgM, in plain numbers, for one weight that starts at 0."""
    w = m = 0.0
    v = tau**2
    for delta in deltas:
        if kind == "momentum":
            m = beta1 * m + delta
            w += eta * m
            continue
        m = beta1 * m + (1 - beta1) * delta
        square = delta**2
        if kind == "adam":
            v = beta2 * v + (1 - beta2) * square
        else:
            sign = (v > square) - (v < square)
            v = v - (1 - beta2) * square * sign
        w += eta * m / (v**0.5 + tau)
    return w


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_fedopt_follows_its_paper(kind: str) -> None:
    section: dict[str, Any] = {"name": "fedopt", "server_optimizer": kind, "beta1": 0.8, "server_learning_rate": 0.3}
    if kind != "momentum":
        section |= {"beta2": 0.95, "tau": 0.05}
    algorithm, _, _ = play(section, rounds=3)
    moved = reference(kind, [0.25] * 3, 0.8, 0.95, 0.05, 0.3)
    assert algorithm.shared["net"].trainable.tolist() == pytest.approx([1 + moved, 2 + moved], rel=1e-5)
    assert algorithm.shared["net"].buffers.tolist() == pytest.approx([5.75]), "running statistics are plain means"


def test_fedopt_momentum_without_memory_is_fedavg() -> None:
    algorithm, _, _ = play({"name": "fedopt", "server_optimizer": "momentum", "beta1": 0.0}, rounds=2)
    assert torch.equal(algorithm.shared["net"].flat, play({"name": "fedavg"}, rounds=2)[0].shared["net"].flat)
    default = FedOptConfig(name="fedopt").learning_rate
    assert default == 0.01
    assert FedOptConfig(name="fedopt", server_optimizer="momentum").learning_rate == 1.0


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_fedopt_goes_on_from_its_state(kind: str) -> None:
    section = {"name": "fedopt", "server_optimizer": kind}
    whole, _, _ = play(section, rounds=4)
    half, clients, _ = play(section, rounds=2)
    again = build_algorithm(config(**section))
    fed = FakeFederation(clients, half.shared)
    again.setup(fed)  # type: ignore[arg-type]
    again.load_state_dict(half.state_dict())
    for index in (2, 3):
        again.round(fed, index)  # type: ignore[arg-type]
    assert torch.equal(again.shared["net"].flat, whole.shared["net"].flat)


def test_local_models_never_meet() -> None:
    algorithm, clients, metrics = play({"name": "local"}, rounds=3)
    assert algorithm.shared == {}
    assert algorithm.personal(clients[0])["net"].flat.tolist() == [4.0, 5.0, 8.0]
    assert algorithm.personal(clients[1])["net"].flat.tolist() == [-5.0, -4.0, -1.0]
    assert metrics == {"loss": pytest.approx(0.25)}
