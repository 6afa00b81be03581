"""The main job on a GPU: it runs, it repeats itself, and it is near the CPU's result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import SMOKE, fedhpc, sha_of

pytestmark = pytest.mark.gpu

QUIET = ("data.path=phantom.h5", "report.tensorboard=false", "report.plots=false")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_twice_and_the_losses_of_the_cpu(precision: str, tmp_path: Path) -> None:
    shas = []
    for name in ("first", "second"):
        code, out, err = fedhpc(
            tmp_path, "run", str(SMOKE / "fedavg.yaml"), *QUIET, "runtime.device=cuda", f"fit.precision={precision}",
            "model.text.options.attention_probs_dropout_prob=0", "model.text.options.hidden_dropout_prob=0",
            "--run-dir", name,
        )  # fmt: skip
        assert code == 0, err
        shas.append(sha_of(out))
    assert shas[0] == shas[1]
    code, _, err = fedhpc(
        tmp_path, "run", str(SMOKE / "fedavg.yaml"), *QUIET, "model.text.options.attention_probs_dropout_prob=0",
        "model.text.options.hidden_dropout_prob=0", "--run-dir", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "cpu"), rel=0.05)
