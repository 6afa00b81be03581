"""DeepSpeed on a GPU: one rank with a client of its own, and several where there are as many GPUs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.e2e.command import SMOKE, fedhpc, sha_of

from .test_run import QUIET, losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

CUDA = ("rounds=3", "runtime.device=cuda", "fit.optimizer={name: sgd, learning_rate: 0.05}")


def play(folder: Path, name: str, *options: str) -> str:
    code, out, err = fedhpc(
        folder, "run", str(SMOKE / "sharded.yaml"), *QUIET, *CUDA, *options, "--run-dir", name, "--fresh"
    )
    assert code == 0, err
    return sha_of(out)


@pytest.mark.parametrize(
    "sharding",
    ["{zero: 1}", "{zero: 2}", "{zero: 3}", "{zero: 3, offload_optimizer: true, offload_parameters: true}"],
)
def test_one_gpu_gives_the_losses_of_the_plain_engine(sharding: str, tmp_path: Path) -> None:
    for algorithm in ("{name: fedavg}", "{name: moon}", "{name: feddra, stage1: {steps: 2}, dro: null}"):
        chosen = f"algorithm={algorithm}"
        play(tmp_path, "plain", chosen, "mesh.shard=1", "sharding=null")
        once, twice = (play(tmp_path, name, chosen, "mesh.shard=1", f"sharding={sharding}") for name in ("a", "b"))
        assert once == twice
        assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    play(tmp_path, "plain", "mesh.shard=1", "sharding=null")
    play(tmp_path, "low", "mesh.shard=1", "sharding={zero: 3}", "fit.precision=bfloat16")
    assert losses(tmp_path / "low") == pytest.approx(losses(tmp_path / "plain"), rel=2e-2)


def test_two_shards_on_two_gpus(tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    play(tmp_path, "plain", "mesh.shard=1", "sharding=null")
    play(tmp_path, "two", "--ranks", "2")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
