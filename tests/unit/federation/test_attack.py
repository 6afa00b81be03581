"""Attacks of studies: who makes them, the labels they flip, what they send."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedhpc.config.byzantine import LabelFlipAttack, NoiseAttack, ScalingAttack, SignFlipAttack
from fedhpc.data.attack import attackers, flip_labels
from fedhpc.data.partition import ClientRows
from fedhpc.federation.attack import build_attack
from fedhpc.interfaces import Block, Contribution, Layout, TensorSpec

TRAINERS = tuple(range(10))


def flip(**more: object) -> SignFlipAttack:
    return SignFlipAttack.model_validate({"kind": "sign_flip", **more})


def test_a_share_is_drawn_once_from_the_seed() -> None:
    chosen = [attackers(flip(fraction=0.2), TRAINERS, seed) for seed in range(50)]
    assert all(len(one) == 2 for one in chosen) and len(set(chosen)) > 10
    assert chosen == [attackers(flip(fraction=0.2, scale=7), TRAINERS, seed) for seed in range(50)]
    assert len(attackers(flip(fraction=0.01), TRAINERS, 0)) == 1
    assert attackers(flip(clients=[3, 1]), TRAINERS, 0) == {1, 3}
    with pytest.raises(ValueError, match="client 12 does not train"):
        attackers(flip(clients=[12]), TRAINERS, 0)
    with pytest.raises(ValueError, match="all 2 clients would attack"):
        attackers(flip(fraction=0.9), (0, 1), 0)


def test_flipped_labels_are_those_of_the_attackers_training_rows() -> None:
    labels = np.array([0, 1, 2, -1, 0, 1, 2, 2], np.int32)
    none = np.arange(0)
    clients = [
        ClientRows(0, "a", np.array([0, 1]), none, none),
        ClientRows(1, "b", np.array([2, 3, 4]), np.array([5]), np.array([6])),
    ]
    assert flip_labels(labels, 3, clients, frozenset({1})).tolist() == [0, 1, 0, -1, 2, 1, 2, 2]
    assert labels[2] == 2


def contribution() -> Contribution:
    layout = Layout((TensorSpec("w", (2,), (1,), 0, True), TensorSpec("s", (1,), (1,), 2, False)), 3, 2)
    return Contribution({"net": Block(torch.tensor([1.0, -2.0, 5.0]), layout)}, 3.0, {"loss": 0.5})


def test_attackers_send_something_else_and_the_others_do_not() -> None:
    honest = contribution()

    def sent(attack: object, client: int = 1, index: int = 0) -> list[float]:
        made = build_attack(attack, TRAINERS, 0)  # type: ignore[arg-type]
        assert made is not None
        found = made.sent(honest, client, index)
        assert (found.weight, found.metrics) == (3.0, {"loss": 0.5})
        return [float(x) for x in found.blocks["net"].flat]

    flipped = flip(clients=[1], scale=4)
    assert sent(flipped) == [-4.0, 8.0, 5.0], "running statistics stay"
    assert sent(flipped, 2) == [1.0, -2.0, 5.0]
    scaled = ScalingAttack.model_validate({"kind": "scaling", "clients": [1]})
    assert sent(scaled) == [10.0, -20.0, 5.0]
    noise = NoiseAttack.model_validate({"kind": "noise", "clients": [1, 2], "std": 0.5})
    draws = [tuple(sent(noise, client, index)[:2]) for client in (1, 2) for index in (0, 1)]
    assert len(set(draws)) == 4 and draws[0] == tuple(sent(noise, 1, 0)[:2])
    assert honest.blocks["net"].flat.tolist() == [1.0, -2.0, 5.0]


def test_who_flips_labels_sends_what_it_trained() -> None:
    assert build_attack(LabelFlipAttack.model_validate({"kind": "label_flip", "clients": [1]}), TRAINERS, 0) is None
    assert build_attack(None, TRAINERS, 0) is None
