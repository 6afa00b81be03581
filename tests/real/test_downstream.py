"""Downstream evaluation on real pictures: cell types from a frozen encoder, lungs of chest X-rays.

The runs are short: what is tested is that the way from a run to a number works on real files, and that the numbers
beat what a guess would give.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.command import fedhpc

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = ROOT / "configs" / "downstream"
NETWORK = "{name: resnet10t, options: {channels: [16, 16, 24, 32], stem_width: 8}}"
RUN = """\
name: short
rounds: 1
data: {{path: {path}, label: {label}}}
partition: {{kind: iid, num_clients: 2}}
model: {{kind: classifier, image: {network}}}
fit: {{steps: 12, batch_size: 32, optimizer: {{name: adamw, learning_rate: 2.0e-3}}}}
runtime: {{device: cpu, threads_per_rank: 1}}
report: {{tensorboard: false, plots: false}}
"""


def trained(folder: Path, data: Path, dataset: str, label: str, network: str = NETWORK) -> None:
    code, _, err = fedhpc(folder, "pack", dataset, str(data / dataset.replace("-", "_")), "-o", "packed.h5")
    assert code == 0, err
    (folder / "run.yaml").write_text(RUN.format(path="packed.h5", label=label, network=network))
    code, _, err = fedhpc(folder, "run", "run.yaml", "--run-dir", "run")
    assert code == 0, err


def evaluated(folder: Path, task: str, *overrides: str) -> dict[str, Any]:
    code, _, err = fedhpc(
        folder, "evaluate", "run", "--task", str(TASKS / f"{task}.yaml"), "data.path=packed.h5", "name=x", *overrides
    )
    assert code == 0, err
    found: dict[str, Any] = json.loads((folder / "run" / "downstream" / "x.json").read_text())
    return found


def test_linear_probe_of_cell_types(shared_data: Path, tmp_path: Path) -> None:
    trained(tmp_path, shared_data, "pbc-wbcatt", "cell_type")
    found = evaluated(tmp_path, "pbc_linear_probe", "fractions=[0.01, 0.1]", "num_seeds=2", "bootstrap=100")
    assert found["rows"] == {"train": 7429, "val": 1210, "test": 3459}
    assert found["data"]["generated"] is False and found["data"]["licence"].startswith("CC BY 4.0")
    few, more = (
        next(r for r in found["results"] if r["scope"] == "all" and r["setting"] == setting)["metrics"]
        for setting in ("1 % labels", "10 % labels")
    )
    assert 1 / 8 < few["balanced_accuracy"]["value"] < more["balanced_accuracy"]["value"] < 1
    for metrics in (few, more):
        one = metrics["auroc"]
        assert 0.5 < one["low"] <= one["value"] <= one["high"] < 1 and len(one["seeds"]) == 2
    assert [run["rows"] for run in found["detail"]["chosen"]["1 % labels"]] == pytest.approx([74, 74], abs=8)


def test_lungs_and_an_unseen_hospital(shared_data: Path, tmp_path: Path) -> None:
    vit = "{name: vit_tiny_patch16_224, options: {embed_dim: 48, depth: 2, num_heads: 3, patch_size: 16}}"
    trained(tmp_path, shared_data, "cxr-sites", "label", vit)
    found = evaluated(tmp_path, "cxr_segmentation", "fit={max_epochs: 4}", "decoder_width=16", "bootstrap=100")
    everything, site = found["results"]
    assert site["scope"] == "guangzhou_wcmc", "masks are of one hospital"
    assert sum(found["rows"].values()) == 724 and found["detail"]["grid"] == [8, 8]
    dice, guess = everything["metrics"]["dice"], everything["metrics"]["mean_mask_dice"]
    assert guess["value"] < dice["low"] < dice["value"] < dice["high"] < 1
    out = evaluated(tmp_path, "cxr_hold_out", "fractions=[1.0]", "bootstrap=100")
    assert {record["scope"] for record in out["results"]} == {"all", "nih_clinical_center"}
    record = out["results"][0]
    assert record["patients"] < record["rows"], "NIH patients have several pictures"
    assert any("its encoder has seen the site" in note for note in out["notes"])
