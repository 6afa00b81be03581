"""Memory by shapes, against sums worked out by hand and against a real model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhpc.cli import app
from fedhpc.config.load import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.zoo import build_model
from fedhpc.planning.shards import (
    Elements,
    assumed_spec,
    count,
    elements_of,
    lines,
    rank_memory,
    refuse_too_large,
    whole,
)
from tests.conftest import ROOT

SMOKE = ROOT / "configs" / "smoke"
SPEC = DataSpec(1, (32, 32), vocab_size=278, max_tokens=16)
SOME = Elements(learned=1000, frozen=200, statistics=8, outside=100, largest=600)


def config(*overrides: str, path: Path = SMOKE / "sharded.yaml") -> RunConfig:
    return load_config(path, list(overrides))


@pytest.mark.parametrize(
    "changes", [(), ("model.head_norm=batch",), ("model.image.freeze=true", "objective.name=siglip")]
)
def test_counts_are_those_of_the_real_model(changes: tuple[str, ...]) -> None:
    made = config(*changes)
    real = elements_of(build_model(made.model, SPEC, made.objective))
    assert count(made, SPEC) == real
    assert real.parameters > 50_000 and 0 < real.outside < real.learned
    assert (real.statistics > 0) == ("model.head_norm=batch" in changes)
    assert (real.frozen > 1) == ("model.image.freeze=true" in changes)  # a temperature may stand still too


def test_pretrained_weights_are_not_read(tmp_path: Path) -> None:
    made = config(
        "model.image.pretrained=augreg_in21k", "model.image.name=vit_tiny_patch16_224", "model.image.options={}"
    )
    assert count(made, DataSpec(1, (224, 224), 278, 16)).parameters > 5_000_000


def test_what_a_rank_holds_by_stage() -> None:
    adamw = "fit.optimizer={name: adamw, learning_rate: 0.1}"
    by_stage = {zero: rank_memory(config(adamw, f"sharding.zero={zero}"), SOME) for zero in (1, 2, 3)}
    assert by_stage[3].device["weights"] == 4 * 600
    assert [by_stage[zero].device["weights"] for zero in (1, 2)] == [4 * 1200] * 2
    assert [by_stage[zero].device.get("float32 copies") for zero in (1, 2, 3)] == [4 * 500, 4 * 500, None]
    assert [by_stage[zero].device["gradients"] for zero in (1, 2, 3)] == [4 * 1000, 4 * 500, 4 * 500]
    assert all(memory.device["moments"] == 8 * 500 for memory in by_stage.values())
    assert all(memory.device["an exchange"] == 12 * 504 for memory in by_stage.values())
    assert by_stage[3].model_states == 4 * 600 + 4 * 500 + 8 * 500
    assert by_stage[3].total == by_stage[3].model_states + 4 * 300 + 24 * 504
    low = rank_memory(config(adamw, "fit.precision=bfloat16"), SOME)
    assert low.model_states == (2 * 600 + 4 * 500) + 2 * 500 + 8 * 500
    assert low.device["a block's gradients in its step"] == 6 * 300
    alone = rank_memory(whole(config(adamw)), SOME)
    assert alone.model_states == 4 * 1200 + 4 * 1000 + 8 * 1000


def test_what_methods_and_offloading_change() -> None:
    def beside(*overrides: str) -> int:
        return rank_memory(config(*overrides), SOME).device.get("models beside it", 0)

    assert beside() == 0
    assert beside("algorithm={name: feddra, stage1: {steps: 1}}") == 4 * 600 + 8 * 50
    assert beside("algorithm={name: moon}") == 2 * 4 * 600
    assert beside("algorithm={name: fedopt, server_learning_rate: 0.1}") == 8 * 500
    sgd = "fit.optimizer={name: sgd, learning_rate: 0.1}"
    scaffold = rank_memory(config("algorithm={name: scaffold}", sgd), SOME)
    assert scaffold.device["models beside it"] == 8 * 500
    assert scaffold.device["an exchange"] == 24 * 504
    assert "moments" not in scaffold.device
    small = rank_memory(config("aggregation.ring_bits=32", "aggregation.fraction_bits=14"), SOME)
    assert small.device["an exchange"] == 8 * 504
    away = rank_memory(config("sharding={offload_optimizer: true, offload_parameters: true}"), SOME)
    assert away.host == {"weights": 4 * 600, "float32 copies": 4 * 500, "moments": 8 * 500, "gradients": 8 * 500}
    assert away.model_states == 0 and away.total == 24 * 504
    second = rank_memory(config("sharding={zero: 2, offload_optimizer: true}"), SOME)
    assert second.host == {"float32 copies": 4 * 500, "moments": 8 * 500, "gradients": 4 * 500}
    assert second.model_states == 4 * 1200
    told = list(lines(away))
    assert [name for name, *_ in told][:5] == [
        "weights", "float32 copies", "gradients", "moments", "model states",
    ]  # fmt: skip
    assert told[-1] == ("in all", away.total, 4 * 600 + 20 * 500)


def test_data_that_are_elsewhere_and_models_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = config("data.max_tokens=16")
    assert assumed_spec(made, (3, 64, 32), 500) == DataSpec(3, (64, 32), 500, 16)
    with pytest.raises(ValueError, match=r"set data\.max_tokens"):
        assumed_spec(config(), (3, 64, 32), 500)
    with pytest.raises(ValueError, match="model.kind: classifier, which learns classes"):
        assumed_spec(config(path=SMOKE / "classifier.yaml"), (3, 64, 32), 500)
    with pytest.raises(ValueError, match=r"model\.kind: fusion"):
        count(config(path=SMOKE / "dgb_pcw.yaml"), SPEC)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   30 kB\n")
    monkeypatch.setattr("fedhpc.planning.shards.MEMINFO", tmp_path / "meminfo")
    refuse_too_large(made, Elements(700, 0), on_cpu=True)  # 40 bytes each
    with pytest.raises(ValueError, match="one process: 0.0 GiB, and 0.0 GiB are free; plan on a larger machine"):
        refuse_too_large(made, Elements(800, 0), on_cpu=True)


def test_the_command_prints_it_and_refuses_what_has_no_effect() -> None:
    def plan(*arguments: str, name: str = "sharded") -> tuple[int, str]:
        shown = CliRunner().invoke(app, ["plan", str(SMOKE / f"{name}.yaml"), "data.max_tokens=16", *arguments])
        return shown.exit_code, shown.output

    elsewhere = ("--memory", "--pictures", "1x32x32", "--vocabulary", "278")
    code, out = plan(*elsewhere)
    assert code == 0, out
    elements = count(config(), SPEC)
    assert f"{elements.parameters:,} parameters, 2 ranks a client, ZeRO-3, float32, fedavg." in out
    assert (
        re.search(r"model states +│ +(\d+) KiB", out)[1] == f"{rank_memory(config(), elements).model_states / 1024:.0f}"
    )  # type: ignore[index]
    assert plan(*elsewhere, "--ranks", "2")[0] == plan("--pictures", "1x32x32")[0] == 2
    code, out = plan("--memory", "--pictures", "large", "--vocabulary", "9")
    assert code == 2 and "such as 1x224x224" in out
    code, out = plan(*elsewhere, "model.image.name=vit_tinny")
    assert code == 2 and "Traceback" not in out
