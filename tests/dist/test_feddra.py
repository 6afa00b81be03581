"""FedDRA's stages, anchors and weights through the real federation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedhpc.interfaces import Batch
from tests.dist.runs import SMOKE, run

CONFIG = SMOKE / "feddra.yaml"
EARLY = "evaluation.every=1"
PLATEAU = "algorithm={name: feddra, schedule: plateau, plateau_patience: 1, plateau_min_delta: 1.0, stage1: {steps: 2}}"
SEQUENTIAL = "algorithm={name: feddra, schedule: sequential, stage1_rounds: 1, stage1: {steps: 2}}"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.path={tmp_path_factory.mktemp('phantom') / 'phantom.h5'}"


def rounds(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> list[float]:
    from safetensors.torch import load_file

    newest = max((folder / "checkpoints").glob("round_*"))
    [file] = [f for f in newest.glob("*.safetensors") if "algorithm" in f.name]
    tensors = load_file(file)
    [q] = [value for name, value in tensors.items() if name.split("|")[-1] == "q"]
    return [float(x) for x in q]


@pytest.mark.parametrize("schedule", [SEQUENTIAL, PLATEAU, "algorithm.variant=upstream"], ids=["seq", "plateau", "up"])
def test_options_keep_the_bits(schedule: str, phantom: str, tmp_path: Path) -> None:
    options = (phantom, "rounds=3", schedule) if "upstream" not in schedule else (phantom, UPSTREAM)
    one, two = (run(CONFIG, world, tmp_path / str(world), *options) for world in (1, 2))
    assert one["sha256"] == two["sha256"]


UPSTREAM = "algorithm={name: feddra, variant: upstream, stage1: {steps: 2}}"


def test_stages_follow_the_schedule(phantom: str, tmp_path: Path) -> None:
    for name, option, expected in (("seq", SEQUENTIAL, [1, 2, 2, 2]), ("plateau", PLATEAU, [1, 1, 2, 2])):
        run(CONFIG, 1, tmp_path / name, phantom, "rounds=4", option)
        stages = [1 if row.get("stage1_loss") == row["loss"] else 2 for row in rounds(tmp_path / name)]
        assert stages == expected, name
    run(CONFIG, 1, tmp_path / "alternate", phantom)
    assert all(row["stage1_loss"] != row["loss"] for row in rounds(tmp_path / "alternate"))


def test_stage_1_leaves_the_encoders_alone(phantom: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run(CONFIG, 1, tmp_path, phantom, "rounds=2", "checkpoint.keep=2", SEQUENTIAL)
    first, second = (
        load_file(next((tmp_path / "checkpoints" / name).glob("shared*.safetensors")))
        for name in ("round_000001", "round_000002")
    )
    run(CONFIG, 1, tmp_path / "start", phantom, "rounds=1", "fit.optimizer.learning_rate=1e-12", EARLY)
    start = load_file(next((tmp_path / "start" / "checkpoints" / "round_000001").glob("shared*.safetensors")))
    for name in first:
        stood = torch.equal(first[name], start[name])
        assert stood == name.startswith("encoder/") or torch.allclose(first[name], start[name], atol=1e-9), name
        assert not torch.equal(first[name], second[name]) or "temperature" in name, f"stage 2 moves {name}"


def test_a_stop_in_the_middle_of_stage_2_changes_nothing(phantom: str, tmp_path: Path) -> None:
    options = (phantom, "rounds=4", "checkpoint.keep=4", SEQUENTIAL)
    whole = run(CONFIG, 1, tmp_path / "run", *options)
    q = weights_of(tmp_path / "run")
    for later in ("round_000003", "round_000004"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / later)
    resumed = run(CONFIG, 2, tmp_path / "run", *options)
    assert resumed["sha256"] == whole["sha256"]
    assert weights_of(tmp_path / "run") == q
    assert q != pytest.approx([0.2] * 5, abs=1e-6), "q moved, and was kept"


def test_model_and_anchor_share_what_frozen_encoders_give(
    phantom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as encoding twice; and in stage 1 the anchor never runs an encoder."""
    from fedhpc.client.client import DataClient

    options = (phantom, "rounds=2")
    shared = play_here(tmp_path / "shared", *options)
    calls = {"given": 0, "encoded": 0}
    plain = DataClient.reference

    def twice(self: DataClient, blocks: object, name: str = "anchor") -> object:
        outputs = plain(self, blocks, name)  # type: ignore[arg-type]

        def encode(batch: Batch) -> Mapping[str, Tensor]:
            calls["given" if "image_tokens" in batch else "encoded"] += 1
            return outputs({k: v for k, v in batch.items() if k not in ("image_tokens", "text_tokens")})

        return encode

    monkeypatch.setattr(DataClient, "reference", twice)
    assert play_here(tmp_path / "twice", *options) == shared
    assert calls == {"given": 2 * 4 * 2, "encoded": 2 * 4 * 4}  # rounds x cohort x steps of each stage


def play_here(folder: Path, *options: str) -> str:
    """A run in this process; its sha256."""
    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask
    from tests.dist.runs import QUIET

    torch.set_num_threads(1)
    sha: str = RunTask(load_config(CONFIG, [*QUIET, *options]), folder)()["sha256"]
    return sha


def test_a_hard_site_gains_weight(phantom: str, tmp_path: Path) -> None:
    """Study (d) in small: the site of noise has the highest loss, so q must find it."""
    noise = ("data.phantom.noise_sites=1", "cohort.size=5", "rounds=5", "data.phantom.num_patients=300")
    dro = "algorithm.dro={rho: 0.5, step_size: 2.0}"
    run(CONFIG, 1, tmp_path / "run", f"data.path={tmp_path / 'noise.h5'}", *noise, dro)
    last = rounds(tmp_path / "run")[-1]
    assert max(range(5), key=lambda c: last[f"weight_{c}"]) == 0
    assert last["weight_0"] == last["weight_max"] > 0.25
    assert sum(last[f"weight_{c}"] for c in range(5)) == pytest.approx(1)
