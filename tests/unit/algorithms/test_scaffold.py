"""SCAFFOLD against Algorithm 1 in float64, on clients whose losses are parabolas."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.scaffold import VARIATE, Scaffold
from fedhpc.config.algorithms import FedAvgConfig, ScaffoldConfig
from tests.unit.algorithms.fakes import FakeFederation, QuadraticClient, block

CURVATURES, OPTIMA, RATES = (1.0, 3.0, 0.5), (-1.0, 2.0, 6.0), (0.1, 0.05, 0.02)
COHORTS = ((0, 1), (1, 2), (0, 1, 2), (2,))


def federation() -> FakeFederation:
    clients = [
        QuadraticClient(i, a, b, RATES, 10 * (i + 1)) for i, (a, b) in enumerate(zip(CURVATURES, OPTIMA, strict=True))
    ]
    return FakeFederation(clients, {"net": block([0.5], [3.0])})


def play(algorithm: FedAvg, fed: FakeFederation, cohorts: Sequence[Sequence[int]]) -> None:
    for index, cohort in enumerate(cohorts):
        fed.cohort = tuple(cohort)
        algorithm.round(fed, index)  # type: ignore[arg-type]


def scaffold(fed: FakeFederation, server_learning_rate: float = 1.0) -> Scaffold:
    algorithm = Scaffold(ScaffoldConfig(name="scaffold", server_learning_rate=server_learning_rate))
    algorithm.setup(fed)  # type: ignore[arg-type]
    return algorithm


def reference(x: float, eta_g: float) -> tuple[float, float, list[float]]:
    """Algorithm 1, option II, line by line: x, c and all c_i after COHORTS."""
    c, own = 0.0, [0.0] * 3
    for cohort in COHORTS:
        moves, changes = [], []
        for i in cohort:
            y = x
            for rate in RATES:
                y -= rate * (CURVATURES[i] * (y - OPTIMA[i]) - own[i] + c)
            after = own[i] - c + (x - y) / sum(RATES)
            moves.append(y - x)
            changes.append(after - own[i])
            own[i] = after
        x += eta_g * sum(moves) / len(cohort)
        c += len(cohort) / 3 * sum(changes) / len(cohort)
    return x, c, own


@pytest.mark.parametrize("eta_g", [1.0, 0.7])
def test_rounds_follow_algorithm_1(eta_g: float) -> None:
    fed = federation()
    algorithm = scaffold(fed, eta_g)
    play(algorithm, fed, COHORTS)
    x, c, own = reference(0.5, eta_g)
    assert algorithm.shared["net"].trainable.tolist() == pytest.approx([x], rel=1e-5)
    assert algorithm.state_dict()[VARIATE]["net"].flat.tolist() == pytest.approx([c], rel=1e-5)
    found = [float(client.state[VARIATE]["net"].flat) for client in fed._clients.values()]
    assert found == pytest.approx(own, rel=1e-5)
    assert c == pytest.approx(sum(own) / 3), "the server's variate is the mean of the clients'"
    assert algorithm.shared["net"].buffers.tolist() == [3.0 + len(COHORTS)], "running statistics are plain means"


def test_without_variates_it_is_fedavg_with_uniform_weights() -> None:
    fed, other = federation(), federation()
    algorithm, plain = scaffold(fed), FedAvg(FedAvgConfig(name="fedavg", weight="uniform"))
    plain.setup(other)  # type: ignore[arg-type]
    play(algorithm, fed, COHORTS[:1])
    play(plain, other, COHORTS[:1])
    assert torch.equal(algorithm.shared["net"].flat, plain.shared["net"].flat)
    play(algorithm, fed, COHORTS[:1])
    play(plain, other, COHORTS[:1])
    assert not torch.equal(algorithm.shared["net"].flat, plain.shared["net"].flat)


def test_it_finds_the_optimum_that_fedavg_misses() -> None:
    """Clients drift to their own optima; the minimum of the mean loss is sum a b / sum a."""
    optimum = sum(a * b for a, b in zip(CURVATURES, OPTIMA, strict=True)) / sum(CURVATURES)
    fed, other = federation(), federation()
    for client in (*fed._clients.values(), *other._clients.values()):
        client.rates = (0.2,) * 20  # type: ignore[attr-defined]
    algorithm, plain = scaffold(fed), FedAvg(FedAvgConfig(name="fedavg", weight="uniform"))
    plain.setup(other)  # type: ignore[arg-type]
    play(algorithm, fed, [(0, 1, 2)] * 100)
    play(plain, other, [(0, 1, 2)] * 100)
    assert algorithm.shared["net"].trainable.tolist() == pytest.approx([optimum], abs=1e-4)
    assert abs(float(plain.shared["net"].trainable) - optimum) > 0.1


def test_it_goes_on_from_its_state() -> None:
    whole, half = federation(), federation()
    algorithm = scaffold(whole)
    play(algorithm, whole, COHORTS)
    first = scaffold(half)
    play(first, half, COHORTS[:2])
    half.initial = first.shared
    again = scaffold(half)
    again.load_state_dict(first.state_dict())
    play(again, half, COHORTS[2:])
    assert torch.equal(again.shared["net"].flat, algorithm.shared["net"].flat)
