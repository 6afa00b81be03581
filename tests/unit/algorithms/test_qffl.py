"""q-FedAvg against Algorithm 2 in float64, on clients whose losses are parabolas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.algorithms.fedavg import FedAvg
from fedhpc.algorithms.qffl import Qffl
from fedhpc.config.algorithms import FedAvgConfig, QfflConfig
from tests.unit.algorithms.fakes import FakeFederation, QuadraticClient, block

CURVATURES, OPTIMA = (1.0, 3.0, 0.5), (-1.0, 2.0, 6.0)
RATES = (0.1, 0.05)


def federation(start: float = 0.5) -> FakeFederation:
    clients = [QuadraticClient(i, a, b, RATES, 10 + i) for i, (a, b) in enumerate(zip(CURVATURES, OPTIMA, strict=True))]
    return FakeFederation(clients, {"net": block([start], [3.0])})


def one_round(algorithm: FedAvg, fed: FakeFederation) -> tuple[torch.Tensor, dict[str, float]]:
    algorithm.setup(fed)  # type: ignore[arg-type]
    metrics = dict(algorithm.round(fed, 0))  # type: ignore[arg-type]
    return algorithm.shared["net"].flat, metrics


def reference(w: float, q: float, lipschitz: float) -> float:
    """Algorithm 2: w - sum Delta_k / sum h_k."""
    deltas = hs = 0.0
    for a, b in zip(CURVATURES, OPTIMA, strict=True):
        loss = a / 2 * (w - b) ** 2
        own = w
        for rate in RATES:
            own -= rate * a * (own - b)
        step = lipschitz * (w - own)
        deltas += loss**q * step
        hs += q * loss ** (q - 1) * step**2 + lipschitz * loss**q
    return w - deltas / hs


@given(q=st.floats(0, 5), start=st.floats(-0.5, 1.5), lipschitz=st.one_of(st.none(), st.floats(0.1, 100)))
def test_a_round_follows_algorithm_2(q: float, start: float, lipschitz: float | None) -> None:
    flat, _ = one_round(Qffl(QfflConfig(name="qffl", q=q, lipschitz=lipschitz)), federation(start))
    mean_rate = sum(RATES) / len(RATES)
    assert float(flat[0]) == pytest.approx(reference(start, q, lipschitz or 1 / mean_rate), rel=1e-4, abs=1e-5)


def test_numbers_by_hand() -> None:
    """Two clients, one step of rate 0.5 from w = 0, q = 1, so L = 2.

    F = 1/2, 2; w_k = 1/2, 1 (from gradients -1, -2); D_k = L (w - w_k) = -1, -2; Delta_k = F_k D_k = -1/2, -4;
    h_k = D_k^2 + L F_k = 1 + 1, 4 + 4; w = 4.5 / 10.
    """
    clients = [QuadraticClient(0, 1.0, 1.0, [0.5]), QuadraticClient(1, 1.0, 2.0, [0.5])]
    flat, metrics = one_round(Qffl(QfflConfig(name="qffl", q=1)), FakeFederation(clients, {"net": block([0.0], [3.0])}))
    assert flat.tolist() == pytest.approx([0.45, 4.0]), "running statistics are plain means"
    assert metrics["start_loss"] == pytest.approx(1.25)
    assert metrics["damping"] == pytest.approx(1.0)  # sum h / (L sum F) - 1 = 10 / 5 - 1


def test_q_0_is_fedavg_with_uniform_weights() -> None:
    flat, metrics = one_round(Qffl(QfflConfig(name="qffl", q=0)), federation())
    plain, _ = one_round(FedAvg(FedAvgConfig(name="fedavg", weight="uniform")), federation())
    assert torch.equal(flat, plain)
    assert metrics["damping"] == 0


def test_high_losses_weigh_more_as_q_grows() -> None:
    """Client 2 is worst off at w = 0.5 and lies above, so its weight shows in how far up the mean update points."""
    directions = []
    for q in (0.0, 1.0, 4.0):
        fed = federation()
        flat, metrics = one_round(Qffl(QfflConfig(name="qffl", q=q)), fed)
        directions.append((float(flat[0]) - 0.5) * (1 + metrics["damping"]))
        assert all(client.measured == [("train", 1.0)] for client in fed._clients.values())  # type: ignore[attr-defined]
    assert directions == sorted(directions)


def test_a_client_without_loss_weighs_nothing() -> None:
    clients = [QuadraticClient(0, 1.0, 0.5, RATES), QuadraticClient(1, 1.0, 2.0, RATES)]
    fed = FakeFederation(clients, {"net": block([0.5])})
    flat, _ = one_round(Qffl(QfflConfig(name="qffl", q=2, loss_fraction=0.5)), fed)
    assert float(flat[0]) > 0.5
    assert clients[0].measured == [("train", 0.5)]
