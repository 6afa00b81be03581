"""An algorithm that needs every client's loss on a split says so before any work starts."""

from __future__ import annotations

import pytest
import torch

from fedhpc.algorithms.registry import build_algorithm
from fedhpc.client.client import ClientRecord, Rows
from fedhpc.config.algorithms import AflConfig, FedAvgConfig, LocalConfig, QfflConfig
from fedhpc.population import check_losses


def records(*counts: tuple[int, int]) -> list[ClientRecord]:
    """Clients with so many training and validation rows."""
    return [
        ClientRecord(
            i, f"site-{i}", Rows(torch.arange(train), torch.arange(val), torch.arange(0)), frozenset({"image"})
        )
        for i, (train, val) in enumerate(counts)
    ]


def test_clients_with_enough_rows_pass() -> None:
    check_losses(build_algorithm(AflConfig(name="afl", loss_split="val")), "afl", records((9, 2), (2, 5)))
    check_losses(build_algorithm(AflConfig(name="afl")), "afl", records((2, 0), (2, 0)))
    check_losses(build_algorithm(QfflConfig(name="qffl")), "qffl", records((2, 0)))
    for config in (FedAvgConfig(name="fedavg"), LocalConfig(name="local")):
        check_losses(build_algorithm(config), config.name, records((1, 0)))


def test_clients_with_too_few_rows_are_named() -> None:
    with pytest.raises(ValueError) as error:
        check_losses(build_algorithm(AflConfig(name="afl", loss_split="val")), "afl", records((9, 2), (9, 1), (9, 0)))
    assert str(error.value) == (
        "algorithm.name: afl measures the loss of every client on its val rows, 2 at least, but client 1 (site-1) has "
        "1, client 2 (site-2) has 0; set loss_split: train in the algorithm's section, set a partition of fewer, "
        "larger clients, or - where clients are sites - partition.leave_out: [site-1, site-2]"
    )
    with pytest.raises(ValueError, match=r"on its train rows.*client 0 \(site-0\) has 1; set a partition of fewer"):
        check_losses(build_algorithm(QfflConfig(name="qffl")), "qffl", records((1, 9)))
    with pytest.raises(ValueError, match="client 4 .* and 3 more;"):
        check_losses(build_algorithm(AflConfig(name="afl", loss_split="val")), "afl", records(*[(9, 0)] * 8))
