"""The privacy page tells what epsilon is worth."""

from __future__ import annotations

from typing import Any

from fedhpc.report.noise import noise_sentences

CLIENT = {
    "unit": "client",
    "epsilon": 3.14159,
    "delta": 1e-4,
    "units": 1000,
    "clip": 0.5,
    "last_clip": 0.25,
    "noise_multiplier": 1.1,
    "accountant": "rdp",
    "adaptive": False,
    "amplification": False,
    "noise_shares": 90,
    "secret": True,
}


def page(**changes: Any) -> str:
    return "\n".join(noise_sentences({**CLIENT, **changes}))


def test_the_numbers_are_told() -> None:
    text = page()
    assert "epsilon = 3.142 at delta = 0.0001. Unit: client" in text
    assert "Clip 0.5, noise multiplier 1.1, accountant rdp" in text
    assert "made of 90 clients' shares" in text and "although all know who took part" in text
    assert "does not cover: metrics of evaluations" in text
    for absent in ("random_seed", "no protection", "in the clear"):
        assert absent not in text
    assert "0.5 at first, 0.25 at last (adaptive)" in page(adaptive=True)
    assert "who do not know who took part" in page(amplification=True)
    rows = page(unit="record", noise_shares=None)
    assert "one training row (not one patient's rows)" in rows and "shares" not in rows


def test_weak_statements_are_called_so() -> None:
    assert "protects nobody; set privacy.secret_file" in page(secret=False)
    assert "An epsilon above 10 is no protection" in page(epsilon=10.1)
    assert "There are 5 clients: a delta near 1/5" in page(units=5, delta=0.17)
    assert list(noise_sentences(None)) == []
