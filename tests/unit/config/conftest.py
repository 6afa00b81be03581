"""A small valid config, as text, and a way to load variations of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.config import ConfigError, RunConfig, load_config

BASE = """\
name: base
rounds: 4
data: {phantom: {}}
partition: {kind: iid, num_clients: 4}
model:
  kind: dual_encoder
  image: {name: vit_tiny_patch16_224, options: {embed_dim: 48}}
  text: {name: bert, options: {hidden_size: 32}}
fit:
  steps: 2
  optimizer: {learning_rate: 1e-3}
algorithm: {name: fedprox, mu: 0.5}
"""

CLASSIFIER = "model={kind: classifier, image: {name: cnn_tiny}}"

Load = Callable[..., RunConfig]
Problems = Callable[..., list[str]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


@pytest.fixture
def load(base: Path) -> Load:
    """load(*overrides) -> the base config with them."""
    return lambda *overrides: load_config(base, overrides)


@pytest.fixture
def problems(base: Path) -> Problems:
    """problems(*overrides) -> what is wrong with the base config and them; [] when nothing is."""

    def collect(*overrides: str) -> list[str]:
        try:
            load_config(base, overrides)
        except ConfigError as error:
            return list(error.problems)
        return []

    return collect
