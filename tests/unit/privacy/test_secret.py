"""Where a run's noise comes from: a secret, and everything that the sums depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config.load import load_config
from fedhpc.privacy.secret import noise_source
from tests.conftest import ROOT

SMOKE = ROOT / "configs" / "smoke" / "dp_fedavg.yaml"


def drawn(*overrides: str, data: str = "abc", version: str = "1") -> float:
    return float(noise_source(load_config(SMOKE, overrides), data, version).gaussian("x", 1))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("00112233445566778899aabbccddeeff\n")
    return path


def test_what_changes_sums_changes_noise(secret: Path) -> None:
    """Else the difference of two runs would be that of their updates, in the clear."""
    changes = [
        "random_seed=1",
        "fit.steps=3",
        "rounds=4",
        "privacy.clip=0.4",
        "algorithm.name=fedopt",
        "cohort.size=13",
    ]
    found = [drawn(), *(drawn(change) for change in changes), drawn(data="other"), drawn(version="2")]
    found += [drawn(f"privacy.secret_file={secret}")]
    assert len(set(found)) == len(found)


def test_what_changes_no_bit_changes_no_noise() -> None:
    same = ["aggregation.secure=false", "privacy.epsilon=99", "name=other", "checkpoint.every=2", "data.path=x.h5"]
    assert {drawn(change) for change in same} == {drawn()}


def test_a_secret_needs_128_bits(tmp_path: Path) -> None:
    for text in ("", "0011", "xy" * 32, "0" * 33):
        path = tmp_path / "secret"
        path.write_text(text)
        with pytest.raises(ValueError, match="openssl rand -hex 32"):
            drawn(f"privacy.secret_file={path}")
    with pytest.raises(ValueError, match="cannot be read"):
        drawn(f"privacy.secret_file={tmp_path / 'none'}")
